"""Types that the interpreter keeps are those it would make anew (`quick_interpreter`); in a process that makes both."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
def test_what_is_kept_is_what_would_be_made() -> None:
    done = subprocess.run([sys.executable, "-c", COMPARED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
