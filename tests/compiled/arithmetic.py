"""What does an instruction compute? Each opcode of the subset as a function of numpy arrays, one number a thread.

Whole numbers wrap. float32 is IEEE with subnormals and one rounding an operation, as PTX has it without ``.ftz``. A fused
multiply-add is known with ``.ftz`` alone, as a logarithm's polynomial is written: where labels are decided none may be, and
what a compiler contracts has no ``.ftz``. What may err, ``div.full`` and ``.approx``, does so at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.compiled.approximate import Lanes, flushed, logarithm, power, roughly

WARP = 32
TYPES = {f"{letter}{8 * size}": np.dtype(f"{code}{size}") for letter, code in (("u", "u"), ("s", "i"), ("b", "u"))
         for size in (1, 2, 4, 8)} | {f"f{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)}  # fmt: skip
PREDICATE = np.dtype(bool)
TYPES["pred"] = PREDICATE
WHOLE: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "min": np.minimum, "max": np.maximum,
}  # fmt: skip
REAL: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@dataclass(frozen=True)
class Meaning:
    result: np.dtype[Any]
    sources: tuple[np.dtype[Any], ...]
    of: Callable[..., Lanes]


def quotient(a: Lanes, b: Lanes) -> Lanes:
    """Towards zero. By 0 it is any number: compilers divide ahead of a branch that asks whether they may."""
    wide = a.astype(np.int64), np.where(b == 0, 1, b).astype(np.int64)
    found: Lanes = (np.sign(wide[0]) * np.sign(wide[1]) * (np.abs(wide[0]) // np.abs(wide[1]))).astype(a.dtype)
    if (b == 0).any():
        anything = np.random.default_rng(a.size).integers(0, 256, a.nbytes, dtype=np.uint8).view(a.dtype)
        found = np.where(b == 0, anything, found)
    return found


def shift_left(a: Lanes, by: Lanes) -> Lanes:
    width = 8 * a.dtype.itemsize
    found: Lanes = np.where(by < width, a << np.minimum(by, width - 1).astype(a.dtype), a.dtype.type(0))
    return found


def shift_right(a: Lanes, by: Lanes) -> Lanes:
    """Past the width nothing, or the sign, is left."""
    width = 8 * a.dtype.itemsize
    shifted: Lanes = a >> np.minimum(by, width - 1).astype(a.dtype)
    found: Lanes = shifted if a.dtype.kind == "i" else np.where(by < width, shifted, a.dtype.type(0))
    return found


def field_of_bits(a: Lanes, first: Lanes, length: Lanes) -> Lanes:
    """bfe; the highest bit is the sign of a signed one."""
    up = (32 - first - length).astype(a.dtype)
    found: Lanes = ((a << up) >> (up + first.astype(a.dtype))).astype(a.dtype)
    return found


def permuted(a: Lanes, b: Lanes, choice: Lanes) -> Lanes:
    """prmt: four of eight bytes; a selector's bit 3 spreads a byte's sign instead."""
    pool = np.stack([a, b], 1).view(np.uint8)
    chosen = choice[:, None] >> (4 * np.arange(4, dtype=np.uint32)) & 15
    byte = np.take_along_axis(pool, (chosen & 7).astype(np.int64), 1)
    spread = np.where(byte > 127, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(np.where(chosen & 8, spread, byte)).view(np.uint32)[:, 0]


def to_whole(a: Lanes, kind: np.dtype[Any]) -> Lanes:
    """cvt.rzi: towards zero, ends at the type's; NaN becomes 0."""
    ends = np.iinfo(kind)
    with np.errstate(invalid="ignore"):
        inside = np.trunc(np.nan_to_num(a.astype(np.float64), nan=0.0))
        whole = np.clip(inside, -(2.0**62), 2.0**62).astype(np.int64)
    return np.where(inside >= float(ends.max), ends.max, np.where(inside <= float(ends.min), ends.min, whole)).astype(kind)


def looked_up(a: Lanes, b: Lanes, c: Lanes, table: Lanes) -> Lanes:
    """lop3: bit by bit, the table's bit 4 a + 2 b + c."""
    found = np.zeros_like(a)
    for place in range(8):
        match = (a if place & 4 else ~a) & (b if place & 2 else ~b) & (c if place & 1 else ~c)
        found |= np.where(table >> np.uint32(place) & 1 != 0, match, 0).astype(a.dtype)
    return found


def funnel(left: bool, wraps: bool) -> Callable[..., Lanes]:
    """shf: of the 64 bits b, a the upper half after a shift to the left, the lower after one to the right."""

    def of(a: Lanes, b: Lanes, by: Lanes) -> Lanes:
        both, by = b.astype(np.uint64) << np.uint64(32) | a, (by & 31 if wraps else np.minimum(by, 32)).astype(np.uint64)
        found: Lanes = ((both << by) >> np.uint64(32) if left else both >> by).astype(np.uint32)
        return found

    return of


