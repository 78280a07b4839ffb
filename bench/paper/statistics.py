"""How sure is a difference between two methods? Pooled accuracies, deviations over seeds, paired bootstrap intervals.

A method's answer to image i is ``(correct_i, total_i)``: right body pixels, counted body pixels. Its accuracy is pooled,
``sum_i correct_i / sum_i total_i``, so large bodies weigh more (the measure of Denil et al. 2013, which the paper took over).
With several strata (seeds, or folds) the accuracy is the mean of the strata's. A difference is bootstrapped over images: both
methods get the same resampled images, and strata that score the same test images share the draw, or the interval would shrink
with every seed although no image was added. Seeds are not resampled: their spread stands beside, as a standard deviation.

Mean IoU likewise: with (shared_il, true_il, given_il) pixels of label l in image i it is the mean over the labels that occur of
``sum_i shared_il / sum_i (true_il + given_il - shared_il)``, and each resample of the images has one for both methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
Scores = NDArray[np.int64]
"""int64 [n, 2]: (correct, total) of n images."""
Labels = NDArray[np.int64]
"""int64 [n, L, 3]: pixels that have and were given a label, that have it, that were given it, in n images."""

# Counts of both methods, and how often each image is in each resample -> their difference in each.
Gains = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Difference:
    """First method's accuracy, or mean IoU, less the second's, as shares of 1, with its bootstrap interval."""

    value: float
    low: float
    high: float
    strata: tuple[float, ...]
    """The difference in each seed or fold."""

    @property
    def verdict(self) -> str:
        """"above" or "below" where the whole interval lies on that side of zero, else "open"."""
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "open"


def scores(per_image: Sequence[Sequence[int]]) -> Scores:
    """Checks pairs ``[[correct, total], ...]``. Raises ValueError unless each has 0 <= correct <= total, some total above 0."""
    whole = all(len(pair) == 2 and all(type(part) is int for part in pair) for pair in per_image)
    if not whole or not len(per_image):
        raise ValueError("per_image: expected pairs [correct, total] of integers, one an image, got others or none")
    found = np.array(per_image, dtype=np.int64)
    bad = np.flatnonzero((found[:, 0] < 0) | (found[:, 0] > found[:, 1]))
    if len(bad):
        raise ValueError(f"per_image: expected 0 <= correct <= total, got {found[bad[0]].tolist()} for image {bad[0]}")
    if found[:, 1].sum() == 0:
        raise ValueError("per_image: expected some counted pixels, got none")
    return found


def pooled(found: Scores) -> float:
    """Correct share of all counted pixels."""
    return int(found[:, 0].sum()) / int(found[:, 1].sum())


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the sample standard deviation (n - 1), None for a single value. Raises ValueError without values."""
    if not values:
        raise ValueError("values: expected at least one number, got none")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def difference(
    first: Sequence[Scores], second: Sequence[Scores], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Difference:
    """Mean over strata of the first's pooled accuracy less the second's, with the bootstrap's percentile interval.

    first, second: per stratum (seed, fold) the scores ``[n, 2]`` of the same images in the same order.
    Raises ValueError if strata or images do not match.
    """
    return _difference(first, second, pooled, _gains, resamples, seed, level)


def labels(per_label: Sequence[Sequence[Sequence[int]]]) -> Labels:
    """Checks ``[[[shared, true, given], ...], ...]``, images of as many labels. Raises ValueError for anything else."""
    counts = {len(image) for image in per_label}
    whole = all(len(label) == 3 and all(type(part) is int for part in label) for image in per_label for label in image)
    if not whole or len(counts) != 1 or 0 in counts:
        raise ValueError("per_label: expected triples [shared, true, given] of integers, as many an image, got others or none")
    found = np.array(per_label, dtype=np.int64)
    bad = np.argwhere((found[..., 0] < 0) | (found[..., 0] > found[..., 1:].min(-1)))
    if len(bad):
        i, label = bad[0]
        said = f"{found[i, label].tolist()} for label {label} of image {i}"
        raise ValueError(f"per_label: expected 0 <= shared <= true and given, got {said}")
    return found


def mean_iou(found: Labels) -> float:
    """Mean over the labels that occur of intersection over union, pooled over images; 0 without any."""
    return float(_mean_iou(found.sum(0)[None])[0])


def iou_difference(
    first: Sequence[Labels], second: Sequence[Labels], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Difference:
    """`difference`, of mean IoUs: per stratum the counts ``[n, L, 3]`` of the same images in the same order."""
    return _difference(first, second, mean_iou, _iou_gains, resamples, seed, level)


def _difference(
    first: Sequence[NDArray[np.int64]], second: Sequence[NDArray[np.int64]], value: Callable[[NDArray[np.int64]], float],
    gains: Gains, resamples: int, seed: int, level: float,
) -> Difference:  # fmt: skip
    _check(first, second)
    drawn = np.zeros(resamples)
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        # the first stratum with these test images; resampling it again with its own generator repeats its draw
        same = next(k for k in range(place + 1) if np.array_equal(first[k][..., 1], a[..., 1]))
        start = 0
        for times in _draws(len(a), resamples, np.random.default_rng([seed, same])):
            drawn[start : start + len(times)] += gains(a, b, times)
            start += len(times)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn / len(first), [tail, 1 - tail])
    strata = tuple(value(a) - value(b) for a, b in zip(first, second, strict=True))
    return Difference(mean_and_deviation(strata)[0], float(low), float(high), strata)


def _check(first: Sequence[NDArray[np.int64]], second: Sequence[NDArray[np.int64]]) -> None:
    if not first or len(first) != len(second):
        raise ValueError(f"second: expected as many strata as first, at least one, got {len(second)} for {len(first)}")
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        if not np.array_equal(a[..., 1], b[..., 1]):
            raise ValueError(
                f"second: expected the test images of first in the same order, got others in stratum {place} "
                f"({len(b)} images for {len(a)}, {b[..., 1].sum()} counted pixels for {a[..., 1].sum()})"
            )


def _draws(count: int, resamples: int, generator: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """How often each of ``count`` images is in each resample, float64 ``[some resamples, count]`` at a time."""
    rows = max(1, 2_000_000 // count)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        places = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


# Sums of integers below 2^53 are exact in any order, so intervals do not depend on the machine.


def _gains(a: Scores, b: Scores, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The difference of the pooled accuracies in each resample."""
    gain, total = (times @ np.stack([a[:, 0] - b[:, 0], a[:, 1]], 1).astype(np.float64)).T
    # a resample of images without a counted pixel says nothing: no difference
    found: NDArray[np.float64] = np.divide(gain, total, out=np.zeros(len(times)), where=total > 0)
    return found


def _iou_gains(a: Labels, b: Labels, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The difference of the mean IoUs in each resample."""
    first, second = ((times @ part.reshape(len(part), -1)).reshape(len(times), *part.shape[1:]) for part in (a, b))
    return _mean_iou(first) - _mean_iou(second)


def _mean_iou(pooled: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 ``[m]`` of counts ``[m, L, 3]``; a label without a true pixel is not counted."""
    shared, true, given = np.moveaxis(pooled.astype(np.float64), -1, 0)
    occurs = true > 0
    each = np.divide(shared, true + given - shared, out=np.zeros(shared.shape), where=occurs)
    found: NDArray[np.float64] = each.sum(1) / np.maximum(occurs.sum(1), 1)
    return found
