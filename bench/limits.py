"""What bounds the numba engine? Its pieces one by one, on the standard problem: ``python -m bench.limits [--write]``

The incremental update passes over a site, or looks at it (gathers its energies, draws), and pushes to the neighbours of a flip;
every fourth sweep draws a block of random numbers. Each piece runs in a loop of its own over a settled chain, one thread, in
turns, medians in nanoseconds, beside the sweep itself; what passing over, numbers and pushes leave of that is looks. What the
code of the sweep is made of (vector registers, contracted arithmetic) is read from its machine code.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import tritoncrf as tc
from bench.problem import KINDS, standard
from bench.turns import RESULTS, Row, arguments, save, table, take_turns
from tritoncrf import contract
from tritoncrf.engines import numba as engine
from tritoncrf.engines import numba_draw as one
from tritoncrf.engines import numba_sweeps as loops
from tritoncrf.engines.numba_cache import call
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles, Words
from tritoncrf.engines.numba_rows import Rows
from tritoncrf.engines.numba_vectors import address

PIECES = {
    "passed over": "a site passed over", "gathered": "a site's energies gathered", "drawn": "a site drawn from its energies",
    "pushed": "a flip pushed to its 64 neighbours", "numbered": "a random number",
}  # fmt: skip

# As numba takes them: float32.
_SURE: Any = np.float32(0.999)


@call
def _passed(chances: Singles, uniforms: Singles, queue: Positions, unary: int, count: int) -> int:
    # The engine's own, with nothing doubtful in it.
    return loops._doubtful(0, count, uniforms, chances, _SURE, queue, unary, 128, 0, 0)


@call
def _gathered(
    here: int, position: Positions, steps: Integers, parts: Integers, rows: Bytes, number: int, width: int, short: bool,
    unary: int, energies: int,
) -> int:  # fmt: skip
    for t in range(len(position)):
        one.gather(here + position[t], steps, parts, rows, number, width, short, unary + 4 * width * t, energies)
    return len(position)


@call
def _drawn(energies: Singles, number: int, scale: float, uniforms: Singles, labels: Positions) -> int:
    width = energies.shape[1]
    weight, total = np.zeros((4, width), np.float32), np.empty(4, np.float32)
    moved = 0
    for group in range(0, len(labels) - 3, 4):
        for j in range(4):
            one.weights(address(energies) + 4 * width * (group + j), address(weight) + 4 * width * j, width, scale)
        one.totals(weight, number, total)
        for j in range(4):
            old = np.int64(labels[group + j])
            moved += one.draw(weight, j, number, old, uniforms[group + j], total[j]) != old
    return moved


@call
def _pushed(
    position: Positions, place: Positions, steps: Integers, push: Singles, labels: Positions, number: int, chances: Singles
) -> int:
    for t in range(len(position)):
        loops._push(np.int64(position[t]), place, steps, push, labels[t], (labels[t] + 1) % number, chances)
    return len(position)


@call
def _numbered(sites: Words, uniforms: Singles) -> int:
    n = len(sites)
    one.philox(sites, 3, 0, 0, 1, 2, uniforms[0, :n], uniforms[1, :n], uniforms[2, :n], uniforms[3, :n])
    return n


def _calls(kind: str) -> tuple[dict[str, Callable[[], int]], dict[str, int]]:
    """Each piece as a call, and how many items it goes over."""
    problem = standard(kind)
    sampler = tc.Sampler(problem.crf, "numba", seed=1, update="gather")
    chains = sampler.run(sampler.init(problem.logits), 20)
    work = engine._check_work(chains.work)
    s, t, number = work.sites, work.tables, work.plan.num_labels
    assert isinstance(t, Rows)
    width = work.unary.shape[1]
    row = chains.rows.view(-1).numpy()
    scale: Any = np.float32(contract.scale_of(1.0))
    push = np.sqrt(np.ones((number + 1, 2 * len(s.steps)), np.float32))
    lookup = engine._lookup(work)[0]
    count = len(s.position)
    chances, uniforms = np.zeros(count + 64, np.float32), np.full(count + 64, 0.5, np.float32)
    blocks = np.empty((4, count), np.float32)
    energies = np.empty((count, width), np.float32)
    labels = row[s.position].astype(np.int32)
    queue = np.empty(count, np.int32)
    for i in range(count):
        one.gather(
            row.ctypes.data + int(s.position[i]), s.steps, t.parts, t.rows, number, width, t.short,
            work.unary.ctypes.data + 4 * width * i, energies.ctypes.data + 4 * width * i,
        )  # fmt: skip
    random = np.random.default_rng(0).random(count, np.float32)
    calls: dict[str, Callable[[], int]] = {
        "passed over": lambda: _passed(chances, uniforms, queue, work.unary.ctypes.data, count),
        "gathered": lambda: _gathered(
            row.ctypes.data, s.position, s.steps, t.parts, t.rows, number, width, t.short, work.unary.ctypes.data,
            energies[-1:].ctypes.data,
        ),
        "drawn": lambda: _drawn(energies, number, scale, random, labels),
        "pushed": lambda: _pushed(s.position, lookup, s.steps, push, labels, number, chances),
        "numbered": lambda: _numbered(s.site, blocks),
    }  # fmt: skip
    return calls, {**dict.fromkeys(calls, count), "numbered": 4 * count}


def measure(kind: str, turns: int) -> Row:
    """Nanoseconds of each piece, and of a site in a sweep of the incremental update."""
    calls, items = _calls(kind)
    problem = standard(kind)
    sampler = tc.Sampler(problem.crf, "numba", seed=1, update="incremental")
    chains = sampler.run(sampler.init(problem.logits), 20)
    area = items["passed over"]
    calls["sweep"], items["sweep"] = lambda: int(sampler.run(chains, 4).flips.sum()), 4 * area
    for run in calls.values():
        run()
    taken = take_turns(calls, turns)
    found = {name: 1e9 * statistics.median(seconds for seconds, _ in taken[name]) / items[name] for name in calls}
    flips = sum(moved for _, moved in taken["sweep"]) / (turns * 4 * area)
    known = found["passed over"] + found["numbered"] + flips * found["pushed"]
    # What the pieces leave of the sweep is looks: each gathers and draws.
    looks = max(0.0, (found["sweep"] - known) / (found["gathered"] + found["drawn"]))
    return {"kind": kind, **{name: round(value, 2) for name, value in found.items()}, "flips": round(flips, 4),
            "looks": round(looks, 3)}  # fmt: skip


def registers() -> dict[str, int]:
    """How often the machine code of the sweep names 512-, 256- and 128-bit registers, and contracted multiply-adds."""
    kept: Any = loops.sweep
    # Code that was kept on disk cannot be looked into.
    fresh: Any = call(kept.py_func)
    for signature in kept.signatures:
        fresh.compile(signature)
    found = "\n".join(fresh.inspect_asm().values())
    patterns = {"zmm": r"%zmm", "ymm": r"%ymm", "xmm": r"%xmm", "vfmadd": r"\bvfn?m(?:add|sub)"}
    return {name: len(re.findall(pattern, found)) for name, pattern in patterns.items()}


def main() -> None:
    parser = arguments(__doc__, turns=9, write=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(kind, options.turns) for kind in KINDS]
    columns = {
        "kind": "problem", **PIECES, "sweep": "a site in a sweep", "flips": "flips a site",
        "looks": "looks a site, by difference",
    }  # fmt: skip
    code = registers()
    lines = [
        "Nanoseconds, one thread.", "", *table(rows, columns), "",
        "The sweep's machine code names " + ", ".join(f"{name} {times} times" for name, times in code.items()) + ".",
    ]  # fmt: skip
    print("\n".join(lines))
    if options.write:
        save(RESULTS / "limits", "python -m bench.limits --write", {"rows": rows, "code": code}, lines)


if __name__ == "__main__":
    main()
