"""Do kinds and gates say what a loop over the edges says, at the first end, and do thresholds and trees fit their data?"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tritoncrf import Indexed, Neighborhood, checkpoint
from tritoncrf.datasets import Figures, Sample
from tritoncrf.edge_ends import sample
from tritoncrf.edge_inputs import Edges
from tritoncrf.edge_trees import EdgeTree, by_tree
from tritoncrf.edges import EdgeMaker, Recipe, contrast, gaussian, parse, steps, thresholds

LINE = Neighborhood.from_offsets([(1,), (-3,), (9,)])
PLANE = Neighborhood.from_offsets([(0, 1), (1, -1), (-2, 1), (3, 2), (6, 0), (0, -9)])
SPACE = Neighborhood.from_offsets([(0, 0, 1), (1, -1, 1), (-2, 3, 0), (0, 0, -2)])
GRIDS = [((7,), LINE), ((5, 4), PLANE), ((3, 4, 2), SPACE)]
RIGHT = Neighborhood.from_offsets([(0, 1)])


def quarters(*shape: int, seed: int = 0) -> Tensor:
    """Multiples of 1/4 from -1 to 1: their differences are exact, and often a threshold."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)) / 4


def loop(image: Tensor, neighborhood: Neighborhood, say: Callable[[list[float], list[float]], float]) -> Tensor:
    """What ``say(first end's values, second end's)`` says of every edge, float64 [N, C, *shape], 0 where there is none."""
    shape = image.shape[2:]
    out = torch.zeros(len(image), len(neighborhood), *shape, dtype=torch.float64)
    for n, (c, offset) in itertools.product(range(len(image)), enumerate(neighborhood.offsets)):
        for pixel in itertools.product(*map(range, shape)):
            other = tuple(own + step for own, step in zip(pixel, offset, strict=True))
            if all(0 <= place < size for place, size in zip(other, shape, strict=True)):
                values = image[n].double().movedim(0, -1)
                out[(n, c, *pixel)] = say(values[pixel].tolist(), values[other].tolist())
    return out


def signed_kind(step: float, levels: tuple[float, ...]) -> int:
    above = sum(abs(step) > level for level in levels)
    return len(levels) + (above if step > 0 else -above)


def says(text: str) -> str:
    return re.escape(text)


# --- kinds


@pytest.mark.parametrize(("shape", "neighborhood"), GRIDS)
@pytest.mark.parametrize("levels", [(0.25,), (0.25, 0.6, 1.0)])
def test_steps_are_those_of_a_loop(shape: tuple[int, ...], neighborhood: Neighborhood, levels: tuple[float, ...]) -> None:
    image = quarters(2, 3, *shape)
    for channel in range(3):
        found = steps(image, neighborhood, levels, channel=channel)
        expected = loop(image, neighborhood, lambda a, b: signed_kind(b[channel] - a[channel], levels))  # noqa: B023
        assert found.dtype == torch.uint8
        assert found.shape == (2, len(neighborhood), *shape)
        assert torch.equal(found.double(), expected)
        sizes = loop(image, neighborhood, lambda a, b: sum(abs(b[channel] - a[channel]) > t for t in levels))  # noqa: B023
        assert torch.equal(steps(image, neighborhood, levels, channel=channel, signed=False).double(), sizes)
    assert int(steps(image, neighborhood, levels).max()) == 2 * len(levels)


@pytest.mark.parametrize(("shape", "neighborhood"), GRIDS)
def test_contrast_is_that_of_a_loop(shape: tuple[int, ...], neighborhood: Neighborhood) -> None:
    image, levels = quarters(2, 3, *shape), (0.25, 0.75, 1.25)  # of some distances exactly
    found = contrast(image, neighborhood, levels)
    assert torch.equal(found.double(), loop(image, neighborhood, lambda a, b: sum(math.dist(a, b) > t for t in levels)))
    assert torch.equal(contrast(image[:, 1:2], neighborhood, levels), steps(image[:, 1:2], neighborhood, levels, signed=False))


