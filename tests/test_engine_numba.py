"""The numba engine gives the torch engine's labels bit for bit, by both updates, and its other functions the same numbers.

What the engine adds to the contract is tested on its own: the bound on the odds of a site that is passed over, its tables of
int16, its threads. A bound that is not raised when a neighbour flips must be found out.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="numba is not installed: pip install numba")

from bench.problem import standard
from tests.test_sampler import assert_golden, vectors
from tritoncrf import GridCRF, Neighborhood, Sampler, contract
from tritoncrf.chains import ChainState
from tritoncrf.engines import Tables
from tritoncrf.engines import numba as engine
from tritoncrf.engines.numba_rows import Rows
from tritoncrf.gradient import errors

UPDATES = ("gather", "incremental", "auto")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One thread unless a test says otherwise: between torch's operations its idle threads would spin on busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, shape)).float()


def equal(crf: GridCRF, logits: Tensor, update: str, *, sweeps: int = 9, beta: float = 1.0, **arguments: Any) -> ChainState:
    """Asserts the torch engine's labels and flips; returns the chains."""
    found = []
    for name, how in (("torch", "gather"), ("numba", update)):
        sampler = Sampler(crf, name, 7, update=how)
        chains = sampler.init(logits, **arguments)
        first = chains.labels
        sampler.run(chains, sweeps - 2, beta=beta)
        sampler.run(chains, 2, beta=beta)
        found.append((first, chains))
    (first, expected), (start, chains) = found
    assert torch.equal(start, first)
    assert torch.equal(chains.rows, expected.rows)
    assert torch.equal(chains.flips, expected.flips)
    return chains


def ragged(labels: int, seed: int = 0) -> dict[str, Any]:
    """A batch of three padded images with holes, clamps, forbidden labels, wide index and count, and two replicas."""
    rng = np.random.default_rng(seed)
    shape = (3, 13, 17)
    logits = rng.normal(0, 2, (3, labels, 13, 17)).astype(np.float32)
    forbid = rng.random(logits.shape) < 0.2
    forbid[:, 0] = False
    logits[forbid] = -np.inf
    clamp = torch.from_numpy(rng.random(shape) < 0.2)
    return {
        "logits": torch.from_numpy(logits), "clamp": clamp, "replicas": 2,
        "labels": torch.where(clamp, torch.from_numpy(rng.integers(0, labels, shape)), 255),
        "mask": torch.from_numpy(rng.random(shape) < 0.9), "sizes": torch.tensor([[13, 17], [5, 17], [9, 2]]),
        "index": torch.tensor([2**40 - 1, 3, 2**33]), "count": torch.tensor([0, 2**34 - 20, 7]),
    }  # fmt: skip


HOOD = Neighborhood.from_offsets([(0, 1), (1, 0), (1, -1), (-2, 3), (0, 6)])


