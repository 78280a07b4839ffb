"""What follows the chains from visit to visit? The sweeps of a visit that adapt, and the fast tables, with their tensors.

Both are options of a loss, stand in its state, and move only where a visit was good.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tritoncrf.engines import Plan, Tables
from tritoncrf.fast import FastWeights
from tritoncrf.model_protocol import CRF
from tritoncrf.pace import Pace
from tritoncrf.sampler import Sampler
from tritoncrf.statistics import Tally


@dataclass(frozen=True)
class Course:
    """What a loss has of them; each with the tensor that it writes."""

    pace: tuple[Pace, Tensor] | None = None
    fast: tuple[FastWeights, Tensor] | None = None

    def __bool__(self) -> bool:
        return self.pace is not None or self.fast is not None

    def sweeps(self, otherwise: int) -> int:
        """K of this visit."""
        return otherwise if self.pace is None else self.pace[0].sweeps(self.pace[1])

    def tables(self, sampler: Sampler[CRF], tables: Tables, plan: Plan) -> Tables | None:
        """Rounded tables that the free phase moves under; None for the batch's."""
        if self.fast is None:
            return None
        pushed = Tables(tables.pairwise.detach() + self.fast[1], tables.gated)
        return sampler.crf.rounded(sampler.guard, pushed, plan)

    def move(self, error: Tensor, tally: Tally, good: Tensor) -> None:
        """After a visit: error of the tables, for all images or ``[N, ..]``; good: bool ``[]``."""
        if self.pace is not None:
            self.pace[0].note(self.pace[1], *tally.falls(), good)
        if self.fast is not None:
            tables = self.fast[1]
            self.fast[0].move(tables, error if error.dim() == tables.dim() else error.sum(0), tally.labelled, good)
