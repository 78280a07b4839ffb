"""How is anything timed on a machine that does other things too? In turns, by medians and by ratios within a turn.

What slows the machine down for a while meets everything that is compared; a ratio within a turn sees it twice and cancels it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import tritoncrf as tc

RESULTS = Path(__file__).parent / "results"
Turn = tuple[float, int]
"""Seconds, and what the call returned: flips, mostly; 0 where that is no number."""


Row = dict[str, object]


def arguments(
    about: str | None, *, threads: int | None = None, turns: int | None = None, write: bool = False
) -> argparse.ArgumentParser:
    """The arguments of a timing program, described by its module's first line; those that are given have defaults."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads)
    if turns is not None:
        parser.add_argument("--turns", type=int, default=turns)
    if write:
        parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    return parser


def spread(values: Sequence[float], name: str = "median") -> dict[str, float]:
    """Of some figures the median, under ``name``, the least and the most."""
    return {name: statistics.median(values), "least": min(values), "most": max(values)}


def take_turns(
    calls: Mapping[str, Callable[[], object]], turns: int, before: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[Turn]]:  # fmt: skip
    """Calls everything once, ``turns`` times over; what stands ``before`` a call is not timed."""
    found: dict[str, list[Turn]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            if before is not None and name in before:
                before[name]()
            began = clock()
            value = call()
            found[name].append((clock() - began, value if isinstance(value, int) else 0))
    return found


def ratios(above: Sequence[Turn], below: Sequence[Turn], scale: float = 1.0) -> list[float]:
    """Of the times of two calls within each turn, times ``scale``: how much more the one did than the other."""
    return [scale * a / b for (a, _), (b, _) in zip(above, below, strict=True)]


def sweeps_for(run: Callable[[int], int], seconds: float) -> int:
    """How many sweeps take about so many seconds; whatever the first calls compile or build is done by then."""
    run(1)
    sweeps, elapsed = 1, 0.0
    while True:
        began = time.perf_counter()
        run(sweeps)
        elapsed = time.perf_counter() - began
        if elapsed > seconds / 8:
            return max(1, round(sweeps * seconds / elapsed))
        sweeps *= 2


def machine() -> dict[str, object]:
    """Where and when it was measured; the load tells whether anything else ran."""
    return {
        "machine": platform.machine(), "cores": os.cpu_count(), "load": [round(n, 2) for n in os.getloadavg()],
        "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__, "tritoncrf": tc.__version__,
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> list[str]:
    """Markdown lines: ``columns`` maps a row's keys to headings; numbers to four digits."""
    lines = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(key)) for key in columns)} |" for row in rows]


def save(path: Path, command: str, found: Mapping[str, object], lines: Sequence[str]) -> None:
    """Writes ``found`` with the machine it was found on as JSON, and the page of ``lines`` beside it."""
    where = machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"command": command, **where, **found}, indent=1) + "\n")
    told = ", ".join(f"{name} {value}" for name, value in where.items())
    path.with_suffix(".md").write_text("\n".join([f"Written by `{command}` on {told}.", "", *lines]) + "\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
