"""What does a node gather, and whom does its flip reach? Compiled loops over the factors of a graph's nodes.

A node's factors stand side by side in one list of int32, section by section: pairs, triples, quadruples, each of them plain or
gated. A factor's record holds the other members' positions, the number of a row, and a gate in steps of 1 / 128. The row
that is read is that number plus the other members' labels as digits of base L + 1; the rows of void are zero. `numba_nets`
makes both.
"""

from __future__ import annotations

import numpy as np

from tritoncrf import contract
from tritoncrf.engines import numba_vectors as vec
from tritoncrf.engines.numba_cache import call, jit
from tritoncrf.engines.numba_draw import Integers, Positions, Singles, Whole
from tritoncrf.engines.numba_vectors import address, byte, half, load, prefetch, word

_LOW = 0xFFFFFFFF
_PAIRS = 4
_STEP = np.float32(1 / contract.GATE_STEPS)
Net = tuple[Integers, Integers, Positions, int]
"""Sections (twice the arity, one more if gated), where each node's sections begin in the list, the list, and how many rows of
int16 add up without overflow, 0 where rows are float32."""


@jit
def _row(record: int, here: int, rows: int, stride: int) -> int:
    """The row that a plain pair reads."""
    found: int = rows + ((record >> 32) + byte(here + (record & _LOW))) * stride
    return found


@jit
def _shorts_32(here: int, end: int, stop: int, block: int, rows: int, stride: int, start: int, out: int) -> None:
    while True:
        last = min(stop, end + block)
        a = b = vec.zero_wide()
        while end + 8 < last:
            a = vec.add_wide(a, vec.load_wide(_row(word(end), here, rows, stride)))
            b = vec.add_wide(b, vec.load_wide(_row(word(end + 8), here, rows, stride)))
            end += 16
        if end < last:
            a = vec.add_wide(a, vec.load_wide(_row(word(end), here, rows, stride)))
            end += 8
        vec.finish_wide(start, out, a, b)
        start = out
        if end >= stop:
            break


@jit
def _shorts_16(here: int, end: int, stop: int, block: int, rows: int, stride: int, start: int, out: int) -> None:
    while True:
        last = min(stop, end + block)
        a = b = vec.zero_shorts()
        while end + 8 < last:
            a = vec.add_shorts(a, vec.load_shorts(_row(word(end), here, rows, stride)))
            b = vec.add_shorts(b, vec.load_shorts(_row(word(end + 8), here, rows, stride)))
            end += 16
        if end < last:
            a = vec.add_shorts(a, vec.load_shorts(_row(word(end), here, rows, stride)))
            end += 8
        vec.finish_shorts(start, out, a, b)
        start = out
        if end >= stop:
            break


@jit
def _floats_16(here: int, end: int, stop: int, rows: int, stride: int, start: int, out: int) -> None:
    total = load(start)
    while end < stop:
        total = vec.add(total, load(_row(word(end), here, rows, stride)))
        end += 8
    vec.store(out, total)


@jit
def _any_16(
    here: int, end: int, stop: int, others: int, gated: int, base: int, rows: int, stride: int, short: bool, start: int,
    out: int,
) -> None:  # fmt: skip
    """Factors of any arity, plain or gated, one by one."""
    total = load(start)
    while end < stop:
        digits = 0
        for k in range(others):
            digits = digits * base + byte(here + half(end + 4 * k))
        row = rows + (half(end + 4 * others) + digits) * stride
        entries = vec.load_steps(row) if short else load(row)
        if gated:
            entries = vec.gated(entries, np.float32(half(end + 4 * others + 4)) * _STEP)
        total = vec.add(total, entries)
        end += 4 * (others + 1 + gated)
    vec.store(out, total)


@call
def gather(
    here: int, sections: int, number: int, cuts: int, ends: int, rows: int, labels: int, size: int, block: int, unary: int,
    energies: int,
) -> None:  # fmt: skip
    """Writes a node's ``size`` padded energies to address ``energies``.

    here: address of its chain's labels; sections: of the ``number`` kinds of sections; cuts: of where this node's begin; ends,
    rows: of the list and of the rows; block: as `Net` has it; unary: address of its unary row.
    """
    stride, source = size * 2 if block else size * 4, unary
    for k in range(number):
        kind, end, stop = word(sections + 8 * k), ends + 4 * word(cuts + 8 * k), ends + 4 * word(cuts + 8 * k + 8)
        label = 0
        if kind == _PAIRS and block:
            while label + 32 <= size:
                _shorts_32(here, end, stop, 8 * block, rows + 2 * label, stride, source + 4 * label, energies + 4 * label)
                label += 32
            if label < size:
                _shorts_16(here, end, stop, 8 * block, rows + 2 * label, stride, source + 4 * label, energies + 4 * label)
        elif kind == _PAIRS:
            for label in range(0, size, 16):
                _floats_16(here, end, stop, rows + 4 * label, stride, source + 4 * label, energies + 4 * label)
        else:
            others, gated, width = (kind >> 1) - 1, kind & 1, 2 if block else 4
            for label in range(0, size, 16):
                _any_16(
                    here, end, stop, others, gated, labels + 1, rows + width * label, stride, block > 0, source + 4 * label,
                    energies + 4 * label,
                )  # fmt: skip
        source = energies
    if number == 0:
        for label in range(0, size, 16):
            vec.store(energies + 4 * label, load(unary + 4 * label))


@jit
def ask(cuts: int, number: int, ends: int) -> None:
    """Asks for a node's list."""
    for line in range(ends + 4 * word(cuts), ends + 4 * word(cuts + 8 * number), 64):
        prefetch(line)


@call
def push(
    sections: int, number: int, cuts: int, ends: int, place: Positions, push: Singles, old: Whole, new: Whole, chances: Singles
) -> None:  # fmt: skip
    """Raises the odds of the neighbours of a node of pairs alone, whose label went from ``old`` to ``new``.

    push: by how much a label that comes or goes can, at the number of the row that the node itself reads plus its label.
    """
    for k in range(number):
        end, stop, gated = ends + 4 * word(cuts + 8 * k), ends + 4 * word(cuts + 8 * k + 8), word(sections + 8 * k) & 1
        while end < stop:
            record = word(end)
            row, there = record >> 32, np.uint64(place[np.uint64(record & _LOW)])
            chances[there] *= push[np.uint64(row + new)] * push[np.uint64(row + old)]
            end += 12 if gated else 8


@jit
def addresses(net: Net) -> tuple[int, int, int, int, int]:
    """Numbers, not arrays, for the loops: of sections, how many, of cuts, of the list, and the block."""
    return address(net[0]), len(net[0]), address(net[1]), address(net[2]), net[3]
