"""The numba engine on graphs: the torch engine's labels where int16 would overflow, with hubs, gates, threads and batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tests.test_graphs import random_members
from tritoncrf.engines import numba_counts, numba_nets
from tritoncrf.incidence import layout_of


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(
    nodes: int, factors: dict[int, int], labels: int, *, kinds: int = 1, gated: bool = False, scale: float = 0.5, seed: int = 0
) -> tuple[tc.FactorCRF, tc.FactorGraph, Tensor]:
    """A random graph with two classes of every arity, the second one gated in part, entries of at most ``scale``."""
    random = torch.Generator().manual_seed(seed)
    members = [part for n in (0, 1) for part in random_members(nodes, factors, 2 * seed + n)]
    kind = [torch.randint(kinds, (len(part),), generator=random, dtype=torch.uint8) for part in members]
    weights = [(torch.rand(len(part), generator=random) * 1.4).clamp(max=1) for part in members]
    gate = [None if c < len(factors) else part for c, part in enumerate(weights)] if gated else None
    arities = [part.shape[1] for part in members]
    tables = [(2 * torch.rand(kinds, *[labels] * arity, generator=random) - 1) * scale for arity in arities]
    crf = tc.FactorCRF(labels, arities, [kinds] * len(arities), tables)
    return crf, tc.FactorGraph(nodes, members, kind, gate), 2 * torch.randn(nodes, labels, generator=random)


def walk(engine: str, update: str, crf: tc.FactorCRF, graph: tc.FactorGraph, logits: Tensor, **given: Tensor) -> list[Tensor]:
    """All that an engine tells of some sweeps."""
    sampler = tc.Sampler(crf, engine, seed=11, update=update)
    chains = sampler.init(logits, graph=graph, replicas=2, **given)  # type: ignore[arg-type]
    first, begun = chains.labels, chains.rows.clone()
    total = torch.zeros(*chains.plan.free.shape, crf.num_labels, dtype=torch.float64)
    sampler.run(chains, 5, beta=0.7)
    traces = sampler.average(chains, 3, total)
    with torch.no_grad():
        # The rows of new tables, and their bounds, are made anew.
        for table in crf.factors:
            table.mul_(0.5)
        sampler.run(chains, 4)
        for table in crf.factors:
            table.mul_(2.0)
    counts = sampler.pair_counts(chains)
    errors = sampler.engine.pair_errors(chains.plan, chains.rows, begun)
    return [first, chains.labels, chains.flips, counts, errors, traces, total]


def same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one[:-1], other[:-1], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(one[-1], other[-1], rtol=0, atol=1e-6)


CASES: dict[str, dict[str, object]] = {
    "two labels": {"factors": {2: 300}, "labels": 2},
    "kinds and gates": {"factors": {2: 200}, "labels": 5, "kinds": 3, "gated": True},
    "33 labels": {"factors": {2: 120}, "labels": 33, "kinds": 2},
    "50 labels, gates": {"factors": {2: 120}, "labels": 50, "gated": True},
    "beyond int16": {"factors": {2: 60}, "labels": 20, "scale": 30.0},
    "triples": {"factors": {3: 90}, "labels": 9, "kinds": 2},
    "all arities, gates": {"factors": {4: 20, 2: 60, 3: 40}, "labels": 4, "kinds": 2, "gated": True},
    "all arities beyond int16": {"factors": {2: 30, 3: 20, 4: 10}, "labels": 3, "gated": True, "scale": 15.0},
    "no factors": {"factors": {2: 0}, "labels": 3},
}


@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("name", CASES)
def test_labels_are_the_torch_engine_s(name: str, update: str) -> None:
    crf, graph, logits = drawn(50, **CASES[name])  # type: ignore[arg-type]
    logits[3, 0] = logits[7, 1] = -torch.inf
    same(walk("numba", update, crf, graph, logits), walk("torch", "gather", crf, graph, logits))


@pytest.mark.parametrize("labels", [4, 20])
def test_sums_of_int16_do_not_overflow(labels: int) -> None:
    # 60 neighbours whose rows add up to 119 nat, 15 times what an int16 holds in steps of the grid.
    leaves = torch.arange(1, 61)
    graph = tc.FactorGraph(61, [torch.stack([torch.zeros_like(leaves), leaves], 1)])
    table = torch.full((1, labels, labels), -1.99)
    table[0, 1:] = 1.99
    crf = tc.FactorCRF(labels, [2], factors=[table])
    logits = torch.zeros(61, labels)
    logits[:, -1] = 3.0
    for update in ("gather", "incremental"):
        same(walk("numba", update, crf, graph, logits), walk("torch", "gather", crf, graph, logits))
    rows = numba_nets.rows_of(layout_of(graph, labels, (1,)).factors, crf.tables, 32)  # type: ignore[arg-type]
    assert rows.block == 8
    out = torch.zeros(1, 61, labels, dtype=torch.float64)
    sampler = tc.Sampler(crf, "numba")
    sampler.conditionals(sampler.init(logits, graph=graph), out)
    assert float(out[0, 0, 0]) == pytest.approx(1)


@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_batches_masks_and_clamps(count: int, update: str, threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(count)
    # Few factors a thread, or there would be work for one.
    monkeypatch.setattr(numba_counts, "FACTORS", 16)
    parts = [drawn(30 + 7 * n, {2: 60}, 5, kinds=2, gated=n != 1, seed=n) for n in range(4)]
    crf, graph, logits = parts[0][0], tc.FactorGraph.batch([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    random = torch.Generator().manual_seed(4)
    mask, clamp = (torch.rand(graph.num_nodes, generator=random) > 0.1 for _ in range(2))
    labels = torch.randint(5, (graph.num_nodes,), generator=random).where(~clamp, 255)
    given = {"mask": mask, "clamp": ~clamp & mask, "labels": labels}
    found = walk("numba", update, crf, graph, logits, **given)
    same(found, walk("torch", "gather", crf, graph, logits, **given))
    for n, (_, own, rows) in enumerate(parts):
        a, b = graph.first[n : n + 2].tolist()
        alone = {name: part[a:b] for name, part in given.items()}
        single = walk("numba", update, crf, own, rows, index=torch.tensor([n]), **alone)
        assert torch.equal(single[1], found[1][:, a:b])


def test_a_flip_is_felt_where_only_one_end_sees_it() -> None:
    # Between labels 0 and 2 a first member changes a row of spread 4; in columns 0 and 2 there is nothing to see.
    table = torch.zeros(1, 3, 3)
    table[0, 0, 1] = 4.0
    members = random_members(200, {2: 600})[0] % 100 + torch.tensor([0, 100])
    graph = tc.FactorGraph(200, [members[members[:, 0] % 2 == 0], members[members[:, 0] % 2 == 1].flip(1)])
    crf = tc.FactorCRF(3, [2, 2], factors=[table, table.mT])
    logits = torch.zeros(200, 3)
    logits[:100, 1], logits[100:, 1] = -4.0, 6.0
    found = walk("numba", "incremental", crf, graph, logits)
    same(found, walk("torch", "gather", crf, graph, logits))
    assert int(found[2].min()) > 5


def test_a_hub_is_pushed_by_all_its_leaves() -> None:
    leaves = torch.arange(1, 4001)
    graph = tc.FactorGraph(4001, [torch.stack([leaves, torch.zeros_like(leaves)], 1)])
    crf = tc.FactorCRF(3, [2], factors=[torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.03])
    logits = torch.randn(4001, 3, generator=torch.Generator().manual_seed(2))
    assert graph.num_colors == 2
    same(walk("numba", "incremental", crf, graph, logits), walk("torch", "gather", crf, graph, logits))


def test_factors_of_three_are_gathered_whatever_is_asked() -> None:
    crf, graph, logits = drawn(40, {3: 60}, 3)
    sampler = tc.Sampler(crf, "numba", update="incremental")
    chains = sampler.run(sampler.init(logits, graph=graph), 3)
    assert chains.field is None
