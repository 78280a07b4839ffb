"""What is the answer? Marginals by averaged conditionals, max-marginal labels, low-energy labels by annealing.

Max-marginal inference (Kirillov et al. 2016, eq. 4) takes each pixel's most probable label under its marginal, which is
estimated by the mean of the local conditionals (16) over sweeps: ``p(y_i) = E[p(y_i | rest)]``, of lower variance than
counting labels (Rao-Blackwell). The first sample may be drawn from other logits, as the paper draws it from those of the
pre-trained network (section 5): from a random labelling the chain takes extremely long.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from tritoncrf import contract, diagnostics, validation
from tritoncrf.chains import ChainState
from tritoncrf.edge_inputs import Edges, Given
from tritoncrf.graphs import FactorGraph
from tritoncrf.model_protocol import CRF
from tritoncrf.sampler import Sampler

if TYPE_CHECKING:
    from xarray import DataTree


@dataclass(frozen=True)
class Estimate:
    """What a run of the chains says of N images."""

    marginals: Tensor
    """float32 [N, L, *shape]; one-hot at clamped pixels, 0 where no pixel exists."""
    traces: Tensor
    """float64 [N, R, T]: after each averaged sweep, the mean over free pixels of their conditional energy, in nats."""
    flip_rate: Tensor
    """float32 [N]: label changes per free pixel and averaged sweep."""

    @property
    def labels(self) -> Tensor:
        """Max-marginal labels uint8 ``[N, *shape]``; 255 where no pixel exists."""
        best = self.marginals.argmax(1).to(torch.uint8)
        return torch.where(self.marginals.amax(1) > 0, best, contract.VOID)

    @property
    def rhat(self) -> Tensor:
        """Split R-hat of `traces`, float64 ``[N]``; needs at least 4 sweeps."""
        return diagnostics.rhat(self.traces)

    @property
    def ess(self) -> Tensor:
        """Effective sample size of `traces`, float64 ``[N]``; needs at least 4 sweeps."""
        return diagnostics.ess(self.traces)

    def to_arviz(self) -> DataTree:
        """`traces` as ArviZ takes them: group "posterior", variable "energy" (nats a free pixel) with the dimensions "chain"
        (R), "draw" (T) and "image" (N).

        ``arviz.rhat(found.to_arviz(), method="split")`` is `rhat`; ArviZ also has the rank-normalised one (Vehtari et al.
        2021), quantiles' effective sizes and plots. Raises ImportError without ``pip install "tritoncrf[arviz]"``.
        """
        try:
            from arviz_base import from_dict
        except ImportError as error:
            hint = 'pip install "tritoncrf[arviz]"'
            raise ImportError(f"to_arviz: expected ArviZ, got none ({error}): {hint}") from error
        energy = rearrange(self.traces, "image chain draw -> chain draw image").cpu().numpy()
        tree: DataTree = from_dict({"posterior": {"energy": energy}}, dims={"energy": ["image"]})
        return tree


def estimate(
    crf: CRF, logits: Tensor, *, sweeps: int, burn_in: int, labels: Tensor | None = None, index: Tensor | None = None,
    sizes: Tensor | None = None, mask: Tensor | None = None, clamp: Tensor | None = None,
    init_logits: Tensor | None = None, replicas: int = 1, beta: float = 1.0, engine: str = "auto", seed: int | None = 0,
    kinds: Tensor | None = None, gates: Tensor | None = None, graph: FactorGraph | None = None,
) -> Estimate:  # fmt: skip
    """Runs R chains an image through ``burn_in`` sweeps, then averages the conditionals over ``sweeps`` more.

    logits ``[N, L, *shape]``; labels to start from (needed where ``clamp`` holds them); init_logits: of the first draw;
    the rest as in `Sampler.init` and `Sampler.run`; of graphs logits ``[V, L]`` and marginals likewise. Warns where the
    replicas of an image disagree (R-hat above 1.1). Raises ValueError or TypeError naming the argument.
    """
    sweeps, burn_in = validation.whole("sweeps", sweeps, 1), validation.whole("burn_in", burn_in, 0)
    edges = Edges(kinds, gates) if graph is None else graph
    with torch.no_grad():
        sampler = Sampler(crf, engine, seed)
        chains = _start(sampler, logits, init_logits, labels, index, sizes, mask, clamp, replicas, edges)
        sampler.run(chains, burn_in, beta=beta)
        # Thousands of float32 additions of like terms would drift by more than 1e-4.
        total = torch.zeros((*chains.plan.free.shape, crf.num_labels), dtype=torch.float64, device=crf.device)
        free = chains.plan.free.sum(1).clamp(min=1)[:, None]
        traces = sampler.average(chains, sweeps, total, beta=beta) / free[..., None]
        sampler.guard.settle()
        dense, fold = _dense(chains, total / sweeps).float(), chains.layout.fold
        found = Estimate(dense if fold is None else fold.back(dense), traces, diagnostics.flip_rate(chains, sweeps))
    if replicas > 1 and sweeps >= 4:
        apart = found.rhat > diagnostics.DISAGREE
        if bool(apart.any()):
            warnings.warn(
                f"marginals: the replicas of {int(apart.sum())} of {len(apart)} images disagree (largest R-hat "
                f"{float(found.rhat.max()):.2f}): more sweeps or burn_in are needed",
                stacklevel=2,
            )
    return found


def marginals(
    crf: CRF, logits: Tensor, *, sweeps: int, burn_in: int, labels: Tensor | None = None, index: Tensor | None = None,
    sizes: Tensor | None = None, mask: Tensor | None = None, clamp: Tensor | None = None,
    init_logits: Tensor | None = None, replicas: int = 1, beta: float = 1.0, engine: str = "auto", seed: int | None = 0,
    kinds: Tensor | None = None, gates: Tensor | None = None, graph: FactorGraph | None = None,
) -> Tensor:  # fmt: skip
    """The marginals p(y_i = l | x), float32 ``[N, L, *shape]``, as `estimate` finds them."""
    return estimate(
        crf, logits, sweeps=sweeps, burn_in=burn_in, labels=labels, index=index, sizes=sizes, mask=mask, clamp=clamp,
        init_logits=init_logits, replicas=replicas, beta=beta, engine=engine, seed=seed, kinds=kinds, gates=gates, graph=graph,
    ).marginals  # fmt: skip


def max_marginal(
    crf: CRF, logits: Tensor, *, sweeps: int, burn_in: int, labels: Tensor | None = None, index: Tensor | None = None,
    sizes: Tensor | None = None, mask: Tensor | None = None, clamp: Tensor | None = None,
    init_logits: Tensor | None = None, replicas: int = 1, beta: float = 1.0, engine: str = "auto", seed: int | None = 0,
    kinds: Tensor | None = None, gates: Tensor | None = None, graph: FactorGraph | None = None,
) -> Tensor:  # fmt: skip
    """Max-marginal labels (eq. 4), uint8 ``[N, *shape]``, 255 where no pixel exists, as `estimate` finds them."""
    return estimate(
        crf, logits, sweeps=sweeps, burn_in=burn_in, labels=labels, index=index, sizes=sizes, mask=mask, clamp=clamp,
        init_logits=init_logits, replicas=replicas, beta=beta, engine=engine, seed=seed, kinds=kinds, gates=gates, graph=graph,
    ).labels  # fmt: skip


def anneal(
    crf: CRF, logits: Tensor, *, sweeps: int = 200, betas: tuple[float, float] = (0.5, 20.0),
    labels: Tensor | None = None, index: Tensor | None = None, sizes: Tensor | None = None,
    mask: Tensor | None = None, clamp: Tensor | None = None, init_logits: Tensor | None = None, replicas: int = 1,
    engine: str = "auto", seed: int | None = 0, kinds: Tensor | None = None, gates: Tensor | None = None,
    graph: FactorGraph | None = None,
) -> Tensor:  # fmt: skip
    """Labels of low energy, uint8 ``[N, *shape]``: ``sweeps`` at inverse temperatures that rise geometrically (Geman 1984).

    betas: first and last; ten sweeps at the highest inverse temperature follow, which is descent. Of several replicas
    the one of lowest energy answers. Raises ValueError or TypeError naming the argument.
    """
    sweeps = validation.whole("sweeps", sweeps, 1)
    if not isinstance(betas, Sequence) or len(betas) != 2 or not 0 < betas[0] <= betas[1]:
        raise ValueError(f"betas: expected a pair (first, last) with 0 < first <= last, got {betas!r}")
    first, last = (validation.beta(beta) for beta in betas)
    edges = Edges(kinds, gates) if graph is None else graph
    with torch.no_grad():
        sampler = Sampler(crf, engine, seed)
        chains = _start(sampler, logits, init_logits, labels, index, sizes, mask, clamp, replicas, edges)
        for step in range(sweeps):
            sampler.run(chains, 1, beta=first * (last / first) ** (step / max(sweeps - 1, 1)))
        sampler.run(chains, 10, beta=contract.MAX_BETA)
        sampler.guard.settle()
        found, fold = chains.images, chains.layout.fold
        best = torch.zeros(len(found), dtype=torch.int64, device=found.device)
        if replicas > 1:
            best = crf.scores(logits, chains.labels, sizes, mask, edges).argmin(1)
        lowest = found[torch.arange(len(found), device=found.device), best]
        return lowest if fold is None else fold.back(lowest)


def _start(
    sampler: Sampler[CRF], logits: Tensor, init_logits: Tensor | None, labels: Tensor | None, index: Tensor | None,
    sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, replicas: int, edges: Given,
) -> ChainState:  # fmt: skip
    first = logits
    if init_logits is not None:
        if isinstance(edges, Edges):
            validation.logits(logits, sampler.crf.num_labels, sampler.crf.ndim, sampler.crf.device)
        else:
            validation.tensor("logits", logits)
        kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        first = validation.shaped("init_logits", init_logits, [tuple(logits.shape)], kinds, sampler.crf.device)
    given, graph = (edges, None) if isinstance(edges, Edges) else (Edges(), edges)
    chains = sampler.init(
        first, labels, index, sizes=sizes, mask=mask, clamp=clamp, replicas=replicas, kinds=given.kinds, gates=given.gates,
        graph=graph,
    )  # fmt: skip
    return chains if init_logits is None else sampler.run(chains, 0, logits=logits)


def _dense(chains: ChainState, total: Tensor) -> Tensor:
    """Slot-major ``[N, S, L]`` -> ``[N, L, *shape]``, with what is clamped filled in."""
    plan, shape = chains.plan, chains.shape
    image, slot = plan.exists.nonzero(as_tuple=True)
    held = plan.exists & ~plan.free
    fixed, where = held.nonzero(as_tuple=True)
    kept = chains.rows[fixed, :, plan.positions[where]].long()
    total[fixed, where] = reduce(F.one_hot(kept, plan.num_labels).to(total.dtype), "site replica label -> site label", "mean")
    dense = total.new_zeros((len(total), torch.Size(shape).numel(), plan.num_labels))
    dense[image, plan.pixels[slot]] = total[image, slot]
    return rearrange(dense, "image pixel label -> image label pixel").reshape(len(total), plan.num_labels, *shape)
