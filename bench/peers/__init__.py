"""How fast are others on the same problem? One small file a peer; ``python -m bench.peers`` pairs them with our engines.

A peer is a module with ``start(kind, threads) -> {name: run}``, where ``run(sweeps)`` moves a settled chain on each thread and
returns how many labels changed, or a sentence that says why it cannot run here.
"""

from __future__ import annotations

from collections.abc import Callable

Runs = dict[str, Callable[[int], int]]
