"""How fast is the numba engine? For pytest-benchmark: ``pytest bench/bench_numba.py --benchmark-only``.

Every part of a chain's life on the standard problem: preparing logits, the first draw, sweeps by each update, conditionals, pair
counts. Sweeps are grouped by kind and threads, the ways side by side (``--benchmark-group-by=param:way`` and the like group
them otherwise). The flip rate stands in the sweeps' extra info: a throughput means nothing without it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import tritoncrf as tc
from bench.edges import models
from bench.problem import HEIGHT, LABELS, WIDTH, standard
from tritoncrf.chains import ChainState

pytest.importorskip("numba", reason="numba is not installed: pip install numba")

SWEEPS = {"calm": 100, "busy": 40, "hot": 10}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch's number of threads, which the engine obeys."""
    before, wanted = torch.get_num_threads(), int(request.param)
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


def started(kind: str, update: str = "incremental") -> tuple[tc.Sampler, ChainState, torch.Tensor]:
    """A sampler, a chain that has settled, one for each thread, and the logits."""
    problem = standard(kind)
    logits = problem.logits.expand(torch.get_num_threads(), -1, -1, -1).contiguous()
    sampler = tc.Sampler(problem.crf, "numba", seed=1, update=update)
    return sampler, sampler.run(sampler.init(logits), 30), logits


@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
@pytest.mark.parametrize("update", ["gather", "incremental", "auto"])
def test_sweeps(benchmark: BenchmarkFixture, update: str, kind: str, threads: int) -> None:
    benchmark.group = f"numba sweeps, {kind}, {threads} threads"
    sampler, chains, logits = started(kind, update)
    sweeps = SWEEPS["hot" if update == "gather" else kind]
    flips = 0

    def run() -> None:
        nonlocal flips
        flips += int(sampler.run(chains, sweeps).flips.sum())
        calls.append(sweeps)

    calls: list[int] = []
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    updates = sweeps * HEIGHT * WIDTH * len(logits)
    benchmark.extra_info |= {"update": update, "kind": kind, "threads": threads, "flip_rate": flips / (updates * len(calls))}
    if benchmark.stats is not None:
        benchmark.extra_info["updates_per_second"] = updates / benchmark.stats.stats.median


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
