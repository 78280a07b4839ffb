"""What can a neighbour add? The tables as rows to read, and by how much a flip can raise a neighbour's odds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritoncrf import contract
from tritoncrf.engines import Plan, Tables
from tritoncrf.engines.numba_sites import Array

LINE, SHORT = 64, 32767


@dataclass(frozen=True)
class Rows:
    """Tables by class, end of the edge, kind and the neighbour's label."""

    rows: Array
    """Bytes of [K, 2, R, L + 1, P]: of neighbours at +d_k, then at -d_k, by label; a void neighbour's row is zero."""
    short: bool
    """int16 in steps of the grid, which every entry fits, or else float32."""
    parts: Array
    """int64: bounds of ranges of classes whose int16 sums cannot overflow."""
    grid: Array
    """float32 [K, R, L, L]: the tables themselves, in steps of the grid."""
    weighed: Array
    """float32 [Kg, 2, G, L + 1, P]: rows that gates weigh, as `rows`."""


def rows_of(plan: Plan, tables: Tables, width: int) -> Rows:
    pairwise = contract.round_pairwise(tables.pairwise)[list(plan.classes)] * contract.GRID
    grid = (pairwise if plan.kinded else pairwise[:, None]).numpy()
    classes, labels = len(grid), plan.num_labels
    largest = np.abs(grid).max((1, 2, 3), initial=0).tolist()
    short = max(largest, default=0) <= SHORT
    parts, total = [0], 0.0
    for k, size in enumerate(largest):
        total += size
        if short and total > SHORT:
            parts.append(k)
            total = size
    rows = aligned((classes, 2, plan.num_kinds, labels + 1, width), np.int16 if short else np.float32)
    rows[:, 0, :, :-1, :labels] = grid.transpose(0, 1, 3, 2)
    rows[:, 1, :, :-1, :labels] = grid
    if not short:
        rows /= contract.GRID
    return Rows(
        rows.reshape(-1).view(np.uint8), short, np.array([*parts, classes], np.int64), grid, _weighed(plan, tables, width)
    )


def _weighed(plan: Plan, tables: Tables, width: int) -> Array:
    if plan.edges is None or tables.gated is None:
        return np.zeros((0, 2, 0, 1, width), np.float32)
    columns = [plan.edges.gating[k] for k in plan.edges.gated]
    gated = contract.round_pairwise(tables.gated)[:, columns].transpose(0, 1).numpy()
    rows = aligned((len(gated), 2, gated.shape[1], plan.num_labels + 1, width), np.float32)
    rows[:, 0, :, :-1, : plan.num_labels] = gated.transpose(0, 1, 3, 2)
    rows[:, 1, :, :-1, : plan.num_labels] = gated
    return rows


def aligned(shape: tuple[int, ...], kind: Any) -> Array:
    """Zeros that begin on a cache line, so that a row of 32 labels covers as few as it can."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    room = np.zeros(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    aligned: Array = room[start : start + size].view(kind).reshape(shape)
    return aligned


def factors(tables: Rows, labels: int, scale: float) -> tuple[Array, Array]:
    """By how much a label that comes or goes can raise the odds of the neighbour at +d_k, -d_k: float32.

    ``[R * (L + 1), 2K]`` for the tables' sake, ``[9 * (L + 1), 2 Kg G]`` for that of gates of up to 0 to 8 eighths.
    """
    # Largest minus smallest entry of the row that a neighbour reads of a label: the one at +d_k has the label at -d_k.
    grid = tables.grid.astype(np.float64) / contract.GRID
    spread = np.zeros((grid.shape[1], labels + 1, len(grid), 2))
    spread[:, :-1] = np.stack([np.ptp(grid, axis=3), np.ptp(grid, axis=2)], -1).transpose(1, 2, 0, 3)
    rows = tables.weighed[:, ::-1, :, :, :labels].astype(np.float64)
    steep = np.ptp(rows, axis=4).transpose(3, 0, 1, 2).reshape(rows.shape[3], 2 * len(rows) * rows.shape[2])
    # Rounding to the grid may add a step, but never to more than the whole spread.
    eighths = np.arange(9)[:, None, None] / 8
    steep = np.where(eighths > 0, np.minimum(steep, eighths * steep + 1 / contract.GRID), 0.0)
    flat = spread.reshape(grid.shape[1] * (labels + 1), 2 * len(grid)), steep.reshape(9 * rows.shape[3], steep.shape[2])
    with np.errstate(over="ignore"):
        push, lifts = ((np.exp2(part * scale) * (1 + 2.0**-16)).astype(np.float32) for part in flat)
    return push, lifts
