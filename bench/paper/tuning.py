"""What would make learning better? Settings side by side on training images held out for it.

``python -m bench.paper.tuning --data FOLDER --out DIR [--preset P] [--settings ...] [--seeds N]``: a network is pre-trained on
most training images, then each setting learns from it, and those left out (whole clips of the bodies; of the facades, every
fifth of the images that are not in the first fold) tell how well. Test images of the preset's first split are not looked at;
those of its other splits or folds are among them. Rows are appended to ``tuning.json`` in the folder; a row
that stands there is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from bench.paper.edges import Maker
from bench.paper.methods import cnn, piecewise
from bench.paper.methods.descent import by_sampling, cross_entropy, descend
from bench.paper.presets import CLIP, PRESETS, Preset, far
from bench.paper.problem import Chosen, Predictor, Problem, distinct, fold, pretrained
from bench.paper.run import rows_of
from tritoncrf.batches import Batch
from tritoncrf.datasets import NpzDataset
from tritoncrf.evaluation import edges_of
from tritoncrf.metrics import Score
from tritoncrf.objective import PLAIN, Objective

# Every so many-th clip, by name, is held out; of an archive without clips, every so many-th image.
HELD = 5


@dataclass(frozen=True)
class Setting:
    """What a row changes; the rest is the preset's."""

    joint: bool = True
    learns: bool = True
    """False: the control, cross-entropy alone."""
    auxiliary: float = 0.0
    """Weight of a cross-entropy of the network alone beside the sampled likelihood."""
    soften: float = 1.0
    """Factor on the pre-trained network's last layer: a start that is less sure of itself."""
    centred: bool = False
    """Takes from the tables after each step what a label's bias in the unaries says as well."""
    piecewise: float | None = None
    """Not sampled: the tables of piecewise training (14) beside the fixed network, times this."""
    edges: str | None = None
    """What is told of the edges, a text of `bench.paper.edges`; None: one table a class."""
    objective: Objective = PLAIN
    """What is learned by."""
    changes: dict[str, object] = field(default_factory=dict)
    """Fields of the preset."""


