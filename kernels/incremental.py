"""A colour phase from energies kept current: read the field's row, draw, and push row differences for the flips only.

When a site flips, ``row[new] - row[old]`` is added to the field of its neighbours, ``row[y]`` being ``pairwise[c, y, :]`` for
the one at +d_c and ``pairwise[c, :, y]`` for the one at -d_c. Rule 1 makes every addition exact, so atomics in any order give
the bits of a gather. A stay bound per site, ``(1 - 2^-20) w_label / total``, holds until the site's field changes: a site
whose u lies below it keeps its label unread.

Threads run in step, so a covered site costs a draw where one beside it is doubtful. The fused kernel looks at all bounds of a
phase, lists the doubtful sites and redraws the list: as compiled for sm_90 at 20 labels a look takes 129 instructions and a
redraw 771. Sites of a phase are no neighbours, so their order changes no bit. A phase launched by itself leaves its sites in
place: with a site a thread, a list would save no thread its draw, and cost a trip to L2.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.draw import draw, uniform
from tritoncrf.kernels.edges import NONE, Edges, add_all
from tritoncrf.kernels.gather import SCALARS, count_flips
from tritoncrf.kernels.push import push
from tritoncrf.kernels.rows import lanes, load_row, padded, separate, store_row, width
from tritoncrf.kernels.shapes import Launch


@triton.jit(do_not_specialize=SCALARS)
def build_field(
    labels, unary, rows, words, fits, displacements, position, field, kinds, gates, gated, gating,
    blocks, replicas, volume, slots, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr,
    KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Energies of all free sites by gather; program ``image * blocks + block``.

    labels: uint8 [N, R, volume]; unary: float32 [N, slots, PAD]; rows, words, fits: as in `gather_phase`; displacements:
    int32 [classes]; position: int32 [N, slots] by rank, -1 where no free site is; field: float32 [N, R, slots, PAD], written;
    kinds, gates, gated, gating: as in `Edges`. All contiguous.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * BLOCK
    rank, replica, inside = lanes(start + tl.arange(0, BLOCK), slots, slots, replicas, SINGLE)
    row = image * slots + rank
    where = tl.load(position + row, mask=inside, other=-1)
    valid = where >= 0
    chain = image * replicas + replica
    pieces = load_row(unary + row * PAD, valid, PAD, WIDTH, "")
    here = labels + chain * volume + where
    pieces = add_all(
        pieces, here, image, rank, rows, words, tl.load(fits) != 0, displacements, (kinds, gates, gated, gating), classes,
        weighed, slots, valid, LABELS, PAD, WIDTH, "", KINDS, GATES,
    )  # fmt: skip
    store_row(field + (chain * slots + rank) * PAD, pieces, valid, PAD, WIDTH)


def new_field(
    labels: Tensor, unary: Tensor, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor, position: Tensor,
    num_labels: int, launch: Launch, edges: Edges = NONE,
) -> Tensor:  # fmt: skip
    """The field float32 ``[N, R, S, PAD]`` of labels; rows where no free site is stay unwritten."""
    images, replicas, volume = labels.shape
    slots = position.shape[1]
    field = torch.empty((images, replicas, slots, padded(num_labels)), device=labels.device)
    blocks = -(-slots * replicas // launch.block)
    build_field[(images * blocks,)](
        labels, unary, rows, words, fits, displacements, position, field, *edges, blocks, replicas, volume, slots,
        len(displacements), edges.weighed, LABELS=num_labels, PAD=padded(num_labels), WIDTH=width(num_labels),
        BLOCK=launch.block, SINGLE=replicas == 1, **edges.flags(rows), **launch.options(roomy=edges.gates is not None),
    )  # fmt: skip
    return field


@triton.jit
def doubtful(bounds, site, valid, listed, row, replica, sweep, index, purpose, key0, key1):
    """The lanes' uniform numbers float32 [B], and which of them their stay bounds do not cover."""
    u = uniform(tl.load(site + listed, mask=valid, other=0), sweep, index, replica, purpose, key0, key1)
    # Atomics write to L2 past L1, so everything they or this program's other threads change is read there.
    return u, valid & (u >= tl.load(bounds + row, mask=valid, other=2.0, cache_modifier=".cg"))


