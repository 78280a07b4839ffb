"""What does the image say of a site's edges? Kinds, which choose a neighbour's row, and gates, which weigh further rows.

Both are bytes kept at an edge's first end; `by_rank` lists them site by site, of each class the edge ahead (site i, neighbour
i + d) and the one behind (i - d, i), a plane for each, so that a warp reads neighbouring bytes. A gate is b / 128 and a
gated row a multiple of 2^-12 of at most 16 in size, so their product has 24 bits; ``(x + 3072) - 3072`` puts it on rule 1's
grid, the same with a fused multiply-add. Every row is rounded by itself, so sums and differences stay exact.

A kernel without kinds or gates is handed None for their pointers, and compiles to the code it had before there were any.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.rows import ROOM, add_floats, add_words, both_labels, counted, fold

GATE_STEPS = 128
UNIT = tl.constexpr(1.0 / GATE_STEPS)
SHIFT = tl.constexpr(3072.0)


class Edges(NamedTuple):
    """What a batch's kernels read of its edges; None for what the model has not."""

    kinds: Tensor | None = None
    """uint8 [N, classes, 2, slots]: ahead and behind, by rank."""
    gates: Tensor | None = None
    """uint8 [N, weighed, 2, G, slots]: of the classes that have gates, in steps of 1 / 128."""
    gated: Tensor | None = None
    """float32 [weighed, 2, G, L + 1, PAD]: the rows they weigh, 0 for void."""
    gating: Tensor | None = None
    """int32 [classes + 2 weighed]: the place of each class among those with gates, -1: none; the class at each place; and its
    plane in the gates that came in."""
    steep: Tensor | None = None
    """float32 [weighed, 2, G, L + 1]: the spreads of gated rows."""

    @property
    def weighed(self) -> int:
        return 0 if self.gates is None else self.gates.shape[1]

    def flags(self, rows: Tensor) -> dict[str, int]:
        """What kernels are compiled for: how many kinds the table rows have, and how many gates an edge."""
        kinds = 0 if self.kinds is None else rows.shape[2]
        return {"KINDS": kinds, "GATES": 0 if self.gates is None else self.gates.shape[3]}


NONE = Edges()


