"""How much memory does it take? What an object holds, and the most that the process ever held."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(thing: object) -> int:
    """Bytes of all tensors and arrays in ``thing`` and in what it is made of; memory that several share counts once."""
    total, reached = 0, 0
    for start, end in sorted(set(_spans(thing))):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def reset_peak() -> None:
    """Forgets earlier peaks, where Linux lets it."""
    with suppress(OSError):
        if _CLEAR.exists():
            _CLEAR.write_text("5")


def peak() -> int:
    """The most bytes of memory the process held since `reset_peak`; on other systems than Linux since its start."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _spans(thing: object) -> Iterator[tuple[int, int]]:
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    elif isinstance(thing, np.ndarray):
        while isinstance(thing.base, np.ndarray):
            thing = thing.base
        start = thing.__array_interface__["data"][0]
        yield start, start + thing.nbytes
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _spans(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from _spans(value)
    elif dataclasses.is_dataclass(thing):
        for part in dataclasses.fields(thing):
            yield from _spans(getattr(thing, part.name))
