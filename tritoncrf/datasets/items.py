"""What may a foreign item be? A mapping or a tuple, of tensors or arrays, told by its keys and made a sample of tensors.

An image is ``[C, *shape]`` and a target ``[*shape]`` or ``[1, *shape]``, of one axis or more. Values are kept as they are: no
scaling, no change of an image's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Parts: TypeAlias = tuple[Tensor, Tensor, dict[str, Tensor]]


class Number(int):
    """An image's number in the data set that gave it, which ``owner`` names: numbers of two data sets are not one's."""

    owner: str = ""

    @classmethod
    def of(cls, value: int, owner: str) -> Number:
        found = cls(value)
        found.owner = owner
        return found


def parts_of(sample: object, image: str, target: str) -> Parts:
    """Image, target and extras of an item: of a mapping those under two keys, and its "known" where it has one.

    Raises TypeError or ValueError for anything else.
    """
    if isinstance(sample, Mapping):
        if image not in sample or target not in sample:
            raise ValueError(
                f"item: expected keys {image!r} and {target!r}, got {sorted(map(str, sample))} (Indexed takes others as "
                'image="..", target="..")'
            )
        extras: object = {"known": sample["known"]} if "known" in sample and target != "known" else {}
        given = (sample[image], sample[target], extras)
    elif isinstance(sample, tuple | list) and len(sample) in (2, 3, 4):
        numbered = len(sample) > 2 and isinstance(sample[2], Number)
        # Numbered inside already, as in a data set of parts that were: the outer number counts.
        rest = sample[3:] if numbered else sample[2:]
        given = (sample[0], sample[1], rest[0] if len(rest) == 1 else rest or {})
    else:
        got = f"a {type(sample).__name__} of {len(sample)}" if isinstance(sample, tuple | list) else type(sample).__name__
        raise ValueError(f"sample: expected (image, target), (image, target, extras) or a mapping, got {got}")
    if not isinstance(given[2], dict):
        raise ValueError(f"sample: expected a dict of extras in third place, got {type(given[2]).__name__}")
    labels = _labels(_tensor("target", given[1]))
    picture = _tensor("image", given[0])
    if labels.dim() == picture.dim() and labels.shape[0] == 1 and picture.dim() > 1:
        labels = labels[0]
    return picture, labels, {key: _tensor(key, value) for key, value in given[2].items()}


def _tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        # Of a subclass, as MONAI's and torchvision's are, the plain tensor.
        return value if type(value) is Tensor else value.as_subclass(Tensor)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{name}: expected a tensor or an array of numbers, got {got}")
    # torch has few operations on the wider unsigned integers.
    wide = value.astype(np.int64) if value.dtype in (np.uint16, np.uint32, np.uint64) else value
    return torch.as_tensor(np.ascontiguousarray(wide))


def _labels(target: Tensor) -> Tensor:
    # Neither holds the 255 that padding is.
    if target.dtype == torch.bool:
        return target.to(torch.uint8)
    return target.long() if target.dtype == torch.int8 else target
