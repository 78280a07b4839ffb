"""Is an image still the one that its chain belongs to? A target that changes under its index tells that it is not."""

from __future__ import annotations

import warnings
import zlib

import torch
from torch import Tensor


class TargetWatch:
    """Warns once where an image's target at its second visit is not that of its first.

    Looks at targets on a CPU alone: elsewhere a look would stall the device at every step. Two visits an image are enough for
    random crops and flips.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._settled: set[int] = set()
        self._warned = False

    def observe(self, target: Tensor, index: Tensor, sizes: Tensor | None) -> None:
        """target: integers ``[N, *shape]``; index: integers ``[N]``; sizes: integers ``[N, d]`` where the batch is padded."""
        if self._warned or torch.compiler.is_compiling() or target.device.type != "cpu" or index.shape != target.shape[:1]:
            return
        for n, image in enumerate(index.tolist()):
            if image in self._settled:
                continue
            own = target[n] if sizes is None else target[n][tuple(slice(side) for side in sizes[n].tolist())]
            mark = zlib.crc32(own.to(torch.int64).contiguous().numpy().tobytes())
            first = self._seen.get(image)
            if first is None:
                self._seen[image] = mark
            elif first == mark:
                self._settled.add(image)
            else:
                self._warned = True
                warnings.warn(
                    f"target: image {image} has another target than at its first visit, as random crops and flips make it, or "
                    "two data sets that both number from 0: a persistent chain belongs to one image (give a flip an index of "
                    "its own by datasets.Flipped, number parts once by concat, or use CRFLoss(crf, method='cd'))",
                    stacklevel=3,
                )
                return
