"""Where do a site's energies come from? Rows of L numbers, one lane per site, read in pieces and split into registers.

A row holds PAD >= L numbers, PAD a multiple of WIDTH (4, or 2 for two labels), so that a lane reads 16 bytes at once. The
pieces [B, WIDTH] of a row add up to its site's energies: its unary row plus, for every class c, the row
``pairwise[c, :, y]`` of the neighbour at +d_c and ``pairwise[c, y, :]`` of the one at -d_c, of the table that the edge's kind
chooses where there are kinds. Rule 1 makes the order harmless.

Where every table entry lies in [-8, 8 - 2^-12], gather reads half the bytes: int16 units of 2^-12, two to a 32-bit word
``w = 65536 high + (low + 32768)``. ``S = sum w`` may wrap, ``H = sum (w >> 16)`` is the sum of the high halves, and
``S - 65536 H`` that of the low ones, exactly. At 20 labels on sm_90 a neighbour takes 34 instructions (47 if each number is
widened by itself, 41.5 in float32) and 40 bytes in 3 loads (80 in 5). Whether the entries fit is a number on the device that
kernels branch on, made with the rows: the host never waits to know it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STEP = tl.constexpr(2.0**-12)


def padded(labels: int) -> int:
    """Numbers a row of ``labels`` energies takes in memory."""
    return 2 if labels == 2 else -(-labels // 4) * 4


def width(labels: int) -> int:
    """Numbers that one load of a lane takes."""
    return 2 if labels == 2 else 4


def pitch(labels: int) -> int:
    """Words from one packed row to the next: a lane reads 16 bytes at once where there are as many."""
    pad = padded(labels)
    return pad // 2 if pad < 8 else -(-pad // 8) * 4


def pack(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Table rows float32 ``[..., PAD]`` as words int32 ``[..., pitch]``, and int32 ``[1]``: 1 where all entries fit, else 0.

    Of eight labels four words hold one half each and its other half four labels on; of the last four, two words two
    neighbouring labels each. Words of entries that do not fit are not for use.
    """
    fits = ((rows >= -8.0) & (rows <= 8.0 - 2.0**-12)).all().int().view(1)
    units = (rows.nan_to_num().clamp(-8.0, 8.0 - 2.0**-12) * 4096.0).int()
    eights = units.shape[-1] // 8 * 8
    fours = units[..., :eights].unflatten(-1, (-1, 2, 4))
    twos = units[..., eights:].unflatten(-1, (-1, 2))
    low = torch.cat([fours[..., 0, :].flatten(-2), twos[..., 0]], -1)
    high = torch.cat([fours[..., 1, :].flatten(-2), twos[..., 1]], -1)
    words = high * 65536 + (low + 32768)
    return torch.nn.functional.pad(words, (0, pitch(rows.shape[-1]) - words.shape[-1])), fits


@triton.jit
def lanes(item, length, available, replicas, SINGLE: tl.constexpr):
    """The site and replica of each item: rank int32 [B] in the phase, replica int32 [B], and which items are free sites.

    Items, int32 [B], are numbered replica by replica, ``length`` to each; the first ``available`` of them are free sites.
    """
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
def table_base(k, LABELS: tl.constexpr, KINDS: tl.constexpr):
    """Which row is the first of class k? Tables have L + 1 rows, and a class KINDS tables, or one if that is 0."""
    return k * ((KINDS if KINDS else 1) * (LABELS + 1))


@triton.jit
def of_kind(ahead, behind, kinds, k, classes, slots, mask, LABELS: tl.constexpr, KINDS: tl.constexpr):
    """Rows int32 [B] within class k of neighbours' labels: in the tables that the kinds of their edges choose."""
    if KINDS:
        pitch = slots.to(tl.int64)
        near = tl.load(kinds + k * pitch, mask=mask, other=0).to(tl.int32)
        far = tl.load(kinds + (classes + k) * pitch, mask=mask, other=0).to(tl.int32)
        ahead, behind = ahead + near * (LABELS + 1), behind + far * (LABELS + 1)
    return ahead, behind


