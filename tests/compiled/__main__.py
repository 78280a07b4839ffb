"""Does the compiled code give the torch engine's labels? ``python -m tests.compiled small`` says so as JSON, with no GPU.

``small`` and ``full`` compare problems in both updates, by single programs and by teams; ``standard`` the problem of 130 x 330
sites, 20 labels and 64 neighbours; ``planted`` says of each fault planted in a kernel what finds it, ``team`` the same of a
small kernel whose programs wait for each other. Not with TRITON_INTERPRET.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import ast
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.compiled import planted, problems
from tests.compiled.launch import Emulator
from tests.test_kernels_interpret import Case

ROOT = Path(__file__).parent.parent.parent
KERNELS = [*planted.SWEEPS, *planted.OTHERS]


def by_function(lines: Counter[str]) -> dict[str, int]:
    """Counts of ``file:line`` by the kernels' functions; what stands in none, as Triton's own, by file."""
    found: Counter[str] = Counter()
    for line, count in lines.items():
        file, _, number = line.partition(":")
        path, inside = ROOT / "kernels" / file, ""
        if path.is_file():
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and node.lineno <= int(number) <= (node.end_lineno or 0):
                    inside = " " + node.name
        found[file + inside] += count
    return dict(found.most_common())


def report(emulator: Emulator, began: float) -> dict[str, Any]:
    import triton

    equal = sum(times for (what, *_), times in emulator.found.items() if what.startswith("equal"))
    known: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for code, _ in emulator.code.values():
        known[code.kernel.name] += code.instructions
        missed[code.kernel.name] += len(code.missed())
    return {
        "triton": triton.__version__, "faults": emulator.faults(), "equal_stores": equal,
        "warp_instructions": dict(emulator.executed), "launches": dict(emulator.launches),
        "programs": dict(emulator.programs), "instructions": dict(known), "instructions_not_run": dict(missed),
        "seconds": round(time.perf_counter() - began, 1),
        "seconds_compiling": round(emulator.seconds["compile"], 1),
    }  # fmt: skip


def compared(cases: list[Case], seed: int, table: str) -> dict[str, Any]:
    """Each case, way and size of a team; the differences are told, not raised."""
    began, emulator = time.perf_counter(), Emulator(seed=seed)
    updates, count, differences = 0, 0, []
    for case in cases:
        for team in problems.TEAMS:
            for update in problems.UPDATES:
                count += 1
                try:
                    updates += problems.compare(emulator, case, update, team, table)
                except AssertionError as error:
                    differences.append(f"{case}, {update}, team of {team}: {error}"[:300])
    return {"problems": count, "site_updates": updates, "differences": differences, **report(emulator, began)}


def standard(update: str, team: int, sweeps: int, seed: int) -> dict[str, Any]:
    began, emulator = time.perf_counter(), Emulator(seed=seed)
    differ, updates = problems.standard(emulator, update, team, sweeps)
    lines: Counter[str] = Counter()
    for code, _ in emulator.code.values():
        lines += code.executed() if code.kernel.name == "sweep_chains" else Counter()
    return {
        "update": update, "team": team, "site_updates": updates, "labels_that_differ": differ,
        "lane_instructions_a_site": round(32 * emulator.executed["sweep_chains"] / updates, 1),
        "by_function": by_function(lines), **report(emulator, began),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["small", "full", "standard", "planted", "team"])
    parser.add_argument("--update", choices=problems.UPDATES, default="gather", help="of the standard problem")
    parser.add_argument("--team", type=int, default=1, help="programs that share the standard problem's image")
    parser.add_argument("--sweeps", type=int, default=1, help="of the standard problem")
    parser.add_argument("--seed", type=int, default=0, help="of the order of programs")
    parser.add_argument("--kernels", nargs="*", choices=KERNELS, default=KERNELS, help="to plant in")
    parser.add_argument("--kinds", nargs="*", choices=list(planted.PATTERNS), default=list(planted.PATTERNS), help="of faults")
    parser.add_argument("--cases", type=int, default=len(planted.CASES), help="problems to plant in, the first of the list")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "planted":
        found: dict[str, Any] = {}
        for kernel in options.kernels:
            found |= planted.verdicts(kernel, tuple(options.kinds), options.cases)
    elif options.what == "team":
        # Compiled kernels need Triton to be read.
        from tests.compiled import team

        found = {name: by for poll in team.POLLS for name, by in team.verdicts(poll).items()}
    elif options.what == "standard":
        found = standard(options.update, options.team, options.sweeps, options.seed)
    else:
        small = options.what == "small"
        found = compared(problems.SMALL if small else problems.FULL, options.seed, "small" if small else "own")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
