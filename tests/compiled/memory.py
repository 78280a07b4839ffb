"""Who touched which bytes? Memory that checks bounds, unwritten bytes and alignment, and finds races by barrier intervals.

Between two barriers of a program no thread may touch what another wrote, nor write what another read; within a warp a
``bar.warp.sync`` between the two is enough. Programs of a launch are never ordered, so between them no barrier helps. Atomic
additions may meet each other. Stores of the value that stands there already are counted apart, as "equal".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Bytes = NDArray[np.uint8]
GAP = 4096
WARP = 32
SEVERAL = -2


@dataclass
class Clock:
    """Where a launch stands: which program runs, its barrier intervals, and what was found."""

    kernel: str
    program: int = 0
    interval: int = 0
    warp_interval: int = 0
    line: str = ""
    found: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """(what, kernel, line, tensor) -> how often."""

    def note(self, what: str, where: str) -> None:
        self.found[what, self.kernel, self.line, where] += 1


class Marks:
    """By cell: in which interval, by which thread."""

    def __init__(self, cells: int) -> None:
        self.interval, self.warp_interval, self.thread, self.other = (np.full(cells, -1, np.int32) for _ in range(4))

    def set(self, cells: Index, threads: Index, clock: Clock) -> None:
        """As the last one's."""
        self.interval[cells], self.warp_interval[cells], self.thread[cells] = clock.interval, clock.warp_interval, threads

    def join(self, cells: Index, threads: Index, clock: Clock) -> None:
        """Among several: two of them are kept, of different warps if there are such."""
        fresh = self.interval[cells] != clock.interval
        self.thread[cells[fresh]] = self.other[cells[fresh]] = threads[fresh]
        self.interval[cells], self.warp_interval[cells] = clock.interval, clock.warp_interval
        first, second = self.thread[cells], self.other[cells]
        more = (first != threads) & (first // WARP == second // WARP)
        self.other[cells[more]] = threads[more]

    def conflict(self, cells: Index, threads: Index, clock: Clock, both: bool = False) -> NDArray[np.bool_]:
        """Where another thread's mark of this interval stands that no barrier orders."""
        now: NDArray[np.bool_] = self.interval[cells] == clock.interval
        if not now.any():
            return now
        meets = np.zeros(len(cells), bool)
        for theirs in (self.thread, self.other) if both else (self.thread,):
            ordered = (theirs[cells] // WARP == threads // WARP) & (self.warp_interval[cells] < clock.warp_interval)
            meets |= (theirs[cells] != threads) & ~ordered
        found: NDArray[np.bool_] = now & meets
        return found


class Memory:
    """Bytes of several tensors with gaps between them, or of a program's shared memory."""

    def __init__(self, clock: Clock, cell: int = 4) -> None:
        """cell: the bytes that are watched together, no more than the narrowest access."""
        self.clock, self.cell, self.size = clock, cell, GAP
        self.blocks: list[tuple[int, Bytes, Bytes | None, str]] = []

    def add(self, name: str, content: Bytes, written: Bytes | None) -> int:
        """The address of a block; written: 1 for each byte that may be read, None for all; both are changed by `close`."""
        start = self.size
        self.blocks.append((start, content, written, name))
        self.size = (start + len(content) + 2 * GAP - 1) // GAP * GAP
        return start

    def open(self) -> None:
        self.content = np.full(self.size, 0x7F, np.uint8)
        self.inside, self.written = np.zeros(self.size, bool), np.zeros(self.size, bool)
        for start, content, written, _ in self.blocks:
            stretch = slice(start, start + len(content))
            self.content[stretch], self.inside[stretch] = content, True
            self.written[stretch] = True if written is None else written
        cells = self.size // self.cell
        self.stores, self.loads, self.atomics = Marks(cells), Marks(cells), Marks(cells)
        self.stored_by, self.loaded_by, self.added_by = (np.full(cells, -1, np.int32) for _ in range(3))

    def close(self) -> None:
        for start, content, written, _ in self.blocks:
            content[:] = self.content[start : start + len(content)]
            if written is not None:
                written[:] = self.written[start : start + len(content)]

    def where(self, address: int) -> str:
        for start, content, _, name in self.blocks:
            if start - GAP // 2 <= address < start + len(content) + GAP // 2:
                return name if start <= address < start + len(content) else f"beside {name}"
        return "nowhere"

    def _within(self, address: Index, threads: Index, width: int, part: int, verb: str) -> tuple[Index, Index]:
        """Those whose ``width`` bytes are in one block; the rest is noted and left undone."""
        at = np.where((address >= 0) & (address <= self.size - width), address, 0)
        good = self.inside[at] & self.inside[at + width - 1] & (at == address)
        if not good.all():
            self.clock.note(f"out of bounds: {verb}", self.where(int(address[~good][0])))
        if (address[good] % width).any():
            self.clock.note(f"misaligned: {verb}", self.where(int(address[good][0])))
            good &= address % part == 0
        return address[good], threads[good]

    def _cells(self, address: Index, threads: Index, width: int) -> tuple[Index, Index]:
        count = max(width // self.cell, 1)
        cells = (address // self.cell)[:, None] + np.arange(count)
        return cells.reshape(-1), np.repeat(threads, count)

    def _race(self, what: str, cells: Index, which: NDArray[np.bool_]) -> None:
        if which.any():
            self.clock.note(what, self.where(int(cells[which][0]) * self.cell))

    def _others(self, marks: NDArray[np.int32], cells: Index) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (marks[cells] != -1) & (marks[cells] != self.clock.program)
        return found

    def load(self, address: Index, threads: Index, width: int, part: int) -> tuple[Bytes, Index]:
        """uint8 [those that may, width] and who they are; part: bytes of one element."""
        address, threads = self._within(address, threads, width, part, "load")
        spread = address[:, None] + np.arange(width)
        if not self.written[spread].all():
            self.clock.note("uninitialised: load", self.where(int(address[(~self.written[spread]).any(1)][0])))
        cells, by = self._cells(address, threads, width)
        self._race("race: load of a store", cells, self.stores.conflict(cells, by, self.clock))
        self._race("race: load of an addition", cells, self.atomics.conflict(cells, by, self.clock))
        other = self._others(self.stored_by, cells) | self._others(self.added_by, cells)
        self._race("race: load of what another program wrote", cells, other)
        self.loads.join(cells, by, self.clock)
        previous = self.loaded_by[cells]
        self.loaded_by[cells] = np.where((previous == -1) | (previous == self.clock.program), self.clock.program, SEVERAL)
        return self.content[spread], threads

    def store(self, address: Index, threads: Index, values: Bytes, part: int) -> None:
        width = values.shape[1]
        kept = np.arange(len(threads))
        address, kept = self._within(address, kept, width, part, "store")
        threads, values = threads[kept], values[kept]
        spread = address[:, None] + np.arange(width)
        cells, by = self._cells(address, threads, width)
        same = (self.content[spread] == values).reshape(len(cells), -1).all(1) if len(cells) else np.zeros(0, bool)
        again = self.stores.conflict(cells, by, self.clock)
        theirs = self._others(self.stored_by, cells)
        for which, where in ((again, "threads"), (theirs, "programs")):
            self._race(f"equal: stores of {where}", cells, which & same)
            self._race(f"race: stores of {where}", cells, which & ~same)
        self._race("race: store where a thread loads", cells, self.loads.conflict(cells, by, self.clock, both=True))
        self._race("race: store where a thread adds", cells, self.atomics.conflict(cells, by, self.clock))
        other = self._others(self.loaded_by, cells) | self._others(self.added_by, cells)
        self._race("race: store of what another program loads or adds to", cells, other)
        self.content[spread] = values
        # Where two lanes of one store meet, one of them stands; equal if neither sees another value.
        lost = (self.content[spread] != values).reshape(len(cells), -1).any(1) if len(cells) else same
        self._race("race: lanes of one store", cells, lost)
        self.stores.set(cells, by, self.clock)
        self._race("equal: lanes of one store", cells, (self.stores.thread[cells] != by) & ~lost)
        self.stored_by[cells] = self.clock.program
        self.written[spread] = True

    def add_to(self, address: Index, threads: Index, values: NDArray[np.generic]) -> None:
        """Atomically; values [those, elements], in an order of chance."""
        part = values.dtype.itemsize
        width = part * values.shape[1]
        address, kept = self._within(address, np.arange(len(threads)), width, part, "addition")
        threads, values = threads[kept], values[kept]
        if not self.written[address[:, None] + np.arange(width)].all():
            self.clock.note("uninitialised: addition", self.where(int(address[0])))
        cells, by = self._cells(address, threads, width)
        self._race("race: addition to a store", cells, self.stores.conflict(cells, by, self.clock))
        self._race("race: addition where a thread loads", cells, self.loads.conflict(cells, by, self.clock, both=True))
        other = self._others(self.stored_by, cells) | self._others(self.loaded_by, cells)
        self._race("race: addition to what another program loads or stores", cells, other)
        self.atomics.set(cells, by, self.clock)
        self.added_by[cells] = self.clock.program
        order = np.random.default_rng(self.clock.interval).permutation(len(address))
        into = self.content.view(values.dtype)
        for column in range(values.shape[1]):
            np.add.at(into, address[order] // part + column, values[order, column])
