"""How is anything timed on a machine that does other things too? In turns, by medians and by ratios within a turn.

What slows the machine down for a while meets everything that is compared; a ratio within a turn sees it twice and cancels it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import tritoncrf as tc

RESULTS = Path(__file__).parent / "results"
Turn = tuple[float, int]
"""Seconds, and what the call returned: flips, mostly."""


def take_turns(
    calls: Mapping[str, Callable[[], int]], turns: int, before: Mapping[str, Callable[[], object]] | None = None
) -> dict[str, list[Turn]]:
    """Calls everything once, ``turns`` times over; what stands ``before`` a call is not timed."""
    found: dict[str, list[Turn]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            if before is not None and name in before:
                before[name]()
            began = time.perf_counter()
            value = call()
            found[name].append((time.perf_counter() - began, value))
    return found


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
