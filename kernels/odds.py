"""Which sites surely keep their label? Upper bounds of the odds against staying, one whole number a free site.

    odds = sum_(l != y) w_l / w_y,    the label y stays wherever  u (1 + odds) < 1 - margin.

A flip adds ``d = row[new] - row[old]`` to a neighbour's energies, which multiplies its odds by at most
``2^((d_y - min d) scale) <= 2^((spread[new] + spread[old]) scale)``, spread being a row's largest minus its smallest entry. So
bounds are kept as ``1024 log2 odds``, rounded up: a flip is one atomic addition a neighbour, exact in any order, where a field
of energies would take one for every label. A gate b / 128 weighs a row's spread, and rounding may add a step to it.

Bounds belong to a scale (rule 3), whose bits stand beside them for each chain; those of another are of no use.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl
from tritoncrf.kernels.draw import MOST, UNITS, uniform
from tritoncrf.kernels.edges import UNIT
from tritoncrf.kernels.rows import STEP, table_base

# Odds of which nothing is known; far above those that any u lies under, far below overflow.
UNKNOWN = 1 << 28
NOTHING = tl.constexpr(UNKNOWN)
# Below it, odds and u leave a label no doubt: a draw's own roundings, of L additions and some more, change nothing.
MARGIN = tl.constexpr(2.0**-23)


@triton.jit
def doubtful(odds, site, valid, listed, row, replica, known, sweep, index, purpose, key0, key1, LABELS: tl.constexpr):
    """The lanes' uniform numbers float32 [B], and which of them may move their labels; all where bounds are not known."""
    u = uniform(tl.load(site + listed, mask=valid, other=0), sweep, index, replica, purpose, key0, key1)
    # Additions are made in L2: what L1 holds is older.
    bound = tl.where(known, tl.load(odds + row, mask=valid, other=0, cache_modifier=".cg"), NOTHING)
    stays = u * (1.0 + tl.exp2(bound.to(tl.float32) * (1.0 / UNITS))) < 1.0 - (LABELS + 64) * MARGIN
    return u, valid & ~stays


@triton.jit
def rise_of_gates(
    steep, gates, image, place, behind, own, word, weighed, slots, asked, LABELS: tl.constexpr, GATES: tl.constexpr
):  # fmt: skip
    """Energies float32 [B] by which a flip ``old | new`` (int32 [B]) can change gated rows of its neighbours.

    steep: as in `Edges`; place: int32 [B], which of the classes with gates an edge is of; behind: bool [B], whether the
    neighbour is its first end; own: int32 [B], the flips' columns; asked: bool [B], whether there are gates.
    """
    new, old = word & 0xFF, (word >> 8) & 0xFF
    rise = new * 0.0
    for rank in tl.static_range(GATES):
        side = place * (2 * GATES) + rank
        gate = gates + (image.to(tl.int64) * (2 * GATES * weighed) + side + tl.where(behind, GATES, 0)) * slots + own
        weight = tl.load(gate, mask=asked, other=0).to(tl.int32).to(tl.float32) * UNIT
        # The neighbour sees the flipped site at the edge's other end.
        table = (side + tl.where(behind, 0, GATES)) * (LABELS + 1)
        gain = tl.load(steep + table + new, mask=asked, other=0.0)
        loss = tl.load(steep + table + old, mask=asked, other=0.0)
        most = tl.minimum(gain, weight * gain + STEP) + tl.minimum(loss, weight * loss + STEP)
        rise += tl.where(weight > 0.0, most, 0.0)
    return rise


@triton.jit
def push(
    odds, spreads, steep, steps, edges, lookup, changes, changed, image, apart, replicas, volume, slots, classes,
    weighed, scale,
    LABELS: tl.constexpr, LANES: tl.constexpr, SPREAD: tl.constexpr, KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Raises the bounds of the listed flips' neighbours, one lane to a neighbour.

    changes: int32 [changed, 2], position and ``replica | old | new`` of each flip; SPREAD >= 2 * classes lanes to a flip.
    """
    kinds, gates, gating = edges
    # A lane keeps its neighbour through all flips.
    TILE: tl.constexpr = SPREAD if SPREAD < LANES else LANES
    for part in tl.static_range(SPREAD // TILE):
        k = part * TILE + tl.arange(0, LANES) % TILE
        behind = k >= classes
        own_class = tl.where(behind, k - classes, k)
        inside = k < 2 * classes
        step = tl.load(steps + own_class, mask=inside, other=0)
        step = tl.where(behind, -step, step)
        # The neighbour at +d sees the flipped site behind itself, and the other way round.
        base = table_base(own_class, tl.where(behind, 0, 1), LABELS, KINDS)
        if GATES:
            place = tl.load(gating + own_class, mask=inside, other=-1)
        for begin in range(0, changed, LANES // TILE):
            flip = begin + tl.arange(0, LANES) // TILE
            live = (flip < changed) & inside
            change = changes + 2 * flip.to(tl.int64)
            target = tl.load(change, mask=live, other=0) + step
            word = tl.load(change + 1, mask=live, other=0)
            listed = lookup + (image * apart).to(tl.int64) * volume + target
            theirs = tl.load(listed, mask=live, other=-1)
            live = live & (theirs >= 0)
            table = base
            if KINDS or GATES:
                # The edge is the same one seen from either end: its kind and gates stand in the flipped site's lists too.
                own = tl.load(listed - step, mask=live, other=0)
            if KINDS:
                kind = kinds + (image.to(tl.int64) * (2 * classes) + 2 * own_class + tl.where(behind, 1, 0)) * slots + own
                table = base + tl.load(kind, mask=live, other=0).to(tl.int32) * (LABELS + 1)
            rise = tl.load(spreads + table + (word & 0xFF), mask=live, other=0.0)
            rise += tl.load(spreads + table + ((word >> 8) & 0xFF), mask=live, other=0.0)
            if GATES:
                asked = live & (place >= 0)
                rise += rise_of_gates(steep, gates, image, place, behind, own, word, weighed, slots, asked, LABELS, GATES)
            # Rows that are flat, as those of classes that fill up the list are, change nothing.
            live = live & (rise > 0.0)
            # So much leaves no u covered, and more might overflow.
            units = tl.minimum(rise * scale * UNITS, MOST).to(tl.int32) + 2
            to = (image.to(tl.int64) * replicas + ((word >> 16) & 0xFFFF)) * slots + theirs
            tl.atomic_add(odds + to, units, mask=live, sem="relaxed")
