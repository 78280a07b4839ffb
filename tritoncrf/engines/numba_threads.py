"""Who works beside whom? A small pool of threads over images or chains, of our own.

Compiled functions release the interpreter, so plain threads run them side by side. Numba's own threads abort a process that
calls them from two threads or after a fork, and torch's are not ours to call; what these take from torch is their number.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# Parts a thread: images differ in size, so the last one to finish should be small.
PARTS = 4
_pools: dict[int, ThreadPoolExecutor] = {}
_guard = threading.Lock()


def share(function: Callable[..., None], bounds: npt.NDArray[np.int64], *arguments: Any) -> None:
    """Calls ``function(begin, end, *arguments)`` over all items, parts of about equal size at once.

    bounds: int64 [items + 1], the work up to each item.
    """
    items, threads = len(bounds) - 1, torch.get_num_threads()
    parts = min(items, threads if items < 2 * threads else PARTS * threads)
    if threads == 1 or parts <= 1:
        function(0, items, *arguments)
        return
    edges = np.searchsorted(bounds, np.linspace(0, bounds[-1], parts + 1)[1:-1]).tolist()
    cuts = [0, *edges, items]
    pool = _pool(threads)
    jobs = [pool.submit(function, a, b, *arguments) for a, b in itertools.pairwise(cuts) if b > a]
    for job in jobs:
        job.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _guard:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="tritoncrf")
        return _pools[threads]


def _after_fork() -> None:
    """A forked child has none of the threads, and perhaps a lock that one of them held."""
    global _guard
    _guard = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
