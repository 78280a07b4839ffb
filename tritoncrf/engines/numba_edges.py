"""What does a table add that sees the image? Rows chosen by an edge's kind, and rows that its gates weigh, as numba functions.

A free site keeps a byte for each of its edges' kinds, the edge to the neighbour at +d_k and then that at -d_k, class after
class, and behind them one for each gate: for every displacement that has some, those ahead and then those behind, rank by rank.
They stand in site order as the unary rows do, so that a visit reads one stretch of memory. Where ``R (L + 1)`` is at most 256
a kind is kept times ``L + 1``: added to the neighbour's label it is the number of its row.

``gate * entry + 3072`` lies in [2048, 4096), where a float32's bits are a constant plus a whole number of grid steps: the bits
of these sums are added as integers, and no fused multiply-add can change them, for the product is exact (the contract's
extension).
"""

# mypy: disable-error-code="import-untyped, no-untyped-call, unused-ignore"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core.cgutils import get_or_insert_function

from tritoncrf import contract
from tritoncrf.engines import numba_vectors as vec
from tritoncrf.engines.numba_cache import call, entry_point, jit
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles, Whole
from tritoncrf.engines.numba_vectors import LANES, byte, load, word

Kinds = npt.NDArray[np.uint8]
Seen = tuple[int, Bytes, Integers, int, Singles, Singles]
"""R (0: no kinds), bytes of all free sites ``[B, E]``, displacements that have gates, G (0: none), rows that gates weigh,
float32 ``[Kg, 2, G, L + 1, P]``, and `FACTORS`."""
# The bits of 3072 as a float32, which every weighed entry's are counted from.
_ORIGIN = int(np.float32(contract.GATE_SHIFT).view(np.int32))
# A gate of b steps as a float32.
FACTORS = (np.arange(256, dtype=np.float32) / np.float32(contract.GATE_STEPS)).astype(np.float32)


@vec._instruction(vec._ints)
def _none(builder: Any) -> Any:
    """16 times 0."""
    return ir.Constant(vec._ints.ir, None)


@vec._instruction(vec._ints, vec._ints, vec._i64, vec._i64)
def _weigh(builder: Any, total: Any, row: Any, factor: Any) -> Any:
    """Adds the bits of ``factor * entry + 3072`` of 16 entries, both from addresses."""
    kind = vec._floats.ir
    gate = vec._spread(builder, vec._load(builder, factor, vec._FLOAT), kind)
    shape = ir.FunctionType(kind, [kind, kind, kind])
    # Fused where the machine can: the bits are the same.
    fused = get_or_insert_function(builder.module, shape, f"llvm.fmuladd.v{LANES}f32")
    shifted = builder.call(fused, [gate, vec._load(builder, row, kind), vec._all(contract.GATE_SHIFT, kind)])
    return builder.add(total, builder.bitcast(shifted, vec._ints.ir))


@vec._instruction(vec._nothing, vec._i64, vec._ints, vec._i64)
def _finish(builder: Any, energies: Any, total: Any, terms: Any) -> Any:
    """Adds the grid steps of ``terms`` weighed rows to the 16 float32 at an address."""
    kind, ints = vec._floats.ir, vec._ints.ir
    origin = builder.mul(builder.trunc(terms, vec._INT), ir.Constant(vec._INT, _ORIGIN))
    steps = builder.sitofp(builder.sub(total, vec._spread(builder, origin, ints)), kind)
    value = builder.fadd(vec._load(builder, energies, kind), builder.fmul(steps, vec._all(1 / contract.GRID, kind)))
    builder.store(value, builder.inttoptr(energies, kind.as_pointer()), align=4)


@jit
def _row(kind: int, label: Whole, plane: int, width: int, fast: bool) -> int:
    """How far on a row stands, by the kind's byte and the neighbour's label."""
    near: int = (byte(kind) + byte(label)) * width if fast else byte(kind) * plane + byte(label) * width
    return near


