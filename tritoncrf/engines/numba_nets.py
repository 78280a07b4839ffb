"""Where does a node find its neighbours, and what can they add? Lists of factors, and the rows of their tables.

Nodes are listed graph by graph and colour by colour, and their factors in that order, so that a sweep reads one list from end
to end. A table has a block of rows for each of its axes: what a node on that axis gathers, by the labels of the other members
with void as one more, padded to whole vectors; int16 in steps of the grid where all entries fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tritoncrf import contract
from tritoncrf.engines import Factors, Tables
from tritoncrf.engines.numba_cache import entry_point
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions
from tritoncrf.engines.numba_rows import SHORT, aligned
from tritoncrf.engines.numba_sites import Array
from tritoncrf.engines.numba_threads import share

# Rows that must fit into a sum of int16, or float32 is the better choice; and as many as do where all entries are 0.
FEW, MANY = 4, 1 << 20


@dataclass(frozen=True)
class Lists:
    """The factors of all free nodes, B of them; independent of energies."""

    sections: Array
    """int64 [K]: twice the arity, one more for gated factors."""
    cuts: Array
    """int64 [B * K + 1]: where the sections of each node begin in ``ends``."""
    ends: Array
    """int32: records, as `numba_graphs` reads them."""


@dataclass(frozen=True)
class GraphRows:
    """Tables as rows."""

    rows: Array
    """Bytes of [rows, P]."""
    block: int
    """How many rows of int16 add up without overflow; 0 where rows are float32."""
    grid: tuple[Array, ...]
    """float32 [kinds, L, .., L] a class: the tables themselves, in steps of the grid."""


def lists(factors: Factors, first: Array, slot: Array) -> Lists:
    """Lists of free nodes; first: int64 [N + 1], where each graph's begin among them; slot: int32 [B]."""
    node = slot + np.repeat(factors.first[:-1].numpy(), np.diff(first))
    parts = []
    for part in factors.ends:
        gates = np.zeros(0, np.uint8) if part.gate is None else part.gate.numpy()
        # A gate of 1 weighs nothing.
        whole = gates == contract.GATE_STEPS
        parts += [(2 * part.arity, part, gates)] if not len(gates) or whole.any() else []
        parts += [(2 * part.arity + 1, part, gates)] if not whole.all() else []
    sections = np.array([kind for kind, _, _ in parts], np.int64)
    cuts, even = np.zeros(len(slot) * len(parts) + 1, np.int64), np.arange(len(slot) + 1)
    for k, (kind, part, gates) in enumerate(parts):
        share(counting, even, node, part.pointer.numpy(), part.factor.numpy(), gates, kind, k, len(parts), cuts)
    np.cumsum(cuts, out=cuts)
    ends, base = np.empty(int(cuts[-1]), np.int32), _blocks(factors)
    for k, (kind, part, gates) in enumerate(parts):
        share(
            listing, even, node, part.pointer.numpy(), part.factor.numpy(), part.axis.numpy(), part.others.numpy(),
            part.table.numpy(), gates, base, kind, k, len(parts), cuts, ends,
        )  # fmt: skip
    return Lists(sections, cuts, ends)


def _blocks(factors: Factors) -> Integers:
    """int64 [tables + 1, 4]: the first row of each axis of each table; the last entry is the number of rows.

    Raises ValueError where an int32 cannot number them.
    """
    sizes = np.zeros((sum(factors.kinds) + 1, 4), np.int64)
    begin = 0
    for arity, kinds in zip(factors.arities, factors.kinds, strict=True):
        sizes[begin : begin + kinds, :arity] = (factors.num_labels + 1) ** (arity - 1)
        begin += kinds
    ends = sizes.reshape(-1).cumsum()
    if ends[-1] >= 1 << 31:
        raise ValueError(f"factors: expected tables of fewer than 2^31 rows for the numba engine, got {ends[-1]}")
    return ends.reshape(sizes.shape) - sizes


