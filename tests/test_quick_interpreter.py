"""What the interpreter keeps is what it would make anew, and what it skips nobody would see (`quick_interpreter`)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPARED = """
from tests import quick_interpreter
from triton.language import core
from triton.runtime import interpreter

scalars = [core.int1, core.uint8, core.int32, core.int64, core.float32, core.float64]
pointers = [core.pointer_type(kind) for kind in scalars] + [core.pointer_type(core.int8, const=True)]
shapes = [[1], [4], [2, 8], [core.constexpr(2), core.constexpr(4)]]

def made():
    types = [*scalars, *pointers, *(core.block_type(kind, shape) for kind in [*scalars, *pointers] for shape in shapes)]
    tensors = [core.tensor(None, kind) for kind in types]
    told = [(str(t), t.is_block(), t.scalar, str(getattr(t, "shape", "")), getattr(t, "numel", 1), t.mangle()) for t in types]
    told += [([s.value for s in t.shape], t.numel.value, t.dtype, type(t.shape).__name__) for t in tensors]
    dtypes = [interpreter._get_np_dtype(t) for t in types]
    values = [3, core.constexpr(4), None, "a", [core.constexpr(1), 2], (core.constexpr(1),), core.tuple([core.constexpr(5)])]
    return types, told, dtypes, [str(core._unwrap_if_constexpr(value)) for value in values]

before = made()
install = quick_interpreter.install
install()
after, again = made(), made()
assert before[1:] == after[1:] == again[1:], (before[1:], after[1:])
assert all(a == b for a, b in zip(before[0], after[0], strict=True))
assert all(a is b for a, b in zip(after[0], again[0], strict=True))
shared = core.block_type(core.pointer_type(core.int32, "shared"), [4])
assert shared.element_ty.address_space == "shared"
try:
    core.block_type(core.int32, [3])
except ValueError:
    pass
else:
    raise AssertionError("3 is no power of two")
"""


# Kernels that call functions of their own and of the language's, overflow, broadcast and fail; told with the language's state.
LAUNCHED = """
import blind, sys, torch, triton, triton.language as tl
from triton.runtime import interpreter

@triton.jit
def inner(x, y):
    return tl.sum(x[:, None] * y[None, :], 1)

@triton.jit
def middle(x, y):
    return inner(x, y) + tl.max(x, 0) + tl.cumsum(y, 0)

@triton.jit
def kernel(out, wide, n, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = at + 2147483640
    tl.store(out + at, middle(x, at - 1) * 3, at < n)
    row = tl.arange(0, 2)[:, None]
    tl.store(wide + row * SIZE + at[None, :], (row + 1) * at[None, :].to(tl.float32) / 7)
    tl.static_assert((row * at[None, :]).shape[1] == SIZE)
    tl.static_assert((at[None, :] * row).numel == 2 * SIZE)
    for k in range(2):
        tl.store(out + SIZE + k, k - 5)

@triton.jit
def numbers(floats, ints, KIND: tl.constexpr):
    at = tl.arange(0, 4)
    small, real, one = at.to(tl.uint8), at.to(tl.float32) - 1, tl.load(ints)
    whole = (at + 1, 1 + at, at - 5, 5 - at, at * 70000, at.to(tl.int64) * 70000, small + 200, small + 1 + at, at % 3, at // 2)
    whole += (at == 1, 1 == at, at * True, one + at, at + one, -at * 3, at & 1, small * small, one.to(tl.int64) + at, ~at | 5)
    for k in tl.static_range(20):
        tl.store(ints + 4 * k + 4 + at, whole[k])
    parts = (real + 1, 1 + real, real * 1.5, 1.5 - real, real / 2, 1 / (real + 3), real * 0.0, real * -0.0, 0.0 - real)
    parts += (-0.0 - real, real + 1.0, at + 1.0, at * 0.5, at / 3, real * at, one * real, tl.where(at > 1, real, 7))
    half, wide = (real / 11).to(tl.float16), real.to(tl.float64)
    parts += (real > 0.5, real % 2, real * 2, real * float("inf"), real + float("nan"), half * 1e-3, wide * 1e-3, at * 2.0)
    parts += (at * 2, 2147483647 * at, 2147483647.0 * at, small * 70 + at * 70, half + half, half / (real + 4).to(tl.float16))
    parts += (at * 2147483647, at * 2147483647.0, half * half)
    for k in tl.static_range(34):
        tl.store(floats + 4 * k + at, parts[k])
    tl.store(136 + floats + at[:, None] * 2 + tl.arange(0, 2), real[:, None] + tl.arange(0, 2) * 3)
    if KIND == 1:
        tl.store(ints + at, small - -1)
    if KIND == 2:
        tl.store(ints + at, small + 300)
    if KIND == 3:
        tl.store(ints + at, at // small)
    if KIND == 4:
        tl.store(ints + at, floats + 1.5)

@triton.jit
def failing(out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), missing)

@triton.jit
def calling(out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), blind.twice(tl.arange(0, N)))

def patched():
    places = [tl, tl.math, tl.tensor]
    return [sorted(n for n, m in vars(place).items() if getattr(m, "__triton_builtin__", False)) for place in places]

if "quick" in sys.argv:
    from tests import quick_interpreter
    quick_interpreter.install()
first = patched()
for n in (8, 5):
    out, wide = torch.zeros(16, dtype=torch.int32), torch.zeros(2, 8)
    kernel[(1,)](out, wide, n, 8)
    print(out.tolist(), wide.tolist(), [len(part) for part in patched()], patched() == first)
    for wrong in (failing, calling) if n == 8 else (failing,):
        try:
            wrong[(1,)](out, 4)
        except Exception as error:
            print(type(error).__name__, error, patched() == first)
floats, ints = torch.zeros(144, dtype=torch.float64), torch.ones(84, dtype=torch.int64)
for kind in (0, 1, 2, 3, 4, 0):
    try:
        numbers[(1,)](floats, ints, kind)
    except Exception as error:
        print(type(error).__name__, error)
    print(floats.tolist(), ints.tolist())
object.__setattr__(interpreter.interpreter_builder.options, "debug", True)
try:
    kernel[(1,)](out, wide, 8, 8)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
def test_launches_are_as_ever(tmp_path: Path) -> None:
    (tmp_path / "launched.py").write_text(LAUNCHED)
    # Its globals show no triton.language.
    (tmp_path / "blind.py").write_text("from triton import jit\n\n\n@jit\ndef twice(x):\n    return x + x\n")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    said = []
    for words in ([], ["quick"]):
        command = [sys.executable, str(tmp_path / "launched.py"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "overflow detected" in said[0]
    assert "triton.language must be visible" in said[0]
    assert said[0].count("True") == 5
    for sentence in ("negative scalar", "out of range for type uint8", "different signedness", "of type pointer<fp64>"):
        assert sentence in said[0]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
def test_what_is_kept_is_what_would_be_made() -> None:
    done = subprocess.run([sys.executable, "-c", COMPARED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
@pytest.mark.parametrize("missing", [
    "semantic.TritonSemantic", "semantic.TritonSemantic.binary_op_sanitize_overflow_impl",
    "semantic.TritonSemantic.broadcast_impl_value", "semantic.TritonSemantic.binary_op_type_checking_impl",
    "interpreter._patch_lang", "interpreter._patch_attr",
])  # fmt: skip
def test_a_release_without_a_name_is_left_alone(missing: str) -> None:
    code = (
        "from triton.language import semantic; from triton.runtime import interpreter; "
        f"from tests import quick_interpreter; del {missing}; quick_interpreter.install()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
