"""Every free site's local conditional, averaged over an image's replicas, and the energies of the labels that stand.

``p(y_i = l | rest) = w_l / sum_k w_k`` with rule 3's weights (Kirillov et al. 2016, eq. 16): what Rao-Blackwellised marginals
are the mean of.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, attr-defined"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.draw import far, weigh
from tritoncrf.kernels.edges import NONE, Edges, neighbours
from tritoncrf.kernels.listing import Listing
from tritoncrf.kernels.rows import load_row, padded, separate, width
from tritoncrf.kernels.tables import Rows


@triton.jit
def add_shares(here, energies, weights, total, target, energy, valid, replicas, LABELS: tl.constexpr):
    """Adds sites' conditionals, over ``replicas``, to rows at ``target`` and the energies of their own labels to ``energy``.

    here: uint8 pointers [B] to the labels; energies, weights: tuples of L float32 [B], total: the weights' sum, as of
    `tritoncrf.kernels.draw.weigh`; target: float64 pointers [B]; energy: one to the chain's; valid: bool [B].
    """
    current = tl.load(here, mask=valid, other=LABELS).to(tl.int32)
    own = total * 0.0
    for label in tl.static_range(LABELS):
        own = tl.where(current == label, energies[label], own)
        share = tl.div_rn(weights[label], total * replicas).to(tl.float64)
        so_far = tl.load(target + label, mask=valid, other=0.0)
        tl.store(target + label, so_far + share, mask=valid)
    # Multiples of 2^-12: exact in float64 in any order.
    tl.atomic_add(energy, tl.sum(tl.where(valid, own, 0.0).to(tl.float64), 0), sem="relaxed")


@triton.jit(do_not_specialize=["blocks", "apart", "replicas", "volume", "slots", "classes", "weighed"])
def add_conditionals(
    labels, unary, rows, words, steepest, steps, slot, position, bad, out, energy, kinds, gates, gated, gating,
    scale, blocks, apart, replicas, volume, slots, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, KINDS: tl.constexpr,
    GATES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Adds to ``out``; program ``image * blocks + block`` takes BLOCK ranks and goes through the replicas.

    labels: uint8 [N, R, volume]; unary: float32 [N, slots, PAD] by slot; rows, words, steepest: as in `Rows`; steps:
    int32 [classes], displacements; slot, position: as in `Listing`; bad: bool [1], where it is true nothing is added, or None;
    out: float64 [N, slots, L] by slot; energy: float64 [N, R], added to; kinds, gates, gated, gating: as in `Edges`. All
    contiguous.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rank = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    listed = image * apart * slots + rank
    where = tl.load(position + listed, mask=rank < slots, other=-1)
    valid = where >= 0
    if bad is not None:
        valid = tl.where(tl.load(bad) == 0, where, -1) >= 0
    row = image * slots + tl.load(slot + listed, mask=valid, other=0)
    target = out + row * LABELS
    for replica in range(replicas):
        chain = image * replicas + replica
        # In the middle all neighbours lie within the row.
        here = labels + chain * volume + tl.where(valid, where, volume // 2)
        alone = load_row(unary + row * PAD, valid, PAD, WIDTH)
        # Exactly: energies are returned, not only their differences.
        pieces = neighbours(
            here, image, tl.where(valid, rank, 0), (rows, words, tl.load(steepest), steps), (kinds, gates, gated, gating),
            classes, weighed, slots, 0, True, LABELS, PAD, WIDTH, 1, 1, KINDS, GATES,
        )  # fmt: skip
        total_pieces = ()
        for q in tl.static_range(PAD // WIDTH):
            total_pieces = total_pieces + (alone[q] + pieces[q],)  # noqa: RUF005
        energies = separate(total_pieces, PAD, WIDTH)
        weights, total = weigh(energies, scale, LABELS, FAR)
        add_shares(here, energies, weights, total, target, energy + chain, valid, replicas, LABELS)


def conditionals(
    labels: Tensor, unary: Tensor, tables: Rows, steps: Tensor, listing: Listing, bad: Tensor | None, out: Tensor,
    scale: float, num_labels: int, block: int, warps: int, edges: Edges = NONE,
) -> Tensor:  # fmt: skip
    """Adds each free site's conditional to ``out`` float64 ``[N, S, L]``; returns the energies, float64 ``[N, R]``."""
    images, replicas, volume = labels.shape
    slots = unary.shape[1]
    energy = torch.zeros((images, replicas), dtype=torch.float64, device=labels.device)
    blocks = -(-slots // block)
    launch(
        add_conditionals, images * blocks, labels, unary, tables.rows, tables.words, tables.steepest, steps, listing.slot,
        listing.position, bad, out, energy, *edges[:4], scale, blocks, int(len(listing.slot) > 1), replicas, volume, slots,
        len(steps), edges.weighed, LABELS=num_labels, PAD=padded(num_labels), WIDTH=width(num_labels), BLOCK=block,
        **edges.flags(tables.rows), FAR=far(scale), num_warps=warps, enable_fp_fusion=False, maxnreg=255,
    )  # fmt: skip
    return energy
