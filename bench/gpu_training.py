"""What share of a training step is the sampler's, and who is waited for? Steps of the paper's network on a card.

A PCD step with the loss beside one with cross-entropy in its place, eager and as one CUDA graph; the loss's forward alone;
and the host's time to hand a step over: where that is all of the step, the device waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.gpu_jobs import Job, Row, Setting

if TYPE_CHECKING:
    from tritoncrf import ChainStore, CRFLoss

LABELS, SWEEPS, REPEATS = 20, 10, 10


@dataclass
class Learner:
    """The network of Table 1, the far neighbourhood, and a batch that stays where it is."""

    network: nn.Module
    loss: CRFLoss
    store: ChainStore
    x: Tensor
    target: Tensor
    index: Tensor

    def step(self) -> None:
        value: Any = self.loss(self.network(self.x), self.target, self.index)
        value.backward()

    def plain_step(self) -> None:
        value: Any = nn.functional.cross_entropy(self.network(self.x), self.target)
        value.backward()

    def forward(self, logits: Tensor) -> None:
        self.loss(logits, self.target, self.index)


def learner(setting: Setting, images: int) -> Learner:
    import tritoncrf as tc
    from tritoncrf import networks

    shape = (5, 4) if setting.toy else (164, 72)
    hood = tc.Neighborhood.nearest(4) if setting.toy else tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1)
    torch.manual_seed(0)
    network = (networks.small(1, LABELS, 4) if setting.toy else networks.table1(1, LABELS)).to(setting.device)
    store = tc.ChainStore([shape] * images, seed=0, device=setting.device)
    sweeps = 1 if setting.toy else SWEEPS
    loss = tc.CRFLoss(tc.GridCRF(LABELS, hood).to(setting.device), chains=store, sweeps=sweeps, engine="triton")
    x = torch.randn(images, 1, *shape, device=setting.device)
    target = torch.randint(0, LABELS, (images, *shape), device=setting.device)
    return Learner(network, loss, store, x, target, torch.arange(images, device=setting.device))


def never_waits(setting: Setting) -> Row:
    """Some steps of the paper's network, one image, with whatever waits for the device an error."""
    from bench.gpu_equal import placed

    made, place = learner(setting, 1), placed(setting)
    for _ in range(2):
        made.step()
    before = made.store.sweeps.clone()
    with place.quiet():
        made.step()
    setting.wait()
    if torch.equal(before, made.store.sweeps):
        raise RuntimeError("the step moved no chain")
    return {"passed": ["pcd"]}


def replayed(setting: Setting, images: int, plain: bool) -> Callable[[], object]:
    """A step as one CUDA graph, called to replay it; plain: with cross-entropy."""
    from bench.gpu_equal import placed

    made, place = learner(setting, images), placed(setting)
    step = made.plain_step if plain else made.step
    (stream,) = place.streams(1)
    with stream:
        for _ in range(2):
            step()
    setting.wait()
    made.loss.sampler.guard.settle()
    return partial(kept, made, place.recorded(step))


def kept(made: Learner, replay: Callable[[], object]) -> object:
    """Replays; keeps alive what the graph knows by its addresses alone."""
    return replay()


def timed(setting: Setting, images: int) -> Row:
    made = learner(setting, images)
    with torch.no_grad():
        logits = made.network(made.x).detach()
    logits.requires_grad_()
    works: dict[str, Callable[[], object]] = {
        "step": made.step, "cross_entropy": made.plain_step, "loss_forward": partial(made.forward, logits),
    }  # fmt: skip
    found: Row = {}
    for name, work in works.items():
        for _ in range(1 if setting.toy else 2):
            work()
        found[f"{name}_ms"] = setting.seconds(work, REPEATS) * 1e3
        found[f"{name}_host_ms"] = setting.host_seconds(work, REPEATS) * 1e3
    found["share"] = 1 - found["cross_entropy_ms"] / found["step_ms"]
    for name, plain in (("step", False), ("cross_entropy", True)):
        replay = replayed(setting, images, plain)
        replay()
        found[f"{name}_graph_ms"] = setting.seconds(replay, REPEATS) * 1e3
        found[f"{name}_graph_host_ms"] = setting.host_seconds(replay, REPEATS) * 1e3
    found["graph_share"] = 1 - found["cross_entropy_graph_ms"] / found["step_graph_ms"]
    return found


def training(setting: Setting) -> list[Job]:
    return [(f"batch {images}", partial(timed, setting, images)) for images in ((1,) if setting.toy else (1, 16))]
