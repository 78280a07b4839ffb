"""What would make learning better? Settings side by side on training images held out for it.

``python -m bench.paper.tuning --data FOLDER --out DIR [--preset P] [--settings TEXT ...] [--seeds N]``: a network is learned
first on most training images, then each setting, a text of `bench.paper.settings`, learns from it, and those left out (whole
clips of the bodies; of the facades, every fifth of the images that are not in the first fold) tell how well. Test images of the
preset's first split are not looked at; those of its other splits or folds are among them. Rows are appended to ``tuning.json``
in the folder; a row that stands there is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tritoncrf as tc
from bench.paper.edges import Maker, loss_of
from bench.paper.methods import beside, cnn, piecewise
from bench.paper.methods.descent import by_sampling, cross_entropy, descend
from bench.paper.presets import CLIP, PRESETS, Preset
from bench.paper.problem import Chosen, Predictor, Problem, distinct, fold, pretrained
from bench.paper.run import Row, add_rows, rows_of
from bench.paper.settings import Setting, parse
from tritoncrf.batches import Batch
from tritoncrf.datasets import NpzDataset
from tritoncrf.objective import PLAIN, Objective

# Every so many-th clip, by name, is held out; of an archive without clips, every so many-th image.
HELD = 5


class Sampled(nn.Module):
    """The sampled likelihood with a cross-entropy beside it, an objective for `descend`."""

    def __init__(self, problem: Problem, crf: tc.GridCRF, setting: Setting, edge_maker: Maker | None = None) -> None:
        super().__init__()
        self.setting, self.edge_maker = setting, edge_maker
        chains = tc.ChainStore(problem.train.sizes, seed=problem.seed)
        sweeps, own = problem.preset.visit_sweeps, setting.objective
        self.loss = tc.CRFLoss(crf, chains=chains, sweeps=sweeps, objective=own, fast=setting.fast)
        # A loss of its own on the same tables and chains.
        second = own if setting.second is None else setting.second
        self.later = None
        if second != own:
            self.later = tc.CRFLoss(crf, chains=chains, sweeps=sweeps, objective=second, fast=setting.fast)
            # The chains go on under the same fast tables.
            self.later.fast = self.loss.fast
        self.turn = problem.preset.epochs * len(problem.train) // 2
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64))
        self.visits: Tensor

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = self.loss if self.later is None or int(self.visits) < self.turn else self.later
        self.visits += len(batch.index)
        value = loss_of(loss, logits, batch, self.edge_maker)
        if self.setting.beside is not None:
            value = value + beside.value(self.setting.beside, loss, logits, batch, self.edge_maker)
        if self.setting.auxiliary:
            value = value + self.setting.auxiliary * cross_entropy(logits, batch)
        if self.setting.centred:
            with torch.no_grad():
                tables = self.loss.crf.pairwise
                tables.sub_(tables.mean(-2, True) + tables.mean(-1, True) - tables.mean((-2, -1), True))
        return value


def _rate(problem: Problem, setting: Setting) -> float:
    return problem.preset.table_rate if setting.joint else problem.preset.separate_rate


def _learn(problem: Problem, setting: Setting, work: Path) -> Predictor:
    if not setting.learns:
        return cnn.learn(problem, work, further=True)
    if setting.piecewise is not None:
        return piecewise.learn(problem, work, joint=False, weight=setting.piecewise)
    edge_maker = None if setting.edges is None else problem.edges(setting.edges)
    network, crf = problem.network(), problem.crf(edge_maker)
    objective = Sampled(problem, crf, setting, edge_maker)
    descend(problem, network, objective, objective, work, "tuning", joint=setting.joint, rate=_rate(problem, setting))
    return by_sampling(problem, network, crf, edge_maker)


def held_out(data: Path, preset: Preset) -> tuple[tc.Indexed, tc.Indexed]:
    """The preset's number of training images (None: all), and up to half as many held out of the training split."""
    if preset.file is None:
        raise ValueError(f"preset: expected one with an archive, got {preset.name!r}")
    if CLIP in preset.splits:
        train = NpzDataset(data / preset.file, split="train", split_key=CLIP)
        names, whole = np.load(data / preset.file)["clip"][train.indices], Chosen(train, list(range(len(train))))
        places, held = np.arange(len(whole)), np.isin(names, np.unique(names)[::HELD])
    else:
        whole = distinct(NpzDataset(data / preset.file, split=None))
        places = np.flatnonzero(~fold(len(whole), preset.splits[0]))
        held = np.arange(len(places)) % HELD == 0
    learned = places[~held][: preset.train].tolist()
    asked = places[held][: len(learned) // 2].tolist()
    return tc.Indexed(Chosen(whole, learned)), tc.Indexed(Chosen(whole, asked))


def folder_of(preset: Preset, train: int, pretrain: int, seed: int) -> str:
    """Where a pre-trained network and what learns from it lie."""
    return f"{preset.name}_{preset.network}_{train}_{pretrain}_{seed}".replace(":", "_")


def trials(
    about: str, parsed: Callable[[str], object], chosen: list[str], preset: str, pretrain: int
) -> argparse.ArgumentParser:
    """The arguments of a program that tries settings, those chosen by default, on images held out of training.

    parsed: raises ValueError for a text that is no setting.
    """

    def setting(text: str) -> str:
        try:
            parsed(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=[name for name, preset in PRESETS.items() if preset.file], default=preset)
    parser.add_argument("--settings", nargs="+", type=setting, default=chosen, help="each one argument: see the program's text")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--pretrain", type=int, default=pretrain)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def attempt(
    options: argparse.Namespace, file: str, about: Callable[[Problem, str], Row], make: Callable[[Problem, str, Path], Row],
    network: str | None = None,
) -> None:  # fmt: skip
    """Appends to ``file`` of the folder what ``make`` finds by each setting of each seed, unless it stands there.

    about: what sets a row apart beside its setting's text and seed; make: of a problem, a setting's text and the folder of
    what is learned by it; network: in place of the preset's.
    """
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    preset = replace(
        preset, network=network or preset.network, train=options.train, pretrain=options.pretrain, epochs=options.epochs
    )
    train, held = held_out(options.data, preset)
    for seed in range(options.seed, options.seed + options.seeds):
        work = options.out / folder_of(preset, options.train, options.pretrain, seed)
        problem = pretrained(preset, preset.splits[0], seed, train, held, work, torch.device("cpu"))
        for name in options.settings:
            row: Row = {"what": name, "seed": seed, "setting": about(problem, name)}
            if any(row.items() <= old.items() for old in rows_of(options.out / file, "what")):
                continue
            row |= make(problem, name, work)
            print(json.dumps(row), flush=True)
            add_rows(options.out / file, [row], "what")