@jit
def _floats_32(
    here: Whole, step: int, end: int, edge: int, row: int, half: int, plane: int, width: int, start: int, out: int, fast: bool
) -> None:
    low, high = load(start), load(start + 64)
    while step < end:
        there = row + _row(edge, here + word(step), plane, width, fast)
        back = row + half + _row(edge + 1, here - word(step), plane, width, fast)
        low, high = vec.add(low, load(there)), vec.add(high, load(there + 64))
        low, high = vec.add(low, load(back)), vec.add(high, load(back + 64))
        row, step, edge = row + 2 * half, step + 8, edge + 2
    vec.store(out, low)
    vec.store(out + 64, high)


@jit
def _floats_16(
    here: Whole, step: int, end: int, edge: int, row: int, half: int, plane: int, width: int, start: int, out: int, fast: bool
) -> None:
    total = load(start)
    while step < end:
        there = row + _row(edge, here + word(step), plane, width, fast)
        back = row + half + _row(edge + 1, here - word(step), plane, width, fast)
        total = vec.add(vec.add(total, load(there)), load(back))
        row, step, edge = row + 2 * half, step + 8, edge + 2
    vec.store(out, total)


@jit
def _shorts_16(
    here: Whole, step: int, end: int, edge: int, row: int, half: int, plane: int, width: int, start: int, out: int, fast: bool
) -> None:
    a = b = vec.zero_shorts()
    while step < end:
        there = row + _row(edge, here + word(step), plane, width, fast)
        back = row + half + _row(edge + 1, here - word(step), plane, width, fast)
        a, b = vec.add_shorts(a, vec.load_shorts(there)), vec.add_shorts(b, vec.load_shorts(back))
        row, step, edge = row + 2 * half, step + 8, edge + 2
    vec.finish_shorts(start, out, a, b)


@jit
def _shorts_32(
    here: Whole, step: int, end: int, edge: int, row: int, half: int, plane: int, width: int, start: int, out: int, fast: bool
) -> None:
    a = b = vec.zero_wide()
    while step < end:
        there = row + _row(edge, here + word(step), plane, width, fast)
        back = row + half + _row(edge + 1, here - word(step), plane, width, fast)
        a, b = vec.add_wide(a, vec.load_wide(there)), vec.add_wide(b, vec.load_wide(back))
        row, step, edge = row + 2 * half, step + 8, edge + 2
    vec.finish_wide(start, out, a, b)


