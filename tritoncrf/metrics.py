"""How good is a labelling? Confusion counts, accuracy over foreground pixels, intersection over union."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """Confusion counts int64 ``[L, L]`` (true label, given label) pooled over images, and what follows from them."""

    confusion: Tensor
    background: int | None = None
    """A label whose true pixels do not count in `accuracy`, as in the body-part data of Denil et al. 2013."""

    @classmethod
    def empty(cls, labels: int, background: int | None = None) -> Score:
        return cls(torch.zeros((labels, labels), dtype=torch.int64, device="cpu"), background)

    def plus(self, target: Tensor, given: Tensor) -> Score:
        """Adds pixels: integer tensors of one shape; targets outside 0 .. L - 1 (void, padding) do not count."""
        labels = len(self.confusion)
        target, given = target.flatten().long().cpu(), given.flatten().long().cpu()
        seen = (target >= 0) & (target < labels)
        pairs = torch.bincount(target[seen] * labels + given[seen], minlength=labels**2)
        return Score(self.confusion + pairs.view(labels, labels), self.background)

    @property
    def accuracy(self) -> float:
        """Correct share of all pixels whose true label is not the background; NaN without any."""
        counts = self.confusion.clone()
        if self.background is not None:
            counts[self.background] = 0
        total = int(counts.sum())
        return int(counts.diagonal().sum()) / total if total else float("nan")

    @property
    def per_class(self) -> list[float]:
        """Correct share of each true label's pixels; NaN for labels without any."""
        return (self.confusion.diagonal().float() / self.confusion.sum(1).float()).tolist()

    @property
    def iou(self) -> list[float]:
        """Intersection over union of each label; NaN for labels that neither stand nor are given."""
        shared = self.confusion.diagonal()
        return (shared.float() / (self.confusion.sum(0) + self.confusion.sum(1) - shared).float()).tolist()

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the labels that occur in the targets, without the background."""
        known = [
            value for label, value in enumerate(self.iou) if label != self.background and int(self.confusion[label].sum()) > 0
        ]
        return sum(known) / len(known) if known else float("nan")
