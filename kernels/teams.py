"""How do the programs of a team wait for each other? At a counter in global memory, one to a team.

Threads of a program are ordered by its barrier; programs by arriving at the counter with release semantics and reading it with
acquire semantics until all have arrived (PTX ISA, memory consistency model: release and acquire patterns are cumulative over
the barriers before and after). A team of several needs all its programs on the device at once, which a cooperative launch
asserts.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import triton
import triton.language as tl
from tritoncrf.kernels.shapes import Launch

# Numbers from one team's counter to the next one's: they do not share a line of L2.
APART = tl.constexpr(32)


@triton.jit
def meet(arrivals, target, TEAMED: tl.constexpr):
    """Goes on once all threads of all programs of a team have come here; target: int32, arrivals at its counter by then."""
    tl.debug_barrier()
    if TEAMED:
        tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
        seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
        while seen < target:
            seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()


def with_room(run: Callable[[Launch], None], shape: Launch) -> None:
    """Runs a launch of ``shape``, or one of programs alone where the device has no room for whole teams."""
    try:
        run(shape)
    except RuntimeError as error:
        # A device that others share, or that holds fewer programs than we thought: no label depends on the shape.
        if shape.team == 1 or "cooperative" not in str(error):
            raise
        run(replace(shape, team=1))
