"""When does a bad value raise? At once on a CPU; on a GPU, which the host must not wait for, at a later call.

There a failed condition sets a flag on the device, the call's results are voided, and at the call's end its flags are copied to
the host without waiting; the next call reads them, long after the copy is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class FlagBuffer:
    """Pinned memory of the host that flags are copied to, and an event behind the copy; used again and again."""

    ROOM = 64

    def __init__(self, flags: int) -> None:
        self.flags = torch.empty(max(self.ROOM, flags), dtype=torch.bool, device="cpu", pin_memory=True)
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Deferred:
    """Conditions whose outcome, bool [K], is being copied to the host; spare: unused buffers, where this one goes once read."""

    def __init__(self, sentences: tuple[str, ...], good: Tensor, spare: list[FlagBuffer]) -> None:
        self.sentences = sentences
        self._good, self._buffer, self._spare = good, None, spare
        if good.is_cuda:
            fits = spare and len(spare[-1].flags) >= len(good)
            buffer = self._buffer = spare.pop() if fits else FlagBuffer(len(good))
            self._good = buffer.flags[: len(good)]
            self._good.copy_(good, non_blocking=True)
            buffer.event.record()

    @property
    def copied(self) -> bool:
        return self._buffer is None or bool(self._buffer.event.query())  # type: ignore[no-untyped-call]

    def failed(self) -> list[str]:
        """The sentences that do not hold; waits, and may be asked once."""
        if self._buffer is not None:
            self._buffer.event.synchronize()
        found = [sentence for sentence, good in zip(self.sentences, self._good.tolist(), strict=True) if not good]
        if self._buffer is not None:
            self._spare.append(self._buffer)
        return found


def capturing(device: torch.device) -> bool:
    """Whether the device's work is being recorded as a CUDA graph, during which the host may ask it nothing."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Guard:
    """Looks at values: at once on a CPU, through a device flag elsewhere (``immediate`` forces one or the other).

    Public calls run inside `call`. `require` states a condition; where it may not wait, a failed one turns `flag` true until
    the next call. At a call's end its flags are copied to the host, and a later call raises for one that is true;
    `settle` waits for that. A call that is captured as a CUDA graph leaves its flag to whoever replays it.
    """

    def __init__(self, immediate: bool | None = None) -> None:
        self._immediate = immediate
        self._depth = 0
        self._open: list[tuple[str, Tensor]] = []
        self._pending: list[Deferred] = []
        self._spare: list[FlagBuffer] = []
        # Of this call, or of the last one: what holds, bool [K].
        self._stacked: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        # Pending conditions are this one's, not a copy's.
        return {"_immediate": self._immediate}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(state["_immediate"])  # type: ignore[misc]

    @contextmanager
    def call(self, device: torch.device | None = None) -> Iterator[None]:
        """A public call: the outermost one raises for an earlier one now known to be bad, and at its end copies its flags."""
        outermost, captured, earlier = self._depth == 0, device is not None and capturing(device), self._open
        if outermost and captured:
            self._open, self._stacked = [], None
        elif outermost:
            self._copy()
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
                self._copy()

    def waits(self, device: torch.device) -> bool:
        """Whether values on ``device`` are checked at once."""
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

    def take(self, sentences: tuple[str, ...], holds: Tensor) -> None:
        """States what a kernel has looked at: bool [K], what holds, not yet to be waited for."""
        alone = not self._open
        self._open += zip(sentences, holds.unbind(), strict=True)
        self._stacked = holds if alone else None

    def flag(self, device: torch.device) -> Tensor:
        """bool ``[]``: whether any value checked since the call began was bad; after it, of the last call."""
        holds = self._stack()
        return torch.zeros((), dtype=torch.bool, device=device) if holds is None else ~holds.all()

    def settle(self, wait: bool = True) -> None:
        """Raises ValueError for an earlier deferred check that failed; with ``wait``, also for those still on the device."""
        if wait:
            self._copy()
        while self._pending:
            if not (wait or self._pending[0].copied):
                return
            failed = self._pending.pop(0).failed()
            if failed:
                self._pending.clear()
                raise ValueError(f"{failed[0]}, got otherwise in an earlier call, whose loss was NaN and which moved no chain")

    def _copy(self) -> None:
        """Starts copying this call's flags to the host, so early that a later call finds them there."""
        if self._open:
            holds, sentences = self._stack(), tuple(sentence for sentence, _ in self._open)
            self._open = []
            if holds is not None:
                self._pending.append(Deferred(sentences, holds, self._spare))

    def _stack(self) -> Tensor | None:
        """What holds of all that was required, bool [K]."""
        if self._stacked is None and self._open:
            self._stacked = torch.stack([good for _, good in self._open])
        return self._stacked
