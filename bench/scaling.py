"""What does an update cost as a problem grows? One axis at a time around the standard problem: ``python -m bench.scaling``

Sites, labels, neighbours, sets of them, chains as images and as replicas. A point's problem is like the calm standard one at
any size: patches of a side of 24 with noise, tables whose couplings fall with distance and add up to the same over every
neighbourhood. Each point runs in a process of its own, so that its peak of memory is its own. There both updates alternate with
the standard problem, one chain of it: ns per update are medians over the turns, and so are the ratios to the standard
problem's, which a busy machine moves less. ``--write`` puts the table into ``bench/results/scaling.md`` and ``scaling.json``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import tritoncrf as tc
from bench.memory import held, peak, reset_peak
from bench.problem import HEIGHT, LABELS, WIDTH, standard
from bench.turns import RESULTS, Row, arguments, save, spread, sweeps_for, table, take_turns
from tritoncrf.chains import ChainState
from tritoncrf.coloring import sublattice_coloring

UPDATES = ("gather", "incremental")
PATCH = 24
SETS = {
    "near": tc.Neighborhood.nearest(64),
    "far": tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2),
    "far, 48 classes": tc.Neighborhood.grid(24, 6) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2),
    "rays to 16": tc.Neighborhood.rays(16, 8),
    "log-polar to 40": tc.Neighborhood.log_polar(40),
}
AXES: dict[str, tuple[int | str, ...]] = {
    "sites": (1_000, 10_000, HEIGHT * WIDTH, 100_000, 1_000_000, 10_000_000),
    "labels": (2, 5, LABELS, 64, 128),
    "neighbours": (4, 8, 24, 64, 128),
    "set": tuple(SETS),
    "chains": (1, 2, 4, 16, 64),
    "replicas": (1, 2, 4, 16, 64),
}
COLUMNS = {
    "axis": "axis", "value": "value", "colors": "colours", "update": "update", "ns": "ns an update", "least": "least",
    "most": "most",
    "millions": "M updates/s", "to_standard": "ns / standard problem's", "flip_rate": "flip rate", "megabytes": "MB held",
    "peak_megabytes": "MB at peak",
}  # fmt: skip


def problem(sites: int, labels: int, neighborhood: tc.Neighborhood, seed: int = 0) -> tuple[tc.GridCRF, Tensor]:
    """A CRF and logits float32 ``[1, labels, H, W]`` of about so many sites, in the standard problem's proportions."""
    random = np.random.default_rng(seed)
    height = max(1, round((sites * HEIGHT / WIDTH) ** 0.5))
    width = max(1, round(sites / height))
    cells = random.integers(0, labels, (-(-height // PATCH), -(-width // PATCH)))
    cells[random.random(cells.shape) < 0.8] = 0
    truth = cells.repeat(PATCH, 0).repeat(PATCH, 1)[:height, :width]
    logits = random.standard_normal((labels, height, width), dtype=np.float32)
    logits *= 1.3
    for label in range(labels):
        logits[label][truth == label] += 4
    classes = len(neighborhood)
    near, own = (1 / np.hypot(*np.array(n.offsets).T) for n in (SETS["near"], neighborhood))
    tables = random.normal(0, 0.03 * (len(near) / classes) ** 0.5, (classes, labels, labels))
    tables -= np.eye(labels) * (0.35 * near.sum() / own.sum() * own)[:, None, None]
    crf = tc.GridCRF(labels, neighborhood, torch.from_numpy(tables.astype(np.float32)))
    return crf, torch.from_numpy(logits)[None]


def measure(
    axis: str, value: int | str, *, engine: str = "numba", turns: int = 5, seconds: float = 0.1, settle: float = 8.0,
    sites: int = 0, paired: bool = True,
) -> list[Row]:  # fmt: skip
    """Rows of one point by either update.

    settle: seconds that the burn-in of 30 sweeps may take; sites: of the other axes' points, 0 for the standard problem's;
    paired: take turns with the standard problem.
    """
    sites = int(value) if axis == "sites" else sites or HEIGHT * WIDTH
    labels = int(value) if axis == "labels" else LABELS
    neighborhood = SETS[str(value)] if axis == "set" else SETS["near"]
    if axis == "neighbours":
        neighborhood = tc.Neighborhood.nearest(int(value))
    images, replicas = (int(value) if axis == name else 1 for name in ("chains", "replicas"))
    crf, logits = problem(sites, labels, neighborhood)
    reset_peak()
    chains = tc.Sampler(crf, engine, seed=1).init(logits.expand(images, -1, -1, -1), replicas=replicas)
    area = logits[0, 0].numel() * images * replicas
    auto = tc.Sampler(crf, engine, seed=1)
    burned, until = 0, time.perf_counter() + settle
    while burned < 30 and (burned == 0 or time.perf_counter() < until):
        auto.run(chains, 1)
        burned += 1
    # The updates share the chains: what an update keeps is built anew before its turn.
    runs = {update: _runner(tc.Sampler(crf, engine, seed=1, update=update), chains) for update in UPDATES}
    sweeps = {update: sweeps_for(run, seconds) for update, run in runs.items()}
    calls = {update: partial(run, sweeps[update]) for update, run in runs.items()}
    before: dict[str, Callable[[], object]] = {update: partial(run, 1) for update, run in runs.items()}
    before["incremental"]()
    bytes_held, bytes_peak = held([chains.plan, chains.work, chains.rows, chains.field, chains.tables]), peak()
    base = standard("calm")
    for update in UPDATES if paired else ():
        sampler = tc.Sampler(base.crf, engine, seed=1, update=update)
        run = _runner(sampler, sampler.run(sampler.init(base.logits), 30 if engine == "numba" else 4))
        sweeps[f"standard {update}"] = sweeps_for(run, seconds)
        calls[f"standard {update}"] = partial(run, sweeps[f"standard {update}"])
    found = take_turns(calls, turns, before)
    rows: list[Row] = []
    for update in UPDATES:
        updates, other = sweeps[update] * area, f"standard {update}"
        times = [elapsed / updates * 1e9 for elapsed, _ in found[update]]
        theirs = [elapsed / (sweeps[other] * HEIGHT * WIDTH) * 1e9 for elapsed, _ in found.get(other, [])]
        rows.append({
            "axis": axis, "value": value, "sites": logits[0, 0].numel(), "labels": labels, "classes": len(neighborhood),
            "colors": sublattice_coloring(neighborhood).colors, "images": images, "replicas": replicas, "engine": engine,
            "threads": torch.get_num_threads(), "update": update, **spread(times, "ns"),
            "millions": 1e3 / statistics.median(times),
            "to_standard": statistics.median(a / b for a, b in zip(times, theirs, strict=True)) if theirs else None,
            "flip_rate": sum(flips for _, flips in found[update]) / (turns * updates), "burn_in": burned,
            "sweeps": sweeps[update],
            "megabytes": bytes_held / 1e6, "peak_megabytes": bytes_peak / 1e6,
        })  # fmt: skip
    return rows


def _runner(sampler: tc.Sampler, chains: ChainState) -> Callable[[int], int]:
    return lambda sweeps: int(sampler.run(chains, sweeps).flips.sum())


def apart(options: Sequence[str]) -> list[Row] | str:
    """The rows of one point from a process of its own, or what it died of."""
    command = [sys.executable, "-m", "bench.scaling", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
    rows: list[Row] = json.loads(done.stdout)
    return rows


def main() -> None:
    parser = arguments(__doc__, threads=torch.get_num_threads(), turns=5, write=True)
    parser.add_argument("--engine", default="numba", choices=("numba", "torch"))
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--most", type=int, default=10_000_000, help="leave out points of more sites")
    parser.add_argument("--seconds", type=float, default=0.1, help="about how long an update's turn takes")
    parser.add_argument("--point", nargs=2, metavar=("AXIS", "VALUE"), help="one point, in this process; its rows as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.point is not None:
        axis, text = options.point
        value = text if axis == "set" else int(text)
        print(json.dumps(measure(axis, value, engine=options.engine, turns=options.turns, seconds=options.seconds)))
        return
    rows: list[Row] = []
    for axis in options.axes:
        for value in AXES[axis]:
            if axis == "sites" and int(value) > options.most:
                continue
            found = apart([
                "--point", axis, str(value), "--engine", options.engine, "--threads", str(options.threads),
                "--turns", str(options.turns), "--seconds", str(options.seconds),
            ])  # fmt: skip
            print(f"{axis} {value}: {found if isinstance(found, str) else 'done'}", file=sys.stderr)
            rows += [] if isinstance(found, str) else found
    lines = table(rows, COLUMNS)
    print("\n".join(lines))
    if options.write:
        note = (
            f"Engine {options.engine}, {options.threads} threads: one chain runs on one of them. Held: rounded energies, "
            "tables, labels and what the incremental update keeps, without logits; the peak is the process's, imports within."
        )
        save(RESULTS / "scaling", "python -m bench.scaling --write", {"rows": rows}, [note, "", *lines])


if __name__ == "__main__":
    main()
