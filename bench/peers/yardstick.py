"""How fast is plain C++ on this machine? The yardstick of the shared folder beside the checkout, where g++ can build it.

20 labels and 64 neighbours are fixed in it and its random numbers are a hash: a measure of the machine, not of a sampler.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import Array, Task, Ways, side_by_side

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "yardstick"


class Side:
    """Chains of the yardstick, swept by one update. Each has its own: the incremental one's field must know of every flip."""

    def __init__(self, module: Any, library: Any, task: Task, update: str) -> None:
        self.library, self.update, self.count = library, update, itertools.count()
        self.chains = [module.Chain(task.kind) for _ in task.start]
        self.shape, self.reach = task.color.shape, int(np.abs(task.offsets).max())
        for chain, start in zip(self.chains, task.start, strict=True):
            self._inside(chain)[...] = start
            chain.build_field()

    def _inside(self, chain: Any) -> Array:
        r = self.reach
        framed: Array = chain.labels.reshape(-1, self.shape[1] + 2 * r)
        return framed[r:-r, r:-r]

    def run(self, sweeps: int) -> int:
        for chain in self.chains:
            chain.flips.value = 0
        side_by_side([functools.partial(self._sweep, chain, sweeps, next(self.count)) for chain in self.chains])
        return sum(chain.flips.value for chain in self.chains)

    def _sweep(self, chain: Any, sweeps: int, seed: int) -> int:
        # Sweep s of a call hashes seed + 7919 s: seeds this far apart are never reached.
        getattr(chain, self.update)(self.library, sweeps, seed * 104729 % (1 << 32))
        return 0

    def labels(self) -> Array:
        return np.stack([self._inside(chain) for chain in self.chains])


def start(task: Task) -> Ways | str:
    """Gather and incremental sweeps."""
    if not task.kind:
        return "it knows the standard problem only"
    if not (FOLDER / "run.py").is_file():
        return "the yardstick is not here: it lies in the shared folder beside the checkout"
    if shutil.which("g++") is None:
        return "there is no g++"
    module, library = _built()
    return {update: Side(module, library, task, update) for update in ("gather", "incremental")}


@functools.cache
def _built() -> tuple[Any, Any]:
    sys.path.insert(0, str(FOLDER))
    try:
        module: Any = importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
    return module, module.build()