# Signed depth steps, in units of 0.3 m: three kinds, five, seven, five on some classes; by their size alone, two and three.
STEPS = (
    "steps:0.1", "steps:0.2", "steps:0.3", "steps:0.4", "steps:0.1,0.3", "steps:0.2,0.5", "steps:0.1,0.2,0.4",
    "steps:0.1,0.3 on far", "steps:0.1,0.3 on near", "contrast:0.2", "contrast:0.1,0.3",
)  # fmt: skip
# Distances of colours, for the facades: quantiles 1/2; 1/3, 2/3; 1/2, 4/5; 1/4, 1/2, 3/4 of the training images of fold 0.
CONTRASTS = ("contrast:0.8", "contrast:0.43,1.33", "contrast:0.8,1.95", "contrast:0.28,0.8,1.69")
# Objectives: a cross-entropy of averaged conditionals beside the likelihood, alone, and softmax-margin.
OBJECTIVES = {
    **{f"cross-entropy of {m} averaged x {w:g}": Objective(cross_entropy=w, contexts=m)
       for m, w in ((4, 1.0), (4, 0.3), (4, 3.0), (1, 1.0), (10, 1.0))},
    "cross-entropy of 4 averaged alone": Objective(likelihood=0.0, cross_entropy=1.0),
    **{f"margin {a:g}": Objective(margin=a) for a in (0.1, 0.3, 1.0)},
}  # fmt: skip
_grid, _log = tc.Neighborhood.grid, tc.Neighborhood.log_polar
SETTINGS: dict[str, Setting] = {
    "control": Setting(learns=False),
    "separate": Setting(joint=False),
    "joint": Setting(),
    "separate, start x 0.5": Setting(joint=False, soften=0.5),
    "joint, start x 0.5": Setting(soften=0.5),
    "separate, table rate 1e-3": Setting(joint=False, changes={"separate_rate": 1e-3}),
    "joint, table rate 3e-3": Setting(changes={"table_rate": 3e-3}),
    "separate, table rate 1e-2": Setting(joint=False, changes={"separate_rate": 1e-2}),
    "joint, table rate 1e-2": Setting(changes={"table_rate": 1e-2}),
    "joint, cross-entropy x 0.05": Setting(auxiliary=0.05),
    "joint, cross-entropy x 0.2": Setting(auxiliary=0.2),
    "joint, centred tables": Setting(centred=True),
    "joint, 12 epochs": Setting(changes={"epochs": 12}),
    "control, 12 epochs": Setting(learns=False, changes={"epochs": 12}),
    "joint, 32 classes to 24": Setting(changes={"neighborhood": far(24, 8)}),
    "joint, 48 classes to 32": Setting(changes={"neighborhood": far(32, 8)}),
    "joint, 32 classes log-polar to 40": Setting(changes={"neighborhood": _log(40)}),
    "joint, 20 classes to 16": Setting(changes={"neighborhood": far(16, 8)}),
    "separate, 20 classes to 16": Setting(joint=False, changes={"neighborhood": far(16, 8)}),
    "joint, 8 classes to 2": Setting(changes={"neighborhood": far(1, 1)}),
    "separate, 8 classes to 2": Setting(joint=False, changes={"neighborhood": far(1, 1)}),
    "joint, network rate 3e-3": Setting(changes={"network_rate": 3e-3}),
    "joint, network rate 3e-4": Setting(changes={"network_rate": 3e-4}),
    "joint, network rate 1e-4": Setting(changes={"network_rate": 1e-4}),
    "joint, K = 10": Setting(changes={"visit_sweeps": 10}),
    "separate, K = 10": Setting(joint=False, changes={"visit_sweeps": 10}),
    "joint, K = 20": Setting(changes={"visit_sweeps": 20}),
    "joint, K = 40": Setting(changes={"visit_sweeps": 40}),
    "separate, K = 40": Setting(joint=False, changes={"visit_sweeps": 40}),
    "joint, K = 100": Setting(changes={"visit_sweeps": 100}),
    "joint, K = 40, 100 + 200 sweeps": Setting(changes={"visit_sweeps": 40, "burn_in": 100, "sweeps": 200}),
    "joint, K = 40, network rate 3e-4": Setting(changes={"visit_sweeps": 40, "network_rate": 3e-4}),
    "joint, K = 40, 12 epochs": Setting(changes={"visit_sweeps": 40, "epochs": 12}),
    "joint, K = 40, 20 classes to 16": Setting(changes={"visit_sweeps": 40, "neighborhood": far(16, 8)}),
    "joint, K = 40, table rate 3e-4": Setting(changes={"visit_sweeps": 40, "table_rate": 3e-4}),
    "joint, table rate 3e-4": Setting(changes={"table_rate": 3e-4}),
    "joint, K = 1": Setting(changes={"visit_sweeps": 1}),
    "joint, K = 1, network rate 3e-4": Setting(changes={"visit_sweeps": 1, "network_rate": 3e-4}),
    "joint, 6 epochs": Setting(changes={"epochs": 6}),
    "control, 6 epochs": Setting(learns=False, changes={"epochs": 6}),
    "separate, piecewise tables x 1": Setting(joint=False, piecewise=1.0),
    "separate, piecewise tables x 0.3": Setting(joint=False, piecewise=0.3),
    "separate, piecewise tables x 0.1": Setting(joint=False, piecewise=0.1),
    "separate, piecewise tables x 0.03": Setting(joint=False, piecewise=0.03),
    "separate, piecewise tables x 0.01": Setting(joint=False, piecewise=0.01),
    "separate, 100 + 200 sweeps": Setting(joint=False, changes={"burn_in": 100, "sweeps": 200}),
    "joint, 100 + 200 sweeps": Setting(changes={"burn_in": 100, "sweeps": 200}),
    **{f"joint, edges {text}": Setting(edges=text) for text in (*STEPS, *CONTRASTS)},
    **{f"joint, {name}": Setting(objective=objective) for name, objective in OBJECTIVES.items()},
    **{
        f"joint, edges {text}, {name}": Setting(edges=text, objective=objective)
        for text in ("steps:0.1,0.3", "contrast:0.8,1.95") for name, objective in OBJECTIVES.items()
    },
    "separate, edges steps:0.2": Setting(joint=False, edges="steps:0.2"),
    "separate, edges steps:0.1,0.3": Setting(joint=False, edges="steps:0.1,0.3"),
}


