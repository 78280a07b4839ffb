"""How do we compare, at this moment, on this machine? ``python -m bench.peers --kind calm busy hot --threads 2``

Peers and our engines take turns on the same problem, so that what else the machine does meets all of them; medians over the
turns, and medians of each row's ratio to the yardstick's same way within a turn. Flip rates stand beside the throughputs.
The table goes to stdout and, with ``--write``, to ``bench/results/peers.md``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import tritoncrf as tc
from bench.peers import Runs
from bench.problem import HEIGHT, KINDS, WIDTH, standard

RESULTS = Path(__file__).parents[1] / "results" / "peers.md"
PEERS = ("yardstick",)
SECONDS = 0.4


def ours(engine: str, kind: str, threads: int) -> Runs | str:
    """Our engine by each way, a chain for each thread."""
    problem = standard(kind)
    reason = tc.engines.report(torch.device("cpu"))[engine]
    if reason != "ready":
        return reason

    def start(way: str) -> Callable[[int], int]:
        sampler = tc.Sampler(problem.crf, engine, seed=1, way=way)
        chains = sampler.run(sampler.init(problem.logits.expand(threads, -1, -1, -1)), 30 if engine == "numba" else 6)
        return lambda sweeps: int(sampler.run(chains, sweeps).flips.sum())

    return {way: start(way) for way in ("gather", "incremental", "auto")}


def compare(kind: str, threads: int, engines: list[str], turns: int) -> list[str]:
    """Rows of the table for one kind of problem."""
    runs: dict[str, Callable[[int], int]] = {}
    for name in [*PEERS, *engines]:
        start = importlib.import_module(f"bench.peers.{name}").start if name in PEERS else partial(ours, name)
        found = start(kind, threads)
        if isinstance(found, str):
            print(f"{name}: left out, {found}", file=sys.stderr)
        else:
            runs |= {f"{name} {way}": run for way, run in found.items()}
    area, sweeps = HEIGHT * WIDTH * threads, {}
    for name, run in runs.items():
        began = time.perf_counter()
        run(1)
        sweeps[name] = max(1, int(SECONDS / (time.perf_counter() - began)))
    rates: dict[str, list[float]] = {name: [] for name in runs}
    flips = dict.fromkeys(runs, 0)
    for _ in range(turns):
        for name, run in runs.items():
            began = time.perf_counter()
            flips[name] += run(sweeps[name])
            rates[name].append(sweeps[name] * area / (time.perf_counter() - began) / 1e6)
    rows = []
    for name, found in rates.items():
        way = name.split()[-1].replace("auto", "incremental")
        base = rates.get(f"yardstick {way}")
        ratio = f"{statistics.median(a / b for a, b in zip(found, base, strict=True)):.2f}" if base else "-"
        rate = flips[name] / (turns * sweeps[name] * area)
        rows.append(f"| {kind} | {threads} | {name} | {statistics.median(found):.2f} | {ratio} | {rate:.4f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--engines", nargs="+", default=["numba"], choices=("numba", "torch"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = ["| problem | threads | program and way | M updates/s | / yardstick, same way | flip rate |", "|---" * 6 + "|"]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for kind in options.kind:
            lines += compare(kind, threads, options.engines, options.turns)
    print("\n".join(lines))
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, tritoncrf {tc.__version__}"
        head = f"Written by `python -m bench.peers --write` on {machine}. The yardstick is a C++ program of 20 fixed labels."
        RESULTS.write_text("\n".join([head, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
