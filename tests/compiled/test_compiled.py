"""The kernels as compiled for sm_90, run by the emulator: the torch engine's labels, counts and errors bit for bit, no race.

Compilation excludes Triton's interpreter, so each check runs in a process of its own (``python -m tests.compiled``). What is
small runs always, by one program an image and by teams that meet; all cases, the standard problem, every planted fault and
Triton 3.6 under ``-m slow``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.launches import KERNELS
from tests.compiled import matrices
from tests.compiled.memory import Memory
from tests.compiled.order import Clock, Unordered
from tests.compiled.parse import Unknown, parse
from tests.compiled.planted import GRAPHS, IDLE, OTHERS, SWEEPS, places, plant
from tests.compiled.program import Code
from tests.compiled.registers import Program
from tests.compiled.turns import alone
from tests.warm import Warm

ROOT = Path(__file__).parent.parent.parent
NO_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
OLDEST = "3.6.0"


def emulate(warm: Warm, *arguments: str, path: Path | None = None) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [environment.get("PYTHONPATH")])])
    # Another Triton than the one that is imported already needs a real start.
    done = warm.run(["-m", "tests.compiled", *arguments], env=environment, real=path is not None)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any]) -> None:
    assert found["differences"] == []
    assert found["faults"] == []
    assert found["site_updates"] > 0
    assert found["visits"] > 0


@NO_TRITON
def test_every_kernel_runs_as_compiled(warm: Warm) -> None:
    found = emulate(warm, "small")
    check(found)
    assert set(found["launches"]) == {kernel.function for kernel in KERNELS.values()}
    # Every path of a sweep: a lane a site and several, packed rows and float32, looks of both sizes.
    assert found["instructions_not_run"]["sweep_chains"] < 0.05 * found["instructions"]["sweep_chains"]


@NO_TRITON
def test_faults_between_phases_are_found(warm: Warm) -> None:
    """Between the phases of a team, and in what it passes over; the slow test has every fault in every kernel."""
    kinds = ("barriers", "release", "acquire", "bound")
    found = emulate(warm, "planted", "--kernels", "lazy_team", "--kinds", *kinds, "--cases", "1")
    assert {name.partition(" ")[0] for name in found} >= {*kinds, "contraction", "not"}
    assert all(found.values())
    assert all("another program" in by for name, by in found.items() if re.match("barriers|release|acquire", name))
    assert all("differ" in by or "below the odds" in by for name, by in found.items() if name.startswith("bound"))
    # Code that a compiler may contract is refused before it runs.
    assert "Unknown: instruction" in found["contraction of lazy_team"]
    assert "expected launch_cooperative_grid=True" in found["not cooperative of lazy_team"]


@NO_TRITON
def test_faults_between_colours_are_found(warm: Warm) -> None:
    kinds = ["barriers", "release", "acquire"]
    found = emulate(warm, "planted", "--kernels", "graph_team", "--kinds", *kinds, "--cases", "1")
    assert {name.partition(" ")[0] for name in found} == {*kinds, "contraction", "not"}
    assert all(found.values())


@NO_TRITON
@pytest.mark.slow
@pytest.mark.parametrize("kernel", [*SWEEPS, *GRAPHS, *OTHERS, "add_graph_conditionals", "count_factors"])
def test_every_planted_fault_is_found_or_redundant(warm: Warm, kernel: str) -> None:
    # Of the others only barriers: half of the lanes of a small matrix hold no label, so that their addresses are not looked at.
    found = emulate(warm, "planted", "--kernels", kernel, *(["--kinds", "barrier"] if kernel in OTHERS else []))
    assert len(found) > 1
    # Without line and column.
    missed = {re.sub(r"(:\d+)+\)$", ")", name) for name, by in found.items() if not by}
    assert missed <= set(REDUNDANT)
    # Packed rows and float32, whole rounds and last ones: these problems have nearly all.
    assert sum(by == IDLE for by in found.values()) < 0.15 * len(found)


# What changes nothing when it is gone or elsewhere (Triton 3.9), and why.
CLOSING = "the end of a meeting: what a poll told is behind barriers of its own"
TWICE = "the barrier before a release, which has one of its own: 'barriers' takes both"
APART = "an exchange of each warp's own, in shared memory that others last read before an earlier barrier"
FIRST = "nothing: the first use of shared memory"
SUM = "behind it the sum of doubtful sites, or before it that of flips, has barriers of its own"
POLL = "the first look alone, at a number that nobody writes: the loop behind it looks at the counter"
NOBODY = "a lane without a site then reads around another site of the phase, which nobody writes to either"
FILLED = "labels for classes that fill up the list, whose rows are all zero"
WHOLE = "rounds by single lanes are whole in these problems, and who keeps its label stores it again"
LOW = "what a lane without a site leaves is too low only by chance; several chains find it"
DEGREE = "the largest degree of the next nodes, which all threads tell each other, has barriers of its own"
APART_TOO = "the end of an exchange of degrees: shared memory is next written behind the barriers of a meeting"
FIRST_NODE = "one graph alone has number 0, and 0 sweeps done behind it"
SAME = "where every site is listed the next replica's list is the same"
ALONE = "flips of one program, added to nothing"
ONE_BLOCK = "the sum of one program: no other adds to its chain's energy"
REDUNDANT = {
    f"{fault} of {kernel} ({file}.py)": why
    for kernel, file, missed in (
        ("lazy", "sweeps", {"barrier 10": SUM, "address 24": NOBODY, "address 59": NOBODY}),
        ("lazy", "sweeps", {"store 6": WHOLE, "store 7": WHOLE, "store 12": LOW, "store 15": ALONE}),
        ("lazy", "rows", {"address 70": FILLED, "address 71": FILLED}),
        ("lazy, several chains", "sweeps", {"barrier 10": SUM, "address 26": NOBODY, "address 62": NOBODY}),
        ("lazy, several chains", "sweeps", {"store 6": WHOLE, "store 8": WHOLE}),
        ("lazy, several chains", "rows", {"address 73": FILLED, "address 74": FILLED}),
        ("lazy_team", "sweeps", {"barrier 10": SUM, "address 20": NOBODY, "address 58": NOBODY}),
        ("lazy_team", "teams", {"barrier 1": CLOSING, "barrier 16": TWICE, "barrier 17": TWICE, "address 49": POLL}),
        ("lazy_team", "rows", {"barrier 32": APART}),
        ("lazy_team, several chains", "sweeps", {"barrier 10": SUM, "address 22": NOBODY, "address 61": NOBODY}),
        ("lazy_team, several chains", "teams", {"barrier 1": CLOSING, "barrier 16": TWICE, "barrier 17": TWICE}),
        ("lazy_team, several chains", "teams", {"address 51": POLL}),
        ("lazy_team, several chains", "rows", {"barrier 32": APART}),
        ("gather", "teams", {"barrier 0": SUM}),
        ("gather", "sweeps", {"address 11": NOBODY, "store 1": ALONE}),
        ("gather, several chains", "sweeps", {"address 13": NOBODY}),
        ("gather_team", "teams", {"barrier 0": CLOSING, "barrier 1": TWICE, "barrier 2": TWICE, "address 7": POLL}),
        ("gather_team", "rows", {"barrier 7": APART}),
        ("gather_team", "sweeps", {"address 14": NOBODY, "address 38": NOBODY}),
        ("gather_team, several chains", "teams", {"barrier 0": CLOSING, "barrier 1": TWICE, "barrier 2": TWICE}),
        ("gather_team, several chains", "teams", {"address 8": POLL}),
        ("gather_team, several chains", "rows", {"barrier 7": APART}),
        ("gather_team, several chains", "sweeps", {"address 16": NOBODY, "address 41": NOBODY}),
        ("graph", "teams", {"barrier 0": DEGREE}),
        ("graph", "graphs", {"address 2": FIRST_NODE, "store 1": ALONE}),
        ("graph, several chains", "teams", {"barrier 0": DEGREE}),
        ("graph, several chains", "standard", {"barrier 1": APART_TOO}),
        ("graph_team", "teams", {"barrier 0": CLOSING, "barrier 5": TWICE, "barrier 6": TWICE, "address 20": POLL}),
        ("graph_team", "standard", {"barrier 3": APART_TOO}),
        ("graph_team", "graphs", {"address 2": FIRST_NODE}),
        ("graph_team, several chains", "teams", {"barrier 0": CLOSING, "barrier 3": TWICE, "barrier 4": TWICE}),
        ("graph_team, several chains", "teams", {"address 24": POLL}),
        ("graph_team, several chains", "standard", {"barrier 1": APART_TOO}),
        ("add_graph_conditionals", "standard", {"barrier 2": FIRST}),
        ("add_graph_conditionals, several chains", "conditionals", {"store 3": ONE_BLOCK}),
        ("add_conditionals", "standard", {"barrier 0": FIRST}),
        ("mark_stale, several chains", "standing", {"barrier 3": SUM}),
        ("settle, several chains", "standing", {"barrier 4": SAME}),
    )
    for fault, why in missed.items()
}  # fmt: skip


@NO_TRITON
@pytest.mark.slow
def test_all_cases_run_as_compiled(warm: Warm) -> None:
    check(emulate(warm, "full"))


@NO_TRITON
@pytest.mark.slow
@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("team", [1, 4])
def test_the_standard_problem_runs_as_compiled(warm: Warm, update: str, team: int) -> None:
    found = emulate(warm, "standard", "--update", update, "--sweeps", "2", "--team", str(team))
    assert found["labels_that_differ"] == 0
    assert found["faults"] == []
    assert found["site_updates"] == 2 * 130 * 330


@NO_TRITON
@pytest.mark.slow
def test_the_oldest_triton_compiles_the_same_labels(warm: Warm, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), f"triton=={OLDEST}"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"pip cannot install triton=={OLDEST} here")
    found = emulate(warm, "small", path=tmp_path)
    assert found["triton"] == OLDEST
    check(found)


HEAD = """
.visible .entry toy(
	.param .u64 .ptr .global .align 1 toy_param_0
)
.reqntid 64
{
"""
# Each thread stores its number and loads its neighbour's.
NEIGHBOURS = """
	ld.param.b64 %rd1, [toy_param_0];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 4;
	add.s64 %rd3, %rd1, %rd2;
	st.global.b32 [ %rd3 + 0 ], { %r1 };
	bar.sync \t0;
	xor.b32 %r2, %r1, STEP;
	mul.wide.u32 %rd2, %r2, 4;
	add.s64 %rd4, %rd1, %rd2;
	ld.global.b32 { %r3 }, [ %rd4 + 0 ];
	bar.sync \t0;
	st.global.b32 [ %rd3 + 0 ], { %r3 };
	ret;
}
"""


def toy(body: str, programs: int = 1) -> tuple[list[int], list[str]]:
    """The 64 words after a run of ``body``, and what was found."""
    clock = Clock("toy")
    memory = Memory(clock)
    content, written = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    start = memory.add("out", content, written)
    memory.open(Unordered)
    shared = Memory(clock, 1)
    shared.open()
    code = Code(parse(HEAD + body.lstrip("\n")))
    for _ in alone(code, [*range(programs)], lambda own: Program(own, 64, [np.full(64, start, np.uint64)], memory, shared)):
        pass
    memory.close()
    return content.view(np.uint32).tolist(), [what for what, *_ in clock.found]


def test_neighbours_swap_and_each_barrier_is_needed() -> None:
    body = NEIGHBOURS.replace("STEP", "32")
    assert toy(body) == ([lane ^ 32 for lane in range(64)], [])
    first, second = (plant("barrier", place, body) for place in places("barrier", body))
    assert toy(first)[1] == ["race: load of a store"]
    assert toy(second)[1] == ["race: store where a thread loads"]
    # Within a warp as well, unless it waits for itself.
    body = NEIGHBOURS.replace("STEP", "1")
    assert toy(body.replace("bar.sync \t0", "bar.warp.sync -1")) == ([lane ^ 1 for lane in range(64)], [])
    assert toy(NEIGHBOURS.replace("STEP", "32").replace("bar.sync \t0", "bar.warp.sync -1"))[1]
    assert toy(plant("barrier", places("barrier", body)[0], body))[1] == ["race: load of a store"]


def test_memory_faults_are_named() -> None:
    body = NEIGHBOURS.replace("STEP", "32")
    assert "out of bounds: store" in toy(plant("address", places("address", body)[0], body))[1]
    assert "out of bounds: load" in toy(plant("address", places("address", body)[1], body))[1]
    assert "misaligned: store" in toy(body.replace("[ %rd3 + 0 ]", "[ %rd3 + 2 ]"))[1]
    assert "uninitialised: load" in toy(body.replace("st.global.b32 [ %rd3 + 0 ], { %r1 };", ""))[1]
    # Two programs on the same words, and all lanes on one.
    assert "race: stores of programs" in toy(body, 2)[1]
    assert "race: store of what another program loads or adds to" in toy(body, 2)[1]
    assert "race: lanes of one store" in toy(body.replace("mul.wide.u32 %rd2, %r1, 4", "mov.b64 %rd2, 0"))[1]


@pytest.mark.parametrize(
    "instruction",
    ["fma.rn.f32 %r2, %r1, %r1, %r1;", "add.f32 %r2, %r1, %r1;", "@%p1 add.s32 %r2, %r1, %r1;", "bar.arrive 0, 32;"],
)
def test_an_unknown_instruction_is_named(instruction: str) -> None:
    with pytest.raises(Unknown, match=f"expected one of the subset .* got '{re.escape(instruction)}'"):
        toy(NEIGHBOURS.replace("STEP", "32").replace("bar.sync \t0;", instruction))


def test_matrices_multiply() -> None:
    """Fragments of known matrices, filled by the layout that the PTX manual gives, thread by thread."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (16, 16)), rng.integers(0, 9, (16, 8))

    def pair(values: list[int]) -> int:
        return int(np.array(values, np.float16).view(np.uint32)[0])

    left, right = (np.zeros((count, 32), np.uint32) for count in (4, 2))
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        for place in range(4):
            down, along = row + 8 * (place % 2), column + 8 * (place // 2)
            left[place, lane] = pair([a[down, along], a[down, along + 1]])
        for place in range(2):
            right[place, lane] = pair([b[column + 8 * place, row], b[column + 8 * place + 1, row]])
    zeros = [np.zeros(32, np.uint32)] * 4
    found = [word.view(np.float32) for word in matrices.multiply(list(left), list(right), zeros)]
    product = torch.from_numpy(a) @ torch.from_numpy(b)
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        expected = [product[row + down, column + one] for down in (0, 8) for one in (0, 1)]
        assert [float(word[lane]) for word in found] == expected
