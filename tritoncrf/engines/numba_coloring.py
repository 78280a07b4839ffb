"""What is the first colour that no earlier neighbour has? Lists of earlier neighbours, and first fit over them, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tritoncrf.engines.numba_cache import entry_point

Integers = npt.NDArray[np.int64]
Nodes = npt.NDArray[np.int32]


@entry_point
def count(members: Integers, starts: Integers) -> None:
    """Adds to ``starts[v + 1]`` how many earlier nodes the factors ``[F, k]`` join to node v."""
    for f in range(members.shape[0]):
        for a in range(1, members.shape[1]):
            for b in range(a):
                starts[max(members[f, a], members[f, b]) + 1] += 1


@entry_point
def fill(members: Integers, ends: Integers, earlier: Nodes) -> None:
    """Lists the earlier node of each pair at its later one, whose list so far ends at ``ends``."""
    for f in range(members.shape[0]):
        for a in range(1, members.shape[1]):
            for b in range(a):
                one, other = members[f, a], members[f, b]
                later = max(one, other)
                earlier[ends[later]] = min(one, other)
                ends[later] += 1


@entry_point
def first_fit(starts: Integers, earlier: Nodes, limit: int, color: Nodes) -> int:
    """Colours nodes 0, 1, ..; returns the first that would need colour ``limit`` or a later one, -1 for none."""
    seen = np.full(limit + 1, -1, np.int32)
    for v in range(len(color)):
        for e in range(starts[v], starts[v + 1]):
            seen[color[earlier[e]]] = v
        c = 0
        while seen[c] == v:
            c += 1
        if c >= limit:
            return v
        color[v] = c
    return -1


@entry_point
def clash(members: Integers, color: Nodes) -> int:
    """The first factor with two nodes of one colour, -1 for none."""
    for f in range(members.shape[0]):
        for a in range(1, members.shape[1]):
            for b in range(a):
                if color[members[f, a]] == color[members[f, b]]:
                    return f
    return -1
