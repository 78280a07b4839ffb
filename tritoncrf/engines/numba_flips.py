"""What does a flip change at the other ends, where tables see the image? Odds against staying and energies, as compiled loops.

Both ends of an edge read the same kind and gates, which the flipped site has among its own bytes (`numba_edges`).
"""

from __future__ import annotations

import numpy as np

from tritoncrf import contract
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles, Whole
from tritoncrf.engines.numba_edges import Seen
from tritoncrf.engines.numba_vectors import byte, call

_SHIFT = np.float32(contract.GATE_SHIFT)


@call
def push(
    p: Whole, place: Positions, steps: Integers, push: Singles, lifts: Singles, old: Whole, new: Whole, chances: Singles,
    seen: Seen, edge: int,
) -> None:  # fmt: skip
    """`numba_sweeps._push` of tables that see the image.

    push: ``[kinds * (L + 1), 2K]``; lifts: ``[9 * (L + 1), 2 Kg G]``, by eighths of a gate, up, in the order of a site's bytes.
    """
    kinds, _, gating, ranks, _, _ = seen
    e, number = edge, len(push) // max(kinds, 1)
    for k in range(len(steps)):
        ahead = back = 0
        if kinds:
            ahead, back, e = byte(e) * number, byte(e + 1) * number, e + 2
        there, here = np.uint64(place[np.uint64(p + steps[k])]), np.uint64(place[np.uint64(p - steps[k])])
        chances[there] *= push[np.uint64(ahead + new), 2 * k] * push[np.uint64(ahead + old), 2 * k]
        chances[here] *= push[np.uint64(back + new), 2 * k + 1] * push[np.uint64(back + old), 2 * k + 1]
    for j in range(2 * len(gating) if ranks else 0):
        step = gating[j >> 1]
        t = np.uint64(place[np.uint64(p - step if j & 1 else p + step)])
        for r in range(ranks):
            level = (byte(e) + 15) // 16 * number
            chances[t] *= lifts[np.uint64(level + new), j * ranks + r] * lifts[np.uint64(level + old), j * ranks + r]
            e += 1


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
    for k in range(2 * len(steps)):
        q = np.uint64(p - steps[k >> 1] if k & 1 else p + steps[k >> 1])
        kind = byte(e) if kinds else 0
        e += 1 if kinds else 0
        pair = (k * max(kinds, 1) + kind) * plane + np.int64(labels[q]) * width
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
