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
from tritoncrf.chains import ChainStore
from tritoncrf.gradient import Sampled
from tritoncrf.model import GridCRF
from tritoncrf.monitor import Statistics
from tritoncrf.sampler import Sampler
from tritoncrf.visit import OPERATOR, Visit

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

    ``torch.compile`` of a step keeps one graph through the loss (from torch 2.13 on). To capture a step as a CUDA graph: make
    ``chains`` and all arguments static tensors (``index`` too), run a few plain steps on a side stream and
    ``loss.sampler.guard.settle()`` first; after a replay ``loss.invalid`` of the captured call tells of faults.

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
        validation.choice("method", method, METHODS)
        validation.choice("reduction", reduction, REDUCTIONS)
        validation.whole("sweeps", sweeps, 1)
        validation.whole("ignore_index", ignore_index, -(1 << 63))
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
        follows = seed is None and chains is not None
        if seed is None:
            seed = contract.fresh_seed() if chains is None else chains.seed
        self.crf = crf
        self._chains = chains
        self.engine = engine
        self.sampler = Sampler(crf, engine, seed, validate=validate)
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64))
        self.invalid: Tensor | None = None
        self.statistics: Statistics | None = None
        self._visit = Visit(self.sampler, chains, method, sweeps, ignore_index, reduction, follows)

    @property
    def chains(self) -> ChainStore | None:
        return self._chains

    @property
    def method(self) -> str:
        return self._visit.method

    @property
    def reduction(self) -> str:
        return self._visit.reduction

    @property
    def ignore_index(self) -> int:
        return self._visit.ignore_index

    @property
    def sweeps(self) -> int:
        """K per visit; may be set between calls."""
        return self._visit.sweeps

    @sweeps.setter
    def sweeps(self, sweeps: int) -> None:
        self._visit.sweeps = validation.whole("sweeps", sweeps, 1)

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

    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None = None, *, sizes: Tensor | None = None,
        mask: Tensor | None = None, clamp: Tensor | None = None, kinds: Tensor | None = None, gates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``E(y) - E(y')`` reduced to a float32 scalar: noisy and often negative, its gradient is what counts.

        logits: ``[N, L, *shape]``, any float type; target: integers ``[N, *shape]``, ``ignore_index`` where no label is known;
        index: integers ``[N]``, the images' positions in the data set (`tritoncrf.datasets.Indexed` yields them); CD without
        chains does not use it.
        sizes: integers ``[N, d]``, the images' own sizes where the batch is padded; mask: bool ``[N, *shape]``, False where no
        pixel exists; clamp: bool ``[N, *shape]``, True where the label is known at test time too.
        kinds: uint8 ``[N, Ck, *shape]``, gates: float ``[N, G, Cg, *shape]`` in [0, 1], for a model that has them (`GridCRF`).
        A gate that wants a gradient, as a network's own do, gets ``G[y_i, y_j] - G[y'_i, y'_j]``, straight through rounding.
        """
        learning = self.training and torch.is_grad_enabled()
        store = self._chains
        state = (self.visits, None, None) if store is None else (self.visits, store.labels, store.sweeps)
        # Once: a parametrization would compute them anew each time.
        pairwise, gated = self.crf.tables
        if gates is not None:
            validation.tensor("gates", gates)
        flow = gates is not None and gates.requires_grad and torch.is_grad_enabled()
        told_gates = None if gates is None else gates.detach()
        given = (target, index, sizes, mask, clamp, kinds, told_gates, flow, learning, *state)
        if OPERATOR and torch.compiler.is_compiling():
            tables = pairwise.detach(), None if gated is None else gated.detach()
            found = torch.ops.tritoncrf.visit(self._visit, logits.detach(), *tables, *given)
        else:
            found = self._visit(logits, pairwise, gated, *given)
        value, unary, *errors, self.invalid = found[:6]
        self.statistics = Statistics(*found[6:])
        result: Tensor = Sampled.apply(  # type: ignore[no-untyped-call]
            logits, pairwise, gated, gates, value, unary, *errors
        )
        return result