def rows_of(chains: ChainState) -> Rows:
    """The tables as the engine laid them out."""
    tables = engine._check_work(chains.work).tables
    assert isinstance(tables, Rows)
    return tables


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("labels", [2, 3, 5, 16, 20, 33, 64, 113, 150, 255])
def test_labels_holes_clamps_and_padding(labels: int, update: str) -> None:
    tables = noise(len(HOOD), labels, labels, spread=0.5)
    arguments = ragged(labels)
    chains = equal(GridCRF(labels, HOOD, tables), arguments.pop("logits"), update, **arguments)
    assert rows_of(chains).short


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("labels", [5, 20, 40, 100, 130, 255])
def test_large_entries_take_float32_tables(labels: int, update: str) -> None:
    tables = noise(len(HOOD), labels, labels, spread=0.5)
    tables[1, 1, 0] = 9.0
    arguments = ragged(labels, seed=1)
    chains = equal(GridCRF(labels, HOOD, tables), arguments.pop("logits"), update, **arguments)
    assert not rows_of(chains).short


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("labels", [5, 200])
def test_int16_sums_are_taken_in_parts(labels: int, update: str) -> None:
    """Every entry near the largest int16: no two classes, nor an edge's two ends, may be summed before they are widened."""
    tables = torch.where(noise(len(HOOD), labels, labels) > 0, 7.99, -7.99)
    chains = equal(GridCRF(labels, HOOD, tables), noise(1, labels, 20, 21, spread=20), update, sweeps=15)
    rows = rows_of(chains)
    assert rows.short
    assert len(rows.parts) == 1 + len(HOOD)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ((101,), [(1,), (2,), (5,)]),
        ((2,), [(1,), (2,), (5,)]),
        ((1,), [(1,)]),
        ((33, 41), [(0, 1)]),
        ((30, 26), Neighborhood.nearest(64).offsets),
        ((4, 3), Neighborhood.nearest(64).offsets),
        ((19, 40), (Neighborhood.grid(24, 8) | Neighborhood.grid(2, 2)).offsets),
        ((7, 8, 9), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, -1, 2), (6, 7, 8)]),
    ],
)
def test_shapes_and_neighbourhoods(shape: tuple[int, ...], offsets: list[tuple[int, ...]], update: str) -> None:
    hood = Neighborhood.from_offsets(offsets)
    crf = GridCRF(7, hood, noise(len(hood), 7, 7, spread=0.5 / len(hood) ** 0.5))
    equal(crf, noise(2, 7, *shape, spread=2), update, replicas=3, phase="free")


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.0684, 0.069, 0.5, 1.0, 1e6])
def test_temperatures(beta: float, update: str) -> None:
    """Around 0.068 a label 1024 nat away still has a weight that float32 can hold: below it no bound is kept."""
    arguments = ragged(5, seed=2)
    arguments["logits"] *= 200
    for spread in (0.3, 20.0):
        crf = GridCRF(5, HOOD, noise(len(HOOD), 5, 5, spread=spread))
        equal(crf, update=update, beta=beta, phase="data", sweeps=14, **arguments)


