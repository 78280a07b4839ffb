"""How does a visit look at what it is given? At tables, positions and counts in one program, at pixels in one pass.

Each thing that is required is a byte of ``holds``: the first kernel writes all of them, the second one clears those that its
pixels fail, several programs perhaps the same one, all with 0. Whatever fails is made harmless: a position outside of the
store becomes the nearest one, a target that is no label 255. Rule 1 rounds a table before its largest entry is asked for, ``2
max|psi|`` of each class; their sum, of multiples of 2^-11 in float64, is exact in any order.
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

STEP = tl.constexpr(2.0**-12)
NONE = tl.constexpr(255)
# What is required, in this order; as many as a power of two.
LOGITS, FINITE, BOUNDED, TARGET, INDEX, KEPT, ROOM, ALLOWED = (tl.constexpr(place) for place in range(8))
CHECKS = 8
BLOCK = 512


class Looked(NamedTuple):
    """What was seen of N images."""

    holds: Tensor
    """bool [CHECKS]: what holds of all that is required."""
    index: Tensor
    """int64 [N]: positions in the data set, inside of it."""
    count: Tensor
    """int64 [N]: sweeps done over each image's life."""
    known: Tensor
    """uint8 [N, *shape]: known labels, 255 elsewhere."""
    labelled: Tensor
    """bool [N, *shape]: which are known."""
    kept: Tensor | None
    """uint8 [N, R, *shape]: the chains as the store has them; None of images that continue none."""


@triton.jit(do_not_specialize=["classes", "entries", "images", "stored", "most", "bound"])
def look_once(
    pairwise, index, visits, sweeps, holds, place, count, classes, entries, images, stored, most, bound,
    BLOCK: tl.constexpr, CHECKS: tl.constexpr,
):  # fmt: skip
    """Looks at tables and positions, and writes positions and counts of a batch; one program.

    pairwise: any float [classes, entries]; index: integers [images], positions among ``stored``, or None, where positions go on
    from visits, int64 []; sweeps: int64 [stored], sweeps done, or None: none; holds: uint8 [CHECKS], place, count: int64
    [images], all written; most: sweeps that may have been done; bound: of the tables.
    """
    lane = tl.arange(0, BLOCK)
    fine, total = lane >= 0, tl.full((), 0.0, tl.float64)
    for c in range(classes):
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, entries, BLOCK):
            inside = start + lane < entries
            raw = tl.load(pairwise + c * entries + start + lane, mask=inside, other=0.0).to(tl.float32)
            size = tl.abs(tl.floor(raw * 4096.0 + 0.5)) * STEP
            fine = fine & (size < float("inf"))
            largest = tl.maximum(largest, size)
        total += (tl.max(largest, 0) * 2.0).to(tl.float64)
    there, room = lane >= 0, lane >= 0
    for start in range(0, images, BLOCK):
        n = start + lane
        inside = n < images
        if index is not None:
            given = tl.load(index + n, mask=inside, other=0).to(tl.int64)
            own = tl.minimum(tl.maximum(given, 0), stored - 1)
            there = there & (own == given)
        else:
            own = tl.load(visits) + n.to(tl.int64)
        done = tl.zeros((BLOCK,), tl.int64)
        if sweeps is not None:
            done = tl.load(sweeps + own, mask=inside, other=0)
        room = room & (done <= most)
        tl.store(place + n, own, mask=inside)
        tl.store(count + n, done, mask=inside)
    finite = tl.min(fine.to(tl.int32), 0) > 0
    what = tl.arange(0, CHECKS)
    found = tl.full((CHECKS,), 1, tl.uint8)
    found = tl.where((what == FINITE) & ~finite, 0, found)
    # The sum of what is not finite need not say so.
    found = tl.where((what == BOUNDED) & ~(finite & (total <= bound)), 0, found)
    found = tl.where((what == INDEX) & (tl.min(there.to(tl.int32), 0) == 0), 0, found)
    found = tl.where((what == ROOM) & (tl.min(room.to(tl.int32), 0) == 0), 0, found)
    tl.store(holds + what, found.to(tl.uint8))


@triton.jit
def fails(holds, what: tl.constexpr, bad):
    """Clears what does not hold where any of ``bad`` is true."""
    tl.store(holds + what, 0, mask=tl.max(bad.to(tl.int32), 0) > 0)


