"""Can I trust the chain? R-hat and effective sample size on scalar traces, flip rates, whether kept chains keep up, and log Z.

A trace is any scalar of the state recorded after each sweep, here the mean conditional energy of an image's labels, one row
per replica: ``[..., R, T]``. Split R-hat compares halves of all replicas (Gelman et al., Bayesian Data Analysis, 3rd ed.,
eq. 11.4); the effective sample size sums autocorrelations by Geyer's initial monotone sequence (Geyer 1992; eq. 11.8).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.chains import ChainState
from tritoncrf.edge_inputs import Edges
from tritoncrf.graphs import FactorGraph
from tritoncrf.model_protocol import CRF
from tritoncrf.partition import Partition as Partition
from tritoncrf.partition import log_partition as log_partition
from tritoncrf.sampler import Sampler
from tritoncrf.store import ChainStore
from tritoncrf.validation import Guard

# R-hat above which replicas are said to disagree (Vehtari et al. 2021 advise 1.01 to 1.1 by purpose).
DISAGREE = 1.1


def flip_rate(chains: ChainState, sweeps: int) -> Tensor:
    """Label changes per free site and sweep in the last run of ``sweeps`` sweeps: float32 ``[N]``, 0 .. 1."""
    updates = chains.plan.free.sum(1) * chains.replicas * sweeps
    return chains.flips.sum(1).float() / updates.clamp(min=1).float()


@torch.no_grad()
def lag(
    crf: CRF, chains: ChainStore, logits: Tensor, index: Tensor, *, sweeps: int = 100, sizes: Tensor | None = None,
    mask: Tensor | None = None, clamp: Tensor | None = None, engine: str = "auto", kinds: Tensor | None = None,
    gates: Tensor | None = None, graph: FactorGraph | None = None,
) -> Tensor:  # fmt: skip
    """By how much the energy of kept chains changes if they go on while the model stands still.

    Returns nats a free pixel, float32 ``[N, R]``. Persistent chains stand for samples only while the model changes slowly
    enough for them to follow (Tieleman 2008). Far from 0 they do not: below, learning takes its errors from labels less likely
    than the model's own, above, from likelier ones; more sweeps a visit or smaller rates help. Near 0 is no proof, for a chain
    may be stuck. Ask while the rates are large: at the end of learning chains catch up. The kept chains stay where they are.

    crf, chains: those of a PCD loss; logits: float ``[N, L, *shape]``, of images ``index`` (integers ``[N]``), all visited
    before; the rest as in `Sampler.init`. Waits for the device. Raises ValueError or TypeError naming the argument.

    >>> loss = CRFLoss(GridCRF(3, Neighborhood.nearest(8)), chains=ChainStore([(8, 9)], seed=0))
    >>> logits, index = torch.zeros(1, 3, 8, 9, requires_grad=True), torch.tensor([0])
    >>> loss(logits, torch.zeros(1, 8, 9, dtype=torch.long), index).backward()
    >>> with torch.no_grad():
    ...     loss.crf.pairwise += torch.eye(3)
    >>> bool(lag(loss.crf, loss.chains, logits, index) < -0.3)
    True
    """
    if not isinstance(crf, CRF) or not isinstance(chains, ChainStore):
        got = f"{type(crf).__name__}, {type(chains).__name__}"
        raise TypeError(f"crf, chains: expected a GridCRF or a FactorCRF, and a ChainStore, got {got}")
    sweeps = validation.whole("sweeps", sweeps, 1)
    if chains.device != crf.device:
        raise ValueError(f"chains: expected a ChainStore on {crf.device} (that of the CRF's tables), got {chains.device}")
    fold, folded = crf.fold(graph, sizes=sizes, kinds=kinds, gates=gates), logits
    given: dict[str, Tensor | None] = {"mask": mask, "clamp": clamp, "sizes": sizes}
    if fold is not None:
        folded, sizes, mask = fold.logits(logits, crf.num_labels, crf.device), fold.sizes, fold.each("mask", mask)
    shape = tuple(validation.logits(folded, crf.num_labels, crf.ndim, crf.device).shape[2:])
    index = validation.tensor("index", index).to(crf.device)
    index = validation.shaped("index", index, [(len(folded),)], validation.INTEGERS, crf.device).long()
    unknown = (index < 0) | (index >= len(chains))
    if bool(unknown.any()):
        raise ValueError(f"index: expected positions from 0 to {len(chains) - 1}, got {int(index[unknown][0])}")
    sizes, mask = validation.extents(Guard(immediate=True), len(folded), shape, sizes, mask, crf.device)
    extents = torch.tensor([shape] * len(index), device=crf.device) if sizes is None else sizes
    moved = extents.ne(chains.sizes[index]).any(1)
    if bool(moved.any()):
        place = int(moved.nonzero()[0, 0])
        raise ValueError(
            f"sizes: expected each image at the size its chain has, got {extents[place].tolist()} for image "
            f"{int(index[place])} of {chains.sizes[index[place]].tolist()}"
        )
    present = validation.inside(shape, len(folded), sizes, mask, crf.device)
    kept = chains.fetch(chains.pixel_indices(index, shape))
    undrawn = ((kept == contract.VOID) & present[:, None]).flatten(1).any(1)
    if bool(undrawn.any()):
        raise ValueError(f"chains: expected chains that PCD has visited, got image {int(index[undrawn][0])}, not drawn yet")
    foreign = (kept >= crf.num_labels) & present[:, None]
    if bool(foreign.any()):
        raise ValueError(f"chains: expected a store of chains of {crf.num_labels} labels, got label {int(kept[foreign][0])}")
    sampler = Sampler(crf, engine, chains.seed, validate=True)
    state = sampler.init(
        logits, kept if fold is None else fold.labelings(kept), index, **given, replicas=chains.replicas, phase="free",
        count=chains.sweeps[index], kinds=kinds, gates=gates, graph=graph,
    )  # fmt: skip

    def energies() -> Tensor:
        return crf.scores(logits, state.labels, given["sizes"], given["mask"], Edges(kinds, gates) if graph is None else graph)

    before = energies()
    if not bool(before.isfinite().all()):
        raise ValueError("logits: expected ones that allow the labels of the kept chains, got -inf at some of them")
    sampler.run(state, sweeps)
    sampler.guard.settle()
    return (energies() - before) / state.plan.free.sum(1, keepdim=True).clamp(min=1)


def rhat(traces: Tensor) -> Tensor:
    """Split R-hat of traces ``[..., R, T]``, T >= 4: float64 ``[...]``; 1 when all agree, NaN never.

    Raises ValueError for fewer than 4 sweeps.
    """
    halves = _halves(traces)
    length = halves.shape[-1]
    between = length * halves.mean(-1).var(-1)
    within = halves.var(-1).mean(-1)
    ratio = ((length - 1) / length * within + between / length) / within
    # A trace that never moves is one in agreement, or, at different heights, in plain disagreement.
    still = torch.full_like(between, torch.inf).where(between > 0, 1.0)
    return torch.where(within > 0, ratio, still.square()).sqrt()


def ess(traces: Tensor) -> Tensor:
    """Effective number of independent draws among the R * T of ``[..., R, T]``: float64 ``[...]``, at most R * T.

    Raises ValueError for fewer than 4 sweeps.
    """
    halves = _halves(traces)
    chains, length = halves.shape[-2:]
    centred = halves - halves.mean(-1, keepdim=True)
    # Zero padding to twice the length keeps the circular convolution of the transform from wrapping.
    spectrum = torch.fft.rfft(centred, 2 * length)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), 2 * length)[..., :length] / length
    within = covariance[..., 0].mean(-1) * length / (length - 1)
    total = within * (length - 1) / length
    if chains > 1:
        total = total + halves.mean(-1).var(-1)
    correlation = 1 - (within[..., None] - covariance.mean(-2)) / total[..., None]
    correlation[..., 0] = 1
    pairs = correlation[..., : length // 2 * 2].unflatten(-1, (-1, 2)).sum(-1)
    monotone = pairs.cummin(-1).values.clamp(min=0)
    time = (2 * monotone.sum(-1) - 1).clamp(min=1 / math.log10(chains * length + 10))
    size = (chains * length / time).clamp(max=chains * length)
    return torch.where(total > 0, size, torch.full_like(size, chains * length))


def _halves(traces: Tensor) -> Tensor:
    if traces.dim() < 2 or traces.shape[-1] < 4:
        raise ValueError(f"traces: expected shape [..., replicas, sweeps] with at least 4 sweeps, got {list(traces.shape)}")
    half = traces.shape[-1] // 2
    traces = traces.double()
    return torch.cat([traces[..., :half], traces[..., -half:]], -2)
