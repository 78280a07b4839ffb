"""How long until the first sweep? ``python -m bench.startup`` starts fresh processes in turns and tells where the time goes.

Import of the package: what it takes after torch's own. First sweep: making a sampler, starting a chain on 64 x 64 pixels and
sweeping it once, with numba's compiled code on disk (warm) and with an empty cache (cold); the second sweep stands beside it.
Medians over the turns. ``--write`` puts them into ``bench/results/startup.md`` and its JSON beside it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.turns import RESULTS, Row, arguments, save, spread, table

ROOT = Path(__file__).parents[1]
COLUMNS = {"figure": "figure", "median": "median, s", "least": "least", "most": "most", "flip_rate": "flip rate"}
IMPORTS = """
import json, time
t = [time.perf_counter()]
import torch
t.append(time.perf_counter())
import tritoncrf
t.append(time.perf_counter())
print(json.dumps({"import torch": t[1] - t[0], "import tritoncrf beyond torch": t[2] - t[1]}))
"""
FIRST = """
import json, sys, time
import torch
import tritoncrf as tc
engine, update = sys.argv[1:]
logits = torch.randn(1, 20, 64, 64, generator=torch.Generator().manual_seed(0))
crf = tc.GridCRF(20, tc.Neighborhood.nearest(64))
t = [time.perf_counter()]
sampler = tc.Sampler(crf, engine, seed=0, update=update)
t.append(time.perf_counter())
chains = sampler.init(logits)
t.append(time.perf_counter())
sampler.run(chains, 1)
t.append(time.perf_counter())
flips = int(chains.flips.sum())
sampler.run(chains, 1)
t.append(time.perf_counter())
parts = ("make the sampler", "start the chain", "sweep once", "sweep once more")
found = dict(zip(parts, (b - a for a, b in zip(t, t[1:]))))
found["first sweep"] = t[3] - t[0]
print(json.dumps({"flip_rate": flips / 4096, **found}))
"""


def measure(*, turns: int = 5, cold: int = 1, engine: str = "numba", update: str = "incremental") -> list[Row]:
    """Rows of seconds: imports, then the first sweep with a warm cache ``turns`` times and with a cold one ``cold`` times."""
    found: dict[str, list[dict[str, float]]] = {"import": [], "warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept"
        # A cache of our own: that of the package may be warm or not.
        _fresh(FIRST, engine, update, cache=kept)
        for turn in range(max(turns, cold)):
            if turn < turns:
                found["import"].append(_fresh(IMPORTS))
                found["warm"].append(_fresh(FIRST, engine, update, cache=kept))
            if turn < cold:
                found["cold"].append(_fresh(FIRST, engine, update, cache=Path(folder) / f"empty{turn}"))
    rows: list[Row] = []
    for kind, runs in found.items():
        for figure in (name for name in runs[0] if name != "flip_rate") if runs else ():
            values = [run[figure] for run in runs]
            told = {"turns": len(values), "flip_rate": runs[0].get("flip_rate")}
            rows.append({"figure": figure if kind == "import" else f"{figure}, {kind} cache", **spread(values), **told})
    return rows


def heaviest(count: int = 10) -> list[Row]:
    """The packages whose own code takes longest when tritoncrf is imported after torch, in seconds."""
    code = "import torch, sys; print('---', file=sys.stderr); import tritoncrf"
    done = _python(["-X", "importtime", "-c", code], {})
    own: dict[str, float] = {}
    for line in done.stderr.split("---\n")[-1].splitlines():
        match = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if match:
            name = match[2].split(".")[0]
            own[name] = own.get(name, 0.0) + int(match[1]) / 1e6
    return [{"package": name, "seconds": value} for name, value in sorted(own.items(), key=lambda item: -item[1])[:count]]


def _fresh(code: str, *arguments: str, cache: Path | None = None) -> dict[str, float]:
    """What ``code`` prints last in a process of its own."""
    done = _python(["-c", code, *arguments], {} if cache is None else {"NUMBA_CACHE_DIR": str(cache)})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _python(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, **environment})


def main() -> None:
    parser = arguments(__doc__, turns=7, write=True)
    parser.add_argument("--cold", type=int, default=2, help="starts with an empty cache, each of which compiles everything")
    parser.add_argument("--engine", default="numba", choices=("numba", "torch"))
    parser.add_argument("--update", default="incremental", choices=("gather", "incremental", "auto"))
    options = parser.parse_args()
    rows = measure(turns=options.turns, cold=options.cold, engine=options.engine, update=options.update)
    heavy = heaviest()
    lines = [*table(rows, COLUMNS), "", *table(heavy, {"package": "imported beyond torch", "seconds": "its own seconds"})]
    print("\n".join(lines))
    if options.write:
        note = f"Engine {options.engine}, {options.update}. The first sweep is the sampler, the chain's start and one sweep."
        save(RESULTS / "startup", "python -m bench.startup --write", {"rows": rows, "imports": heavy}, [note, "", *lines])


if __name__ == "__main__":
    main()
