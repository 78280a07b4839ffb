"""How fast are sweeps, and a training step? For pytest-benchmark: ``pytest bench --benchmark-only``.

Compare two versions with ``pytest bench --benchmark-save=before``, then ``--benchmark-compare``. The flip rate stands in every
row's extra info: a throughput means nothing without it.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import tritoncrf as tc
from bench.problem import HEIGHT, WIDTH, standard

SWEEPS = 4


@pytest.mark.parametrize("kind", ["calm", "busy", "hot"])
@pytest.mark.parametrize("update", ["gather", "incremental"])
def test_sweeps(benchmark: BenchmarkFixture, update: str, kind: str) -> None:
    benchmark.group = f"sweeps, {kind}"
    problem = standard(kind)
    sampler = tc.Sampler(problem.crf, "torch", seed=1, update=update)
    chains = sampler.run(sampler.init(problem.logits), 10)
    benchmark.pedantic(sampler.run, (chains, SWEEPS), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    updates = SWEEPS * HEIGHT * WIDTH
    benchmark.extra_info["flip_rate"] = int(chains.flips.sum()) / updates
    if benchmark.stats is not None:
        benchmark.extra_info["updates_per_second"] = updates / benchmark.stats.stats.median


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
