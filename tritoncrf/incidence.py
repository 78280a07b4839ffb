"""Which factors does a node stand in? A graph's lists for engines, made once a graph, and the layout of its rows.

What depends on members alone is kept with the graph, so that the same graph with other kinds or gates does not sort anew.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Ends, Factors, starts_of
from tritoncrf.engines.factors import graph_of
from tritoncrf.graph_rows import Fold
from tritoncrf.graphs import FactorGraph
from tritoncrf.layout import Layout


def factors_of(graph: FactorGraph, labels: int, kinds: tuple[int, ...], fold: Fold) -> Factors:
    """The lists of a graph for tables of so many labels and kinds a class."""
    arities = graph.arities
    bases = [sum(kinds[:c]) for c in range(len(kinds))]
    ends = tuple(_ends(graph, arity, [c for c, own in enumerate(arities) if own == arity], bases, fold)
                 for arity in sorted(set(arities)))  # fmt: skip
    colors = fold.rows(graph.coloring())
    if fold.sizes is not None:
        colors = colors.masked_fill(torch.arange(fold.width, device=graph.device) >= fold.sizes, 0)
    starts = starts_of(arities, kinds, labels)
    return Factors(labels, arities, kinds, starts, graph.first, colors.int(), graph.num_colors, ends)


def _ends(graph: FactorGraph, arity: int, classes: list[int], bases: list[int], fold: Fold) -> Ends:
    parts = [graph.members[c] for c in classes]
    members = parts[0] if len(parts) == 1 else torch.cat(parts)
    names = [f"{arity}.{name}" for name in ("pointer", "factor", "axis", "others")]
    if names[-1] not in graph.kept:
        for name, part in zip(names, _incidence(graph, members, fold), strict=True):
            graph.kept.setdefault(name, part)
    table, gates = [], []
    for c in classes:
        kind, gate = graph.kind[c], graph.gate[c]
        base = torch.full((len(graph.members[c]),), bases[c], dtype=torch.int32, device=graph.device)
        table.append(base if kind is None else base + kind)
        full = torch.full_like(base, contract.GATE_STEPS, dtype=torch.uint8)
        gates.append(full if gate is None else contract.round_gates(gate))
    gated = any(graph.gate[c] is not None for c in classes)
    return Ends(
        arity, members, torch.cat(table), torch.cat(gates) if gated else None, *(graph.kept[name] for name in names)
    )


def _incidence(graph: FactorGraph, members: Tensor, fold: Fold) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Ends.pointer`, `factor`, `axis` and `others`."""
    arity, flat = members.shape[1], members.flatten()
    pointer = torch.zeros(graph.num_nodes + 1, dtype=torch.int64, device=graph.device)
    pointer[1:] = torch.bincount(flat, minlength=graph.num_nodes).cumsum(0)
    order = flat.argsort(stable=True)
    factor, axis = order // arity, order % arity
    if fold.graphs > 1:
        # Each graph has a row of its own.
        owner = graph_of(graph.first, members[:, 0])
        members = members - graph.first[owner][:, None]
    columns = [[other for other in range(arity) if other != own] for own in range(arity)]
    others = members[factor[:, None], torch.tensor(columns, device=graph.device)[axis]]
    return pointer, factor.int(), axis.to(torch.uint8), others.int()


def layout_of(graph: FactorGraph, labels: int, kinds: tuple[int, ...]) -> Layout:
    """A row of nodes, and void behind it; no neighbour by arithmetic."""
    fold = Fold.of(graph)
    steps = torch.arange(fold.width, device=graph.device)
    return Layout(
        neighborhood=None, shape=(fold.width,), padded=(fold.width,), start=0, volume=fold.width + 1, displacements=(),
        classes=(), num_classes=0, color_bounds=(0, fold.width), coordinates=steps[:, None], positions=steps,
        factors=factors_of(graph, labels, kinds, fold), fold=fold,
    )  # fmt: skip


def _fit(graph: FactorGraph, kinds: tuple[int, ...]) -> None:
    """Raises ValueError for a factor of a kind that there is no table for."""
    for c, (kind, count) in enumerate(zip(graph.kind, kinds, strict=True)):
        if kind is not None and len(kind) and int(kind.max()) >= count:
            raise ValueError(
                f"kind[{c}]: expected kinds from 0 to {count - 1}, got {int(kind.max())} for factor {int(kind.argmax())}"
            )


class GraphCache:
    """The layouts of graphs that are still about, for tables of so many labels and kinds a class."""

    def __init__(self, labels: int, kinds: tuple[int, ...]) -> None:
        self.labels, self.kinds = labels, kinds
        self._layouts: weakref.WeakKeyDictionary[FactorGraph, Layout] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        # What can be built again is not worth its bytes in a copy or a file.
        return {"labels": self.labels, "kinds": self.kinds}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._layouts, self._lock = weakref.WeakKeyDictionary(), threading.Lock()

    def get(self, graph: FactorGraph) -> Layout:
        with self._lock:
            layout = self._layouts.get(graph)
        if layout is None:
            # Once a graph: its tensors stay as they are, and a look waits for the device.
            _fit(graph, self.kinds)
            layout = layout_of(graph, self.labels, self.kinds)
            with self._lock:
                self._layouts[graph] = layout
        return layout

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(layout.nbytes for layout in self._layouts.values())

    def __len__(self) -> int:
        return len(self._layouts)
