"""Where is each chain between its visits? `ChainStore`, the chains of a whole data set.

Persistent contrastive divergence (Tieleman 2008; Kirillov et al. 2016, section 3) keeps one labelling per training image:
one byte a pixel and replica, beside a count of sweeps done, an offset and a size an image.

A store is an `nn.Module`, so that chains move and are saved with the loss they belong to. Its tensors are not registered as
buffers: what wraps a model sends those from the first rank to all at every step, or averages them, and a chain is neither.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.checkpoint import CheckpointError, believed, read, write
from tritoncrf.frame import Shape
from tritoncrf.pixel_indices import pixel_indices
from tritoncrf.ranks import Meeting, Ranks
from tritoncrf.sharding import Share, parcel, unpack
from tritoncrf.sizes import table_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_MOVED = ("labels", "sweeps", "sizes", "offsets")
_SAVED = ("labels", "sweeps", "sizes", "meta")


class ChainStore(nn.Module):
    """One label map per image index and replica, allocated once on ``device``.

    sizes: the images' sizes, a sequence of tuples or an integer tensor ``[D, d]``; replicas: chains an image, up to 65536;
    seed: of the chains' random numbers, None takes 64 bits from torch's generator; latent: also keep the data phase's chain
    (a second byte a pixel), for images with pixels whose label is not known; persistent: False leaves the chains out of
    ``state_dict``. Under `torch.distributed` every rank has all chains; shared: each has a share alone (of ``process_group``,
    None: the initialised one), and then ``state_dict``, ``save`` and `hand_over` must be called on every rank.

    A label of 255 means "not drawn yet": the first visit draws it from the network's marginals. Raises ValueError or TypeError
    naming the argument.

    >>> ChainStore([(4, 6), (3, 5)], seed=0)
    ChainStore(2 images, 1 replica, 40 bytes of labels + 64 bytes of counts, on cpu)
    """

    labels: Tensor
    """uint8 [1 or with latent 2, bytes]: image after image, replica after replica, and a spare byte."""
    sweeps: Tensor
    """int64 [D]: sweeps done over each image's life."""
    sizes: Tensor
    """int64 [D, d]."""
    offsets: Tensor
    """int64 [D]: where each image's labels begin."""
    staged: Mapping[int, Tensor] = MappingProxyType({})
    """Of a stage: each image's labels, views of its own."""
    table: tuple[tuple[int, ...], ...]
    """`sizes`, on the host."""
    loads: int
    """How often a state was loaded."""
    fresh: bool
    """Neither visited nor loaded yet."""

    def __init__(
        self, sizes: Iterable[Sequence[int]] | Tensor, *, replicas: int = 1, device: str | torch.device = "cpu",
        seed: int | None = None, latent: bool = False, persistent: bool = True, shared: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        table = table_of(sizes)
        self.replicas = validation.whole("replicas", replicas, 1, 1 << contract.REPLICA_BITS)
        self.seed = contract.seed_of(seed)
        self.latent, self.persistent, self.fresh, self.drawn, self.loads = latent, persistent, True, seed is None, 0
        self.table = tuple(table)
        self.sizes = torch.tensor(table, dtype=torch.int64, device=device)
        self.areas = tuple(math.prod(size) * self.replicas for size in table)
        ranks = Ranks.of(process_group) if shared else Ranks()
        self.share = Share.even(ranks, self.areas) if ranks.size > 1 else None
        self._open = tuple(itertools.accumulate(self.areas[:-1], initial=0))
        self.offsets = torch.tensor(self.starts, dtype=torch.int64, device=device)
        self.sweeps = torch.zeros(len(table), dtype=torch.int64, device=self.device)
        # The last byte is where writes go that must not land: padding, second occurrences, voided batches.
        held = sum(area for area, start in zip(self.areas, self.starts, strict=True) if start >= 0)
        self.labels = torch.full((2 if latent else 1, held + 1), contract.VOID, dtype=torch.uint8, device=self.device)

    @property
    def starts(self) -> Sequence[int]:
        """Where each image's labels begin; -1 for one that another rank has."""
        return self._open if self.share is None else self.share.starts

    @property
    def device(self) -> torch.device:
        # That of a tensor: "cuda" and "cuda:0" are the same place, but not the same torch.device.
        return self.sizes.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        empty = self.labels.is_meta
        for name in _MOVED:
            setattr(self, name, fn(getattr(self, name)))
        if empty and not self.labels.is_meta:
            # From a device without memory come numbers that nobody wrote (`to_empty`).
            self.sizes.copy_(torch.tensor(self.table))
            self.offsets.copy_(torch.tensor(self.starts))
            self.labels.fill_(contract.VOID)
            self.sweeps.zero_()
        return self

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept, on ``device``."""
        return self.labels.nbytes + self.sweeps.nbytes + self.offsets.nbytes + self.sizes.nbytes

    def __repr__(self) -> str:
        plural = "replica" if self.replicas == 1 else "replicas"
        return (
            f"ChainStore({len(self)} images, {self.replicas} {plural}, {self.labels.nbytes} bytes of labels "
            f"+ {self.nbytes - self.labels.nbytes} bytes of counts, on {self.device})"
        )

    @property
    def owner(self) -> Sequence[int]:
        """The rank that has each image's chain, of a shared store; 0 for all of another."""
        return (0,) * len(self) if self.share is None else self.share.owner

    def hand_over(self, owner: Sequence[int]) -> None:
        """Brings a shared store's chains to the ranks that ``owner`` names for each image; every rank must call it alike.

        Nothing happens to a store that is not shared. Raises ValueError unless there is a rank for every image.
        """
        if len(owner) != len(self):
            raise ValueError(f"owner: expected a rank for each of {len(self)} images, got {len(owner)}")
        size = 1 if self.share is None else self.share.ranks.size
        odd = next((rank for rank in owner if not 0 <= rank < size), None)
        if odd is not None:
            raise ValueError(f"owner: expected ranks from 0 to {size - 1}, got {odd}")
        if self.share is not None:
            self.labels, self.share = self.share.move(self.labels, owner)
            self.offsets = torch.tensor(self.starts, dtype=torch.int64, device=self.device)

    def stage(self, meeting: Meeting) -> ChainStore:
        """A store with the chains of this rank's images of a step; itself for one rank alone."""
        if meeting.ranks.size == 1:
            return self
        if self.share is None:
            starts = self.starts
            images = dict.fromkeys(meeting.mine.tolist())
            parts = {j: self.labels[:, starts[j] : starts[j] + self.areas[j]] for j in images}
        else:
            parts = self.share.borrow(self.labels, meeting)
        found = copy.copy(self)
        found.labels = torch.cat([*parts.values(), self.labels[:, -1:]], 1)
        ends = list(itertools.accumulate((part.shape[1] for part in parts.values()), initial=0))
        found.offsets = self.offsets.clone()
        found.offsets[torch.tensor(list(parts), device=self.device)] = torch.tensor(ends[:-1], device=self.device)
        found.staged = {j: found.labels[:, start:end] for j, start, end in zip(parts, ends, ends[1:], strict=False)}
        return found

    def parcel(self, stage: ChainStore, meeting: Meeting) -> Tensor | None:
        """What all ranks must be sent of a step's chains, uint8; None where there is nobody, or each has its share."""
        return None if stage is self or self.share is not None else parcel(stage.staged, self.areas, meeting)

    def settle(self, stage: ChainStore, meeting: Meeting, parcels: Sequence[Tensor], good: Tensor) -> None:
        """Takes a step's chains over from `stage`, or all ranks' from their parcels where the step is ``good``."""
        if self.share is not None:
            self.share.give_back(self.labels, meeting, stage.staged, good)
        elif parcels:
            unpack(parcels, self.labels, self.starts, self.areas, meeting, good)

    def over(self, labels: Tensor, sweeps: Tensor) -> ChainStore:
        """This store with other tensors in the place of its labels and counts."""
        found = copy.copy(self)
        found.labels, found.sweeps = labels, sweeps
        return found

    def fetch(self, indices: Tensor, *, data: bool = False) -> Tensor:
        """The labels uint8 ``[N, R, *shape]`` at `indices`, or of images ``[N]`` of one shape; 255 beyond one or not drawn."""
        whole = self.images(data) if indices.dim() == 1 else None
        return self.labels[int(data and self.latent), indices] if whole is None else whole[indices]

    @cached_property
    def uniform(self) -> Shape | None:
        """The one size of all images."""
        return self.table[0] if len(set(self.table)) == 1 else None

    def images(self, data: bool = False) -> Tensor | None:
        """uint8 ``[D, R, *shape]``, a view of labels where all images have one shape and stand here; else None."""
        if self.uniform is None or self.share is not None or self.staged:
            return None
        return self.labels[int(data and self.latent), :-1].view(len(self), self.replicas, *self.uniform)

    def put(self, indices: Tensor, labels: Tensor, keep: Tensor, *, data: bool = False) -> None:
        """Writes labels uint8 ``[N, R, *shape]`` back to `indices` where ``keep`` (bool ``[N]``)."""
        keep = keep.view(-1, *[1] * (labels.dim() - 1))
        row = self.labels[int(data and self.latent)]
        row[indices.masked_fill(~keep, row.numel() - 1)] = labels
        row[-1:].fill_(contract.VOID)

    def advance(self, index: Tensor, sweeps: int, keep: Tensor) -> None:
        """Counts ``sweeps`` more for images ``index`` where ``keep``."""
        self.sweeps.index_add_(0, index, keep * sweeps)

    def pixel_indices(self, index: Tensor, shape: Shape, view: Tensor | None = None, cut: Tensor | None = None) -> Tensor:
        """int64 ``[N, R, *shape]``: where each pixel of a padded batch of images ``index`` (int64 ``[N]``, valid) is kept;
        beyond an image's size, the spare byte.

        view: int64 ``[N, 2, d]``, of images cut or turned: the corner, and where not 0, which axes run backwards; cut: int64
        ``[N, d]``, their own sizes, None: ``shape``.
        """
        return pixel_indices(self.sizes[index], self.offsets[index], self.replicas, self.labels.shape[1] - 1, shape, view, cut)

    @property
    def meta(self) -> Tensor:
        """int64 [5], on the CPU: contract version, replicas, latent and the seed's two halves."""
        low, high = contract.key_of(self.seed)
        return torch.tensor([contract.VERSION, self.replicas, int(self.latent), low, high], dtype=torch.int64, device="cpu")

    @property
    def saved(self) -> dict[str, Tensor]:
        """What a state holds: of all images, also where this rank has a share."""
        labels = self.labels if self.share is None else self.share.collect(self.labels)
        return {"labels": labels, "sweeps": self.sweeps, "sizes": self.sizes, "meta": self.meta}

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        if self.persistent:
            destination.update({prefix + name: part for name, part in self.saved.items()})

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping[str, object], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        own = {name.removeprefix(prefix): part for name, part in state_dict.items() if name.startswith(prefix)}
        foreign = set(own) if not self.persistent else set(own) - set(_SAVED)
        if strict:
            unexpected_keys.extend(prefix + name for name in sorted(foreign))
        # A state without chains leaves these as they are; fresh ones under loaded tables warn at their first visit.
        if self.persistent and (own or prefix == ""):
            self.take(own)

    def take(self, own: Mapping[str, Tensor]) -> None:
        """Takes over what `saved` gave, of a store that leaves its chains out of states too. Raises CheckpointError."""
        self.check(own)
        low, high = own["meta"].tolist()[3:]
        self.loads += 1
        self.labels.copy_(own["labels"] if self.share is None else self.share.cut(own["labels"]))
        self.sweeps.copy_(own["sweeps"])
        self.seed, self.fresh = int(low) | int(high) << 32, False

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError unless ``state`` is of these images and this contract, and holds what chains can hold."""
        whole = [len(self.labels), sum(self.areas) + 1]
        for name, like in (("labels", self.labels), ("sweeps", self.sweeps), ("sizes", self.sizes), ("meta", self.meta)):
            shape = whole if name == "labels" else list(like.shape)
            if name not in state or list(state[name].shape) != shape or state[name].dtype != like.dtype:
                got = f"{list(state[name].shape)} {state[name].dtype}" if name in state else "none"
                raise CheckpointError(f"chains: expected {name!r} of shape {shape} {like.dtype}, got {got}")
        version, replicas, latent, *halves = state["meta"].tolist()
        if version != contract.VERSION:
            raise CheckpointError(f"chains: expected bit contract version {contract.VERSION}, got {version}")
        if (replicas, latent) != (self.replicas, int(self.latent)) or not torch.equal(state["sizes"].cpu(), self.sizes.cpu()):
            raise CheckpointError("chains: expected the images this store was made for, got other sizes, replicas or latent")
        if not all(0 <= half < 1 << 32 for half in halves):
            raise CheckpointError(f"chains: expected a seed's halves of 32 bits, got {halves}")
        least, most = (int(bound) for bound in state["sweeps"].aminmax())
        if least < 0 or most > 1 << contract.SWEEP_BITS:
            raise CheckpointError(
                f"chains: expected from 0 to 2^{contract.SWEEP_BITS} sweeps over an image's life, got {least} to {most}"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the store as safetensors, whole or not at all. Raises OSError if the disk will not take it."""
        write(path, self.saved, kind="chains")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> ChainStore:
        """The store that `save` wrote. Raises CheckpointError for a truncated, foreign or newer file."""
        state = {name: value for name, value in read(path, kind="chains").items() if isinstance(value, Tensor)}
        if not {"sizes", "meta", "labels"} <= state.keys():
            raise CheckpointError(f"{path}: expected a tritoncrf chain store, got a file without sizes, labels or meta")
        with believed(path, "chains"):
            sizes, (_, replicas, latent, _, _) = state["sizes"].tolist(), state["meta"].tolist()
            # Sizes may claim any number of bytes: those of the labels are there.
            claimed, held = sum(math.prod(size) for size in sizes) * replicas + 1, list(state["labels"].shape)
            if held != [1 + latent, claimed]:
                raise CheckpointError(f"{path}: expected labels of shape {[1 + latent, claimed]} for its sizes, got {held}")
            store = cls(sizes, replicas=replicas, device=device, seed=0, latent=bool(latent))
            store.load_state_dict(state)
        return store
