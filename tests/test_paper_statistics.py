"""Are the intervals those of a bootstrap that can be worked out by hand?"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy import stats

from bench.paper import statistics
from bench.paper.statistics import Labels, Scores
from tritoncrf.metrics import Score


def made(correct: list[int], total: list[int] | int = 1) -> Scores:
    totals = [total] * len(correct) if isinstance(total, int) else total
    return statistics.scores([[c, t] for c, t in zip(correct, totals, strict=True)])


def test_accuracy_is_pooled_over_pixels() -> None:
    found = made([1, 30], [1, 99])
    assert statistics.pooled(found) == 0.31  # and not the mean of 1 and 0.303


def test_mean_and_deviation() -> None:
    assert statistics.mean_and_deviation([0.25]) == (0.25, None)
    mean, deviation = statistics.mean_and_deviation([1.0, 2.0, 6.0])
    assert mean == 3
    assert deviation == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2


def test_two_images_by_hand() -> None:
    # a resample of differences (0, 1) is (0, 0), (0, 1), (1, 0) or (1, 1), each with probability 1/4
    found = statistics.difference([made([0, 1])], [made([0, 0])])
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    inner = statistics.difference([made([0, 1])], [made([0, 0])], level=0.4)
    assert (inner.low, inner.high) == (0.5, 0.5)


@pytest.mark.parametrize(("images", "better"), [(10, 1), (40, 7), (101, 60)])
def test_one_pixel_images_are_binomial(images: int, better: int) -> None:
    gains = [1] * better + [0] * (images - better)
    found = statistics.difference([made(gains)], [made([0] * images)], resamples=40_000)
    low, high = stats.binom.ppf([0.025, 0.975], images, better / images) / images
    assert found.value == pytest.approx(better / images)
    assert found.low == pytest.approx(low, abs=1.01 / images)  # a quantile may fall to the neighbouring count
    assert found.high == pytest.approx(high, abs=1.01 / images)


def normal_case(generator: np.random.Generator, images: int = 400) -> tuple[Scores, Scores, Scores]:
    """Two methods that share a large part per image, whose difference is small; a third seed of the first."""
    shared = generator.integers(200, 800, images)
    small = generator.integers(-20, 31, (2, images))
    return made(list(map(int, shared + small[0])), 1000), made(list(map(int, shared)), 1000), made(
        list(map(int, shared + small[1])), 1000
    )


def test_large_samples_are_normal_and_paired() -> None:
    first, second, _ = normal_case(np.random.default_rng(5))
    gains = (first[:, 0] - second[:, 0]) / 1000
    found = statistics.difference([first], [second])
    half = stats.norm.ppf(0.975) * gains.std() / len(gains) ** 0.5
    assert found.value == pytest.approx(gains.mean())
    assert found.low == pytest.approx(gains.mean() - half, abs=0.06 * half)
    assert found.high == pytest.approx(gains.mean() + half, abs=0.06 * half)


def test_what_all_images_share_leaves_no_doubt() -> None:
    generator = np.random.default_rng(6)
    base = [int(value) for value in generator.integers(0, 900, 50)]
    found = statistics.difference([made([value + 3 for value in base], 1000)], [made(base, 1000)])
    assert found.low == pytest.approx(0.003, abs=1e-15)
    assert found.high == pytest.approx(0.003, abs=1e-15)
    assert found.verdict == "above"


def test_seeds_over_the_same_images_do_not_count_as_more_images() -> None:
    first, second, _ = normal_case(np.random.default_rng(7))
    one = statistics.difference([first], [second])
    three = statistics.difference([first] * 3, [second] * 3)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert three.strata == (one.value,) * 3
    # folds have images of their own: the mean of two has half the variance
    turned = made([int(c) for c in first[:, 0]], [1001] * len(first)), made([int(c) for c in second[:, 0]], [1001] * len(first))
    two = statistics.difference([first, turned[0]], [second, turned[1]])
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(0.5**0.5, rel=0.05)


def test_strata_weigh_alike() -> None:
    first, second = [made([9, 9], 10), made([5], 10)], [made([5, 5], 10), made([7], 10)]
    found = statistics.difference(first, second)
    assert found.value == pytest.approx((0.4 - 0.2) / 2)
    assert found.strata == pytest.approx((0.4, -0.2))


def test_intervals_are_the_same_each_time_and_change_with_the_seed() -> None:
    first, second, other = normal_case(np.random.default_rng(8))
    assert statistics.difference([first, other], [second] * 2) == statistics.difference([first, other], [second] * 2)
    assert statistics.difference([first], [second], seed=1).low != statistics.difference([first], [second]).low


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, "above"), (-0.2, -0.1, "below"), (-0.1, 0.1, "open"), (0, 1, "open")]
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert statistics.Difference(0.0, low, high, (0.0,)).verdict == verdict


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([], "per_image: expected pairs [correct, total] of integers, one an image, got others or none"),
        ([[1, 2, 3]], "per_image: expected pairs [correct, total] of integers, one an image, got others or none"),
        ([[0.5, 2]], "per_image: expected pairs [correct, total] of integers, one an image, got others or none"),
        ([[1, 2], [3, 2]], "per_image: expected 0 <= correct <= total, got [3, 2] for image 1"),
        ([[0, 0]], "per_image: expected some counted pixels, got none"),
    ],
)
def test_scores_say_what_is_wrong(pairs: list[list[int]], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        statistics.scores(pairs)


def test_unlike_images_are_refused() -> None:
    with pytest.raises(ValueError, match="second: expected the test images of first in the same order, got others in str"):
        statistics.difference([made([1, 1]), made([1, 1])], [made([1, 1]), made([1, 1], [1, 2])])
    with pytest.raises(ValueError, match="second: expected as many strata as first, at least one, got 0 for 1"):
        statistics.difference([made([1])], [])
    with pytest.raises(ValueError, match="values: expected at least one number, got none"):
        statistics.mean_and_deviation([])


def told(target: torch.Tensor, given: torch.Tensor, count: int) -> Labels:
    """Counts of images ``[n, pixels]`` in a way of their own."""
    shared, true, answered = (
        [[int((part[i] == label).sum()) for label in range(count)] for i in range(len(target))]
        for part in (torch.where(target == given, target, 255), target, torch.where(target == 255, 255, given))
    )
    images = zip(shared, true, answered, strict=True)
    return statistics.labels([[list(label) for label in zip(*image, strict=True)] for image in images])


def test_mean_iou_is_that_of_the_pooled_pixels() -> None:
    generator = torch.Generator().manual_seed(9)
    target, given = torch.randint(0, 4, (2, 6, 50), generator=generator)
    target[:, ::7] = 255  # void: counted nowhere
    target[target == 2] = 1  # no pixel has label 2, though some are given it: its IoU of 0 is not in the mean
    given[0] = target[0].masked_fill(target[0] == 255, 0)  # one image all right
    found = told(target, given, 4)
    assert statistics.mean_iou(found) == pytest.approx(Score.empty(4).plus(target, given).mean_iou, abs=1e-6)
    assert statistics.mean_iou(found) != pytest.approx(np.mean([statistics.mean_iou(one[None]) for one in found]), abs=1e-2)


def test_two_images_of_two_labels_by_hand() -> None:
    # Image 0 is all label 0, image 1 all label 1, ten pixels each; the first method has all right, the second says 0 of both.
    first = statistics.labels([[[10, 10, 10], [0, 0, 0]], [[0, 0, 0], [10, 10, 10]]])
    second = statistics.labels([[[10, 10, 10], [0, 0, 0]], [[0, 0, 10], [0, 10, 0]]])
    found = statistics.iou_difference([first], [second])
    # IoUs 1 and 1 against 10 / 20 and 0; of a resample (0, 0) no difference, of (1, 1) label 1 alone occurs: 1 against 0
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)
    inner = statistics.iou_difference([first], [second], level=0.4)
    assert (inner.low, inner.high) == (0.75, 0.75)


def test_intervals_of_mean_iou_repeat_and_share_draws() -> None:
    generator = torch.Generator().manual_seed(10)
    target, better, worse = torch.randint(0, 3, (3, 40, 30), generator=generator)
    better = torch.where(torch.rand(40, 30, generator=generator) < 0.6, target, better)
    first, second = told(target, better, 3), told(target, worse, 3)
    one = statistics.iou_difference([first], [second])
    assert one.verdict == "above"
    assert statistics.iou_difference([first] * 2, [second] * 2).low == pytest.approx(one.low)
    assert statistics.iou_difference([first], [first]).high == 0
    with pytest.raises(ValueError, match="second: expected the test images of first in the same order"):
        statistics.iou_difference([first], [second[::-1]])


@pytest.mark.parametrize(
    ("per_label", "sentence"),
    [
        ([], "per_label: expected triples [shared, true, given] of integers, as many an image, got others or none"),
        ([[]], "per_label: expected triples [shared, true, given] of integers, as many an image, got others or none"),
        ([[[1, 2]]], "per_label: expected triples [shared, true, given] of integers, as many an image, got others or none"),
        ([[[1, 1, 1]], [[1, 1, 1]] * 2], "per_label: expected triples [shared, true, given] of integers, as many an image"),
        ([[[0, 0, 0], [2, 3, 1]]], "per_label: expected 0 <= shared <= true and given, got [2, 3, 1] for label 1 of image 0"),
    ],
)
def test_labels_say_what_is_wrong(per_label: list[list[list[int]]], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        statistics.labels(per_label)
