"""What is the error of each factor? Counts of label pairs, and the differences between two samples, as compiled loops.

The gradient of ``E(y) - E(y')`` is ``[y' = l] - [y = l]`` on a pixel's logits and ``counts(y) - counts(y')`` on the tables.
Both vanish where the samples agree: a pixel at which they are equal has no unary error, and an edge between two such pixels is
counted alike in both. So the loops visit the pixels that differ and, for the tables, the edges that touch one: (p, p + d) when
p differs, (p - d, p) when p differs and p - d does not, which would have counted it already.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles
from tritoncrf.engines.numba_vectors import address, byte, entry, jit, word

Counts = npt.NDArray[np.int32]
Matrix = npt.NDArray[np.int64]


# From this share of differing positions on, counting both samples whole is as fast (docs/engines.md).
MOST = 0.2


@jit
def _histogram(row: int, volume: int, step: int, size: int, bins: Counts) -> None:
    """Counts the labels of every two positions a step apart, of the row at an address, into the sum of four zeroed ``bins``."""
    a, b = max(0, -step), volume - max(0, step)
    middle = a + (b - a) // 4 * 4
    for p in range(row + a, row + middle, 4):
        # Four histograms in turn: equal pairs in a row would wait for each other's store.
        for j in range(4):
            bins[j, np.uint64(byte(p + j) * size + byte(p + j + step))] += 1
    for p in range(row + middle, row + b):
        bins[0, np.uint64(byte(p) * size + byte(p + step))] += 1


@jit
def _add(bins: Counts, sign: int, target: Matrix) -> None:
    """Adds the histograms of label pairs, those with void left out, to ``target`` ``[L, L]`` with a sign."""
    number = len(target)
    for label in range(number):
        for m in range(number):
            j = label * (number + 1) + m
            total = np.int64(0)
            for part in range(len(bins)):
                total += bins[part, j]
            target[label, m] += sign * total


@entry
def pair_counts(begin: int, end: int, labels: Bytes, steps: Integers, classes: Integers, counts: Integers) -> None:
    """Counts label pairs of chains ``begin`` to ``end`` into zeroed ``counts`` ``[chains, C, L, L]``."""
    size = counts.shape[2] + 1
    bins = np.empty((4, size * size), np.int32)
    for chain in range(begin, end):
        for k in range(len(steps)):
            bins[:] = 0
            _histogram(address(labels[chain]), labels.shape[1], steps[k], size, bins)
            _add(bins, 1, counts[chain, classes[k]])


@jit
def differing(here: int, there: int, length: int, found: Positions) -> int:
    """Lists the places at which ``length`` bytes from two addresses differ, in order; returns their number."""
    number, p = 0, 0
    while p < length:
        # Eight bytes at once: most are equal.
        if p + 8 <= length and word(here + p) == word(there + p):
            p += 8
            continue
        for q in range(p, min(p + 8, length)):
            if byte(here + q) != byte(there + q):
                found[np.uint64(number)] = q
                number += 1
        p += 8
    return number


@jit
def _touching(y: Bytes, z: Bytes, found: Positions, many: int, step: int, size: int, bins: Counts) -> None:
    """Counts of y minus counts of z over the edges of one displacement that touch a position at which they differ."""
    for n in range(many):
        p = np.int64(found[np.uint64(n)])
        after, before = np.uint64(p + step), np.uint64(p - step)
        a, b, c = np.int64(y[np.uint64(p)]), np.int64(z[np.uint64(p)]), np.int64(y[before])
        bins[0, np.uint64(a * size + y[after])] += 1
        bins[0, np.uint64(b * size + z[after])] -= 1
        if c == z[before]:
            bins[0, np.uint64(c * size + a)] += 1
            bins[0, np.uint64(c * size + b)] -= 1


@entry
def pair_errors(
    begin: int, end: int, replicas: int, data: Bytes, free: Bytes, steps: Integers, classes: Integers, most: float,
    counts: Integers,
) -> None:  # fmt: skip
    """Adds counts of ``data`` minus counts of ``free`` of images ``begin`` to ``end`` to ``counts`` ``[N, C, L, L]``."""
    size, volume = counts.shape[2] + 1, data.shape[1]
    found, bins = np.empty(volume, np.int32), np.empty((4, size * size), np.int32)
    for chain in range(begin * replicas, end * replicas):
        y, z = data[chain], free[chain]
        many = differing(address(y), address(z), volume, found)
        for k in range(len(steps) if many else 0):
            target = counts[chain // replicas, classes[k]]
            if many < most * volume:
                bins[0] = 0
                _touching(y, z, found, many, steps[k], size, bins)
                _add(bins[:1], 1, target)
            else:
                for row, sign in ((address(y), 1), (address(z), -1)):
                    bins[:] = 0
                    _histogram(row, volume, steps[k], size, bins)
                    _add(bins, sign, target)


@entry
def unary_errors(begin: int, end: int, replicas: int, data: Bytes, free: Bytes, part: float, out: Singles) -> None:
    """Adds ``[free = l] - [data = l]`` of images ``begin`` to ``end`` times ``part`` to zeroed ``out`` ``[N, L, pixels]``.

    data, free: ``[N * R, pixels]``.
    """
    labels, area = out.shape[1:]
    found, touched = np.empty(area, np.int32), np.empty(area, np.bool_)
    for image in range(begin, end):
        target = out[image]
        touched[:] = False
        for chain in range(image * replicas, (image + 1) * replicas):
            y, z = data[chain], free[chain]
            for n in range(differing(address(y), address(z), area, found)):
                p = found[n]
                target[z[p], p] += np.float32(1)
                target[y[p], p] -= np.float32(1)
                touched[p] = True
        # Whole numbers until here: what cancels, cancels exactly.
        for p in range(area if replicas > 1 else 0):
            if touched[p]:
                for label in range(labels):
                    target[label, p] *= part
