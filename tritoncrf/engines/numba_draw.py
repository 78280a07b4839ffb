"""How is one site drawn? Philox blocks, the energies of a site by gather, and rule 3, as numba functions.

A site's energies are its unary row plus one table row per neighbour, padded to a multiple of 16 labels by forbidden ones. The
sums of 16 to 128 labels stay in registers while the neighbours pass by; the additions are exact (rule 1), so their order is
free. Where every table entry lies in (-8, 8) the rows are int16 in steps of the grid, 32 labels to a cache line, and are
widened before the sum of the largest entries could reach 8. With many labels the tables leave the nearest cache: a row is then
read whole, lines in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tritoncrf.engines import numba_vectors as vec
from tritoncrf.engines.numba_cache import call, jit
from tritoncrf.engines.numba_vectors import address, byte, load, word

Singles = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int32]
Whole = int | np.signedinteger[Any]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_UNIT, _BIN = np.float32(0.5), np.float32(2.0**-23)
_ZERO = np.float32(0.0)
# What each addition may lose of a sum, and where a difference of two sums has lost too much.
_LOST, _SMALL = np.float32(2.0**-23), np.float32(2.0**-6)
_INFLATE, _FLOOR = np.float32(1 + 2.0**-14), np.float32(2.0**-90)
# Padded labels from which on `gather_wide`, `totals_wide` and `draw_wide` are called.
WIDE = 128


@jit
def philox(
    sites: Words, block: int, low: int, high: int, key0: int, key1: int,
    u0: Singles, u1: Singles, u2: Singles, u3: Singles,
) -> None:  # fmt: skip
    """Rule 2's uniform numbers of sites for the four sweeps of a block; ``low`` and ``high`` are counter words 2 and 3."""
    for t in range(len(sites)):
        c0, c1, c2, c3 = np.uint64(sites[t]), np.uint64(block), np.uint64(low), np.uint64(high)
        k0, k1 = np.uint64(key0), np.uint64(key1)
        for _ in range(10):
            p0, p1 = c0 * _M0, c2 * _M1
            c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        u0[t] = (np.float32(np.uint32(c0) >> np.uint32(9)) + _UNIT) * _BIN
        u1[t] = (np.float32(np.uint32(c1) >> np.uint32(9)) + _UNIT) * _BIN
        u2[t] = (np.float32(np.uint32(c2) >> np.uint32(9)) + _UNIT) * _BIN
        u3[t] = (np.float32(np.uint32(c3) >> np.uint32(9)) + _UNIT) * _BIN


@jit
def _floats_16(here: Whole, step: int, end: int, row: int, half: int, width: int, start: int, out: int) -> None:
    total = load(start)
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + half + byte(here - word(step)) * width
        total = vec.add(vec.add(total, load(there)), load(back))
        row, step = row + 2 * half, step + 8
    vec.store(out, total)


@jit
def _floats_32(here: Whole, step: int, end: int, row: int, half: int, width: int, start: int, out: int) -> None:
    low, high = load(start), load(start + 64)
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + half + byte(here - word(step)) * width
        low, high = vec.add(low, load(there)), vec.add(high, load(there + 64))
        low, high = vec.add(low, load(back)), vec.add(high, load(back + 64))
        row, step = row + 2 * half, step + 8
    vec.store(out, low)
    vec.store(out + 64, high)


@jit
def _shorts_16(here: Whole, step: int, end: int, row: int, half: int, width: int, start: int, out: int) -> None:
    a = b = vec.zero_shorts()
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + half + byte(here - word(step)) * width
        a, b = vec.add_shorts(a, vec.load_shorts(there)), vec.add_shorts(b, vec.load_shorts(back))
        row, step = row + 2 * half, step + 8
    vec.finish_shorts(start, out, a, b)


@jit
def _shorts_32(here: Whole, step: int, end: int, row: int, half: int, width: int, start: int, out: int) -> None:
    a = b = vec.zero_wide()
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + half + byte(here - word(step)) * width
        a, b = vec.add_wide(a, vec.load_wide(there)), vec.add_wide(b, vec.load_wide(back))
        row, step = row + 2 * half, step + 8
    vec.finish_wide(start, out, a, b)


