"""What error flows back? ``E(y) - E(y')``: the sampled negative log-likelihood, where cross-entropy stood.

``-log p(y|x)`` has the gradient ``dE(y) - E_model[dE(y')]`` (Kirillov et al. 2016, eq. 6 and 9). With one sample y' it is
``[y' = l] - [y = l]`` on every pixel's logits and ``counts(y) - counts(y')`` on every table. The paper's (11), read literally
with psi as energies, has the opposite sign; this one is tested against autograd through an enumerated log Z. CD-K starts y' at
the data (Hinton 2002); PCD continues the image's own chain (Tieleman 2008). Pixels without a label are latent: a data phase
samples them given the labelled ones, and y is the labelling so completed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, Self

import torch
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.chain_lookup import fitting_chains
from tritoncrf.course import Course
from tritoncrf.fast import FastWeights
from tritoncrf.gradient import Sampled
from tritoncrf.graphs import NO_GRAPH, FactorGraph, owners
from tritoncrf.held_out import held_out
from tritoncrf.model_kinds import Model
from tritoncrf.model_protocol import CRF
from tritoncrf.objective import PLAIN, Objective
from tritoncrf.pace import AutoSweeps, Pace, pace_of
from tritoncrf.sampler import Sampler
from tritoncrf.statistics import Statistics, Tally
from tritoncrf.store import ChainStore
from tritoncrf.visit import METHODS, REDUCTIONS, Visit
from tritoncrf.visit_operator import OPERATOR

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CRFLoss(nn.Module, Generic[Model]):
    """The sampled negative log-likelihood of a `GridCRF`, or a `FactorCRF`, called where cross-entropy stood.

    crf: a submodule, so ``loss.parameters()`` are its tables. chains: the training set's `ChainStore`, which PCD needs; its
    replicas are used and its seed, unless ``seed`` is given. method: "pcd" continues each image's chain, "cd" starts at the
    data. sweeps: K per visit; "auto" or `AutoSweeps`: as many as the chains need (`pace`). fast: tables beside the model's that
    push persistent chains on (`fast`). ignore_index: the target of latent pixels. reduction: "mean" divides by the labelled,
    unclamped pixels of the batch, "sum" does not (the paper's 11), "none" gives each image its own sum. weight: float ``[L]``,
    by which the errors of labels on the logits count, the data's and the sample's alike (`reduction` says why). engine as in
    `Sampler`. validate: True checks values at once on a GPU too; by default a fault there makes the loss NaN, its gradient 0
    and ``loss.invalid`` true, moves no chain, and raises at the next call. objective: an `Objective` to put a cross-entropy of
    averaged conditionals beside the likelihood, or a margin; None: the likelihood. Raises ValueError or TypeError naming the
    argument.

    ``torch.compile`` of a step keeps one graph through the loss, unless it has fast tables or sweeps that follow the chains. To
    capture a step as a CUDA graph: make ``chains`` and all arguments static tensors (``index`` too), run a few plain steps on a
    side stream and ``loss.sampler.guard.settle()`` first; after a replay ``loss.invalid`` of the captured call tells of faults.

    Under `torch.distributed` (process_group, None: the initialised one) all ranks learn one model: errors of tables are summed,
    a mean is over the labelled pixels of all, and an image's chain is the same on any number of ranks. A network's gradients
    are to be averaged over ranks, as DDP and FSDP do; the tables, outside of them, need no more than the optimizer.

    In eval mode or without gradients the value is another: the negative log-pseudolikelihood per labelled pixel (see
    `forward`), which falls as the model gets better; no chain is read or written. A validation loop that sets neither
    ``loss.eval()`` nor ``torch.no_grad()`` is learning.

    ``loss.chains`` is a submodule, so it moves and is saved with the loss (``state_dict``), and may be set. A deep copy of the
    loss, or of a model around it, has no chains, for an average of weights needs none; ``copied.chains =
    copy.deepcopy(loss.chains)`` gives it some. Keep the loss outside of checkpointed functions, which would run it twice.

    >>> crf = GridCRF(3, Neighborhood.nearest(8))
    >>> loss = CRFLoss(crf, method="cd", seed=0)
    >>> logits = torch.zeros(2, 3, 8, 9, requires_grad=True)
    >>> loss(logits, torch.zeros(2, 8, 9, dtype=torch.long)).backward()
    >>> logits.grad.shape, crf.pairwise.grad.shape
    (torch.Size([2, 3, 8, 9]), torch.Size([4, 3, 3]))
    """

    visits: Tensor
    """int64 []: the running number that CD without chains names its images' random numbers by."""
    weight: Tensor | None
    pace: Tensor | None
    """int64 [8]: where sweeps that follow the chains stand (`pace`)."""
    fast: Tensor | None
    """float32, as the tables: fast ones (`fast`)."""
    chains: ChainStore | None
    """The training set's, or None; may be set."""

    def __init__(
        self, crf: Model, *, chains: ChainStore | None = None, method: str = "pcd", sweeps: int | str | AutoSweeps = 10,
        ignore_index: int = 255, reduction: str = "mean", engine: str = "auto", seed: int | None = None,
        validate: bool | None = None, weight: Tensor | None = None, process_group: ProcessGroup | None = None,
        objective: Objective | None = None, fast: FastWeights | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(crf, CRF):
            raise TypeError(f"crf: expected a GridCRF or a FactorCRF, got {type(crf).__name__}")
        validation.choice("method", method, METHODS)
        validation.choice("reduction", reduction, REDUCTIONS)
        ignore_index = validation.whole("ignore_index", ignore_index, -(1 << 63))
        pace, first = pace_of(sweeps)
        if fast is not None and (not isinstance(fast, FastWeights) or method != "pcd"):
            raise ValueError(f"fast: expected FastWeights with method='pcd', or None, got {fast!r} with {method!r}")
        if 0 <= ignore_index < crf.num_labels:
            raise ValueError(f"ignore_index: expected none of the {crf.num_labels} labels, got {ignore_index}")
        if objective is not None and not isinstance(objective, Objective):
            raise TypeError(f"objective: expected an Objective or None, got {type(objective).__name__}")
        objective = objective or PLAIN
        objective.check(first)
        # Without a seed of its own the loss draws as its chains say, also after they were loaded from a file.
        fitting_chains(chains, crf, method)
        if weight is not None:
            weight = validation.tensor("weight", weight).detach().float()
            if weight.shape != (crf.num_labels,) or not bool(((weight >= 0) & weight.isfinite()).all()):
                raise ValueError(
                    f"weight: expected {crf.num_labels} finite numbers of at least 0, one a label, got {list(weight.shape)} "
                    f"from {float(weight.min()) if weight.numel() else 'none'}"
                )
        follows = seed is None and chains is not None
        drawn = seed is None and (chains is None or chains.drawn)
        if seed is None:
            seed = contract.fresh_seed() if chains is None else chains.seed
        self.crf: Model = crf
        self.engine = engine
        # What a compiler would look for in the visit, which it does not open.
        self._each = reduction == "none"
        self.sampler = Sampler(crf, engine, seed, validate=validate)
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64, device=crf.device))
        self.invalid: Tensor | None = None
        self._statistics: Statistics | Tally | None = None
        self.register_buffer("weight", None if weight is None else weight.clone())
        options = (ignore_index, reduction, follows, drawn, process_group, objective)
        self._visit = Visit(self.sampler, None, method, first, *options)
        # Neither is in the state of a loss without it.
        self.register_buffer("pace", None if pace is None else Pace.fresh(pace.bounds, crf.device))
        tables = crf.tables.pairwise
        self.register_buffer("fast", None if fast is None else torch.zeros(tables.shape, device=crf.device))
        self._pace, self._fast = pace, fast
        # Last, so that it stands last in the loss's state, and in a model's whose last part the loss is.
        self.chains = chains

    def __setattr__(self, name: str, value: object) -> None:
        if name == "chains":
            fitting_chains(value, self.crf, self.method)
            # `nn.Module` keeps modules; a None in the place of one must be kept as one too.
            self.register_module(name, value if isinstance(value, ChainStore) else None)
            self._visit.chains = self.chains
            return
        super().__setattr__(name, value)  # type: ignore[arg-type]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        if self.chains is not None:
            memo.setdefault(id(self.chains), None)
        found = type(self).__new__(type(self))
        memo[id(self)] = found
        found.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        return found

    @property
    def statistics(self) -> Statistics | None:
        """Of the last call; made when they are asked for. None before the first one, and may be set to it."""
        return self._statistics.statistics() if isinstance(self._statistics, Tally) else self._statistics

    @statistics.setter
    def statistics(self, statistics: Statistics | None) -> None:
        self._statistics = statistics

    @property
    def process_group(self) -> ProcessGroup | None:
        return self._visit.group

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
        """K of the next visit; may be set between calls, also to what follows the chains."""
        return self._course().sweeps(self._visit.sweeps)

    @sweeps.setter
    def sweeps(self, sweeps: int | str | AutoSweeps) -> None:
        pace, first = pace_of(sweeps)
        self.objective.check(first)
        self._pace, self._visit.sweeps = pace, first
        self.pace = None if pace is None else Pace.fresh(pace.bounds, self.crf.device)

    def _course(self) -> Course:
        pace = None if self._pace is None or self.pace is None else (self._pace, self.pace)
        return Course(pace, None if self._fast is None or self.fast is None else (self._fast, self.fast))

    @property
    def objective(self) -> Objective:
        """What is learned by."""
        return self._visit.objective

    @property
    def seed(self) -> int:
        return self.sampler.seed

    def get_extra_state(self) -> Tensor:
        """Seed and contract version; waits for the device and raises if an earlier call was bad."""
        self.sampler.guard.settle()
        return torch.tensor([contract.VERSION, *contract.key_of(self.seed)], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        version, low, high = state.tolist()
        if version != contract.VERSION:
            raise ValueError(f"state: expected bit contract version {contract.VERSION}, got {version}")
        self.sampler.seed = int(low) | int(high) << 32

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping[str, object], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        # Before the tables are loaded: chains of other images are an error, after which nothing has changed.
        first = f"{prefix}chains."
        own = {name.removeprefix(first): part for name, part in state_dict.items() if name.startswith(first)}
        if self.chains is not None and self.chains.persistent and own:
            self.chains.check(own)
        args = (state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(*args)

    def extra_repr(self) -> str:
        return f"method={self.method!r}, sweeps={self.sweeps}, reduction={self.reduction!r}"

    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None = None, *, sizes: Tensor | None = None,
        mask: Tensor | None = None, clamp: Tensor | None = None, kinds: Tensor | None = None, gates: Tensor | None = None,
        view: Tensor | None = None, graph: FactorGraph | None = None,
    ) -> Tensor:  # fmt: skip
        """``E(y) - E(y')`` reduced to a float32 scalar: noisy and often negative, its gradient is what counts.

        In eval mode or without gradients: ``-log p(y_i | its labelled neighbours)``, the mean over labelled, unclamped pixels
        (or with "sum" the sum), in nats, without a gradient. Pixels without a label are left out as if they did not exist.

        logits: ``[N, L, *shape]``, any float type; target: integers ``[N, *shape]``, ``ignore_index`` where no label is known;
        index: integers ``[N]``, the images' positions in the data set (`tritoncrf.datasets.Indexed` yields them); CD without
        chains does not use it.
        sizes: integers ``[N, d]``, the images' own sizes where the batch is padded; mask: bool ``[N, *shape]``, False where no
        pixel exists; clamp: bool ``[N, *shape]``, True where the label is known at test time too.
        kinds: uint8 ``[N, Ck, *shape]``, gates: float ``[N, G, Cg, *shape]`` in [0, 1], for a model that has them (`GridCRF`).
        view: integers ``[N, 2, d]``, for images that are cut or turned parts of what their chains are chains of: the corner of
        the cut, and 1 for axes that run backwards; the chain is cut and turned alike (`datasets.RandomView` makes them).
        graph: for a `FactorCRF`, a batch of G graphs in the place of N images, as in `Sampler.init`; target is ``[V]`` then.
        A gate that wants a gradient, as a network's own do, gets ``G[y_i, y_j] - G[y'_i, y'_j]``, straight through rounding.
        """
        if not isinstance(graph, FactorGraph) or gates is not None:
            # Says what does not belong together, as the visit does of the rest.
            self.crf.fold(graph, sizes=sizes, kinds=kinds, gates=gates, view=view)
        logits, gates = validation.tensor("logits", logits), (gates if graph is None else self.crf.flows(graph))
        compiled = OPERATOR and torch.compiler.is_compiling()
        # How many values the operators return, 0 for a single one.
        images = 0 if not compiled else len(logits) if graph is None else len(graph.first) - 1
        if not (self.training and torch.is_grad_enabled()):
            plain_gates = None if gates is None else validation.tensor("gates", gates).detach()
            held = (logits.detach(), target, sizes, mask, clamp, kinds, plain_gates)
            if compiled:
                carried = NO_GRAPH if graph is None else graph.carried
                held_value, self.invalid = torch.ops.tritoncrf.held_out(
                    self._visit, *held, images if self._each else 0, carried
                )
            else:
                held_value, self.invalid = held_out(self._visit, *held, graph)
            return held_value  # type: ignore[no-any-return]
        store = self.chains
        state = (self.visits, None, None) if store is None else (self.visits, store.labels, store.sweeps)
        # Once: a parametrization would compute them anew each time.
        pairwise, gated = self.crf.tables
        if gates is not None:
            validation.tensor("gates", gates)
        flow = gates is not None and gates.requires_grad
        if flow and self._each and graph is not None:
            raise ValueError("reduction: expected 'mean' or 'sum' where a graph's gates want a gradient, got 'none'")
        plain_gates = None if gates is None else gates.detach()
        given = (target, index, sizes, mask, clamp, kinds, plain_gates, self.weight, view, flow, self._each, *state)
        if compiled and self.pace is None and self.fast is None:
            tables = pairwise.detach(), None if gated is None else gated.detach()
            passed = *given, images, NO_GRAPH if graph is None else graph.carried
            found = torch.ops.tritoncrf.visit(self._visit, logits.detach(), *tables, *passed)
            self._statistics = Statistics(*found[7:])
        else:
            found, self._statistics = self._visit(  # type: ignore[misc]
                logits, pairwise, gated, *given, graph=graph, course=self._course()
            )
        value, *errors, factor, self.invalid = found[:7]
        result: Tensor = Sampled.apply(  # type: ignore[no-untyped-call]
            logits, pairwise, gated, gates, owners(graph) if self._each else None, value, factor, *errors
        )
        return result
