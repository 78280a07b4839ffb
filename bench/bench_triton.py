"""How fast is the Triton engine? For pytest-benchmark, on a GPU: ``pytest bench/bench_triton.py --benchmark-only``.

Sweeps of the standard problem by update, batch and kind, parts of a visit, and torch's engine beside. Times are those of CUDA
events around each round, warm, with L2 flushed before it; batch and flip rate stand in the extra info: a throughput means
nothing without them. ``--benchmark-save=before``, later ``--benchmark-compare``, shows what a change did. The bodies take a
device and a size, so that a test runs them in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import tritoncrf as tc
from bench.problem import standard
from tritoncrf.chains import ChainState

SWEEPS = {"calm": 20, "busy": 10, "hot": 4}
ROUNDS = 7
# Twice the largest L2 of the cards this is for.
FLUSHED = 1 << 27
DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: a CPU's times would mean nothing")
]  # fmt: skip


class Clock:
    """Seconds by a device's own events; what pytest-benchmark reads as its timer."""

    def __init__(self, device: torch.device, flushed: int = FLUSHED) -> None:
        self.device = device
        self.flushed = torch.empty(flushed, dtype=torch.uint8, device=device)
        self.first: Any = None

    def __call__(self) -> float:
        if self.device.type != "cuda":
            return float(len(self.flushed))
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        self.first = self.first or event
        return float(self.first.elapsed_time(event)) / 1e3

    def flush(self) -> None:
        """Fills L2 with what nobody reads."""
        self.flushed.zero_()


def started(
    device: torch.device, update: str, images: int, kind: str, engine: str, toy: bool
) -> tuple[tc.Sampler, ChainState, Tensor]:
    """A sampler, chains that have settled, and their logits."""
    problem = standard(kind)
    logits = problem.logits[:, :, 60:63, 160:163] if toy else problem.logits
    logits = logits.to(device).expand(images, -1, -1, -1)
    sampler = tc.Sampler(problem.crf.to(device), engine, seed=1, update=update)
    return sampler, sampler.run(sampler.init(logits), 0 if toy else 30 if engine == "triton" else 3), logits


def sweeps(
    device: torch.device, update: str, images: int, kind: str, engine: str = "triton", toy: bool = False
) -> tuple[Callable[[], object], Callable[[], dict[str, float]]]:
    """What a round runs, and what to tell of the last one."""
    sampler, chains, logits = started(device, update, images, kind, engine, toy)
    count = 1 if toy or engine == "torch" else SWEEPS[kind]
    updates = images * count * logits[0, 0].numel()

    def figures() -> dict[str, float]:
        return {"updates": updates, "images": images, "flip_rate": int(chains.flips.sum()) / updates}

    return lambda: sampler.run(chains, count), figures


def parts(device: torch.device, images: int, toy: bool = False) -> dict[str, Callable[[], object]]:
    """Of a visit, besides its sweeps."""
    sampler, chains, logits = started(device, "gather", images, "calm", "triton", toy)
    out = torch.zeros((*chains.plan.free.shape, chains.plan.num_labels), dtype=torch.float64, device=device)
    return {
        "init": lambda: sampler.init(logits),
        "conditionals": lambda: sampler.conditionals(chains, out),
        "pair counts": lambda: sampler.pair_counts(chains),
    }


def step(device: torch.device, images: int, toy: bool = False) -> Callable[[], object]:
    """Loss and its backward, PCD on half-scale bodies with the far neighbourhood, a third of the pixels free."""
    shape = (4, 5) if toy else (164, 72)
    hood = tc.Neighborhood.nearest(4) if toy else tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1)
    generator = torch.Generator().manual_seed(0)
    labels = 3 if toy else 20
    crf = tc.GridCRF(labels, hood, 0.05 * torch.randn(len(hood), labels, labels, generator=generator)).to(device)
    store = tc.ChainStore([shape] * images, seed=0, device=device)
    loss = tc.CRFLoss(crf, chains=store, sweeps=1 if toy else 10, engine="triton")
    logits = (2 * torch.randn(images, labels, *shape, generator=generator)).to(device).requires_grad_()
    target = torch.randint(0, labels, (images, *shape), generator=generator).to(device)
    clamp = (torch.arange(shape[1], device=device) < shape[1] * 2 // 3).expand(images, *shape)
    index = torch.arange(images, device=device)
    return lambda: loss(logits, target, index, clamp=clamp).backward()


@pytest.fixture
def timed(benchmark: BenchmarkFixture) -> Callable[[Callable[[], object]], None]:
    clock = Clock(DEVICE)
    benchmark._timer = clock

    def run(work: Callable[[], object]) -> None:
        benchmark.pedantic(work, setup=clock.flush, rounds=ROUNDS, warmup_rounds=2)  # type: ignore[no-untyped-call]

    return run


Timed = Callable[[Callable[[], object]], None]


@pytest.mark.parametrize("kind", list(SWEEPS))
@pytest.mark.parametrize("images", [1, 16, 128])
@pytest.mark.parametrize("update", ["gather", "incremental"])
def test_sweeps(benchmark: BenchmarkFixture, timed: Timed, update: str, images: int, kind: str) -> None:
    benchmark.group = f"triton sweeps, {update}, batch {images}, {kind}"
    work, figures = sweeps(DEVICE, update, images, kind)
    timed(work)
    note(benchmark, figures())


def test_torch_beside(benchmark: BenchmarkFixture, timed: Timed) -> None:
    benchmark.group = "triton sweeps, gather, batch 16, calm"
    work, figures = sweeps(DEVICE, "gather", 16, "calm", "torch")
    timed(work)
    note(benchmark, figures())


def note(benchmark: BenchmarkFixture, figures: dict[str, float]) -> None:
    benchmark.extra_info |= figures
    if benchmark.stats is not None:
        benchmark.extra_info["updates_per_ns"] = figures["updates"] / benchmark.stats.stats.median / 1e9


@pytest.mark.parametrize("images", [1, 16])
@pytest.mark.parametrize("part", ["init", "conditionals", "pair counts"])
def test_parts(benchmark: BenchmarkFixture, timed: Timed, part: str, images: int) -> None:
    benchmark.group = f"triton, parts of a visit, batch {images}"
    timed(parts(DEVICE, images)[part])


@pytest.mark.parametrize("images", [1, 16])
def test_training_step(benchmark: BenchmarkFixture, timed: Timed, images: int) -> None:
    benchmark.group = f"triton, loss and backward, batch {images}"
    timed(step(DEVICE, images))