def test_a_kind_stands_at_the_first_end_and_knows_its_direction() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 2, 4)
    up, down = torch.tensor([2, 2, 2, 0]), torch.tensor([0, 0, 0, 0])
    assert torch.equal(steps(ramp, RIGHT, (0.5,))[0, 0, 0].long(), up)
    assert torch.equal(steps(ramp.flip(3), RIGHT, (0.5,))[0, 0, 0].long(), down)
    left = Neighborhood.from_offsets([(0, -1)])
    assert torch.equal(steps(ramp.flip(3), left, (0.5,))[0, 0, 0].long(), up.flip(0))
    assert torch.equal(contrast(ramp, left, (0.5,))[0, 0, 0].long(), torch.tensor([0, 1, 1, 1]))
    assert torch.equal(gaussian(ramp, left, 1.0)[0, 0, 0, 0] > 0, torch.tensor([False, True, True, True]))


def test_at_a_threshold_the_smaller_size() -> None:
    image = torch.tensor([[[[0.0, 0.5, 0.0, 0.75, 0.0]]]])
    assert steps(image, RIGHT, (0.5,)).flatten().tolist() == [1, 1, 2, 0, 0]
    assert steps(image, RIGHT, (0.5, 0.75)).flatten().tolist() == [2, 2, 3, 1, 0]
    assert contrast(image, RIGHT, (0.5,)).flatten().tolist() == [0, 0, 1, 1, 0]


def test_nan_is_no_step_and_infinity_a_large_one() -> None:
    image = torch.tensor([[[[0.0, math.nan, 0.0, math.inf, -math.inf]]]])
    assert steps(image, RIGHT, (0.5,)).flatten().tolist() == [1, 1, 2, 0, 0]
    assert contrast(image, RIGHT, (0.5,)).flatten().tolist() == [0, 0, 1, 1, 0]


def test_input_of_any_layout_and_precision() -> None:
    image = quarters(2, 5, 3, 4).movedim(2, 1)
    assert not image.is_contiguous()
    makers: list[Callable[[Tensor], Tensor]] = [
        lambda x: steps(x, PLANE, (0.25,)), lambda x: contrast(x, PLANE, (0.25,)), lambda x: gaussian(x, PLANE, 0.5)
    ]  # fmt: skip
    for make in makers:
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            found = make(image.to(dtype))
            assert torch.allclose(found.double(), make(image.contiguous()).double(), atol=1e-6)
            assert found.dtype in (torch.uint8, torch.float64 if dtype == torch.float64 else torch.float32)
    # In half precision itself this step would be 2048.
    assert steps(torch.tensor([[[[0.25, 2048.0]]]], dtype=torch.float16), RIGHT, (2047.9,)).flatten().tolist() == [1, 0]
    assert not steps(image.clone().requires_grad_(), PLANE, (0.25,)).requires_grad


def test_a_class_without_edges_is_zero() -> None:
    far, image = Neighborhood.from_offsets([(9, 0), (0, -9), (1, 0)]), quarters(1, 2, 3, 4)
    tree = EdgeTree.grow([item(quarters(2, 9, 10))], far, 4, 3)
    kinds = steps(image, far, (0.1,)), contrast(image, far, (0.1,)), by_tree(image, far, tree)
    for found in (*kinds, gaussian(image, far, 1.0)[:, 0]):
        assert not found[:, :2].any()
        assert found[:, 2].any()


def test_the_host_reads_no_value() -> None:
    """A meta tensor has none to read: nothing here waits for a GPU."""
    image = torch.empty(2, 1, 6, 5, device="meta")
    tree = EdgeTree.grow([item(quarters(1, 9, 9))], PLANE, 4, 4)
    for found in (steps(image, PLANE, (0.1,)), contrast(image, PLANE, (0.1,)), by_tree(image, PLANE, tree)):
        assert (found.shape, found.device.type) == ((2, 6, 6, 5), "meta")
    assert gaussian(image, PLANE, 1.0).shape == (2, 1, 6, 6, 5)


# --- gates


