"""Who has seen what of whom? Which program of a launch did what to a cell last, and whether that was before what is done now.

Programs of a common launch are `Unordered`: what one wrote no other may touch. Those of a cooperative launch are `Ordered` by
vector clocks. Time is a program's barrier intervals, numbered through the launch; ``known[p, q]`` is the last one of q that is
before all that p does now. A release at an atomic leaves the program's clock there: what its thread has acquired, and the
program's intervals before this one, for what threads did since the last barrier is not covered. An acquire there joins it into
the clock of the threads that acquire at once, of all others behind the next barrier. Relaxed atomics do neither. Two programs'
accesses to a cell, one of which writes and not both of which are atomic, are a race unless the clock of the later covers the
earlier.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]
SEVERAL = -2
ALWAYS = np.iinfo(np.int32).max


@dataclass
class Clock:
    """Where a launch stands: which program runs, its barrier intervals, and what was found."""

    kernel: str
    program: int = -1
    interval: int = 0
    warp_interval: int = 0
    line: str = ""
    found: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """(what, kernel, line, tensor) -> how often."""
    ticks: int = 1
    left: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The intervals in which programs paused."""

    def note(self, what: str, where: str) -> None:
        self.found[what, self.kernel, self.line, where] += 1

    def barrier(self, whole: bool = True) -> None:
        """The next interval; no two programs have one in common."""
        self.ticks += 1
        self.warp_interval = self.ticks
        if whole:
            self.interval = self.ticks

    def enter(self, program: int) -> None:
        """It runs now, from its start or from where it paused."""
        self.left[self.program] = self.interval, self.warp_interval
        self.program = program
        if program in self.left:
            self.interval, self.warp_interval = self.left[program]
        else:
            self.barrier()


class Unordered:
    """A cell is one program's, unless all of them only load it, or only add to it. Masks say where it was another's."""

    version = 0

    def __init__(self, cells: int, clock: Clock) -> None:
        self.clock = clock
        self.stored, self.loaded, self.added = (np.full(cells, -1, np.int32) for _ in range(3))

    def _others(self, marks: NDArray[np.int32], cells: Index) -> Mask:
        found: Mask = (marks[cells] != -1) & (marks[cells] != self.clock.program)
        return found

    def load(self, cells: Index, threads: Index, sem: str) -> Mask:
        """sem: "" for what is no atomic."""
        if sem:
            return self.atomic(cells, threads, sem, True)
        found = self._others(self.stored, cells) | self._others(self.added, cells)
        previous, own = self.loaded[cells], self.clock.program
        self.loaded[cells] = np.where((previous == -1) | (previous == own), own, SEVERAL)
        return found

    def store(self, cells: Index, threads: Index) -> tuple[Mask, Mask]:
        """Where another stored, and where it did anything else."""
        found = self._others(self.stored, cells), self._others(self.loaded, cells) | self._others(self.added, cells)
        self.stored[cells] = self.clock.program
        return found

    def atomic(self, cells: Index, threads: Index, sem: str, changed: bool, anew: bool = False) -> Mask:
        found = self._others(self.stored, cells) | self._others(self.loaded, cells)
        self.added[cells] = self.clock.program
        return found

    def barrier(self) -> None:
        """Nothing is learned of others."""


