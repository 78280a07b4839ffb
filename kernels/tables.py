"""What do sites read of the tables? Rows by neighbour's label, the same packed two to a word, and how steep each of them is.

A row holds PAD >= L energies: for the neighbour at +d_c with label y ``pairwise[c, :, y]``, for the one at -d_c
``pairwise[c, y, :]``; that of void is 0. All entries are put on rule 1's grid.

Packed, a row is counted from its smallest entry on, in steps of 2^-12 as unsigned 16 bits: what is taken away is the same for
all labels, and no probability changes. Two labels share a word, ``65536 high + low``, so that words of several rows are added
plainly as long as no half passes 65535. The steepest row of all, the largest difference between two entries of one, says how
many may be added before their halves are counted apart; where it is too large words are not for use. That is a number on the
device, which the host never waits to know.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.rows import padded, pitch

GRID = tl.constexpr(4096.0)
STEP = tl.constexpr(2.0**-12)


class Rows(NamedTuple):
    """Rows of tables, by end of the edge."""

    rows: Tensor
    """float32 [K, 2, R, L + 1, PAD]: of the neighbour at +d_k by kind and label, then of the one at -d_k."""
    words: Tensor
    """int32 [K, 2, R, L + 1, pitch]: the same packed."""
    spreads: Tensor
    """float32 [K, 2, R, L + 1]: largest minus smallest entry of each row."""
    steepest: Tensor
    """int32 [1]: the largest of these in steps of 2^-12."""


@triton.jit
def entries(table, y, label, stride_y, stride_label, LABELS: tl.constexpr):
    """Energies on the grid of a table's rows ``y`` at ``label`` (int32 tensors that broadcast); 0 where there is none."""
    inside = (y < LABELS) & (label < LABELS)
    raw = tl.load(table + y * stride_y + label * stride_label, mask=inside, other=0.0).to(tl.float32)
    return tl.floor(raw * GRID + 0.5) * STEP


@triton.jit(do_not_specialize=["stride_table", "stride_kind", "stride_own", "stride_other", "kinds"])
def table_rows(
    tables, chosen, rows, words, spreads, steepest, stride_table, stride_kind, stride_own, stride_other, kinds,
    LABELS: tl.constexpr, PAD: tl.constexpr, PITCH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One table from one end; program ``(k * 2 + end) * kinds + kind``.

    tables: any float, element (t, kind, l, m) at t * stride_table + kind * stride_kind + l * stride_own + m * stride_other, l
    being the first end's label; chosen: int32 [classes], each one's t, -1: none, whose rows are 0; the rest as in `Rows`,
    steepest 0 before the launch.
    """
    program = tl.program_id(0)
    kind = program % kinds
    k = program // kinds // 2
    which = tl.load(chosen + k)
    table = tables + tl.maximum(which, 0).to(tl.int64) * stride_table + kind * stride_kind
    # The site at the first end reads by the label of the other one, and the other way round.
    first = (program // kinds) % 2 == 0
    stride_y = tl.where(first, stride_other, stride_own)
    stride_label = tl.where(first, stride_own, stride_other)
    y = tl.arange(0, TILE)[:, None]
    label = tl.arange(0, TILE)[None, :]
    real = label < LABELS
    row = program.to(tl.int64) * (LABELS + 1) + y
    # A class that is none has rows of no label.
    asked = tl.where(which >= 0, y, LABELS)
    energy = entries(table, asked, label, stride_y, stride_label, LABELS)
    tl.store(rows + row * PAD + label, energy, mask=(y <= LABELS) & (label < PAD))
    low = tl.min(tl.where(real, energy, float("inf")), 1)
    spread = tl.where(tl.arange(0, TILE) < LABELS, tl.max(tl.where(real, energy, float("-inf")), 1) - low, 0.0)
    at = program.to(tl.int64) * (LABELS + 1) + tl.arange(0, TILE)
    tl.store(spreads + at, spread, mask=tl.arange(0, TILE) <= LABELS)
    tl.atomic_max(steepest, tl.minimum(tl.max(spread, 0) * GRID, 65536.0).to(tl.int32), sem="relaxed")
    # Of eight labels four words hold one each and the one four further on; of the last four, two words two neighbouring ones.
    EIGHTS: tl.constexpr = PAD // 8 * 8
    word = tl.arange(0, TILE)[None, :]
    whole = word < EIGHTS // 2
    lower = tl.where(whole, word // 4 * 8 + word % 4, EIGHTS + (word - EIGHTS // 2) * 2)
    upper = tl.where(whole, lower + 4, lower + 1)
    below = entries(table, asked, lower, stride_y, stride_label, LABELS) - low[:, None]
    above = entries(table, asked, upper, stride_y, stride_label, LABELS) - low[:, None]
    below = tl.where((asked < LABELS) & (lower < LABELS), below * GRID, 0.0).to(tl.int32)
    above = tl.where((asked < LABELS) & (upper < LABELS), above * GRID, 0.0).to(tl.int32)
    packed = tl.add(above << 16, below & 0xFFFF, sanitize_overflow=False)
    tl.store(words + row * PITCH + word, packed, mask=(y <= LABELS) & (word < PITCH))


def build_rows(tables: Tensor, chosen: Tensor) -> Rows:
    """Rows of the tables float ``[T, R, L, L]`` that int32 ``[K]`` chooses. Raises ValueError for 2^31 numbers or more."""
    labels, kinds = tables.shape[-1], tables.shape[1]
    shape = (len(chosen), 2, kinds, labels + 1)
    if (numbers := math.prod(shape) * padded(labels)) >= 1 << 31:
        raise ValueError(f"pairwise, gated: expected fewer than 2^31 numbers in rows for engine='triton', got {numbers}")
    device = tables.device
    rows = torch.empty((*shape, padded(labels)), device=device, dtype=torch.float32)
    words = torch.empty((*shape, pitch(labels)), device=device, dtype=torch.int32)
    spreads = torch.empty(shape, device=device, dtype=torch.float32)
    steepest = torch.zeros(1, dtype=torch.int32, device=device)
    if len(chosen):
        launch(
            table_rows, 2 * len(chosen) * kinds, tables, chosen, rows, words, spreads, steepest, *tables.stride(), kinds,
            LABELS=labels, PAD=padded(labels), PITCH=pitch(labels), TILE=max(16, triton.next_power_of_2(labels + 1)),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return Rows(rows, words, spreads, steepest)
