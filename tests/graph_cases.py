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
from tritoncrf import FactorCRF, FactorGraph, Sampler

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


def random_members(nodes: int, factors: dict[int, int], seed: int = 0) -> list[Tensor]:
    """Factors of each arity, their nodes different."""
    random = np.random.default_rng(seed)
    found = []
    for arity, number in factors.items():
        rows = random.integers(nodes, size=(8 * number + 8, arity))
        rows = rows[[len(set(row)) == arity for row in rows.tolist()]][:number]
        assert len(rows) == number
        found.append(torch.from_numpy(rows))
    return found


def drawn(
    nodes: int, factors: dict[int, int], labels: int, *, kinds: int = 1, gated: bool = False, scale: float = 0.5, seed: int = 0
) -> tuple[FactorCRF, FactorGraph, Tensor]:
    """A random graph with two classes of every arity, the second one gated in part, entries of at most ``scale``."""
    random = torch.Generator().manual_seed(seed)
    members = [part for n in (0, 1) for part in random_members(nodes, factors, 2 * seed + n)]
    kind = [torch.randint(kinds, (len(part),), generator=random, dtype=torch.uint8) for part in members]
    weights = [(torch.rand(len(part), generator=random) * 1.4).clamp(max=1) for part in members]
    gate = [None if c < len(factors) else part for c, part in enumerate(weights)] if gated else None
    arities = [part.shape[1] for part in members]
    tables = [(2 * torch.rand(kinds, *[labels] * arity, generator=random) - 1) * scale for arity in arities]
    crf = FactorCRF(labels, arities, [kinds] * len(arities), tables)
    return crf, FactorGraph(nodes, members, kind, gate), 2 * torch.randn(nodes, labels, generator=random)


def walk(
    engine: str, update: str, crf: FactorCRF, graph: FactorGraph, logits: Tensor, replicas: int = 2, sweeps: int = 5, /,
    **given: Tensor,
) -> list[Tensor]:  # fmt: skip
    """All that an engine tells of some sweeps."""
    sampler = Sampler(crf, engine, seed=11, update=update)
    chains = sampler.init(logits, graph=graph, replicas=replicas, **given)  # type: ignore[arg-type]
    first, begun = chains.labels, chains.rows.clone()
    total = torch.zeros(*chains.plan.free.shape, crf.num_labels, dtype=torch.float64, device=crf.device)
    sampler.run(chains, sweeps, beta=0.7)
    traces = sampler.average(chains, min(sweeps, 3), total)
    with torch.no_grad():
        # The rows of new tables, and their bounds, are made anew.
        for table in crf.factors:
            table.mul_(0.5)
        sampler.run(chains, sweeps - 1)
        for table in crf.factors:
            table.mul_(2.0)
    counts = sampler.pair_counts(chains)
    errors = sampler.engine.pair_errors(chains.plan, chains.rows, begun)
    return [part.cpu() for part in (first, chains.labels, chains.flips, counts, errors, traces, total)]


def same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one[:-1], other[:-1], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(one[-1], other[-1], rtol=0, atol=1e-6)
