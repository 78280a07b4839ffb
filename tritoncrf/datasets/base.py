"""What is an item, and what is a batch?

A data set's item is `(image, target)` or `(image, target, extras)`: image float32 [C, H, W], target int64 [H, W] with
255 where there is no label. Extras may hold `"known"` (uint8 [H, W]: the label that is known at test time too, 255
where it is not) and `"mask"` (bool [H, W]: False where no pixel exists). `Indexed` and `collate` take other numbers of
axes too, [C, *shape] and [*shape], and `Indexed` takes mappings and arrays (`items`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tritoncrf.datasets.items import Number, parts_of
from tritoncrf.datasets.joined import flat, forwarded

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


class Foreign(Protocol):
    """Anything with a length whose items `Indexed` may make samples of."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> object: ...


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
        return forwarded(self.dataset, name)

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

    Items are `(image, target, index)` or `(image, target, index, extras)`, index an int in 0 .. len - 1, also where a
    `Subset`, `random_split` or a sampler picks among them. The inner data set's may be tuples or mappings, of tensors or
    arrays: an image [C, *shape], a target [*shape] or [1, *shape]. Of a mapping the keys `image` and `target` are read, and
    "known", which is an extra; no other key is guessed at, for a "mask" may be either.
    `num_labels`, `class_names`, `channels` and `background` are the inner data set's, also through a `Subset` or
    `ConcatDataset` (ValueError where joined parts differ); asking for one that it lacks raises AttributeError. `sizes` too,
    or else one look at all items finds them, once.
    Two of them joined would number two images alike: `concat` and `+` number the whole once, and `collate` raises where a
    batch has images of two.

    Args:
        image: the key of the image in items that are mappings.
        target: that of the target.

    Raises:
        TypeError: if `dataset` has no length or no items by number, or an item's parts are not arrays of numbers.
        ValueError: if an item has another form.
    """

    def __init__(self, dataset: Foreign, image: str = "image", target: str = "target") -> None:
        super().__init__(cast(Samples, dataset))
        self.keys = (image, target)
        # A name and no number of objects: copies in a loader's processes are the same data set.
        self._owner = uuid.uuid4().hex
        self._sizes: list[tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> IndexedSample:
        i = check_index(i, len(self))
        image, target, extras = parts_of(self.dataset[i], *self.keys)
        number = Number.of(i, self._owner)
        return (image, target, number, extras) if extras else (image, target, number)

    def __add__(self, other: Dataset[object]) -> Indexed:  # type: ignore[override]
        return concat(self, other)

    @property
    def sizes(self) -> list[tuple[int, ...]]:  # type: ignore[override]
        if self._sizes is None:
            try:
                self._sizes = list(super().sizes)
            except AttributeError:
                self._sizes = [tuple(parts_of(self.dataset[i], *self.keys)[1].shape) for i in range(len(self))]
        return self._sizes


def concat(*datasets: Dataset[object]) -> Indexed:
    """One data set after the other, numbered once: the parts' images get numbers from 0 to the sum of their lengths - 1.

    Parts may be `Indexed` or not, and `Subset`s of either. Raises ValueError if there is none, or if they are `Indexed` by
    different keys.

    >>> from tritoncrf.datasets import Figures, concat
    >>> both = concat(Indexed(Figures(2)), Indexed(Figures(3)))
    >>> [int(both[i][2]) for i in range(len(both))], both.background
    ([0, 1, 2, 3, 4], 19)
    """
    keys = {part.keys for part in datasets if isinstance(part, Indexed)} or {("image", "target")}
    if len(keys) > 1:
        raise ValueError(f"datasets: expected parts indexed by the same keys, got {sorted(keys)}")
    return Indexed(cast(Foreign, flat(datasets, Indexed)), *keys.pop())


def _split(items: Sequence[IndexedSample]) -> tuple[list[Tensor], list[Tensor], list[int], list[Extras]]:
    images, targets, index, extras = [], [], [], []
    owners = {item[2].owner for item in items if isinstance(item, tuple) and len(item) > 2 and isinstance(item[2], Number)}
    if len(owners) > 1:
        raise ValueError(
            f"items: expected images numbered by one Indexed, got those of {len(owners)}, each of which counts from 0 "
            "(number them once: concat(a, b))"
        )
    for n, item in enumerate(items):
        if not isinstance(item, tuple) or len(item) not in (3, 4) or isinstance(item[2], dict):
            raise ValueError(
                f"items: expected (image, target, index) or (image, target, index, extras) at place {n}, "
                "as Indexed(dataset) gives them"
            )
        own: Extras = item[3] if len(item) == 4 else {}
        image, target = item[0], item[1]
        size = tuple(image.shape[1:])
        if image.dim() < 2 or tuple(target.shape) != size or image.dim() != items[0][0].dim():
            axes = {1: "W", 2: "H, W", 3: "D, H, W"}.get(items[0][0].dim() - 1, "H, W")
            raise ValueError(
                f"items: expected an image [C, {axes}] and a target [{axes}] at place {n}, "
                f"got {list(image.shape)} and {list(target.shape)}"
            )
        if image.shape[0] != items[0][0].shape[0]:
            raise ValueError(
                f"items: expected {items[0][0].shape[0]} channels as in the first item, got {image.shape[0]} at place {n}"
            )
        for key, value in own.items():
            if key == "view":
                if tuple(value.shape) != (2, len(size)) or value.dtype != torch.int64:
                    raise ValueError(
                        f"items: expected extras['view'] of torch.int64 {[2, len(size)]} at place {n}, "
                        f"got {value.dtype} {list(value.shape)}"
                    )
                continue
            if key not in _PAD:
                raise ValueError(f"items: expected extras among {sorted([*_PAD, 'view'])}, got {key!r} at place {n}")
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


def _stack(parts: Sequence[Tensor], shape: tuple[int, ...], value: int) -> Tensor:
    first, axes = parts[0], len(shape)
    out = first.new_full((len(parts), *first.shape[: first.dim() - axes], *shape), value)
    for slot, part in zip(out, parts, strict=True):
        slot[(..., *(slice(length) for length in part.shape[part.dim() - axes :]))] = part
    return out


def collate(items: Sequence[IndexedSample]) -> Batch:
    """Makes a batch of indexed items whose sizes may differ: `DataLoader(Indexed(dataset), collate_fn=collate)`.

    Images are padded with 0 and targets with 255 at the bottom and the right, to the largest in the batch.

    Returns:
        `(image [N, C, *shape], target [N, *shape], index int64 [N])` if all sizes are equal and no item has extras, else
        these and a dict with `"sizes"` (int64 [N, d], if sizes differ), `"known"` (uint8 [N, *shape], padded with 255) and
        `"mask"` (bool [N, *shape], padded with False), each if some item has it; an item that lacks it counts as nothing
        known, or as all its own pixels; and `"view"` (int64 [N, 2, d], as of `RandomView`) if all have it.

    Raises:
        ValueError: if there is no item, one has the wrong form, shape, channels or extras, or they were numbered by more
            than one `Indexed`.
    """
    if len(items) == 0:
        raise ValueError("items: expected at least one item, got none")
    images, targets, index, extras = _split(items)
    sizes = [tuple(image.shape[1:]) for image in images]
    shape = tuple(map(max, zip(*sizes, strict=True)))
    image, target = _stack(images, shape, 0), _stack(targets, shape, VOID)
    out: Extras = {}
    if len(set(sizes)) > 1:
        out["sizes"] = torch.tensor(sizes, dtype=torch.int64)
    for key, pad in _PAD.items():
        if any(key in own for own in extras):
            absent = [torch.full(size, _ABSENT[key], dtype=_DTYPE[key]) for size in sizes]
            parts = [own.get(key, default) for own, default in zip(extras, absent, strict=True)]
            out[key] = _stack(parts, shape, pad)
    views = [own["view"] for own in extras if "view" in own]
    if views:
        if len(views) < len(extras):
            raise ValueError(f"items: expected extras['view'] in all of {len(extras)} or in none, got it in {len(views)}")
        out["view"] = torch.stack(views)
    number = torch.tensor(index, dtype=torch.int64)
    return (image, target, number, out) if out else (image, target, number)