@triton.jit
def redraw(
    labels, field, bounds, position, flips, changes, changed, image, chain, replica, listed, row, u, open_, volume, scale,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Redraws the open lanes and lists their flips in ``changes`` behind ``changed`` others; returns how many are listed."""
    where = tl.load(position + listed, mask=open_, other=0)
    here = labels + chain * volume + where
    energies = separate(load_row(field + row * PAD, open_, PAD, WIDTH, ".cg"), PAD, WIDTH)
    current = tl.load(here, mask=open_, other=0, cache_modifier=".cg").to(tl.int32)
    drawn, bound = draw(energies, current, u, scale, LABELS)
    flipped = open_ & (drawn != current)
    tl.store(here, drawn.to(tl.uint8), mask=flipped)
    tl.store(bounds + row, bound, mask=open_)
    count_flips(flips, image, chain, flipped, SINGLE)
    # Position, and replica | old | new, so that a lane can then hold a flip's neighbour.
    place = changes + 2 * (changed + tl.cumsum(flipped.to(tl.int32), 0) - 1).to(tl.int64)
    tl.store(place, where, mask=flipped)
    tl.store(place + 1, (replica << 16) | (current << 8) | drawn, mask=flipped)
    return changed + tl.sum(flipped.to(tl.int32), 0)


@triton.jit(do_not_specialize=SCALARS)
def incremental_phase(
    labels, field, bounds, rows, displacements, position, site, lookup, counts, index, count, flips, scratch,
    kinds, gates, gated, gating,
    scale, key0, key1, purpose, done, first, length, phase, blocks, replicas, volume, slots, colors, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr,
    SPREAD: tl.constexpr, KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """One phase of all chains; program ``image * blocks + block``.

    labels: uint8 [N, R, volume], field: float32 [N, R, slots, PAD], bounds: float32 [N, R, slots], changed in place.
    rows: float32 [2, classes, R, L + 1, PAD]; displacements: int32 [classes]; position, site: int32 [N, slots] by rank.
    lookup: int32 [N, volume], the rank of the free site at a position (-1: none); counts: int32 [N, colors].
    index, count: int64 [N]; flips: int64 [N, R], added to; scratch: int32 [programs, BLOCK, 2]; kinds, gates, gated, gating:
    as in `Edges`. All contiguous.
    """
    image = tl.program_id(0) // blocks
    start = (tl.program_id(0) % blocks) * BLOCK
    available = tl.load(counts + image.to(tl.int64) * colors + phase)
    if (not SINGLE) | (start < available):
        changes = scratch + tl.program_id(0).to(tl.int64) * (2 * BLOCK)
        rank, replica, valid = lanes(start + tl.arange(0, BLOCK), length, available, replicas, SINGLE)
        listed = image.to(tl.int64) * slots + first + rank
        chain = image.to(tl.int64) * replicas + replica
        row = chain * slots + first + rank
        sweep, number = tl.load(count + image) + done, tl.load(index + image)
        u, open_ = doubtful(bounds, site, valid, listed, row, replica, sweep, number, purpose, key0, key1)
        changed = redraw(
            labels, field, bounds, position, flips, changes, 0, image, chain, replica, listed, row, u, open_, volume, scale,
            LABELS, PAD, WIDTH, SINGLE,
        )  # fmt: skip
        tl.debug_barrier()
        push(
            field, bounds, rows, displacements, (kinds, gates, gated, gating), lookup, changes, changed, image, replicas,
            volume, slots, classes, weighed, LABELS, PAD, WIDTH, BLOCK, SPREAD, KINDS, GATES,
        )  # fmt: skip


@triton.jit(do_not_specialize=SCALARS)
def incremental_fused(
    labels, field, bounds, rows, displacements, phases, position, site, lookup, counts, index, count, flips, scratch,
    kinds, gates, gated, gating,
    scale, key0, key1, purpose, sweeps, groups, together, room, replicas, volume, slots, colors, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SINGLE: tl.constexpr,
    SPREAD: tl.constexpr, SCAN: tl.constexpr, KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """All phases of ``sweeps`` sweeps; program ``image * groups + group`` holds ``together`` replicas of its image.

    phases: int32 [colors + 1], first column of each phase; scratch: int32 [programs, 2, room, 2], room for the items of a
    phase; the rest as in `incremental_phase`. SCAN items at once are looked at, BLOCK of the doubtful ones redrawn.
    """
    image = tl.program_id(0) // groups
    origin = (tl.program_id(0) % groups) * together
    here_replicas = tl.minimum(together, replicas - origin)
    begun = tl.load(count + image)
    number = tl.load(index + image)
    waiting = scratch + tl.program_id(0).to(tl.int64) * (4 * room)
    changes = waiting + 2 * room.to(tl.int64)
    for done in range(sweeps):
        for phase in range(colors):
            first = tl.load(phases + phase)
            length = tl.load(phases + phase + 1) - first
            available = tl.load(counts + image.to(tl.int64) * colors + phase)
            items = available if SINGLE else length * here_replicas
            waits = 0
            for start in range(0, items, SCAN):
                item = start + tl.arange(0, SCAN)
                rank, replica, valid = lanes(item, length, available, here_replicas, SINGLE)
                replica = replica + origin
                listed = image.to(tl.int64) * slots + first + rank
                row = (image.to(tl.int64) * replicas + replica) * slots + first + rank
                u, open_ = doubtful(bounds, site, valid, listed, row, replica, begun + done, number, purpose, key0, key1)
                place = waiting + 2 * (waits + tl.cumsum(open_.to(tl.int32), 0) - 1).to(tl.int64)
                tl.store(place, item, mask=open_)
                tl.store(place + 1, u.to(tl.int32, bitcast=True), mask=open_)
                waits += tl.sum(open_.to(tl.int32), 0)
            tl.debug_barrier()
            changed = 0
            for start in range(0, waits, BLOCK):
                lane = start + tl.arange(0, BLOCK)
                open_ = lane < waits
                place = waiting + 2 * lane.to(tl.int64)
                item = tl.load(place, mask=open_, other=0, cache_modifier=".cg")
                u = tl.load(place + 1, mask=open_, other=0, cache_modifier=".cg").to(tl.float32, bitcast=True)
                rank, replica, _ = lanes(item, length, available, here_replicas, SINGLE)
                replica = replica + origin
                listed = image.to(tl.int64) * slots + first + rank
                chain = image.to(tl.int64) * replicas + replica
                changed = redraw(
                    labels, field, bounds, position, flips, changes, changed, image, chain, replica, listed,
                    chain * slots + first + rank, u, open_, volume, scale, LABELS, PAD, WIDTH, SINGLE,
                )  # fmt: skip
            tl.debug_barrier()
            push(
                field, bounds, rows, displacements, (kinds, gates, gated, gating), lookup, changes, changed, image, replicas,
                volume, slots, classes, weighed, LABELS, PAD, WIDTH, BLOCK, SPREAD, KINDS, GATES,
            )  # fmt: skip
            # The next phase reads what was pushed, and its lists take these ones' place.
            tl.debug_barrier()


def incremental(
    labels: Tensor, field: Tensor, rows: Tensor, displacements: Tensor, phases: Tensor, position: Tensor, site: Tensor,
    lookup: Tensor, counts: Tensor, index: Tensor, count: Tensor, flips: Tensor, bounds: list[int], sweeps: int,
    scale: float, key: tuple[int, int], purpose: int, num_labels: int, launch: Launch, edges: Edges = NONE,
) -> None:  # fmt: skip
    """Runs ``sweeps`` sweeps in place, the field with them. bounds: the numbers in ``phases``; key: signed 32-bit words."""
    images, replicas, volume = labels.shape
    slots, colors = position.shape[1], len(bounds) - 1
    device, block = labels.device, launch.block
    longest = max((last - first for first, last in pairwise(bounds)), default=0)
    # Bounds belong to one temperature, so they live for one call.
    stay = torch.zeros((images, replicas, slots), device=device)
    shape = {
        "LABELS": num_labels, "PAD": padded(num_labels), "WIDTH": width(num_labels), "BLOCK": block,
        "SINGLE": replicas == 1, "SPREAD": triton.next_power_of_2(max(2 * len(displacements), 1)),
        **edges.flags(rows), **launch.options(roomy=launch.fused),
    }  # fmt: skip
    place = (labels, field, stay, rows, displacements)
    if launch.fused:
        together = launch.together(replicas, slots // max(colors, 1))
        groups = -(-replicas // together)
        room = max(longest * together, 1)
        scratch = torch.empty((images * groups, 2, room, 2), dtype=torch.int32, device=device)
        incremental_fused[(images * groups,)](
            *place, phases, position, site, lookup, counts, index, count, flips, scratch, *edges, scale, *key, purpose, sweeps,
            groups, together, room, replicas, volume, slots, colors, len(displacements), edges.weighed, SCAN=launch.scan,
            **shape,
        )  # fmt: skip
        return
    scratch = torch.empty((images * -(-longest * replicas // block), block, 2), dtype=torch.int32, device=device)
    for done in range(sweeps):
        for phase, (first, last) in enumerate(pairwise(bounds)):
            blocks = -(-(last - first) * replicas // block)
            if blocks:
                incremental_phase[(images * blocks,)](
                    *place, position, site, lookup, counts, index, count, flips, scratch, *edges, scale, *key, purpose, done,
                    first, last - first, phase, blocks, replicas, volume, slots, colors, len(displacements), edges.weighed,
                    **shape,
                )  # fmt: skip