@pytest.mark.parametrize(("shape", "neighborhood"), GRIDS)
@pytest.mark.parametrize("bandwidth", [0.7, (0.5, 1.0, 2.5)])
def test_gaussian_is_that_of_a_loop(
    shape: tuple[int, ...], neighborhood: Neighborhood, bandwidth: float | tuple[float, ...]
) -> None:
    image = torch.randn(2, 3, *shape)
    scales = bandwidth if isinstance(bandwidth, tuple) else (bandwidth,) * 3
    expected = loop(
        image, neighborhood,
        lambda a, b: math.exp(-sum(((q - p) / h) ** 2 for p, q, h in zip(a, b, scales, strict=True)) / 2),
    )  # fmt: skip
    found = gaussian(image, neighborhood, bandwidth)
    assert found.dtype == torch.float32
    assert torch.allclose(found[:, 0].double(), expected, atol=1e-6)
    assert torch.allclose(gaussian(image.double(), neighborhood, bandwidth)[:, 0], expected, atol=1e-12)


@pytest.mark.parametrize(("shape", "neighborhood"), [((4,), LINE), ((3, 4), PLANE), ((2, 3, 2), SPACE)])
def test_gradients_of_gates(shape: tuple[int, ...], neighborhood: Neighborhood) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 2, *shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: gaussian(f, neighborhood, (0.8, 1.7)), (features,))
    assert torch.autograd.gradcheck(lambda f: gaussian(f.transpose(0, 1), neighborhood, 1.1), (features,))


def test_gradients_are_finite_and_keep_the_dtype() -> None:
    image = torch.tensor([0.0, 1e30, -3e38, 3e38, 2.0, 2.0]).reshape(1, 1, 1, 6).requires_grad_()
    gates = gaussian(image, RIGHT, 1e-20)
    gates.sum().backward()  # type: ignore[no-untyped-call]
    assert gates.flatten().tolist() == [0, 0, 0, 0, 1, 0]
    assert image.grad is not None
    assert image.grad.isfinite().all()
    half = torch.randn(1, 1, 3, 3).half().requires_grad_()
    gaussian(half, RIGHT, 1.0).sum().backward()  # type: ignore[no-untyped-call]
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    assert half.grad.any()


def test_gates_keep_no_difference_of_every_class_and_channel() -> None:
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    features = torch.randn(1, 16, 9, 9).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        gates = gaussian(features, Neighborhood.grid(2), 1.0)
    assert kept <= features.numel() + gates.numel()


