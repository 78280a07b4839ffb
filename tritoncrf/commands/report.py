"""What does the demo show? A folder with the figures as JSON, a page, label pictures, weight maps and traces."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tritoncrf import plots
from tritoncrf.batches import Batch
from tritoncrf.commands import data
from tritoncrf.commands.data import Kept
from tritoncrf.evaluation import forward
from tritoncrf.training import Trainer

PAGE, MARK, LOG = "report.md", "demo.json", "log.jsonl"
# Centre and neighbour: mirror images, parts far apart, and parts that hang together.
_PAIRS = (("torso0L", "torso0R"), ("torso0R", "torso0L"), ("head", "leg1L"), ("torso2L", "leg0L"), ("arm1L", "arm2L"))
_PICTURES = 6


@dataclass(frozen=True)
class Figures:
    """The accuracies over body pixels (shares of 1), and what they were reached with."""

    network: float
    control: float
    crf: float
    joint_network: float
    seconds: float
    seed: int
    images: int
    held_out: int
    shape: tuple[int, int]
    neighborhood: str
    edges: str
    pretrain_epochs: int
    epochs: int
    sweeps: int
    batch: int
    network_rate: float
    table_rate: float


def check() -> None:
    """Raises ImportError, before any work, if the pictures could not be drawn after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('matplotlib: expected it to be installed for the report: pip install "tritoncrf[plot]"')


def write(folder: Path, figures: Figures, trainer: Trainer, control: Trainer, held_out: Kept) -> None:
    """Writes the whole report into a folder that exists."""
    _pictures(folder / "labels.png", trainer, control, held_out)
    offsets = trainer.crf.neighborhood.offsets
    # The kind between: where depth hardly steps.
    tables = trainer.crf.pairwise if trainer.crf.form.kinds is None else trainer.crf.pairwise[:, trainer.crf.form.kinds // 2]
    maps = []
    for centre, other in _PAIRS:
        name = f"weights_{centre}_{other}.png"
        a, b = held_out.class_names.index(centre), held_out.class_names.index(other)
        plots.weight_map(tables, offsets, a, b, folder / name, class_names=held_out.class_names)
        maps.append(name)
    _traces(folder / "traces.png", folder / LOG, trainer)
    (folder / MARK).write_text(json.dumps(dataclasses.asdict(figures), indent=2) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(_page(figures, maps), encoding="utf-8")


def _pictures(path: Path, trainer: Trainer, control: Trainer, held_out: Kept) -> None:
    rows: list[list[ArrayLike]] = []
    titles: list[list[str]] = []
    for place, item in enumerate(data.loader(held_out)):
        if place == _PICTURES:
            break
        batch = Batch.of(item, trainer.device)
        truth = batch.target[0]
        first = forward(trainer.network, trainer.pretrained, batch.image)[1]
        network = truth if first is None else first[0].argmax(0)
        answers = {
            "network": network if batch.clamp is None else torch.where(batch.clamp[0], truth, network),
            "control": control.marginals(batch, sweeps=1, burn_in=0)[0][0].argmax(0),
            "network + CRF": trainer.marginals(batch)[1][0].argmax(0),
        }
        body = truth.ne(held_out.num_labels if held_out.background is None else held_out.background)
        pictures = [_colours(labels, held_out) for labels in (truth, *answers.values())]
        rows.append([batch.image[0, 0].numpy(), *pictures])
        shares = {name: float((labels == truth)[body].float().mean()) for name, labels in answers.items()}
        titles.append(["depth", "truth"] + [f"{name}: {share:.1%}" for name, share in shares.items()])
    plots.label_grid(rows, titles, path)


def _colours(labels: Tensor, held_out: Kept) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return plots.colorize(labels, held_out.num_labels, background=held_out.background)


def _traces(path: Path, log: Path, trainer: Trainer) -> None:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    joint = [line for line in lines if line["stage"] == "joint"]
    alone = [line for line in lines if line["stage"] == "pretrain" and "epoch" in line]
    series = {"cross-entropy\nby epoch": [float(line["loss"]) for line in alone]}
    titles = {"energy_gap": "gap", "energy_drop": "drop", "chain_accuracy": "chain accuracy", "flip_rate": "flip rate"}
    for name, title in titles.items():
        series[f"joint:\n{title}"] = [float(line[name]) for line in joint if name in line]
    plots.traces({name: values for name, values in series.items() if values}, path)


def _page(figures: Figures, maps: list[str]) -> str:
    height, width = figures.shape
    pictures = "\n".join(f"![{name}]({name})" for name in maps)
    return f"""# tritoncrf demo

{figures.images} made-up figures of {height} x {width} pixels to learn from, {figures.held_out} others to ask about;
seed {figures.seed}, {figures.seconds:.0f} seconds.

| correct pixels on held-out figures (background not counted) | |
|---|---|
| network, {figures.pretrain_epochs} epochs of cross-entropy | {figures.network:.1%} |
| control: the same network with {figures.epochs} epochs of cross-entropy more | {figures.control:.1%} |
| **network and CRF, learned jointly for those {figures.epochs} epochs** | **{figures.crf:.1%}** |
| (the jointly learned network without its CRF) | {figures.joint_network:.1%} |

The comparison that counts is with the control, which has seen the images as often. Made-up figures are for seeing the library
work; they are no evidence for real images.

## Labels
The depth, the truth, and the labels of network, control, and network and CRF, with the share of correct body pixels in that
figure.

![labels](labels.png)

## What the CRF has learned
The energy of one part around another (at the cross), for every offset of `{figures.neighborhood}`, where the depth hardly steps
(`{figures.edges}` gives each offset tables of their own for steps towards and away). Blue is encouraged, red discouraged. Left
and right differ: a CRF with one smoothness weight could not say this.

{pictures}

## How learning went
The energy gap is E(data) - E(sample) per pixel, near 0 once the chains follow the model.

![traces](traces.png)

All figures as JSON: [{MARK}]({MARK}). Made anew by `tritoncrf demo --seed {figures.seed}`.
"""
