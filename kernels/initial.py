"""Rule 1 and the first labels: unary energies on the grid, laid out by slot, and draws from them alone.

``unary_l = floor(min(max_k logit_k - logit_l, 1023) * 4096 + 0.5) / 4096``, and 3071 where the logit is -inf. The initial draw
is rule 3 on the unaries with beta = 1 and current label 0, at the purpose's initial stream.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.draw import INITIAL, draw, uniform
from tritoncrf.kernels.listing import Listing
from tritoncrf.kernels.rows import lanes, load_row, padded, separate, store_row, width

UNARY_CAP = tl.constexpr(1023.0)
FORBIDDEN = tl.constexpr(3071.0)
STEP = tl.constexpr(2.0**-12)


@triton.jit(do_not_specialize=["blocks", "slots"])
def unary_rows(
    logits, pixels, unary, stride_image, stride_label, stride_pixel, blocks, slots,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rounds logits into rows; program ``image * blocks + block``.

    logits: any float, element (n, l, p) at n * stride_image + l * stride_label + p * stride_pixel; pixels: int64 [slots], 0
    where a slot lies outside; unary: float32 [N, slots, PAD], written.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    own = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    row = image * slots + own
    valid = own < slots
    here = logits + image * stride_image + tl.load(pixels + own, mask=valid, other=0) * stride_pixel
    step = tl.zeros((BLOCK,), tl.int64) + stride_label
    values = ()
    for label in tl.static_range(LABELS):
        values = values + (tl.load(here + label * step, mask=valid, other=0.0).to(tl.float32),)  # noqa: RUF005
    top = values[0]
    for label in tl.static_range(1, LABELS):
        top = tl.maximum(top, values[label])
    energies = ()
    for label in tl.static_range(LABELS):
        distance = tl.minimum(top - values[label], UNARY_CAP)
        rounded = tl.floor(distance * 4096.0 + 0.5) * STEP
        energies = energies + (tl.where(values[label] == float("-inf"), FORBIDDEN, rounded),)  # noqa: RUF005
    for _ in tl.static_range(LABELS, PAD):
        energies = energies + (top * 0.0,)  # noqa: RUF005
    pieces = ()
    for q in tl.static_range(PAD // WIDTH):
        if WIDTH == 2:
            pieces = pieces + (tl.join(energies[2 * q], energies[2 * q + 1]),)  # noqa: RUF005
        else:
            even = tl.join(energies[4 * q], energies[4 * q + 2])
            odd = tl.join(energies[4 * q + 1], energies[4 * q + 3])
            pieces = pieces + (tl.reshape(tl.join(even, odd), (BLOCK, 4)),)  # noqa: RUF005
    store_row(unary + row * PAD, pieces, valid, PAD, WIDTH)


def build_unary(logits: Tensor, pixels: Tensor, block: int, warps: int) -> Tensor:
    """Energies float32 ``[N, S, PAD]`` by slot, of logits ``[N, L, *shape]``; pixels: int64 ``[S]``."""
    flat = logits.flatten(2)
    (images, labels, _), slots = flat.shape, len(pixels)
    unary = torch.empty((images, slots, padded(labels)), device=logits.device, dtype=torch.float32)
    blocks = -(-slots // block)
    launch(
        unary_rows, images * blocks, flat, pixels, unary, *flat.stride(), blocks, slots, LABELS=labels, PAD=padded(labels),
        WIDTH=width(labels), BLOCK=block, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return unary


@triton.jit(do_not_specialize=["key0", "key1", "purpose", "blocks", "apart", "replicas", "volume", "slots"])
def initial_draw(
    labels, unary, slot, position, site, index, count, scale, key0, key1, purpose, blocks, apart, replicas, volume, slots,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Draws every free site that holds void; program ``image * blocks + block``.

    labels: uint8 [N, R, volume], written in place; unary: float32 [N, slots, PAD] by slot; slot, position, site: as in
    `Listing`, apart: 1 if there is one an image; index, count: int64 [N].
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * BLOCK
    rank, replica, inside = lanes(start + tl.arange(0, BLOCK), slots, slots, replicas, SINGLE)
    column = image * apart * slots + rank
    where = tl.load(position + column, mask=inside, other=-1)
    valid = where >= 0
    here = labels + (image * replicas + replica) * volume + where
    now = tl.load(here, mask=valid, other=0)
    valid = valid & (now == LABELS)
    row = image * slots + tl.load(slot + column, mask=valid, other=0)
    energies = separate(load_row(unary + row * PAD, valid, PAD, WIDTH), PAD, WIDTH)
    sweep, number = tl.load(count + image), tl.load(index + image)
    u = uniform(tl.load(site + column, mask=valid, other=0), sweep, number, replica, purpose + INITIAL, key0, key1)
    drawn, _ = draw(energies, rank * 0, u, scale, LABELS, False)
    tl.store(here, drawn.to(tl.uint8), mask=valid)


def initial(
    labels: Tensor, unary: Tensor, listing: Listing, index: Tensor, count: Tensor, scale: float, key: tuple[int, int],
    purpose: int, num_labels: int, block: int, warps: int,
) -> None:  # fmt: skip
    """Draws void free sites in place. scale: rule 3's at beta = 1; key: the words as signed 32-bit integers."""
    images, replicas, volume = labels.shape
    slots = unary.shape[1]
    blocks = -(-slots * replicas // block)
    launch(
        initial_draw, images * blocks, labels, unary, *listing[:3], index, count, scale, *key, purpose, blocks,
        int(len(listing.slot) > 1), replicas, volume, slots, LABELS=num_labels, PAD=padded(num_labels),
        WIDTH=width(num_labels), BLOCK=block, SINGLE=replicas == 1, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
