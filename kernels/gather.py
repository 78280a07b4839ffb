"""A colour phase by gather: sum every neighbour's table row at every free site, draw, write, count the flips.

`gather_phase` updates one colour of a batch; `gather_fused` runs whole sweeps, one program for a group of an image's chains,
with a barrier between colours. Free sites of an image are listed phase by phase: the r-th one of phase k stands at column
``phases[k] + r`` of ``position`` and ``site``, and there are ``counts[image, k]`` of them.

Few images go over many programs, one launch a phase. A barrier of the whole grid would spare launches, but needs all programs
resident at once, hangs the interpreter, and takes as long as a node of a CUDA graph by our estimate (3 to 3.5 us a phase, not
measured); launches are ordered by the stream alone. They can be captured: the host gives numbers and tensors that are on the
device already, and neither makes nor reads any.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from itertools import pairwise

import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.draw import draw, uniform
from tritoncrf.kernels.edges import NONE, Edges, add_all
from tritoncrf.kernels.rows import lanes, load_row, padded, separate, width
from tritoncrf.kernels.shapes import Launch

SCALARS = [
    "scale", "key0", "key1", "purpose", "done", "sweeps", "first", "length", "phase", "blocks", "groups", "together",
    "room", "replicas", "volume", "slots", "colors", "classes", "weighed",
]  # fmt: skip


@triton.jit
def count_flips(flips, image, chain, flipped, SINGLE: tl.constexpr):
    """Adds the lanes that flipped to their chain's count; chain int64 [B], the image's only one if SINGLE."""
    if SINGLE:
        changed = tl.sum(flipped.to(tl.int32), 0)
        tl.atomic_add(flips + image, changed.to(tl.int64), mask=changed > 0, sem="relaxed")
    else:
        tl.atomic_add(flips + chain, flipped.to(tl.int64), mask=flipped, sem="relaxed")


@triton.jit
def gather_block(
    labels, unary, rows, words, narrow, displacements, edges, position, site, flips, image, origin, start, length, available,
    here_replicas, first, sweep, index, scale, key0, key1, purpose, replicas, volume, slots, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr,
    CACHE: tl.constexpr, KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Redraws up to BLOCK sites of one phase, starting at item ``start`` of replicas ``origin`` .. + ``here_replicas``."""
    rank, replica, valid = lanes(start + tl.arange(0, BLOCK), length, available, here_replicas, SINGLE)
    replica = replica + origin
    row = image.to(tl.int64) * slots + first + rank
    chain = image.to(tl.int64) * replicas + replica
    here = labels + chain * volume + tl.load(position + row, mask=valid, other=0)
    pieces = load_row(unary + row * PAD, valid, PAD, WIDTH, "")
    pieces = add_all(
        pieces, here, image.to(tl.int64), first + rank, rows, words, narrow, displacements, edges, classes, weighed, slots,
        valid, LABELS, PAD, WIDTH, CACHE, KINDS, GATES,
    )  # fmt: skip
    u = uniform(tl.load(site + row, mask=valid, other=0), sweep, index, replica, purpose, key0, key1)
    current = tl.load(here, mask=valid, other=0, cache_modifier=CACHE).to(tl.int32)
    drawn, _ = draw(separate(pieces, PAD, WIDTH), current, u, scale, LABELS)
    flipped = valid & (drawn != current)
    tl.store(here, drawn.to(tl.uint8), mask=flipped)
    count_flips(flips, image, chain, flipped, SINGLE)


