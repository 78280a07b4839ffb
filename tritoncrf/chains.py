"""Where is each chain? `ChainState` of a batch being sampled, `ChainStore` of a whole data set between its visits.

Persistent contrastive divergence (Tieleman 2008; Kirillov et al. 2016, section 3) keeps one labelling per training image:
one byte a pixel and replica, beside a count of sweeps done, an offset and a size an image.

A store is an `nn.Module`, so that chains move and are saved with the loss they belong to. Its tensors are not registered as
buffers: what wraps a model sends those from the first rank to all at every step, or averages them, and a chain is neither.
"""

from __future__ import annotations

import copy
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.checkpoint import CheckpointError, read, write
from tritoncrf.engines import Plan, Tables, Work
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
    sites: int | None
    """Free sites of all chains, where counting them stalls nothing."""
    field: Tensor | None = None
    """What the engine keeps for the incremental way."""
    rate: float | None = None
    """Flips per site update of an earlier run, where the host knows it."""
    version: tuple[int, ...] | None = None
    """Addresses and version counters of the parameters that ``tables`` were rounded from, where they have some."""

    @property
    def labels(self) -> Tensor:
        """uint8 ``[N, R, *shape]``, a fresh tensor; 255 where no pixel exists."""
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


_MOVED = ("labels", "sweeps", "sizes", "offsets")
_SAVED = ("labels", "sweeps", "sizes", "meta")


