"""How many labels change? The flip rate of the last sweeps, read without making the host wait for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf.guard import capturing

# Of looks on a GPU one in so many is a look: rates move slowly, and each costs three calls.
SELDOM = 8


class Rate:
    """Flips per site update.

    On a GPU `observe` sends their number on its way, and a later look reads what has arrived.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        """None until it is known."""
        self._observed, self._updates = 0, 0
        self._sent: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"value": self.value}

    def __setstate__(self, state: dict[str, float | None]) -> None:
        self.__init__()  # type: ignore[misc]
        self.value = state["value"]

    def observe(self, flips: Tensor, updates: int) -> None:
        """Takes note of flips, any int64 tensor, of so many site updates."""
        if not updates or flips.is_meta:
            return
        if not flips.is_cuda:
            self.value = int(flips.sum()) / updates
            return
        if capturing(flips.device):
            return
        if self._event is not None and self._sent is not None and self._event.query():  # type: ignore[no-untyped-call]
            self.value, self._event = int(self._sent) / self._updates, None
        if self._event is None and (self.value is None or self._observed % SELDOM == 0):
            if self._sent is None:
                self._sent = torch.empty((), dtype=torch.int64, device="cpu", pin_memory=True)
            self._sent.copy_(flips.sum(), non_blocking=True)
            self._event, self._updates = torch.cuda.Event(), updates  # type: ignore[no-untyped-call]
            self._event.record()
        self._observed += 1
