"""Where do a site's energies come from? Rows of numbers, one lane per site or several, read in pieces and added up.

A site's energies are its unary row plus, for every class c, the row of the neighbour at +d_c and that of the one at -d_c
(`tritoncrf.kernels.tables`), of the table that the edge's kind chooses where there are kinds. Rule 1 makes the order harmless:
SPLIT lanes may share a site, each taking every SPLIT-th class, and a `fold` adds up what they found.

A lane reads 16 bytes at once, so a row of L numbers has PAD >= L of them, a multiple of WIDTH (4, or 2 for two labels). Packed
rows halve what is read, and one instruction adds two labels; their sums of 16 bits are widened before they can overflow.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

import triton
import triton.language as tl

STEP = tl.constexpr(2.0**-12)
# Of twice the largest entries of all tables (rule 1).
BOUND = tl.constexpr(1023.0)
# Steps of 2^-12 that two rows' halves may hold together.
ROOM = tl.constexpr(32768)
# Lists of classes are filled up to so many with classes of which nothing comes: SPLIT lanes, AHEAD at once.
TOGETHER = 8


def padded(labels: int) -> int:
    """Numbers a row of ``labels`` energies takes in memory."""
    return 2 if labels == 2 else -(-labels // 4) * 4


def width(labels: int) -> int:
    """Numbers that one load of a lane takes."""
    return 2 if labels == 2 else 4


def filled(classes: int) -> int:
    """The length of lists of classes."""
    return -(-classes // TOGETHER) * TOGETHER


def pitch(labels: int) -> int:
    """Words from one packed row to the next: a lane reads 16 bytes at once where there are as many."""
    pad = padded(labels)
    return pad // 2 if pad < 8 else -(-pad // 8) * 4


@triton.jit
def lanes(item, length, available, replicas, SINGLE: tl.constexpr):
    """The site and replica of each item: rank int32 [B] in the colour, replica int32 [B], and which items are free sites.

    Items, int32 [B], are numbered replica by replica, ``length`` to each; the first ``available`` of them are free sites.
    """
    if SINGLE:
        rank = item
        replica = item * 0
    else:
        replica = item // length
        rank = item - replica * length
    # An item that is none has a replica, too: lanes without a site read somewhere.
    return rank, tl.minimum(replica, replicas - 1), (replica < replicas) & (rank < available)


@triton.jit
def load_row(pointer, mask, PAD: tl.constexpr, WIDTH: tl.constexpr):
    """The row at ``pointer`` [B] (float32) as a tuple of pieces [B, WIDTH]; 0 where masked."""
    column = tl.arange(0, WIDTH)
    pieces = ()
    for q in tl.static_range(PAD // WIDTH):
        where = pointer[:, None] + (q * WIDTH + column)[None, :]
        piece = tl.load(where, mask=mask[:, None], other=0.0)
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
def table_base(k, side, LABELS: tl.constexpr, KINDS: tl.constexpr):
    """Which row is the first of class k for neighbours ahead (side 0) or behind (1)? A class has KINDS tables, or one if 0."""
    return (2 * k + side) * ((KINDS if KINDS else 1) * (LABELS + 1))


@triton.jit
def both_labels(here, step, kinds, pitch, LABELS: tl.constexpr, KINDS: tl.constexpr):
    """Which rows of a class do sites read of their neighbours at +step and -step? int32 [B] each, from its first on."""
    ahead = tl.load(here + step).to(tl.int32)
    behind = tl.load(here - step).to(tl.int32)
    if KINDS:
        ahead += tl.load(kinds).to(tl.int32) * (LABELS + 1)
        behind += tl.load(kinds + pitch).to(tl.int32) * (LABELS + 1)
    return ahead, behind


@triton.jit
def add_floats(
    here, rows, steps, kinds, classes, slots, part,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """What neighbours add to sites' energies, a tuple of pieces [B, WIDTH], of classes ``part``, ``part`` + SPLIT, ...

    here: uint8 pointers [B] to the sites' labels; rows: as in `Rows`; steps: int32 [classes], displacements; kinds: uint8
    pointers [B] to the first of the sites' kinds, not read if KINDS is 0, else it is R; part: int32 [B], or 0 where SPLIT is 1.
    """
    ROW: tl.constexpr = (KINDS if KINDS else 1) * (LABELS + 1) * PAD
    column = tl.arange(0, WIDTH)
    pieces = ()
    for _ in tl.static_range(PAD // WIDTH):
        pieces = pieces + (tl.zeros((here.shape[0], WIDTH), tl.float32),)  # noqa: RUF005
    # What belongs to a class alone moves on by itself, and takes no lane's register.
    table, step_at, pitch = rows + part * (2 * ROW), steps + part, slots.to(tl.int64)
    if KINDS:
        kinds = kinds + part * (2 * pitch)
    for _ in range(0, classes // SPLIT):
        ahead, behind = both_labels(here, tl.load(step_at), kinds, pitch, LABELS, KINDS)
        first, second = table + ahead * PAD, table + ROW + behind * PAD
        total = ()
        for q in tl.static_range(PAD // WIDTH):
            one = tl.load(first[:, None] + (q * WIDTH + column)[None, :])
            two = tl.load(second[:, None] + (q * WIDTH + column)[None, :])
            total = total + (pieces[q] + one + two,)  # noqa: RUF005
        pieces = total
        table += SPLIT * 2 * ROW
        step_at += SPLIT
        if KINDS:
            kinds += SPLIT * 2 * pitch
    return pieces


@triton.jit
def load_words(pointer, q: tl.constexpr, COUNT: tl.constexpr):
    """int32 [B, COUNT], the words from 4 q on behind ``pointer`` [B]."""
    return tl.load(pointer[:, None] + (q * 4 + tl.arange(0, COUNT))[None, :])


@triton.jit
def add_words(
    here, words, steepest, steps, kinds, classes, slots, part,
    LABELS: tl.constexpr, PAD: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr, KINDS: tl.constexpr,
):  # fmt: skip
    """What `add_floats` gives, up to a number a site that all its labels share, from packed rows: as int32 halves.

    steepest: int32 scalar, below 2^15 / AHEAD. Returns tuples of low and of high halves' sums, int32 [B, words], of the words
    in turn. AHEAD classes' labels and rows are asked for at once.
    """
    PITCH: tl.constexpr = PAD // 2 if PAD < 8 else (PAD + 7) // 8 * 4
    PIECES: tl.constexpr = (PAD + 7) // 8
    # Words in the last piece: 4, 2 (four labels) or 1 (two).
    LAST: tl.constexpr = 4 if PAD % 8 == 0 else PAD % 8 // 2
    ROW: tl.constexpr = (KINDS if KINDS else 1) * (LABELS + 1) * PITCH
    lows, highs = (), ()
    for q in tl.static_range(PIECES):
        start = tl.zeros((here.shape[0], 4 if q < PIECES - 1 else LAST), tl.int32)
        lows, highs = lows + (start,), highs + (start,)  # noqa: RUF005
    turns = classes // SPLIT
    # As many classes, of two rows each, as cannot overflow.
    most = 32767 // tl.maximum(steepest, 1) // AHEAD * AHEAD
    table, step_at, pitch = words + part * (2 * ROW), steps + part, slots.to(tl.int64)
    if KINDS:
        kinds = kinds + part * (2 * pitch)
    for begin in range(0, turns, most):
        sums = ()
        for q in tl.static_range(PIECES):
            sums = sums + (tl.zeros((here.shape[0], 4 if q < PIECES - 1 else LAST), tl.int32),)  # noqa: RUF005
        for _ in range(begin, tl.minimum(begin + most, turns), AHEAD):
            for j in tl.static_range(AHEAD):
                further = kinds
                if KINDS:
                    further = kinds + j * SPLIT * 2 * pitch
                ahead, behind = both_labels(here, tl.load(step_at + j * SPLIT), further, pitch, LABELS, KINDS)
                first = table + j * SPLIT * 2 * ROW + ahead * PITCH
                second = table + (j * SPLIT * 2 + 1) * ROW + behind * PITCH
                total = ()
                for q in tl.static_range(PIECES):
                    one = load_words(first, q, 4 if q < PIECES - 1 else LAST)
                    two = load_words(second, q, 4 if q < PIECES - 1 else LAST)
                    both = tl.add(one, two, sanitize_overflow=False)
                    total = total + (tl.add(sums[q], both, sanitize_overflow=False),)  # noqa: RUF005
                sums = total
            table += AHEAD * SPLIT * 2 * ROW
            step_at += AHEAD * SPLIT
            if KINDS:
                kinds += AHEAD * SPLIT * 2 * pitch
        new_lows, new_highs = (), ()
        for q in tl.static_range(PIECES):
            new_lows = new_lows + (lows[q] + (sums[q] & 0xFFFF),)  # noqa: RUF005
            new_highs = new_highs + (highs[q] + ((sums[q] >> 16) & 0xFFFF),)  # noqa: RUF005
        lows, highs = new_lows, new_highs
    return lows, highs


@triton.jit
def fold(pieces, SPLIT: tl.constexpr):
    """Sums of a tuple of pieces [B * SPLIT, ...] over each SPLIT neighbouring lanes."""
    if SPLIT == 1:
        return pieces
    folded = ()
    for q in tl.static_range(len(pieces)):
        piece = pieces[q]
        apart = tl.reshape(piece, (piece.shape[0] // SPLIT, SPLIT, piece.shape[1]))
        folded = folded + (tl.sum(apart, 1),)  # noqa: RUF005
    return folded


@triton.jit
def counted(lows, highs, PAD: tl.constexpr):
    """Sums of halves as pieces [B, WIDTH] of energies, lowered by 1023 so that all of them are within rule 1's bound."""
    PIECES: tl.constexpr = (PAD + 7) // 8
    LAST: tl.constexpr = 4 if PAD % 8 == 0 else PAD % 8 // 2
    pieces = ()
    for q in tl.static_range(PIECES):
        even, odd = lows[q].to(tl.float32) * STEP - BOUND, highs[q].to(tl.float32) * STEP - BOUND
        if q < PIECES - 1 or LAST == 4:
            pieces = pieces + (even, odd)  # noqa: RUF005
        else:
            pieces = pieces + (tl.reshape(tl.join(even, odd), (even.shape[0], 2 * LAST)),)  # noqa: RUF005
    return pieces
