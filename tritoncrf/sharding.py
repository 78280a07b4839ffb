"""Which chains lie on which rank? All on each, or each rank its share: every way the first to hold an image's chain moves it.

Where every rank has all chains, a step's travel to all beside the step's sums (a byte a pixel). Where each holds a share, a
rank that visits an image of another borrows its chain and gives it back; `Share.move` brings the chains of an epoch to those
that will visit them, in one exchange, so that no step borrows. Chains stand under an image's index, so that any number of ranks
can read what another number wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tritoncrf.ranks import Meeting, Ranks


class Move(NamedTuple):
    """An image that goes from rank to rank."""

    here: int
    there: int
    image: int


@dataclass(frozen=True)
class Share:
    """Of D images: the bytes of each, the rank that has it, and where it lies there, image after image.

    Labels are uint8 ``[P, bytes + 1]``, the last one spare.
    """

    ranks: Ranks
    areas: tuple[int, ...]
    owner: tuple[int, ...]

    @classmethod
    def even(cls, ranks: Ranks, areas: Sequence[int]) -> Share:
        """Ranges of indexes with about as many bytes for every rank."""
        total, done, owner = sum(areas), 0, []
        for area in areas:
            owner.append(min((2 * done + area) * ranks.size // (2 * total), ranks.size - 1))
            done += area
        return cls(ranks, tuple(areas), tuple(owner))

    @cached_property
    def starts(self) -> list[int]:
        """Where each image lies on this rank; -1 where it does not."""
        return self.starts_on(self.ranks.rank)

    def starts_on(self, rank: int) -> list[int]:
        """Where each image lies on ``rank``; -1 where it does not."""
        done, found = 0, []
        for area, owner in zip(self.areas, self.owner, strict=True):
            found.append(done if owner == rank else -1)
            done += area if owner == rank else 0
        return found

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's part of the labels of all images."""
        parts, done = [], 0
        for area, owner in zip(self.areas, self.owner, strict=True):
            if owner == self.ranks.rank:
                parts.append(whole[:, done : done + area])
            done += area
        return torch.cat([*parts, whole[:, -1:]], 1)

    def collect(self, labels: Tensor) -> Tensor:
        """The labels of all images on every rank; every rank must call it."""
        longest = max(sum(a for a, o in zip(self.areas, self.owner, strict=True) if o == r) for r in range(self.ranks.size))
        padded = labels.new_zeros((len(labels), longest))
        padded[:, : labels.shape[1] - 1] = labels[:, :-1]
        parts = self.ranks.gather(padded)
        starts = [self.starts_on(rank) for rank in range(self.ranks.size)]
        found = [parts[o][:, starts[o][j] : starts[o][j] + self.areas[j]] for j, o in enumerate(self.owner)]
        return torch.cat([*found, labels[:, -1:]], 1)

    def move(self, labels: Tensor, owner: Sequence[int]) -> tuple[Tensor, Share]:
        """Brings every image to its new owner; the labels there, and how they lie. Every rank must call it alike."""
        moves = [Move(a, b, j) for j, (a, b) in enumerate(zip(self.owner, owner, strict=True)) if a != b]
        mine = self._parts(labels)
        arrived = self._send(labels, moves, mine)
        kept = [arrived[j] if j in arrived else mine(j) for j, rank in enumerate(owner) if rank == self.ranks.rank]
        return torch.cat([*kept, labels[:, -1:]], 1), Share(self.ranks, self.areas, tuple(owner))

    def borrow(self, labels: Tensor, meeting: Meeting) -> dict[int, Tensor]:
        """The labels ``[P, area]`` of this rank's images of a step, wherever they lie."""
        lists = meeting.lists
        moves = [Move(self.owner[j], r, j) for r, own in enumerate(lists) for j in dict.fromkeys(own) if self.owner[j] != r]
        mine = self._parts(labels)
        arrived = self._send(labels, moves, mine)
        return {j: arrived[j] if j in arrived else mine(j) for j in dict.fromkeys(lists[self.ranks.rank])}

    def give_back(self, labels: Tensor, meeting: Meeting, moved: Mapping[int, Tensor], good: Tensor) -> None:
        """Writes a step's chains where they belong, if ``good``; of an image that stands on two ranks, the first's."""
        firsts = meeting.firsts
        moves = [Move(rank, self.owner[j], j) for j, rank in firsts.items() if self.owner[j] != rank]
        arrived = self._send(labels, moves, moved.__getitem__)
        stayed = {j: moved[j] for j, rank in firsts.items() if rank == self.owner[j] == self.ranks.rank}
        starts = self.starts
        for j, part in (arrived | stayed).items():
            old = labels[:, starts[j] : starts[j] + self.areas[j]]
            old.copy_(torch.where(good, part, old))

    def _parts(self, labels: Tensor) -> Callable[[int], Tensor]:
        starts = self.starts
        return lambda j: labels[:, starts[j] : starts[j] + self.areas[j]]

    def _send(self, labels: Tensor, moves: Sequence[Move], part: Callable[[int], Tensor]) -> dict[int, Tensor]:
        """Sends images from rank to rank, ``moves`` the same on all; the labels of those that came here."""
        if not moves:
            return {}
        me, size, phases = self.ranks.rank, self.ranks.size, len(labels)
        out = [[move.image for move in moves if (move.here, move.there) == (me, r)] for r in range(size)]
        into = [[move.image for move in moves if (move.here, move.there) == (r, me)] for r in range(size)]
        sent = [torch.cat([labels.new_empty(0), *(part(j).flatten() for j in images)]) for images in out]
        came = self.ranks.exchange(sent, [phases * sum(self.areas[j] for j in images) for images in into])
        found: dict[int, Tensor] = {}
        for images, whole in zip(into, came, strict=True):
            pieces = torch.split(whole, [phases * self.areas[j] for j in images]) if images else ()
            found |= {j: piece.view(phases, -1) for j, piece in zip(images, pieces, strict=True)}
        return found


def parcel(labels: Mapping[int, Tensor], areas: Sequence[int], meeting: Meeting) -> Tensor:
    """Where every rank has all chains: this rank's of a step, as long as the longest rank's; uint8, flat.

    labels: ``[P, area]`` of each of its images.
    """
    lists, phases = _by_rank(meeting), len(next(iter(labels.values())))
    longest = max(sum(areas[j] for j in images) for images in lists)
    mine = [labels[j].flatten() for j in lists[meeting.ranks.rank]]
    whole = torch.cat([next(iter(labels.values())).new_empty(0), *mine])
    return torch.cat([whole, whole.new_zeros(phases * longest - len(whole))])


def unpack(parcels: Sequence[Tensor], labels: Tensor, starts: Sequence[int], areas: Sequence[int], meeting: Meeting,
           good: Tensor) -> None:  # fmt: skip
    """Writes all ranks' parcels into labels ``[P, bytes + 1]`` where ``good`` (bool ``[]``)."""
    phases = len(labels)
    for images, part in zip(_by_rank(meeting), parcels, strict=True):
        done = 0
        for j in images:
            old = labels[:, starts[j] : starts[j] + areas[j]]
            old.copy_(torch.where(good, part[done : done + phases * areas[j]].view(phases, -1), old))
            done += phases * areas[j]


def _by_rank(meeting: Meeting) -> list[list[int]]:
    """Each rank's images but those that stand on one before it."""
    firsts = meeting.firsts
    return [[j for j, rank in firsts.items() if rank == r] for r in range(meeting.ranks.size)]
