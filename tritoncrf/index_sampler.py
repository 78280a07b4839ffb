"""In which order are images visited? One shuffled order of a whole data set, of which every rank takes its turn.

Rank r of R takes the images at places r, r + R, r + 2R .. of the order, so that step s of B images a rank visits places s R B
to (s + 1) R B whatever R is: 1 x 8, 2 x 4 and 4 x 2 images make the same steps. The order is that of a `DataLoader` with
``shuffle=True`` and the same generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING

import torch
from torch.utils.data import RandomSampler, Sampler

from tritoncrf import validation
from tritoncrf.ranks import Ranks
from tritoncrf.store import ChainStore

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class DistributedIndexSampler(Sampler[int]):
    """This rank's part of a shuffled order, for ``DataLoader(sampler=...)``; every rank makes one with the same seed.

    dataset: anything with a length; seed: of the order; shuffle: False goes through the data set in its own order. chains: a
    shared `ChainStore`, whose chains each epoch's start brings to the ranks that will visit them. What does not come out even
    over the ranks is left out, other images each epoch. Epochs follow each other by themselves; `set_epoch` goes to one.

    On one rank, or without `torch.distributed`, it is the whole order. Raises ValueError for more ranks than images.

    >>> list(DistributedIndexSampler(range(6), seed=0))
    [2, 5, 3, 0, 1, 4]
    """

    def __init__(
        self, dataset: Sized, seed: int = 0, *, shuffle: bool = True, chains: ChainStore | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.shuffle, self.chains = dataset, shuffle, chains
        self.seed = validation.whole("seed", seed, 0, (1 << 63) - 1)
        self.ranks = Ranks.of(process_group)
        if len(dataset) < self.ranks.size:
            raise ValueError(f"dataset: expected at least {self.ranks.size} images, one a rank, got {len(dataset)}")
        if chains is not None and len(chains) < len(dataset):
            raise ValueError(f"chains: expected a ChainStore of at least {len(dataset)} images, got {len(chains)}")
        self.generator = torch.Generator().manual_seed(seed)

    def set_epoch(self, epoch: int) -> None:
        """Starts the order of ``epoch`` at the next iteration, as ``DistributedSampler`` does."""
        validation.whole("epoch", epoch, 0)
        # Far from the seeds next to it, whose epochs would repeat these.
        self.generator.manual_seed((self.seed + epoch * 0x9E3779B97F4A7C15) % (1 << 63))

    def __len__(self) -> int:
        return len(self.dataset) // self.ranks.size

    def __iter__(self) -> Iterator[int]:
        whole = range(len(self.dataset))
        order = list(RandomSampler(whole, generator=self.generator)) if self.shuffle else list(whole)
        size = self.ranks.size
        if self.chains is not None:
            owner = list(self.chains.owner)
            for place, image in enumerate(order[: len(self) * size]):
                owner[image] = place % size
            self.chains.hand_over(owner)
        return iter(order[self.ranks.rank : len(self) * size : size])
