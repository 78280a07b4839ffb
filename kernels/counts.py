"""How often does each pair of labels stand on an edge of a class? One-hot products on the matrix units.

``counts[c, l, m] = sum_p [y_p = l] [y_{p + d_c} = m]``: with one-hot rows A and B of a stretch of positions, ``A^T B``. Void is
no label, so its one-hot row is 0 where the tile has no column for it, and in a column that is not stored elsewhere; positions
without a site and missing neighbours then count nothing. Products of 0 and 1 in float16 summed in float32 are exact below 2^24.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Positions a step, and the most positions a program takes: float32 counts to 2^24.
BLOCK, STRETCH = 128, 1 << 14
assert STRETCH < 1 << 24


@triton.jit(do_not_specialize=["volume", "parts", "stretch", "classes", "num_classes"])
def pair_products(
    labels, displacements, tables, out, volume, parts, stretch, classes, num_classes,
    LABELS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds one stretch's counts of one class; program ``(chain * classes + k) * parts + part``.

    labels: uint8 [chains, volume]; displacements: int32 [classes]; tables: int32 [classes], each one's place among
    ``num_classes``; out: int64 [chains, num_classes, L, L], added to. All contiguous.
    """
    part = tl.program_id(0) % parts
    k = (tl.program_id(0) // parts) % classes
    chain = (tl.program_id(0) // parts // classes).to(tl.int64)
    step = tl.load(displacements + k)
    table = tl.load(tables + k)
    own = labels + chain * volume
    label = tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for begin in range(part * stretch, tl.minimum(part * stretch + stretch, volume), BLOCK):
        place = begin + tl.arange(0, BLOCK)
        other = place + step
        first = tl.load(own + place, mask=place < volume, other=255).to(tl.int32)
        second = tl.load(own + other, mask=(other >= 0) & (other < volume), other=255).to(tl.int32)
        left = (label[:, None] == first[None, :]).to(tl.float16)
        right = (second[:, None] == label[None, :]).to(tl.float16)
        total = tl.dot(left, right, total, out_dtype=tl.float32)
    cell = label[:, None] * LABELS + label[None, :]
    inside = (label < LABELS)[:, None] & (label < LABELS)[None, :]
    # Most pairs of labels never meet in a stretch.
    where = out + (chain * num_classes + table) * (LABELS * LABELS) + cell
    tl.atomic_add(where, total.to(tl.int64), mask=inside & (total > 0.0), sem="relaxed")


def pair_counts(labels: Tensor, displacements: Tensor, tables: Tensor, num_labels: int, num_classes: int) -> Tensor:
    """int64 ``[..., C, L, L]`` of flat rows uint8 ``[..., volume]``; displacements and tables int32 ``[K]``."""
    chains, volume = labels.shape[:-1].numel(), labels.shape[-1]
    shape = (*labels.shape[:-1], num_classes, num_labels, num_labels)
    out = torch.zeros(shape, dtype=torch.int64, device=labels.device)
    parts, classes = -(-volume // STRETCH), len(displacements)
    stretch = -(-volume // (parts * BLOCK)) * BLOCK
    if classes:
        pair_products[(chains * classes * parts,)](
            labels, displacements, tables, out, volume, parts, stretch, classes, num_classes, LABELS=num_labels,
            TILE=max(16, triton.next_power_of_2(num_labels)), BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
