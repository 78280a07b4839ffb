"""What was measured on cards? ``python -m bench.gpu_page`` puts the kept runs of `bench.gpu_check` into ``docs/gpu.md``.

A run is kept as ``bench/results/gpu_check_NAME.json``, the file that ``python -m bench.gpu_check`` wrote. Of each the page has
its card and versions, a table of `bench.gpu_speed` and one of `bench.gpu_training`; what failed or was not run is told as such.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench import marked
from bench.gpu_jobs import FAILED, Row

RESULTS = Path(__file__).parent / "results"
NAME = "measured"
# Head of a column -> field, how it is written.
SPEED = {
    "update": ("update", "s"), "images": ("images", "d"), "logits": ("kind", "s"), "rows": ("rows", "s"),
    "flip rate": ("flip_rate", ".3g"), "updates a ns": ("settled_updates_per_ns", ".3g"), "a sweep, us": ("sweep_us", ".4g"),
    "in calls of 10 sweeps": ("updates_per_ns", ".3g"), "first 10 sweeps, ms": ("first_ms", ".3g"),
    "the host's us a call": ("host_us_a_call", ".3g"),
}  # fmt: skip
TRAINING = {
    "step, ms": ("step_ms", ".3g"), "with cross-entropy": ("cross_entropy_ms", ".3g"), "share": ("share", ".0%"),
    "the loss's forward": ("loss_forward_ms", ".3g"), "the host's, ms": ("step_host_ms", ".3g"),
    "as a CUDA graph": ("step_graph_ms", ".3g"), "with cross-entropy, graph": ("cross_entropy_graph_ms", ".3g"),
    "share, graph": ("graph_share", ".0%"),
}  # fmt: skip
BESIDE = "torch beside"


def read(path: Path) -> Row:
    """A run; ValueError where the file holds none of a card."""
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: expected JSON, got otherwise ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("environment"), dict):
        raise ValueError(f"{path.name}: expected what bench.gpu_check wrote, got no environment in it")
    if found.get("dry_run", True):
        raise ValueError(f"{path.name}: expected a run on a card, got a dry run, whose times mean nothing")
    return found


def row(found: Row, columns: dict[str, tuple[str, str]], path: Path, job: str) -> str:
    cells = []
    for key, form in columns.values():
        try:
            cells.append(format(found[key], form))
        except (KeyError, ValueError, TypeError):
            raise ValueError(f"{path.name}: expected {key} of '{job}', got {found.get(key)!r}") from None
    return " | ".join(cells)


def jobs(found: Row, stage: str) -> tuple[dict[str, Row], list[str]]:
    """A stage's jobs that went well, and lines about the others."""
    entry = found.get(stage)
    if entry is None:
        return {}, [f"`{stage}` was not run."]
    every = entry.get("jobs", {})
    failed = [f"`{stage}`, {job}: failed ({answer[FAILED]})." for job, answer in every.items() if FAILED in answer]
    if not every and FAILED in entry:
        failed = [f"`{stage}`: failed ({entry[FAILED]})."]
    return {job: answer for job, answer in every.items() if FAILED not in answer}, failed


def table(found: Row, path: Path) -> list[str]:
    """What the page has of one run."""
    machine = found["environment"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "triton") if name in machine)
    driver = f", driver {machine['driver_version']}" if "driver_version" in machine else ""
    name = machine.get("name", "a card without a name")
    lines = [f"**{name}**, measured: {versions}{driver} (`bench/results/{path.name}`)", ""]
    speed, failed = jobs(found, "speed")
    beside = speed.pop(BESIDE, None)
    if speed:
        lines += [f"| {' | '.join(SPEED)} |", "|---" * len(SPEED) + "|"]
        lines += [f"| {row(answer, SPEED, path, job)} |" for job, answer in speed.items()]
        lines += [""]
    if beside is not None:
        times = {"torch's": ("updates_per_ns", ".2g"), "incremental": ("incremental_times_faster", ".3g"),
                 "gather": ("gather_times_faster", ".3g"), "images": ("images", "d")}  # fmt: skip
        rate, incremental, gather, images = row(beside, times, path, BESIDE).split(" | ")
        lines += [
            f"At batch {images}, calm, the torch engine makes {rate} updates a nanosecond on this card: this one is "
            f"{incremental} times as fast by the incremental update, {gather} times by the gather update.", "",
        ]  # fmt: skip
    training, late = jobs(found, "training")
    if training:
        lines += ["A PCD step of the paper's network (20 labels, 164 x 72, 10 sweeps):", ""]
        lines += [f"| | {' | '.join(TRAINING)} |", "|---" * (1 + len(TRAINING)) + "|"]
        lines += [f"| {job} | {row(answer, TRAINING, path, job)} |" for job, answer in training.items()]
        lines += [""]
    return [*lines, *failed, *late, *([""] if failed or late else [])][:-1]


def page(folder: Path = RESULTS) -> list[str]:
    lines: list[str] = []
    for path in sorted(folder.glob("gpu_check_*.json")):
        lines += [*([""] if lines else []), *table(read(path), path)]
    return lines or ["No run of `python -m bench.gpu_check` is kept in `bench/results/`."]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of gpu_check_NAME.json")
    parser.add_argument("--page", type=Path, default=marked.GPU, help="page with the marks to write between")
    options = parser.parse_args()
    try:
        marked.write(options.page, NAME, page(options.results))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
