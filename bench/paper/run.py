"""How is a row made? Learn, test every image, measure; what is done stands in a file and is not done again."""

from __future__ import annotations

import argparse
import functools
import json
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path

import torch

import tritoncrf as tc
from bench import memory
from bench.paper.edges import text_of
from bench.paper.methods import METHODS, edges_of, learn
from bench.paper.presets import Preset
from bench.paper.problem import Problem
from tritoncrf.metrics import Score

Row = dict[str, object]
# Fields that some rows alone heed, always told: those rows came later than the first runs.
LATER = ("edges", "bandwidth")


def program(run: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """A module's main: returns 0, or 2 where ``run`` raises what bad input raises, and its sentence goes to stderr."""
    name = "bench.paper." + Path(run.__code__.co_filename).stem

    @functools.wraps(run)
    def main(arguments: list[str] | None = None) -> int:
        try:
            run(arguments)
        except (ValueError, ImportError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        return 0

    return main


def finished(
    program: str, about: str, *, rows: Sequence[str] = (), which: str = "finished ones", images: int = 0,
    out: Path | None = None, threads: int | None = None,
) -> argparse.ArgumentParser:  # fmt: skip
    """The arguments of a program that looks at what ``python -m bench.paper`` left; those that are given have defaults.

    which: of the rows, in words.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.paper.{program}", description=about.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder that python -m bench.paper wrote")
    parser.add_argument("--data", type=Path, help="the folder of the archives")
    parser.add_argument("--split", help="the preset's first by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads() if threads is None else threads)
    if rows:
        parser.add_argument("--rows", nargs="+", default=list(rows), help=which)
    if images:
        parser.add_argument("--images", type=int, default=images, help="how many, evenly spaced")
    if out is not None:
        parser.add_argument("--out", type=Path, default=out)
    return parser


def claim(out: Path, preset: Preset, resume: bool) -> None:
    """Makes ``out`` the folder of this preset's runs.

    Raises FileExistsError if it holds a run and ``resume`` is not asked for, or another preset's run.
    """
    about = out / "run.json"
    now = _told(preset)
    if about.exists():
        stated, known = _read(about), json.loads(now)
        if isinstance(stated, dict):
            # A folder that does not tell these is from before there were rows that heed them.
            stated = {name: known[name] for name in LATER} | stated
        if stated != known:
            raise FileExistsError(f"out: expected a folder of preset {preset.name!r} as it is now, got {out} of another run")
        if not resume:
            raise FileExistsError(f"out: expected a new folder, or --resume to go on, got {out}, which holds a run")
    elif out.exists() and any(out.iterdir()):
        raise FileExistsError(f"out: expected a new or empty folder, got {out}, which holds other files")
    out.mkdir(parents=True, exist_ok=True)
    about.write_text(now)


def _told(preset: Preset) -> str:
    """What sets one run apart from another: all but the rows that a preset is for, and fields at their default."""
    return json.dumps(_apart(asdict(preset)), indent=1) + "\n"


def _apart(known: dict[str, object]) -> dict[str, object]:
    default = {field.name: field.default for field in fields(Preset)}
    return {
        name: value for name, value in known.items()
        if name in LATER or name not in default or (name != "rows" and value != default[name])
    }  # fmt: skip


def _read(about: Path) -> object:
    """A run's preset; fields at their default, which earlier versions told too, or had not, left out."""
    try:
        known = json.loads(about.read_text())
    except json.JSONDecodeError:
        return None
    return _apart(known) if isinstance(known, dict) else known


def rows_of(file: Path, key: str = "name") -> list[Row]:
    """The rows that stand in a file; none if there is no file. Raises ValueError if it holds something else."""
    if not file.exists():
        return []
    try:
        rows = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"out: expected rows in {file}, got no JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and key in row for row in rows):
        raise ValueError(f"out: expected a list of rows in {file}, got {type(rows).__name__}")
    return rows


def add_rows(file: Path, rows: Sequence[Row], key: str = "name", same: Sequence[str] = (), indent: int | None = 1) -> None:
    """Writes rows behind those that stand in ``file``, whole or not at all, in place of any that agree in all of ``same``."""
    news = [{name: row[name] for name in same} for row in rows]
    earlier = [old for old in rows_of(file, key) if not same or {name: old.get(name) for name in same} not in news]
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps([*earlier, *rows], indent=indent) + "\n")
    part.replace(file)


def make(name: str, problem: Problem, work: Path) -> Row:
    """Learns and tests one row."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(problem.seed + 1)
    memory.reset_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with stopwatch(work / "seconds"):
        predict = learn(name, problem, work)
    seconds = float((work / "seconds").read_text())
    began = time.perf_counter()
    alone = whole = problem.unscored
    per_image: list[list[int]] = []
    per_label: list[list[list[int]]] = []
    for target, first, last in problem.answers(predict):
        alone, whole = alone.plus(target, first.argmax(1)), whole.plus(target, last.argmax(1))
        counted = (target != 255) & (target != (-1 if problem.test.background is None else problem.test.background))
        per_image.append([int(((last.argmax(1) == target) & counted).sum()), int(counted.sum())])
        per_label.append(_labels(Score.empty(problem.test.num_labels).plus(target, last.argmax(1))))
    preset, word = problem.preset, edges_of(name)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.peak()
    return {
        "name": name, "preset": preset.name, "split": problem.split, "seed": problem.seed, "accuracy": whole.accuracy,
        "network_accuracy": alone.accuracy, "mean_iou": whole.mean_iou, "network_mean_iou": alone.mean_iou,
        "images": len(problem.train), "test_images": len(problem.test),
        "visits": 0 if name in ("cnn", "forest") else preset.epochs * len(problem.train), "seconds": round(seconds, 1),
        "seconds_test": round(time.perf_counter() - began, 1), "peak_mb": round(peak / 1e6), "burn_in": preset.burn_in,
        "sweeps": preset.sweeps, "K": _visit_sweeps(name, preset),
        "commit": _commit(), "machine": machine(problem.device), "tritoncrf": tc.__version__,
        **({} if word is None else {"edges": text_of(word, preset)}), "per_image": per_image,
        # Where no label is background, every label counts and mean IoU is what is asked.
        **({"per_label": per_label} if problem.test.background is None else {}),
    }  # fmt: skip


def _labels(score: Score) -> list[list[int]]:
    """Of each label the pixels that have and were given it, that have it, and that were given it."""
    confusion = score.confusion
    counts: list[list[int]] = torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)], 1).tolist()
    return counts


def _visit_sweeps(name: str, preset: Preset) -> int | None:
    """K of a sampled row."""
    module, options = METHODS[name]
    return int(options.get("sweeps", preset.visit_sweeps)) if module == "sampling" else None


@contextmanager
def slice_of(minutes: float | None) -> Iterator[None]:
    """Ends what runs after so many minutes as Ctrl-C does: the step is finished, and saved."""
    if minutes is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def stopwatch(file: Path, every: float = 5.0) -> Iterator[None]:
    """Adds the seconds spent inside to those in ``file``: as they pass, for a killed run's count too, and where it is left."""
    earlier, began = float(file.read_text()) if file.exists() else 0.0, time.perf_counter()
    ended = threading.Event()

    def note() -> None:
        # Whole or not at all: a kill may come between.
        part = file.with_name(f"{file.name}.part")
        part.write_text(str(earlier + time.perf_counter() - began))
        part.replace(file)

    def watch() -> None:
        while not ended.wait(every):
            note()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        note()


def _commit() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    return "unknown"


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
