"""What is an item, and what is a batch?

A data set's item is `(image, target)` or `(image, target, extras)`: image float32 [C, H, W], target int64 [H, W] with
255 where there is no label. Extras may hold `"known"` (uint8 [H, W]: the label that is known at test time too, 255
where it is not) and `"mask"` (bool [H, W]: False where no pixel exists).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

VOID = 255

Extras: TypeAlias = dict[str, Tensor]
Sample: TypeAlias = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Extras]
IndexedSample: TypeAlias = tuple[Tensor, Tensor, int] | tuple[Tensor, Tensor, int, Extras]
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Extras]

# What a batch puts where an item is smaller than the batch or lacks the key.
_PAD: dict[str, int] = {"known": VOID, "mask": 0}
_ABSENT: dict[str, int] = {"known": VOID, "mask": 1}
_DTYPE: dict[str, torch.dtype] = {"known": torch.uint8, "mask": torch.bool}


class Samples(Protocol):
    """Anything with a length whose items are samples: ours, or a user's own torch `Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Sample: ...


class LabeledSamples(Samples, Protocol):
    """What the data sets of this package offer besides their items."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of every item, known without decoding the images."""

    @property
    def num_labels(self) -> int:
        """Labels run from 0 to num_labels - 1."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label."""

    @property
    def channels(self) -> int:
        """Channels of an image."""

    @property
    def background(self) -> int | None:
        """The label left out of the foreground accuracy, or None."""


def unpack(sample: Sample) -> tuple[Tensor, Tensor, Extras]:
    """Splits a sample into image, target and extras (an empty dict where it has none).

    Raises:
        ValueError: if the sample is not a tuple of two or three entries, the third a dict.
    """
    if not isinstance(sample, tuple) or len(sample) not in (2, 3):
        got = f"a tuple of {len(sample)}" if isinstance(sample, tuple) else type(sample).__name__
        raise ValueError(f"sample: expected (image, target) or (image, target, extras), got {got}")
    if len(sample) == 2:
        return sample[0], sample[1], {}
    if not isinstance(sample[2], dict):
        raise ValueError(f"sample: expected a dict of extras in third place, got {type(sample[2]).__name__}")
    return sample[0], sample[1], sample[2]


def check_index(i: int, length: int) -> int:
    """Returns i, counted from the end if negative.

    Raises:
        IndexError: if i is outside, which also ends `for item in dataset`.
    """
    if not -length <= i < length:
        raise IndexError(f"i: expected an index below {length}, got {i}")
    return i + length if i < 0 else i


class Forwarding(Dataset[object]):
    """A data set around another: offers the inner one's names, labels and channels, where it has them."""

    def __init__(self, dataset: Samples) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"dataset: expected an object with a length and items by number, got {type(dataset).__name__}")
        self.dataset = dataset

    def _forward(self, name: str) -> object:
        if not hasattr(self.dataset, name):
            raise AttributeError(f"dataset: {type(self.dataset).__name__} has no attribute {name!r} to forward")
        return getattr(self.dataset, name)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return cast("list[tuple[int, int]]", self._forward("sizes"))

    @property
    def num_labels(self) -> int:
        return cast(int, self._forward("num_labels"))

    @property
    def class_names(self) -> tuple[str, ...]:
        return cast("tuple[str, ...]", self._forward("class_names"))

    @property
    def channels(self) -> int:
        return cast(int, self._forward("channels"))

    @property
    def background(self) -> int | None:
        return cast("int | None", self._forward("background"))


class Indexed(Forwarding):
    """Puts every item's own number beside it, which is what finds an image's chain again.

    Items are `(image, target, index)` or `(image, target, index, extras)`, index a Python int in 0 .. len - 1.
    `sizes`, `num_labels`, `class_names`, `channels` and `background` are the inner data set's; asking for one that
    it lacks raises AttributeError.

    Raises:
        TypeError: if `dataset` has no length or no items by number.
    """

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> IndexedSample:
        i = check_index(i, len(self))
        image, target, extras = unpack(self.dataset[i])
        return (image, target, i, extras) if extras else (image, target, i)


def _split(items: Sequence[IndexedSample]) -> tuple[list[Tensor], list[Tensor], list[int], list[Extras]]:
    images, targets, index, extras = [], [], [], []
    for n, item in enumerate(items):
        if not isinstance(item, tuple) or len(item) not in (3, 4) or isinstance(item[2], dict):
            raise ValueError(
                f"items: expected (image, target, index) or (image, target, index, extras) at place {n}, "
                "as Indexed(dataset) gives them"
            )
        own: Extras = item[3] if len(item) == 4 else {}
        image, target = item[0], item[1]
        size = tuple(image.shape[1:])
        if image.dim() != 3 or tuple(target.shape) != size:
            raise ValueError(
                f"items: expected an image [C, H, W] and a target [H, W] at place {n}, "
                f"got {list(image.shape)} and {list(target.shape)}"
            )
        if image.shape[0] != items[0][0].shape[0]:
            raise ValueError(
                f"items: expected {items[0][0].shape[0]} channels as in the first item, got {image.shape[0]} at place {n}"
            )
        for key, value in own.items():
            if key not in _PAD:
                raise ValueError(f"items: expected extras among {sorted(_PAD)}, got {key!r} at place {n}")
            if tuple(value.shape) != size or value.dtype != _DTYPE[key]:
                raise ValueError(
                    f"items: expected extras[{key!r}] of {_DTYPE[key]} {list(size)} at place {n}, "
                    f"got {value.dtype} {list(value.shape)}"
                )
        images.append(image)
        targets.append(target)
        index.append(int(item[2]))
        extras.append(own)
    return images, targets, index, extras


def _stack(parts: Sequence[Tensor], height: int, width: int, value: int) -> Tensor:
    first = parts[0]
    out = first.new_full((len(parts), *first.shape[:-2], height, width), value)
    for slot, part in zip(out, parts, strict=True):
        slot[..., : part.shape[-2], : part.shape[-1]] = part
    return out


def collate(items: Sequence[IndexedSample]) -> Batch:
    """Makes a batch of indexed items whose sizes may differ: `DataLoader(Indexed(dataset), collate_fn=collate)`.

    Images are padded with 0 and targets with 255 at the bottom and the right, to the largest in the batch.

    Returns:
        `(image [N, C, H, W], target [N, H, W], index int64 [N])` if all sizes are equal and no item has extras, else
        these and a dict with `"sizes"` (int64 [N, 2] as (H, W), if sizes differ), `"known"` (uint8 [N, H, W], padded
        with 255) and `"mask"` (bool [N, H, W], padded with False), each if some item has it; an item that lacks it
        counts as nothing known, or as all its own pixels.

    Raises:
        ValueError: if there is no item, or one has the wrong form, shape, channels or extras.
    """
    if len(items) == 0:
        raise ValueError("items: expected at least one item, got none")
    images, targets, index, extras = _split(items)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    image, target = _stack(images, height, width, 0), _stack(targets, height, width, VOID)
    out: Extras = {}
    if len(set(sizes)) > 1:
        out["sizes"] = torch.tensor(sizes, dtype=torch.int64)
    for key, pad in _PAD.items():
        if any(key in own for own in extras):
            absent = [torch.full(size, _ABSENT[key], dtype=_DTYPE[key]) for size in sizes]
            parts = [own.get(key, default) for own, default in zip(extras, absent, strict=True)]
            out[key] = _stack(parts, height, width, pad)
    number = torch.tensor(index, dtype=torch.int64)
    return (image, target, number, out) if out else (image, target, number)