@call
def _shorts_128(here: Whole, step: int, end: int, row: int, half: int, width: int, start: int, out: int) -> None:
    """Four lines of a row in order, which the processor fetches ahead. `Rows.parts` is for sums of an edge's two ends apart."""
    a = b = c = d = e = f = g = h = vec.zero_wide()
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + half + byte(here - word(step)) * width
        a, b = vec.add_wide(a, vec.load_wide(there)), vec.add_wide(b, vec.load_wide(there + 64))
        c, d = vec.add_wide(c, vec.load_wide(there + 128)), vec.add_wide(d, vec.load_wide(there + 192))
        e, f = vec.add_wide(e, vec.load_wide(back)), vec.add_wide(f, vec.load_wide(back + 64))
        g, h = vec.add_wide(g, vec.load_wide(back + 128)), vec.add_wide(h, vec.load_wide(back + 192))
        row, step = row + 2 * half, step + 8
    vec.finish_wide(start, out, a, e)
    vec.finish_wide(start + 128, out + 128, b, f)
    vec.finish_wide(start + 256, out + 256, c, g)
    vec.finish_wide(start + 384, out + 384, d, h)


@call
def _floats_64(here: Whole, step: int, end: int, row: int, half: int, width: int, start: int, out: int) -> None:
    a, b, c, d = load(start), load(start + 64), load(start + 128), load(start + 192)
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + half + byte(here - word(step)) * width
        a, b = vec.add(a, load(there)), vec.add(b, load(there + 64))
        c, d = vec.add(c, load(there + 128)), vec.add(d, load(there + 192))
        a, b = vec.add(a, load(back)), vec.add(b, load(back + 64))
        c, d = vec.add(c, load(back + 128)), vec.add(d, load(back + 192))
        row, step = row + 2 * half, step + 8
    vec.store(out, a)
    vec.store(out + 64, b)
    vec.store(out + 128, c)
    vec.store(out + 192, d)


@call
def gather_wide(
    here: Whole, steps: int, parts: int, end_of: int, rows: int, number: int, size: int, short: bool, unary: int, energies: int
) -> None:  # fmt: skip
    """`gather` of `WIDE` labels and more; parts, end_of: addresses of the first and the last of the bounds.

    Apart from it, for 20 labels' loop, compiled into its callers, is slower by a seventh with this one beside it.
    """
    width = size * 2 if short else size * 4
    half, start = (number + 1) * width, unary
    while parts < end_of:
        step, end, row = steps + 8 * word(parts), steps + 8 * word(parts + 8), rows + 2 * half * word(parts)
        label = 0
        while short and label + 128 <= size:
            _shorts_128(here, step, end, row + 2 * label, half, width, start + 4 * label, energies + 4 * label)
            label += 128
        while not short and label + 64 <= size:
            _floats_64(here, step, end, row + 4 * label, half, width, start + 4 * label, energies + 4 * label)
            label += 64
        while label < size:
            if short:
                _shorts_16(here, step, end, row + 2 * label, half, width, start + 4 * label, energies + 4 * label)
            else:
                _floats_16(here, step, end, row + 4 * label, half, width, start + 4 * label, energies + 4 * label)
            label += 16
        parts, start = parts + 8, energies


@call
def gather(
    here: Whole, steps: Integers, parts: Integers, rows: Bytes, number: int, size: int, short: bool, unary: int, energies: int
) -> None:  # fmt: skip
    """Writes a site's ``size`` padded energies to address ``energies``.

    here: address of its label; rows: ``[K, 2, number + 1, size]`` of float32, or of int16 if ``short``; unary: address of its
    unary row; parts: bounds of ranges of classes whose int16 sums cannot overflow.
    """
    width = size * 2 if short else size * 4
    half = (number + 1) * width
    for part in range(len(parts) - 1):
        step, end = address(steps) + 8 * parts[part], address(steps) + 8 * parts[part + 1]
        row, start = address(rows) + 2 * half * parts[part], energies if part else unary
        for label in range(0, size - 31, 32):
            if short:
                _shorts_32(here, step, end, row + 2 * label, half, width, start + 4 * label, energies + 4 * label)
            else:
                _floats_32(here, step, end, row + 4 * label, half, width, start + 4 * label, energies + 4 * label)
        if size & 16:
            label = size - 16
            if short:
                _shorts_16(here, step, end, row + 2 * label, half, width, start + 4 * label, energies + 4 * label)
            else:
                _floats_16(here, step, end, row + 4 * label, half, width, start + 4 * label, energies + 4 * label)


