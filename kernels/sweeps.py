"""How do chains move? All sweeps of a batch in one launch: list a colour's doubtful sites, redraw, tell neighbours.

A team of programs, most often of one, holds a group of an image's chains and goes through all colours of all sweeps. Of a
colour each program takes its stretch of the free sites. LAZY passes over those whose odds against staying are known to be small
(`tritoncrf.kernels.odds`), without reading anything else of them; otherwise every site is redrawn. A redraw gathers the
site's energies (`tritoncrf.kernels.rows`), draws by rule 3, writes the label, and leaves the new odds. Sites of a colour are no
neighbours, so their order changes no bit.

Between colours a team meets (`tritoncrf.kernels.teams`). Labels and odds are those of a team alone, lists those of a program;
flips are added up atomically.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, attr-defined"

from __future__ import annotations

import struct
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.draw import draw, far, uniform
from tritoncrf.kernels.edges import NONE, Edges, neighbours
from tritoncrf.kernels.listing import Listing
from tritoncrf.kernels.odds import doubtful, push
from tritoncrf.kernels.rows import lanes, load_row, padded, separate, width
from tritoncrf.kernels.shapes import Launch
from tritoncrf.kernels.tables import Rows
from tritoncrf.kernels.teams import APART, meet, with_room

SCALARS = [
    "scale", "mark", "key0", "key1", "purpose", "sweeps", "groups", "together", "team", "room", "apart", "replicas", "volume",
    "slots", "colors", "classes", "weighed",
]  # fmt: skip


@triton.jit
def redraw(
    labels, unary, tables, edges, lists, flips, odds, waiting, changes, changed, moved, image, origin, start, end, first,
    length, available, here_replicas, sweep, index, scale, key0, key1, purpose, apart, replicas, volume, slots, classes,
    weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr,
    SINGLE: tl.constexpr, LAZY: tl.constexpr, FAR: tl.constexpr, KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Redraws items ``start`` to ``end`` of a colour, or of the waiting ones, at most LANES / SPLIT of them.

    labels, unary, flips, odds: as in `sweep_chains`; tables, edges, lists: tuples of its pointers; LAZY: waiting: the program's
    list of items and the bits of their uniform numbers, changes: its list of flips, each int32 [room, 2]. Returns how many
    flips are now listed in ``changes`` (LAZY), and how many there were in all (SINGLE).
    """
    slot, position, site = lists
    column = (image * apart).to(tl.int64) * slots + first
    chosen = start + tl.arange(0, LANES // SPLIT)
    valid = chosen < end
    item = chosen
    if LAZY:
        item = tl.load(waiting + 2 * chosen, mask=valid, other=0)
    rank, replica, free = lanes(item, length, available, here_replicas, SINGLE)
    valid = valid & free
    replica = replica + origin
    chain = image.to(tl.int64) * replicas + replica
    # A lane without a site reads around the colour's first one, which nobody writes to now, or else in the middle of the row.
    nobody = tl.where(available > 0, tl.load(position + column), volume // 2)
    where = tl.load(position + column + rank, mask=valid, other=nobody)
    label_at = labels + chain * volume + where
    if SPLIT == 1:
        pieces = neighbours(
            label_at, image.to(tl.int64), tl.where(valid, first + rank, 0), tables, edges, classes, weighed, slots, 0, False,
            LABELS, PAD, WIDTH, SPLIT, AHEAD, KINDS, GATES,
        )  # fmt: skip
    else:
        # SPLIT lanes to a site, which all look it up.
        lane = tl.arange(0, LANES)
        shared = start + lane // SPLIT
        shared_valid = shared < end
        if LAZY:
            shared = tl.load(waiting + 2 * shared, mask=shared_valid, other=0)
        shared_rank, shared_replica, exists = lanes(shared, length, available, here_replicas, SINGLE)
        shared_valid = shared_valid & exists
        shared_at = labels + (image.to(tl.int64) * replicas + (shared_replica + origin)) * volume
        shared_at = shared_at + tl.load(position + column + shared_rank, mask=shared_valid, other=nobody)
        pieces = neighbours(
            shared_at, image.to(tl.int64), tl.where(shared_valid, first + shared_rank, 0), tables, edges, classes, weighed,
            slots, lane % SPLIT, False, LABELS, PAD, WIDTH, SPLIT, AHEAD, KINDS, GATES,
        )  # fmt: skip
    unary_row = image.to(tl.int64) * slots + tl.load(slot + column + rank, mask=valid, other=0)
    alone = load_row(unary + unary_row * PAD, valid, PAD, WIDTH)
    total = ()
    for q in tl.static_range(PAD // WIDTH):
        total = total + (alone[q] + pieces[q],)  # noqa: RUF005
    if LAZY:
        u = tl.load(waiting + 2 * chosen + 1, mask=valid, other=0).to(tl.float32, bitcast=True)
    else:
        u = uniform(tl.load(site + column + rank, mask=valid, other=0), sweep, index, replica, purpose, key0, key1)
    current = tl.load(label_at, mask=valid, other=0).to(tl.int32)
    drawn, bound = draw(separate(total, PAD, WIDTH), current, u, scale, LABELS, FAR)
    flipped = valid & (drawn != current)
    tl.store(label_at, drawn.to(tl.uint8), mask=flipped)
    many = tl.sum(flipped.to(tl.int32), 0)
    if SINGLE:
        moved += many
    else:
        tl.atomic_add(flips + chain, flipped.to(tl.int64), mask=flipped, sem="relaxed")
    if LAZY:
        tl.store(odds + chain * slots + first + rank, bound, mask=valid)
        # Position, and replica | old | new, so that a lane can then hold a flip's neighbour.
        change_at = changes + 2 * (changed + tl.cumsum(flipped.to(tl.int32), 0) - 1)
        tl.store(change_at, where, mask=flipped)
        tl.store(change_at + 1, (replica << 16) | (current << 8) | drawn, mask=flipped)
        changed += many
    return changed, moved


@triton.jit
def scan(
    odds, lists, waiting, waits, image, origin, start, end, first, length, available, here_replicas, known, sweep, index, key0,
    key1, purpose, apart, replicas, slots, LABELS: tl.constexpr, SIZE: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Lists the doubtful ones of SIZE items from ``start`` on, those below ``end``, behind the ``waits`` that are listed.

    Item and uniform number of each; returns how many are now listed.
    """
    _, _, site = lists
    item = start + tl.arange(0, SIZE)
    rank, replica, valid = lanes(item, length, available, here_replicas, SINGLE)
    valid = valid & (item < end)
    replica = replica + origin
    column = (image * apart).to(tl.int64) * slots + first + rank
    row = (image.to(tl.int64) * replicas + replica) * slots + first + rank
    u, open_ = doubtful(odds, site, valid, column, row, replica, known, sweep, index, purpose, key0, key1, LABELS)
    place = waiting + 2 * (waits + tl.cumsum(open_.to(tl.int32), 0) - 1)
    tl.store(place, item, mask=open_)
    tl.store(place + 1, u.to(tl.int32, bitcast=True), mask=open_)
    return waits + tl.sum(open_.to(tl.int32), 0)


@triton.jit(do_not_specialize=SCALARS)
def sweep_chains(
    labels, unary, rows, words, spreads, steepest, steps, color_bounds, slot, position, site, counts, lookup, index, count,
    flips, bad, odds, tags, scratch, arrivals, kinds, gates, gated, gating, steep,
    scale, mark, key0, key1, purpose, sweeps, groups, together, team, room, apart, replicas, volume, slots, colors, classes,
    weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, SPLIT: tl.constexpr, SCAN: tl.constexpr,
    WIDE: tl.constexpr, AHEAD: tl.constexpr, SPREAD: tl.constexpr, SINGLE: tl.constexpr, LAZY: tl.constexpr,
    TEAMED: tl.constexpr, FAR: tl.constexpr, KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """All colours of ``sweeps`` sweeps; program ``(image * groups + group) * team + member`` holds ``together`` replicas.

    labels: uint8 [N, R, volume], changed in place, void (L) where no site is; unary: float32 [N, slots, PAD] by slot;
    rows, words, spreads, steepest: as in `Rows`; steps: int32 [classes], displacements; color_bounds: int32 [colors + 1], the
    first column of each colour; slot, position, site, counts, lookup: as in `Listing`; index, count: int64 [N]; flips: int64
    [N, R], added to; bad: bool [1], where it is true nothing happens, or None; kinds, gates, gated, gating, steep: as in
    `Edges`. LAZY: odds: int32 [N, R, slots], tags: int32 [N, R], as in `tritoncrf.kernels.odds`, and mark: the bits of scale;
    scratch: int32 [programs, 2, room, 2]. TEAMED: arrivals: int32 [teams * 32], 0. All contiguous.

    SCAN items at once are looked at, LANES redrawn, or LANES / SPLIT by SPLIT lanes each where few are left.
    """
    member = tl.program_id(0) % team
    group = (tl.program_id(0) // team) % groups
    image = tl.program_id(0) // team // groups
    origin = group * together
    here_replicas = tl.minimum(together, replicas - origin)
    listed = image * apart
    free = 0
    for color in range(colors):
        free += tl.load(counts + listed * colors + color)
    go = free * sweeps > 0
    if bad is not None:
        go = go & (tl.load(bad) == 0)
    if go:
        begun = tl.load(count + image)
        number = tl.load(index + image)
        lists = (slot, position, site)
        tables = (rows, words, tl.load(steepest), steps)
        edges = (kinds, gates, gated, gating)
        chains = image.to(tl.int64) * replicas + origin
        # Nothing, as a number of the device: where nothing is drawn the interpreter would keep a Python 0.
        gate, waiting, changes, target, moved = arrivals, scratch, scratch, team, free * 0
        if TEAMED:
            gate = arrivals + (image * groups + group) * APART
        if LAZY:
            waiting = scratch + tl.program_id(0).to(tl.int64) * (4 * room)
            changes = waiting + 2 * room
            chosen = tl.arange(0, LANES)
            inside = chosen < here_replicas
            tag = tl.load(tags + chains + chosen, mask=inside, other=0)
            known = tl.sum((inside & (tag != mark)).to(tl.int32), 0) == 0
        for done in range(sweeps):
            for color in range(colors):
                first = tl.load(color_bounds + color)
                length = tl.load(color_bounds + color + 1) - first
                available = tl.load(counts + listed * colors + color)
                items = available if SINGLE else length * here_replicas
                stretch = (items + team - 1) // team
                begin = tl.minimum(member * stretch, items)
                end = tl.minimum(begin + stretch, items)
                changed = available * 0
                if LAZY:
                    waits = available * 0
                    # What a last large look would leave mostly idle goes by small ones.
                    whole = end - (end - begin) % SCAN
                    for start in range(begin, whole, SCAN):
                        waits = scan(
                            odds, lists, waiting, waits, image, origin, start, end, first, length, available, here_replicas,
                            known, begun + done, number, key0, key1, purpose, apart, replicas, slots, LABELS, SCAN, SINGLE,
                        )  # fmt: skip
                    for start in range(whole, end, LANES):
                        waits = scan(
                            odds, lists, waiting, waits, image, origin, start, end, first, length, available, here_replicas,
                            known, begun + done, number, key0, key1, purpose, apart, replicas, slots, LABELS, LANES, SINGLE,
                        )  # fmt: skip
                    tl.debug_barrier()
                    begin, end = 0, waits
                wide = end
                if SPLIT > 1:
                    # What a last round by single lanes would leave mostly idle goes by several lanes each.
                    rest = (end - begin) % LANES
                    wide = tl.where(rest > 2 * (LANES // SPLIT), end, end - rest)
                for start in range(begin, wide, LANES):
                    changed, moved = redraw(
                        labels, unary, tables, edges, lists, flips, odds, waiting, changes, changed, moved, image, origin,
                        start, end, first, length, available, here_replicas, begun + done, number, scale, key0, key1, purpose,
                        apart, replicas, volume, slots, classes, weighed, LABELS, PAD, WIDTH, LANES, 1, WIDE, SINGLE, LAZY,
                        FAR, KINDS, GATES,
                    )  # fmt: skip
                if SPLIT > 1:
                    for start in range(wide, end, LANES // SPLIT):
                        changed, moved = redraw(
                            labels, unary, tables, edges, lists, flips, odds, waiting, changes, changed, moved, image, origin,
                            start, end, first, length, available, here_replicas, begun + done, number, scale, key0, key1,
                            purpose, apart, replicas, volume, slots, classes, weighed, LABELS, PAD, WIDTH, LANES, SPLIT, AHEAD,
                            SINGLE, LAZY, FAR, KINDS, GATES,
                        )  # fmt: skip
                if LAZY:
                    tl.debug_barrier()
                    push(
                        odds, spreads, steep, steps, (kinds, gates, gating), lookup, changes, changed, image, apart,
                        replicas, volume, slots, classes, weighed, scale, LABELS, LANES, SPREAD, KINDS, GATES,
                    )  # fmt: skip
                # The next colour reads what was drawn and pushed, and its lists take these ones' place.
                meet(gate, target, TEAMED)
                target += team
            if LAZY:
                known = known | (done >= 0)
        if SINGLE:
            tl.atomic_add(flips + image, moved.to(tl.int64), mask=moved > 0, sem="relaxed")
        if LAZY:
            # Members have read the tags before they first met.
            chosen = tl.arange(0, LANES)
            tl.store(tags + chains + chosen, mark + chosen * 0, mask=chosen < tl.where(member == 0, here_replicas, 0))


def sweep(
    labels: Tensor, unary: Tensor, tables: Rows, steps: Tensor, color_bounds: Tensor, listing: Listing, index: Tensor,
    count: Tensor, flips: Tensor, bad: Tensor | None, field: Tensor | None, bounds: list[int], sweeps: int, scale: float,
    key: tuple[int, int], purpose: int, num_labels: int, shape: Launch, edges: Edges = NONE,
) -> None:  # fmt: skip
    """Runs ``sweeps`` sweeps in place, lazily where a field is given.

    bounds: the numbers of ``color_bounds``; key: the words as signed 32-bit integers; field: odds and tags, one behind the
    other.
    """
    images, replicas, volume = labels.shape
    slots, colors, classes = len(unary[0]), len(bounds) - 1, len(steps)
    device, longest = labels.device, max((last - first for first, last in pairwise(bounds)), default=0)
    together = shape.together(replicas, slots // max(colors, 1))
    groups = -(-replicas // together)
    odds = tags = None
    kinded = edges.kinds is not None
    if field is not None:
        odds, tags = field[: images * replicas * slots], field[images * replicas * slots :]
    (mark,) = struct.unpack("<i", struct.pack("<f", scale))

    def run(shape: Launch) -> None:
        programs, room, scratch, arrivals = images * groups * shape.team, -(-longest * together // shape.team), None, None
        if field is not None:
            scratch = torch.empty((programs, 2, max(room, 1), 2), dtype=torch.int32, device=device)
        if shape.team > 1:
            arrivals = torch.zeros(images * groups * APART.value, dtype=torch.int32, device=device)
        launch(
            sweep_chains, programs, labels, unary, tables.rows, tables.words, tables.spreads, tables.steepest, steps,
            color_bounds, *listing, index, count, flips, bad, odds, tags, scratch, arrivals, *edges, scale, mark, *key, purpose,
            sweeps, groups, together, shape.team, room, int(len(listing.slot) > 1), replicas, volume, slots, colors, classes,
            edges.weighed, LABELS=num_labels, PAD=padded(num_labels), WIDTH=width(num_labels), LANES=shape.lanes,
            SPLIT=shape.split, SCAN=shape.scan, WIDE=shape.asked(classes, 1, kinded),
            AHEAD=shape.asked(classes, shape.split, kinded), SPREAD=triton.next_power_of_2(max(2 * classes, 1)),
            SINGLE=replicas == 1, LAZY=field is not None, TEAMED=shape.team > 1, FAR=far(scale), **edges.flags(tables.rows),
            **shape.options(),
        )  # fmt: skip

    with_room(run, shape)
