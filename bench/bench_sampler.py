"""How fast are the engines of a CPU, and a training step? For pytest-benchmark: ``pytest bench --benchmark-only``.

Compare two versions with ``pytest bench --benchmark-save=before``, then ``--benchmark-compare``. Of numba every part of a
chain's life on the standard problem: preparing logits, the first draw, sweeps by each update, conditionals, pair counts; of
torch sweeps. A chain for each thread. Numba's sweeps are grouped by kind and threads, the updates side by side
(``--benchmark-group-by=param:update`` and so on group them otherwise). The flip rate stands in the sweeps' extra info: a
throughput means nothing without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import tritoncrf as tc
from bench.edges import models
from bench.problem import HEIGHT, LABELS, WIDTH, standard
from tritoncrf.chains import ChainState

numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed: pip install numba")
SWEEPS = {"calm": 100, "busy": 40, "hot": 10}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch's number of threads, which the engine obeys."""
    before, wanted = torch.get_num_threads(), int(request.param)
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


def started(
    kind: str, update: str = "incremental", engine: str = "numba", burn_in: int = 30
) -> tuple[tc.Sampler, ChainState, torch.Tensor]:
    """A sampler, a chain that has settled, one for each thread, and the logits."""
    problem = standard(kind)
    logits = problem.logits.expand(torch.get_num_threads(), -1, -1, -1).contiguous()
    sampler = tc.Sampler(problem.crf, engine, seed=1, update=update)
    return sampler, sampler.run(sampler.init(logits), burn_in), logits


@numba
@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
@pytest.mark.parametrize("update", ["gather", "incremental", "auto"])
def test_sweeps(benchmark: BenchmarkFixture, update: str, kind: str, threads: int) -> None:
    benchmark.group = f"numba sweeps, {kind}, {threads} threads"
    measure(benchmark, *started(kind, update), SWEEPS["hot" if update == "gather" else kind])
    benchmark.extra_info |= {"update": update, "kind": kind, "threads": threads}


@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
@pytest.mark.parametrize("update", ["gather", "incremental"])
def test_sweeps_of_torch(benchmark: BenchmarkFixture, update: str, kind: str) -> None:
    benchmark.group = f"sweeps, {kind}"
    measure(benchmark, *started(kind, update, "torch", 10), 4)


def measure(benchmark: BenchmarkFixture, sampler: tc.Sampler, chains: ChainState, logits: torch.Tensor, sweeps: int) -> None:
    """Times calls of so many sweeps."""
    flips = 0

    def run() -> None:
        nonlocal flips
        flips += int(sampler.run(chains, sweeps).flips.sum())
        calls.append(sweeps)

    calls: list[int] = []
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    updates = sweeps * HEIGHT * WIDTH * len(logits)
    benchmark.extra_info["flip_rate"] = flips / (updates * len(calls))
    if benchmark.stats is not None:
        benchmark.extra_info["updates_per_second"] = updates / benchmark.stats.stats.median


@numba
@pytest.mark.parametrize("model", ["without", "3 kinds on all", "1 gate on all", "1 gate on 4"])
@pytest.mark.parametrize("update", ["gather", "incremental"])
def test_tables_that_see_the_image(benchmark: BenchmarkFixture, update: str, model: str) -> None:
    benchmark.group = f"numba, what tables see, busy, {update}"
    problem = standard("busy")
    crf, given = models(problem.crf, len(problem.logits))[model]
    sampler = tc.Sampler(crf, "numba", seed=1, update=update)
    chains = sampler.run(sampler.init(problem.logits, **given), 30)  # type: ignore[arg-type]
    benchmark.pedantic(lambda: sampler.run(chains, SWEEPS["hot"]), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info |= {"update": update, "model": model}


@numba
@pytest.mark.parametrize("part", ["init", "first sweep", "conditionals", "pair counts"])
def test_parts(benchmark: BenchmarkFixture, part: str) -> None:
    benchmark.group = "numba, parts of a visit"
    sampler, chains, logits = started("calm")
    out = torch.zeros(len(logits), len(chains.plan.positions), LABELS, dtype=torch.float64)
    calls = {
        "init": lambda: sampler.init(logits),
        "first sweep": lambda: sampler.run(sampler.init(logits, chains.labels), 1),
        "conditionals": lambda: sampler.conditionals(chains, out),
        "pair counts": lambda: sampler.pair_counts(chains),
    }
    benchmark.pedantic(calls[part], rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_training_step(benchmark: BenchmarkFixture, method: str) -> None:
    """The loss, forward and backward, on four half-scale body images of 164 x 72 with a third of the pixels free."""
    benchmark.group = "training step"
    torch.manual_seed(0)
    shape = (164, 72)
    neighborhood = tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2)
    crf = tc.GridCRF(20, neighborhood, 0.05 * torch.randn(32, 20, 20))
    loss = tc.CRFLoss(crf, chains=tc.ChainStore([shape] * 4, seed=0), method=method, sweeps=10)
    logits = (2 * torch.randn(4, 20, *shape)).requires_grad_()
    target = torch.randint(0, 20, (4, *shape))
    clamp = (torch.arange(72) < 48).expand(4, *shape)

    def step() -> None:
        loss(logits, target, torch.arange(4), clamp=clamp).backward()

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    if loss.statistics is not None:
        benchmark.extra_info["flip_rate"] = float(loss.statistics.flip_rate)
