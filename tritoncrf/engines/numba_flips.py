"""What does a flip change at the other ends, where tables see the image? Odds against staying and energies, as compiled loops.

Both ends of an edge read the same kind and gates, which the flipped site has among its own bytes (`numba_edges`).
"""

from __future__ import annotations

import numpy as np

from tritoncrf import contract
from tritoncrf.engines.numba_cache import call
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles, Whole
from tritoncrf.engines.numba_edges import Seen
from tritoncrf.engines.numba_vectors import byte

_SHIFT = np.float32(contract.GATE_SHIFT)


@call
def push(
    p: Whole, place: Positions, steps: Integers, push: Singles, lifts: Singles, old: Whole, new: Whole, chances: Singles,
    kinds: int, gating: Integers, ranks: int, edge: int,
) -> None:  # fmt: skip
    """`numba_sweeps._push` of tables that see the image.

    push: ``[kinds * (L + 1), 2K]``; lifts: ``[9 * (L + 1), 2 Kg G]``, by eighths of a gate, up, in the order of a site's bytes.
    """
    e, number = edge, len(push) // max(kinds, 1)
    unit = 1 if kinds * number <= 256 else number
    # The gates' bytes, of one gate on every displacement, the only case in which both go through in step.
    gates, together = edge + (2 * len(steps) if kinds else 0), ranks == 1 and len(gating) == len(steps)
    for k in range(len(steps)):
        ahead = back = 0
        ahead_of, behind = np.uint64(2 * k), np.uint64(2 * k + 1)
        if kinds:
            ahead, back, e = byte(e) * unit, byte(e + 1) * unit, e + 2
        there, here = np.uint64(place[np.uint64(p + steps[k])]), np.uint64(place[np.uint64(p - steps[k])])
        first = push[np.uint64(ahead + new), ahead_of] * push[np.uint64(ahead + old), ahead_of]
        second = push[np.uint64(back + new), behind] * push[np.uint64(back + old), behind]
        if together:
            one, other = (byte(gates) + 15) // 16 * number, (byte(gates + 1) + 15) // 16 * number
            first *= lifts[np.uint64(one + new), ahead_of] * lifts[np.uint64(one + old), ahead_of]
            second *= lifts[np.uint64(other + new), behind] * lifts[np.uint64(other + old), behind]
            gates += 2
        chances[there] *= first
        chances[here] *= second
    for j in range(2 * len(gating) if ranks and not together else 0):
        step = gating[j >> 1]
        t = np.uint64(place[np.uint64(p - step if j & 1 else p + step)])
        for r in range(ranks):
            level = (byte(gates) + 15) // 16 * number
            chances[t] *= lifts[np.uint64(level + new), j * ranks + r] * lifts[np.uint64(level + old), j * ranks + r]
            gates += 1


@call
def gap(
    labels: Bytes, p: Whole, place: Positions, size: int, steps: Integers, rows: Bytes, short: bool, width: int, number: int,
    seen: Seen, edge: int, old: Whole, new: Whole,
) -> float:  # fmt: skip
    """By how much the energies of the edges of position p change with its label, twice where the other end is free.

    Free is what has a place below ``size``.
    """
    kinds, _, gating, ranks, weighed, factors = seen
    shorts, floats, flat = rows.view(np.int16), rows.view(np.float32), weighed.reshape(-1)
    plane, e, change = (number + 1) * width, edge, 0.0
    unit = 1 if kinds * (number + 1) <= 256 else number + 1
    for k in range(2 * len(steps)):
        q = np.uint64(p - steps[k >> 1] if k & 1 else p + steps[k >> 1])
        kind = byte(e) * unit if kinds else 0
        e += 1 if kinds else 0
        pair = (k * max(kinds, 1) * (number + 1) + kind + np.int64(labels[q])) * width
        came, went = np.uint64(pair + new), np.uint64(pair + old)
        if short:
            d = (np.int64(shorts[came]) - np.int64(shorts[went])) / 4096.0
        else:
            d = np.float64(floats[came]) - np.float64(floats[went])
        change += d + d if place[q] < size else d
    for j in range(2 * len(gating) if ranks else 0):
        step = gating[j >> 1]
        q = np.uint64(p - step if j & 1 else p + step)
        for r in range(ranks):
            pair, factor = (j * ranks + r) * plane + np.int64(labels[q]) * width, factors[np.uint64(byte(e))]
            after = (factor * flat[np.uint64(pair + new)] + _SHIFT) - _SHIFT
            before = (factor * flat[np.uint64(pair + old)] + _SHIFT) - _SHIFT
            d = np.float64(after) - np.float64(before)
            change += d + d if place[q] < size else d
            e += 1
    return change
