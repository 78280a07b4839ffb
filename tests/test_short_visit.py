"""Does a plain visit by few launches leave what a visit by many leaves? Triton's kernels beside the torch engine's path.

The checks (functions named ``check_*``) run in Triton's interpreter, in a process of their own, as those of
`tests/test_kernels_interpret.py` do, with every fresh tensor poisoned and addresses watched; `tests/compiled` runs the same
comparison on the compiled code.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_kernels_interpret import NO_TRITON, interpret, poison, watch
from tritoncrf import ChainStore, CRFLoss, GridCRF, Neighborhood, short_visit, visit

__all__ = ["poison", "watch"]


@NO_TRITON
def test_the_checks_pass_in_the_interpreter() -> None:
    interpret(file=Path(__file__))


@dataclass(frozen=True)
class Step:
    """A training step of a plain batch; logits lie on a grid, so that sums of them are exact in any order."""

    shape: tuple[int, ...] = (3, 5)
    labels: int = 3
    index: tuple[int, ...] = (2, 0)
    replicas: int = 1
    method: str = "pcd"
    stored: bool = True
    reduction: str = "mean"
    latent: float = 0.2
    dtype: torch.dtype = torch.float32
    target: torch.dtype = torch.int64
    tables: torch.dtype = torch.float32
    last: bool = False
    """Whether labels stand last in memory, as of a channels_last tensor."""
    forbidden: bool = False
    steps: int = 2

    def loss(self, engine: str, validate: bool | None = False) -> CRFLoss:
        make = torch.Generator().manual_seed(3)
        area = Neighborhood.nearest(4) if len(self.shape) == 2 else Neighborhood.from_offsets([(1,), (3,)])
        tables = torch.randint(-300, 300, (len(area), self.labels, self.labels), generator=make).to(self.tables) / 256
        store = ChainStore([self.shape] * 4, seed=5, replicas=self.replicas) if self.stored else None
        return CRFLoss(
            GridCRF(self.labels, area, tables), chains=store, method=self.method, sweeps=1, reduction=self.reduction,
            engine=engine, seed=9, validate=validate,
        )  # fmt: skip

    def batches(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        make, found = torch.Generator().manual_seed(4), []
        for _ in range(self.steps):
            size = (len(self.index), self.labels, *self.shape)
            logits = torch.randint(-200, 200, size, generator=make).to(self.dtype) / 64
            target = torch.randint(0, self.labels, (size[0], *self.shape), generator=make)
            if self.forbidden:
                banned = torch.rand(size, generator=make) < 0.3
                logits[banned.scatter(1, target[:, None], False)] = -torch.inf
            target[torch.rand(target.shape, generator=make) < self.latent] = 255 if self.target != torch.int8 else -1
            if self.last:
                logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
            index = torch.tensor(self.index) if self.stored else None
            found.append((logits.requires_grad_(), target.to(self.target), index))
        return found


def same(step: Step) -> int:
    """Two losses' steps, one by each path: everything is alike, bit for bit; returns how many steps were compared."""
    losses = [step.loss(engine) for engine in ("triton", "torch")]
    if step.target == torch.int8:
        for loss in losses:
            loss._visit.ignore_index = -1
    shorts: list[int] = []

    def counted(*given: object) -> object:
        shorts.append(1)
        return short_visit.short_visit(*given)  # type: ignore[arg-type]

    for batches in zip(*(step.batches() for _ in losses), strict=True):
        seen = []
        for loss, (logits, target, index) in zip(losses, batches, strict=True):
            loss.zero_grad()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(visit, "short_visit", counted)
                value = loss(logits, target, index)
            told = value.detach().clone()
            # As callers do.
            value *= 1
            value.backward()
            read, invalid = loss.statistics, loss.invalid
            assert read is not None
            assert invalid is not None
            state = [] if loss.chains is None else [loss.chains.labels.clone(), loss.chains.sweeps.clone()]
            figures = read.flip_rate, read.energy_gap, read.chain_accuracy, read.labelled
            grads = logits.grad, loss.crf.pairwise.grad
            seen.append([told, *grads, invalid, *figures, loss.visits.clone(), *state])
        for place, (ours, theirs) in enumerate(zip(*seen, strict=True)):
            assert ours is not None
            assert theirs is not None
            assert ours.dtype == theirs.dtype, place
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=f"{place}: {ours} {theirs}")
        assert not bool(seen[0][3])
    # One path each.
    assert len(shorts) == step.steps
    return step.steps


BASE = Step()
STEPS = [
    BASE,
    replace(BASE, index=(1, 3, 1), replicas=2, reduction="sum", last=True, forbidden=True),
    replace(BASE, method="cd", replicas=3, dtype=torch.float16, target=torch.uint8),
    replace(BASE, method="cd", stored=False, shape=(37,), target=torch.int8, dtype=torch.float64, latent=0.5),
    replace(BASE, shape=(13, 21), labels=5, index=(0,), target=torch.int32, latent=0.0, dtype=torch.bfloat16),
    replace(BASE, latent=1.0, steps=1), replace(BASE, latent=1.0, reduction="sum", steps=1),
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=str)
def check_a_short_visit_is_a_visit(step: Step) -> None:
    assert same(step) == step.steps


