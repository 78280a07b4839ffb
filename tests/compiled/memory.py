"""Who touched which bytes? Memory that checks bounds, unwritten bytes and alignment, and finds races by barrier intervals.

Between two barriers of a program no thread may touch what another wrote, nor write what another read; within a warp a
``bar.warp.sync`` between the two is enough. What lies between programs `order` says; between them no barrier helps. Atomic
operations may meet each other. Stores of the value that stands there already are counted apart, as "equal".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.compiled.order import Clock, Index, Ordered, Unordered

Bytes = NDArray[np.uint8]
GAP = 4096
WARP = 32
# Of atomic operations, by what they are called.
VERBS: dict[str, Any] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


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

    def open(self, between: Callable[[int, Clock], Unordered | Ordered] | None = None) -> None:
        """between: made of how many cells there are, it tells races with other programs; None for what one program has."""
        self.content = np.full(self.size, 0x7F, np.uint8)
        self.inside, self.written = np.zeros(self.size, bool), np.zeros(self.size, bool)
        for start, content, written, _ in self.blocks:
            stretch = slice(start, start + len(content))
            self.content[stretch], self.inside[stretch] = content, True
            self.written[stretch] = True if written is None else written
        cells = self.size // self.cell
        self.stores, self.loads, self.atomics = Marks(cells), Marks(cells), Marks(cells)
        self.polls: Marks | None = None
        self.between = None if between is None else between(cells, self.clock)

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

    def load(self, address: Index, threads: Index, width: int, part: int, sem: str = "") -> tuple[Bytes, Index]:
        """uint8 [those that may, width] and who they are; part: bytes of one element; sem: of an atomic load."""
        address, threads = self._within(address, threads, width, part, "load")
        spread = address[:, None] + np.arange(width)
        if not self.written[spread].all():
            self.clock.note("uninitialised: load", self.where(int(address[(~self.written[spread]).any(1)][0])))
        cells, by = self._cells(address, threads, width)
        self._race("race: load of a store", cells, self.stores.conflict(cells, by, self.clock))
        if sem:
            if self.polls is None:
                self.polls = Marks(len(self.stores.thread))
            self.polls.join(cells, by, self.clock)
        else:
            self._race("race: load of an atomic", cells, self.atomics.conflict(cells, by, self.clock))
            self.loads.join(cells, by, self.clock)
        if self.between is not None:
            other = self.between.load(cells, by, sem)
            self._race("race: load of what another program wrote", cells, other)
        return self.content[spread], threads

    def store(self, address: Index, threads: Index, values: Bytes, part: int) -> bool:
        """Whether it changed anything."""
        width = values.shape[1]
        kept = np.arange(len(threads))
        address, kept = self._within(address, kept, width, part, "store")
        threads, values = threads[kept], values[kept]
        spread = address[:, None] + np.arange(width)
        cells, by = self._cells(address, threads, width)
        same = (self.content[spread] == values).reshape(len(cells), -1).all(1) if len(cells) else np.zeros(0, bool)
        again = self.stores.conflict(cells, by, self.clock)
        nobody = np.zeros(len(cells), bool)
        theirs, other = (nobody, nobody) if self.between is None else self.between.store(cells, by)
        for which, where in ((again, "threads"), (theirs, "programs")):
            self._race(f"equal: stores of {where}", cells, which & same)
            self._race(f"race: stores of {where}", cells, which & ~same)
        loads = self.loads.conflict(cells, by, self.clock, both=True)
        if self.polls is not None:
            loads |= self.polls.conflict(cells, by, self.clock, both=True)
        self._race("race: store where a thread loads", cells, loads)
        self._race("race: store beside an atomic", cells, self.atomics.conflict(cells, by, self.clock))
        self._race("race: store of what another program loads or adds to", cells, other)
        self.content[spread] = values
        # Where two lanes of one store meet, one of them stands; equal if neither sees another value.
        lost = (self.content[spread] != values).reshape(len(cells), -1).any(1) if len(cells) else same
        self._race("race: lanes of one store", cells, lost)
        self.stores.set(cells, by, self.clock)
        self._race("equal: lanes of one store", cells, (self.stores.thread[cells] != by) & ~lost)
        self.written[spread] = True
        return not same.all()

    def atomic(
        self, address: Index, threads: Index, values: NDArray[Any], verb: str, sem: str = "relaxed", returns: bool = False
    ) -> tuple[NDArray[Any], Index, bool]:
        """One of `VERBS`, "exch" or "store" with values [those, elements], in an order of chance.

        What stood there (only where ``returns``), which of those given may, and whether anything may have changed.
        """
        part = values.dtype.itemsize
        width = part * values.shape[1]
        address, kept = self._within(address, np.arange(len(threads)), width, part, "atomic")
        threads, values = threads[kept], values[kept]
        spread = address[:, None] + np.arange(width)
        if verb in ("exch", "store"):
            self.written[spread] = True
        elif not self.written[spread].all():
            self.clock.note("uninitialised: atomic", self.where(int(address[0])))
        cells, by = self._cells(address, threads, width)
        self._race("race: atomic beside a store", cells, self.stores.conflict(cells, by, self.clock))
        self._race("race: atomic where a thread loads", cells, self.loads.conflict(cells, by, self.clock, both=True))
        self.atomics.set(cells, by, self.clock)
        order = np.random.default_rng(self.clock.interval).permutation(len(address))
        into, before = self.content.view(values.dtype), values.copy()
        changed = len(address) > 0
        if returns or verb not in VERBS:
            changed = False
            for lane in order:
                place = slice(address[lane] // part, address[lane] // part + values.shape[1])
                before[lane] = into[place]
                into[place] = VERBS[verb](before[lane], values[lane]) if verb in VERBS else values[lane]
                changed |= bool((into[place] != before[lane]).any())
        else:
            for column in range(values.shape[1]):
                VERBS[verb].at(into, address[order] // part + column, values[order, column])
        if self.between is not None:
            other = self.between.atomic(cells, by, sem, changed, verb == "store")
            self._race("race: atomic on what another program loads or stores", cells, other)
        return before, kept, changed
