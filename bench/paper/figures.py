"""What was learned, seen: ``python -m bench.paper.figures --work runs/half --data FOLDER`` draws the paper's figures and ours.

Reads the folder that ``python -m bench.paper --out`` wrote: the models of its finished rows, their logs, and the pre-trained
network. Nothing is learned here; a figure whose rows are not there is left out, with a sentence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.paper import (
    figures_ambiguity,
    figures_canvas,
    figures_curves,
    figures_labels,
    figures_weights,
    report,
    report_rows,
)
from bench.paper.edges import kind_names
from bench.paper.figures_ambiguity import Panel
from bench.paper.figures_labels import Example
from bench.paper.methods import METHODS, learn
from bench.paper.presets import PRESETS
from bench.paper.problem import Predictor, Problem, prepare
from bench.paper.report_claims import METHODS as TITLES
from bench.paper.run import finished, program, rows_of
from tritoncrf import checkpoint
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate

COLUMNS = {
    "cnn": "CNN", "crfrnn_joint": "CRF-as-RNN,\njoint", "separate_pcd": "ours,\nseparate", "joint_pcd": "ours,\njoint",
}  # fmt: skip
SAMPLED = [name for name, (module, _) in METHODS.items() if module == "sampling"]


class NotThere(ValueError):
    """A figure whose rows were not learned in this folder."""


@dataclass(frozen=True)
class Work:
    """One split and seed of a run's folder."""

    problem: Problem
    folder: Path
    rows: tuple[str, ...]
    """Finished rows."""

    def predictors(self, *names: str) -> dict[str, Predictor]:
        """How some rows answer. Raises NotThere unless all are finished."""
        missing = [name for name in names if name not in self.rows]
        if missing:
            raise NotThere(f"expected finished rows of {', '.join(names)}, got none of {', '.join(missing)}")
        return {name: learn(name, self.problem, self.folder / name) for name in names}

    def batch(self, place: int) -> Batch:
        """One test image."""
        return Batch.of(collate([self.problem.test[place]]), self.problem.device)

    def learned(self, count: int) -> list[Batch]:
        """So many training images, evenly spaced."""
        train = self.problem.train
        places = np.unique(np.linspace(0, len(train) - 1, count).round().astype(int)).tolist()
        return [Batch.of(collate([train[place]]), self.problem.device) for place in places]

    def spread(self, count: int) -> list[int]:
        """Places of so many test images, evenly spaced: nobody chose them."""
        total = len(self.problem.test)
        count = min(count, total)
        return [total * (2 * k + 1) // (2 * count) for k in range(count)]


def open_work(work: Path, data: Path | None, split: str | None, seed: int, device: str = "cpu") -> Work:
    """Raises FileNotFoundError or ValueError if the folder holds no run of a preset, or none of that split and seed."""
    about = work / "run.json"
    if not about.is_file():
        raise FileNotFoundError(f"work: expected a folder that bench.paper wrote, got {work}, which holds no run.json")
    name = json.loads(about.read_text()).get("name")
    if name not in PRESETS:
        raise ValueError(f"work: expected a run of {', '.join(PRESETS)}, got {name!r} in {about}")
    preset = PRESETS[name]
    split = split or preset.splits[0]
    folder = work / f"{split}_{seed}"
    if not (folder / "pretrain.safetensors").is_file():
        raise FileNotFoundError(f"work: expected a pre-trained network in {folder}, got none")
    rows = [str(row["name"]) for row in rows_of(work / f"{name}_{split}_{seed}.json")]
    return Work(prepare(preset, split, seed, data, folder, torch.device(device)), folder, tuple(rows))


def opened(options: argparse.Namespace) -> Work:
    """What the arguments of `finished` ask for."""
    torch.set_num_threads(options.threads)
    for name in ("images", "search"):
        if getattr(options, name, 1) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
    return open_work(options.work, options.data, options.split, options.seed, getattr(options, "device", "cpu"))


def figure1(work: Work, path: Path, images: int) -> str:
    """Depth, truth and labels of evenly spaced test images."""
    predictors = work.predictors("cnn", *(name for name in COLUMNS if name in work.rows and name != "cnn"))
    examples = []
    for place in work.spread(images):
        batch = work.batch(place)
        answers = {COLUMNS[name]: _labels(predictors[name](batch)[1]) for name in COLUMNS if name in predictors}
        examples.append(Example(batch.image[0].cpu().numpy(), _labels_of_target(batch), answers))
    figures_labels.side_by_side(examples, work.problem.test.num_labels, work.problem.test.background, path)
    left = [name for name in COLUMNS if name not in predictors]
    return f"test images {work.spread(images)}" + (f"; without {', '.join(left)}, not learned here" if left else "")


def figure2(work: Work, path: Path, row: str = "joint_pcd") -> str:
    """Parts, neighbourhood and weights of a jointly learned CRF."""
    work.predictors(row)
    names = work.problem.test.class_names
    if not {name for pair in figures_weights.PAIRS for name in pair} <= set(names):
        raise NotThere(f"expected body parts, got the classes {', '.join(names[:3])}, ..")
    tree = checkpoint.read(work.folder / row / "model.safetensors", kind="training")
    labels = [_labels_of_target(work.batch(place)) for place in work.spread(40)]
    # the image whose smallest part is largest shows all parts best
    clearest = max(labels, key=lambda part: int(np.bincount(part.ravel(), minlength=256)[: len(names)].min()))
    offsets = checkpoint.tensor(tree, "offsets").tolist()
    pairwise, background = checkpoint.tensor(tree, "pairwise"), work.problem.test.background
    figures_weights.insight(pairwise, offsets, clearest, names, background, path)
    return f"tables of {row}"


def kinds(work: Work, path: Path, row: str = "joint_kinds") -> str:
    """The tables of one offset for each kind of edge: of the class whose tables differ most."""
    work.predictors(row)
    edge_maker = work.problem.edges()
    tree = checkpoint.read(work.folder / row / "model.safetensors", kind="training")
    tables = checkpoint.tensor(tree, "pairwise")
    most = int(tables.var(1, correction=0).sum((1, 2)).argmax())
    offset = work.problem.preset.neighborhood.offsets[most]
    figures_weights.by_kind(tables[most], offset, kind_names(edge_maker), work.problem.test.class_names, path)
    return f"tables of {row}, {edge_maker}, offset {offset}"


def figure3(work: Work, path: Path, search: int) -> str:
    """One image and pixel before and after joint learning: the image where the joint CRF gains most over the separate one."""
    predictors = work.predictors("separate_pcd", "joint_pcd")
    background = work.problem.test.background
    best: tuple[float, int, list[Panel], NDArray[np.uint8]] | None = None
    for place in work.spread(search):
        batch = work.batch(place)
        truth = _labels_of_target(batch)
        answers = [part[0].float().cpu().numpy() for name in predictors for part in predictors[name](batch)]
        titles = ("network", "separate CRF", "network after\njoint learning", "joint CRF")
        panels = [Panel(title, part) for title, part in zip(titles, answers, strict=True)]
        shares = [figures_labels.accuracy(panel.labels, truth, background) for panel in panels]
        if best is None or shares[3] - shares[1] > best[0]:
            best = shares[3] - shares[1], place, panels, truth
    if best is None:
        raise NotThere("expected test images, got none")
    gain, place, panels, truth = best
    before, separate, after, joint = panels
    counted = np.where(truth == background, 255, truth) if background is not None else truth
    pixel = figures_ambiguity.choose_pixel(counted, before, separate, after, joint)
    figures_ambiguity.ambiguity(panels, truth, pixel, work.problem.test.class_names, background, path)
    return f"test image {place}, of {len(work.spread(search))} searched, {100 * gain:+.1f} points, pixel {pixel}"


def learning(work: Work, path: Path) -> str:
    """Learning curves of the sampled rows."""
    logs = {name: work.folder / name / "log.jsonl" for name in SAMPLED}
    runs = {TITLES[name].title: figures_curves.journal(log) for name, log in logs.items() if log.is_file()}
    runs = {title: notes for title, notes in runs.items() if len(figures_curves.series(notes, "flip_rate")[0])}
    if not runs:
        raise NotThere(f"expected a log of one of {', '.join(SAMPLED)} with notes by step, got none")
    figures_curves.learning(runs, path)
    return ", ".join(runs)


def inference(path: Path, results: Path) -> str:
    """Accuracy against sweeps, from the committed results."""
    found = report_rows.read(results).inference
    if found is None or not found.curves:
        raise NotThere(f"expected curves in {results / report_rows.INFERENCE}, got none")
    figures_curves.inference(found.curves, path)
    return f"{len(found.curves)} curves"


def _labels(marginals: torch.Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = marginals[0].argmax(0).to(torch.uint8).cpu().numpy()
    return found


def _labels_of_target(batch: Batch) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = batch.target[0].to(torch.uint8).cpu().numpy()
    return found


@program
def main(arguments: list[str] | None = None) -> None:
    parser = finished("figures", __doc__ or "", images=4, out=report.PAGE.parent / "figures")
    parser.add_argument("--search", type=int, default=40, help="test images to look for figure 3 in")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    figures_canvas.figure(1, 1)
    work = opened(options)
    options.out.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[Path], str]] = {
        "figure1.png": lambda path: figure1(work, path, options.images),
        "figure2.png": lambda path: figure2(work, path),
        "figure3.png": lambda path: figure3(work, path, options.search),
        "kinds.png": lambda path: kinds(work, path),
        "learning.png": lambda path: learning(work, path),
        "inference.png": lambda path: inference(path, options.results),
    }
    for name, draw in drawings.items():
        try:
            print(f"{options.out / name}: {draw(options.out / name)}", flush=True)
        except NotThere as reason:
            print(f"{name}: left out, {reason}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