@pytest.mark.parametrize("phase", ["free", "data", "inference"])
def test_random_ways_temperatures_tables_and_logits(phase: str) -> None:
    rng = np.random.default_rng(3)
    crf = GridCRF(5, HOOD, noise(len(HOOD), 5, 5, spread=0.2))
    logits = [noise(2, 5, 15, 18, seed=seed, spread=3) for seed in range(3)]
    samplers = [Sampler(crf, "torch", 1, update="gather"), Sampler(crf, "numba", 1)]
    chains = [sampler.init(logits[0], replicas=2, phase=phase) for sampler in samplers]
    for step in range(60):
        samplers[1].update = str(rng.choice(UPDATES))
        new = logits[step // 10 % 3] if step % 10 == 9 else None
        if step % 15 == 14:
            with torch.no_grad():
                crf.pairwise.mul_(-1.1)
        beta, sweeps = float(rng.choice([0.05, 0.6, 1.0, 1.0, 1.0, 2.0])), int(rng.integers(0, 9))
        for sampler, state in zip(samplers, chains, strict=True):
            sampler.run(state, sweeps, beta=beta, logits=new)
        assert torch.equal(chains[0].rows, chains[1].rows), step
        assert torch.equal(chains[0].flips, chains[1].flips)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
def test_standard_problem_against_torch(kind: str, update: str) -> None:
    problem = standard(kind)
    equal(problem.crf, problem.logits, update, sweeps=6)


def both_ways(kind: str, sweeps: int, chains: int = 1) -> int:
    """Asserts that gather and incremental agree; returns the number of site updates of each."""
    problem = standard(kind)
    found = []
    for update in ("gather", "incremental"):
        sampler = Sampler(problem.crf, "numba", 5, update=update)
        found.append(sampler.run(sampler.init(problem.logits.expand(chains, -1, -1, -1)), sweeps))
    assert torch.equal(found[0].rows, found[1].rows)
    assert torch.equal(found[0].flips, found[1].flips)
    return sweeps * chains * int(found[0].plan.free[0].sum())


@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
def test_gather_equals_incremental_over_a_million_updates(kind: str) -> None:
    assert both_ways(kind, 30) > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
def test_gather_equals_incremental_over_a_billion_updates(kind: str) -> None:
    """More than 4 * 10^8 of each kind."""
    torch.set_num_threads(2)
    assert both_ways(kind, 2500, chains=4) > 4e8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
def test_torch_equals_incremental_over_ten_million_updates(kind: str) -> None:
    problem = standard(kind)
    equal(problem.crf, problem.logits, "incremental", sweeps=240)


@pytest.mark.parametrize("update", UPDATES)
def test_contract_vectors(update: str) -> None:
    case = vectors()["standard_calm"]
    problem = standard("calm")
    assert_golden(Sampler(problem.crf, "numba", case["seed"], update=update), case, problem.logits[0])


def test_a_bound_that_is_not_raised_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    both_ways("busy", 12)
    honest = engine._factors
    monkeypatch.setattr(engine, "_factors", lambda work, scale: tuple(map(np.ones_like, honest(work, scale))))
    with pytest.raises(AssertionError):
        both_ways("busy", 12)


def test_bounds_are_above_the_odds_and_most_sites_are_passed_over() -> None:
    """After many flips around it, every site's bound still covers its exact odds, by float64 from its energies."""
    problem = standard("busy")
    sampler = Sampler(problem.crf, "numba", 5, update="incremental")
    chains = sampler.run(sampler.init(problem.logits), 15)
    assert chains.field is not None
    work, labels = engine._check_work(chains.work), chains.plan.num_labels
    bounds = chains.field.numpy()[: len(work.sites.position)].astype(np.float64)
    tables = contract.round_pairwise(problem.crf.pairwise).double().numpy()
    row, where = chains.rows[0, 0].numpy(), work.sites.position.astype(np.int64)
    energies = work.unary[:, :labels].astype(np.float64)
    for step, table in zip(chains.plan.displacements, tables, strict=True):
        pad = np.pad(table, ((0, 1), (0, 1)))
        energies += pad.T[row[where + step], :labels] + pad[row[where - step], :labels]
    gap = energies - np.take_along_axis(energies, row[where, None].astype(np.int64), 1)
    odds = np.exp(-gap).sum(1) - 1
    assert (bounds >= odds).all()
    assert np.median(bounds / np.maximum(odds, 1e-30)) < 30
    assert (bounds < 0.05).mean() > 0.5


def test_threads_do_not_show() -> None:
    arguments = ragged(5)
    crf = GridCRF(5, HOOD, noise(len(HOOD), 5, 5, spread=0.5))
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(equal(crf, update="incremental", **arguments).rows)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_two_python_threads_at_once() -> None:
    torch.set_num_threads(2)
    crf = GridCRF(5, HOOD, noise(len(HOOD), 5, 5, spread=0.5))
    logits = [noise(3, 5, 30, 40, seed=seed) for seed in range(2)]

    def run(n: int) -> Tensor:
        sampler = Sampler(crf, "numba", n, update="incremental")
        return sampler.run(sampler.init(logits[n], replicas=2), 40).rows

    expected, got = [run(0), run(1)], [torch.empty(0)] * 2
    for _ in range(3):
        workers = [threading.Thread(target=lambda n=n: got.__setitem__(n, run(n))) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert all(map(torch.equal, got, expected))


class Samples(torch.utils.data.Dataset[Tensor]):
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        if self.threads:
            torch.set_num_threads(self.threads)
        sampler = Sampler(GridCRF(5, HOOD, noise(len(HOOD), 5, 5, spread=0.5)), "numba", 1)
        return sampler.run(sampler.init(noise(3, 5, 20, 20, seed=index)), 10).rows


@pytest.mark.parametrize("threads", [0, 2])
def test_in_a_forked_worker(threads: int, request: pytest.FixtureRequest) -> None:
    # Others' threads after it would spin beside each other's.
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(2)
    expected = [Samples(0)[n] for n in range(2)]
    loader = torch.utils.data.DataLoader(Samples(threads), batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert all(map(torch.equal, loader, expected))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("labels", "beta"), [(5, 0.5), (5, 1.0), (150, 1.0)])
def test_conditionals_and_pair_counts_equal_torchs(labels: int, beta: float, update: str) -> None:
    arguments = ragged(labels)
    crf = GridCRF(labels, HOOD, noise(len(HOOD), labels, labels, spread=0.5))
    found = []
    for name in ("torch", "numba"):
        sampler = Sampler(crf, name, 7, update=update if name == "numba" else "gather")
        chains = sampler.run(sampler.init(**arguments), 6)
        out = torch.ones(3, len(chains.plan.positions), labels, dtype=torch.float64)
        energy = sampler.conditionals(chains, out, beta=beta)
        found.append((out, energy, sampler.pair_counts(chains)))
    (out, energy, counts), (out2, energy2, counts2) = found
    assert torch.allclose(out2, out, atol=1e-6, rtol=0)
    assert torch.allclose(energy2, energy, atol=1e-6, rtol=0)
    assert torch.equal(counts2, counts)
    assert counts2.dtype == torch.int64


def averaged(crf: GridCRF, sweeps: int, update: str, beta: float, plain: bool = False, **arguments: Any) -> tuple[Tensor, ...]:
    """Conditionals summed over sweeps, traces, labels and count: by one call or, plainly, sweep by sweep."""
    sampler = Sampler(crf, "numba", 7, update=update)
    chains = sampler.run(sampler.init(**arguments), 3, beta=beta)
    out = torch.zeros((*chains.plan.free.shape, crf.num_labels), dtype=torch.float64)
    if not plain:
        traces = sampler.average(chains, sweeps, out, beta=beta)
        return out, traces, chains.rows, chains.count, chains.flips
    rows, flips = [], torch.zeros_like(chains.flips)
    for _ in range(sweeps):
        flips += sampler.run(chains, 1, beta=beta).flips
        rows.append(sampler.conditionals(chains, out, beta=beta))
    return out, torch.stack(rows, -1), chains.rows, chains.count, flips


def assert_averages(crf: GridCRF, sweeps: int, update: str, beta: float = 1.0, **arguments: Any) -> None:
    out, traces, *found = averaged(crf, sweeps, update, beta, **arguments)
    expected, plain, *theirs = averaged(crf, sweeps, update, beta, plain=True, **arguments)
    assert all(map(torch.equal, found, theirs))
    assert torch.allclose(out, expected, rtol=0, atol=1e-6)
    assert torch.allclose(traces, plain, rtol=1e-9, atol=0)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("sweeps", [1, 2, 7, 33])
@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 3.0])
def test_lazy_averages_of_ragged_batches(beta: float, sweeps: int, update: str) -> None:
    """With replicas, clamps, holes, padding and forbidden labels; hot at the smallest beta, still at the largest."""
    arguments = ragged(5, seed=4)
    arguments["count"] -= torch.tensor([0, 20, 0])
    for spread in (0.3, 4.0):
        assert_averages(GridCRF(5, HOOD, noise(len(HOOD), 5, 5, spread=spread)), sweeps, update, beta, **arguments)