def shuffled(kind: str) -> Callable[..., Lanes]:
    """shfl.sync of whole warps; a lane whose source is outside keeps its own."""

    def of(a: Lanes, by: Lanes, clamp: Lanes, members: Lanes) -> Lanes:
        if (clamp != (0 if kind == "up" else 31)).any() or (members != 0xFFFFFFFF).any():
            raise ValueError("shfl: expected whole warps, got parts of them")
        lane = np.arange(WARP)
        step = by.reshape(-1, WARP).astype(np.int64)
        source = {"up": lane - step, "down": lane + step, "bfly": lane ^ step, "idx": step}[kind]
        source = np.where((source >= 0) & (source < WARP), source, lane)
        return np.take_along_axis(a.reshape(-1, WARP), source, 1).reshape(-1)

    return of


def reduced(of: Any) -> Callable[..., Lanes]:
    """redux.sync of whole warps."""

    def whole(a: Lanes, members: Lanes) -> Lanes:
        if (members != 0xFFFFFFFF).any():
            raise ValueError("redux: expected whole warps, got parts of them")
        return np.repeat(of.reduce(a.reshape(-1, WARP), 1, dtype=a.dtype), WARP)

    return whole


def selected(a: Lanes, b: Lanes, which: Lanes) -> Lanes:
    found: Lanes = np.where(which, a, b)
    return found


def high(a: Lanes, b: Lanes) -> Lanes:
    wide = np.dtype(f"{a.dtype.kind}8")
    found: Lanes = ((a.astype(wide) * b.astype(wide)) >> wide.type(32)).astype(a.dtype)
    return found


