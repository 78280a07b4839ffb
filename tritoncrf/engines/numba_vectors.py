"""What does numba lack? Vectors as values.

Numba turns array loops into vector code where it can prove that arrays do not overlap; a sum of table rows that are chosen at
run time is not such a loop. The functions here are a few LLVM instructions each on 16 float32 (one AVX-512 register, two of
AVX, four of SSE or NEON) and on 16 or 32 int16, among them rule 3's weight ``2^t`` of 16 labels at once. Without fast-math
flags LLVM neither fuses nor reorders any of them. Addresses are plain integers.
"""

# mypy: disable-error-code="import-untyped, no-untyped-call, unused-ignore"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba as nb
from llvmlite import ir
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model

from tritoncrf import contract
from tritoncrf.engines.numba_cache import jit

LANES = 16


class _Vector(nb.types.Type):  # type: ignore[misc]
    def __init__(self, element: Any, lanes: int) -> None:
        self.ir = ir.VectorType(element, lanes)
        super().__init__(name=f"tritoncrf {self.ir}")


@register_model(_Vector)  # type: ignore[untyped-decorator]
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.ir)


_BYTE, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_floats, _shorts, _wide = _Vector(_FLOAT, LANES), _Vector(ir.IntType(16), LANES), _Vector(ir.IntType(16), 2 * LANES)
_ints, _DOUBLES = _Vector(_INT, LANES), ir.VectorType(ir.DoubleType(), 4)
_i64, _f32, _f64, _nothing = nb.types.int64, nb.types.float32, nb.types.float64, nb.types.void


