"""Graphs small enough to list: cycles, a clique of four, factors of three and four, kinds, gates, nodes of fewer labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import enumeration
from tests.factor_oracle import Factor, Graph
from tritoncrf import FactorCRF, FactorGraph

# Labels, classes' arities and kinds, and each class's factors as (nodes, kind, gate's steps).
FORMS: dict[str, tuple[int, int, list[int], list[int], list[list[tuple[tuple[int, ...], int, int]]]]] = {
    # A cycle of five whose edges change direction, two kinds.
    "cycle": (5, 3, [2], [2], [[((0, 1), 0, 128), ((2, 1), 1, 128), ((2, 3), 0, 128), ((4, 3), 1, 128), ((4, 0), 1, 128)]]),
    # A clique of four: all pairs, weighed, and one factor of all, not in node order.
    "clique": (4, 3, [2, 4], [1, 1], [
        [(pair, 0, steps) for pair, steps in zip(itertools.combinations(range(4), 2), (128, 64, 37, 0, 128, 90), strict=True)],
        [((2, 0, 3, 1), 0, 128)],
    ]),
    # Third order on six nodes of two or three labels, two classes of pairs; node 5 stands alone but for one factor.
    "third": (6, 3, [3, 2, 2], [2, 1, 3], [
        [((0, 1, 2), 0, 128), ((3, 2, 1), 1, 50), ((4, 3, 0), 1, 128)],
        [((1, 4), 0, 128), ((0, 3), 0, 128)],
        [((4, 5), 2, 128), ((2, 4), 0, 128)],
    ]),
}  # fmt: skip
SPREAD = 0.5
# Labels that a node must not have.
FORBIDDEN = {"third": [(0, 2), (3, 0), (5, 1), (5, 2)]}


@cache
def case(name: str) -> Graph:
    nodes, labels, arities, kinds, classes = FORMS[name]
    rng = np.random.default_rng(31)
    # Energies flat enough for dozens of labellings to matter: total variation then says something.
    unary = enumeration.on_grid(rng.normal(0, SPREAD, (nodes, labels)))
    for node, label in FORBIDDEN.get(name, []):
        unary[node, label] = np.inf
    tables = [enumeration.on_grid(rng.normal(0, SPREAD, (k, *[labels] * a))) for a, k in zip(arities, kinds, strict=True)]
    factors = [Factor(c, *given) for c, part in enumerate(classes) for given in part]
    return Graph(unary, tables, factors)


def model(graph: Graph) -> FactorCRF:
    arities = [table.ndim - 1 for table in graph.tables]
    return FactorCRF(graph.labels, arities, [len(t) for t in graph.tables], [torch.from_numpy(t).float() for t in graph.tables])


def factor_graph(graph: Graph) -> FactorGraph:
    classes = [[factor for factor in graph.factors if factor.c == c] for c in range(len(graph.tables))]
    members = [torch.tensor([factor.nodes for factor in part]) for part in classes]
    kind = [torch.tensor([factor.kind for factor in part], dtype=torch.uint8) for part in classes]
    gated = [any(factor.steps != 128 for factor in part) for part in classes]
    gate = [torch.tensor([factor.steps / 128 for factor in part]) if some else None
            for part, some in zip(classes, gated, strict=True)]  # fmt: skip
    return FactorGraph(graph.nodes, members, kind, gate)


def logits(graph: Graph) -> Tensor:
    """float32 ``[V, L]``; -inf where a label is forbidden."""
    return torch.from_numpy(-graph.unary).float()


def one_sentence(make: Callable[[], object], sentence: str) -> None:
    """Bad input is refused by a sentence of one line."""
    with pytest.raises((ValueError, TypeError), match=sentence) as found:
        make()
    assert "\n" not in str(found.value)
