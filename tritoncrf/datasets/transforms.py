"""How are image and target turned or cut together?

To a persistent chain an augmented image is another image: p(y | flipped x) is not the flip of p(y | x) where the tables
are directional. So flips for chains get an index of their own (`Flipped`), while `RandomCrop` and a random
`HorizontalFlip` belong to contrastive divergence, whose chains start at the target. `RandomView` says what it cut and turned,
so that the loss finds the chain's own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Protocol, cast

import torch
from torch import Tensor

from tritoncrf.datasets.base import VOID, Extras, Forwarding, Sample, Samples, check_index, unpack


class Transform(Protocol):
    """A function of samples that knows what size comes out."""

    def __call__(self, sample: Sample) -> Sample: ...

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the result for an image of size (H, W)."""


def _pack(image: Tensor, target: Tensor, extras: Extras) -> Sample:
    return (image, target, extras) if extras else (image, target)


class RandomCrop:
    """Cuts the same window, at a uniformly random place, out of image, target and extras.

    An axis shorter than the window is kept whole. For contrastive divergence only: a crop is another image to a
    persistent chain. Draws from torch's global generator, or from `generator`.

    Args:
        size: (H, W) of the window in pixels.

    Raises:
        ValueError: if a side is below 1.
    """

    def __init__(self, size: tuple[int, int], generator: torch.Generator | None = None) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size: expected (H, W) of at least 1 pixel each, got {size}")
        self.size = size
        self.generator = generator

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return min(size[0], self.size[0]), min(size[1], self.size[1])

    def __call__(self, sample: Sample) -> Sample:
        image, target, extras = unpack(sample)
        height, width = int(target.shape[0]), int(target.shape[1])
        h, w = self.out_size((height, width))
        top = int(torch.randint(height - h + 1, (), generator=self.generator))
        left = int(torch.randint(width - w + 1, (), generator=self.generator))

        def cut(x: Tensor) -> Tensor:
            return x[..., top : top + h, left : left + w]

        return _pack(cut(image), cut(target), {key: cut(value) for key, value in extras.items()})


