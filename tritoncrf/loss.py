"""What error flows back? ``E(y) - E(y')``: the sampled negative log-likelihood, where cross-entropy stood.

``-log p(y|x)`` has the gradient ``dE(y) - E_model[dE(y')]`` (Kirillov et al. 2016, eq. 6 and 9). With one sample y' it is
``[y' = l] - [y = l]`` on every pixel's logits and ``counts(y) - counts(y')`` on every table. The paper's (11), read literally
with psi as energies, has the opposite sign; this one is tested against autograd through an enumerated log Z. CD-K starts y' at
the data (Hinton 2002); PCD continues the image's own chain (Tieleman 2008). Pixels without a label are latent: a data phase
samples them given the labelled ones, and y is the labelling so completed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.chains import ChainState, ChainStore
from tritoncrf.eager import uncompiled
from tritoncrf.gradient import Sampled, errors
from tritoncrf.model import GridCRF
from tritoncrf.monitor import Statistics, TableWatch
from tritoncrf.sampler import Sampler
from tritoncrf.validation import Guard

METHODS = ("pcd", "cd")
REDUCTIONS = ("mean", "sum")


class CRFLoss(nn.Module):
    """The sampled negative log-likelihood of a `GridCRF`, called where cross-entropy stood.

    crf: a submodule, so ``loss.parameters()`` are its tables. chains: the training set's `ChainStore`, which PCD needs; its
    replicas are used and its seed, unless ``seed`` is given. method: "pcd" continues each image's chain, "cd" starts at the
    data. sweeps: K per visit. ignore_index: the target of latent pixels. reduction: "mean" divides by the labelled, unclamped
    pixels of the batch, "sum" does not (the paper's 11). engine as in `Sampler`. validate: True checks values at once on a GPU
    too; by default a fault there makes the loss NaN, its gradient 0 and ``loss.invalid`` true, moves no chain, and raises at
    the next call. Raises ValueError or TypeError naming the argument.

    In eval mode or without gradients no chain is read or written: K sweeps from a fresh draw. Keep the loss outside of
    checkpointed functions, which would run it twice.

    >>> crf = GridCRF(3, Neighborhood.nearest(8))
    >>> loss = CRFLoss(crf, method="cd", seed=0)
    >>> logits = torch.zeros(2, 3, 8, 9, requires_grad=True)
    >>> loss(logits, torch.zeros(2, 8, 9, dtype=torch.long)).backward()
    >>> logits.grad.shape, crf.pairwise.grad.shape
    (torch.Size([2, 3, 8, 9]), torch.Size([4, 3, 3]))
    """

    visits: Tensor
    """int64 []: the running number that CD without chains names its images' random numbers by."""

    def __init__(
        self, crf: GridCRF, *, chains: ChainStore | None = None, method: str = "pcd", sweeps: int = 10,
        ignore_index: int = 255, reduction: str = "mean", engine: str = "auto", seed: int | None = None,
        validate: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(crf, GridCRF):
            raise TypeError(f"crf: expected a GridCRF, got {type(crf).__name__}")
        self.method = validation.choice("method", method, METHODS)
        self.reduction = validation.choice("reduction", reduction, REDUCTIONS)
        self.sweeps = validation.whole("sweeps", sweeps, 1)
        self.ignore_index = validation.whole("ignore_index", ignore_index, -(1 << 63))
        if 0 <= ignore_index < crf.num_labels:
            raise ValueError(f"ignore_index: expected none of the {crf.num_labels} labels, got {ignore_index}")
        if chains is not None and not isinstance(chains, ChainStore):
            raise TypeError(f"chains: expected a ChainStore or None, got {type(chains).__name__}")
        if method == "pcd" and chains is None:
            raise ValueError("chains: expected a ChainStore over the training images' sizes for method='pcd', got None")
        if chains is not None and chains.sizes.shape[1] != crf.neighborhood.ndim:
            raise ValueError(
                f"chains: expected images of {crf.neighborhood.ndim} axes as the neighbourhood, got {chains.sizes.shape[1]}"
            )
        # Without a seed of its own the loss draws as its chains say, also after they were loaded from a file.
        self._follows = seed is None and chains is not None
        if seed is None:
            seed = contract.fresh_seed() if chains is None else chains.seed
        self.crf = crf
        self.chains = chains
        self.engine = engine
        self.sampler = Sampler(crf, engine, seed, validate=validate)
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64))
        self.invalid: Tensor | None = None
        self.statistics: Statistics | None = None
        self._watch = TableWatch()

    @property
    def seed(self) -> int:
        return self.sampler.seed

    def get_extra_state(self) -> Tensor:
        """Seed and contract version; waits for the device and raises if an earlier call was bad."""
        self.sampler.guard.settle()
        return torch.tensor([contract.VERSION, *contract.key_of(self.seed)], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        version, low, high = state.tolist()
        if version != contract.VERSION:
            raise ValueError(f"state: expected bit contract version {contract.VERSION}, got {version}")
        self.sampler.seed = int(low) | int(high) << 32

    def extra_repr(self) -> str:
        return f"method={self.method!r}, sweeps={self.sweeps}, reduction={self.reduction!r}, chains={self.chains!r}"

    @uncompiled
    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None = None, *, sizes: Tensor | None = None,
        mask: Tensor | None = None, clamp: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``E(y) - E(y')`` reduced to a float32 scalar: noisy and often negative, its gradient is what counts.

        logits: ``[N, L, *shape]``, any float type; target: integers ``[N, *shape]``, ``ignore_index`` where no label is known;
        index: integers ``[N]``, the images' positions in the data set (`tritoncrf.datasets.Indexed` yields them); CD without
        chains does not use it.
        sizes: integers ``[N, d]``, the images' own sizes where the batch is padded; mask: bool ``[N, *shape]``, False where no
        pixel exists; clamp: bool ``[N, *shape]``, True where the label is known at test time too.
        """
        with self.sampler.guard.call():
            return self._forward(logits, target, index, sizes, mask, clamp)

    def _forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None, sizes: Tensor | None, mask: Tensor | None,
        clamp: Tensor | None,
    ) -> Tensor:  # fmt: skip
        guard, device = self.sampler.guard, self.crf.device
        validation.logits(logits, self.crf.num_labels, self.crf.neighborhood.ndim, device)
        images, shape = len(logits), tuple(logits.shape[2:])
        sizes, mask = validation.extents(guard, images, shape, sizes, mask, device)
        present = validation.inside(shape, images, sizes, mask, device)
        if clamp is not None:
            clamp = validation.shaped("clamp", clamp, [(images, *shape)], [torch.bool], device)
        labelled, known = self._targets(guard, logits, target, present, clamp)
        learning = self.training and torch.is_grad_enabled()
        if self._follows and self.chains is not None:
            self.sampler.seed = self.chains.seed
        store = self.chains if learning else None
        index = self._index(guard, index, images, shape, sizes, learning)
        count = None if store is None else store.sweeps[index]
        held = labelled if clamp is None else labelled | (clamp & present)
        void = torch.full_like(known, contract.VOID)[:, None]
        replicas = 1 if self.chains is None else self.chains.replicas
        latent = store.fetch(index, shape, data=True) if store is not None and store.latent else void
        start = torch.where(labelled[:, None], known[:, None], latent)
        phases = ("data", "free") if learning else ("inference", "inference")
        data = self.sampler.init(
            logits,
            start.expand(-1, replicas, *shape),
            index,
            clamp=held,
            replicas=replicas,
            phase=phases[0],
            sizes=sizes,
            mask=mask,
            count=count,
        )
        self.sampler.run(data, self.sweeps)
        if learning and self.method == "pcd" and self.chains is not None:
            start = self.chains.fetch(index, shape)
            if clamp is not None:
                start = torch.where(clamp[:, None], known[:, None], start)
        elif learning:
            start = data.labels
        else:
            start = void if clamp is None else torch.where(clamp[:, None], known[:, None], void)
        free = self.sampler.init(
            logits, start.expand(-1, replicas, *shape), index, clamp=clamp, replicas=replicas, phase=phases[1],
            sizes=sizes, mask=mask, count=count,
        )  # fmt: skip
        self.sampler.run(free, self.sweeps)
        bad = guard.flag(device)
        if store is not None:
            self._keep(store, index, data, free, ~bad)
        elif learning:
            self.visits += torch.where(bad, 0, images)
        if learning:
            self._watch.look(self.crf.pairwise)
        return self._value(logits, known, labelled if clamp is None else labelled & ~clamp, data, free, bad)

    def _targets(
        self, guard: Guard, logits: Tensor, target: Tensor, present: Tensor, clamp: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Which pixels are labelled (bool), and their labels (uint8, 255 elsewhere), both ``[N, *shape]``."""
        labels = self.crf.num_labels
        target = validation.shaped("target", target, [tuple(present.shape)], validation.INTEGERS, self.crf.device).long()
        validation.label_values(guard, "target", target, labels, present, also=self.ignore_index)
        labelled = present & (target != self.ignore_index) & (target >= 0) & (target < labels)
        known = torch.where(labelled, target, contract.VOID).to(torch.uint8)
        chosen = logits.detach().gather(1, torch.where(labelled, target, 0)[:, None])[:, 0]
        forbidden = labelled & torch.isneginf(chosen)
        guard.require(~forbidden, "target: expected labels that the logits allow",
                      lambda: f"{int(target[forbidden][0])} with logit -inf at {validation.first(forbidden)}")  # fmt: skip
        if clamp is not None:
            lost = clamp & present & ~labelled
            guard.require(~lost, "clamp: expected a label in target at every clamped pixel",
                          lambda: f"ignore_index at {validation.first(lost)}")  # fmt: skip
        return labelled, known

    def _index(
        self, guard: Guard, index: Tensor | None, images: int, shape: tuple[int, ...], sizes: Tensor | None, learning: bool
    ) -> Tensor:
        """The positions in the data set that name chains and random numbers, int64 ``[N]``."""
        device, store = self.crf.device, self.chains
        if index is not None:
            index = validation.tensor("index", index).to(device, non_blocking=True)
            index = validation.shaped("index", index, [(images,)], validation.INTEGERS, device).long()
        if not learning:
            return torch.arange(images, device=device) if index is None else index
        if store is None:
            return self.visits + torch.arange(images, device=device)
        if store.device != device:
            raise ValueError(f"chains: expected a ChainStore on {device} (that of the CRF's tables), got {store.device}")
        if index is None:
            raise ValueError("index: expected integers [N], each image's position in the data set, got None")
        given = index
        unknown = (given < 0) | (given >= len(store))
        guard.require(~unknown, f"index: expected positions from 0 to {len(store) - 1}", lambda: f"{int(given[unknown][0])}")
        index = given.clamp(0, len(store) - 1)
        kept = store.sizes[index]
        now = torch.tensor([shape], device=device).expand_as(kept) if sizes is None else sizes
        moved = (kept != now).any(1)
        guard.require(
            ~moved,
            "sizes: expected each image at the size its chain has",
            lambda: f"{now[moved][0].tolist()} for image {int(given[moved][0])} of {kept[moved][0].tolist()}",
        )
        return index

    def _keep(self, store: ChainStore, index: Tensor, data: ChainState, free: ChainState, good: Tensor) -> None:
        # An image that stands twice in a batch was drawn twice with the same random numbers: the first one's chain stays.
        order = torch.arange(len(index), device=index.device)
        again = ((index[:, None] == index) & (order[:, None] > order)).any(1)
        keep = good & ~again
        if self.method == "pcd":
            store.put(index, free.labels, keep)
        if store.latent:
            store.put(index, data.labels, keep, data=True)
        store.advance(index, self.sweeps, keep)

    def _value(self, logits: Tensor, known: Tensor, counted: Tensor, data: ChainState, free: ChainState, bad: Tensor) -> Tensor:
        unary, tables = errors(self.sampler, data, free)
        labelled = counted.sum()
        factor = 1.0 / labelled.clamp(min=1) if self.reduction == "mean" else unary.new_ones(())
        factor = torch.where(labelled > 0, factor, 0.0)
        held = logits.detach().float().masked_fill(unary == 0, 0.0)
        gap = (unary * held).sum(dtype=torch.float64) + (tables * self.crf.pairwise.detach()).sum(dtype=torch.float64)
        value = torch.where(bad, torch.nan, gap * factor).float()
        updates = free.plan.free.sum()
        right = ((free.labels == known[:, None]) & counted[:, None]).sum()
        self.invalid = bad
        self.statistics = Statistics(
            flip_rate=free.flips.sum() / (updates * free.replicas * self.sweeps).clamp(min=1),
            energy_gap=(gap / labelled.clamp(min=1)).float(),
            chain_accuracy=right / (labelled * free.replicas).clamp(min=1),
            labelled=labelled,
        )
        unary = torch.where(bad, 0.0, unary * factor)
        tables = torch.where(bad, 0.0, tables * factor)
        result: Tensor = Sampled.apply(  # type: ignore[no-untyped-call]
            logits, self.crf.pairwise, value, unary, tables
        )
        return result