def check_the_fall_of_energy_is_under_the_tables_that_chains_moved_by() -> None:
    """Rounded ones, of tables between the grid's steps, also where they are read after a step of the optimizer."""
    for batches in zip(*(BASE.batches() for _ in range(2)), strict=True):
        read = []
        for engine, (logits, target, index) in zip(("triton", "torch"), batches, strict=True):
            loss = BASE.loss(engine)
            with torch.no_grad():
                loss.crf.pairwise.add_(0.3 / 4096)
            loss(logits, target, index).backward()
            with torch.no_grad():
                loss.crf.pairwise.mul_(2)
            assert loss.statistics is not None
            read.append((loss.statistics.energy_drop, loss.statistics.drops))
        assert torch.equal(read[0][1], read[1][1])
        assert torch.equal(read[0][0], read[1][0])
        assert bool(read[0][1].abs().min() > 1e-3)


def spoil_logits(what: float) -> Callable[[Tensor, Tensor, Tensor, CRFLoss], None]:
    def spoil(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
        logits[1, 2, 2, 4] = what

    return spoil


def spoil_pixel(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
    logits[0, :, 1, 1], target[0, 1, 1] = -torch.inf, 255


def spoil_allowed(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
    logits[0, 1, 2, 4], target[0, 2, 4] = -torch.inf, 1


def spoil_target(what: int) -> Callable[[Tensor, Tensor, Tensor, CRFLoss], None]:
    def spoil(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
        target[1, 0, 0] = what

    return spoil


def spoil_index(what: int) -> Callable[[Tensor, Tensor, Tensor, CRFLoss], None]:
    def spoil(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
        index[1] = what

    return spoil


def spoil_tables(what: float) -> Callable[[Tensor, Tensor, Tensor, CRFLoss], None]:
    def spoil(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
        with torch.no_grad():
            loss.crf.pairwise[1, 2, 1] = what

    return spoil


def spoil_chains(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
    assert loss.chains is not None
    loss.chains.labels[0, 14] = 3


def spoil_sweeps(logits: Tensor, target: Tensor, index: Tensor, loss: CRFLoss) -> None:
    assert loss.chains is not None
    loss.chains.sweeps[0] = 1 << 34


Spoil = Callable[[Tensor, Tensor, Tensor, CRFLoss], None]
FAULTS: dict[str, tuple[Spoil, ...]] = {
    "nan": (spoil_logits(torch.nan),), "infinity": (spoil_logits(torch.inf),), "nothing allowed": (spoil_pixel,),
    "label": (spoil_target(3),), "below": (spoil_target(-1),), "far": (spoil_target(1 << 40),),
    "allowed": (spoil_allowed,), "index": (spoil_index(4),), "negative": (spoil_index(-1),),
    "tables": (spoil_tables(torch.nan),), "infinite tables": (spoil_tables(torch.inf),),
    "large tables": (spoil_tables(-600.0),), "chains": (spoil_chains,), "sweeps": (spoil_sweeps,),
    "two": (spoil_target(3), spoil_allowed), "three": (spoil_index(7), spoil_tables(600.0), spoil_sweeps),
    "all": (spoil_sweeps, spoil_chains, spoil_index(9), spoil_target(7), spoil_tables(torch.nan), spoil_logits(torch.nan)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def check_a_fault_is_told_in_the_same_words(name: str) -> None:
    said = []
    for engine in ("triton", "torch"):
        loss = BASE.loss(engine)
        (logits, target, index), (more, goal, place) = BASE.batches()
        assert index is not None
        with torch.no_grad():
            for spoil in FAULTS[name]:
                spoil(logits, target, index, loss)
        assert loss.chains is not None
        kept = loss.chains.labels.clone(), loss.chains.sweeps.clone()
        value = loss(logits, target, index)
        value.backward()
        assert bool(value.isnan())
        assert loss.invalid is not None
        assert bool(loss.invalid)
        assert logits.grad is not None
        assert loss.crf.pairwise.grad is not None
        assert not bool(logits.grad.any())
        assert not bool(loss.crf.pairwise.grad.any())
        assert torch.equal(loss.chains.labels, kept[0])
        assert torch.equal(loss.chains.sweeps, kept[1])
        with pytest.raises(ValueError, match="got otherwise in an earlier call") as raised:
            loss(more, goal, place)
        said.append(str(raised.value))
    assert said[0] == said[1]


def check_labels_that_others_wrote_are_looked_at() -> None:
    """A visit's own writes are seen as writes: what hangs on a tensor's version notices them."""
    loss, (batch, again) = BASE.loss("triton"), BASE.batches()
    assert loss.chains is not None
    versions = loss.chains.labels._version, loss.chains.sweeps._version
    loss(*batch)
    assert (loss.chains.labels._version, loss.chains.sweeps._version) > versions
    loss.chains.labels[0, 7] = 77
    assert bool(loss(*again).isnan())


def check_other_batches_go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "short_visit", None)
    (logits, target, index), _ = BASE.batches()
    every = torch.ones(target.shape, dtype=torch.bool)
    for given in ({"sizes": torch.tensor([[3, 5]] * 2)}, {"mask": every}, {"clamp": ~every}):
        assert bool(BASE.loss("triton")(logits, target, index, **given).isfinite())
    assert BASE.loss("triton", validate=True)(logits, target, index).isfinite()
    assert replace(BASE, reduction="none").loss("triton")(logits, target, index).isfinite().all()
    with pytest.raises(TypeError, match="not callable"):
        BASE.loss("triton")(logits, target, index)
