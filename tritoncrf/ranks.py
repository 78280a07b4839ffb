"""Who else learns? The processes that share one model, and what they tell each other at a visit.

Labels depend on an image's index and on counts, never on a rank, so that any number of ranks can make the same chains. At a
visit every rank learns which images the others hold; sums over all of them follow: table errors as integers, which are exact in
any order, and the labelled pixels that a mean is over. An image that stands on two ranks was drawn twice with the same random
numbers; the first rank's chain stays.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
# Indexes that travel with the number of images; more of them need a second message.
ROOM = 62
# Up to so many ranks a sum travels with chains, whole from each to all.
FEW = 8


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group; one alone where there is none."""

    group: ProcessGroup | None = None
    rank: int = 0
    size: int = 1

    def __deepcopy__(self, memo: dict[int, object]) -> Ranks:
        # A group of processes cannot be copied; a copy speaks with the same ones.
        return self

    def __reduce__(self) -> tuple[type[Ranks], tuple[None, int, int]]:
        # Nor can it be written down: what is read again is of the initialised group.
        return Ranks, (None, self.rank, self.size)

    @classmethod
    def of(cls, group: ProcessGroup | None) -> Ranks:
        """Those of ``group``, None: the initialised one. Raises ValueError for a group that this process is not in."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError(f"process_group: expected a group that rank {dist.get_rank()} is in, got another")
        return cls(group, rank, dist.get_world_size(group))

    def sum(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts."""
        if self.size == 1:
            return part
        part = part.contiguous().clone()
        dist.all_reduce(part, group=self.group)
        return part

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is so on any rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag), device=device)))

    def gather(self, part: Tensor) -> list[Tensor]:
        """All ranks' parts, of one shape."""
        if self.size == 1:
            return [part]
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.group)
        return parts

    def objects(self, own: T) -> list[T]:
        """All ranks' objects, of any kind that can be pickled."""
        found: list[T] = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(found, own, group=self.group)
        return found

    def exchange(self, parts: list[Tensor], lengths: list[int]) -> list[Tensor]:
        """Sends ``parts[r]`` (uint8, flat) to each rank r; what each sent here, ``lengths[r]`` bytes."""
        found = parts[0].new_empty(sum(lengths))
        dist.all_to_all_single(found, torch.cat(parts), lengths, [len(part) for part in parts], group=self.group)
        return list(torch.split(found, lengths))

    def sum_with(self, numbers: Tensor, parcel: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The sum of all ranks' numbers, flat, and all ranks' parcels (uint8, of one length) if there are any."""
        if parcel is None:
            return self.sum(numbers), []
        if self.size > FEW:
            return self.sum(numbers), self.gather(parcel)
        # One message: what a message costs is mostly that there is one.
        raw = numbers.contiguous().view(torch.uint8)
        parts = self.gather(torch.cat([raw, parcel]))
        whole = torch.stack([part[: len(raw)].view(numbers.dtype) for part in parts]).sum(0, dtype=numbers.dtype)
        return whole, [part[len(raw) :] for part in parts]

    def meet(self, index: Tensor, changed: bool = False) -> Meeting:
        """Tells all ranks this one's images, int64 ``[N]``; N may differ from rank to rank. Nobody waits before asking.

        changed: whether what all ranks must have alike was loaded or set anew here.
        """
        if self.size == 1:
            return Meeting(self, index, lambda: [])
        message = index.new_zeros(ROOM + 2)
        # Not into lone places, to which a number is copied from the host.
        message[:1].fill_(len(index))
        message[1:2].fill_(int(changed))
        message[2 : 2 + min(len(index), ROOM)] = index[:ROOM]
        parts = [torch.empty_like(message) for _ in range(self.size)]
        work = dist.all_gather(parts, message, group=self.group, async_op=True)

        def arrive() -> list[Tensor]:
            if work is not None:
                work.wait()
            return parts

        return Meeting(self, index, arrive)


class Meeting:
    """The images of one step, of all ranks, rank after rank; what the others hold is waited for when first asked."""

    def __init__(self, ranks: Ranks, mine: Tensor, arrive: Callable[[], list[Tensor]]) -> None:
        self.ranks, self.mine = ranks, mine
        self._arrive = arrive

    @cached_property
    def _heads(self) -> list[Tensor]:
        return self._arrive()

    @property
    def changed(self) -> bool:
        """Whether any rank says so."""
        return any(bool(head[1]) for head in self._heads)

    @cached_property
    def _everyone(self) -> tuple[Tensor, list[int] | None]:
        if self.ranks.size == 1:
            return self.mine, None
        heads = torch.stack(self._heads)
        counts = [int(count) for count in heads[:, 0].tolist()]
        if max(counts) > ROOM:
            wide = self.mine.new_zeros(max(counts))
            wide[: len(self.mine)] = self.mine
            heads = torch.stack([torch.cat([heads[0, :2], part]) for part in self.ranks.gather(wide)])
        return torch.cat([heads[r, 2 : 2 + count] for r, count in enumerate(counts)]), counts

    @property
    def index(self) -> Tensor:
        """int64 [M]: all ranks' images."""
        return self._everyone[0]

    @property
    def counts(self) -> list[int] | None:
        """Images of each rank; None for one alone, whose device is not asked."""
        return self._everyone[1]

    @property
    def first(self) -> int:
        """Where this rank's begin."""
        return sum((self.counts or [])[: self.ranks.rank])

    @property
    def again(self) -> Tensor:
        """bool [M]: the image stands further up already."""
        # Equal ones in the order in which they came: each but the first of a run stands further up already.
        images, order = self.index.sort(stable=True)
        found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        found[order[1:]] = images[1:] == images[:-1]
        return found

    @cached_property
    def lists(self) -> list[list[int]]:
        """The images of each rank."""
        return [part.tolist() for part in torch.split(self.index.cpu(), self.counts or [len(self.index)])]

    @property
    def firsts(self) -> dict[int, int]:
        """Every image, and the first rank that it stands on."""
        found: dict[int, int] = {}
        for rank, images in enumerate(self.lists):
            for image in images:
                found.setdefault(image, rank)
        return found

    @property
    def offsets(self) -> Tensor:
        """int64 [N]: where this rank's images stand in the step's order, in which the ranks take turns (`order`)."""
        counts, me = self.counts, self.ranks.rank
        if counts is None:
            return torch.arange(len(self.index), device=self.index.device)
        found = [sum(min(count, k + (r < me)) for r, count in enumerate(counts)) for k in range(counts[me])]
        return torch.tensor(found, device=self.index.device)

    def own(self, whole: Tensor) -> Tensor:
        """This rank's part of something ``[M, ..]``."""
        return whole if self.counts is None else whole[self.first : self.first + self.counts[self.ranks.rank]]


def fingerprint(part: Tensor) -> int:
    """A number that differs, most likely, where a tensor's bytes or shape differ; copies it to the host."""
    # A copy: memory that numpy has seen FSDP can no longer free.
    own = part.detach().cpu().clone().flatten()
    return zlib.crc32(own.view(torch.uint8).numpy().tobytes(), len(part.shape))
