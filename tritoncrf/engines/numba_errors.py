"""What is the error of each factor? Counts of label pairs, and the differences between two samples, as compiled loops.

The gradient of ``E(y) - E(y')`` is ``[y' = l] - [y = l]`` on a pixel's logits and ``counts(y) - counts(y')`` on the tables.
Both vanish where the samples agree: a pixel at which they are equal has no unary error, and an edge between two such pixels is
counted alike in both. So the loops visit the pixels that differ and, for the tables, the edges that touch one: (p, p + d) when
p differs, (p - d, p) when p differs and p - d does not, which would have counted it already.

With kinds an edge counts among those of its kind, kept at its first end; a gated table's counts weigh an edge by its gate, in
whole steps of 1 / 128.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tritoncrf.engines.numba_cache import entry_point, jit
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles
from tritoncrf.engines.numba_vectors import address, byte, word

Counts = npt.NDArray[np.int32]
Gates = npt.NDArray[np.uint8]
Cube = npt.NDArray[np.int64]


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
def _histogram_kinds(
    row: int, volume: int, step: int, size: int, kinds: Bytes, pixels: Integers, bins: Counts
) -> None:
    """`_histogram` kind by kind, each ``size^2`` bins further on; kinds: ``[area]`` of the class."""
    for p in range(max(0, -step), volume - max(0, step)):
        kind = np.int64(kinds[np.uint64(pixels[np.uint64(p)])])
        bins[p & 3, np.uint64((kind * size + byte(row + p)) * size + byte(row + p + step))] += 1


@jit
def _add(bins: Counts, sign: int, target: Cube) -> None:
    """Adds the histograms of label pairs, those with void left out, to ``target`` ``[R, L, L]`` with a sign."""
    number = target.shape[1]
    for kind in range(len(target)):
        for label in range(number):
            for m in range(number):
                j = (kind * (number + 1) + label) * (number + 1) + m
                total = np.int64(0)
                for part in range(len(bins)):
                    total += bins[part, j]
                target[kind, label, m] += sign * total


@entry_point
def pair_counts(
    begin: int, end: int, replicas: int, labels: Bytes, steps: Integers, classes: Integers, kinds: Bytes, kinded: Integers,
    pixels: Integers, counts: Integers,
) -> None:  # fmt: skip
    """Counts label pairs of chains ``begin`` to ``end`` into zeroed ``counts`` ``[chains, C, R, L, L]``.

    kinds: ``[N, Ck, area]``; kinded: where a displacement's stand, -1: kind 0; pixels: of each position.
    """
    size = counts.shape[3] + 1
    bins = np.empty((4, counts.shape[2] * size * size), np.int32)
    for chain in range(begin, end):
        for k in range(len(steps)):
            bins[:] = 0
            row, volume = address(labels[chain]), labels.shape[1]
            if kinded[k] < 0:
                _histogram(row, volume, steps[k], size, bins)
            else:
                _histogram_kinds(row, volume, steps[k], size, kinds[chain // replicas, kinded[k]], pixels, bins)
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


@jit
def _touching_kinds(
    y: Bytes, z: Bytes, found: Positions, many: int, step: int, size: int, kinds: Bytes, pixels: Integers, bins: Counts
) -> None:
    """`_touching` kind by kind."""
    for n in range(many):
        p = np.int64(found[np.uint64(n)])
        after, before = np.uint64(p + step), np.uint64(p - step)
        a, b, c = np.int64(y[np.uint64(p)]), np.int64(z[np.uint64(p)]), np.int64(y[before])
        own = np.int64(kinds[np.uint64(pixels[np.uint64(p)])]) * size
        bins[0, np.uint64((own + a) * size + y[after])] += 1
        bins[0, np.uint64((own + b) * size + z[after])] -= 1
        if c == z[before]:
            theirs = np.int64(kinds[np.uint64(pixels[before])]) * size
            bins[0, np.uint64((theirs + c) * size + a)] += 1
            bins[0, np.uint64((theirs + c) * size + b)] -= 1


@entry_point
def pair_errors(
    begin: int, end: int, replicas: int, data: Bytes, free: Bytes, steps: Integers, classes: Integers, kinds: Bytes,
    kinded: Integers, pixels: Integers, most: float, counts: Integers,
) -> None:  # fmt: skip
    """Adds counts of ``data`` minus counts of ``free`` of images ``begin`` to ``end`` to ``counts`` ``[C, R, L, L]``.

    kinds, kinded, pixels: as in `pair_counts`.
    """
    size, volume = counts.shape[2] + 1, data.shape[1]
    found, bins = np.empty(volume, np.int32), np.empty((4, counts.shape[1] * size * size), np.int32)
    for chain in range(begin * replicas, end * replicas):
        y, z = data[chain], free[chain]
        many, image = differing(address(y), address(z), volume, found), chain // replicas
        for k in range(len(steps) if many else 0):
            target, place = counts[classes[k]], kinded[k]
            if many < most * volume:
                bins[0] = 0
                if place < 0:
                    _touching(y, z, found, many, steps[k], size, bins)
                else:
                    _touching_kinds(y, z, found, many, steps[k], size, kinds[image, place], pixels, bins)
                _add(bins[:1], 1, target)
            else:
                for row, sign in ((address(y), 1), (address(z), -1)):
                    bins[:] = 0
                    if place < 0:
                        _histogram(row, volume, steps[k], size, bins)
                    else:
                        _histogram_kinds(row, volume, steps[k], size, kinds[image, place], pixels, bins)
                    _add(bins, sign, target)


@entry_point
def gated_errors(
    begin: int, end: int, replicas: int, data: Bytes, free: Bytes, steps: Integers, columns: Integers, gates: Gates,
    pixels: Integers, counts: Integers,
) -> None:  # fmt: skip
    """As `pair_errors`, an edge counting its gate, into ``counts`` ``[G, Cg, L, L]``.

    gates: ``[N, G, Cg, area]``; steps, places: the displacements that have some, and where those stand.
    """
    number, volume = counts.shape[2], data.shape[1]
    found, bins = np.empty(volume, np.int32), np.empty((number + 1, number + 1), np.int64)
    for chain in range(begin * replicas, end * replicas):
        y, z = data[chain], free[chain]
        many, image = differing(address(y), address(z), volume, found), chain // replicas
        for j in range(len(steps) if many else 0):
            for rank in range(gates.shape[1]):
                bins[:] = 0
                weight = gates[image, rank, columns[j]]
                for n in range(many):
                    p = np.int64(found[np.uint64(n)])
                    after, before = np.uint64(p + steps[j]), np.uint64(p - steps[j])
                    own = np.int64(weight[np.uint64(pixels[np.uint64(p)])])
                    bins[y[np.uint64(p)], y[after]] += own
                    bins[z[np.uint64(p)], z[after]] -= own
                    if y[before] == z[before]:
                        theirs = np.int64(weight[np.uint64(pixels[before])])
                        bins[y[before], y[np.uint64(p)]] += theirs
                        bins[z[before], z[np.uint64(p)]] -= theirs
                # In loops: an addition of one array to another takes three seconds to compile.
                target = counts[rank, columns[j]]
                for a in range(number):
                    for b in range(number):
                        target[a, b] += bins[a, b]


@entry_point
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