@jit
def weights(energies: int, out: int, size: int, scale: float) -> None:
    """Rule 3's weights of ``size`` padded energies, from one address to another."""
    least = load(energies)
    for label in range(16, size, 16):
        least = vec.smaller(least, load(energies + 4 * label))
    low = vec.lowest(least)
    for label in range(0, size, 16):
        vec.store(out + 4 * label, vec.weigh(load(energies + 4 * label), low, scale))


@jit
def totals(weight: Singles, labels: int, out: Singles) -> None:
    """Sums in label order of four rows of weights: four chains of additions run side by side, one would wait for itself."""
    a, b, c, d = weight[0, 0], weight[1, 0], weight[2, 0], weight[3, 0]
    for label in range(1, labels):
        a += weight[0, label]
        b += weight[1, label]
        c += weight[2, label]
        d += weight[3, label]
    out[0], out[1], out[2], out[3] = a, b, c, d


@jit
def totals_wide(weight: Singles, labels: int, out: Singles, sums: Singles) -> None:
    """`totals` of many labels, and in ``sums`` ``[blocks, 4]`` what comes before each next 16 of them."""
    a = b = c = d = _ZERO
    for block in range((labels + 15) >> 4):
        for label in range(16 * block, min(16 * block + 16, labels)):
            a += weight[0, label]
            b += weight[1, label]
            c += weight[2, label]
            d += weight[3, label]
        sums[block, 0], sums[block, 1], sums[block, 2], sums[block, 3] = a, b, c, d
    out[0], out[1], out[2], out[3] = a, b, c, d


@jit
def draw(weight: Singles, j: int, labels: int, current: Whole, u: float, total: float) -> Whole:
    """Rule 3's new label from row j of the weights, given the sum of the weights in label order."""
    x = u * total
    own = weight[j, current]
    if x < own:
        return current
    rest = x - own
    weight[j, current] = _ZERO
    passed, chosen = _ZERO, 0
    for label in range(labels):
        passed += weight[j, label]
        chosen += passed <= rest
    weight[j, current] = own
    if chosen == labels:
        chosen = 0
        for label in range(labels):
            if weight[j, label] > _ZERO and label != current:
                chosen = label
    return chosen


@jit
def draw_wide(weight: Singles, j: int, labels: int, current: Whole, u: float, total: float, sums: Singles) -> Whole:
    """`draw` from many labels, most of which are passed over by what `totals_wide` left."""
    x = u * total
    own = weight[j, current]
    if x < own:
        return current
    rest = x - own
    passed, chosen = _ZERO, 0
    # Up to the current label the others' sums are the sums of all. They never fall: the first beyond ``rest`` decides.
    while chosen + 16 <= current and sums[np.uint64(chosen >> 4), j] <= rest:
        passed = sums[np.uint64(chosen >> 4), j]
        chosen += 16
    while chosen < labels:
        passed += _ZERO if chosen == current else weight[j, chosen]
        if passed > rest:
            return chosen
        chosen += 1
    chosen = 0
    for label in range(labels):
        if weight[j, label] > _ZERO and label != current:
            chosen = label
    return chosen


@jit
def odds(weight: Singles, j: int, labels: int, current: Whole, total: float) -> float:
    """An upper bound of (sum of the other weights) / (own weight) in row j, sound under the factors of later pushes."""
    own = weight[j, current]
    others = total - own
    if others < total * _SMALL:
        # Too much has cancelled: add the others by themselves.
        others = _ZERO
        for label in range(labels):
            if label != current:
                others += weight[j, label]
    else:
        others += total * np.float32(labels) * _LOST
    # A label cut off at 2^-100 weighs 0 now but may come back; the inflation covers the weights' own errors, now and later.
    bound: float = (others / own) * _INFLATE + _FLOOR / own
    return bound
