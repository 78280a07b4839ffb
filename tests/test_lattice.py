"""Who touches whom, who may update together, and where a site lives.

Neighbourhoods are what their names say; no edge joins two sites of one colour, and colours are numbered as the contract
numbers them; the layout's index arithmetic finds exactly the neighbours that brute force finds, and void elsewhere.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import enumeration
from tritoncrf import Neighborhood
from tritoncrf.coloring import Coloring, sublattice_coloring
from tritoncrf.layout import Layout, LayoutCache, bucket, pack, unpack

YARDSTICK = Path(__file__).resolve().parents[2] / "shared" / "yardstick" / "problem.py"
CPU = torch.device("cpu")
FAR = Neighborhood.grid(24, 8) | Neighborhood.grid(1) | Neighborhood.grid(2, 2)
FAR_48 = Neighborhood.grid(24, 6) | Neighborhood.grid(1) | Neighborhood.grid(2, 2)
FIVES = Neighborhood.grid(15, 5) | Neighborhood.grid(1) | Neighborhood.grid(2, 2)


def random_neighborhood(rng: np.random.Generator, ndim: int, reach: int, classes: int) -> Neighborhood:
    kept: dict[tuple[int, ...], None] = {}
    while len(kept) < classes:
        offset = tuple(int(step) for step in rng.integers(-reach, reach + 1, ndim))
        if any(offset) and offset not in kept and tuple(-step for step in offset) not in kept:
            kept[offset] = None
    return Neighborhood.from_offsets(kept)


def test_nearest() -> None:
    assert set(Neighborhood.nearest(4).offsets) == {(0, 1), (1, 0)}
    assert set(Neighborhood.nearest(8).offsets) == {(0, 1), (1, 0), (1, -1), (1, 1)}
    assert set(Neighborhood.nearest(6, ndim=3).offsets) == {(0, 0, 1), (0, 1, 0), (1, 0, 0)}
    assert Neighborhood.nearest(4, ndim=1).offsets == ((1,), (2,))
    for count in (2, 12, 24, 64, 128):
        found = Neighborhood.nearest(count).offsets
        farthest = max(math.hypot(*offset) for offset in found)
        nearer = [p for p in itertools.product(range(-20, 21), repeat=2) if any(p) and math.hypot(*p) < farthest - 1e-9]
        both = set(found) | {(-y, -x) for y, x in found}
        assert len(found) == count // 2
        assert len(both) == count
        assert set(nearer) <= both


def test_grid_rays_and_log_polar() -> None:
    points = set(itertools.product(range(-24, 25, 8), repeat=2)) - {(0, 0)}
    found = Neighborhood.grid(24, 8).offsets
    assert set(found) | {(-y, -x) for y, x in found} == points
    assert len(found) == len(points) // 2
    assert Neighborhood.grid(3, ndim=1).offsets == ((1,), (2,), (3,))
    assert Neighborhood.grid(11, 5).reach == (10, 10)
    ways = {(0, 1), (1, 0), (1, 1), (1, -1)}
    assert set(Neighborhood.rays([1, 5]).offsets) == ways | {(5 * y, 5 * x) for y, x in ways}
    assert Neighborhood.rays(32).reach == (32, 32)
    assert len(Neighborhood.rays(3, ndim=3, count=2)) == 26
    polar = Neighborhood.log_polar(40)
    radii = [math.hypot(*offset) for offset in polar.offsets]
    assert 0.5 < min(radii) < 1.5
    assert abs(max(radii) - 40) < 0.8
    assert (len(FAR), len(FAR_48), FAR.reach, FAR.ndim) == (32, 48, (24, 24), 2)
    assert "32 classes, 64 neighbours" in repr(FAR)


def test_union_keeps_order_and_drops_edges_already_there() -> None:
    left, right = Neighborhood.from_offsets([(0, 1), (-2, 0)]), Neighborhood.from_offsets([[2, 0], [0, -1], [1, 1]])
    assert (left | right).offsets == ((0, 1), (-2, 0), (1, 1))
    assert (left | left) == left
    assert Neighborhood.from_offsets(np.array([[0, 1], [-2, 0]])) == left


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neighborhood.from_offsets([]), r"offsets: expected at least one offset, got none"),
        (lambda: Neighborhood.from_offsets([(0, 0)]), r"offsets\[0\]: expected a step away from the site, got zero"),
        (
            lambda: Neighborhood.from_offsets([(0, 1), (0, 1)]),
            r"offsets\[1\]: expected distinct offsets, got \(0, 1\) again",
        ),
        (lambda: Neighborhood.from_offsets([(1, -1), (2, 0), (-1, 1)]), r"offsets\[2\]: .*opposite of offsets\[0\]"),
        (lambda: Neighborhood.from_offsets([(0, 1), (0, 1, 2)]), r"offsets\[1\]: expected 2 steps, got \(0, 1, 2\)"),
        (lambda: Neighborhood.from_offsets([(0, 1.5)]), r"offsets\[0\]: expected a sequence of integers"),  # type: ignore[list-item]
        (lambda: Neighborhood.from_offsets([3]), r"offsets\[0\]: expected a sequence of integers, got 3"),  # type: ignore[list-item]
        (lambda: Neighborhood(((),)), r"offsets\[0\]: expected a tuple of integers, got \(\)"),
        (lambda: Neighborhood.nearest(5), r"neighbours: expected an even number .*got 5"),
        (lambda: Neighborhood.nearest(0), r"neighbours: expected an integer of at least 2, got 0"),
        (lambda: Neighborhood.nearest(4, ndim=0), r"ndim: expected an integer of at least 1, got 0"),
        (lambda: Neighborhood.grid(2, 3), r"reach: expected an integer of at least 3, got 2"),
        (lambda: Neighborhood.grid(2, 0), r"step: expected an integer of at least 1, got 0"),
        (lambda: Neighborhood.rays([1, 0]), r"reach: expected an integer of at least 1, got 0"),
        (lambda: Neighborhood.log_polar(0), r"reach: expected an integer of at least 1, got 0"),
        (lambda: Neighborhood.nearest(4) | Neighborhood.nearest(4, ndim=3), r"other: expected .* of 2 axes, got 3"),
    ],
)
def test_bad_neighborhoods(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("neighborhood", "colors"),
    [
        (Neighborhood.nearest(4), 2), (Neighborhood.nearest(64), 20), (FAR, 17), (FAR_48, 25), (FIVES, 16),
        (Neighborhood.rays([1, 2, 4, 6, 10, 16, 24, 32]), 7), (Neighborhood.rays([1, 2, 3, 4, 6, 8, 12, 16]), 5),
    ],
)  # fmt: skip
def test_number_of_colors(neighborhood: Neighborhood, colors: int) -> None:
    assert sublattice_coloring(neighborhood).colors == colors


@pytest.mark.parametrize(
    ("offsets", "basis"),
    [
        (((1,), (2,), (5,)), ((3,),)),
        (((0, 1), (1, 0), (1, 1), (1, -1), (0, 3), (5, 2)), ((2, 0), (0, 2))),
        (((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (1, -1, 2)), ((1, 0, 1), (0, 1, 1), (0, 0, 3))),
    ],
)
def test_sublattices_of_the_vectors(offsets: tuple[tuple[int, ...], ...], basis: tuple[tuple[int, ...], ...]) -> None:
    assert sublattice_coloring(Neighborhood(offsets)).basis == basis


def test_coloring_equals_the_yardstick() -> None:
    if not YARDSTICK.is_file():
        pytest.skip("the yardstick is not here: it lies in the shared folder beside the checkout")
    spec = importlib.util.spec_from_file_location("yardstick_problem", YARDSTICK)
    assert spec is not None
    assert spec.loader is not None
    problem = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(problem)
    pixels = np.moveaxis(np.indices((problem.H, problem.W)), 0, -1)
    rng = np.random.default_rng(1)
    assert Neighborhood.nearest(64) == Neighborhood.from_offsets(problem.nearest_offsets())
    for neighborhood in (Neighborhood.nearest(64), FAR, FIVES, *(random_neighborhood(rng, 2, 9, 12) for _ in range(5))):
        colors, expected = problem.sublattice_coloring(np.array(neighborhood.offsets))
        coloring = sublattice_coloring(neighborhood)
        assert coloring.colors == colors
        assert np.array_equal(coloring.color(pixels), expected)


@pytest.mark.parametrize(("ndim", "reach", "classes"), [(1, 12, 5), (1, 40, 12), (2, 6, 9), (3, 3, 7), (4, 2, 6)])
def test_ends_of_every_edge_differ_in_color(ndim: int, reach: int, classes: int) -> None:
    rng = np.random.default_rng(ndim * 100 + reach)
    for _ in range(6):
        neighborhood = random_neighborhood(rng, ndim, reach, classes)
        coloring = sublattice_coloring(neighborhood)
        window = np.stack(np.meshgrid(*[np.arange(-reach, 2 * reach)] * ndim, indexing="ij"), -1)
        color = coloring.color(window)
        assert color.min() == 0
        assert color.max() == coloring.colors - 1
        for offset in neighborhood.offsets:
            assert (coloring.color(window + np.array(offset)) != color).all()
        basis = enumeration.sublattice(neighborhood.offsets)
        assert np.array_equal(basis, coloring.basis)
        some = window.reshape(-1, ndim)[rng.integers(0, window.size // ndim, 50)]
        assert [enumeration.color_of(y, basis) for y in some.tolist()] == coloring.color(some).tolist()


def test_a_bad_coloring_is_refused() -> None:
    with pytest.raises(ValueError, match=r"coloring: .*one colour for \(1, -1\)"):
        Coloring(((1, 1), (0, 2))).validate(Neighborhood.nearest(8))
    with pytest.raises(ValueError, match=r"one colour for \(0, 2\)"):
        Coloring(((1, 1), (0, 2))).validate(Neighborhood.from_offsets([(0, 1), (0, 2)]))


@pytest.mark.parametrize(
    ("offsets", "shape", "padded"),
    [
        ([(1,), (4,), (30,)], (9,), (23,)),
        ([(0, 1), (1, 0), (1, -1), (-2, 3), (0, 9), (25, 0)], (5, 4), (17, 19)),
        ([(3, -3), (1, 2), (0, 5)], (1, 1), (1, 7)),
        ([(0, 0, 1), (1, -1, 2), (-1, 0, 3), (2, 2, -2), (0, 7, 0)], (2, 3, 4), (3, 5, 5)),
    ],
)
def test_neighbours_by_arithmetic_are_exactly_those_of_brute_force(
    offsets: list[tuple[int, ...]], shape: tuple[int, ...], padded: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(len(offsets))
    neighborhood = Neighborhood.from_offsets(offsets)
    images, labels = 5, 6
    sizes = np.stack([rng.integers(1, np.array(padded) + 1) for _ in range(images)])
    sizes[0], sizes[1] = shape, padded
    mask = rng.random((images, *padded)) > 0.2
    layout = Layout.build(neighborhood, bucket(padded), CPU)
    plan = layout.plan(
        labels,
        padded,
        torch.arange(images),
        1,
        torch.from_numpy(sizes),
        torch.from_numpy(mask),
        torch.from_numpy(~mask),
    )
    drawn = rng.integers(0, labels, (images, *padded)).astype(np.uint8)
    inside = np.array([[(np.array(y) < size).all() for y in np.ndindex(*padded)] for size in sizes])
    present_map = inside.reshape(mask.shape) & mask
    rows = pack(plan, layout, torch.from_numpy(drawn)[:, None], torch.from_numpy(present_map))[:, 0]
    steps = dict(zip(plan.classes, plan.displacements, strict=True))
    for n in range(images):
        present = {y for y in np.ndindex(*sizes[n]) if mask[n][y]}
        slots = {tuple(y): s for s, y in enumerate(layout.coordinates.tolist())}
        assert {y for y, s in slots.items() if plan.exists[n, s]} == present
        assert int((rows[n] != plan.void).sum()) == len(present)
        for y in present:
            slot = slots[y]
            at = int(plan.positions[slot])
            assert int(rows[n, at]) == drawn[n][y]
            assert int(plan.sites[n, slot]) == np.ravel_multi_index(y, tuple(sizes[n]))
            assert int(plan.pixels[slot]) == np.ravel_multi_index(y, padded)
            for (c, offset), sign in itertools.product(enumerate(offsets), (1, -1)):
                other = tuple(a + sign * b for a, b in zip(y, offset, strict=True))
                expected = drawn[n][other] if other in present else plan.void
                got = plan.void if c not in steps else int(rows[n, at + sign * steps[c]])
                assert got == expected, (y, offset, sign)
    back = unpack(plan, layout, rows[:, None], padded)[:, 0].numpy()
    assert np.array_equal(back, np.where(present_map, drawn, 255))


@pytest.mark.parametrize("shape", [(40,), (13, 10), (5, 6, 7)])
def test_slots_are_the_sites_color_by_color(shape: tuple[int, ...]) -> None:
    neighborhood = random_neighborhood(np.random.default_rng(7), len(shape), 3, 3)
    layout = Layout.build(neighborhood, shape, CPU)
    coloring = sublattice_coloring(neighborhood)
    assert sorted(layout.coordinates.tolist()) == [list(y) for y in np.ndindex(*shape)]
    assert len(set(layout.positions.tolist())) == math.prod(shape)
    assert len(layout.color_bounds) == coloring.colors + 1
    for color, (a, b) in enumerate(itertools.pairwise(layout.color_bounds)):
        assert (coloring.color(layout.coordinates[a:b].numpy()) == color).all()
    farthest = max(map(abs, layout.displacements))
    assert farthest <= int(layout.positions.min())
    assert int(layout.positions.max()) + farthest < layout.volume


@pytest.mark.parametrize("shape", [(33, 17), (36, 18), (1, 1), (19,), (3, 17, 5)])
def test_a_frame_says_where_in_a_row_a_pixel_is(shape: tuple[int, ...]) -> None:
    near = Neighborhood.from_offsets([tuple(int(axis == own) for own in range(len(shape))) for axis in range(len(shape))])
    layout = Layout.build(near, bucket(shape), torch.device("cpu"))
    assert torch.equal(layout.frame(shape).places, layout.crop(torch.arange(layout.volume), shape).flatten())


def test_buckets_waste_an_eighth_at_most_and_are_few() -> None:
    for n in range(1, 5000):
        (rounded,) = bucket((n,))
        assert n <= rounded <= n + n // 8
        assert bucket((rounded,)) == (rounded,)
    assert bucket((17, 100, 3)) == (*bucket((17,)), *bucket((100,)), *bucket((3,)))
    assert len({bucket((n,)) for n in range(1, 1025)}) <= 15 + 8 * 7


def shapes(count: int) -> Sequence[tuple[int, int]]:
    return [(h, w) for h in range(8, 8 + count) for w in range(8, 8 + count)]


def test_the_cache_of_layouts_is_bounded_and_keeps_the_ones_last_used() -> None:
    cache = LayoutCache(Neighborhood.nearest(4), limit=6)
    kept = cache.get((50, 50), CPU)
    for shape in shapes(5):
        cache.get(shape, CPU)
        assert cache.get((50, 50), CPU) is kept
        assert len(cache) <= 6
        assert cache.nbytes <= 6 * kept.nbytes
    # 400 sizes, fewer layouts: sizes of one bucket share one.
    roomy = LayoutCache(Neighborhood.nearest(4), limit=1000)
    for h, w in shapes(20):
        roomy.get((h + 60, w + 60), CPU)
    assert len(roomy) <= 16
