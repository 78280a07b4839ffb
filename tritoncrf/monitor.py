"""Is learning going right? What the loss tells of its last call, and the alarms that need no reading of the device."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tritoncrf.checkpoint import Tree
from tritoncrf.statistics import Statistics as Statistics

# Calls after which tables that got gradients but never changed look forgotten; gradient accumulation stays well below it.
PATIENCE = 256
# A fall of the validation accuracy below its best that says the network runs ahead of the chains.
FALL = 0.03
LOG_STEPS = 50


def numbers(statistics: Statistics) -> dict[str, Tree]:
    """A call's figures of all its images, by name, read from its device."""
    return {name: float(value) for name, value in vars(statistics).items() if not value.dim()}


class TableWatch:
    """Warns once if tables keep getting gradients but never change: forgotten in the optimizer, most likely."""

    def __init__(self, name: str = "crf.pairwise") -> None:
        self._name = name
        self._still: tuple[Tensor, int, int] | None = None
        self._warned = False

    def observe(self, tables: Tensor) -> None:
        """Called at every learning call of the loss."""
        if self._warned or tables.grad is None or not tables.requires_grad:
            return
        version = tables._version
        if self._still is None or self._still[1] != version:
            self._still = tables.detach().clone(), version, 0
            return
        kept, _, calls = self._still
        self._still = kept, version, calls + 1
        if calls + 1 < PATIENCE:
            return
        self._still = None
        # Writes through .data leave the version alone, so the values have the last word.
        if torch.equal(kept, tables) and bool(tables.grad.any()):
            self._warned = True
            warnings.warn(
                f"{self._name} had gradients in {PATIENCE} calls, never changed: are loss.parameters() in the optimizer?",
                stacklevel=5,
            )


def check_fall(accuracy: float, earlier: Iterable[Tree]) -> None:
    """Warns if the whole model's validation accuracy has fallen behind its best of the same stage."""
    best = max((value for value in earlier if isinstance(value, float)), default=0.0)
    if accuracy < best - FALL:
        warnings.warn(
            f"the whole model's validation accuracy fell to {accuracy:.3f} from {best:.3f}: the network runs ahead of "
            "the chains; raise the loss's sweeps or lower the network's rate",
            stacklevel=3,
        )


class Journal:
    """A file with a line of JSON per note; None writes nothing. Its folder is made at once, so that a bad path fails early."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def note(self, line: Mapping[str, Tree]) -> None:
        if self._path is None:
            return
        # JSON knows no NaN.
        plain = {name: None if isinstance(part, float) and not math.isfinite(part) else part for name, part in line.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(plain) + "\n")


class Record:
    """The lines of a stage: one every 50 steps to the journal, one an epoch to journal and history.

    figures: what the loss told of its last call; finished: told the epochs done, gives what else an epoch's line shall hold.
    """

    def __init__(
        self, journal: Journal, history: list[dict[str, Tree]], stage: str, figures: Callable[[], dict[str, Tree]],
        finished: Callable[[int], dict[str, Tree]],
    ) -> None:  # fmt: skip
        self._journal, self._history, self._stage = journal, history, stage
        self._figures, self._finished = figures, finished
        self._started = time.perf_counter()

    def step(self, step: int) -> None:
        if step % LOG_STEPS == 0:
            self._journal.note({"stage": self._stage, "step": step, **self._figures()})

    def epoch(self, epoch: int, mean: float) -> None:
        seconds = time.perf_counter() - self._started
        line: dict[str, Tree] = {"stage": self._stage, "epoch": epoch, "loss": mean, "seconds": seconds}
        line |= self._figures() | self._finished(epoch)
        self._history.append(line)
        self._journal.note(line)
