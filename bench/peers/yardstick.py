"""How fast is plain C++ on this machine? The yardstick of the shared folder beside the checkout, where g++ can build it.

20 labels and 64 neighbours are fixed in it and its random numbers are a hash: a measure of the machine, not of a sampler.
"""

from __future__ import annotations

import importlib
import itertools
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers import Runs

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "yardstick"


def start(kind: str, threads: int) -> Runs | str:
    """Gather and incremental sweeps, a chain for each thread."""
    if not (FOLDER / "run.py").is_file():
        return "the yardstick is not here: it lies in the shared folder beside the checkout"
    if shutil.which("g++") is None:
        return "there is no g++"
    sys.path.insert(0, str(FOLDER))
    try:
        module: Any = importlib.import_module("run")
    finally:
        sys.path.remove(str(FOLDER))
    library = module.build()
    count = itertools.count()

    def runner(way: str) -> Callable[[int], int]:
        chains = [module.Chain(kind) for _ in range(threads)]
        for chain in chains:
            chain.gather(library, 30, next(count))
            chain.build_field()

        def run(sweeps: int) -> int:
            for chain in chains:
                chain.flips.value = 0
            workers = [threading.Thread(target=getattr(chain, way), args=(library, sweeps, next(count))) for chain in chains]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return sum(chain.flips.value for chain in chains)

        return run

    # Each way has chains of its own: the incremental one's field must know of every flip.
    return {way: runner(way) for way in ("gather", "incremental")}
