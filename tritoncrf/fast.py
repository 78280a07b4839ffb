"""Which tables do persistent chains move under? The model's and, beside them, fast ones that push the chains on.

Fast persistent contrastive divergence (Tieleman and Hinton 2009): fast tables F take the same gradient g as the model's tables,
with a rate of their own that does not fall, and forget it soon:

    F <- decay (F - rate g),    g = (counts(y) - counts(y')) / labelled pixels

(there ``decay F - rate g``: the same up to a factor on the rate). The free phase is swept under the model's tables plus F; so
labels that the chains dwell on become unlikely at once, and the chains leave them. The data phase, the value and the gradients
know nothing of F. With a decay or a rate of 0 F is 0, and this is persistent contrastive divergence bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FastWeights:
    """Rate and decay a visit of the fast tables. Raises ValueError naming the field."""

    rate: float = 1.0
    decay: float = 19 / 20

    def __post_init__(self) -> None:
        if not isinstance(self.rate, int | float) or not 0 <= self.rate < math.inf:
            raise ValueError(f"rate: expected a finite number of at least 0, got {self.rate!r}")
        if not isinstance(self.decay, int | float) or not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected a number from 0 to below 1, got {self.decay!r}")

    def move(self, tables: Tensor, error: Tensor, labelled: Tensor, good: Tensor) -> None:
        """Moves fast tables in place by a batch's error, of the tables' shape, unless the call was bad, bool ``[]``."""
        moved = (tables - self.rate * (error / labelled.clamp(min=1))) * self.decay
        tables.copy_(torch.where(good, moved, tables))
