"""What is there to learn from without any file? Posed human figures in depth, with their parts as labels."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tritoncrf.datasets.base import Sample, check_index
from tritoncrf.datasets.capsules import render
from tritoncrf.datasets.depth import DepthScale, known_background
from tritoncrf.datasets.skeleton import BACKGROUND, PART_NAMES, pose

_NEAR_MM: Final = 2500.0
_FAR_MM: Final = 3000.0


class Figures(Dataset[Sample]):
    """Depth images of human figures of 19 parts, made when asked for: 20 labels with the background (19).

    A figure is an articulated body of capsules of random build, pose, yaw, scale and place, 2.5 to 3 m away. Its left
    and right are mirror images under different labels (left lies on the picture's right), so that only the layout of
    the parts tells them apart. Items are `(image [1, H, W], target [H, W], {"known": [H, W]})`; item i depends on
    the seed, i and the arguments alone. The depth itself, in millimetres, is in `depth_and_labels`.

    Args:
        count: number of images.
        seed: not negative.
        size: (H, W) in pixels.
        ragged: each image has a size of its own, from three quarters of `size` up to it.
        yaw: figures turn by up to so many degrees to either side.
        noise_mm: standard deviation of the depth's noise.
        depth: how millimetres become network input.

    Attributes:
        sizes, num_labels, class_names, channels, background: as in `LabeledSamples`.

    Raises:
        ValueError: if count, seed, yaw or noise_mm is negative, or a side of size is below 16 pixels.
    """

    num_labels = len(PART_NAMES)
    class_names = PART_NAMES
    channels = 1
    background: int | None = BACKGROUND

    def __init__(
        self,
        count: int,
        seed: int = 0,
        size: tuple[int, int] = (96, 64),
        *,
        ragged: bool = False,
        yaw: float = 30.0,
        noise_mm: float = 10.0,
        depth: DepthScale | None = None,
    ) -> None:
        if count < 0:
            raise ValueError(f"count: expected a number of images of at least 0, got {count}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if len(size) != 2 or min(size) < 16:
            raise ValueError(f"size: expected (H, W) of at least 16 pixels each, got {size}")
        if yaw < 0:
            raise ValueError(f"yaw: expected at least 0 degrees, got {yaw}")
        if noise_mm < 0:
            raise ValueError(f"noise_mm: expected at least 0 millimetres, got {noise_mm}")
        self.seed, self.size, self.ragged, self.yaw, self.noise_mm = seed, size, ragged, yaw, noise_mm
        self.depth = depth or DepthScale()
        self.sizes = [self._draw_size(self._generator(i)) for i in range(count)] if ragged else [size] * count

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> Sample:
        depth, label = self.depth_and_labels(i)
        target = torch.from_numpy(label.astype(np.int64))
        return self.depth(depth), target, {"known": known_background(depth, label, BACKGROUND)}

    def depth_and_labels(self, i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        """Renders image i: depth uint16 [H, W] in millimetres (0 = background) and labels uint8 [H, W].

        Raises:
            IndexError: if i is outside the data set.
        """
        rng = self._generator(check_index(i, len(self)))
        size = self._draw_size(rng) if self.ragged else self.size
        starts, ends, radii, labels = pose(rng, self.yaw)

        # metres to pixels: the whole figure is inside, a little margin left at random
        low = (np.minimum(starts, ends)[:, :2] - radii[:, None]).min(0)
        high = (np.maximum(starts, ends)[:, :2] + radii[:, None]).max(0)
        room = np.array([size[1] - 1, size[0] - 1], dtype=np.float64)
        scale = float((room / (high - low)).min() * rng.uniform(0.86, 0.99))
        slack = room - (high - low) * scale
        shift = np.append(rng.uniform(0, 1, 2) * slack - low * scale, 0.0)

        height, label = render(starts * scale + shift, ends * scale + shift, radii * scale, labels, size, BACKGROUND)
        away = rng.uniform(_NEAR_MM, _FAR_MM)
        millimetres = away - height * (1000 / scale) + rng.normal(0, self.noise_mm, size)
        there = label != BACKGROUND
        depth = np.where(there, np.where(there, millimetres, 1).round().clip(1, 65535), 0)
        return depth.astype(np.uint16), label

    def _generator(self, i: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, i]))

    def _draw_size(self, rng: np.random.Generator) -> tuple[int, int]:
        h, w = (int(rng.integers(max(16, (3 * side) // 4), side + 1)) for side in self.size)
        return h, w
