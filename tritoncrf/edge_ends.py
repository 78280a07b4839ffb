"""Which pixels do edges join, in a batch of images and in a training set?

Class c's first ends i and second ends i + d_c are two windows of the image of one shape, so that what is computed of all its
edges is computed of two slices, without an index a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from tritoncrf import validation
from tritoncrf.datasets.base import VOID, Extras, Indexed, IndexedSample, Sample, Samples
from tritoncrf.lattice import Neighborhood, Offset

Slices: TypeAlias = tuple[slice, ...]
Images: TypeAlias = Iterable[Tensor | Sample | IndexedSample] | Samples | Indexed


def ends(offset: Offset, shape: Sequence[int]) -> tuple[Slices, Slices]:
    """Where the first and the second ends of a class's edges lie in ``[N, *shape]``; empty slices where it has none."""
    starts = [max(0, -step) for step in offset]
    stops = [max(start, size - max(0, step)) for start, step, size in zip(starts, offset, shape, strict=True)]
    first = [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
    second = [slice(own.start + step, own.stop + step) for own, step in zip(first, offset, strict=True)]
    return (slice(None), *first), (slice(None), *second)


def wide(image: Tensor) -> Tensor:
    """The image in float64 if it is, else in float32: differences of half precision would be rounded."""
    return image if image.dtype == torch.float64 else image.float()


def check_image(name: str, value: object, neighborhood: Neighborhood, batch: bool = True) -> Tensor:
    """Checks float ``[N, channels, *shape]``, or ``[channels, *shape]``, with the neighbourhood's axes, none empty."""
    check_neighborhood(neighborhood)
    value = validation.tensor(name, value)
    axes = [*(["N"] if batch else []), "channels", *["size"] * neighborhood.ndim]
    if value.dim() != len(axes) or 0 in value.shape:
        expected, got = validation.shape_text(axes), validation.shape_text(value.shape)
        raise ValueError(f"{name}: expected shape {expected} as the neighbourhood has axes, none 0, got {got}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype (convert with .float()), got {value.dtype}")
    return value


def check_neighborhood(value: object) -> None:
    if not isinstance(value, Neighborhood):
        raise TypeError(f"neighborhood: expected a Neighborhood, got {type(value).__name__}")


class Scene(NamedTuple):
    """One image of a training set, on the CPU."""

    image: Tensor
    """float [channels, *shape]"""
    target: Tensor | None
    known: Tensor
    """bool [*shape]: where the label is known at test time too."""
    exists: Tensor
    """bool [*shape]"""


def scenes(images: Images, neighborhood: Neighborhood) -> Iterator[Scene]:
    """Each image of a data set, of an iterable of its items, or of tensors alone. Raises ValueError or TypeError."""
    check_neighborhood(neighborhood)
    for item in _each(images):
        parts = tuple(item) if isinstance(item, tuple | list) else (item,)
        image = check_image("images", parts[0] if parts else item, neighborhood, batch=False).detach().cpu()
        extras = cast(Extras, parts[-1] if isinstance(parts[-1], dict) else {})
        shape = image.shape[1:]
        exists = torch.ones(shape, dtype=torch.bool, device="cpu")
        known = ~exists
        if "known" in extras:
            known = validation.shaped("known", extras["known"].cpu(), [shape], validation.INTEGERS, image.device) != VOID
        if "mask" in extras:
            exists = validation.shaped("mask", extras["mask"].cpu(), [shape], [torch.bool], image.device)
        target = parts[1].cpu() if len(parts) > 1 and isinstance(parts[1], Tensor) else None
        yield Scene(image, target, known, exists)


def _each(images: Images) -> Iterator[object]:
    # By number where there are numbers: a data set of one's own need not know where to end an iteration.
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        numbered = cast(Samples, images)
        return (numbered[i] for i in range(len(numbered)))
    if not isinstance(images, Iterable):
        raise TypeError(f"images: expected a data set or an iterable of tensors, got {type(images).__name__}")
    return iter(images)


def sample(
    usable: Tensor, neighborhood: Neighborhood, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Edges between usable pixels (bool ``[*shape]``): class, first and second end, int64 ``[E]``, ends in flat order.

    All edges where pixels times classes are at most ``most``; else so many draws, each pixel and class as likely, less
    those that are no such edge.
    """
    device = usable.device
    pixels, offsets = usable.nonzero(), torch.tensor(neighborhood.offsets, device=device)
    choices = len(pixels) * len(offsets)
    if choices <= most:
        picks = torch.arange(choices, device=device)
    else:
        picks = torch.randint(choices, (most,), generator=generator, device=device)
    classes, first = picks % len(offsets), pixels[picks // len(offsets)]
    second = first + offsets[classes]
    shape = torch.tensor(usable.shape, device=device)
    inside = ((second >= 0) & (second < shape)).all(1)
    inside &= usable[second.clamp(min=0).minimum(shape - 1).unbind(1)]
    strides = torch.tensor([math.prod(usable.shape[axis + 1 :]) for axis in range(usable.dim())], device=device)
    return classes[inside], (first[inside] * strides).sum(1), (second[inside] * strides).sum(1)