class Sampled(nn.Module):
    """The sampled likelihood with a cross-entropy beside it, an objective for `descend`."""

    def __init__(self, problem: Problem, crf: tc.GridCRF, setting: Setting, edge_maker: Maker | None = None) -> None:
        super().__init__()
        self.setting, self.edge_maker = setting, edge_maker
        chains = tc.ChainStore(problem.train.sizes, seed=problem.seed)
        self.loss = tc.CRFLoss(crf, chains=chains, sweeps=problem.preset.visit_sweeps, objective=setting.objective)

    def forward(self, logits: Tensor, batch: Batch) -> Tensor:
        kinds, gates = edges_of(self.edge_maker, batch.image, None)
        value: Tensor = self.loss(
            logits, batch.labels, batch.index, sizes=batch.sizes, mask=batch.mask, clamp=batch.clamp, kinds=kinds, gates=gates
        )
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


def trials(about: str, settings: list[str], chosen: list[str], preset: str, pretrain: int) -> argparse.ArgumentParser:
    """The arguments of a program that tries ``settings``, those chosen by default, on images held out of training."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", choices=[name for name, preset in PRESETS.items() if preset.file], default=preset)
    parser.add_argument("--settings", nargs="+", choices=settings, default=chosen)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--pretrain", type=int, default=pretrain)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def main() -> None:
    parser = trials(__doc__ or "", list(SETTINGS), list(SETTINGS), "half", 10)
    parser.add_argument("--network", help="small, table1 or module:factory; without it, the preset's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    preset = replace(
        preset, network=options.network or preset.network, train=options.train, pretrain=options.pretrain, epochs=options.epochs
    )
    train, held = held_out(options.data, preset)
    for seed in range(options.seed, options.seed + options.seeds):
        work = options.out / folder_of(preset, options.train, options.pretrain, seed)
        problem = pretrained(preset, preset.splits[0], seed, train, held, work, torch.device("cpu"))
        for name in options.settings:
            file = options.out / "tuning.json"
            changed = replace(preset, **SETTINGS[name].changes)  # type: ignore[arg-type]
            rate = changed.table_rate if SETTINGS[name].joint else changed.separate_rate
            about = {
                "preset": preset.name, "network": preset.network, "images": len(train), "pretrain": options.pretrain,
                "epochs": changed.epochs, "K": changed.visit_sweeps, "classes": len(changed.neighborhood), "table_rate": rate,
                "network_rate": changed.network_rate,
            }  # fmt: skip
            if SETTINGS[name].edges is not None:
                about["edges"] = SETTINGS[name].edges
            if SETTINGS[name].objective != PLAIN:
                parts = asdict(SETTINGS[name].objective).items()
                about["objective"] = ", ".join(f"{part.replace('_', '-')} {value:g}" for part, value in parts)
            if any((row["what"], row["seed"], row["setting"]) == (name, seed, about) for row in rows_of(file, "what")):
                continue
            folder = work / f"{name} {changed.epochs} {changed.visit_sweeps}".replace(" ", "_")
            row = {"what": name, "seed": seed, "setting": about, **_row(problem, SETTINGS[name], folder)}
            print(json.dumps(row), flush=True)
            file.write_text(json.dumps([*rows_of(file, "what"), row], indent=1) + "\n")


def _row(problem: Problem, setting: Setting, work: Path) -> dict[str, object]:
    preset = replace(problem.preset, **setting.changes)  # type: ignore[arg-type]
    network = problem.network()
    if setting.soften != 1.0:
        *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(setting.soften)
    problem = replace(problem, preset=preset, start=network)
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(problem.seed + 1)
    began = time.perf_counter()
    predict = _learn(problem, setting, work)
    seconds = time.perf_counter() - began
    alone = whole = Score.empty(problem.test.num_labels, problem.test.background)
    with torch.no_grad():
        for item in DataLoader(problem.test, batch_size=1, collate_fn=tc.datasets.collate):
            batch = Batch.of(item, problem.device)
            first, last_answer = predict(batch)
            alone, whole = alone.plus(batch.target, first.argmax(1)), whole.plus(batch.target, last_answer.argmax(1))
    return {
        "validation_accuracy": round(whole.accuracy, 5), "network_accuracy": round(alone.accuracy, 5),
        "validation_images": len(problem.test), "seconds": round(seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