# --- bad input


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda x: steps(x[0], PLANE, (0.1,)), ValueError,
         "image: expected shape [N, channels, size, size] as the neighbourhood has axes, none 0, got [2, 5, 4]"),
        (lambda x: contrast(x, LINE, (0.1,)), ValueError, "image: expected shape [N, channels, size] as the neighbourhood"),
        (lambda x: gaussian(x[:, :0], PLANE, 1.0), ValueError, "none 0, got [1, 0, 5, 4]"),
        (lambda x: steps((x * 4).to(torch.uint8), PLANE, (0.1,)), TypeError,
         "image: expected a floating-point dtype (convert with .float()), got torch.uint8"),
        (lambda x: contrast(x.long(), PLANE, (0.1,)), TypeError, "(convert with .float()), got torch.int64"),
        (lambda x: gaussian(x.tolist(), PLANE, 1.0), TypeError, "features: expected a torch tensor, got list"),
        (lambda x: steps(x, [(0, 1)], (0.1,)), TypeError, "neighborhood: expected a Neighborhood, got list"),  # type: ignore[arg-type]
        (lambda x: steps(x, PLANE, (0.1,), channel=2), ValueError, "channel: expected an integer from 0 to 1, got 2"),
        (lambda x: steps(x, PLANE, (0.1,), channel=-1), ValueError, "channel: expected an integer from 0 to 1, got -1"),
        (lambda x: steps(x, PLANE, ()), ValueError, "thresholds: expected positive finite numbers, one at least, got ()"),
        (lambda x: steps(x, PLANE, (0.0, 1.0)), ValueError, "thresholds: expected positive finite numbers"),
        (lambda x: contrast(x, PLANE, (1.0, math.inf)), ValueError, "thresholds: expected positive finite numbers"),
        (lambda x: contrast(x, PLANE, (math.nan,)), ValueError, "thresholds: expected positive finite numbers"),
        (lambda x: contrast(x, PLANE, "12"), ValueError, "expected positive finite numbers, one at least, got '12'"),  # type: ignore[arg-type]
        (lambda x: contrast(x, PLANE, (0.2, 0.2)), ValueError, "thresholds: expected numbers that increase, got (0.2, 0.2)"),
        (lambda x: steps(x, PLANE, range(1, 129)), ValueError,
         "thresholds: expected at most 255 kinds, got 128 thresholds, which make 257"),
        (lambda x: contrast(x, PLANE, range(1, 256)), ValueError, "got 255 thresholds, which make 256"),
        (lambda x: gaussian(x, PLANE, 0.0), ValueError, "bandwidth: expected positive finite numbers, one at least, got 0.0"),
        (lambda x: gaussian(x, PLANE, (1.0, 2.0, 3.0)), ValueError,
         "bandwidth: expected one number, or one for each of 2 channels, got 3"),
        (lambda x: thresholds(x, LINE, (0.5,)), ValueError, "images: expected shape [channels, size]"),
        (lambda x: thresholds(3, LINE, (0.5,)), TypeError,  # type: ignore[arg-type]
         "images: expected a data set or an iterable of tensors, got int"),
        (lambda x: thresholds(x, PLANE, (0.5, 1.0)), ValueError, "quantiles: expected numbers below 1, got (0.5, 1.0)"),
        (lambda x: thresholds(x, PLANE, (0.5, 0.2)), ValueError, "quantiles: expected numbers that increase, got (0.5, 0.2)"),
        (lambda x: thresholds(x, PLANE, (0.5,), channel=2), ValueError, "channel: expected an integer from 0 to 1, got 2"),
        (lambda x: thresholds([], PLANE, (0.5,)), ValueError, "images: expected at least one edge"),
        (lambda x: thresholds(torch.zeros_like(x), PLANE, (0.5,)), ValueError,
         "quantiles: expected thresholds above 0 that increase, got (0.0,) from (0.5,)"),
        (lambda x: thresholds((x > 0).float()[:, :1], PLANE, (0.8, 0.9)), ValueError, "got (1.0, 1.0) from (0.8, 0.9)"),
        (lambda x: by_tree(x, PLANE, None), TypeError, "tree: expected an EdgeTree, got NoneType"),  # type: ignore[arg-type]
        (lambda x: by_tree(x[:, :1], PLANE, small_tree()), ValueError, "image: expected 2 channels as the trees have, got 1"),
        (lambda x: by_tree(x, RIGHT, small_tree()), ValueError, "neighborhood: expected the offsets that the trees"),
        (lambda x: EdgeTree.grow(x, PLANE, 4, 1), ValueError, "kinds: expected an integer from 2 to 255, got 1"),
        (lambda x: EdgeTree.grow(x, PLANE, 4, 2), ValueError, "images: expected items (image, target, ..), got an image"),
        (lambda x: EdgeTree.grow([item(x[0])], PLANE, 3, 2), ValueError, "target: expected labels from 0 to 2 (or 255), got 3"),
        (lambda x: EdgeTree.grow([item(x[0] / 0)], PLANE, 4, 2), ValueError, "images: expected finite numbers, got NaN or inf"),
        (lambda x: EdgeTree.grow([item(x[0]), item(x[0, :1])], PLANE, 4, 2), ValueError,
         "images: expected one number of channels, got [1, 2]"),
        (lambda x: EdgeTree.from_state({"offsets": x}), ValueError, "state: expected a tensor 'channels', got NoneType"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Callable[[Tensor], object], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=says(sentence)):
        call(quarters(1, 2, 5, 4))


# --- thresholds of a training set


