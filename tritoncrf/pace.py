"""How many sweeps does a visit need? As many as until its chains' energy falls no more.

A chain that the learning left behind falls in energy while it is swept: the model has just raised the energy of its labels.
Where the second half of a visit's sweeps still lowers it, the first half was too short for it to settle, and so, by as much
again, may be the second. So K grows while that fall, averaged over ``period`` visits, is more than ``tolerance`` nats a free
pixel, and shrinks while it is not. Falls are whole numbers, summed over images and ranks: K is the same on every engine and
rank. A decision reads the sums of the period before the last, which a GPU has long finished: nothing waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.guard import capturing

STEP = 1.25
# K; visits of this period; its falls in both halves and free sites; those of the period before.
FIELDS = 8


@dataclass(frozen=True)
class AutoSweeps:
    """Sweeps a visit that follow the chains, from ``floor`` to ``ceiling``.

    tolerance: nats a free pixel that the second half of a visit's sweeps may still lower the energy by; period: visits between
    decisions, each of which changes K by a quarter at most. Raises ValueError or TypeError naming the field.
    """

    floor: int = 10
    ceiling: int = 100
    tolerance: float = 0.01
    period: int = 16

    def __post_init__(self) -> None:
        floor = validation.whole("floor", self.floor, 2)
        validation.whole("ceiling", self.ceiling, floor)
        validation.whole("period", self.period, 1)
        if not isinstance(self.tolerance, int | float) or not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"tolerance: expected a number of nats a pixel of at least 0, got {self.tolerance!r}")

    def after(self, sweeps: int, late: int, sites: int) -> int:
        """K after a period in whose second halves energy fell by ``late`` 2^-12 nat at ``sites`` free pixels in all."""
        if not sites:
            return sweeps
        if late / contract.GRID / sites > self.tolerance:
            return min(max(int(sweeps * STEP), sweeps + 1), self.ceiling)
        return max(min(int(sweeps / STEP), sweeps - 1), self.floor)


class Pace:
    """K as it stands in a tensor that is saved with the loss, int64 ``[8]``, and on the host."""

    def __init__(self, bounds: AutoSweeps) -> None:
        self.bounds = bounds
        self._known: tuple[int, int] | None = None
        self._host = [bounds.floor, 0]
        self._before: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"bounds": self.bounds, "_known": None, "_host": [self.bounds.floor, 0], "_before": None}

    @staticmethod
    def fresh(bounds: AutoSweeps, device: torch.device) -> Tensor:
        return torch.tensor([bounds.floor] + [0] * (FIELDS - 1), device=device)

    def sweeps(self, state: Tensor) -> int:
        """K of the next visit; reads the device only where somebody else wrote the state."""
        if not capturing(state.device) and self._known != _version(state):
            told = state.tolist()
            sweeps = min(max(int(told[0]), self.bounds.floor), self.bounds.ceiling)
            self._host, self._known = [sweeps, int(told[1])], _version(state)
            self._before = state[5:].to("cpu", copy=True)
        return self._host[0]

    def note(self, state: Tensor, drops: Tensor, sites: Tensor, good: Tensor) -> None:
        """Adds a visit's falls, int64 ``[2]``, and free sites ``[]``, unless the call was bad, and decides at a period's end.

        While a CUDA graph is captured K stays, and nothing is noted: what a graph replays are so many sweeps.
        """
        if capturing(state.device):
            return
        state[2:5] += torch.cat([drops, sites.view(1)]) * good
        self._host[1] += 1
        if self._host[1] == self.bounds.period:
            before = self._before
            if before is not None:
                _, late, free = before.tolist()
                self._host[0] = self.bounds.after(self._host[0], int(late), int(free))
            state[5:] = state[2:5]
            state[2:5] = 0
            self._host[1] = 0
            # On its way while the next period runs; by its end it is there.
            self._before = state[5:].to("cpu", copy=True)
        # A number from the host is no copy that would wait.
        state[0].fill_(self._host[0])
        state[1].fill_(self._host[1])
        self._known = _version(state)


def pace_of(sweeps: int | str | AutoSweeps) -> tuple[Pace | None, int]:
    """What follows the chains, if anything, and the first K."""
    if isinstance(sweeps, str):
        if sweeps != "auto":
            raise ValueError(f"sweeps: expected a number, 'auto' or AutoSweeps, got {sweeps!r}")
        sweeps = AutoSweeps()
    if isinstance(sweeps, AutoSweeps):
        return Pace(sweeps), sweeps.floor
    return None, validation.whole("sweeps", sweeps, 1)


def _version(state: Tensor) -> tuple[int, int]:
    return id(state), state._version
