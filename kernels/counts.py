"""How often does each pair of labels stand on an edge of a class? One-hot products on the matrix units.

``counts[c, l, m] = sum_p [y_p = l] [y_{p + d_c} = m]``: with one-hot rows A and B of a stretch of positions, ``A^T B``. Void is
no label, so its one-hot row is 0 where the tile has no column for it, and in a column that is not stored elsewhere; positions
without a site and missing neighbours then count nothing. Products of 0 and 1 in float16 summed in float32 are exact below 2^24.

With kinds, A's columns are pairs of kind and label, ``k L + l``, TILE of them to a program. With gates, A's ones are the
gates of their edges, whole steps of 1 / 128 up to 128, exact in float16 too.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.edges import GATE_STEPS

# Positions a step, and the most positions a program takes: float32 counts to 2^24.
BLOCK, STRETCH, PROGRAMS = 128, 1 << 14, 1024
assert GATE_STEPS * STRETCH <= 1 << 24


@triton.jit
def pair_of_labels(chain_labels, place, step, volume):
    """Labels int32 [B] at places int32 [B] of a chain's row, and at the other ends of their edges; 255 beyond the row."""
    other = place + step
    first = tl.load(chain_labels + place, mask=place < volume, other=255).to(tl.int32)
    second = tl.load(chain_labels + other, mask=(other >= 0) & (other < volume), other=255).to(tl.int32)
    return first, second


SCALARS = ["sign", "volume", "parts", "stretch", "classes", "num_classes", "apart", "replicas", "planes", "area"]