def test_thresholds_are_quantiles_of_all_edges_where_they_are_few() -> None:
    images = [torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 6, 6, dtype=torch.float64)]
    colour: list[float] = []
    step: list[float] = []

    def note(a: list[float], b: list[float]) -> float:
        colour.append(math.dist(a, b))
        step.append(abs(b[1] - a[1]))
        return 0.0

    for image in images:
        loop(image[None], PLANE, note)
    assert thresholds(images, PLANE, (0.3, 0.9)) == pytest.approx(np.quantile(colour, (0.3, 0.9)))
    assert thresholds(iter(images), PLANE, (0.5,), channel=1) == pytest.approx(np.quantile(step, (0.5,)))


def test_thresholds_of_a_sample() -> None:
    images = torch.randn(4, 1, 40, 30)
    found = thresholds(images, PLANE, (0.4, 0.7), channel=0)
    assert found == thresholds(images, PLANE, (0.4, 0.7), channel=0)
    assert found != thresholds(images, PLANE, (0.4, 0.7), channel=0, seed=1)
    kinds = steps(images, PLANE, found, signed=False)
    outside = steps(images, PLANE, (1e-30,)) == 0  # downward, or no edge
    upward = kinds[~outside].bincount().double()
    assert torch.allclose(upward / upward.sum(), torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64), atol=0.03)


def test_thresholds_leave_out_what_is_known_or_not_there() -> None:
    image = torch.tensor([[[0.0, 1.0, 9.0, 9.5, 90.0]]])
    target, known = torch.zeros(1, 5, dtype=torch.long), torch.full((1, 5), 255, dtype=torch.uint8)
    known[0, 2] = 0
    exists = torch.tensor([[True, True, True, True, False]])

    class Own:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, i: int) -> Sample:
            return image, target, {"known": known, "mask": exists}  # no end of its own

    assert thresholds(Own(), RIGHT, (0.5,)) == (1.0,)
    assert thresholds(Indexed(Own()), RIGHT, (0.5,)) == (1.0,)
    assert thresholds([(image, target, {"mask": exists})], RIGHT, (0.5,)) == (1.0,)
    assert thresholds([(image, target)], RIGHT, (0.5,)) == (4.5,)


def test_a_sample_is_of_usable_edges_each_as_likely() -> None:
    usable = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    generator = torch.Generator().manual_seed(0)
    every = set(zip(*(part.tolist() for part in sample(usable, PLANE, 1000, generator)), strict=True))
    expected = loop(usable[None, None], PLANE, lambda a, b: float(a[0] and b[0]))
    assert len(every) == int(expected.sum())
    for c, first, second in every:
        assert expected[0, c].flatten()[first]
        assert divmod(second, 5) == (first // 5 + PLANE.offsets[c][0], first % 5 + PLANE.offsets[c][1])
    big = usable.repeat(20, 20)
    drawn = sample(big, PLANE, 20_000, generator)
    assert 1000 < len(drawn[0]) <= 20_000
    share = sample(big, PLANE, 10**9, generator)[0].bincount(minlength=6).double()
    found = drawn[0].bincount(minlength=6).double()
    assert torch.allclose(found / found.sum(), share / share.sum(), atol=0.02)


# --- recipes


def test_recipes_are_read_and_written() -> None:
    image = quarters(1, 2, 5, 4)
    for text, kinds, gates, expected in (
        ("steps:0.2", 3, 0, Edges(kinds=steps(image, PLANE, (0.2,)))),
        ("contrast:0.1,0.3", 3, 0, Edges(kinds=contrast(image, PLANE, (0.1, 0.3)))),
        ("gaussian:0.1", None, 1, Edges(gates=gaussian(image, PLANE, 0.1))),
        ("gaussian:1,2.5e-07", None, 1, Edges(gates=gaussian(image, PLANE, (1, 2.5e-7)))),
    ):
        recipe = parse(text, PLANE)
        maker: EdgeMaker = recipe
        assert (str(recipe), recipe.kinds, recipe.gates) == (text, kinds, gates)
        assert parse(str(recipe), PLANE) == recipe
        for found, own in zip(maker(image), expected, strict=True):
            assert (found is None) == (own is None)
            assert found is None or own is None or torch.equal(found, own)


@pytest.mark.parametrize("text", ["steps", "steps:", "size:0.2", "steps:x", "contrast:0.3,0.1", "gaussian:-1", "steps:nan", ""])
def test_a_bad_recipe_is_told_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=says("text: expected steps:T[,T..] or contrast:T[,T..] with")) as error:
        parse(text, PLANE)
    assert f"gaussian:H[,H..] with positive bandwidths H, got {text!r}" in str(error.value)
    with pytest.raises(ValueError, match=says("form: expected one of 'steps', 'contrast', 'gaussian', got 'size'")):
        Recipe("size", (0.2,), PLANE)
    with pytest.raises(ValueError, match=says("numbers: expected numbers that increase, got (0.3, 0.1)")):
        Recipe("steps", (0.3, 0.1), PLANE)