def main() -> None:
    parser = trials(__doc__ or "", parse, ["control", "separate", "joint"], "half", 10)
    parser.add_argument("--network", help="small, table1 or module:factory; without it, the preset's")
    options = parser.parse_args()

    def make(problem: Problem, name: str, work: Path) -> Row:
        changed = replace(problem.preset, **parse(name).changes)  # type: ignore[arg-type]
        return _row(problem, parse(name), work / f"{name} {changed.epochs} {changed.visit_sweeps}".replace(" ", "_"))

    attempt(options, "tuning.json", _about, make, options.network)


def _about(problem: Problem, name: str) -> Row:
    setting = parse(name)
    changed = replace(problem.preset, **setting.changes)  # type: ignore[arg-type]
    rate = changed.table_rate if setting.joint else changed.separate_rate
    return {
        "preset": changed.name, "network": changed.network, "images": len(problem.train), "pretrain": changed.pretrain,
        "epochs": changed.epochs, "K": changed.visit_sweeps, "classes": len(changed.neighborhood), "table_rate": rate,
        "network_rate": changed.network_rate, **_told(setting),
    }  # fmt: skip


def _told(setting: Setting) -> dict[str, str]:
    """What is changed beside the preset's fields; of what is not, nothing, as in trials from before there was a choice."""

    def said(objective: Objective) -> str:
        parts = {part: value for part, value in asdict(objective).items() if part != "every" or value > 1}
        return ", ".join(f"{part.replace('_', '-')} {value:g}" for part, value in parts.items())

    told = {
        "edges": setting.edges, "objective": None if setting.objective == PLAIN else said(setting.objective),
        "second": None if setting.second is None else said(setting.second), "beside": setting.beside,
        "fast": None if setting.fast is None else f"rate {setting.fast.rate:g}, decay {setting.fast.decay:g}",
    }  # fmt: skip
    return {name: text for name, text in told.items() if text is not None}


def _row(problem: Problem, setting: Setting, work: Path) -> dict[str, object]:
    preset = replace(problem.preset, **setting.changes)  # type: ignore[arg-type]
    problem = replace(problem.softened(setting.soften), preset=preset)
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(problem.seed + 1)
    began, spent = time.perf_counter(), time.process_time()
    predict = _learn(problem, setting, work)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    alone, whole = problem.scores(predict)
    return {
        "validation_accuracy": round(whole.accuracy, 5), "validation_iou": round(whole.mean_iou, 5),
        "network_accuracy": round(alone.accuracy, 5), "validation_images": len(problem.test), "seconds": round(seconds, 1),
        "cpu_seconds": round(spent, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
