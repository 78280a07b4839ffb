"""Does an instruction compute what it should? Each new one against numpy or whole numbers of Python, one number a thread."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.compiled.arithmetic import MEANINGS

RNG = np.random.default_rng(0)
TINY = np.finfo(np.float32).tiny


def run(opcode: str, *numbers: Any) -> NDArray[Any]:
    meaning = MEANINGS[opcode]
    sources = [np.atleast_1d(np.asarray(number)).astype(kind) for number, kind in zip(numbers, meaning.sources, strict=True)]
    with np.errstate(all="ignore"):
        found: NDArray[Any] = meaning.of(*sources).astype(meaning.result)
    return found


def test_arithmetic_wraps_and_rounds() -> None:
    def of(opcode: str, *numbers: Any) -> Any:
        return run(opcode, *numbers)[0]

    assert of("div.s32", -7, 2) == -3
    assert of("shl.b32", 1, 32) == 0
    assert of("shr.s32", -5, 40) == -1
    assert of("bfe.s32", 0b1000000, 6, 1) == -1
    assert of("bfe.u32", 0b1100000, 5, 2) == 3
    assert of("prmt.b32", 0x88442211, 0, 0x7770) == 0x11
    assert of("prmt.b32", 0x88442211, 0, 0x777B) == 0xFF
    assert of("add.s16x2", 0x0001FFFF, 0x7FFF0002) == 0x80000001
    assert of("cvt.rzi.s32.f32", 3e9) == 2**31 - 1
    assert of("cvt.rzi.s32.f32", np.nan) == 0
    assert of("mul.hi.u32", 2**32 - 1, 2**32 - 1) == 2**32 - 2
    assert not of("setp.ne.f32", np.nan, 0.0)
    assert of("setp.neu.f32", np.nan, 0.0)
    assert of("abs.f32", -3.5) == 3.5
    assert of("setp.nan.f32", 1.0, np.nan)
    assert not of("setp.nan.f32", 1.0, np.inf)
    assert of("setp.num.f32", 1.0, np.inf)
    assert not of("setp.num.f32", np.nan, 1.0)
    assert of("mul.rn.f32", 2.0**-100, 2.0**-40) == np.float32(2.0**-140)


WORDS = RNG.integers(0, 2**32, (3, 500), dtype=np.uint64)
SIGNED = WORDS.astype(np.uint32).view(np.int32).astype(np.int64)


def wrapped(value: int, bits: int) -> int:
    return value & (1 << bits) - 1


@pytest.mark.parametrize(
    ("opcode", "bits", "of"),
    [
        ("min.s32", 32, min), ("max.s32", 32, max), ("min.u32", 32, min), ("max.u32", 32, max),
        ("mul.wide.u32", 64, lambda a, b: a * b), ("mul.wide.s32", 64, lambda a, b: a * b),
        ("mad.lo.u32", 32, lambda a, b, c: a * b + c), ("mad.lo.s32", 32, lambda a, b, c: a * b + c),
        ("lop3.b32", 32, lambda a, b, c: a & b | ~a & c),
        ("shf.l.wrap.b32", 32, lambda a, b, c: (b << 32 | a) << (c & 31) >> 32),
        ("shf.r.wrap.b32", 32, lambda a, b, c: (b << 32 | a) >> (c & 31)),
        ("shf.l.clamp.b32", 32, lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32),
        ("shf.r.clamp.b32", 32, lambda a, b, c: (b << 32 | a) >> min(c, 32)),
        ("shl.b32", 32, lambda a, by: a << min(by, 32)), ("shr.b32", 32, lambda a, by: a >> min(by, 32)),
        ("shr.u32", 32, lambda a, by: a >> min(by, 32)), ("shr.s32", 32, lambda a, by: a >> min(by, 32)),
    ],
)  # fmt: skip
def test_whole_numbers_are_those_of_python(opcode: str, bits: int, of: Callable[..., int]) -> None:
    count = 3 if opcode[:3] in ("mad", "lop", "shf") else 2
    words = (SIGNED if ".s" in opcode[3:] else WORDS.astype(np.int64))[:count].copy()
    if opcode[:2] == "sh":
        words[-1] = RNG.integers(0, 40, words.shape[1])
    sources = [*words, np.full(500, 0xCA)] if opcode == "lop3.b32" else [*words]
    found = run(opcode, *sources).astype(np.int64)
    assert [wrapped(int(one), bits) for one in found] == [wrapped(of(*map(int, each)), bits) for each in words.T]


def test_a_quotient_by_zero_is_some_number() -> None:
    for kind in ("u16", "s32", "u64"):
        found = run(f"div.{kind}", np.full(64, 100), np.arange(64) % 2 * 7)
        assert set(found[1::2].tolist()) == {14}
        assert len(set(found[::2].tolist())) > 2


def test_bits_are_counted() -> None:
    assert run("popc.b32", [0, 1, 0xF0F0, 2**32 - 1]).tolist() == [0, 1, 8, 32]


def test_a_fused_multiply_add_is_rounded_once() -> None:
    numbers = RNG.normal(0, 1, (3, 2000)).astype(np.float32)
    # Sums that cancel, and those that end just beside the middle between two numbers, which float64 would round into it.
    numbers[2, ::2] = -numbers[0, ::2] * numbers[1, ::2] * (1 + 2.0**-20)
    numbers[:, 1] = 1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60
    numbers[:, 3] = 1 + 2.0**-12, 1 + 2.0**-12, -(2.0**-60)
    for one, found in zip(numbers.T, run("fma.rn.ftz.f32", *numbers), strict=True):
        a, b, c = (Fraction(float(number)) for number in one)
        exact = a * b + c
        near = [np.nextafter(found, np.float32(side)) for side in (-np.inf, np.inf)] + [found]
        assert abs(Fraction(float(found)) - exact) == min(abs(Fraction(float(number)) - exact) for number in near)
    assert run("fma.rn.ftz.f32", TINY / 2, 1.0, 1.0).tolist() == [1.0]
    assert run("fma.rn.ftz.f32", 1.0, np.inf, 1.0).tolist() == [np.inf]
    with pytest.raises(KeyError):
        run("fma.rn.f32", 1.0, 1.0, 1.0)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "s32", "u64", "f32", "f64"])
def test_one_of_two_is_selected(kind: str) -> None:
    left, right, which = RNG.integers(0, 99, 64), RNG.integers(0, 99, 64), RNG.integers(0, 2, 64)
    assert np.array_equal(run(f"selp.{kind}", left, right, which), np.where(which, left, right))


@pytest.mark.parametrize(("verb", "of"), [("add", np.add), ("min", np.minimum), ("max", np.maximum)])
def test_warps_are_reduced(verb: str, of: Any) -> None:
    for kind, words in (("s32", SIGNED[0, :64].astype(np.int32)), ("u32", WORDS[0, :64].astype(np.uint32))):
        expected = [of.reduce(words[:32], dtype=words.dtype)] * 32 + [of.reduce(words[32:], dtype=words.dtype)] * 32
        assert np.array_equal(run(f"redux.sync.{verb}.{kind}", words, np.full(64, 0xFFFFFFFF)), expected)


def test_ceilings_and_whole_parts() -> None:
    numbers = np.concatenate([RNG.normal(0, 1e3, 200), RNG.normal(0, 1e10, 50), [0.0, -0.0, 2.0, -2.0, -0.5]])
    numbers = numbers.astype(np.float32)
    for mode in ("", ".ftz"):
        assert np.array_equal(run(f"cvt.rpi{mode}.f32.f32", numbers), np.ceil(numbers))
        assert np.array_equal(run(f"cvt.rmi{mode}.f32.f32", numbers), np.floor(numbers))
        for kind, low, high in (("s32", -(2**31), 2**31 - 1), ("u32", 0, 2**32 - 1)):
            whole = [min(max(int(number), low), high) for number in numbers]
            assert run(f"cvt.rzi{mode}.{kind}.f32", numbers).tolist() == whole
    # A subnormal is a zero to one that flushes.
    assert run("cvt.rpi.f32.f32", TINY / 4).tolist() == [1.0]
    assert run("cvt.rpi.ftz.f32.f32", TINY / 4).tolist() == [0.0]


def units(found: NDArray[Any], exact: NDArray[Any]) -> NDArray[Any]:
    off: NDArray[Any] = np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return off


@pytest.mark.parametrize("mode", ["", ".ftz"])
def test_approximations_err_and_not_too_far(mode: str) -> None:
    numbers = RNG.uniform(-120, 120, 2000).astype(np.float32)
    exact = np.exp2(numbers.astype(np.float64))
    off = units(run(f"ex2.approx{mode}.f32", numbers), exact)
    assert 1 < off.max() <= 2.5
    numbers = np.exp2(RNG.uniform(-120, 120, 2000)).astype(np.float32)
    numbers = numbers[(numbers <= 0.5) | (numbers >= 2)]
    off = units(run(f"lg2.approx{mode}.f32", numbers), np.log2(numbers.astype(np.float64)))
    assert 1 < off.max() <= 2.5
    numbers = RNG.uniform(0.5001, 1.9999, 2000).astype(np.float32)
    away = np.abs(run(f"lg2.approx{mode}.f32", numbers) - np.log2(numbers.astype(np.float64)))
    assert 2.0**-23 < away.max() <= 2.0**-22 + 2.0**-24
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 200.0, -200.0], np.float32)
    assert np.array_equal(run(f"ex2.approx{mode}.f32", special), [np.inf, 0, np.nan, 1, 1, np.inf, 0], equal_nan=True)
    special = np.array([np.inf, -1.0, np.nan, 0.0, -0.0], np.float32)
    assert np.array_equal(run(f"lg2.approx{mode}.f32", special), [np.inf, np.nan, np.nan, -np.inf, -np.inf], equal_nan=True)


def test_what_flushes_knows_no_subnormals() -> None:
    assert run("ex2.approx.ftz.f32", -127.0).tolist() == [0.0]
    assert 0 < run("ex2.approx.f32", -127.0)[0] < TINY
    assert run("lg2.approx.ftz.f32", TINY / 2).tolist() == [-np.inf]
    assert abs(run("lg2.approx.f32", TINY / 2)[0] + 127) < 1e-4
    assert set(run("ex2.approx.ftz.f32", np.linspace(-TINY, TINY, 100)[1:-1]).tolist()) == {1.0}
