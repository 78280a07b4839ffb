"""How does a stage run, stop and go on? Steps, diminishing rates, Ctrl-C, and the state that resumes it bit for bit.

A stage is so many epochs over a loader. Each step's rate is the optimizer's times a factor that falls linearly from 1 to 0.
The state holds optimizer, schedule, scaler, epoch, position, and the generators both now and at the epoch's start: a resumed
epoch draws the same data order again, passes over the batches already seen, and goes on. A loader's workers start anew at each
epoch, persistent ones too: what they would carry over cannot be saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from tritoncrf import generators, validation
from tritoncrf.checkpoint import CheckpointError, Tree, believed, group, tensor
from tritoncrf.finite import GradientWatch
from tritoncrf.interrupts import interruptible
from tritoncrf.optimizers import Optimizers, alike, rates_of, set_rates
from tritoncrf.ranks import Ranks

_SCHEDULE = ("base_lrs", "last_epoch", "_step_count", "_last_lr")


@dataclass
class Progress:
    """Stages done, the one under way, its length, and how many epochs and batches of this epoch are done."""

    finished: list[str] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    """Epochs and batches of each finished stage."""
    stage: str = ""
    epochs: int = 0
    batches: int = 0
    epoch: int = 0
    position: int = 0


class Loop:
    """Runs stages one after the other; `state` and `load` carry a half-done one over a restart."""

    def __init__(self, device: torch.device, precision: torch.dtype | None, quiet: bool, ranks: Ranks | None = None) -> None:
        self.device = device
        self.ranks = ranks or Ranks()
        self.quiet = quiet or self.ranks.rank > 0
        self.progress = Progress()
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.optimizers = Optimizers()
        self._watch: GradientWatch | None = None
        self._schedule: LambdaLR | None = None
        self._loader: DataLoader[object] | None = None
        self._epoch_state: dict[str, Tree] | None = None
        # Of the epoch's losses: on the device, so that no step waits for it.
        self._summed = torch.zeros((), dtype=torch.float32, device=device)
        self._saved: dict[str, Tree] | None = None
        self._replayed = 0
        self._taken = False
        """Whether no step has been taken since `load`."""

    def run(
        self, stage: str, loader: DataLoader[object], epochs: int, optimizer: Optimizer, *,
        value: Callable[[object], Tensor], invalid: Callable[[], Tensor | None], after_step: Callable[[int], None],
        after_epoch: Callable[[int, float], None], save: Callable[[], None] | None, every: int,
        named: Mapping[str, Tensor] | None = None, keeps: bool = False,
    ) -> None:  # fmt: skip
        """Runs a stage, or the rest of it after `load`, or nothing if it was finished then.

        Stages are known by their order: after `load` they must come as they came in the saved run (CheckpointError).
        value: a batch's loss; invalid: the flag of a batch whose loss is void; after_step: told the steps done; after_epoch:
        told the epochs done and the mean loss; save: writes a checkpoint after each epoch, each ``every``-th step and Ctrl-C;
        named: what learns, by name; keeps: the optimizer is the caller's own, who may bring it to other stages too.
        Raises FloatingPointError, naming parameter and step, where a gradient or a parameter is no number.
        """
        epochs, every = validation.whole("epochs", epochs, 1), validation.whole("every", every, 0)
        total = epochs * len(loader)
        if total == 0:
            raise ValueError("loader: expected at least one batch, got none")
        lengths = self.ranks.objects((epochs, len(loader)))
        if len(set(lengths)) > 1:
            lengths_text = ", ".join(f"{length} x {count}" for length, count in lengths)
            raise ValueError(f"loader: expected as many epochs and batches on every rank, got {lengths_text}")
        if keeps:
            self.optimizers.note(optimizer)
        if self._is_done(stage, epochs, len(loader)):
            self.optimizers.pass_over(optimizer)
            return
        rates = rates_of(optimizer)
        self._loader = loader
        resuming = self._take_over(stage, epochs, total, optimizer)
        self._watch = GradientWatch(stage, optimizer, named or {}, self.progress.epoch * len(loader) + self.progress.position)
        progress = self.progress
        with interruptible() as interrupted:
            while progress.epoch < epochs:
                batches, resuming = self._open(loader, resuming), False
                for item in self.bar(batches, f"{stage} {progress.epoch + 1}/{epochs}", len(loader), progress.position):
                    self._summed += self._step(optimizer, value(item), invalid)
                    progress.position += 1
                    done = progress.epoch * len(loader) + progress.position
                    after_step(done)
                    pressed = self.ranks.any(interrupted(), self.device)
                    if save is not None and (pressed or (every and done % every == 0)):
                        save()
                    if pressed:
                        raise KeyboardInterrupt
                self._watch.settle()
                progress.epoch, progress.position = progress.epoch + 1, 0
                after_epoch(progress.epoch, float(self._mean()) / len(loader))
                if progress.epoch == epochs:
                    progress.finished.append(stage)
                    progress.lengths.append([epochs, len(loader)])
                if save is not None:
                    save()
                if self.ranks.any(interrupted(), self.device):
                    raise KeyboardInterrupt
        set_rates(optimizer, rates)
        self.optimizers.end()

    def bar(self, items: Iterator[object] | DataLoader[object], text: str, total: int, done: int = 0) -> Iterator[object]:
        """The items under a progress bar, on a terminal and unless quiet."""
        yield from tqdm(items, desc=text, total=total, initial=done, disable=True if self.quiet else None, leave=False)

    def state(self) -> dict[str, Tree]:
        """Where the stage is, to be saved."""
        if self._saved is not None:
            # Loaded and not yet gone on with.
            return dict(self._saved)
        tree: dict[str, Tree] = {"progress": dict(vars(self.progress))}
        tree |= self.optimizers.state()
        if self._watch is not None and self._schedule is not None and self._loader is not None:
            self._watch.settle()
            tree["schedule"] = self._schedule.state_dict()
            tree["scaler"], tree["summed"] = self.scaler.state_dict(), self._mean()
            drawn = {"epoch_state": self._epoch_state, "now": generators.capture(self._loader)}
            tree |= drawn
            if self.ranks.size > 1:
                tree["ranks"] = self.ranks.objects(drawn)
        return tree

    def _mean(self) -> Tensor:
        """The epoch's sum of losses, averaged over ranks."""
        return self.ranks.sum(self._summed) / self.ranks.size

    def load(self, state: dict[str, Tree]) -> None:
        """Takes over a saved state: finished stages will be skipped once, the half-done one goes on."""
        try:
            self.progress = Progress(**group(state, "progress"))  # type: ignore[arg-type]
        except TypeError as error:
            raise CheckpointError(f"progress: expected where a run is, got {error}") from None
        drawn = state.get("ranks")
        if isinstance(drawn, list) and len(drawn) == self.ranks.size:
            # On as many ranks each draws on from its own generators, else all from the first one's.
            state = {**state, **group({"own": drawn[self.ranks.rank]}, "own")}
        self._replayed, self._saved = 0, state
        self._taken = True
        self.optimizers.load(state)
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(group(state, "scaler"))
        if "now" in state:
            # What is drawn from here on, a seed for instance, is what the saved run went on to draw.
            generators.restore(group(state, "now"), None)

    def _is_done(self, stage: str, epochs: int, batches: int) -> bool:
        """Whether the saved run had finished this stage; an unlike one is an error."""
        if self._saved is None:
            return False
        progress, place = self.progress, self._replayed
        ended = place < len(progress.finished)
        if not ended and progress.epoch >= progress.epochs:
            return False
        name = progress.finished[place] if ended else progress.stage
        length = progress.lengths[place] if ended else [progress.epochs, progress.batches]
        if (name, length) != (stage, [epochs, batches]):
            raise CheckpointError(
                f"{stage}: expected to go on as saved with {name!r}, {length[0]} epochs of {length[1]} batches, got "
                f"{stage!r}, {epochs} of {batches}; load(path, resume=False) starts a new run from the saved model"
            )
        self._replayed += ended
        return ended

    def _take_over(self, stage: str, epochs: int, total: int, optimizer: Optimizer) -> bool:
        """Whether a half-done stage goes on; its state is put back."""
        saved, progress, self._saved = self._saved, self.progress, None
        goes_on = saved is not None and progress.epoch < progress.epochs and "optimizer" in saved
        self.optimizers.begin(optimizer, goes_on)
        # Before the schedule is made: a rate that a file holds must not be one to start from.
        self._schedule = LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / total))
        if saved is None or not goes_on:
            self.progress = Progress(progress.finished, progress.lengths, stage, epochs, total // epochs)
            if saved is not None and "now" in saved and self._loader is not None:
                generators.restore_loader(group(saved, "now"), self._loader)
            return False
        # A schedule takes whatever a file calls its attributes: these alone are its state.
        kept, schedule = group(saved, "schedule"), self._schedule
        rates, steps = kept.get("base_lrs"), progress.epoch * (total // epochs) + progress.position
        if not alike(schedule.base_lrs, rates) or kept.get("last_epoch") != steps:
            raise CheckpointError(f"schedule: expected that of {steps} steps, got {kept!r:.200}")
        schedule.load_state_dict({"lr_lambdas": [], **{name: kept[name] for name in _SCHEDULE if name in kept}})
        self.optimizers.put_back()
        self._epoch_state = group(saved, "epoch_state") if progress.position else None
        self._summed = tensor(saved, "summed").to(self.device)
        generators.restore(group(saved, "now"), self._loader)
        return True

    def _open(self, loader: DataLoader[object], resuming: bool) -> Iterator[object]:
        """The epoch's remaining batches, in the order that the epoch's start decides."""
        position = self.progress.position if resuming else 0
        generators.renew_workers(loader)
        now = generators.capture(loader)
        if position and self._epoch_state is not None:
            generators.restore(self._epoch_state, loader)
        else:
            self._epoch_state, self._summed = now, torch.zeros((), dtype=torch.float32, device=self.device)
        batches = iter(loader)
        for _ in range(position):
            next(batches)
        if position:
            generators.restore(now, loader)
        return batches

    def _step(self, optimizer: Optimizer, loss: Tensor, invalid: Callable[[], Tensor | None]) -> Tensor:
        if self._schedule is None or self._watch is None:
            raise RuntimeError("loop: expected a stage under way")
        optimizer.zero_grad()
        if loss.requires_grad:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        flag = invalid()
        if not self.scaler.is_enabled():
            # A scaler of half precision's losses looks at gradients itself, and some are expected to be infinite.
            flag = self._watch.observe(flag)
        if flag is not None and not self.scaler.is_enabled() and getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer leaves parameters and moments alone on this flag, without the host looking at it.
            optimizer.found_inf, optimizer.grad_scale = flag.float(), None  # type: ignore[attr-defined]
        # What a foreign file calls an optimizer's state its first step tells.
        with believed("optimizer", "training") if self._taken else contextlib.nullcontext():
            self.scaler.step(optimizer)
            self.scaler.update()
            self._schedule.step()
        self._taken = False
        return loss.detach()