@triton.jit(do_not_specialize=["blocks", "apart", "planes", "outputs", "area", "volume", "slots"])
def edge_bytes(
    values, chosen, steps, places, position, out, blocks, apart, planes, outputs, area, volume, slots, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lists bytes by rank; program ``(image * outputs + output) * blocks + block``.

    values: uint8 [N, planes, area]; chosen: int32 [outputs], the plane of each, -1: zeros; steps: int32 [outputs], how far
    before the site its edge begins; places: int64 [volume], the pixel of each position; position: int32 [N or 1, slots] by
    rank, -1 where no free site is, which becomes 0, apart: 1 if there is one an image; out: uint8 [N, outputs, slots],
    written. All contiguous.
    """
    output = (tl.program_id(0) // blocks).to(tl.int64)
    image = output // outputs
    turn = output - image * outputs
    rank = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    where = tl.load(position + image * apart * slots + rank, mask=rank < slots, other=-1)
    plane = tl.load(chosen + turn)
    valid = tl.where(plane >= 0, where, -1) >= 0
    pixel = tl.load(places + (where - tl.load(steps + turn)), mask=valid, other=0)
    found = tl.load(values + (image * planes + plane) * area + pixel, mask=valid, other=0)
    tl.store(out + output * slots + rank, found, mask=rank < slots)


def by_rank(values: Tensor, chosen: Tensor, steps: Tensor, places: Tensor, position: Tensor, block: int = 256) -> Tensor:
    """Planes uint8 ``[N, P, area]`` of edges' first ends as uint8 ``[N, outputs, slots]`` of sites; see `edge_bytes`."""
    (images, planes, area), slots, outputs = values.shape, position.shape[1], len(chosen)
    out = torch.empty((images, outputs, slots), dtype=torch.uint8, device=values.device)
    blocks = -(-slots // block)
    if out.numel():
        launch(
            edge_bytes, images * outputs * blocks, values, chosen, steps, places, position, out, blocks,
            int(len(position) > 1), planes, outputs, area, len(places), slots, BLOCK=block, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


@triton.jit
def weigh_row(gate, entries):
    """What gated entries add: float32 [B, WIDTH] on the grid, of gates uint8 [B] in steps of 1 / 128."""
    product = (gate.to(tl.int32).to(tl.float32) * UNIT)[:, None] * entries
    return (product + SHIFT) - SHIFT


@triton.jit
def add_gated(
    pieces, here, gates, gated, gating, steps, classes, weighed, slots, part,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Adds the gated rows of neighbours to a tuple of pieces, of every SPLIT-th class with gates from ``part`` on.

    here: uint8 pointers [B] to the sites' labels; gates: uint8 pointers [B] to the first of the sites' gates; the rest as in
    `Edges`, steps: int32 [classes], displacements.
    """
    column = tl.arange(0, WIDTH)
    pitch = slots.to(tl.int64)
    for turn in range(0, (weighed + SPLIT - 1) // SPLIT):
        place = turn * SPLIT + part
        within = place < weighed
        place = tl.minimum(place, weighed - 1)
        step = tl.load(steps + tl.load(gating + classes + place))
        # Past the last one as of void.
        ahead = tl.where(within, tl.load(here + step).to(tl.int32), LABELS)
        behind = tl.where(within, tl.load(here - step).to(tl.int32), LABELS)
        for rank in tl.static_range(GATES):
            near, far = place * (2 * GATES) + rank, place * (2 * GATES) + (GATES + rank)
            first = gated + (near * (LABELS + 1) + ahead) * PAD
            second = gated + (far * (LABELS + 1) + behind) * PAD
            one = tl.load(gates + near * pitch)
            two = tl.load(gates + far * pitch)
            total = ()
            for q in tl.static_range(PAD // WIDTH):
                shift = (q * WIDTH + column)[None, :]
                gain = weigh_row(one, tl.load(first[:, None] + shift))
                total = total + (pieces[q] + gain + weigh_row(two, tl.load(second[:, None] + shift)),)  # noqa: RUF005
            pieces = total
    return pieces


@triton.jit
def neighbours(
    here, image, column, tables, edges, classes, weighed, slots, part, EXACT: tl.constexpr,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr,
    KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """What neighbours do to the energies of sites, a tuple of pieces [B / SPLIT, WIDTH].

    Unless EXACT up to a number a site that all its labels share. here: uint8 pointers [B] to labels, around which all
    neighbours lie within the row, also where no site is meant; image: int64 scalar; column: int32 [B], the sites' columns in
    their image's lists; tables: rows, words, steepest as in `Rows`, and the displacements; edges: the first four pointers of
    `Edges`; part: int32 [B], which of its site's SPLIT lanes each is, or 0.
    """
    rows, words, steepest, steps = tables
    kinds, gates, gated, gating = edges
    if KINDS:
        kinds = kinds + image * (2 * classes) * slots + column
    if EXACT:
        pieces = fold(add_floats(here, rows, steps, kinds, classes, slots, part, LABELS, PAD, WIDTH, SPLIT, KINDS), SPLIT)
    else:
        if steepest < ROOM // AHEAD:
            lows, highs = add_words(
                here, words, steepest, steps, kinds, classes, slots, part, LABELS, PAD, SPLIT, AHEAD, KINDS
            )
            pieces = counted(fold(lows, SPLIT), fold(highs, SPLIT), PAD)
        else:
            pieces = fold(
                add_floats(here, rows, steps, kinds, classes, slots, part, LABELS, PAD, WIDTH, SPLIT, KINDS), SPLIT
            )
    if GATES:
        gates = gates + image * (2 * GATES * weighed) * slots + column
        further = ()
        for _ in tl.static_range(PAD // WIDTH):
            further = further + (tl.zeros((here.shape[0], WIDTH), tl.float32),)  # noqa: RUF005
        further = fold(
            add_gated(
                further, here, gates, gated, gating, steps, classes, weighed, slots, part, LABELS, PAD, WIDTH,
                SPLIT, GATES,
            ),
            SPLIT,
        )  # fmt: skip
        total = ()
        for q in tl.static_range(PAD // WIDTH):
            total = total + (pieces[q] + further[q],)  # noqa: RUF005
        pieces = total
    return pieces


@triton.jit
def own_energy(
    here, label, image, column, tables, edges, classes, weighed, slots,
    LABELS: tl.constexpr, PAD: tl.constexpr, KINDS: tl.constexpr, GATES: tl.constexpr,
):  # fmt: skip
    """Energies float32 [B] of the labels int32 [B] given the neighbours alone, exactly; arguments as of `neighbours`."""
    rows, _, _, steps = tables
    kinds, gates, gated, gating = edges
    ROW: tl.constexpr = (KINDS if KINDS else 1) * (LABELS + 1) * PAD
    pitch = slots.to(tl.int64)
    if KINDS:
        kinds = kinds + image * (2 * classes) * slots + column
    total = label * 0.0
    table, step_at = rows, steps
    for _ in range(0, classes):
        ahead, behind = both_labels(here, tl.load(step_at), kinds, pitch, LABELS, KINDS)
        total += tl.load(table + ahead * PAD + label) + tl.load(table + ROW + behind * PAD + label)
        table += 2 * ROW
        step_at += 1
        if KINDS:
            kinds += 2 * pitch
    if GATES:
        gates = gates + image * (2 * GATES * weighed) * slots + column
        for place in range(0, weighed):
            step = tl.load(steps + tl.load(gating + classes + place))
            for rank in tl.static_range(2 * GATES):
                other = tl.load(here + step if rank < GATES else here - step).to(tl.int32)
                entry = tl.load(gated + ((place * (2 * GATES) + rank) * (LABELS + 1) + other) * PAD + label)
                gate = tl.load(gates + (place * (2 * GATES) + rank) * pitch).to(tl.int32).to(tl.float32) * UNIT
                total += (gate * entry + SHIFT) - SHIFT
    return total
