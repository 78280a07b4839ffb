"""Which free site stands where? Lists by rank, colour by colour, in a launch that the host does not wait for.

The r-th free site of colour k is column ``color_bounds[k] + r`` of its image's lists. Images of the same free sites share one
list, as all images of a batch do that are neither padded nor clamped; ``apart`` says so to kernels: 0, or 1 for a list each.
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

BLOCK = 1024


class Listing(NamedTuple):
    """Of M images, N or 1; columns behind a colour's free sites hold -1."""

    slot: Tensor
    """int32 [M, S]: which slot a rank is."""
    position: Tensor
    """int32 [M, S]: where its label is in a chain's row."""
    site: Tensor
    """int32 [M, S]: the bits of its site number (rule 2)."""
    counts: Tensor
    """int32 [M, colors]: free sites of each colour."""
    lookup: Tensor
    """int32 [M, volume]: the rank at a position, -1: none."""


@triton.jit(do_not_specialize=["stride_free", "stride_site", "volume", "slots", "colors"])
def list_sites(
    free, sites, positions, color_bounds, slot, position, site, counts, lookup, stride_free, stride_site, volume, slots, colors,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Lists one colour of one image; program ``image * colors + color``.

    free: uint8, 0 or 1, element (n, s) at n * stride_free + s; sites: int64, at n * stride_site + s; positions: int64 [S];
    color_bounds: int32 [colors + 1]; the rest as in `Listing`, lookup -1 before the launch.
    """
    image = (tl.program_id(0) // colors).to(tl.int64)
    color = tl.program_id(0) % colors
    first = tl.load(color_bounds + color)
    last = tl.load(color_bounds + color + 1)
    row = image * slots
    found = 0
    for start in range(first, last, BLOCK):
        s = start + tl.arange(0, BLOCK)
        inside = s < last
        is_free = inside & (tl.load(free + image * stride_free + s, mask=inside, other=0) != 0)
        rank = first + found + tl.cumsum(is_free.to(tl.int32), 0) - 1
        where = tl.load(positions + s, mask=is_free, other=0)
        number = tl.load(sites + image * stride_site + s, mask=is_free, other=0)
        tl.store(slot + row + rank, s, mask=is_free)
        tl.store(position + row + rank, where.to(tl.int32), mask=is_free)
        tl.store(site + row + rank, (number & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True), mask=is_free)
        tl.store(lookup + image * volume + where, rank, mask=is_free)
        found += tl.sum(is_free.to(tl.int32), 0)
    for start in range(first + found, last, BLOCK):
        s = start + tl.arange(0, BLOCK)
        nothing = tl.full((BLOCK,), -1, tl.int32)
        tl.store(slot + row + s, nothing, mask=s < last)
        tl.store(position + row + s, nothing, mask=s < last)
        tl.store(site + row + s, nothing, mask=s < last)
    tl.store(counts + image * colors + color, found)


def build_listing(free: Tensor, sites: Tensor, positions: Tensor, color_bounds: Tensor, volume: int, images: int) -> Listing:
    """The lists of the first ``images`` of free uint8 ``[N, S]`` and sites int64 ``[N, S]``, whose last axes are contiguous."""
    slots, colors, device = len(positions), len(color_bounds) - 1, free.device
    slot, position, site = (torch.empty((images, slots), dtype=torch.int32, device=device) for _ in range(3))
    counts = torch.empty((images, colors), dtype=torch.int32, device=device)
    lookup = torch.full((images, volume), -1, dtype=torch.int32, device=device)
    if images and colors:
        launch(
            list_sites, images * colors, free, sites, positions, color_bounds, slot, position, site, counts, lookup,
            free.stride(0), sites.stride(0), volume, slots, colors, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return Listing(slot, position, site, counts, lookup)
