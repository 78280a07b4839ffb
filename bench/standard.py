"""How many site updates a second, on the standard problem? ``python -m bench.standard --update gather --kind calm``

The last line on stdout is JSON: median, least and most updates per second over the repetitions, and the flip rate beside them;
everything else goes to stderr. With several threads each runs a chain of its own, as the images of a batch would.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch

import tritoncrf as tc
from bench.problem import HEIGHT, KINDS, WIDTH, standard
from bench.turns import Row, arguments, machine

UPDATES = ("gather", "incremental", "auto")


def measure(engine: str, update: str, kind: str, *, chains: int, burn_in: int, sweeps: int, repeats: int) -> Row:
    """Runs ``repeats`` times ``sweeps`` sweeps of ``chains`` images after ``burn_in``, and tells the rates."""
    problem = standard(kind)
    sampler = tc.Sampler(problem.crf, engine, seed=1, update=update)
    state = sampler.init(problem.logits.expand(chains, -1, -1, -1))
    sampler.run(state, burn_in)
    rates, flips = [], 0
    updates = chains * sweeps * HEIGHT * WIDTH
    for repeat in range(repeats):
        began = time.perf_counter()
        sampler.run(state, sweeps)
        rates.append(updates / (time.perf_counter() - began))
        flips += int(state.flips.sum())
        print(f"{repeat}: {rates[-1] / 1e6:.2f} M updates/s", file=sys.stderr)
    return {
        "updates_per_second_median": statistics.median(rates), "updates_per_second_min": min(rates),
        "updates_per_second_max": max(rates), "flip_rate": flips / (updates * repeats), "engine": sampler.engine_name,
        "update": update, "kind": kind, "threads": torch.get_num_threads(), "chains": chains, "sweeps": sweeps,
        "repeats": repeats, **machine(),
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, threads=torch.get_num_threads())
    parser.add_argument("--engine", default="auto", choices=("auto", "torch", "numba", "triton"))
    parser.add_argument("--update", default="auto", choices=UPDATES)
    parser.add_argument("--kind", default="calm", choices=KINDS)
    parser.add_argument("--chains", type=int, default=None, help="images side by side; as many as threads by default")
    parser.add_argument("--burn-in", type=int, default=30)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(
        options.engine, options.update, options.kind, chains=options.chains or options.threads, burn_in=options.burn_in,
        sweeps=options.sweeps, repeats=options.repeats,
    )  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
