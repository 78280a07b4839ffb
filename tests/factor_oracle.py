"""The oracle of graphs: every labelling listed, and rules 1 to 3 one node at a time, from the text and without the library.

``E(y) = sum_v unary[v, y_v] + sum_f gate_f T_f[y_f]``, T_f the table of the factor's class and kind; what a gate makes of an
entry lies on the grid of 2^-12, halves at the even multiple. A labelling's number has node 0 as the highest digit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tests import enumeration
from tests.enumeration import F, Floats, Integers, Singles


@dataclass(frozen=True)
class Factor:
    """One factor: its class, its nodes in the order of its table's axes, its kind and its gate in steps of 1 / 128."""

    c: int
    nodes: tuple[int, ...]
    kind: int = 0
    steps: int = 128


@dataclass(frozen=True)
class Graph:
    """A graph with its energies: unary ``[V, L]`` (+inf forbids), tables ``[kinds, L, .., L]`` a class."""

    unary: Floats
    tables: list[Floats]
    factors: list[Factor] = field(default_factory=list)

    @property
    def nodes(self) -> int:
        return len(self.unary)

    @property
    def labels(self) -> int:
        return int(self.unary.shape[1])

    def table(self, factor: Factor) -> Floats:
        """A factor's table as it counts."""
        table: Floats = self.tables[factor.c][factor.kind]
        weighed: Floats = np.round(factor.steps / 128 * table * 4096) / 4096
        return table if factor.steps == 128 else weighed

    def energies(self, labels: Integers) -> Floats:
        """E of labellings ``[M, V]``."""
        total = np.zeros(len(labels))
        for v in range(self.nodes):
            total += self.unary[v, labels[:, v]]
        for factor in self.factors:
            total += self.table(factor)[tuple(labels[:, v] for v in factor.nodes)]
        return total

    def law(self) -> tuple[Integers, Floats]:
        """Every labelling, and its probability."""
        listed = enumeration.labellings(self.nodes, self.labels)
        return listed, enumeration.joint(self.energies(listed))

    def expected_counts(self, p: Floats, listed: Integers) -> list[Floats]:
        """How often each tuple of labels stands on a factor of each class and kind, weighed by gates, on average."""
        found = [np.zeros_like(table) for table in self.tables]
        for factor in self.factors:
            np.add.at(found[factor.c][factor.kind], tuple(listed[:, v] for v in factor.nodes), p * (factor.steps / 128))
        return found


def colors(nodes: int, factors: list[Factor]) -> list[int]:
    """First fit in node order."""
    found: list[int] = []
    for v in range(nodes):
        taken = {found[w] for factor in factors if v in factor.nodes for w in factor.nodes if w < v}
        found.append(next(color for color in range(nodes) if color not in taken))
    return found


def after_sweep(graph: Graph, p: Floats, target: Floats) -> Floats:
    """The law after one exact sweep from the law ``p``."""
    color = colors(graph.nodes, graph.factors)
    law, goal = (part.reshape([graph.labels] * graph.nodes) for part in (p, target))
    for v in sorted(range(graph.nodes), key=lambda v: color[v]):
        rest = goal.sum(v, keepdims=True)
        # What the target forbids altogether no chain reaches.
        law = law.sum(v, keepdims=True) * np.divide(goal, rest, out=np.zeros_like(goal), where=rest > 0)
    return law.reshape(-1)


def chain(
    graph: Graph, logits: Singles, sweeps: int, *, seed: int, index: int = 0, replica: int = 0, purpose: int = 0,
    beta: float = 1.0, held: dict[int, int] | None = None, missing: tuple[int, ...] = (),
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:  # fmt: skip
    """Labels of one chain at its initial draw and after ``sweeps``, uint8 ``[V]``, 255 at missing nodes."""
    color = colors(graph.nodes, graph.factors)
    fixed = {} if held is None else held
    free = sorted((v for v in range(graph.nodes) if v not in fixed and v not in missing), key=lambda v: color[v])
    unary = {v: enumeration.round_logits(logits[v]) for v in free}
    labels = dict(fixed)
    for v in free:
        u = enumeration.uniform(v, 0, index, replica, purpose + 128, seed)
        labels[v] = enumeration.draw(list(unary[v]), 0, u, 1.0)[0]

    def row() -> npt.NDArray[Any]:
        return np.array([labels.get(v, 255) for v in range(graph.nodes)], np.uint8)

    start = row()
    for sweep in range(sweeps):
        for v in free:
            energy = unary[v].astype(F)
            for factor in graph.factors:
                if v in factor.nodes and not set(factor.nodes) & set(missing):
                    at = tuple(slice(None) if w == v else labels[w] for w in factor.nodes)
                    energy = energy + graph.table(factor)[at].astype(F)
            u = enumeration.uniform(v, sweep, index, replica, purpose, seed)
            labels[v] = enumeration.draw(list(energy), labels[v], u, beta)[0]
    return start, row()