def fused(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """fma of float32 with one rounding: the sum in float64, rounded to odd, loses nothing that a second rounding needs."""
    product, c = flushed(a).astype(np.float64) * flushed(b), flushed(c).astype(np.float64)
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    inexact = np.isfinite(total) & (lost != 0) & (total.view(np.uint64) & np.uint64(1) == 0)
    odd = np.where(inexact, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)
    return flushed(odd.astype(np.float32))


def _conversions() -> dict[str, Meaning]:
    found = {}
    for to in ("u16", "u32", "u64", "s16", "s32", "s64"):
        for source in ("u8", "s8", "u16", "u32", "u64", "s16", "s32", "s64"):
            found[f"cvt.{to}.{source}"] = Meaning(TYPES[to], (TYPES[source],), lambda a, to=TYPES[to]: a.astype(to))
    for to in ("f16", "f32", "f64"):
        for source in ("u16", "u32", "u64", "s16", "s32", "s64"):
            found[f"cvt.rn.{to}.{source}"] = Meaning(TYPES[to], (TYPES[source],), lambda a, to=TYPES[to]: a.astype(to))
    for to, source, mode in (("f64", "f32", ""), ("f32", "f16", ""), ("f32", "f64", ".rn")):
        found[f"cvt{mode}.{to}.{source}"] = Meaning(TYPES[to], (TYPES[source],), lambda a, to=TYPES[to]: a.astype(to))
    for to in ("s32", "s64", "u32"):
        for source, mode in (("f32", ""), ("f32", ".ftz"), ("f64", "")):
            whole: Any = lambda a, to=TYPES[to]: to_whole(a, to)  # noqa: E731
            found[f"cvt.rzi{mode}.{to}.{source}"] = Meaning(TYPES[to], (TYPES[source],), whole)
    for mode, of in (("rmi", np.floor), ("rpi", np.ceil)):
        found[f"cvt.{mode}.f32.f32"] = Meaning(TYPES["f32"], (TYPES["f32"],), of)
        found[f"cvt.{mode}.ftz.f32.f32"] = Meaning(TYPES["f32"], (TYPES["f32"],), lambda a, of=of: of(flushed(a)))
    # A bfloat16 is a float32's upper half.
    found["cvt.f32.bf16"] = Meaning(TYPES["u32"], (TYPES["u16"],), lambda a: a.astype(np.uint32) << np.uint32(16))
    return found


def _unordered(compare: Callable[..., Lanes]) -> Callable[..., Lanes]:
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


def _table() -> dict[str, Meaning]:
    found = _conversions()
    bits: dict[str, Any] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    compare: dict[str, Any] = {
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    }  # fmt: skip
    for name, kind in TYPES.items():
        if name == "pred" or kind.itemsize == 1:
            continue
        found[f"mov.{name}"] = Meaning(kind, (kind,), lambda a: a)
        found[f"selp.{name}"] = Meaning(kind, (kind, kind, PREDICATE), selected)
        for sign, of in compare.items():
            # A comparison with NaN fails, "ne" too; the unordered ones hold.
            ordered = (lambda a, b: (a < b) | (a > b)) if sign == "ne" and kind.kind == "f" else of
            found[f"setp.{sign}.{name}"] = Meaning(PREDICATE, (kind, kind), ordered)
            if kind.kind == "f":
                found[f"setp.{sign}u.{name}"] = Meaning(PREDICATE, (kind, kind), _unordered(of))
    for name in ("s16", "u16", "s32", "u32", "s64", "u64"):
        kind, two, small = TYPES[name], (TYPES[name],) * 2, TYPES["u32"]
        for verb, of in WHOLE.items():
            found[f"{verb}.{name}"] = Meaning(kind, two, of)
        found[f"mad.lo.{name}"] = Meaning(kind, (kind,) * 3, lambda a, b, c: a * b + c)
        found[f"shr.{name}"] = Meaning(kind, (kind, small), shift_right)
        found[f"div.{name}"] = Meaning(kind, two, quotient)
        found[f"rem.{name}"] = Meaning(kind, two, lambda a, b: a - quotient(a, b) * b)
        if kind.kind == "i":
            found[f"neg.{name}"] = Meaning(kind, (kind,), np.negative)
        if kind.itemsize < 8:
            wide = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
            product: Any = lambda a, b, wide=wide: a.astype(wide) * b.astype(wide)  # noqa: E731
            found[f"mul.wide.{name}"] = Meaning(wide, two, product)
            found[f"mad.wide.{name}"] = Meaning(wide, (*two, wide), lambda a, b, c, product=product: product(a, b) + c)
        if kind.itemsize == 4:
            found[f"mul.hi.{name}"] = Meaning(kind, two, high)
            found[f"bfe.{name}"] = Meaning(kind, (kind, small, small), field_of_bits)
    for name in ("b16", "b32", "b64", "pred"):
        kind = TYPES[name]
        found[f"not.{name}"] = Meaning(kind, (kind,), np.invert)
        found |= {f"{verb}.{name}": Meaning(kind, (kind, kind), of) for verb, of in bits.items()}
        if name != "pred":
            found[f"shl.{name}"] = Meaning(kind, (kind, TYPES["u32"]), shift_left)
            found[f"shr.{name}"] = Meaning(kind, (kind, TYPES["u32"]), shift_right)
    for name in ("f32", "f64"):
        kind = TYPES[name]
        for verb, of in REAL.items():
            found[f"{verb}.rn.{name}"] = Meaning(kind, (kind, kind), of)
        found |= {f"{verb}.{name}": Meaning(kind, (kind, kind), of) for verb, of in (("min", np.fmin), ("max", np.fmax))}
        found[f"neg.{name}"] = Meaning(kind, (kind,), np.negative)
    word = TYPES["u32"]
    found["mov.pred"] = Meaning(PREDICATE, (PREDICATE,), lambda a: a)
    found["div.full.f32"] = Meaning(TYPES["f32"], (TYPES["f32"],) * 2, roughly)
    found["fma.rn.ftz.f32"] = Meaning(TYPES["f32"], (TYPES["f32"],) * 3, fused)
    found["popc.b32"] = Meaning(word, (word,), lambda a: np.bitwise_count(a).astype(np.uint32))
    found["prmt.b32"] = Meaning(word, (word,) * 3, permuted)
    found |= {f"shfl.sync.{kind}.b32": Meaning(word, (word,) * 4, shuffled(kind)) for kind in ("up", "down", "bfly", "idx")}
    for verb in ("add", "min", "max"):
        for name in ("s32", "u32"):
            found[f"redux.sync.{verb}.{name}"] = Meaning(TYPES[name], (TYPES[name], word), reduced(WHOLE[verb]))
    found["lop3.b32"] = Meaning(word, (word,) * 4, looked_up)
    for mode in ("wrap", "clamp"):
        found |= {f"shf.{update}.{mode}.b32": Meaning(word, (word,) * 3, funnel(update == "l", mode == "wrap")) for update in "lr"}
    real = TYPES["f32"]
    found |= {f"{name}.approx.f32": Meaning(real, (real,), of) for name, of in (("ex2", power), ("lg2", logarithm))}
    found["ex2.approx.ftz.f32"] = Meaning(real, (real,), lambda a: flushed(power(flushed(a))))
    found["lg2.approx.ftz.f32"] = Meaning(real, (real,), lambda a: logarithm(flushed(a)))
    return found


MEANINGS = _table()
