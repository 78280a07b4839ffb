"""Which conditionals still stand? Sweeps whose local conditionals are averaged, each computed once while it stands.

A site's conditional depends on its neighbours' labels alone, and stands from sweep to sweep until one of them flips. It is
added once, times the number of sweeps that it stood, when that happens: from a second copy of the labels, which a sweep's
flips reach only after that. So a site keeps the sweep that its conditional stands since, and a mark.

What is told of a chain is the sum over free sites of the energy of their own label given the rest. A pass over all sites at
the end gives the last one; each earlier sweep's is less by what changed at flipped sites and at their neighbours. Energies are
multiples of 2^-12 (rule 1), so float64 sums them exactly in any order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, attr-defined"

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.draw import far, weigh
from tritoncrf.kernels.edges import NONE, Edges, neighbours, own_energy
from tritoncrf.kernels.listing import Listing
from tritoncrf.kernels.rows import load_row, padded, separate, width
from tritoncrf.kernels.tables import Rows

# Sites that a program looks at for marks, or positions for flips.
SCAN = 1024


@triton.jit(do_not_specialize=["blocks", "apart", "replicas", "volume", "slots", "classes"])
def mark_stale(
    labels, before, marks, lookup, steps, scratch, blocks, apart, replicas, volume, slots, classes,
    SPREAD: tl.constexpr, LANES: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    """Marks what a flip changes; program ``chain * blocks + block`` takes SCAN positions.

    labels, before: uint8 [N, R, volume]; marks: uint8 [N, R, slots], by rank; lookup: as in `Listing`; steps: int32 [classes],
    displacements; scratch: int32 [programs, SCAN]. SPREAD >= 2 * classes lanes to a flip.
    """
    chain = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks) * SCAN + tl.arange(0, SCAN)
    row = chain * volume + place
    new = tl.load(labels + row, mask=place < volume, other=0)
    flipped = new != tl.load(before + row, mask=place < volume, other=0)
    listed = scratch + tl.program_id(0).to(tl.int64) * SCAN
    tl.store(listed + tl.cumsum(flipped.to(tl.int32), 0) - 1, place, mask=flipped)
    many = tl.sum(flipped.to(tl.int32), 0)
    tl.debug_barrier()
    rank = lookup + (chain // replicas * apart) * volume
    own = marks + chain * slots
    for start in range(0, many, LANES):
        flip = start + tl.arange(0, LANES)
        where = tl.load(listed + flip, mask=flip < many, other=0)
        # Whatever flips is free.
        tl.store(own + tl.load(rank + where, mask=flip < many, other=0), flip * 0 + 1, mask=flip < many)
    TILE: tl.constexpr = SPREAD if SPREAD < LANES else LANES
    for part in tl.static_range(SPREAD // TILE):
        k = part * TILE + tl.arange(0, LANES) % TILE
        inside = k < 2 * classes
        step = tl.load(steps + tl.where(k >= classes, k - classes, k), mask=inside, other=0)
        step = tl.where(k >= classes, -step, step)
        for start in range(0, many, LANES // TILE):
            flip = start + tl.arange(0, LANES) // TILE
            live = inside & (flip < many)
            where = tl.load(listed + flip, mask=live, other=0) + step
            theirs = tl.load(rank + where, mask=live, other=-1)
            tl.store(own + theirs, flip * 0 + 1, mask=live & (theirs >= 0))


SCALARS = ["done", "turn", "blocks", "apart", "replicas", "volume", "slots", "classes", "weighed", "sweeps"]


@triton.jit(do_not_specialize=SCALARS)
def settle(
    labels, before, marks, since, unary, rows, words, steepest, steps, slot, position, bad, out, energy, scratch, kinds, gates,
    gated, gating, scale, done, turn, blocks, apart, replicas, volume, slots, classes, weighed, sweeps,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr, EVERY: tl.constexpr,
    KINDS: tl.constexpr, GATES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Adds to ``out`` what stood; program ``image * blocks + block`` takes SCAN ranks and goes through the replicas.

    before: uint8 [N, R, volume], the labels that the marked sites' conditionals stood by until now; marks: uint8 [N, R, slots]
    by rank, taken away; since: int32 [N, R, slots], sweeps done when each began to stand, set to ``done``; energy: float64
    [N, R, sweeps], to whose ``turn`` is added by how much the own energies of marked sites are larger by labels than by before,
    or, of EVERY site, their energies; scratch: int32 [programs, SCAN]; the rest as in `add_conditionals`.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    seen = (tl.program_id(0) % blocks) * SCAN + tl.arange(0, SCAN)
    exists = tl.load(position + image * apart * slots + seen, mask=seen < slots, other=-1) >= 0
    listed = scratch + tl.program_id(0).to(tl.int64) * SCAN
    tables = (rows, words, tl.load(steepest), steps)
    edges = (kinds, gates, gated, gating)
    go = 1
    if bad is not None:
        go = tl.where(tl.load(bad) == 0, 1, 0)
    for replica in range(replicas * go):
        chain = image * replicas + replica
        stale = exists
        if not EVERY:
            stale = exists & (tl.load(marks + chain * slots + seen, mask=exists, other=0) != 0)
            tl.store(marks + chain * slots + seen, seen * 0, mask=stale)
        tl.store(listed + tl.cumsum(stale.to(tl.int32), 0) - 1, seen, mask=stale)
        many = tl.sum(stale.to(tl.int32), 0)
        tl.debug_barrier()
        gain = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, many, BLOCK):
            item = start + tl.arange(0, BLOCK)
            valid = item < many
            rank = tl.load(listed + item, mask=valid, other=0)
            column = image * apart * slots + rank
            # In the middle all neighbours lie within the row.
            where = chain * volume + tl.where(valid, tl.load(position + column, mask=valid, other=0), volume // 2)
            row = image * slots + tl.load(slot + column, mask=valid, other=0)
            alone = load_row(unary + row * PAD, valid, PAD, WIDTH)
            pieces = neighbours(
                before + where, image, rank, tables, edges, classes, weighed, slots, 0, False, LABELS, PAD, WIDTH, 1, 1, KINDS,
                GATES,
            )  # fmt: skip
            both = ()
            for q in tl.static_range(PAD // WIDTH):
                both = both + (alone[q] + pieces[q],)  # noqa: RUF005
            weights, total = weigh(separate(both, PAD, WIDTH), scale, LABELS, FAR)
            stood = done - tl.load(since + chain * slots + rank, mask=valid, other=0)
            tl.store(since + chain * slots + rank, rank * 0 + done, mask=valid)
            target = out + row * LABELS
            for label in tl.static_range(LABELS):
                share = tl.div_rn(weights[label], total * replicas).to(tl.float64) * stood
                so_far = tl.load(target + label, mask=valid, other=0.0)
                tl.store(target + label, so_far + share, mask=valid)
            new = tl.load(labels + where, mask=valid, other=0).to(tl.int32)
            own = own_energy(
                labels + where, new, image, rank, tables, edges, classes, weighed, slots, LABELS, PAD, KINDS, GATES
            )
            own += tl.load(unary + row * PAD + new, mask=valid, other=0.0)
            if not EVERY:
                old = tl.load(before + where, mask=valid, other=0).to(tl.int32)
                own -= own_energy(
                    before + where, old, image, rank, tables, edges, classes, weighed, slots, LABELS, PAD, KINDS, GATES
                )
                own -= tl.load(unary + row * PAD + old, mask=valid, other=0.0)
            gain += tl.where(valid, own, 0.0).to(tl.float64)
        tl.atomic_add(energy + chain * sweeps + turn, tl.sum(gain, 0), sem="relaxed")
        # The next replica's list takes this one's place.
        tl.debug_barrier()


def average(
    sweep: Callable[[int], Tensor], sweeps: int, labels: Tensor, unary: Tensor, tables: Rows, steps: Tensor, listing: Listing,
    bad: Tensor | None, out: Tensor, scale: float, num_labels: int, block: int, warps: int, edges: Edges = NONE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Flips int64 ``[N, R]`` of ``sweeps`` calls of ``sweep``, told how many were before, and the energies after each.

    Adds each free site's conditional after each of them, averaged over replicas, to ``out`` float64 ``[N, S, L]``. Energies:
    float64 ``[N, R, sweeps]``.
    """
    images, replicas, volume = labels.shape
    slots, classes, device = unary.shape[1], len(steps), labels.device
    marks = torch.zeros((images, replicas, slots), dtype=torch.uint8, device=device)
    since = torch.zeros((images, replicas, slots), dtype=torch.int32, device=device)
    energy = torch.zeros((images, replicas, sweeps), dtype=torch.float64, device=device)
    across, along = -(-volume // SCAN), -(-slots // SCAN)
    scratch = torch.empty(images * max(replicas * across, along) * SCAN, dtype=torch.int32, device=device)
    apart = int(len(listing.slot) > 1)

    def settled(done: int, turn: int, every: bool) -> None:
        launch(
            settle, images * along, labels, before, marks, since, unary, tables.rows, tables.words, tables.steepest, steps,
            listing.slot, listing.position, bad, out, energy, scratch, *edges[:4], scale, done, turn, along, apart, replicas,
            volume, slots, classes, edges.weighed, sweeps, LABELS=num_labels, PAD=padded(num_labels), WIDTH=width(num_labels),
            BLOCK=block, SCAN=SCAN, EVERY=every, **edges.flags(tables.rows), FAR=far(scale), num_warps=warps,
            enable_fp_fusion=False, maxnreg=255,
        )  # fmt: skip

    flips, before = sweep(0), labels.clone()
    for done in range(1, sweeps):
        flips += sweep(done)
        launch(
            mark_stale, images * replicas * across, labels, before, marks, listing.lookup, steps, scratch, across, apart,
            replicas, volume, slots, classes, SPREAD=triton.next_power_of_2(max(2 * classes, 1)), LANES=128, SCAN=SCAN,
            num_warps=4, enable_fp_fusion=False, maxnreg=255,
        )  # fmt: skip
        settled(done, done, every=False)
        before.copy_(labels)
    settled(sweeps, 0, every=True)
    # The first number is the last sweep's, the others are changes: what is earlier lacks those that came later.
    last, changes = energy[..., :1], energy[..., 1:]
    later = changes.flip(-1).cumsum(-1).flip(-1)
    return flips, torch.cat([last - later, last], -1)