@triton.jit(do_not_specialize=SCALARS)
def pair_products(
    labels, displacements, tables, out, kinds, places, kinded, sign, volume, parts, stretch, classes, num_classes, apart,
    replicas, planes, area,
    LABELS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """Adds ``sign`` times a stretch's counts of one class; program ``((chain * classes + k) * chunks + chunk) * parts + part``.

    labels: uint8 [chains, volume]; displacements: int32 [classes]; tables: int32 [classes], each one's place among
    ``num_classes``; out: int64 [chains or 1, num_classes, (KINDS,) L, L], added to, of each chain if apart is 1, of all
    together if it is 0. kinds: uint8 [N, planes, area], at edges' first
    ends, not read if KINDS is 0; places: int64 [volume], where there a position is; kinded: int32 [classes], the plane of each,
    -1: kind 0. A chunk has TILE pairs of kind and label; without kinds there is one. All contiguous.
    """
    CHUNKS: tl.constexpr = (KINDS * LABELS + TILE - 1) // TILE if KINDS else 1
    part = tl.program_id(0) % parts
    k = (tl.program_id(0) // parts // CHUNKS) % classes
    chain = (tl.program_id(0) // parts // CHUNKS // classes).to(tl.int64)
    step = tl.load(displacements + k)
    table = tl.load(tables + k)
    chain_labels = labels + chain * volume
    label = tl.arange(0, TILE)
    row = label
    if KINDS:
        row = label + (tl.program_id(0) // parts) % CHUNKS * TILE
        plane = tl.load(kinded + k)
        plane_at = kinds + (chain // replicas * planes + plane) * area
    total = tl.zeros((TILE, TILE), tl.float32)
    for begin in range(part * stretch, tl.minimum(part * stretch + stretch, volume), BLOCK):
        place = begin + tl.arange(0, BLOCK)
        first, second = pair_of_labels(chain_labels, place, step, volume)
        if KINDS:
            asked = tl.where(plane >= 0, first, LABELS) < LABELS
            kind = tl.load(plane_at + tl.load(places + place, mask=asked, other=0), mask=asked, other=0).to(tl.int32)
            # Void of one kind would stand for the first label of the next.
            first = tl.where(first < LABELS, kind * LABELS + first, -1)
        left = (row[:, None] == first[None, :]).to(tl.float16)
        right = (second[:, None] == label[None, :]).to(tl.float16)
        total = tl.dot(left, right, total, out_dtype=tl.float32)
    cell = row[:, None] * LABELS + label[None, :]
    ROWS: tl.constexpr = KINDS * LABELS if KINDS else LABELS
    inside = (row < ROWS)[:, None] & (label < LABELS)[None, :]
    # Most pairs of labels never meet in a stretch.
    where = out + (chain * apart * num_classes + table) * (ROWS * LABELS) + cell
    tl.atomic_add(where, total.to(tl.int64) * sign, mask=inside & (total > 0.0), sem="relaxed")


@triton.jit(do_not_specialize=["sign", "volume", "parts", "stretch", "classes", "weighed", "replicas", "planes", "area"])
def gated_products(
    labels, displacements, gates, places, gating, out, sign, volume, parts, stretch, classes, weighed, replicas, planes, area,
    LABELS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Adds ``sign`` times a stretch's counts weighed by a gate; program ``((chain * weighed + j) * GATES + g) * parts + part``.

    labels, displacements, places as in `pair_products`; gates: uint8 [N, GATES, planes, area] in steps of 1 / 128, at edges'
    first ends; gating: int32 [classes + 2 weighed] as `Edges` has it, then the plane of each place among those with gates; out:
    int64 [GATES, planes, L, L], added to. All contiguous.
    """
    part = tl.program_id(0) % parts
    gate = (tl.program_id(0) // parts) % GATES
    j = (tl.program_id(0) // parts // GATES) % weighed
    chain = (tl.program_id(0) // parts // GATES // weighed).to(tl.int64)
    step = tl.load(displacements + tl.load(gating + classes + j))
    plane = tl.load(gating + classes + weighed + j)
    chain_labels = labels + chain * volume
    steps = gates + ((chain // replicas * GATES + gate) * planes + plane) * area
    label = tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for begin in range(part * stretch, tl.minimum(part * stretch + stretch, volume), BLOCK):
        place = begin + tl.arange(0, BLOCK)
        first, second = pair_of_labels(chain_labels, place, step, volume)
        asked = first < LABELS
        weight = tl.load(steps + tl.load(places + place, mask=asked, other=0), mask=asked, other=0).to(tl.int32).to(tl.float16)
        left = tl.where(label[:, None] == first[None, :], weight[None, :], 0.0).to(tl.float16)
        right = (second[:, None] == label[None, :]).to(tl.float16)
        total = tl.dot(left, right, total, out_dtype=tl.float32)
    cell = label[:, None] * LABELS + label[None, :]
    inside = (label < LABELS)[:, None] & (label < LABELS)[None, :]
    where = out + (gate * planes + plane).to(tl.int64) * (LABELS * LABELS) + cell
    tl.atomic_add(where, total.to(tl.int64) * sign, mask=inside & (total > 0.0), sem="relaxed")


class Ends(NamedTuple):
    """Kinds or gates at edges' first ends."""

    values: Tensor
    """uint8 [N, (G,) planes, area]."""
    places: Tensor
    """int64 [volume]: where in the area a position is."""
    planes: Tensor
    """int32: of kinds [K], the plane of each displacement; of gates as `gated_products` has ``gating``."""


def stretches(volume: int, rows: int) -> tuple[int, int]:
    """How many programs share each of ``rows`` rows of positions, and how many positions each takes."""
    # As many as fill a large GPU, of four steps at least.
    parts = max(-(-volume // STRETCH), min(-(-volume // (4 * BLOCK)), -(-PROGRAMS // max(rows, 1))))
    return parts, -(-volume // (parts * BLOCK)) * BLOCK


def tile(num_labels: int) -> int:
    """Columns of a one-hot row, as many as the matrix units need."""
    return max(16, int(triton.next_power_of_2(num_labels)))


def _count(
    labels: Tensor, displacements: Tensor, tables: Tensor, out: Tensor, num_labels: int, num_kinds: int, kinds: Ends | None,
    sign: int, apart: bool,
) -> None:  # fmt: skip
    (images, replicas, volume), classes, size = labels.shape, len(displacements), tile(num_labels)
    chunks = -(-num_kinds * num_labels // size) if kinds else 1
    rows = images * replicas * classes * chunks
    parts, stretch = stretches(volume, rows)
    values, places, planes = kinds or (None, None, None)
    among = (1, 1) if values is None else values.shape[1:]
    if rows:
        launch(
            pair_products, rows * parts, labels, displacements, tables, out, values, places, planes, sign, volume, parts,
            stretch, classes, out.shape[-3 - bool(num_kinds)], int(apart), replicas, *among, LABELS=num_labels, TILE=size,
            BLOCK=BLOCK, KINDS=num_kinds if kinds else 0, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def pair_counts(
    labels: Tensor, displacements: Tensor, tables: Tensor, num_labels: int, num_classes: int, num_kinds: int = 0,
    kinds: Ends | None = None,
) -> Tensor:  # fmt: skip
    """int64 ``[N, R, C, L, L]`` of flat rows uint8 ``[N, R, volume]``; displacements and tables int32 ``[K]``.

    With ``num_kinds`` kinds ``[N, R, C, num_kinds, L, L]``.
    """
    shape = (*labels.shape[:2], num_classes, *([num_kinds] if num_kinds else []), num_labels, num_labels)
    out = torch.zeros(shape, dtype=torch.int64, device=labels.device)
    _count(labels, displacements, tables, out, num_labels, num_kinds, kinds, 1, True)
    return out


def pair_errors(
    data: Tensor, free: Tensor, displacements: Tensor, tables: Tensor, num_labels: int, num_classes: int, num_kinds: int = 0,
    kinds: Ends | None = None,
) -> Tensor:  # fmt: skip
    """`pair_counts` of ``data`` less those of ``free``, summed over all chains: int64 ``[C, (num_kinds,) L, L]``."""
    shape = (num_classes, *([num_kinds] if num_kinds else []), num_labels, num_labels)
    out = torch.zeros(shape, dtype=torch.int64, device=data.device)
    for labels, sign in ((data, 1), (free, -1)):
        _count(labels, displacements, tables, out, num_labels, num_kinds, kinds, sign, False)
    return out


def gated_errors(data: Tensor, free: Tensor, displacements: Tensor, num_labels: int, weighed: int, gates: Ends) -> Tensor:
    """int64 ``[G, planes, L, L]``: counts in steps of 1 / 128 of ``data`` less those of ``free``, uint8 ``[N, R, volume]``."""
    values, places, gating = gates
    _, ranks, planes, area = values.shape
    out = torch.zeros((ranks, planes, num_labels, num_labels), dtype=torch.int64, device=data.device)
    for labels, sign in ((data, 1), (free, -1)):
        images, replicas, volume = labels.shape
        rows = images * replicas * weighed * ranks
        parts, stretch = stretches(volume, rows)
        if rows:
            launch(
                gated_products, rows * parts, labels, displacements, values, places, gating, out, sign, volume, parts, stretch,
                len(displacements), weighed, replicas, planes, area, LABELS=num_labels, TILE=tile(num_labels), BLOCK=BLOCK,
                GATES=ranks, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return out
