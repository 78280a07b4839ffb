"""Every free site's local conditional, averaged over an image's replicas, and the energies of the labels that stand.

``p(y_i = l | rest) = w_l / sum_k w_k`` with rule 3's weights (Kirillov et al. 2016, eq. 16): what Rao-Blackwellised marginals
are the mean of.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.draw import weigh
from tritoncrf.kernels.edges import NONE, Edges, add_all
from tritoncrf.kernels.rows import load_row, padded, separate, width
from tritoncrf.kernels.shapes import Launch


@triton.jit(do_not_specialize=["blocks", "replicas", "volume", "slots", "classes", "weighed"])
def add_conditionals(
    labels, unary, field, rows, words, fits, displacements, position, slot, out, energy, kinds, gates, gated, gating,
    scale, blocks, replicas, volume, slots, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATHER: tl.constexpr,
    KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Adds to ``out``; program ``image * blocks + block`` takes BLOCK ranks and goes through the replicas.

    labels: uint8 [N, R, volume]; unary: float32 [N, slots, PAD]; field: float32 [N, R, slots, PAD], not read if GATHER.
    rows, words, fits: as in `gather_phase`; displacements: int32 [classes]; position, slot: int32 [N, slots] by rank, -1 where
    no free site is; out: float64 [N, slots, L] by slot; energy: float64 [N, R], added to; kinds, gates, gated, gating: as in
    `Edges`. All contiguous.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rank = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    listed = image * slots + rank
    where = tl.load(position + listed, mask=rank < slots, other=-1)
    valid = where >= 0
    narrow = tl.load(fits) != 0
    target = out + (image * slots + tl.load(slot + listed, mask=valid, other=0)) * LABELS
    for replica in range(replicas):
        chain = image * replicas + replica
        here = labels + chain * volume + where
        if GATHER:
            pieces = load_row(unary + listed * PAD, valid, PAD, WIDTH, "")
            pieces = add_all(
                pieces, here, image, rank, rows, words, narrow, displacements, (kinds, gates, gated, gating), classes, weighed,
                slots, valid, LABELS, PAD, WIDTH, "", KINDS, GATES,
            )  # fmt: skip
        else:
            pieces = load_row(field + (chain * slots + rank) * PAD, valid, PAD, WIDTH, "")
        energies = separate(pieces, PAD, WIDTH)
        weights, total = weigh(energies, scale, LABELS)
        current = tl.load(here, mask=valid, other=LABELS).to(tl.int32)
        own = total * 0.0
        for label in tl.static_range(LABELS):
            own = tl.where(current == label, energies[label], own)
            share = tl.div_rn(weights[label], total * replicas).to(tl.float64)
            so_far = tl.load(target + label, mask=valid, other=0.0)
            tl.store(target + label, so_far + share, mask=valid)
        # Multiples of 2^-12: exact in float64 in any order.
        tl.atomic_add(energy + chain, tl.sum(tl.where(valid, own, 0.0).to(tl.float64), 0), sem="relaxed")


def conditionals(
    labels: Tensor, unary: Tensor, field: Tensor | None, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor,
    position: Tensor, slot: Tensor, out: Tensor, scale: float, num_labels: int, launch: Launch, edges: Edges = NONE,
) -> Tensor:  # fmt: skip
    """Adds each free site's conditional to ``out`` float64 ``[N, S, L]``; returns the energies, float64 ``[N, R]``."""
    images, replicas, volume = labels.shape
    slots = position.shape[1]
    energy = torch.zeros((images, replicas), dtype=torch.float64, device=labels.device)
    blocks = -(-slots // launch.block)
    add_conditionals[(images * blocks,)](
        labels, unary, unary if field is None else field, rows, words, fits, displacements, position, slot, out, energy, *edges,
        scale, blocks, replicas, volume, slots, len(displacements), edges.weighed, LABELS=num_labels, PAD=padded(num_labels),
        WIDTH=width(num_labels), BLOCK=launch.block, GATHER=field is None, **edges.flags(rows), **launch.options(roomy=True),
    )  # fmt: skip
    return energy
