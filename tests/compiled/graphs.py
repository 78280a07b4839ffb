"""Which graphs are put to the compiled code? Factors of two to four nodes, kinds and gates, one chain and several."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.compiled.launch import Emulator, emulated
from tests.compiled.problems import shape
from tests.graph_cases import drawn, same, walk
from tritoncrf import FactorGraph


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
    graphs: int = 1
    """How many such graphs are in the batch, of as many nodes each."""


# More nodes of a colour than a program of these launches draws at once; a graph with everything.
GRAPHS = [
    GraphCase(300, ((2, 200),), 5),
    GraphCase(30, ((4, 9), (2, 30), (3, 18)), 3, kinds=2, gated=True, replicas=2, graphs=2),
]


def compare(emulator: Emulator, case: GraphCase, team: int) -> int:
    """Site updates compared; AssertionError where something differs from the torch engine."""
    parts = [
        drawn(case.nodes, dict(case.factors), case.labels, kinds=case.kinds, gated=case.gated, scale=1.5, seed=seed)
        for seed in range(case.graphs)
    ]
    graph, logits = FactorGraph.batch([graph for _, graph, _ in parts]), torch.cat([logits for *_, logits in parts])
    problem = parts[0][0], graph, logits
    theirs = walk("torch", "gather", *problem, case.replicas, case.sweeps)
    with emulated(emulator), shape(team):
        same(walk("triton", "gather", *problem, case.replicas, case.sweeps), theirs)
    return len(logits) * case.replicas * (3 * case.sweeps - 1)
