"""How far may a result be off? What the units for approximations give: a number of chance within the bounds of the PTX manual.

So nothing may depend on their bits. With ``.ftz`` what is subnormal is a zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[Any]


def flushed(a: Lanes) -> Lanes:
    """.ftz: subnormals are zeros of their sign."""
    found: Lanes = np.where(np.abs(a) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), a), a)
    return found


def astray(exact: Lanes, which: Lanes) -> Lanes:
    """float32 up to two units off where ``which`` holds, never past zero or infinity."""
    bits = exact.view(np.uint32) & 0x7FFFFFFF
    units = np.random.default_rng(int(bits.sum(dtype=np.uint64))).integers(-2, 3, exact.shape)
    moved = np.clip(bits + units, 0, 0x7F800000).astype(np.uint32).view(np.float32)
    return np.where(which & np.isfinite(exact) & (exact != 0), np.copysign(moved, exact), exact)


def roughly(a: Lanes, b: Lanes) -> Lanes:
    """div.full: any number within two units of the quotient."""
    exact = a / b
    return astray(exact, np.abs(exact) > 1e-30)


def power(a: Lanes) -> Lanes:
    """ex2.approx: within two units, 1 of zeros."""
    return astray(np.exp2(a.astype(np.float64)).astype(np.float32), a != 0)


def logarithm(a: Lanes) -> Lanes:
    """lg2.approx: within two units, and 2^-22 of numbers between 0.5 and 2."""
    exact = np.log2(a.astype(np.float64))
    near = np.random.default_rng(int(a.view(np.uint32).sum(dtype=np.uint64))).uniform(-(2.0**-22), 2.0**-22, a.shape)
    middle = (a > 0.5) & (a < 2)
    return astray((exact + np.where(middle, near, 0.0)).astype(np.float32), ~middle)