def _instruction(result: Any, *kinds: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A numba function of arguments of these kinds from ``build(builder, *values) -> value``."""

    def wrap(build: Callable[..., Any]) -> Callable[..., Any]:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = build(builder, *arguments)
            return context.get_dummy_value() if result is nb.types.void else value

        # numba counts the parameters of the typing function.
        typings: dict[int, Callable[..., Any]] = {
            0: lambda context: (result(), codegen),
            1: lambda context, a: (result(*kinds), codegen),
            2: lambda context, a, b: (result(*kinds), codegen),
            3: lambda context, a, b, c: (result(*kinds), codegen),
            4: lambda context, a, b, c, d: (result(*kinds), codegen),
        }
        return cast(Callable[..., Any], intrinsic(typings[len(kinds)]))

    return wrap


def _all(value: float, kind: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, kind.count), None))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@jit
def address(array: Any) -> int:
    """Where an array's data lie. Signed: numba makes a float64 of a signed and an unsigned number together."""
    return nb.int64(array.ctypes.data)  # type: ignore[no-any-return]


@jit
def keep(array: Any) -> None:
    """Frees an array no earlier than here: numba lets go of it after its last use, and an address is none."""


@_instruction(_i64, _i64)
def byte(builder: Any, address: Any) -> Any:
    """The byte at an address."""
    return builder.zext(_load(builder, address, _BYTE), _LONG)


@_instruction(_i64, _i64)
def word(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return _load(builder, address, _LONG)


@_instruction(_i64, _i64)
def half(builder: Any, address: Any) -> Any:
    """The int32 at an address, which must not be negative."""
    return builder.zext(_load(builder, address, _INT), _LONG)


@_instruction(nb.types.void, _i64)
def prefetch(builder: Any, address: Any) -> Any:
    """Asks for the cache line at an address."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, _BYTE.as_pointer()), *(ir.Constant(_INT, k) for k in (0, 3, 1))])


@_instruction(_i64, _i64)
def trailing(builder: Any, bits: Any) -> Any:
    """The number of the lowest bit set; bits must not be 0."""
    return builder.cttz(bits, ir.Constant(ir.IntType(1), 1))


@_instruction(_floats, _i64)
def load(builder: Any, address: Any) -> Any:
    """16 float32 from an address."""
    return _load(builder, address, _floats.ir)


@_instruction(_floats, _i64)
def load_steps(builder: Any, address: Any) -> Any:
    """16 int16 in steps of the grid from an address, as float32."""
    steps = builder.sitofp(builder.sext(_load(builder, address, _shorts.ir), _ints.ir), _floats.ir)
    return builder.fmul(steps, _all(1 / contract.GRID, _floats.ir))


@_instruction(_floats, _floats, _f32)
def gated(builder: Any, entries: Any, gate: Any) -> Any:
    """16 entries as a gate weighs them: a product that is exact, put on the grid."""
    shift = _all(contract.GATE_SHIFT, entries.type)
    return builder.fsub(builder.fadd(builder.fmul(entries, _spread(builder, gate, entries.type)), shift), shift)


@_instruction(_shorts, _i64)
def load_shorts(builder: Any, address: Any) -> Any:
    """16 int16 from an address."""
    return _load(builder, address, _shorts.ir)


@_instruction(_wide, _i64)
def load_wide(builder: Any, address: Any) -> Any:
    """32 int16 from an address."""
    return _load(builder, address, _wide.ir)


@_instruction(_shorts)
def zero_shorts(builder: Any) -> Any:
    """16 times 0."""
    return ir.Constant(_shorts.ir, None)


@_instruction(_wide)
def zero_wide(builder: Any) -> Any:
    """32 times 0."""
    return ir.Constant(_wide.ir, None)


@_instruction(nb.types.void, _i64, _i64)
def add_doubles(builder: Any, target: Any, source: Any) -> Any:
    """Adds four float64 from an address to those at another."""
    own = _load(builder, target, _DOUBLES)
    builder.store(builder.fadd(own, _load(builder, source, _DOUBLES)), builder.inttoptr(target, _DOUBLES.as_pointer()), align=8)


@_instruction(nb.types.void, _i64, _floats)
def store(builder: Any, address: Any, value: Any) -> Any:
    """16 float32 to an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


@_instruction(_floats, _floats, _floats)
def add(builder: Any, a: Any, b: Any) -> Any:
    """16 sums of float32."""
    return builder.fadd(a, b)


@_instruction(_shorts, _shorts, _shorts)
def add_shorts(builder: Any, a: Any, b: Any) -> Any:
    """16 sums of int16."""
    return builder.add(a, b)


@_instruction(_wide, _wide, _wide)
def add_wide(builder: Any, a: Any, b: Any) -> Any:
    """32 sums of int16."""
    return builder.add(a, b)


def _finish(builder: Any, start: Any, out: Any, a: Any, b: Any) -> Any:
    ints, kind = (ir.VectorType(element, a.type.count) for element in (_INT, _FLOAT))
    steps = builder.sitofp(builder.add(builder.sext(a, ints), builder.sext(b, ints)), kind)
    energies = builder.fadd(_load(builder, start, kind), builder.fmul(steps, _all(1 / contract.GRID, kind)))
    builder.store(energies, builder.inttoptr(out, kind.as_pointer()), align=4)


@_instruction(nb.types.void, _i64, _i64, _shorts, _shorts)
def finish_shorts(builder: Any, start: Any, out: Any, a: Any, b: Any) -> Any:
    """Writes the float32 at ``start`` plus the grid steps ``a + b`` to ``out``."""
    _finish(builder, start, out, a, b)


@_instruction(nb.types.void, _i64, _i64, _wide, _wide)
def finish_wide(builder: Any, start: Any, out: Any, a: Any, b: Any) -> Any:
    """`finish_shorts` of 32."""
    _finish(builder, start, out, a, b)


@_instruction(_floats, _floats, _floats)
def smaller(builder: Any, a: Any, b: Any) -> Any:
    """The smaller of each pair; no NaN may come."""
    return _smaller(builder, a, b)


@_instruction(_f32, _floats)
def lowest(builder: Any, value: Any) -> Any:
    """The smallest of 16."""
    for step in (8, 4, 2, 1):
        turn = ir.Constant(ir.VectorType(_INT, LANES), [(lane + step) % LANES for lane in range(LANES)])
        value = _smaller(builder, value, builder.shuffle_vector(value, value, turn))
    return builder.extract_element(value, ir.Constant(_INT, 0))


@_instruction(_floats, _floats, _f32, _f32)
def weigh(builder: Any, energies: Any, low: Any, scale: Any) -> Any:
    """Rule 3's weights of 16 energies, given the lowest of their site and the scale."""
    kind, ints = energies.type, ir.VectorType(_INT, LANES)
    below = builder.fsub(_spread(builder, low, kind), energies)
    t = builder.fmul(below, _spread(builder, scale, kind))
    near = builder.fcmp_ordered(">", below, _all(-contract.CUTOFF, kind))
    least = _all(contract.MIN_EXPONENT, kind)
    large = builder.fcmp_ordered(">=", t, least)
    t = builder.select(large, t, least)
    # llvmlite's declare_intrinsic knows no vectors.
    floor = get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), f"llvm.floor.v{LANES}f32")
    whole = builder.call(floor, [t])
    part = builder.fsub(t, whole)
    value = builder.fmul(_all(contract.POLYNOMIAL[0], kind), part)
    for coefficient in contract.POLYNOMIAL[1:]:
        value = builder.fmul(builder.fadd(value, _all(coefficient, kind)), part)
    value = builder.fadd(value, _all(1.0, kind))
    exponent = builder.add(builder.fptosi(whole, ints), _all(127, ints))
    power = builder.bitcast(builder.shl(exponent, _all(23, ints)), kind)
    return builder.select(builder.and_(near, large), builder.fmul(value, power), _all(0.0, kind))


@_instruction(nb.types.void, _i64, _i64, _f64)
def accumulate(builder: Any, target: Any, weight: Any, times: Any) -> Any:
    """Adds 4 float32 from one address times a number to the 4 float64 at another."""
    kind, wide = ir.VectorType(_FLOAT, 4), ir.VectorType(ir.DoubleType(), 4)
    share = builder.fmul(builder.fpext(_load(builder, weight, kind), wide), _spread(builder, times, wide))
    builder.store(builder.fadd(_load(builder, target, wide), share), builder.inttoptr(target, wide.as_pointer()), align=8)


@_instruction(_i64, _i64, _i64, _f32)
def doubtful(builder: Any, uniforms: Any, odds: Any, sure: Any) -> Any:
    """A bit for each of 16 sites whose ``u * (1 + odds)``, from two addresses, is not below ``sure``."""
    kind = _floats.ir
    product = builder.fmul(_load(builder, uniforms, kind), builder.fadd(_load(builder, odds, kind), _all(1.0, kind)))
    # Unordered: a NaN is doubtful too.
    found = builder.fcmp_unordered(">=", product, _spread(builder, sure, kind))
    return builder.zext(builder.bitcast(found, ir.IntType(LANES)), _LONG)
