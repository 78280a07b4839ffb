"""Where is each chain of a batch that is being sampled? `ChainState`; between visits a `ChainStore` keeps them (`store`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as made

import torch
from torch import Tensor

from tritoncrf.engines import Plan, Tables, Work
from tritoncrf.flip_rate import Rate
from tritoncrf.layout import Layout, Shape, unpack


@dataclass
class ChainState:
    """Chains of a batch: N images with R replicas. `Sampler.init` makes it, `Sampler.run` moves it in place."""

    plan: Plan
    layout: Layout
    shape: Shape
    logits: Tensor
    """What ``work`` was prepared from."""
    work: Work
    tables: Tables
    """The rounded tables that ``work`` holds."""
    rows: Tensor
    """uint8 [N, R, volume]: labels with their void border."""
    count: Tensor
    """int64 [N]: sweeps done over the image's whole life."""
    flips: Tensor
    """int64 [N, R]: label changes in the last run."""
    purpose: int
    sites: int
    """Free sites of all chains; where counting them would stall something, sites."""
    field: Tensor | None = None
    """What the engine keeps for the incremental update."""
    rate: Rate = made(default_factory=Rate, repr=False, compare=False)
    """Flips per site update of an earlier run."""
    moving: dict[str, object] = made(default_factory=dict, repr=False, compare=False)
    """Who moves them, while somebody does; a dict, for setting a default in it cannot be divided among threads."""
    seen: Tables | None = None
    """On a CPU, the tables that ``tables`` were rounded from, as they were."""
    version: tuple[int, ...] | None = None
    """Addresses and version counters of the parameters that ``tables`` were rounded from, where they have some."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises RuntimeError if somebody else, another thread, is at these chains."""
        mine = object()
        if self.moving.setdefault("by", mine) is not mine:
            raise RuntimeError(
                "chains: expected chains that nobody else moves meanwhile, got some that another thread is moving: give each "
                "thread chains of its own"
            )
        try:
            yield
        finally:
            self.moving.clear()

    @property
    def labels(self) -> Tensor:
        """uint8 ``[N, R, *shape]``, a fresh tensor; 255 where no pixel exists. Of graphs ``[R, V]``."""
        fold = self.layout.fold
        return self.images if fold is None else fold.labelings(self.images)

    @property
    def images(self) -> Tensor:
        """`labels` as uint8 ``[N, R, *shape]``, also of graphs, each a row."""
        return unpack(self.plan, self.layout, self.rows, self.shape)

    @property
    def exists(self) -> Tensor:
        """bool ``[N, *shape]``: the pixels that exist."""
        rows = torch.zeros((len(self.index), self.plan.volume), dtype=torch.bool, device=self.rows.device)
        rows[:, self.plan.positions] = self.plan.exists
        return self.layout.crop(rows, self.shape)

    @property
    def sweeps(self) -> Tensor:
        """int64 ``[N]``: sweeps done over the image's whole life (rule 2's sweep number of the next one)."""
        return self.count

    @property
    def index(self) -> Tensor:
        """int64 ``[N]``: the images' positions in the data set."""
        return self.plan.index

    @property
    def replicas(self) -> int:
        return self.plan.replicas