class HorizontalFlip:
    """Mirrors image, target and extras left to right, with the labels of `swap` changing places.

    With `probability` below 1 for contrastive divergence only: a flipped image is another image to a persistent
    chain; `Flipped` gives it an index of its own.

    Args:
        swap: pairs of labels that change places, such as left and right hand (see `left_right_pairs`).
        probability: how often a sample is flipped.

    Raises:
        ValueError: if a label is in two pairs or out of range, or the probability is not within 0 to 1.
    """

    def __init__(
        self,
        swap: Sequence[tuple[int, int]] = (),
        probability: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        labels = [label for pair in swap for label in pair]
        if len(set(labels)) < len(labels) or any(not 0 <= label < VOID for label in labels):
            raise ValueError(f"swap: expected pairs of labels 0 to {VOID - 1}, each label once, got {list(swap)}")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: expected 0 to 1, got {probability}")
        self.swap = tuple(swap)
        self.probability = probability
        self.generator = generator
        table = torch.arange(VOID + 1)
        for a, b in self.swap:
            table[a], table[b] = b, a
        self._table = table

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def __call__(self, sample: Sample) -> Sample:
        image, target, extras = unpack(sample)
        # u lies in [0, 1), so probability 1 always flips and 0 never does
        if float(torch.rand((), generator=self.generator)) >= self.probability:
            return sample
        turned = {key: value.flip(-1) for key, value in extras.items()}
        if "known" in turned:
            turned["known"] = self._swapped(turned["known"])
        return _pack(image.flip(-1), self._swapped(target.flip(-1)), turned)

    def _swapped(self, labels: Tensor) -> Tensor:
        return self._table.to(labels.dtype)[labels.long()]


class RandomView(Forwarding):
    """Random cuts and turns of a data set's images whose chains are cut and turned alike.

    Items are those of the inner data set, cut to `size` (an axis shorter than that is kept whole) and run backwards along
    each axis of `flip` with probability 1/2; extras hold a `"view"` (int64 [2, d]: corner, and 1 for turned axes), by which
    `CRFLoss` finds each pixel's place in the chain. `sizes` stay those of the whole images: so long are the chains.

    What lies beyond a cut neither speaks nor is moved at that visit, and tables are those of the cut as it is seen: with
    directional tables, or labels of left and right, a turned image is another one, which `Flipped` numbers on its own.

    Args:
        size: pixels per axis. flip: the axes that may be turned.

    Raises:
        ValueError: if a side is below 1, or an axis is not one of the image's.
    """

    def __init__(
        self, dataset: Samples, size: Sequence[int], flip: Sequence[int] = (), generator: torch.Generator | None = None
    ) -> None:
        super().__init__(dataset)
        if not size or min(size) < 1:
            raise ValueError(f"size: expected at least 1 pixel an axis, got {tuple(size)}")
        if not set(flip) <= set(range(len(size))):
            raise ValueError(f"flip: expected axes from 0 to {len(size) - 1}, got {tuple(flip)}")
        self.size, self.flip, self.generator = tuple(size), tuple(flip), generator

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Sample:
        image, target, extras = unpack(self.dataset[check_index(i, len(self))])
        if target.dim() != len(self.size):
            raise ValueError(f"size: expected {target.dim()} numbers as the images have axes, got {self.size}")
        view = torch.zeros((2, len(self.size)), dtype=torch.int64)
        for axis, (length, most) in enumerate(zip(target.shape, self.size, strict=True)):
            view[0, axis] = torch.randint(max(length - most, 0) + 1, (), generator=self.generator)
            if axis in self.flip:
                view[1, axis] = torch.randint(2, (), generator=self.generator)
        corner, turned = view.tolist()
        cuts = tuple(slice(start, start + most) for start, most in zip(corner, self.size, strict=True))
        window: tuple[EllipsisType | slice, ...] = (..., *cuts)
        axes = [axis - len(self.size) for axis, turn in enumerate(turned) if turn]
        cut = [part[window].flip(axes) for part in (image, target, *extras.values())]
        return cut[0], cut[1], {**dict(zip(extras, cut[2:], strict=True)), "view": view}


class Flipped(Forwarding):
    """A data set of 2 n items: item n + i is item i mirrored left to right, under an index of its own.

    So a persistent chain never meets both. `sizes` is doubled, `num_labels`, `class_names`, `channels` and
    `background` are the inner data set's.

    Args:
        swap: pairs of labels that change places (see `left_right_pairs`).

    Raises:
        TypeError: if `dataset` has no length or no items by number.
        ValueError: if a label is in two pairs or out of range.
    """

    def __init__(self, dataset: Samples, swap: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(dataset)
        self._flip = HorizontalFlip(swap, probability=1.0)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return cast("list[tuple[int, int]]", self._forward("sizes")) * 2

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, i: int) -> Sample:
        i, n = check_index(i, len(self)), len(self.dataset)
        return self.dataset[i] if i < n else self._flip(self.dataset[i - n])


class Transformed(Forwarding):
    """A data set whose items pass through a transform, `sizes` being those that come out.

    Raises:
        TypeError: if `dataset` has no length or no items by number.
    """

    def __init__(self, dataset: Samples, transform: Transform) -> None:
        super().__init__(dataset)
        self.transform = transform

    @property
    def sizes(self) -> list[tuple[int, int]]:
        inner = cast("list[tuple[int, int]]", self._forward("sizes"))
        return [self.transform.out_size(size) for size in inner]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Sample:
        return self.transform(self.dataset[check_index(i, len(self))])


def left_right_pairs(class_names: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs of labels whose names differ only in a last letter L or R.

    >>> left_right_pairs(("head", "leg0L", "leg0R"))
    [(1, 2)]
    """
    place = {name: label for label, name in enumerate(class_names)}
    return [(label, place[name[:-1] + "R"]) for name, label in place.items() if name.endswith("L") and name[:-1] + "R" in place]
