"""Is it found what programs of a cooperative launch have not seen of each other? Code by hand first, then what Triton makes.

`team` is a kernel whose programs wait for each other; it is compiled, so it runs in a process of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.compiled.memory import Memory
from tests.compiled.order import Clock, Ordered
from tests.compiled.parse import Unknown, parse
from tests.compiled.planted import PATTERNS, places, plant
from tests.compiled.program import Code
from tests.compiled.registers import Program
from tests.compiled.test_compiled import HEAD, NO_TRITON, emulate
from tests.compiled.turns import together
from tests.warm import Warm

THREADS = 64
# Every program adds 1 to what it finds in each of 64 words, one program after the other: word 64 says whose turn it is.
PASSED_ON = """
	ld.param.b64 %rd1, [toy_param_0];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	xor.b32 %r8, %r1, 33;
	mad.wide.u32 %rd2, %r8, 4, %rd1;
	setp.eq.b32 %p1, %r1, 0;
$LOOP:
	@%p1 ld.global.gpu.acquire.b32 %r3, [ %rd1 + 256 ];
	@%p1 st.shared.b32 [ global_smem + 0 ], %r3;
	bar.sync \t0;
	ld.shared.b32 %r4, [global_smem];
	bar.sync \t0;
	setp.ne.b32 %p2, %r4, %r2;
	@%p2 bra $LOOP;
	ld.global.b32 { %r5 }, [ %rd2 + 0 ];
	add.s32 %r6, %r5, 1;
	st.global.b32 [ %rd2 + 0 ], { %r6 };
	bar.sync \t0;
	mov.b32 %r7, 1;
	@%p1 red.global.gpu.release.add.u32 [ %rd1 + 256 ], %r7;
	ret;
}
"""
POLL = "@%p1 ld.global.gpu.acquire.b32 %r3, [ %rd1 + 256 ];"
ARRIVE = "@%p1 red.global.gpu.release.add.u32 [ %rd1 + 256 ], %r7;"


def toy(body: str, programs: int = 4, seed: int = 0) -> tuple[list[int], list[str]]:
    """The 65 words, zeros at first, after a cooperative run of ``body``, and what was found."""
    clock = Clock("toy")
    memory = Memory(clock)
    content = np.zeros(4 * THREADS + 4, np.uint8)
    start = memory.add("out", content, None)
    memory.open(lambda cells, clock: Ordered(cells, clock, programs, THREADS))

    def made(number: int) -> Program:
        shared = Memory(clock, 1)
        shared.add("shared", np.zeros(4, np.uint8), np.zeros(4, np.uint8))
        shared.open()
        return Program(number, THREADS, [np.full(THREADS, start, np.uint64)], memory, shared)

    code = Code(parse(HEAD + body.lstrip("\n")))
    for _ in together(code, [*range(programs)], made, np.random.default_rng(seed)):
        pass
    memory.close()
    return content.view(np.uint32).tolist(), sorted({what for what, *_ in clock.found})


def test_programs_pass_on_what_they_did() -> None:
    """What the first one wrote reaches the last, which waited for others only."""
    for seed in range(4):
        assert toy(PASSED_ON, seed=seed) == ([4] * (THREADS + 1), [])
    for poll in ("ld.acquire.gpu.global.s32 %r3, [%rd1+256];", "@%p1 ld.acquire.global.gpu.b32 %r3, [ %rd1 + 256 ];"):
        assert toy(PASSED_ON.replace(POLL, poll)) == ([4] * (THREADS + 1), [])
    for order in ("acquire", "acq_rel"):
        atomic = f"mov.b32 %r9, 0; \n\t@%p1 atom.global.gpu.{order}.add.u32 %r3, [ %rd1 + 256 ], %r9;"
        atomic = atomic.replace("; \n", ";\n")
        assert toy(PASSED_ON.replace(POLL, atomic)) == ([4] * (THREADS + 1), [])
        assert toy(PASSED_ON.replace(POLL, atomic.replace(".add.u32", ".max.s32"))) == ([4] * (THREADS + 1), [])


@pytest.mark.parametrize("kind", ["release", "acquire"])
def test_a_relaxed_atomic_passes_nothing_on(kind: str) -> None:
    (place,) = places(kind, PASSED_ON)
    assert "race: load of what another program wrote" in toy(plant(kind, place, PASSED_ON))[1]


def test_each_barrier_beside_a_poll_is_needed() -> None:
    said = [toy(plant("barrier", place, PASSED_ON))[1] for place in places("barrier", PASSED_ON)]
    assert "race: load of a store" in said[0]
    assert "race: store where a thread loads" in said[1]
    # Without the last one a release covers its own thread's past only.
    assert "race: load of what another program wrote" in said[2]


def test_an_acquire_is_its_threads_own_until_a_barrier() -> None:
    """Threads that go on by themselves have seen nothing of what thread 0 acquired; thread 0 has."""
    alone = PASSED_ON.replace("\t@%p1 st.shared.b32 [ global_smem + 0 ], %r3;\n\tbar.sync \t0;\n", "")
    alone = alone.replace("\tld.shared.b32 %r4, [global_smem];\n\tbar.sync \t0;\n", "")
    everybody = alone.replace(POLL, "ld.relaxed.gpu.global.b32 %r4, [ %rd1 + 256 ];\n\t" + POLL)
    assert "race: load of what another program wrote" in toy(everybody)[1]
    # All of them acquire: no barrier is needed.
    assert toy(alone.replace(POLL, "ld.acquire.gpu.global.b32 %r4, [ %rd1 + 256 ];")) == ([4] * (THREADS + 1), [])
    # Each thread of one warp polls, and one thread does the work.
    mine = everybody.replace("\tld.global.b32", "\t@%p1 ld.global.b32").replace("\tst.global.b32", "\t@%p1 st.global.b32")
    content, found = toy(mine)
    assert (content[33], found) == (4, [])


def test_plain_accesses_beside_atomics_are_races() -> None:
    stored = PASSED_ON.replace(ARRIVE, "@%p1 st.global.b32 [ %rd1 + 256 ], { %r7 };")
    assert "race: store of what another program loads or adds to" in toy(stored, 2)[1]
    weak = PASSED_ON.replace(POLL, "@%p1 ld.global.b32 { %r3 }, [ %rd1 + 256 ];")
    assert "race: load of what another program wrote" in toy(weak)[1]
    # A released store is as good as an addition where only one may store; once seen, it may be read as any other.
    stored = PASSED_ON.replace(ARRIVE, "add.s32 %r7, %r2, 1;\n\t@%p1 st.global.gpu.release.b32 [ %rd1 + 256 ], %r7;")
    assert toy(stored) == ([4] * (THREADS + 1), [])
    read = PASSED_ON.replace("\tadd.s32 %r6", "\t@%p1 ld.global.b32 { %r9 }, [ %rd1 + 256 ];\n\tadd.s32 %r6")
    assert toy(read) == ([4] * (THREADS + 1), [])


def test_a_thread_passes_on_at_once_what_it_acquired() -> None:
    """Threads 0 of the second and third program hand on what the first did, with no barrier; the fourth works on it."""
    work = PASSED_ON[PASSED_ON.index("\tld.global.b32") : PASSED_ON.index("\tmov.b32 %r7")]
    first = f"\tsetp.ne.b32 %p2, %r2, 0;\n\t@%p2 bra $ON;\n{work}$ON:\n\tmov.b32 %r7"
    chain = PASSED_ON.replace(work, "").replace("\tmov.b32 %r7", first)
    last = f"\tsetp.ne.b32 %p2, %r2, 3;\n\t@%p2 bra $END;\n\tbar.sync \t0;\n{work}$END:\n\tret;"
    poll = PASSED_ON[PASSED_ON.index("\t@%p1 st.shared") : PASSED_ON.index("\tsetp.ne.b32")]
    # They acquire once, so nothing of those before the last.
    own = chain.replace(poll, "").replace(POLL, "ld.relaxed.gpu.global.b32 %r4, [ %rd1 + 256 ];")
    own = own.replace("bra $LOOP;", f"bra $LOOP;\n\t{POLL}")
    # Unlike an addition, a store leaves nothing of what others released there.
    own = own.replace(ARRIVE, "add.s32 %r7, %r2, 1;\n\t@%p1 st.global.gpu.release.b32 [ %rd1 + 256 ], %r7;")
    content, found = toy(own.replace("\tret;", last))
    assert (content[:THREADS], found) == ([2] * THREADS, [])


# What two programs do to a word with no order between them, and whether that is a race.
TWO = """
	ld.param.b64 %rd1, [toy_param_0];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	setp.eq.b32 %p1, %r1, 0;
	mov.b32 %r7, 1;
	setp.eq.b32 %p2, %r2, 0;
	@%p2 bra $OTHER;
	@%p1 FIRST;
	ret;
