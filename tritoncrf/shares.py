"""Which chains lie on which rank? All on each, or each rank its share: every way the first to hold an image's chain moves it.

Where every rank has all chains, a step's are sent to all once it is done (a byte a pixel). Where each holds a share, a rank
that visits an image of another borrows its chain and gives it back; `Share.move` brings the chains of an epoch to those that
will visit them, in one exchange, so that no step borrows. Chains stand under an image's index, so that any number of ranks can
read what another number wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

    def starts(self, rank: int | None = None) -> list[int]:
        """Where each image lies on ``rank`` (None: this one); -1 where it does not."""
        rank, done, found = self.ranks.rank if rank is None else rank, 0, []
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
        starts = [self.starts(rank) for rank in range(self.ranks.size)]
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

    def give_back(self, labels: Tensor, meeting: Meeting, moved: Mapping[int, Tensor]) -> None:
        """Writes a step's chains where they belong; of an image that stands on two ranks, the first's."""
        firsts = meeting.firsts
        moves = [Move(rank, self.owner[j], j) for j, rank in firsts.items() if self.owner[j] != rank]
        arrived = self._send(labels, moves, moved.__getitem__)
        stayed = {j: moved[j] for j, rank in firsts.items() if rank == self.owner[j] == self.ranks.rank}
        starts = self.starts()
        for j, part in (arrived | stayed).items():
            labels[:, starts[j] : starts[j] + self.areas[j]] = part

    def _parts(self, labels: Tensor) -> Callable[[int], Tensor]:
        starts = self.starts()
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


def spread(labels: Tensor, starts: Sequence[int], areas: Sequence[int], meeting: Meeting) -> None:
    """Where every rank has all chains: a step's, each as its first rank moved it, are written on all."""
    firsts = meeting.firsts
    lists = [[j for j, rank in firsts.items() if rank == r] for r in range(meeting.ranks.size)]
    longest = max(sum(areas[j] for j in images) for images in lists)
    padded = labels.new_zeros((len(labels), longest))
    mine = [labels[:, starts[j] : starts[j] + areas[j]] for j in lists[meeting.ranks.rank]]
    if mine:
        whole = torch.cat(mine, 1)
        padded[:, : whole.shape[1]] = whole
    for rank, (images, part) in enumerate(zip(lists, meeting.ranks.gather(padded), strict=True)):
        done = 0
        for j in images if rank != meeting.ranks.rank else ():
            labels[:, starts[j] : starts[j] + areas[j]] = part[:, done : done + areas[j]]
            done += areas[j]