@pytest.mark.parametrize(
    ("labels", "shape"), [(2, (40,)), (16, (9, 14)), (33, (6, 7)), (150, (6, 7)), (3, (5, 6, 7)), (4, (1, 1))]
)
def test_lazy_averages_of_other_shapes(labels: int, shape: tuple[int, ...]) -> None:
    hood = Neighborhood.from_offsets([(1,) * len(shape), (2,) + (0,) * (len(shape) - 1)])
    logits = noise(2, labels, *shape, spread=3)
    assert_averages(GridCRF(labels, hood, noise(2, labels, labels, spread=0.3)), 9, "auto", logits=logits, replicas=3)


@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
def test_lazy_averages_of_the_standard_problem(kind: str) -> None:
    problem = standard(kind)
    assert_averages(problem.crf, 13, "auto", logits=problem.logits)


def test_lazy_averages_when_nothing_is_free() -> None:
    held = torch.ones(1, 4, 5, dtype=torch.bool)
    crf = GridCRF(5, HOOD, noise(len(HOOD), 5, 5))
    assert_averages(crf, 3, "auto", logits=noise(1, 5, 4, 5), clamp=held, labels=held.long())


def test_weights_are_the_contracts() -> None:
    """Through conditionals of sites without neighbours, over the whole range of exponents."""
    energies = torch.floor(torch.linspace(0, 80, 255 * 40) * 4096) / 4096
    logits = -energies.view(1, 40, 255).movedim(1, 2)
    logits[:, 0] = 0
    crf = GridCRF(255, Neighborhood.from_offsets([(1,)]))
    found = []
    for name in ("torch", "numba"):
        sampler = Sampler(crf, name, 0)
        chains = sampler.init(logits)
        out = torch.zeros(1, len(chains.plan.positions), 255, dtype=torch.float64)
        sampler.conditionals(chains, out)
        found.append(out)
    assert torch.allclose(found[0], found[1], rtol=3e-7, atol=0)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize(
    ("shape", "offsets"), [((13, 17), HOOD.offsets), ((9,), [(1,), (2,), (8,)]), ((5, 4, 3), [(1, -1, 2)])]
)
def test_errors_equal_torchs_bit_for_bit(
    shape: tuple[int, ...], offsets: list[tuple[int, ...]], share: float, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that differ nowhere, here and there, and almost everywhere; padding, holes; both updates of counting."""
    rng = np.random.default_rng(5)
    crf = GridCRF(4, Neighborhood.from_offsets(offsets))
    sizes = torch.tensor([shape, [max(1, n - 2) for n in shape]])
    mask = torch.from_numpy(rng.random((2, *shape)) < 0.9)
    first = rng.integers(0, 4, (2, replicas, *shape))
    second = np.where(rng.random(first.shape) < share, rng.integers(0, 4, first.shape), first)
    found = []
    for name in ("torch", "numba"):
        sampler = Sampler(crf, name)
        states = [
            sampler.init(torch.zeros(2, 4, *shape), torch.from_numpy(labels), sizes=sizes, mask=mask, replicas=replicas)
            for labels in (first, second)
        ]
        found.append(errors(sampler, states[0], states[1], crf.tables)[:2])
    (unary, tables), (unary2, tables2) = found
    assert torch.equal(unary2, unary)
    assert torch.equal(tables2, tables)
    for most in (0.0, 2.0):
        monkeypatch.setattr("tritoncrf.engines.numba_errors.MOST", most)
        assert torch.equal(errors(sampler, states[0], states[1], crf.tables).pairwise, tables)
    assert bool(unary.any()) or share < 0.5
    # Samples that agree have no error, whatever 1/R is in binary.
    assert not errors(sampler, states[0], states[0], crf.tables).logits.any()


def test_what_it_cannot_do() -> None:
    assert engine.missing(torch.device("cpu")) is None
    assert "CPU" in str(engine.missing(torch.device("cuda")))
    with pytest.raises(TypeError, match="work: expected what the numba engine prepared, got object"):
        engine.field(object(), torch.zeros(1, 1, 1, dtype=torch.uint8))
    chains = Sampler(GridCRF(2, HOOD), "torch").init(torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"logits: expected images of fewer than 2\^31 padded pixels"):
        engine.prepare(replace(chains.plan, volume=1 << 31), torch.zeros(1, 2, 3, 4), Tables(torch.zeros(5, 2, 2)))


ALL_SIZES = """
import torch
from tritoncrf import GridCRF, Neighborhood, Sampler
torch.set_num_threads(1)
for labels in (7, 20):
    crf = GridCRF(labels, Neighborhood.from_offsets([(1,), (2,)]), torch.randn(2, labels, labels) * 0.3)
    for sites in range(1, 73):
        logits = torch.randn(2, labels, sites) * 3
        fast, plain = Sampler(crf, "numba", update="incremental"), Sampler(crf, "torch", update="gather")
        a, b = fast.init(logits, replicas=2), plain.init(logits, replicas=2)
        fast.run(a, 4)
        out = torch.zeros(*a.plan.free.shape, labels, dtype=torch.float64)
        fast.average(a, 3, out)
        assert torch.equal(a.labels, plain.run(b, 7).labels), (labels, sites)
print("equal")
"""


def test_no_number_of_sites_meets_freed_memory() -> None:
    """Scratch that is reached by its address alone was freed too early, and a queue of the same size class took its place."""
    done = subprocess.run([sys.executable, "-c", ALL_SIZES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


@pytest.mark.parametrize("labels", [2, 20, 33])
def test_logits_may_lie_channels_last(labels: int) -> None:
    logits = noise(2, labels, 9, 11, seed=labels, spread=3)
    logits[:, 0, 2, 3], logits[1, 1, 4] = -torch.inf, -torch.inf
    sizes, crf = torch.tensor([[9, 11], [7, 5]]), GridCRF(labels, HOOD, noise(len(HOOD), labels, labels, spread=0.2))
    last = logits.to(memory_format=torch.channels_last)
    assert last.movedim(1, -1).is_contiguous()
    found = []
    for name, given in (("torch", logits), ("numba", logits), ("numba", last)):
        sampler = Sampler(crf, name, 1)
        found.append(sampler.run(sampler.init(given, sizes=sizes, replicas=2), 6).labels)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