@triton.jit
def add_neighbours(
    pieces, here, rows, displacements, kinds, classes, slots, mask,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, CACHE: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """Adds the table rows of all neighbours to a tuple of pieces.

    here: uint8 pointers [B] to the sites' labels; rows: float32 [2, classes, R, L + 1, PAD]; displacements: int32 [classes];
    kinds: uint8 pointers [B] to the first of the sites' kinds, not read if KINDS is 0, else it is R.
    """
    column = tl.arange(0, WIDTH)
    half = table_base(classes, LABELS, KINDS)
    for k in range(classes):
        step = tl.load(displacements + k)
        ahead = tl.load(here + step, mask=mask, other=LABELS, cache_modifier=CACHE).to(tl.int32)
        behind = tl.load(here - step, mask=mask, other=LABELS, cache_modifier=CACHE).to(tl.int32)
        ahead, behind = of_kind(ahead, behind, kinds, k, classes, slots, mask, LABELS, KINDS)
        first = rows + (table_base(k, LABELS, KINDS) + ahead) * PAD
        second = rows + (half + table_base(k, LABELS, KINDS) + behind) * PAD
        total = ()
        for q in tl.static_range(PAD // WIDTH):
            one = tl.load(first[:, None] + (q * WIDTH + column)[None, :])
            two = tl.load(second[:, None] + (q * WIDTH + column)[None, :])
            total = total + (pieces[q] + one + two,)  # noqa: RUF005
        pieces = total
    return pieces


@triton.jit
def load_words(pointer, q: tl.constexpr, COUNT: tl.constexpr):
    """int32 [B, COUNT], the words from 4 q on behind ``pointer`` [B]."""
    return tl.load(pointer[:, None] + (q * 4 + tl.arange(0, COUNT))[None, :])


@triton.jit
def add_packed(
    pieces, here, words, displacements, kinds, classes, slots, mask,
    LABELS: tl.constexpr, PAD: tl.constexpr, CACHE: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """What `add_neighbours` does, from words int32 [2, classes, R, L + 1, pitch] of `pack` whose entries fit."""
    PITCH: tl.constexpr = PAD // 2 if PAD < 8 else (PAD + 7) // 8 * 4
    PIECES: tl.constexpr = (PAD + 7) // 8
    # Words in the last piece: 4, 2 (four labels) or 1 (two).
    LAST: tl.constexpr = 4 if PAD % 8 == 0 else PAD % 8 // 2
    sums, highs = (), ()
    for q in tl.static_range(PIECES):
        start = tl.zeros((mask.shape[0], 4 if q < PIECES - 1 else LAST), tl.int32)
        sums, highs = sums + (start,), highs + (start,)  # noqa: RUF005
    half = table_base(classes, LABELS, KINDS)
    for k in range(classes):
        step = tl.load(displacements + k)
        ahead = tl.load(here + step, mask=mask, other=LABELS, cache_modifier=CACHE).to(tl.int32)
        behind = tl.load(here - step, mask=mask, other=LABELS, cache_modifier=CACHE).to(tl.int32)
        ahead, behind = of_kind(ahead, behind, kinds, k, classes, slots, mask, LABELS, KINDS)
        first = words + (table_base(k, LABELS, KINDS) + ahead) * PITCH
        second = words + (half + table_base(k, LABELS, KINDS) + behind) * PITCH
        new_sums, new_highs = (), ()
        for q in tl.static_range(PIECES):
            one = load_words(first, q, 4 if q < PIECES - 1 else LAST)
            two = load_words(second, q, 4 if q < PIECES - 1 else LAST)
            both = tl.add(one, two, sanitize_overflow=False)
            new_sums = new_sums + (tl.add(sums[q], both, sanitize_overflow=False),)  # noqa: RUF005
            new_highs = new_highs + (highs[q] + (one >> 16) + (two >> 16),)  # noqa: RUF005
        sums, highs = new_sums, new_highs
    total = ()
    for q in tl.static_range(PIECES):
        # Every row lent its low halves 32768.
        low = tl.sub(tl.sub(sums[q], highs[q] << 16, sanitize_overflow=False), classes << 16, sanitize_overflow=False)
        even, odd = low.to(tl.float32) * STEP, highs[q].to(tl.float32) * STEP
        if q < PIECES - 1 or LAST == 4:
            total = total + (pieces[2 * q] + even, pieces[2 * q + 1] + odd)  # noqa: RUF005
        else:
            together = tl.reshape(tl.join(even, odd), (mask.shape[0], 2 * LAST))
            total = total + (pieces[2 * q] + together,)  # noqa: RUF005
    return total
