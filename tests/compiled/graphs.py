"""Which graphs are put to the compiled code? Factors of two to four nodes, kinds and gates, one chain and several."""

from __future__ import annotations

from dataclasses import dataclass

from tests.compiled.launch import Emulator, emulated
from tests.compiled.problems import shape
from tests.graph_cases import drawn, same, walk


@dataclass(frozen=True)
class GraphCase:
    """A random graph."""

    nodes: int
    factors: tuple[tuple[int, int], ...]
    """(arity, how many) of two classes each."""
    labels: int
    kinds: int = 1
    gated: bool = False
    replicas: int = 1
    sweeps: int = 2


# More nodes of a colour than a program of these launches draws at once; a graph with everything.
GRAPHS = [
    GraphCase(300, ((2, 200),), 5),
    GraphCase(40, ((4, 12), (2, 40), (3, 25)), 3, kinds=2, gated=True, replicas=2),
]


def compare(emulator: Emulator, case: GraphCase, team: int) -> int:
    """Site updates compared; AssertionError where something differs from the torch engine."""
    problem = drawn(case.nodes, dict(case.factors), case.labels, kinds=case.kinds, gated=case.gated, scale=1.5)
    theirs = walk("torch", "gather", *problem, case.replicas, case.sweeps)
    with emulated(emulator), shape(team):
        same(walk("triton", "gather", *problem, case.replicas, case.sweeps), theirs)
    return case.nodes * case.replicas * (3 * case.sweeps - 1)
