"""Whose turn is it? Programs of a common launch run one after the other, those of a cooperative launch in turns.

The order is one of chance. In a cooperative launch a program pauses behind barriers, atomics and jumps back, and the next is
drawn. One that polls and was told the same again sleeps until something that is polled has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tests.compiled.program import Code
from tests.compiled.registers import Program

# Polls without news after which a program can but wait, and turns without a change after which nothing will come of a launch.
VAIN, CALM = 8, 200_000


def alone(code: Code, numbers: list[int], made: Callable[[int], Program]) -> Iterator[Program]:
    """Each from start to end, then given back; ValueError where one waits for another."""
    for number in numbers:
        program = made(number)
        program.memory.clock.enter(number)
        for _ in code.turns(program):
            if program.idle >= VAIN:
                raise ValueError(
                    f"{code.kernel.name}: expected launch_cooperative_grid=True where a program waits for another, "
                    f"got a launch without it ({program.line})"
                )
        yield program


def together(code: Code, numbers: list[int], made: Callable[[int], Program], rng: np.random.Generator) -> Iterator[Program]:
    """All in turns, each given back when it has ended; ValueError where all that are left wait."""
    programs = [made(number) for number in numbers]
    running = {program: code.turns(program) for program in programs}
    clock, between = programs[0].memory.clock, programs[0].memory.between
    assert between is not None
    calm = 0
    while running and calm < CALM:
        ready = [one for one in running if one.idle == 0 or one.version != between.version]
        # Whose polls are alike though it goes on is not asleep.
        ready = ready or [one for one in running if one.idle < VAIN]
        if not ready:
            break
        program = ready[int(rng.integers(len(ready)))]
        clock.enter(program.place)
        before = program.changes
        if next(running[program], True):
            del running[program]
            yield program
        calm = calm + 1 if program.changes == before else 0
    if not running:
        return
    lines = sorted({one.line or clock.line for one in running})
    raise ValueError(
        f"{code.kernel.name}: expected programs of a launch to go on, got {len(running)} of {len(numbers)} that wait for ever "
        f"({', '.join(lines)})"
    )