class Ordered:
    """The same questions, answered by vector clocks."""

    def __init__(self, cells: int, clock: Clock, programs: int, threads: int) -> None:
        self.clock, self.threads = clock, threads
        self.version = 0
        """Counts changes of what is polled, or hands clocks on."""
        self.known = np.zeros((programs, programs), np.int32)
        np.fill_diagonal(self.known, ALWAYS)
        self.pending: list[list[tuple[Mask, NDArray[np.int32]]]] = [[] for _ in range(programs)]
        """By program: threads, and the clock that they have acquired since its last barrier."""
        self.published: dict[int, NDArray[np.int32]] = {}
        """By cell."""
        self.stored_by, self.stored_at = np.zeros(cells, np.int32), np.zeros(cells, np.int32)
        # Zeros cost no memory where nobody writes.
        self.loaded, self.added = (np.zeros((programs, cells), np.int32) for _ in range(2))
        self.polled: dict[int, NDArray[np.int32]] = {}
        """By cell: when each program loaded it atomically."""
        self.watched = np.zeros(cells, bool)
        self.everybody = np.arange(programs)[:, None]

    def _unseen(self, who: NDArray[np.int32] | Index, at: NDArray[np.int32], threads: Index) -> Mask:
        """at: intervals [programs or 1, cells], of programs ``who``; where this program's threads need not have seen one."""
        own = self.clock.program
        found: Mask = at > self.known[own][who]
        if found.any():
            for which, clock in self.pending[own]:
                found &= ~(which[threads] & (at <= clock[who]))
        anywhere: Mask = np.logical_or.reduce(found, 0)
        return anywhere

    def _stored(self, cells: Index, threads: Index) -> Mask:
        return self._unseen(self.stored_by[cells][None], self.stored_at[cells][None], threads)

    def _touched(self, marks: NDArray[np.int32], cells: Index, threads: Index) -> Mask:
        return self._unseen(self.everybody, marks[:, cells], threads)

    def load(self, cells: Index, threads: Index, sem: str) -> Mask:
        found, own = self._stored(cells, threads), self.clock.program
        if not sem:
            found |= self._touched(self.added, cells, threads)
            self.loaded[own, cells] = self.clock.interval
            return found
        self.watched[cells] = True
        for cell in set(cells.tolist()):
            self.polled.setdefault(cell, np.zeros(len(self.known), np.int32))[own] = self.clock.interval
        if sem == "acquire":
            self._acquire(cells, threads)
        return found

    def store(self, cells: Index, threads: Index) -> tuple[Mask, Mask]:
        theirs, other = self._stored(cells, threads), self._touched(self.loaded, cells, threads)
        other |= self._touched(self.added, cells, threads)
        self.stored_by[cells], self.stored_at[cells] = self.clock.program, self.clock.interval
        if (seen := self.watched[cells]).any():
            self.version += 1
            nobody = np.zeros(len(self.known), np.int32)
            polled = np.stack([self.polled.get(cell, nobody) for cell in cells[seen].tolist()], 1)
            other[seen] |= self._unseen(self.everybody, polled, threads[seen])
            for cell in cells[seen].tolist():
                self.published.pop(cell, None)
        return theirs, other

    def atomic(self, cells: Index, threads: Index, sem: str, changed: bool, anew: bool = False) -> Mask:
        """anew: a store, which ends what earlier releases left there."""
        found, own = self._stored(cells, threads) | self._touched(self.loaded, cells, threads), self.clock.program
        at = self.clock.interval
        if sem in ("acquire", "acq_rel"):
            self._acquire(cells, threads)
        if anew:
            for cell in cells.tolist():
                self.published.pop(cell, None)
        if sem in ("release", "acq_rel"):
            self._release(cells, threads)
            # It is covered by what itself leaves.
            at -= 1
        self.added[own, cells] = np.maximum(self.added[own, cells], at)
        self.version += changed and bool(self.watched[cells].any())
        if sem != "relaxed" or not changed:
            self.watched[cells] = True
        return found

    def _acquire(self, cells: Index, threads: Index) -> None:
        own = self.clock.program
        for cell in set(cells.tolist()) & self.published.keys():
            which = np.zeros(self.threads, bool)
            which[threads[cells == cell]] = True
            if which.all():
                self.known[own] = np.maximum(self.known[own], self.published[cell])
            else:
                self.pending[own].append((which, self.published[cell]))

    def _release(self, cells: Index, threads: Index) -> None:
        own = self.clock.program
        for cell, thread in set(zip(cells.tolist(), threads.tolist(), strict=True)):
            clock = self.known[own].copy()
            clock[own] = self.clock.interval - 1
            for which, acquired in self.pending[own]:
                if which[thread]:
                    clock = np.maximum(clock, acquired)
            self.published[cell] = np.maximum(self.published.get(cell, clock), clock)

    def barrier(self) -> None:
        own = self.clock.program
        for _, clock in self.pending[own]:
            self.known[own] = np.maximum(self.known[own], clock)
        self.pending[own].clear()
