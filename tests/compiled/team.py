"""Do programs that wait for each other hand on what they should? A small kernel of teams, run as compiled, and faults in it.

Programs of a team pass rows and sums along through meetings. How they poll is one of `POLLS`; each fault is planted in each.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from tests.compiled.launch import Emulator, emulated
from tests.compiled.planted import line_of, places, plant

TEAM, TEAMS, BLOCK, ROUNDS = 3, 2, 64, 3
POLLS = {"load": 0, "all threads": 1, "atomic": 2}
KINDS = ("barrier", "barriers", "release", "acquire")


@triton.jit
def meet(arrivals, target, POLL: tl.constexpr):
    """Returns when ``target`` programs have come, and what each did before it came is seen by all."""
    tl.debug_barrier()
    if POLL == 0:
        # A poll that adds nothing is compiled to a load of one thread.
        tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
        seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
        while seen < target:
            seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
    elif POLL == 1:
        seen = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") + 1
        while seen < target:
            seen = tl.inline_asm_elementwise(
                "ld.acquire.gpu.global.s32 $0, [$1];", "=r,l", [arrivals], dtype=tl.int32, is_pure=False, pack=1
            )
    else:
        seen = tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
        while seen < target:
            seen = tl.atomic_max(arrivals, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def relay(rows, sums, arrivals, rounds, awaited, POLL: tl.constexpr, TEAM: tl.constexpr, BLOCK: tl.constexpr):
    """rows int32 [programs, BLOCK], sums int32 [programs], arrivals int32 [teams]; awaited: TEAM, but for a fault."""
    own = tl.program_id(0)
    first, place = own // TEAM * TEAM, own % TEAM
    lane = tl.arange(0, BLOCK)
    value = tl.load(rows + own * BLOCK + lane)
    target = awaited
    for _ in range(rounds):
        tl.store(rows + own * BLOCK + lane, value)
        tl.store(sums + own, tl.sum(value, 0))
        meet(arrivals + own // TEAM, target, POLL)
        # Of the next program, what another thread stored.
        value = 3 * value + tl.load(rows + (first + (place + 1) % TEAM) * BLOCK + (lane + 40) % BLOCK)
        for other in range(TEAM):
            value += tl.load(sums + first + other)
        meet(arrivals + own // TEAM, target + TEAM, POLL)
        target += 2 * TEAM
    tl.store(rows + own * BLOCK + lane, value)


def expected(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    value = rows.reshape(TEAMS, TEAM, BLOCK)
    for _ in range(ROUNDS):
        total = value.sum((1, 2), dtype=np.int32)[:, None, None]
        value = 3 * value + np.roll(np.roll(value, -1, 1), -40, 2) + total
    return value.reshape(rows.shape)


def play(emulator: Emulator, poll: str, awaited: int = TEAM, cooperative: bool = True) -> str:
    """What a run shows to be wrong; "" if nothing. awaited: by a meeting, programs."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-1000, 1000, (TEAM * TEAMS, BLOCK), dtype=torch.int32, generator=generator)
    right = expected(rows.numpy().copy())
    sums, arrivals = torch.zeros(TEAM * TEAMS, dtype=torch.int32), torch.zeros(TEAMS, dtype=torch.int32)
    given = {"rows": rows, "sums": sums, "arrivals": arrivals, "rounds": ROUNDS, "awaited": awaited}
    given |= {"POLL": POLLS[poll], "TEAM": TEAM, "BLOCK": BLOCK}
    options = {"num_warps": 2, "enable_fp_fusion": False, "launch_cooperative_grid": cooperative}
    try:
        with emulated(emulator):
            relay[(TEAM * TEAMS,)](**given, **options)
    except ValueError as error:
        return str(error)
    differ = int((rows.numpy() != right).sum())
    return next(iter(emulator.faults()), "") or (f"{differ} numbers differ" if differ else "")


def verdicts(poll: str) -> dict[str, str]:
    """Every fault, each run on its own: what found it, "" for nothing. The first are no faults."""
    clean = Emulator()

    def played(edits: dict[str, str] | None = None, seeds: int = 4, **faults: Any) -> str:
        said = (play(Emulator(edits or {}, seed=seed, texts=clean.texts), poll, **faults) for seed in range(seeds))
        return next(filter(None, said), "")

    result = {
        f"{poll}: nothing": played(seeds=8), f"{poll}: awaits one too few": played(awaited=TEAM - 1),
        f"{poll}: awaits one too many": played(awaited=TEAM + 1), f"{poll}: not cooperative": played(cooperative=False),
    }  # fmt: skip
    ((text, _),) = clean.texts.values()
    doubled = [place.span() for place in places("barriers", text)]
    for kind in KINDS:
        for number, place in enumerate(places(kind, text)):
            # Beside another one it does nothing.
            if kind != "barrier" or not any(start <= place.start() < end for start, end in doubled):
                name = f"{poll}: {kind} {number} ({line_of(text, place.start())})"
                result[name] = played({text: plant(kind, place, text)})
    return result
