"""Which sublattices contain none of some offsets? All Hermite normal forms of a diagonal that do not, axis by axis.

A form's rows below the first span a sublattice of one axis fewer, which must itself miss the offsets that do not step along the
first axis: few do, and they are found once for all forms above them. An offset whose first step r_1 does not divide lies in no
form of this diagonal; of the others, ``offset - (step / r_1) * first row`` must lie outside of the sublattice below.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Offsets = tuple[tuple[int, ...], ...]
# Numbers that are looked at together.
MOST = 1 << 18


@lru_cache(maxsize=4096)
def free_bases(offsets: Offsets, diagonal: tuple[int, ...]) -> Integers:
    """The forms int64 ``[V, d, d]`` with this diagonal that contain none of ``offsets``, ordered as `coloring` walks them."""
    first, axes = diagonal[0], len(diagonal)
    if axes == 1:
        return np.full((int(all(step % first for (step,) in offsets)), 1, 1), first)
    below = free_bases(tuple(offset[1:] for offset in offsets if offset[0] == 0), diagonal[1:])
    if not len(below):
        return np.zeros((0, axes, axes), np.int64)
    rows = np.array(list(itertools.product(*map(range, diagonal[1:]))))
    steps = np.array([offset for offset in offsets if offset[0] and offset[0] % first == 0], np.int64).reshape(-1, axes)
    allowed = np.ones((len(rows), len(below)), bool)
    # An offset in the way of one form is in that of many: those that one leaves are asked about the next.
    for step in steps:
        row, under = allowed.nonzero()
        for a in range(0, len(row), MOST):
            some = slice(a, a + MOST)
            rest = step[1:] - (step[0] // first) * rows[row[some]]
            allowed[row[some], under[some]] = _outside(rest, below[under[some]])
    row, under = allowed.nonzero()
    found = np.zeros((len(row), axes, axes), np.int64)
    found[:, 0, 0], found[:, 0, 1:], found[:, 1:, 1:] = first, rows[row], below[under]
    return found


def _outside(points: Integers, bases: Integers) -> npt.NDArray[np.bool_]:
    """Whether each point ``[P, d]`` is no point of its own sublattice ``[P, d, d]``."""
    rest = points.copy()
    outside = np.zeros(len(points), bool)
    for axis in range(points.shape[1]):
        times = rest[:, axis] // bases[:, axis, axis]
        rest -= times[:, None] * bases[:, axis]
        outside |= rest[:, axis] != 0
    return outside
