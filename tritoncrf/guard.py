"""When does the host hear of a bad value? At once on a CPU; from a GPU, which it must not wait for, at a later call.

There a failed condition sets a flag on the device, the call's results are voided, and the flags are sent at the call's end, so
that they have arrived long before the next call asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Letter:
    """What carries flags from the device to the host, without waiting for them; used again and again."""

    ROOM = 64

    def __init__(self, flags: int) -> None:
        self.flags = torch.empty(max(self.ROOM, flags), dtype=torch.bool, device="cpu", pin_memory=True)
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Verdict:
    """What holds, bool [K], on its way; spare: letters that are free to carry it, where this one's goes once it is read."""

    def __init__(self, sentences: tuple[str, ...], good: Tensor, spare: list[Letter]) -> None:
        self.sentences = sentences
        self._good, self._letter, self._spare = good, None, spare
        if good.is_cuda:
            fits = spare and len(spare[-1].flags) >= len(good)
            letter = self._letter = spare.pop() if fits else Letter(len(good))
            self._good = letter.flags[: len(good)]
            self._good.copy_(good, non_blocking=True)
            letter.event.record()

    @property
    def arrived(self) -> bool:
        return self._letter is None or bool(self._letter.event.query())  # type: ignore[no-untyped-call]

    def failed(self) -> list[str]:
        """The sentences that do not hold; waits, and may be asked once."""
        if self._letter is not None:
            self._letter.event.synchronize()
        found = [sentence for sentence, good in zip(self.sentences, self._good.tolist(), strict=True) if not good]
        if self._letter is not None:
            self._spare.append(self._letter)
        return found


def capturing(device: torch.device) -> bool:
    """Whether the device's work is being recorded as a CUDA graph, during which the host may ask it nothing."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Guard:
    """Looks at values: at once on a CPU, through a device flag elsewhere (``immediate`` forces one or the other).

    Public calls run inside `call`. `require` states a condition; where it may not wait, a failed one turns `flag` true until
    the next call. At a call's end its flags are sent to the host, which hears of them at a later call, one that raises for it;
    `settle` waits for that. A call that is captured as a CUDA graph leaves its flag to whoever replays it.
    """

    def __init__(self, immediate: bool | None = None) -> None:
        self._immediate = immediate
        self._depth = 0
        self._open: list[tuple[str, Tensor]] = []
        self._pending: list[Verdict] = []
        self._spare: list[Letter] = []
        # Of this call, or of the last one: what holds, bool [K].
        self._stacked: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        # What is on its way is told to this one, not to a copy of it.
        return {"_immediate": self._immediate}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["_immediate"])  # type: ignore[misc]

    @contextmanager
    def call(self, device: torch.device | None = None) -> Iterator[None]:
        """A public call: the outermost one raises for an earlier one now known to be bad, and at its end sends its flags."""
        outermost, captured, earlier = self._depth == 0, device is not None and capturing(device), self._open
        if outermost and captured:
            self._open, self._stacked = [], None
        elif outermost:
            self._send()
            self.settle(wait=False)
            self._stacked = None
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if outermost and captured:
                self._open = earlier
            elif outermost:
                self._send()

    def waits(self, device: torch.device) -> bool:
        """Whether values on ``device`` are looked at once."""
        return device.type == "cpu" if self._immediate is None else self._immediate

    def require(self, ok: Tensor, sentence: str, got: Callable[[], str]) -> None:
        """States that all of ``ok`` is true: ``sentence`` says name and expectation, ``got()`` what there was instead."""
        good = ok.all() if ok.dim() else ok
        if not self.waits(good.device):
            self._open.append((sentence, good))
            self._stacked = None
        elif not bool(good):
            self._open.clear()
            raise ValueError(f"{sentence}, got {got()}")

    def flag(self, device: torch.device) -> Tensor:
        """bool ``[]``: whether any value looked at since the call began was bad; after it, of the last call."""
        holds = self._stack()
        return torch.zeros((), dtype=torch.bool, device=device) if holds is None else ~holds.all()

    def settle(self, wait: bool = True) -> None:
        """Raises ValueError for an earlier deferred check that failed; with ``wait``, also for those still on the device."""
        if wait:
            self._send()
        while self._pending:
            if not (wait or self._pending[0].arrived):
                return
            failed = self._pending.pop(0).failed()
            if failed:
                self._pending.clear()
                raise ValueError(f"{failed[0]}, got otherwise in an earlier call, whose loss was NaN and which moved no chain")

    def _send(self) -> None:
        """Sends open flags on their way, so early that a later call finds them arrived."""
        if self._open:
            holds, sentences = self._stack(), tuple(sentence for sentence, _ in self._open)
            self._open = []
            if holds is not None:
                self._pending.append(Verdict(sentences, holds, self._spare))

    def _stack(self) -> Tensor | None:
        """What holds of all that was required, bool [K]."""
        if self._stacked is None and self._open:
            self._stacked = torch.stack([good for _, good in self._open])
        return self._stacked
