"""How many sweeps does learning need, and what tells? Sweeps that follow the chains and fast weights beside fixed K.

``python -m bench.paper.mixing --data FOLDER --out DIR [--settings ...] [--seeds N]``: as `bench.paper.tuning`, on training
images held out for it. While a setting learns it is noted how far a visit's sweeps lower the energy of the image's chain, nats
a pixel, in their first half and in their second, and every so many visits by how much 300 sweeps more would lower it: the lag
that the visit leaves. Rows are appended to ``mixing.json`` in the folder; a row that stands there is not made again.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tritoncrf as tc
from bench.paper.methods.descent import by_sampling, descend
from bench.paper.problem import Problem
from bench.paper.tuning import attempt, trials
from tritoncrf.batches import Batch
from tritoncrf.contract import GRID
from tritoncrf.diagnostics import lag
from tritoncrf.fast import FastWeights
from tritoncrf.pace import AutoSweeps

# Visits between looks at the lag, sweeps of one, and the parts of learning that figures are averaged over.
EVERY, MORE, PARTS = 24, 300, 4
_Option = tuple[AutoSweeps, FastWeights | None]


def fixed(sweeps: int) -> AutoSweeps:
    """As a fixed K, but halves are looked at."""
    return AutoSweeps(sweeps, sweeps, period=1)


def parse(text: str) -> _Option:
    """The setting of a text: "K = 10", "auto" or "auto, 10 to 100, 0.01" (floor, ceiling, tolerance), also with ", fast 0.3".

    Raises ValueError for any other.
    """
    whole, number = "([1-9][0-9]*)", "([0-9.]+)"
    told = re.fullmatch(f"(?:K = {whole}|auto(?:, {whole} to {whole}, {number})?)(?:, fast {number})?", text)
    if told is None:
        raise ValueError(f"setting: expected 'K = 10' or 'auto, 10 to 100, 0.01', perhaps with ', fast 0.3', got {text!r}")
    k, floor, ceiling, tolerance, rate = told.groups()
    pace = AutoSweeps() if floor is None else AutoSweeps(int(floor), int(ceiling), float(tolerance))
    return fixed(int(k)) if k else pace, None if rate is None else FastWeights(float(rate))


class Watched(nn.Module):
    """The sampled likelihood, an objective for `descend` that notes what its chains do."""

    def __init__(self, problem: Problem, crf: tc.GridCRF, option: _Option) -> None:
        super().__init__()
        sweeps, fast = option
        chains = tc.ChainStore(problem.train.sizes, seed=problem.seed)
        self.loss = tc.CRFLoss(crf, chains=chains, sweeps=sweeps, fast=fast)
        self.notes = list[dict[str, float]]()

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        known = {"sizes": batch.sizes, "mask": batch.mask, "clamp": batch.clamp}
        note: dict[str, float] = {"K": self.loss.sweeps}
        value: Tensor = self.loss(logits, batch.labels, batch.index, **known)
        told = self.loss.statistics
        if told is not None:
            note |= {"drop": float(told.energy_drop), "flips": float(told.flip_rate), "gap": float(told.energy_gap)}
        if self.loss.pace is not None and int(self.loss.pace[1]) == 0:
            early, late, sites = self.loss.pace[5:].tolist()
            note |= {"early": early / GRID / sites, "late": late / GRID / sites}
        if len(self.notes) % EVERY == 0 and self.loss.chains is not None:
            crf = self.loss.crf
            note["lag"] = float(-lag(crf, self.loss.chains, logits.detach(), batch.index, sweeps=MORE, **known).mean())  # type: ignore[arg-type]
        self.notes.append(note)
        return value

    def figures(self) -> dict[str, object]:
        """Means over each part of learning; of a resumed run, of what was seen since."""
        visits = np.array_split(np.arange(len(self.notes)), PARTS)
        found: dict[str, object] = {"sweeps": int(sum(note["K"] for note in self.notes)), "visits": len(self.notes)}
        for name in ("K", "drop", "early", "late", "lag", "flips", "gap"):
            parts = [[self.notes[at][name] for at in part if name in self.notes[at]] for part in visits]
            found[name] = [round(float(np.mean(part)), 5) if part else None for part in parts]
        return found


def row(problem: Problem, option: _Option, work: Path) -> dict[str, object]:
    """Learns one setting and asks the held-out images."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(problem.seed + 1)
    network, crf = problem.network(), problem.crf(None)
    objective = Watched(problem, crf, option)
    began = time.process_time()
    descend(problem, network, objective.loss, objective, work, "mixing", joint=True)
    seconds = time.process_time() - began
    alone, whole = problem.scores(by_sampling(problem, network, crf))
    return {
        "validation_accuracy": round(whole.accuracy, 5), "validation_iou": round(whole.mean_iou, 5),
        "network_accuracy": round(alone.accuracy, 5), "validation_images": len(problem.test),
        "cpu_seconds": round(seconds, 1), **objective.figures(),
    }  # fmt: skip


def main() -> None:
    options = trials(__doc__ or "", parse, ["K = 10", "K = 30", "K = 100"], "facades", 20).parse_args()
    attempt(
        options, "mixing.json", _about,
        lambda problem, name, work: row(problem, parse(name), work / f"mixing {name} {options.epochs}".replace(" ", "_")),
    )  # fmt: skip


def _about(problem: Problem, name: str) -> dict[str, object]:
    preset = problem.preset
    return {
        "preset": preset.name, "network": preset.network, "images": len(problem.train), "pretrain": preset.pretrain,
        "epochs": preset.epochs, "burn_in": preset.burn_in, "answer_sweeps": preset.sweeps,
    }  # fmt: skip


if __name__ == "__main__":
    main()