# --- trees


def item(image: Tensor) -> Sample:
    """An item of labels 0 .. 3 that follow from the image."""
    return image, (image[0] > 0).long() + 2 * (image[-1] > 0.3).long()


def small_tree() -> EdgeTree:
    return EdgeTree.grow([item(quarters(2, 9, 8))], PLANE, 4, 5)


@pytest.mark.parametrize(
    ("shape", "neighborhood", "channels"), [((30,), LINE, 1), ((12, 11), PLANE, 2), ((6, 5, 5), SPACE, 3)]
)
def test_trees_arrive_where_scikit_learns_do(
    shape: tuple[int, ...], neighborhood: Neighborhood, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sklearn.tree

    fitted: list[sklearn.tree.DecisionTreeClassifier] = []

    class Seen(sklearn.tree.DecisionTreeClassifier):  # type: ignore[misc]
        def fit(self, *args: object) -> object:
            fitted.append(self)
            return super().fit(*args)

    monkeypatch.setattr(sklearn.tree, "DecisionTreeClassifier", Seen)
    torch.manual_seed(0)
    images = [torch.randn(channels, *shape) for _ in range(4)]
    tree = EdgeTree.grow([item(image) for image in images], neighborhood, 4, 9)
    assert len(fitted) == len(neighborhood)
    image = torch.stack(images)
    # Thresholds lie between values of the training set; values beside them show the rounding.
    near = torch.tensor([t for model in fitted for t in model.tree_.threshold[model.tree_.children_left >= 0]])
    image = torch.cat([image, near[torch.randint(len(near), image.shape)].float()])
    found = by_tree(image, neighborhood, tree)
    for c, model in enumerate(fitted):
        rows: list[list[float]] = []

        def ask(a: list[float], b: list[float], rows: list[list[float]] = rows) -> float:
            steps = [float(np.float32(q) - np.float32(p)) for p, q in zip(a, b, strict=True)]
            rows.append([x for p, q, d in zip(a, b, steps, strict=True) for x in (d, abs(d), p, q)])
            return 1.0

        one = Neighborhood.from_offsets([neighborhood.offsets[c]])
        exists = loop(image, one, ask)[:, 0] > 0
        leaves = torch.from_numpy(model.apply(np.array(rows, np.float32)))
        assert torch.equal(found[:, c][exists], tree.kind[c][leaves])
        assert not found[:, c][~exists].any()
        assert set(tree.kind[c][leaves].tolist()) == set(range(model.get_n_leaves()))
    assert int(found.max()) == 8


def test_every_question_of_a_tree_by_hand() -> None:
    """Of channel 1: is the step at most 1? Then is the first end at most 0?, else the size at most 3?, then the second?"""
    feature = torch.tensor([[4, 6, 5, -1, -1, 7, -1, -1, -1]])
    threshold = torch.tensor([[1.0, 0.0, 3.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0]])
    left, right = torch.tensor([[1, 3, 5, -1, -1, 7, -1, -1, -1]]), torch.tensor([[2, 4, 6, -1, -1, 8, -1, -1, -1]])
    kind = torch.tensor([[0, 0, 0, 0, 1, 0, 4, 2, 3]], dtype=torch.uint8)
    tree = EdgeTree(RIGHT, 2, 5, feature, threshold, left, right, kind)
    values = torch.tensor([0.0, 1.0, 4.0, 6.0, -9.0, -5.0, -5.0])
    image = torch.stack([torch.zeros(7), values])[None, :, None]
    assert by_tree(image, RIGHT, tree).flatten().tolist() == [0, 2, 3, 1, 4, 0, 0]
    with pytest.raises(ValueError, match=says("left: expected shape [1, 9], got [1, 8]")):
        EdgeTree(RIGHT, 2, 5, feature, threshold, left[:, :8], right, kind)


def test_a_tree_finds_what_tells_pairs_apart() -> None:
    """Labels follow from the values at the two ends, and so do the kinds: one for each pair."""
    torch.manual_seed(0)
    image = torch.where(torch.rand(1, 30, 30) < 0.5, 0.0, 2.0) + 0.5 * torch.rand(1, 30, 30)
    target = (image[0] > 1).long()
    tree = EdgeTree.grow([(image, target)], RIGHT, 2, 4)
    kinds = by_tree(image[None], RIGHT, tree)[0, 0, :, :-1].long()
    pair = 2 * target[:, :-1] + target[:, 1:]
    table = torch.zeros(4, 4).index_put((kinds.flatten(), pair.flatten()), torch.ones(()), accumulate=True)
    assert (table > 0).sum() == 4
    assert (table > 0).any(0).all()
    assert (tree.kinds, tree.gates) == (4, 0)
    assert torch.equal(tree(image[None]).kinds, by_tree(image[None], RIGHT, tree))  # type: ignore[arg-type]


def test_trees_learn_from_labelled_edges_that_are_not_known() -> None:
    image = torch.arange(8.0).reshape(1, 1, 8)
    target = torch.tensor([[0, 0, 1, 1, 255, 1, 0, 1]])
    known = torch.full((1, 8), 255, dtype=torch.uint8)
    known[0, :2] = 0  # the edge 0-1 is known, 1-2 is not; no edge of pixel 4 has two labels
    exists = torch.tensor([[True] * 7 + [False]])
    tree = EdgeTree.grow([(image, target, {"known": known, "mask": exists})], RIGHT, 2, 255)
    kinds = by_tree(image[None], RIGHT, tree).flatten()
    # Left are 1-2 (0, 1), 2-3 (1, 1) and 5-6 (1, 0): three leaves, and nothing that splits off 0-1 or 6-7.
    assert kinds.tolist() == [0, 0, 1, 1, 2, 2, 2, 0]
    with pytest.raises(ValueError, match=says("images: expected at least one edge with two labels that are not both known")):
        EdgeTree.grow([(image, target, {"known": torch.zeros_like(known)})], RIGHT, 2, 3)


def test_trees_are_reproducible_and_come_back_from_a_file(tmp_path: Path) -> None:
    figures = Figures(3, size=(40, 30))
    tree = EdgeTree.grow(Indexed(figures), PLANE, 20, 6, pairs=500)
    again, other = (EdgeTree.grow(figures, PLANE, 20, 6, pairs=500, seed=seed) for seed in (0, 1))
    state = tree.state()
    assert all(torch.equal(state[name], value) for name, value in again.state().items())
    assert not torch.equal(state["threshold"], other.state()["threshold"])
    checkpoint.write(tmp_path / "tree", {"tree": state}, kind="edges")
    back = EdgeTree.from_state(checkpoint.tensors(checkpoint.read(tmp_path / "tree", kind="edges"), "tree"))
    assert (back.neighborhood, back.channels, back.kinds) == (PLANE, 1, 6)
    image = figures[0][0][None]
    kinds = by_tree(image, PLANE, back)
    assert torch.equal(kinds, by_tree(image, PLANE, tree))
    assert int(kinds.max()) == 5
    for name, value in (("left", 0), ("right", 99), ("feature", 4), ("kind", 6)):
        broken = state | {name: torch.where(state["feature"] >= 0, torch.tensor(value).to(state[name]), state[name])}
        with pytest.raises(ValueError, match="expected features, children and kinds of trees, got others at class 0, node 0"):
            EdgeTree.from_state(broken)


def test_growing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.tree", None)
    with pytest.raises(ImportError, match=says("pip install 'tritoncrf[paper]'")):
        EdgeTree.grow([item(quarters(1, 4, 4))], RIGHT, 4, 2)
