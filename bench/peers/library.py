"""How fast are our engines? By each way, a chain for each thread."""

from __future__ import annotations

import torch

import tritoncrf as tc
from bench.peers import Array, Task, Ways
from bench.problem import Standard

UPDATES = ("gather", "incremental", "auto")


class Ours:
    """Chains as a batch of equal images that differ in their random numbers."""

    def __init__(self, problem: Standard, start: Array, engine: str, update: str) -> None:
        self.sampler = tc.Sampler(problem.crf, engine, seed=1, update=update)
        logits = problem.logits.expand(len(start), -1, -1, -1)
        self.chains = self.sampler.init(logits, torch.from_numpy(start))

    def run(self, sweeps: int) -> int:
        return int(self.sampler.run(self.chains, sweeps).flips.sum())

    def labels(self) -> Array:
        labels: Array = self.chains.labels[:, 0].numpy()
        return labels


def settled(problem: Standard, chains: int, sweeps: int) -> Array:
    """Labels uint8 ``[chains, H, W]`` that everyone starts from."""
    state = tc.Sampler(problem.crf, seed=2).init(problem.logits.expand(chains, -1, -1, -1))
    labels: Array = tc.Sampler(problem.crf, seed=2).run(state, sweeps).labels[:, 0].numpy()
    return labels


def start(problem: Standard, task: Task, engine: str) -> Ways | str:
    """Every update of ``engine``."""
    reason = tc.engines.report(torch.device("cpu"))[engine]
    return {update: Ours(problem, task.start, engine, update) for update in UPDATES} if reason == "ready" else reason
