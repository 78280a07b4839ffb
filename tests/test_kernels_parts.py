"""What the Triton kernels are made of, each part by itself in Triton's interpreter against plain torch or Python.

Random numbers, powers of two, draws and what they leave; tables' rows and their packed sums; lists of free sites; errors.
The process that interprets, and what is watched in it, are those of `tests/test_kernels_interpret.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import enumeration, test_kernels_interpret
from tests.test_kernels_interpret import FIVE, INTERPRETED, NO_TRITON, Case, interpret, problem
from tritoncrf import GridCRF, Neighborhood, Sampler, contract
from tritoncrf.gradient import errors

poison, watch = test_kernels_interpret.poison, test_kernels_interpret.watch

if INTERPRETED in os.environ:
    import triton
    import triton.language as tl
    from tritoncrf.kernels.draw import draw, exp2, philox
    from tritoncrf.kernels.edges import neighbours
    from tritoncrf.kernels.rows import store_row

    @triton.jit
    def philox_words(inputs, out):
        """inputs: int64 [4, 6], counter and key; out: int64 [4, 4]."""
        lane = tl.arange(0, 4)
        c0 = tl.load(inputs + lane * 6).to(tl.uint32)
        c1 = tl.load(inputs + lane * 6 + 1).to(tl.uint32)
        c2 = tl.load(inputs + lane * 6 + 2).to(tl.uint32)
        c3 = tl.load(inputs + lane * 6 + 3).to(tl.uint32)
        k0 = tl.load(inputs + lane * 6 + 4).to(tl.uint32)
        k1 = tl.load(inputs + lane * 6 + 5).to(tl.uint32)
        w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
        tl.store(out + lane * 4, w0.to(tl.int64))
        tl.store(out + lane * 4 + 1, w1.to(tl.int64))
        tl.store(out + lane * 4 + 2, w2.to(tl.int64))
        tl.store(out + lane * 4 + 3, w3.to(tl.int64))

    @triton.jit
    def powers_of_two(inputs, out, BLOCK: tl.constexpr):
        """inputs, out: float32 [programs * BLOCK]."""
        lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + lane, exp2(tl.load(inputs + lane)))

    @triton.jit
    def draws(energies, current, u, out, bounds, scale, FAR: tl.constexpr):
        """energies: float32 [5, 1024]; current, out, bounds: int32 [1024]; u: float32 [1024]."""
        lane = tl.arange(0, 1024)
        e0, e1 = tl.load(energies + lane), tl.load(energies + 1024 + lane)
        e2, e3 = tl.load(energies + 2048 + lane), tl.load(energies + 3072 + lane)
        values = e0, e1, e2, e3, tl.load(energies + 4096 + lane)
        drawn, bound = draw(values, tl.load(current + lane), tl.load(u + lane), scale, 5, FAR)
        tl.store(out + lane, drawn)
        tl.store(bounds + lane, bound)

    @triton.jit
    def sums(
        labels, position, rows, words, steepest, steps, out, sites, classes,
        LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
        AHEAD: tl.constexpr, EXACT: tl.constexpr,
    ):  # fmt: skip
        """out: float32 [sites, PAD], what neighbours add to sites at position, int32 [sites]."""
        lane = tl.arange(0, BLOCK * SPLIT)
        where = tl.load(position + lane // SPLIT, mask=lane // SPLIT < sites, other=0)
        where = tl.where(lane // SPLIT < sites, where, tl.load(position))
        tables = rows, words, tl.load(steepest), steps
        pieces = neighbours(
            labels + where, tl.program_id(0).to(tl.int64), lane * 0, tables, (None, None, None, None), classes, 0, sites,
            lane % SPLIT if SPLIT > 1 else 0, EXACT, LABELS, PAD, WIDTH, SPLIT, AHEAD, 0, 0,
        )  # fmt: skip
        site = tl.arange(0, BLOCK)
        store_row(out + site * PAD, pieces, site < sites, PAD, WIDTH)


@NO_TRITON
def test_the_parts_pass_in_the_interpreter() -> None:
    interpret(file=Path(__file__))


def check_philox() -> None:
    """Random123's known answers."""
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    inputs = torch.tensor([[0] * 6, [2**32 - 1] * 6, pi, [7] * 6])
    out = torch.zeros(4, 4, dtype=torch.int64)
    philox_words[(1,)](inputs, out)
    expected = [enumeration.philox(row[:4], row[4:]) for row in inputs.tolist()]
    assert out.tolist() == [list(row) for row in expected]
    assert out[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def check_powers_of_two() -> None:
    """All of [-100, 0]: every thousandth number, and next to whole ones and to halves those of some 64 steps."""
    spots = -torch.arange(0, 201, dtype=torch.float32) / 2
    steps = torch.arange(-64, 65, dtype=torch.int32)
    beside = (spots.view(torch.int32)[:, None] + steps).view(torch.float32).flatten()
    # Their bits are in order: from the smallest denormal one to -100.
    every = torch.arange(-(1 << 31), -(1 << 31) + 0x42C80001, 1021, dtype=torch.int32).view(torch.float32)
    even = -(torch.arange(1 << 17, dtype=torch.float64) * 100 / (1 << 17)).float()
    t = torch.cat([beside, every, even, torch.tensor([0.0, -0.0, -100.0])])
    t = t[(t <= 0) & (t >= -100)]
    assert len(t) > 1 << 20
    t = F.pad(t, (0, -len(t) % (1 << 17)))
    found = torch.empty(len(t))
    powers_of_two[(len(t) >> 17,)](t, found, BLOCK=1 << 17)
    assert torch.equal(found.view(torch.int32), contract.exp2(t).view(torch.int32))


@pytest.mark.parametrize("beta", [1.0, 0.3, 40.0, 1e6, 0.02])
def check_ties_the_last_resort_and_what_a_draw_leaves(beta: float) -> None:
    """Weights that are powers of two and a u of few bits, so that the walk meets equality; u near 1, so that none passes."""
    from tritoncrf.kernels.draw import far

    rng, scale = np.random.default_rng(1), 1.0 if beta == 1 else contract.scale_of(beta)
    energies = torch.from_numpy(rng.choice([0.0, 2.0**-12, 1.0, 2.0, 69.5, 150.0, 1023.0, 3071.0], (5, 1024))).float()
    current = torch.from_numpy(rng.integers(0, 5, 1024)).int()
    # No u of the contract is 1; with it the walk's sum can end at what is left, and the last label of weight is taken.
    u = torch.from_numpy(rng.choice([0.125, 0.25, 0.5, 0.75, 1 - 2.0**-24, 1.0], 1024)).float()
    out, bounds = (torch.empty(1024, dtype=torch.int32) for _ in range(2))
    draws[(1,)](energies, current, u, out, bounds, scale, FAR=far(scale))
    others = contract.weights(energies, scale).scatter(0, current.long()[None], 0.0).amax(0) > 0
    defined = (u < 1) | others
    assert torch.equal(out.long()[defined], contract.draw(energies, current.long(), u, scale)[defined])
    assert torch.equal(out.long() < 5, torch.ones(1024, dtype=torch.bool))
    if far(scale):
        return
    exact = -energies.double() * scale * np.log(2.0)
    own = out.long()[None]
    odds = (exact.scatter(0, own, -torch.inf).logsumexp(0) - exact.gather(0, own)[0]) * (1024 / np.log(2.0))
    # Of a label without weight, which u = 1 may leave standing, all are doubtful.
    assert (bounds >= odds.clamp(max=1 << 18))[defined].all()
    # As tight as the loss of a difference lets it be.
    near = defined & (odds > -8 * 1024) & (odds < 60 * 1024)
    assert near.any()
    assert (bounds - odds)[near].max() < 4
    below = (1 - 70 * 2.0**-23) / (1 + torch.exp2(bounds.double() / 1024))
    for share in (1.0, 0.5):
        kept = contract.draw(energies, out.long(), (below * share).float(), scale)
        assert torch.equal(kept[defined], out.long()[defined])


def packed(row: Tensor, labels: int) -> list[int]:
    """The words of a row float64 [L] of whole steps, counted from its smallest; each half by hand."""
    pad = 2 if labels == 2 else -(-labels // 4) * 4
    eights, words = pad // 8 * 8, []
    pairs = [(8 * block + j, 8 * block + j + 4) for block in range(pad // 8) for j in range(4)]
    pairs += [(eights + j, eights + j + 1) for j in range(0, pad % 8, 2)]
    for pair in pairs:
        low, high = (int(row[label] - row.min()) if label < labels else 0 for label in pair)
        words.append((high << 16 | low) - (high >> 15 << 32))
    return words


@pytest.mark.parametrize(("labels", "view"), [
    *((labels, "plain") for labels in (2, 3, 8, 12, 20, 33, 64)), *((5, view) for view in ("transposed", "strided", "half")),
])  # fmt: skip
def check_rows_of_tables(labels: int, view: str) -> None:
    """Rows, words, spreads and the steepest against loops, of kinds, of classes that are none, and of any view."""
    from tritoncrf.kernels.tables import build_rows

    kinds, rng = 1 if labels in (2, 64) else 3, np.random.default_rng(labels)
    full = torch.from_numpy(rng.normal(0, 1.5, (4, 2 * kinds, labels, 2 * labels))).float()
    tables = full[:, ::2, :, ::2] if view == "strided" else full[:, :kinds, :, :labels].contiguous()
    if view == "transposed":
        tables = tables.transpose(0, 1).contiguous().transpose(0, 1).transpose(2, 3)
    tables = tables.to(torch.float16 if view == "half" else torch.float32)
    chosen = torch.tensor([2, -1, 0, 3, 0], dtype=torch.int32)
    found = build_rows(tables, chosen)
    steps = (contract.round_pairwise(tables) * 4096).double()
    steepest = 0
    for k, table in enumerate(chosen.tolist()):
        for end in range(2):
            for kind in range(kinds):
                rows, words, spreads = (part[k, end, kind] for part in found[:3])
                assert rows.isfinite().all()
                if table < 0:
                    assert not torch.cat([rows.flatten(), spreads, words[:, : len(packed(rows[0], labels))].flatten()]).any()
                    continue
                one = steps[table, kind] if end else steps[table, kind].T
                assert torch.equal(rows[:labels, :labels].double() * 4096, one)
                assert not torch.cat([rows[labels], rows[:, labels:].flatten(), spreads[labels:]]).any()
                assert torch.equal(spreads[:labels].double() * 4096, one.amax(1) - one.amin(1))
                for y in range(0, labels, max(1, labels // 5)):
                    assert words[y, : len(packed(one[y], labels))].tolist() == packed(one[y], labels)
                assert not words[labels, : len(packed(one[0], labels))].any()
                steepest = max(steepest, int((one.amax(1) - one.amin(1)).max()))
    assert found.steepest.tolist() == [steepest]
    # What is too steep for any word is so much and no more; nothing chosen is not steep.
    assert build_rows(tables * 60000.0 if view != "half" else tables.float() * 60000.0, chosen).steepest.tolist() == [65536]
    assert build_rows(tables, chosen[1:2]).steepest.tolist() == [0]


# (labels, lanes to a site, classes at once, steps, which label is at the top, that of a word's low half or its high one): as
# steep as words may be, a step steeper, nearly flat.
LARGEST = [
    (2, 1, 1, 32767, 1), (5, 1, 2, 16383, 0), (12, 2, 4, 8191, 4), (20, 8, 8, 4095, 0), (12, 2, 4, 8192, 0), (33, 4, 2, 7, 4),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "split", "ahead", "spread", "top"), LARGEST)
def check_packed_sums_at_their_largest(labels: int, split: int, ahead: int, spread: int, top: int) -> None:
    """Rows of both ends, of neighbours of 63 classes: as steep as words take in so many at once, and a step steeper."""
    from tritoncrf.kernels.rows import padded, width

    rng, classes, sites = np.random.default_rng(labels + split), 64, 32
    low = -32768 if labels % 2 else 32767 - spread
    entries = rng.choice([low, low + spread], (63, labels, labels))
    # Between neighbours of one label that label alone is at the top.
    entries[:, top] = entries[:, :, top] = low
    entries[:, top, top] = low + spread
    tables = torch.from_numpy(entries / 4096).float()
    crf = GridCRF(labels, Neighborhood.from_offsets([(step,) for step in range(1, 64)]), tables)
    start = torch.full((1, 131), top)
    start[:, 110:] = torch.from_numpy(rng.integers(0, labels, 21))
    chains = Sampler(crf, "triton").init(torch.zeros(1, labels, 131), labels=start)
    rows, grid = cast(Any, chains.work).rows, cast(Any, chains.work).grid
    assert rows.steepest.tolist() == [spread]
    assert len(grid.steps) == classes
    plan = chains.plan
    position = torch.stack([plan.positions[plan.pixels == site].amax() for site in range(52, 52 + sites)]).int()

    def found(exact: bool, split: int, ahead: int) -> Tensor:
        # Those that should not be read would spoil the sums.
        words = spread < 32768 // ahead and not exact
        given = torch.full_like(rows.rows, torch.nan) if words else rows.rows
        packed = rows.words if words else torch.full_like(rows.words, 0x55555555)
        out = torch.empty(sites, padded(labels))
        sums[(1,)](
            chains.rows, position, given, packed, rows.steepest, grid.steps, out, sites, classes, LABELS=labels,
            PAD=padded(labels), WIDTH=width(labels), BLOCK=sites, SPLIT=split, AHEAD=ahead, EXACT=exact,
        )  # fmt: skip
        return out[:, :labels].double()

    expected = torch.zeros(sites, labels, dtype=torch.float64)
    for c, step in enumerate(plan.displacements):
        table = tables[plan.classes[c]].double()
        for away, seen in ((step, table.T), (-step, table)):
            expected += torch.cat([seen, seen.new_zeros(1, labels)])[chains.rows[0, 0, position.long() + away].long()]
    ours = found(False, split, ahead)
    # Up to a number a site, and within rule 1's bound.
    assert torch.equal(ours - ours[:, :1], expected - expected[:, :1])
    assert ours.abs().max() <= 1023
    assert (ours.amax(1) - ours.amin(1)).max() > 90 * spread / 4096
    if spread == 7:
        assert torch.equal(found(True, 1, 1), expected)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", [
    Case((7, 9), 3, FIVE, images=3, ragged=True, holes=True, clamps=True), Case((37,), 2, ((1,), (3,)), images=2, clamps=True),
    Case((3, 4, 5), 2, ((0, 0, 1), (1, 1, 1)), images=2, holes=True), Case((6, 5), 3, FIVE, images=2),
], ids=str)  # fmt: skip
def check_lists_of_free_sites(case: Case, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column against a loop over a phase's slots, in several rounds of the kernel; one list for images that are alike."""
    from tritoncrf.kernels import listing

    monkeypatch.setattr(listing, "BLOCK", 16)
    _, chains = problem(case).start("torch", "gather")
    plan = chains.plan
    phases = torch.tensor(plan.color_bounds, dtype=torch.int32)
    lists = 1 if shared else case.images
    # As the engine passes them on: of images that are alike views of one row.
    free, sites = (part[:1].expand_as(part) if shared else part for part in (plan.free, plan.sites))
    # The site numbers are the bits of uint32s.
    found = listing.build_listing(free.view(torch.uint8), sites + (1 << 32) - 3, plan.positions, phases, plan.volume, lists)
    assert found.slot.shape == (lists, len(plan.positions))
    for image in range(lists):
        lookup = [-1] * plan.volume
        for phase, (first, last) in enumerate(zip(plan.color_bounds, plan.color_bounds[1:], strict=False)):
            slots = [slot for slot in range(first, last) if free[image, slot]]
            assert int(found.counts[image, phase]) == len(slots)
            empty = [-1] * (last - first - len(slots))
            numbers = [(int(sites[image, slot]) - 3) % (1 << 32) for slot in slots]
            assert found.slot[image, first:last].tolist() == slots + empty
            assert found.position[image, first:last].tolist() == [int(plan.positions[slot]) for slot in slots] + empty
            assert found.site[image, first:last].tolist() == [n - (n >> 31 << 32) for n in numbers] + empty
            for rank, slot in enumerate(slots):
                lookup[int(plan.positions[slot])] = first + rank
        assert found.lookup[image].tolist() == lookup


@pytest.mark.parametrize("extra", [{}, {"clamps": True}, {"holes": True}], ids=["alike", "clamps", "holes"])
def check_images_that_are_alike_share_their_lists(extra: dict[str, Any]) -> None:
    _, chains = problem(Case((6, 7), 3, FIVE, images=3, **extra)).start("triton", "gather")
    assert len(cast(Any, chains.work).listing.slot) == (3 if extra else 1)


def check_the_unary_error() -> None:
    from tritoncrf.kernels.errors import unary_errors

    for replicas in (1, 2, 3):
        case = Case((7, 9), 5, FIVE, images=2, replicas=replicas, ragged=True, holes=True, clamps=True)
        asked = problem(case)
        (sampler, data), (_, free) = asked.start("torch", "gather"), asked.start("torch", "gather")
        sampler.run(free, 2)
        found = unary_errors(free.labels, data.labels, 5)
        both = (F.one_hot(state.labels.long(), 256)[..., :5].sum(1) for state in (free, data))
        surplus = next(both) - next(both)
        assert torch.equal(found, (surplus.float() * (1 / replicas)).movedim(-1, 1))
        assert torch.allclose(found, errors(sampler, data, free, asked.crf.tables)[0], atol=1e-7)
        still = asked.given["clamp"] | ~free.exists
        assert not found.movedim(1, -1)[still].any()
        assert found.movedim(1, -1)[~still].any()
