"""Where in a store's row is each pixel of a batch kept? Image after image, replica after replica, row-major.

Of a padded batch, of images cut out of what their chains are chains of, and of images turned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf.frame import Shape


def pixel_indices(
    sizes: Tensor, offsets: Tensor, replicas: int, spare: int, shape: Shape, view: Tensor | None, cut: Tensor | None
) -> Tensor:
    """int64 ``[N, R, *shape]``; `spare` beyond an image's size.

    sizes, offsets: int64 ``[N, d]`` and ``[N]``, the sizes of the chains' images and where their labels begin; view, cut as in
    `ChainStore.places`.
    """
    axes = len(shape)
    expand = (-1, 1, *[1] * axes)
    pixel, beyond = sizes, sizes
    for axis, length in enumerate(shape):
        steps = torch.arange(length, device=sizes.device).view(*[1] * (2 + axis), -1, *[1] * (axes - 1 - axis))
        own = sizes[:, axis].view(expand)
        seen = own if view is None else length if cut is None else cut[:, axis].view(expand)
        past = steps >= seen
        beyond = past if axis == 0 else beyond | past
        if view is not None:
            corner, turned = view[:, :, axis, None].unbind(1)
            steps = corner.view(expand) + torch.where(turned.view(expand) != 0, seen - 1 - steps, steps)
        pixel = steps if axis == 0 else torch.addcmul(steps, pixel, own)
    found = offsets.view(expand) + pixel
    if replicas > 1:
        replica = torch.arange(replicas, device=sizes.device).view(1, -1, *[1] * axes)
        found = torch.addcmul(found, replica, sizes.prod(1).view(expand))
    return found.masked_fill(beyond, spare)
