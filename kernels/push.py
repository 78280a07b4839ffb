"""What does a flip change? Row differences at its neighbours, one lane to a neighbour.

A neighbour at +d_c gains ``pairwise[c, new, :] - pairwise[c, old, :]`` and one at -d_c the same of columns, of the table that
the edge's kind chooses; and of each gated table the difference of the two rows, each weighed and rounded by itself, so that
what was added for the old label is taken away to the last bit.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl
from tritoncrf.kernels.edges import weigh_row
from tritoncrf.kernels.rows import table_base


@triton.jit
def gates_of(gates, image, place, behind, own, weighed, slots, asked, LABELS: tl.constexpr, GATES: tl.constexpr):
    """Gates uint8 [B] of flips' edges, rank by rank, and the first rows int32 [B] of the tables that neighbours then read.

    place: int32 [B], which of the classes with gates an edge is of; behind: bool [B], whether the neighbour is its first end;
    own: int32 [B], the flips' columns; asked: bool [B], whether there are gates.
    """
    weights, tables = (), ()
    for rank in tl.static_range(GATES):
        side = place * (2 * GATES) + rank
        gate = gates + (image.to(tl.int64) * (2 * GATES * weighed) + side + tl.where(behind, GATES, 0)) * slots + own
        weights = weights + (tl.load(gate, mask=asked, other=0),)  # noqa: RUF005
        # The neighbour sees the flipped site at the edge's other end.
        tables = tables + ((side + tl.where(behind, 0, GATES)) * (LABELS + 1),)  # noqa: RUF005
    return weights, tables


@triton.jit
def gated_change(gated, weights, tables, word, shift, asked, PAD: tl.constexpr, GATES: tl.constexpr):
    """Differences float32 [B, WIDTH] of gated rows at the columns ``shift``, of flips ``old | new`` int32 [B]."""
    new, old = word & 0xFF, (word >> 8) & 0xFF
    change = shift * 0.0
    for rank in tl.static_range(GATES):
        gain = tl.load((gated + (tables[rank] + new) * PAD)[:, None] + shift, mask=asked[:, None], other=0.0)
        loss = tl.load((gated + (tables[rank] + old) * PAD)[:, None] + shift, mask=asked[:, None], other=0.0)
        change += weigh_row(weights[rank], gain) - weigh_row(weights[rank], loss)
    return change


@triton.jit
def push(
    field, bounds, rows, displacements, edges, lookup, changes, changed, image, replicas, volume, slots, classes, weighed,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SPREAD: tl.constexpr,
    KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Adds the listed flips' row differences to the energies of their neighbours, whose stay bounds end."""
    kinds, gates, gated, gating = edges
    column = tl.arange(0, WIDTH)
    # A lane keeps its neighbour through all flips, SPREAD >= 2 * classes lanes to a flip.
    TILE: tl.constexpr = SPREAD if SPREAD < BLOCK else BLOCK
    for part in tl.static_range(SPREAD // TILE):
        k = part * TILE + tl.arange(0, BLOCK) % TILE
        behind = k >= classes
        step = tl.load(displacements + tl.where(behind, k - classes, k), mask=k < 2 * classes, other=0)
        step = tl.where(behind, -step, step)
        # The neighbour at +d sees the flipped site at -d: the second half of the rows, and the other way round.
        base = table_base(tl.where(behind, k - classes, k + classes), LABELS, KINDS)
        if GATES:
            place = tl.load(gating + tl.where(behind, k - classes, k), mask=k < 2 * classes, other=-1)
        for begin in range(0, changed, BLOCK // TILE):
            flip = begin + tl.arange(0, BLOCK) // TILE
            live = (flip < changed) & (k < 2 * classes)
            change = changes + 2 * flip.to(tl.int64)
            target = tl.load(change, mask=live, other=0, cache_modifier=".cg") + step
            word = tl.load(change + 1, mask=live, other=0, cache_modifier=".cg")
            theirs = tl.load(lookup + image.to(tl.int64) * volume + target, mask=live, other=-1)
            live = live & (theirs >= 0)
            to = (image.to(tl.int64) * replicas + ((word >> 16) & 0xFFFF)) * slots + theirs
            table = base
            if KINDS or GATES:
                # The edge is the same one seen from either end: its kind and gates stand in the flipped site's lists too.
                own = tl.load(lookup + image.to(tl.int64) * volume + target - step, mask=live, other=0)
            if KINDS:
                kind = kinds + (image.to(tl.int64) * (2 * classes) + k) * slots + own
                table = base + tl.load(kind, mask=live, other=0).to(tl.int32) * (LABELS + 1)
            if GATES:
                asked = live & (place >= 0)
                weights, tables = gates_of(gates, image, place, behind, own, weighed, slots, asked, LABELS, GATES)
            new = rows + (table + (word & 0xFF)) * PAD
            old = rows + (table + ((word >> 8) & 0xFF)) * PAD
            for q in tl.static_range(PAD // WIDTH):
                shift = (q * WIDTH + column)[None, :]
                gain = tl.load(new[:, None] + shift, mask=live[:, None], other=0.0)
                loss = tl.load(old[:, None] + shift, mask=live[:, None], other=0.0)
                if GATES:
                    gain += gated_change(gated, weights, tables, word, shift, asked, PAD, GATES)
                tl.atomic_add((field + to * PAD)[:, None] + shift, gain - loss, mask=live[:, None], sem="relaxed")
            tl.store(bounds + to, tl.zeros((BLOCK,), tl.float32), mask=live)