@call
def gather(
    here: Whole, steps: int, parts: int, count: int, rows: int, number: int, size: int, short: bool, kinds: int, edge: int,
    unary: int, energies: int,
) -> None:  # fmt: skip
    """As `numba_draw.gather`, of rows ``[K, 2, kinds, number + 1, size]``, given by their addresses as all else.

    parts: of ``count + 1`` bounds of ranges of classes; edge: of the site's bytes.
    """
    width = size * 2 if short else size * 4
    plane = (number + 1) * width
    half, fast = kinds * plane, kinds * (number + 1) <= 256
    for part in range(count):
        first, last = word(parts + 8 * part), word(parts + 8 * part + 8)
        step, end, row, e = steps + 8 * first, steps + 8 * last, rows + 2 * half * first, edge + 2 * first
        start = energies if part else unary
        for label in range(0, size - 31, 32):
            f = 4 * label
            if short and fast:
                _shorts_32(here, step, end, e, row + 2 * label, half, plane, width, start + f, energies + f, True)
            elif short:
                _shorts_32(here, step, end, e, row + 2 * label, half, plane, width, start + f, energies + f, False)
            elif fast:
                _floats_32(here, step, end, e, row + f, half, plane, width, start + f, energies + f, True)
            else:
                _floats_32(here, step, end, e, row + f, half, plane, width, start + f, energies + f, False)
        if size & 16:
            f = 4 * (size - 16)
            if short and fast:
                _shorts_16(here, step, end, e, row + f // 2, half, plane, width, start + f, energies + f, True)
            elif short:
                _shorts_16(here, step, end, e, row + f // 2, half, plane, width, start + f, energies + f, False)
            elif fast:
                _floats_16(here, step, end, e, row + f, half, plane, width, start + f, energies + f, True)
            else:
                _floats_16(here, step, end, e, row + f, half, plane, width, start + f, energies + f, False)


@jit
def _weighed_32(
    here: Whole, step: int, end: int, ranks: int, edge: int, row: int, plane: int, width: int, factors: int, energies: int
) -> None:
    low = high = _none()
    terms = 0
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + ranks * plane + byte(here - word(step)) * width
        for r in range(ranks):
            ahead, behind = factors + 4 * byte(edge + r), factors + 4 * byte(edge + ranks + r)
            low, high = _weigh(low, there, ahead), _weigh(high, there + 64, ahead)
            low, high = _weigh(low, back, behind), _weigh(high, back + 64, behind)
            there, back = there + plane, back + plane
        terms += 2 * ranks
        row, step, edge = row + 2 * ranks * plane, step + 8, edge + 2 * ranks
    _finish(energies, low, terms)
    _finish(energies + 64, high, terms)


@jit
def _weighed_16(
    here: Whole, step: int, end: int, ranks: int, edge: int, row: int, plane: int, width: int, factors: int, energies: int
) -> None:
    total = _none()
    terms = 0
    while step < end:
        there, back = row + byte(here + word(step)) * width, row + ranks * plane + byte(here - word(step)) * width
        for r in range(ranks):
            total = _weigh(total, there, factors + 4 * byte(edge + r))
            total = _weigh(total, back, factors + 4 * byte(edge + ranks + r))
            there, back = there + plane, back + plane
        terms += 2 * ranks
        row, step, edge = row + 2 * ranks * plane, step + 8, edge + 2 * ranks
    _finish(energies, total, terms)


@call
def add_gated(
    here: Whole, gating: int, end: int, ranks: int, weighed: int, factors: int, number: int, size: int, edge: int, energies: int
) -> None:
    """Adds the weighed rows of a site's neighbours to its energies, all given by their addresses.

    gating: of the displacements that have gates, up to ``end``; ranks: G; weighed: of rows float32
    ``[Kg, 2, ranks, number + 1, size]``; factors: of `FACTORS`; edge: of the site's gates.
    """
    width = size * 4
    plane = (number + 1) * width
    for label in range(0, size - 31, 32):
        f = 4 * label
        # One rank, by far the most common, without a loop over it.
        if ranks == 1:
            _weighed_32(here, gating, end, 1, edge, weighed + f, plane, width, factors, energies + f)
        else:
            _weighed_32(here, gating, end, ranks, edge, weighed + f, plane, width, factors, energies + f)
    if size & 16:
        f = 4 * (size - 16)
        _weighed_16(here, gating, end, ranks, edge, weighed + f, plane, width, factors, energies + f)


@entry_point
def listing(
    begin: int, end: int, first: Integers, position: Positions, pixels: Integers, steps: Integers, kinds: Kinds,
    kinded: Integers, factor: int, gates: Kinds, which: Integers, columns: Integers, out: Bytes,
) -> None:  # fmt: skip
    """Writes the bytes of all free sites of images ``begin`` to ``end`` to ``out`` ``[B, E]``.

    kinds: ``[N, Ck, area]``, kinded: int64 [K], where a displacement's stand, or -1; factor: what a kind is kept times; gates:
    ``[N, G, Cg, area]``, which: numbers of the displacements that have some, places: where those stand. Empty arrays where the
    model has none.
    """
    ranks, start = gates.shape[1], 2 * len(kinded)
    for image in range(begin, end):
        for t in range(first[image], first[image + 1]):
            row, p = out[t], np.int64(position[t])
            here = pixels[p]
            for k in range(len(kinded)):
                if kinded[k] >= 0:
                    row[2 * k] = kinds[image, kinded[k], here] * factor
                    row[2 * k + 1] = kinds[image, kinded[k], pixels[p - steps[k]]] * factor
                else:
                    row[2 * k] = row[2 * k + 1] = 0
            for j in range(len(which)):
                behind = pixels[p - steps[which[j]]]
                for r in range(ranks):
                    row[start + (2 * j) * ranks + r] = gates[image, r, columns[j], here]
                    row[start + (2 * j + 1) * ranks + r] = gates[image, r, columns[j], behind]
