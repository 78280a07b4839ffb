"""Do the chains keep up? Learning curves with energy gap, chain accuracy and flip rate; accuracy against sweeps at test time.

The figures are those of `tritoncrf.monitor.Statistics`, noted every so many visits. A gap E(y) - E(y') that drifts from zero
says that the samples lag behind the model; a flip rate says how fast they move.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.paper import figures_canvas
from bench.paper.report_rows import Curve

PANELS = {
    "energy_gap": "energy gap,\nnats a pixel",
    "energy_drop": "energy drop of a\nvisit, nats a pixel",
    "chain_accuracy": "chain accuracy",
    "flip_rate": "flip rate",
    "accuracy": "validation\naccuracy",
}
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
Notes = Sequence[Mapping[str, object]]


def journal(path: Path) -> list[dict[str, object]]:
    """The lines of a trainer's log; of lines that a resumed run wrote again, the last. Raises ValueError for other content."""
    kept: dict[tuple[object, ...], dict[str, object]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            note = json.loads(line)
        except json.JSONDecodeError:
            note = None
        if not isinstance(note, dict) or "stage" not in note:
            raise ValueError(f"{path}: expected a trainer's log, got something else in line {number}")
        kept[note["stage"], note.get("step"), note.get("epoch")] = note
    return list(kept.values())


def series(notes: Notes, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Visits and values of one figure of the CRF stages: noted by step, or by epoch if it is scored once an epoch."""
    mine = [note for note in notes if note["stage"] in ("separate", "joint")]
    key = "epoch" if name == "accuracy" else "step"
    points = sorted(
        (float(str(note[key])), float(str(note[name]))) for note in mine if key in note and note.get(name) is not None
    )  # fmt: skip
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Centred running mean over up to ``width`` values, fewer at the ends."""
    reach = width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    found: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return found


def learning(runs: Mapping[str, Notes], path: str | os.PathLike[str]) -> None:
    """Writes a panel per figure with a line per run: what was noted, faint, and its running mean.

    Raises ValueError if no run noted anything of a CRF stage.
    """
    found = {name: {title: series(notes, name) for title, notes in runs.items()} for name in PANELS}
    panels = [name for name, lines in found.items() if any(len(x) for x, _ in lines.values())]
    if not panels:
        raise ValueError("runs: expected notes of a separate or joint stage, got none")
    drawn = figures_canvas.figure(8.0, 0.6 + 1.9 * len(panels))
    axes = drawn.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, name in zip(axes, panels, strict=True):
        for place, (title, (x, y)) in enumerate(found[name].items()):
            if len(x):
                colour = _COLOURS[place % len(_COLOURS)]
                width = max(1, len(y) // 20)
                dots = "." if len(y) < 30 else None
                ax.plot(x, y, color=colour, alpha=0.25 if width > 1 else 1.0, linewidth=0.8, marker=dots)
                ax.plot(x, smooth(y, width), color=colour, linewidth=1.6, label=title)
        ax.set_ylabel(PANELS[name])
        ax.set_xlabel("epoch" if name == "accuracy" else "visits")
        ax.grid(alpha=0.3)
        if name == "energy_gap":
            ax.axhline(0, color="black", linewidth=0.8)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    figures_canvas.save(drawn, path)


def inference(curves: Sequence[Curve], path: str | os.PathLike[str]) -> None:
    """Writes accuracy against averaged sweeps, a line per first sample. Raises ValueError without a curve."""
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    drawn = figures_canvas.figure(6.4, 3.6)
    ax = drawn.subplots()
    rows = list(dict.fromkeys(curve.row for curve in curves))
    for curve in curves:
        style = "-" if curve.start == "pretrained" else "--"
        colour = _COLOURS[rows.index(curve.row) % len(_COLOURS)]
        values = [100 * value for value in curve.accuracy]
        ax.plot(curve.sweeps, values, style, color=colour, marker=".", label=f"{curve.row}, start {curve.start}")
    ax.set_xscale("log")
    ax.set_xlabel("sweeps")
    ax.set_ylabel("accuracy on validation images, %")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8)
    figures_canvas.save(drawn, path)