$OTHER:
	@%p1 SECOND;
	ret;
}
"""
DOES = {
    "load": "ld.global.b32 { %r3 }, [ %rd1 + 0 ]", "store": "st.global.b32 [ %rd1 + 0 ], { %r7 }",
    "atomic load": "ld.global.gpu.acquire.b32 %r3, [ %rd1 + 0 ]", "atomic store": "st.release.gpu.global.b32 [ %rd1 + 0 ], %r7",
    "addition": "red.global.gpu.relaxed.add.u32 [ %rd1 + 0 ], %r7",
    "maximum": "atom.global.gpu.acq_rel.max.u32 %r3, [ %rd1 + 0 ], %r7",
}  # fmt: skip


@pytest.mark.parametrize("first", DOES)
@pytest.mark.parametrize("second", DOES)
def test_two_touch_a_word(first: str, second: str) -> None:
    changes = first, second
    race = not {*changes} <= {"load", "atomic load"} and bool({*changes} & {"load", "store"})
    for seed in range(2):
        found = toy(TWO.replace("FIRST", DOES[first]).replace("SECOND", DOES[second]), 2, seed)[1]
        # Of equal stores nobody can tell.
        assert [what.partition(":")[0] for what in found] == (["equal"] if changes == ("store", "store") else ["race"] * race)


@pytest.mark.parametrize("poll", [POLL, "@%p1 ld.global.b32 { %r3 }, [ %rd1 + 256 ];"], ids=["atomic", "plain"])
def test_waiting_for_ever_is_an_error(poll: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.compiled.turns.CALM", 3000)
    never = PASSED_ON.replace(ARRIVE, "").replace(POLL, "\t.loc\t7 30 5\n\t" + poll)
    with pytest.raises(ValueError, match=r"toy: expected programs of a launch to go on, got 3 of 4 .* for ever \(7:30\)"):
        toy(never)


@pytest.mark.parametrize(
    "instruction",
    [
        "@%p1 ld.global.cta.acquire.b32 %r3, [ %rd1 + 256 ];", "@%p1 ld.global.gpu.release.b32 %r3, [ %rd1 + 256 ];",
        "@%p1 atom.global.gpu.acq_rel.cas.b32 %r3, [ %rd1 + 256 ], %r7, %r7;", "fence.acq_rel.gpu;",
    ],
)  # fmt: skip
def test_an_unknown_order_is_named(instruction: str) -> None:
    with pytest.raises(Unknown, match=f"expected one of the subset .* got '{re.escape(instruction)}'"):
        toy(PASSED_ON.replace(POLL, instruction))


@NO_TRITON
def test_faults_of_a_team_are_found(warm: Warm) -> None:
    found = emulate(warm, "team")
    lines = (Path(__file__).parent / "team.py").read_text().splitlines()
    # All threads wait for the poll's result anyhow, which is behind a barrier or each thread's own.
    closing = max(number for number, line in enumerate(lines, 1) if line == "    tl.debug_barrier()")
    for poll in ("load", "all threads", "atomic"):
        own = {name.removeprefix(f"{poll}: "): by for name, by in found.items() if name.startswith(f"{poll}: ")}
        assert own.pop("nothing") == ""
        assert own["awaits one too few"].startswith("race: load of what another program wrote")
        assert re.search(r"relay: expected programs of a launch to go on, .*team.py:\d+", own["awaits one too many"])
        assert re.search(r"relay: expected launch_cooperative_grid=True .*team.py:\d+", own["not cooperative"])
        assert {name.partition(" ")[0] for name in own} >= {"barrier", "barriers", "release", "acquire"} <= {*PATTERNS}
        missed = [name for name, by in own.items() if not by]
        assert len(missed) <= 1
        assert all(f"(team.py:{closing}" in name and name.startswith("barrier ") for name in missed)
        assert all("another program" in by for name, by in own.items() if re.match("barriers|release|acquire", name))
