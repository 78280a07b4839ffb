"""Who may update together on a graph? Colours by first fit, such that no factor has two nodes of one colour.

Nodes are walked in the order of their numbers; each takes the smallest colour that no earlier node has with which it shares
a factor. At most one colour more than the most neighbours of a node are used, and a sweep over the colours is exact Gibbs
sampling (Gonzalez et al., AISTATS 2011). Colour numbers are part of the bit contract: a node's depend on its own graph alone,
for no factor joins two graphs of a batch. More than 10^4 colours are refused: so many steps are no parallel sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tritoncrf import engines

MAX_COLORS = 10_000
Integers = npt.NDArray[np.int64]
Nodes = npt.NDArray[np.int32]


def first_fit(num_nodes: int, members: Sequence[Integers], compiled: bool | None = None) -> Nodes:
    """The contract's colours, int32 ``[V]``, of classes of factors, int64 ``[F, k]`` each.

    compiled: by numba's code or by numpy, a node at a time; None: by numba's where numba runs. The colours are the same. Raises
    ValueError for a node that would need colour 10^4.
    """
    if compiled is None:
        engine = engines.load("numba")
        compiled = not isinstance(engine, str) and engine.missing(torch.device("cpu")) is None
    color, starts, worst = _compiled(num_nodes, members) if compiled else _by_numpy(num_nodes, members)
    if worst >= 0:
        raise ValueError(
            f"members: expected a graph that first fit gives at most {MAX_COLORS} colours, got node {worst} with neighbours of "
            f"all of them ({int(starts[worst + 1] - starts[worst])} factors join it to earlier nodes)"
        )
    validate(color, members, compiled)
    return color


def validate(color: Nodes, members: Sequence[Integers], compiled: bool = False) -> None:
    """Raises ValueError if a factor has two nodes of one colour."""
    for c, part in enumerate(members):
        bad = _clash(part, color) if not compiled else _compiled_clash(part, color)
        if bad >= 0:
            raise ValueError(
                f"coloring: expected the nodes of every factor to differ in colour, got {color[part[bad]].tolist()} for nodes "
                f"{part[bad].tolist()} of factor {bad} of class {c}"
            )


def _compiled(num_nodes: int, members: Sequence[Integers]) -> tuple[Nodes, Integers, int]:
    from tritoncrf.engines import numba_coloring as code

    starts = np.zeros(num_nodes + 1, np.int64)
    for part in members:
        code.count(part, starts)
    np.cumsum(starts, out=starts)
    ends, earlier = starts[:-1].copy(), np.empty(starts[-1], np.int32)
    for part in members:
        code.fill(part, ends, earlier)
    color = np.empty(num_nodes, np.int32)
    return color, starts, int(code.first_fit(starts, earlier, MAX_COLORS, color))


def _by_numpy(num_nodes: int, members: Sequence[Integers]) -> tuple[Nodes, Integers, int]:
    pairs = [part[:, [a, b]].astype(np.int32) for part in members for a in range(part.shape[1]) for b in range(a)]
    both = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int32)
    later = both.max(1)
    starts = np.zeros(num_nodes + 1, np.int64)
    starts[1:] = np.bincount(later, minlength=num_nodes).cumsum()
    earlier = both.min(1)[np.argsort(later, kind="stable")]
    color, worst = np.zeros(num_nodes, np.int32), -1
    for v in np.flatnonzero(np.diff(starts)).tolist():
        taken = np.zeros(MAX_COLORS + 1, np.bool_) if starts[v + 1] - starts[v] >= MAX_COLORS else None
        used = color[earlier[starts[v] : starts[v + 1]]]
        taken = np.zeros(len(used) + 1, np.bool_) if taken is None else taken
        # What lies past the number of neighbours cannot be the smallest that is free.
        taken[used[used < len(taken)]] = True
        free = int(taken.argmin())
        if free >= MAX_COLORS or taken[free]:
            return color, starts, v
        color[v] = free
    return color, starts, worst


def _clash(part: Integers, color: Nodes) -> int:
    own = np.sort(color[part], axis=1)
    bad = (own[:, 1:] == own[:, :-1]).any(1)
    return int(bad.argmax()) if bad.any() else -1


def _compiled_clash(part: Integers, color: Nodes) -> int:
    from tritoncrf.engines import numba_coloring as code

    return int(code.clash(part, color))
