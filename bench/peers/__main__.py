"""How do we compare, at this moment, on this machine? ``python -m bench.peers --kind calm busy hot --threads 2``

Peers and our engines take turns on the same problem from the same settled labels, a chain for each thread: medians over the
turns, and medians of ratios within a turn, to the yardstick's same update, of our incremental update to the others, and of what
"auto" chooses to the better of our updates. Beside
each throughput stand the flip rate and the mean energy per site of the labels left behind, in which all must agree.
``--write`` puts both tables into ``bench/results/peers.md`` and the rows into ``peers.json``.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from bench.peers import Array, Chains, Task, Ways, library
from bench.problem import KINDS, Standard, standard
from bench.turns import RESULTS, Row, Turn, arguments, ratios, save, spread, sweeps_for, table, take_turns

PEERS = ("yardstick", "user_loop", "torch_programs", "jax_by_hand", "thrml_blocks")
# A published package, or a program in one, against which the goal is set.
PUBLISHED = ("torch_programs", "jax_by_hand", "thrml_blocks")
COLUMNS = {
    "kind": "problem", "threads": "threads", "program": "program", "update": "update", "median": "M updates/s",
    "least": "least", "most": "most", "to_yardstick": "/ yardstick, same update", "flip_rate": "flip rate",
    "energy": "energy per site",
}  # fmt: skip
GOALS = {
    "kind": "problem", "threads": "threads", "figure": "ratio of", "ratio": "median of ratios",
    "least": "least", "most": "most",
}  # fmt: skip


def compare(
    problem: Standard, kind: str, threads: int, programs: Sequence[str], *, turns: int = 5, seconds: float = 0.4,
    burn_in: int = 100,
) -> tuple[list[Row], list[Row]]:  # fmt: skip
    """A row for every program and update, and the ratios of our incremental update to the others'."""
    task = Task.of(problem, library.settled(problem, threads, burn_in), kind)
    chains: dict[str, Chains] = {}
    for name in programs:
        found = _start(name, problem, task)
        if isinstance(found, str):
            print(f"{name}: left out, {found}", file=sys.stderr)
        else:
            chains |= {f"{name} {update}": run for update, run in found.items()}
    sweeps = {name: sweeps_for(run.run, seconds) for name, run in chains.items()}
    calls = {name: partial(run.run, sweeps[name]) for name, run in chains.items()}
    found_turns = take_turns(calls, turns)
    area = task.color.size * threads
    rows: list[Row] = []
    for name, measured in found_turns.items():
        program, update = name.split()
        updates = sweeps[name] * area
        rates = [updates / elapsed / 1e6 for elapsed, _ in measured]
        base = f"yardstick {'gather' if update == 'gather' else 'incremental'}"
        rows.append({
            "kind": kind, "threads": threads, "program": program, "update": update, **spread(rates),
            "sweeps": sweeps[name], "turns": turns,
            "to_yardstick": statistics.median(_ratios(found_turns, sweeps, base, name)) if base in chains else None,
            "flip_rate": sum(flips for _, flips in measured) / (turns * updates),
            "energy": energy_per_site(problem, chains[name].labels()),
        })  # fmt: skip
    return rows, _goals(rows, found_turns, sweeps, kind, threads)


def _start(name: str, problem: Standard, task: Task) -> Ways | str:
    if name in PEERS:
        found: Ways | str = importlib.import_module(f"bench.peers.{name}").start(task)
        return found
    return library.start(problem, task, name)


def energy_per_site(problem: Standard, labels: Array) -> float:
    """Mean energy of labellings ``[chains, H, W]``, in nats a site."""
    y = torch.from_numpy(labels.astype("int64"))
    with torch.no_grad():
        energy = problem.crf.energy(problem.logits.expand(len(y), -1, -1, -1), y)
    return float(energy.double().mean()) / y[0].numel()


def _ratios(found: Mapping[str, list[Turn]], sweeps: Mapping[str, int], below: str, name: str) -> list[float]:
    """How many times faster ``name`` was than ``below`` in each turn."""
    return ratios(found[below], found[name], sweeps[name] / sweeps[below])


def _goals(
    rows: Sequence[Row], found: Mapping[str, list[Turn]], sweeps: Mapping[str, int], kind: str, threads: int
) -> list[Row]:
    if "numba incremental" not in found:
        return []
    others = [f"{row['program']} {row['update']}" for row in rows if row["program"] in PEERS]
    published = [row for row in rows if row["program"] in PUBLISHED]
    fastest = max(published, key=lambda row: float(str(row["median"])), default=None)
    goals: list[Row] = []
    for name in others:
        best = fastest is not None and name == f"{fastest['program']} {fastest['update']}"
        remark = " (fastest package, or program in one)" if best else ""
        goals.append({
            "kind": kind, "threads": threads, "figure": f"incremental / {name}{remark}",
            **spread(_ratios(found, sweeps, name, "numba incremental"), "ratio"),
        })  # fmt: skip
    ways = {str(row["update"]): float(str(row["median"])) for row in rows if row["program"] == "numba"}
    better = max(("gather", "incremental"), key=lambda update: ways[update])
    return [*goals, {
        "kind": kind, "threads": threads, "figure": f"auto / the better update, {better}",
        **spread(_ratios(found, sweeps, f"numba {better}", "numba auto"), "ratio"),
    }]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, turns=5, write=True)
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--programs", nargs="+", default=[*PEERS, "numba"], choices=[*PEERS, "numba", "torch"])
    parser.add_argument("--seconds", type=float, default=0.4, help="about how long a program's turn takes")
    options = parser.parse_args()
    rows: list[Row] = []
    goals: list[Row] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for kind in options.kind:
            print(f"{kind}, {threads} threads", file=sys.stderr)
            more, better = compare(
                standard(kind), kind, threads, options.programs, turns=options.turns, seconds=options.seconds
            )  # fmt: skip
            rows += more
            goals += better
    lines = [*table(rows, COLUMNS), "", *table(goals, GOALS)]
    print("\n".join(lines))
    if options.write:
        note = "The yardstick is a C++ program of 20 fixed labels. XLA (thrml, JAX) takes what cores it finds."
        save(RESULTS / "peers", "python -m bench.peers --write", {"rows": rows, "ratios": goals}, [note, "", *lines])


if __name__ == "__main__":
    main()
