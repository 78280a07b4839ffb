"""Where do a site's energies come from? Rows of L numbers, one lane per site, read in pieces and split into registers.

A row holds PAD >= L numbers, PAD a multiple of WIDTH (4, or 2 for two labels), so that a lane reads 16 bytes at once. The
pieces [B, WIDTH] of a row add up to its site's energies: its unary row plus, for every class c, the row
``pairwise[c, :, y]`` of the neighbour at +d_c and ``pairwise[c, y, :]`` of the one at -d_c. Rule 1 makes the order harmless.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl


def padded(labels: int) -> int:
    """Numbers a row of ``labels`` energies takes in memory."""
    return 2 if labels == 2 else -(-labels // 4) * 4


def width(labels: int) -> int:
    """Numbers that one load of a lane takes."""
    return 2 if labels == 2 else 4


@triton.jit
def lanes(start, length, available, replicas, BLOCK: tl.constexpr, SINGLE: tl.constexpr):
    """Which site and replica each lane holds: rank int32 [B] in the phase, replica int32 [B], and which lanes hold one.

    Items are numbered replica by replica, ``length`` to each; the first ``available`` of them are free sites.
    """
    item = start + tl.arange(0, BLOCK)
    if SINGLE:
        rank = item
        replica = item * 0
    else:
        replica = item // length
        rank = item - replica * length
    return rank, replica, (replica < replicas) & (rank < available)


@triton.jit
def load_row(pointer, mask, PAD: tl.constexpr, WIDTH: tl.constexpr, CACHE: tl.constexpr):
    """The row at ``pointer`` [B] (float32) as a tuple of pieces [B, WIDTH]; 0 where masked."""
    column = tl.arange(0, WIDTH)
    pieces = ()
    for q in tl.static_range(PAD // WIDTH):
        where = pointer[:, None] + (q * WIDTH + column)[None, :]
        piece = tl.load(where, mask=mask[:, None], other=0.0, cache_modifier=CACHE)
        pieces = pieces + (piece,)  # noqa: RUF005
    return pieces


@triton.jit
def store_row(pointer, pieces, mask, PAD: tl.constexpr, WIDTH: tl.constexpr):
    """Writes a tuple of pieces [B, WIDTH] as the row at ``pointer`` [B]."""
    column = tl.arange(0, WIDTH)
    for q in tl.static_range(PAD // WIDTH):
        tl.store(pointer[:, None] + (q * WIDTH + column)[None, :], pieces[q], mask=mask[:, None])


@triton.jit
def separate(pieces, PAD: tl.constexpr, WIDTH: tl.constexpr):
    """Pieces [B, WIDTH] -> a tuple of PAD tensors [B], label by label."""
    energies = ()
    for q in tl.static_range(PAD // WIDTH):
        piece = pieces[q]
        if WIDTH == 2:
            first, second = tl.split(piece)
            energies = energies + (first, second)  # noqa: RUF005
        else:
            even, odd = tl.split(tl.reshape(piece, (piece.shape[0], 2, 2)))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            energies = energies + (first, second, third, fourth)  # noqa: RUF005
    return energies


@triton.jit
def add_neighbours(
    pieces, here, rows, displacements, classes, mask,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, CACHE: tl.constexpr,
):  # fmt: skip
    """Adds the table rows of all neighbours to a tuple of pieces.

    here: uint8 pointers [B] to the sites' labels; rows: float32 [2, classes, L + 1, PAD]; displacements: int32 [classes].
    """
    column = tl.arange(0, WIDTH)
    half = classes * (LABELS + 1)
    for k in range(classes):
        step = tl.load(displacements + k)
        ahead = tl.load(here + step, mask=mask, other=LABELS, cache_modifier=CACHE).to(tl.int32)
        behind = tl.load(here - step, mask=mask, other=LABELS, cache_modifier=CACHE).to(tl.int32)
        first = rows + (k * (LABELS + 1) + ahead) * PAD
        second = rows + (half + k * (LABELS + 1) + behind) * PAD
        total = ()
        for q in tl.static_range(PAD // WIDTH):
            one = tl.load(first[:, None] + (q * WIDTH + column)[None, :])
            two = tl.load(second[:, None] + (q * WIDTH + column)[None, :])
            total = total + (pieces[q] + one + two,)  # noqa: RUF005
        pieces = total
    return pieces