@triton.jit(do_not_specialize=SCALARS)
def gather_phase(
    labels, unary, rows, words, fits, displacements, position, site, counts, index, count, flips, kinds, gates, gated, gating,
    scale, key0, key1, purpose, done, first, length, phase, blocks, replicas, volume, slots, colors, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr,
    KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """One phase of all chains; program ``image * blocks + block``.

    labels: uint8 [N, R, volume], changed in place; void (L) where no site is.
    unary: float32 [N, slots, PAD] by rank; rows: float32 [2, classes, R, L + 1, PAD], the row of void 0.
    words: int32 [2, classes, R, L + 1, pitch], the rows packed; fits: int32 [1], 1 where they may be read in their place.
    displacements: int32 [classes]; position, site: int32 [N, slots] by rank, site holding the bits of a uint32.
    counts: int32 [N, colors]; index, count: int64 [N]; flips: int64 [N, R], added to; kinds, gates, gated, gating: as in
    `Edges`, KINDS being the number of kinds and GATES of gates. All contiguous.
    """
    image = tl.program_id(0) // blocks
    start = (tl.program_id(0) % blocks) * BLOCK
    available = tl.load(counts + image.to(tl.int64) * colors + phase)
    if (not SINGLE) | (start < available):
        sweep = tl.load(count + image) + done
        gather_block(
            labels, unary, rows, words, tl.load(fits) != 0, displacements, (kinds, gates, gated, gating), position, site, flips,
            image, 0, start, length, available, replicas, first, sweep, tl.load(index + image), scale, key0, key1, purpose,
            replicas, volume, slots, classes, weighed, LABELS, PAD, WIDTH, BLOCK, SINGLE, "", KINDS, GATES,
        )  # fmt: skip


@triton.jit(do_not_specialize=SCALARS)
def gather_fused(
    labels, unary, rows, words, fits, displacements, phases, position, site, counts, index, count, flips,
    kinds, gates, gated, gating,
    scale, key0, key1, purpose, sweeps, groups, together, replicas, volume, slots, colors, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr,
    KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """All phases of ``sweeps`` sweeps; program ``image * groups + group`` holds ``together`` replicas of its image.

    phases: int32 [colors + 1], first column of each phase; the rest as in `gather_phase`.
    """
    image = tl.program_id(0) // groups
    origin = (tl.program_id(0) % groups) * together
    here_replicas = tl.minimum(together, replicas - origin)
    begun = tl.load(count + image)
    number = tl.load(index + image)
    narrow = tl.load(fits) != 0
    for done in range(sweeps):
        for phase in range(colors):
            first = tl.load(phases + phase)
            length = tl.load(phases + phase + 1) - first
            available = tl.load(counts + image.to(tl.int64) * colors + phase)
            items = available if SINGLE else length * here_replicas
            for start in range(0, items, BLOCK):
                # Labels written by other threads of this program lie in L2, not surely in this thread's view of L1.
                gather_block(
                    labels, unary, rows, words, narrow, displacements, (kinds, gates, gated, gating), position, site, flips,
                    image, origin, start, length, available, here_replicas, first, begun + done, number, scale, key0, key1,
                    purpose, replicas, volume, slots, classes, weighed, LABELS, PAD, WIDTH, BLOCK, SINGLE, ".cg", KINDS, GATES,
                )  # fmt: skip
            tl.debug_barrier()


def gather(
    labels: Tensor, unary: Tensor, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor, phases: Tensor,
    position: Tensor, site: Tensor, counts: Tensor, index: Tensor, count: Tensor, flips: Tensor, bounds: list[int],
    sweeps: int, scale: float, key: tuple[int, int], purpose: int, num_labels: int, launch: Launch, edges: Edges = NONE,
) -> None:  # fmt: skip
    """Runs ``sweeps`` sweeps in place. bounds: the numbers in ``phases``; key: the words as signed 32-bit integers."""
    images, replicas, volume = labels.shape
    slots, colors = position.shape[1], len(bounds) - 1
    shape = {
        "LABELS": num_labels, "PAD": padded(num_labels), "WIDTH": width(num_labels), "BLOCK": launch.block,
        "SINGLE": replicas == 1, **edges.flags(rows), **launch.options(roomy=launch.fused),
    }  # fmt: skip
    place = (labels, unary, rows, words, fits, displacements)
    if launch.fused:
        together = launch.together(replicas, slots // max(colors, 1))
        groups = -(-replicas // together)
        gather_fused[(images * groups,)](
            *place, phases, position, site, counts, index, count, flips, *edges, scale, *key, purpose, sweeps, groups, together,
            replicas, volume, slots, colors, len(displacements), edges.weighed, **shape,
        )  # fmt: skip
        return
    for done in range(sweeps):
        for phase, (first, last) in enumerate(pairwise(bounds)):
            blocks = -(-(last - first) * replicas // launch.block)
            if blocks:
                gather_phase[(images * blocks,)](
                    *place, position, site, counts, index, count, flips, *edges, scale, *key, purpose, done, first,
                    last - first, phase, blocks, replicas, volume, slots, colors, len(displacements), edges.weighed, **shape,
                )  # fmt: skip
