"""How does a depth image, a photograph or a volume become the input of a network?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tritoncrf.datasets.base import VOID


@dataclass(frozen=True)
class DepthScale:
    """How millimetres become network input.

    A pixel at depth d becomes `(d - mean) / unit_mm`, with the mean over the image's own foreground; a pixel without
    depth (0) becomes the constant `background`. With the defaults a body spans about -1 to 1 and the background lies
    0.9 m behind it.

    Raises:
        ValueError: if unit_mm is not positive and finite, or background is not finite.
    """

    unit_mm: float = 300.0
    background: float = 3.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.unit_mm) and self.unit_mm > 0):
            raise ValueError(f"unit_mm: expected a positive number of millimetres, got {self.unit_mm}")
        if not np.isfinite(self.background):
            raise ValueError(f"background: expected a finite number, got {self.background}")

    def __call__(self, depth: NDArray[np.uint16]) -> Tensor:
        """Turns depth uint16 [H, W] in millimetres (0 = nothing there) into float32 [1, H, W]."""
        foreground = depth > 0
        count = int(np.count_nonzero(foreground))
        # the sum of integers is exact, so the mean does not depend on numpy's order of summation
        mean = int(depth.sum(dtype=np.int64)) / count if count else 0.0
        scaled = (depth.astype(np.float32) - np.float32(mean)) / np.float32(self.unit_mm)
        image = np.where(foreground, scaled, np.float32(self.background)).astype(np.float32, copy=False)
        return torch.from_numpy(image).unsqueeze(0)


def scale_bytes(image: NDArray[np.uint8]) -> Tensor:
    """Turns bytes [H, W] or [H, W, C] into float32 [C, H, W] within [-2, 2], as (x / 255 - 0.5) * 4: sd about 1."""
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
    return torch.from_numpy((np.ascontiguousarray(planes, dtype=np.float32) / np.float32(255) - np.float32(0.5)) * 4)


def scale_volume(values: NDArray[np.generic]) -> Tensor:
    """Turns numbers [C, D, H, W] of any unit into float32 of mean 0 and standard deviation 1 in every channel.

    A channel that is the same everywhere becomes 0.
    """
    wide = values.astype(np.float64)
    axes = tuple(range(1, wide.ndim))
    centred = wide - wide.mean(axes, keepdims=True)
    spread = centred.std(axes, keepdims=True)
    return torch.from_numpy((centred / np.where(spread > 0, spread, 1)).astype(np.float32))


def known_background(depth: NDArray[np.uint16], label: NDArray[np.uint8], background: int) -> Tensor:
    """The labels known without looking: uint8 [H, W], `background` where depth is 0 and 255 elsewhere.

    A pixel without depth that carries another label (a hole in the body) stays unknown, so that no clamp
    contradicts the target; one without any label (255) is known to be background.
    """
    known = (depth == 0) & ((label == background) | (label == VOID))
    return torch.from_numpy(np.where(known, background, VOID).astype(np.uint8))
