"""What do all batches of one padded shape share? Which slots lie inside of it, and the numbers of its pixels.

Made on the device at the first batch of a shape and kept by its layout: a step then launches nothing for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf import contract

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """What all batches of one padded shape share, on their device; nobody writes into it."""

    inside: Tensor
    """bool [S]: which slots lie inside of the shape."""
    pixels: Tensor
    """int64 [S]: row-major index of each slot, 0 where it lies outside."""
    present: Tensor
    """bool [*shape]: True."""
    axes: tuple[Tensor, ...]
    """Of each axis int64: its steps, of as many axes as the shape."""
    limits: Tensor
    """int64 [d]: the shape."""
    void: Tensor
    """uint8 []: 255."""
    places: Tensor
    """int64 [pixels]: where in a chain's row each pixel is."""

    @classmethod
    def of(cls, coordinates: Tensor, positions: Tensor, shape: Shape) -> Frame:
        """coordinates: int64 ``[S, d]`` of slots; positions: int64 ``[S]``, where in a row they are.

        Numbers of the host reach a kernel as its arguments, never by a copy.
        """
        device, columns = coordinates.device, coordinates.unbind(-1)
        inside, pixels = torch.ones_like(columns[0], dtype=torch.bool), torch.zeros_like(columns[0])
        for steps, length in zip(columns, shape, strict=True):
            inside &= steps < length
            pixels = pixels * length + steps
        # One more, for slots outside.
        places = positions.new_zeros(math.prod(shape) + 1).scatter_(0, pixels.masked_fill(~inside, math.prod(shape)), positions)
        axes = tuple(
            torch.arange(length, device=device).view(-1, *[1] * (len(shape) - 1 - axis)) for axis, length in enumerate(shape)
        )
        return cls(
            inside, pixels.masked_fill_(~inside, 0), torch.ones(shape, dtype=torch.bool, device=device), axes,
            torch.stack([torch.full((), length, device=device) for length in shape]),
            torch.full((), contract.VOID, dtype=torch.uint8, device=device), places[:-1],
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        return self.inside.nbytes + self.pixels.nbytes + self.present.nbytes + self.places.nbytes

    def exists(self, images: int, sizes: Tensor | None, mask: Tensor | None) -> Tensor:
        """bool ``[N, *shape]``: the pixels that exist; sizes int64 ``[N, d]``, mask bool ``[N, *shape]``."""
        if sizes is None:
            return self.present.expand(images, *self.present.shape) if mask is None else mask
        lone = [1] * len(self.axes)
        found = None if mask is None else mask
        for steps, own in zip(self.axes, sizes.unbind(1), strict=True):
            within = steps < own.view(-1, *lone)
            found = within if found is None else found & within
        return self.present if found is None else found
