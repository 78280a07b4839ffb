"""What does a visit leave? Errors of the unaries, the value and its factor, figures to watch, and the chains, kept or not.

One pass over the pixels of a pair of samples writes ``[y' = l] - [y = l]``, averaged over replicas, brings the chains back to
the store where all that was required holds, and leaves partial sums of ``logit[y'] - logit[y]``; a last program adds these in
their order, so that a value does not depend on which program came first, adds ``sum errors * tables``, and divides.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.looks import CHECKS, Looked

BLOCK = 512


class Told(NamedTuple):
    """What a visit leaves."""

    unary: Tensor
    """float32 [N, L, *shape]: ``[y' = l] - [y = l]``, averaged over replicas."""
    pairwise: Tensor
    """float32, as the tables: ``counts(y) - counts(y')``, averaged over replicas."""
    value: Tensor
    """float32 []: NaN of a bad call."""
    factor: Tensor
    """float32 []: by which errors count; 0 of a bad call."""
    bad: Tensor
    """bool []: whether anything that was required does not hold."""
    whole: Tensor
    """float64 []: ``E(y) - E(y')``."""
    labelled: Tensor
    """int64 []: labelled pixels."""


@triton.jit
def all_hold(holds, CHECKS: tl.constexpr):
    """1 if all that was required holds, else 0: int32."""
    return tl.min(tl.load(holds + tl.arange(0, CHECKS)).to(tl.int32), 0)


@triton.jit
def logit_of(here, label, stride_label, there):
    """The logits of labels int32 [B], float64; 0 where not ``there``."""
    return tl.load(here + label.to(tl.int64) * stride_label, mask=there, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["share", "blocks", "area", "volume", "replicas"])
def tell_pixels(
    logits, data, free, positions, labelled, place, holds, out, labels, gaps, counts, stride_image, stride_label, stride_pixel,
    share, blocks, area, volume, replicas,
    LABELS: tl.constexpr, BLOCK: tl.constexpr, CHECKS: tl.constexpr,
):  # fmt: skip
    """Writes BLOCK pixels of an image; program ``image * blocks + block``.

    logits: any float, element (n, l, p) at n * stride_image + l * stride_label + p * stride_pixel; data, free: uint8 [N, R,
    volume], rows of the samples y and y'; positions: int64 [area], where in a row a pixel is; labelled: uint8 [N, area]; place:
    int64 [N]; holds: uint8 [CHECKS]; share: 1 / R; out: float32 [N, L, area], written; labels: uint8 [D, R, area] or None, the
    chains at place[n], written if all holds by the first image of that place; gaps: float64 and counts: int32 [programs],
    partial sums, written.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    position = tl.load(positions + pixel, mask=inside, other=0)
    here = logits + image * stride_image + pixel.to(tl.int64) * stride_pixel
    own = tl.full((), 0, tl.int64)
    writes = tl.full((), 0, tl.int32)
    if labels is not None:
        writes = all_hold(holds, CHECKS)
        own = tl.load(place + image)
        for other in range(image):
            writes = tl.where(tl.load(place + other) == own, 0, writes)
    # Of chains that are not to be written no pixel.
    limit = area * writes
    gap = tl.zeros((BLOCK,), tl.float64)
    for replica in range(replicas):
        row = (image * replicas + replica) * volume + position
        stands = tl.load(data + row, mask=inside, other=LABELS).to(tl.int32)
        drawn = tl.load(free + row, mask=inside, other=LABELS).to(tl.int32)
        there = (stands < LABELS) & (drawn < LABELS)
        gap += logit_of(here, drawn, stride_label, there) - logit_of(here, stands, stride_label, there)
        if labels is not None:
            tl.store(labels + (own * replicas + replica) * area + pixel, drawn.to(tl.uint8), mask=pixel < limit)
    for label in range(LABELS):
        surplus = tl.zeros((BLOCK,), tl.int32)
        for replica in range(replicas):
            row = (image * replicas + replica) * volume + position
            stands = tl.load(data + row, mask=inside, other=LABELS).to(tl.int32)
            drawn = tl.load(free + row, mask=inside, other=LABELS).to(tl.int32)
            surplus += (drawn == label).to(tl.int32) - (stands == label).to(tl.int32)
        tl.store(out + (image * LABELS + label) * area + pixel, surplus.to(tl.float32) * share, mask=inside)
    tl.store(gaps + tl.program_id(0), tl.sum(gap, 0))
    known = tl.load(labelled + image * area + pixel, mask=inside, other=0).to(tl.int32)
    tl.store(counts + tl.program_id(0), tl.sum(known, 0))


@triton.jit(do_not_specialize=["programs", "entries", "images", "replicas", "swept"])
def tell_once(
    gaps, counts, pairs, pairwise, holds, place, count, sweeps, visits, errors, whole, value, factor, bad, labelled, programs,
    entries, images, replicas, swept,
    MEAN: tl.constexpr, BLOCK: tl.constexpr, CHECKS: tl.constexpr,
):  # fmt: skip
    """Adds up what `tell_pixels` left; one program.

    pairs: int64 [entries], ``counts(y) - counts(y')`` over all replicas; pairwise: any float [entries]; place, count: int64
    [images]; sweeps: int64 [D] or None, ``count + swept`` written at place if all holds, or count; visits: int64 [] or None,
    images added to if all holds; errors: float32 [entries], whole: float64, value, factor: float32, bad: uint8, labelled: int64
    [1], written. MEAN: divided by the labelled pixels, of which 0 give 0.
    """
    lane = tl.arange(0, BLOCK)
    begun = tl.full((), 0, tl.int64)
    if visits is not None:
        # Here, since all threads read what one of them writes behind the sums.
        begun = tl.load(visits)
    gap, known = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.int64)
    for start in range(0, programs, BLOCK):
        own = start + lane
        gap += tl.load(gaps + own, mask=own < programs, other=0.0)
        known += tl.load(counts + own, mask=own < programs, other=0).to(tl.int64)
    inner = tl.zeros((BLOCK,), tl.float64)
    parts = lane * 0.0 + replicas.to(tl.float32)
    for start in range(0, entries, BLOCK):
        own = start + lane
        error = tl.load(pairs + own, mask=own < entries, other=0).to(tl.float32)
        error = tl.div_rn(error, parts)
        tl.store(errors + own, error, mask=own < entries)
        inner += (error * tl.load(pairwise + own, mask=own < entries, other=0.0)).to(tl.float64)
    total = tl.sum(gap, 0) / replicas + tl.sum(inner, 0)
    pixels = tl.sum(known, 0)
    good = all_hold(holds, CHECKS) > 0
    part = pixels.to(tl.float32)
    if not MEAN:
        part = tl.minimum(part, 1.0)
    # Of no labelled pixel 0, whatever the value is.
    part = tl.where(part > 0.0, tl.div_rn(tl.full((), 1.0, tl.float32), tl.maximum(part, 1.0)), 0.0)
    tl.store(whole, total)
    tl.store(labelled, pixels)
    tl.store(value, tl.where(good, (total * part.to(tl.float64)).to(tl.float32), float("nan")))
    tl.store(factor, tl.where(good, part, 0.0))
    tl.store(bad, tl.where(good, 0, 1).to(tl.uint8))
    moved = tl.where(good, swept, 0)
    for start in range(0, images, BLOCK):
        own = start + lane
        if sweeps is not None:
            at = tl.load(place + own, mask=own < images, other=0)
            tl.store(sweeps + at, tl.load(count + own, mask=own < images, other=0) + moved, mask=own < images)
    if visits is not None:
        tl.store(visits, begun + tl.where(good, images, 0))


def tell(
    looked: Looked, logits: Tensor, data: Tensor, free: Tensor, positions: Tensor, pairs: Tensor, pairwise: Tensor,
    labels: Tensor | None, sweeps: Tensor | None, visits: Tensor | None, swept: int, mean: bool, block: int = 256,
) -> Told:  # fmt: skip
    """What a visit of N images with R replicas leaves, in two launches; labels, sweeps and visits are written in place.

    data, free: uint8 ``[N, R, volume]``, rows of y and y'; positions: int64 ``[pixels]``, of a pixel in them; pairs: int64, as
    the tables ``pairwise``; labels: uint8 ``[D, R, *shape]``, the store's, None where no chain is kept; sweeps: int64 ``[D]``,
    or None, and then visits: int64 ``[]``; swept: sweeps that were made.
    """
    flat, device = logits.flatten(2), logits.device
    (images, num_labels, area), (_, replicas, volume) = flat.shape, data.shape
    unary = torch.empty(logits.shape, dtype=torch.float32, device=device)
    blocks = -(-area // block)
    gaps = torch.empty(images * blocks, dtype=torch.float64, device=device)
    counts = torch.empty(images * blocks, dtype=torch.int32, device=device)
    holds = looked.holds.view(torch.uint8)
    launch(
        tell_pixels, images * blocks, flat, data, free, positions, looked.labelled.view(torch.uint8), looked.index, holds,
        unary, labels, gaps, counts, *flat.stride(), 1.0 / replicas, blocks, area, volume, replicas, LABELS=num_labels,
        BLOCK=block, CHECKS=CHECKS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    errors = torch.empty(pairs.shape, dtype=torch.float32, device=device)
    # Each of its own: who writes into the value leaves the factor alone.
    value, factor = (torch.empty((), dtype=torch.float32, device=device) for _ in range(2))
    whole = torch.empty((), dtype=torch.float64, device=device)
    labelled = torch.empty((), dtype=torch.int64, device=device)
    bad = torch.empty((), dtype=torch.bool, device=device)
    launch(
        tell_once, 1, gaps, counts, pairs, pairwise.contiguous(), holds, looked.index, looked.count, sweeps, visits, errors,
        whole, value, factor, bad.view(torch.uint8), labelled, len(gaps), pairs.numel(), images, replicas, swept, MEAN=mean,
        BLOCK=BLOCK, CHECKS=CHECKS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return Told(unary, errors, value, factor, bad, whole, labelled)