def rows_of(factors: Factors, tables: Tables, width: int) -> GraphRows:
    number = factors.num_labels
    flat, grid, begin = (contract.round_pairwise(tables.pairwise) * contract.GRID).numpy(), [], 0
    for arity, kinds in zip(factors.arities, factors.kinds, strict=True):
        size = kinds * number**arity
        grid.append(flat[begin : begin + size].reshape(kinds, *[number] * arity))
        begin += size
    largest = float(np.abs(flat).max(initial=0))
    fit = MANY if largest == 0 else int(SHORT // largest)
    block = 2 * min(fit, MANY) if fit >= FEW else 0
    rows = aligned((int(_blocks(factors)[-1, -1]), width), np.int16 if block else np.float32)
    begin = 0
    for part in grid:
        arity = part.ndim - 1
        size = len(part) * arity * (number + 1) ** (arity - 1)
        here = rows[begin : begin + size].reshape(len(part), arity, *[number + 1] * (arity - 1), width)
        begin += size
        for axis in range(arity):
            moved = np.moveaxis(part, axis + 1, -1)
            here[:, axis][(slice(None), *[slice(number)] * arity)] = moved if block else moved / np.float32(contract.GRID)
    return GraphRows(rows.reshape(-1).view(np.uint8), block, tuple(grid))


def push_of(rows: GraphRows, scale: float) -> Array:
    """By how much a label that comes to a node, or goes, can raise a neighbour's odds, of pairs alone: float32 [rows].

    At the row that the node itself reads plus its own label, as `numba_graphs.push` has it. A gate of less than 1 takes
    nothing away from a spread but adds none to it either: it is a monotone function of entries, nowhere steeper than 1.
    """
    parts = []
    for part in rows.grid:
        spread = np.zeros((len(part), 2, part.shape[1] + 1))
        steps = part.astype(np.float64) / contract.GRID
        spread[:, 0, :-1], spread[:, 1, :-1] = np.ptp(steps, axis=2), np.ptp(steps, axis=1)
        parts.append(spread.reshape(-1))
    with np.errstate(over="ignore"):
        found: Array = (np.exp2(np.concatenate(parts) * scale) * (1 + 2.0**-16)).astype(np.float32)
    return found


@entry_point
def counting(
    begin: int, end: int, node: Integers, pointer: Integers, factor: Positions, gates: Bytes, kind: int, k: int, number: int,
    cuts: Integers,
) -> None:  # fmt: skip
    """Writes how long section k of nodes ``begin`` to ``end`` is, in int32, behind each one's place in ``cuts``."""
    gated, size = kind & 1, (kind >> 1) + (kind & 1)
    for t in range(begin, end):
        found = 0
        for e in range(pointer[node[t]], pointer[node[t] + 1]):
            found += len(gates) == 0 or (gates[factor[e]] != 128) == gated
        cuts[t * number + k + 1] = found * size


@entry_point
def listing(
    begin: int, end: int, node: Integers, pointer: Integers, factor: Positions, axis: Bytes, others: npt.NDArray[np.int32],
    table: Positions, gates: Bytes, base: Integers, kind: int, k: int, number: int, cuts: Integers, ends: Positions,
) -> None:  # fmt: skip
    """Writes the records of section k of nodes ``begin`` to ``end``."""
    gated, arity = kind & 1, kind >> 1
    for t in range(begin, end):
        at = cuts[t * number + k]
        for e in range(pointer[node[t]], pointer[node[t] + 1]):
            f = factor[e]
            if len(gates) == 0 or (gates[f] != 128) == gated:
                for j in range(arity - 1):
                    ends[at + j] = others[e, j]
                ends[at + arity - 1] = base[table[f], axis[e]]
                if gated:
                    ends[at + arity] = gates[f]
                at += arity + gated


@entry_point
def factor_counts(
    begin: int, end: int, replicas: int, labels: Bytes, members: Integers, first: Integers, table: Positions,
    gates: Bytes, unit: int, starts: Integers, number: int, counts: Integers,
) -> None:  # fmt: skip
    """Adds how often factors ``begin`` to ``end`` read each entry to ``counts`` ``[N * R, entries]``, of labels ``[N * R,
    volume]``; a factor counts ``unit``, or its gate in steps."""
    for f in range(begin, end):
        graph = np.searchsorted(first, members[f, 0], side="right") - 1 if len(first) > 2 else 0
        weight = np.int64(gates[f]) if len(gates) else unit
        for chain in range(graph * replicas, (graph + 1) * replicas):
            place, void = 0, False
            for j in range(members.shape[1]):
                label = np.int64(labels[chain, members[f, j] - first[graph]])
                void = void or bool(label >= number)
                place = place * number + int(label)
            if not void:
                counts[chain, starts[table[f]] + place] += weight


@entry_point
def factor_errors(
    begin: int, end: int, replicas: int, data: Bytes, free: Bytes, members: Integers, first: Integers, table: Positions,
    gates: Bytes, unit: int, starts: Integers, number: int, errors: Integers,
) -> None:  # fmt: skip
    """As `factor_counts`, of ``data`` minus ``free``, all chains together: int64 ``[entries]``."""
    for f in range(begin, end):
        graph = np.searchsorted(first, members[f, 0], side="right") - 1 if len(first) > 2 else 0
        weight = np.int64(gates[f]) if len(gates) else unit
        for chain in range(graph * replicas, (graph + 1) * replicas):
            one, other, void = 0, 0, False
            for j in range(members.shape[1]):
                place = members[f, j] - first[graph]
                a, b = np.int64(data[chain, place]), np.int64(free[chain, place])
                void = void or bool(a >= number) or bool(b >= number)
                one, other = one * number + int(a), other * number + int(b)
            if not void and one != other:
                errors[starts[table[f]] + one] += weight
                errors[starts[table[f]] + other] -= weight