@triton.jit(do_not_specialize=["ignore", "blocks", "area", "replicas"])
def look_at_pixels(
    logits, target, labels, place, holds, known, labelled, kept, stride_image, stride_label, stride_pixel, ignore, blocks, area,
    replicas,
    LABELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Looks at BLOCK pixels of an image; program ``image * blocks + block``.

    logits: any float, element (n, l, p) at n * stride_image + l * stride_label + p * stride_pixel; target: integers [N, area],
    ``ignore`` where no label is known; labels: uint8 [D, R, area], chains that are kept, those of image n at place[n], int64
    [N], or None; known: uint8 [N, area], labelled: uint8 [N, area], kept: uint8 [N, R, area], written; holds: uint8, cleared.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    asked = tl.load(target + image * area + pixel, mask=inside, other=0).to(tl.int64)
    is_label = (asked >= 0) & (asked < LABELS)
    tl.store(known + image * area + pixel, tl.where(is_label, asked, NONE).to(tl.uint8), mask=inside)
    tl.store(labelled + image * area + pixel, is_label.to(tl.uint8), mask=inside)
    here = logits + image * stride_image + pixel.to(tl.int64) * stride_pixel
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    number, forbidden = inside, pixel < 0
    for label in range(LABELS):
        value = tl.load(here, mask=inside, other=0.0).to(tl.float32)
        here += stride_label
        number = number & (value == value)
        top = tl.maximum(top, value)
        forbidden = forbidden | ((asked == label) & (value == float("-inf")))
    fails(holds, LOGITS, inside & ~(number & (top < float("inf")) & (top > float("-inf"))))
    fails(holds, TARGET, inside & ~is_label & (asked != ignore))
    fails(holds, ALLOWED, inside & forbidden)
    if labels is not None:
        chain = tl.load(place + image) * replicas
        for replica in range(replicas):
            before = tl.load(labels + (chain + replica) * area + pixel, mask=inside, other=0)
            tl.store(kept + (image * replicas + replica) * area + pixel, before, mask=inside)
            fails(holds, KEPT, inside & (before >= LABELS) & (before != NONE))


def look(
    logits: Tensor, target: Tensor, pairwise: Tensor, index: Tensor | None, visits: Tensor, sweeps: Tensor | None,
    labels: Tensor | None, most: int, bound: float, ignore: int, block: int = 256,
) -> Looked:  # fmt: skip
    """Looks at a batch whose pixels all exist, in two launches.

    logits: ``[N, L, *shape]``; target: integers ``[N, *shape]``; pairwise: ``[C, ..., L, L]``; index: integers ``[N]`` or None;
    visits: int64 ``[]``; sweeps: int64 ``[D]`` of the store, or None; labels: uint8 ``[D, R, *shape]`` of the store where
    chains are continued, or None; most: sweeps that may have been done; bound: of the tables.
    """
    flat, device = logits.flatten(2), logits.device
    images, num_labels, area = flat.shape
    holds = torch.empty(CHECKS, dtype=torch.bool, device=device)
    place, count = torch.empty((2, images), dtype=torch.int64, device=device).unbind()
    known = torch.empty(target.shape, dtype=torch.uint8, device=device)
    labelled = torch.empty(target.shape, dtype=torch.bool, device=device)
    replicas = 1 if labels is None else labels.shape[1]
    kept = None if labels is None else torch.empty((images, *labels.shape[1:]), dtype=torch.uint8, device=device)
    classes, stored = len(pairwise), 0 if sweeps is None else len(sweeps)
    launch(
        look_once, 1, pairwise.contiguous(), index, visits, sweeps, holds.view(torch.uint8), place, count, classes,
        pairwise.numel() // max(classes, 1), images, stored, most, bound, BLOCK=BLOCK, CHECKS=CHECKS, num_warps=4,
        enable_fp_fusion=False,
    )  # fmt: skip
    blocks = -(-area // block)
    launch(
        look_at_pixels, images * blocks, flat, target.contiguous(), labels, place, holds.view(torch.uint8), known,
        labelled.view(torch.uint8), kept, *flat.stride(), ignore, blocks, area, replicas, LABELS=num_labels, BLOCK=block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return Looked(holds, place, count, known, labelled, kept)