class ChainStore(nn.Module):
    """One label map per image index and replica, allocated once on ``device``.

    sizes: the images' sizes, a sequence of tuples or an integer tensor ``[D, d]``; replicas: chains an image, up to 65536;
    seed: of the chains' random numbers, None takes 64 bits from torch's generator; latent: also keep the data phase's chain
    (a second byte a pixel), for images with pixels whose label is not known; persistent: False leaves the chains out of
    ``state_dict``. A label of 255 means "not drawn yet": the first visit draws it from the network's marginals. Raises
    ValueError or TypeError naming the argument.

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
    fresh: bool
    """Neither visited nor loaded yet."""

    def __init__(
        self, sizes: Iterable[Sequence[int]] | Tensor, *, replicas: int = 1, device: str | torch.device = "cpu",
        seed: int | None = None, latent: bool = False, persistent: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        try:
            rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
            table = [tuple(operator.index(n) for n in size) for size in rows]
        except TypeError:
            raise TypeError(f"sizes: expected a sequence of tuples of integers or a tensor [D, d], got {sizes!r:.80}") from None
        if not table or not table[0] or len({len(size) for size in table}) != 1:
            raise ValueError(f"sizes: expected a size of as many axes for every image, at least one image, got {table[:3]}...")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed: expected an integer or None, got {seed!r}")
        for place, size in enumerate(table):
            if not all(n >= 1 for n in size):
                raise ValueError(f"sizes[{place}]: expected whole numbers of at least 1, got {size}")
            if math.prod(size) >= 1 << contract.SITE_BITS:
                raise ValueError(f"sizes[{place}]: expected fewer than 2^32 pixels, got {tuple(size)}")
        self.replicas = validation.whole("replicas", replicas, 1, 1 << contract.REPLICA_BITS)
        self.seed = contract.fresh_seed() if seed is None else seed % (1 << 64)
        self.latent, self.persistent, self.fresh = latent, persistent, True
        self.sizes = torch.tensor(table, dtype=torch.int64, device=device)
        areas = self.sizes.prod(1) * replicas
        self.offsets = areas.cumsum(0) - areas
        self.sweeps = torch.zeros(len(table), dtype=torch.int64, device=self.device)
        # The last byte is where writes go that must not land: padding, second occurrences, voided batches.
        total = sum(math.prod(size) for size in table) * replicas
        phases = 2 if latent else 1
        self.labels = torch.full((phases, total + 1), contract.VOID, dtype=torch.uint8, device=self.device)

    @property
    def device(self) -> torch.device:
        # That of a tensor: "cuda" and "cuda:0" are the same place, but not the same torch.device.
        return self.sizes.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in _MOVED:
            setattr(self, name, fn(getattr(self, name)))
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

    def over(self, labels: Tensor, sweeps: Tensor) -> ChainStore:
        """This store with other tensors in the place of its labels and counts."""
        found = copy.copy(self)
        found.labels, found.sweeps = labels, sweeps
        return found

    def fetch(self, places: Tensor, *, data: bool = False) -> Tensor:
        """The labels uint8 ``[N, R, *shape]`` at `places`; 255 beyond an image's size or where not drawn."""
        return self.labels[int(data and self.latent), places]

    def put(self, places: Tensor, labels: Tensor, keep: Tensor, *, data: bool = False) -> None:
        """Writes labels uint8 ``[N, R, *shape]`` back to `places` where ``keep`` (bool ``[N]``)."""
        keep = keep.view(-1, *[1] * (labels.dim() - 1))
        row = self.labels[int(data and self.latent)]
        row[torch.where(keep, places, row.numel() - 1)] = labels
        row[-1] = contract.VOID

    def advance(self, index: Tensor, sweeps: int, keep: Tensor) -> None:
        """Counts ``sweeps`` more for images ``index`` where ``keep``."""
        self.sweeps.index_add_(0, index, torch.where(keep, sweeps, 0))

    def places(self, index: Tensor, shape: Shape) -> Tensor:
        """int64 ``[N, R, *shape]``: where each pixel of a padded batch of images ``index`` (int64 ``[N]``, valid) is kept;
        beyond an image's size, the spare byte."""
        sizes = self.sizes[index]
        axes = len(shape)
        expand = (-1, 1, *[1] * axes)
        pixel = torch.zeros((), dtype=torch.int64, device=self.device)
        present = torch.ones((), dtype=torch.bool, device=self.device)
        for axis, length in enumerate(shape):
            steps = torch.arange(length, device=self.device).view(*[1] * (2 + axis), -1, *[1] * (axes - 1 - axis))
            own = sizes[:, axis].view(expand)
            pixel = pixel * own + steps
            present = present & (steps < own)
        replica = torch.arange(self.replicas, device=self.device).view(1, -1, *[1] * axes)
        places = self.offsets[index].view(expand) + replica * sizes.prod(1).view(expand) + pixel
        return torch.where(present, places, self.labels.shape[1] - 1)

    @property
    def meta(self) -> Tensor:
        """int64 [5], on the CPU: contract version, replicas, latent and the seed's two halves."""
        low, high = contract.key_of(self.seed)
        return torch.tensor([contract.VERSION, self.replicas, int(self.latent), low, high], dtype=torch.int64)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        for name in _SAVED if self.persistent else ():
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping[str, object], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        own = {name.removeprefix(prefix): part for name, part in state_dict.items() if name.startswith(prefix)}
        foreign = set(own) if not self.persistent else set(own) - set(_SAVED)
        if strict:
            unexpected_keys.extend(prefix + name for name in sorted(foreign))
        # A state without chains leaves these as they are; fresh ones under loaded tables warn at their first visit.
        if not self.persistent or not (own or prefix == ""):
            return
        self.check(own)
        low, high = own["meta"].tolist()[3:]
        self.labels.copy_(own["labels"])
        self.sweeps.copy_(own["sweeps"])
        self.seed, self.fresh = int(low) | int(high) << 32, False

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError unless ``state`` is of these images and this contract."""
        for name in _SAVED:
            kept = getattr(self, name)
            if name not in state or state[name].shape != kept.shape or state[name].dtype != kept.dtype:
                got = f"{list(state[name].shape)} {state[name].dtype}" if name in state else "none"
                raise CheckpointError(f"chains: expected {name!r} of shape {list(kept.shape)} {kept.dtype}, got {got}")
        version, replicas, latent = state["meta"].tolist()[:3]
        if version != contract.VERSION:
            raise CheckpointError(f"chains: expected bit contract version {contract.VERSION}, got {version}")
        if (replicas, latent) != (self.replicas, int(self.latent)) or not torch.equal(state["sizes"].cpu(), self.sizes.cpu()):
            raise CheckpointError("chains: expected the images this store was made for, got other sizes, replicas or latent")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the store as safetensors, whole or not at all. Raises OSError if the disk will not take it."""
        write(path, {name: getattr(self, name) for name in _SAVED}, kind="chains")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> ChainStore:
        """The store that `save` wrote. Raises CheckpointError for a truncated, foreign or newer file."""
        state = {name: value for name, value in read(path, kind="chains").items() if isinstance(value, Tensor)}
        if "sizes" not in state or "meta" not in state:
            raise CheckpointError(f"{path}: expected a tritoncrf chain store, got a file without sizes")
        meta = state["meta"].tolist()
        store = cls(state["sizes"], replicas=meta[1], device=device, seed=0, latent=bool(meta[2]))
        store.load_state_dict(state)
        return store
