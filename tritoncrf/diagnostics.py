"""Can I trust the chain? R-hat and effective sample size on scalar traces, flip rates, and whether kept chains keep up.

A trace is any scalar of the state recorded after each sweep, here the mean conditional energy of an image's labels, one row
per replica: ``[..., R, T]``. Split R-hat compares halves of all replicas (Gelman et al., Bayesian Data Analysis, 3rd ed.,
eq. 11.4); the effective sample size sums autocorrelations by Geyer's initial monotone sequence (Geyer 1992; eq. 11.8).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf import validation
from tritoncrf.chains import ChainState, ChainStore
from tritoncrf.sampler import Sampler

# R-hat above which replicas are said to disagree (Vehtari et al. 2021 advise 1.01 to 1.1 by purpose).
DISAGREE = 1.1


def flip_rate(chains: ChainState, sweeps: int) -> Tensor:
    """Label changes per free site and sweep in the last run of ``sweeps`` sweeps: float32 ``[N]``, 0 .. 1."""
    updates = chains.plan.free.sum(1) * chains.replicas * sweeps
    return chains.flips.sum(1) / updates.clamp(min=1)


@torch.no_grad()
def lag(
    sampler: Sampler, chains: ChainStore, logits: Tensor, index: Tensor, *, sweeps: int = 100, sizes: Tensor | None = None,
    mask: Tensor | None = None, clamp: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """By how much the energy of kept chains changes if they go on under the present model.

    Returns nats a free pixel, float32 ``[N, R]``. Persistent chains stand for samples only while the model changes slowly
    enough for them to follow (Tieleman 2008). Then this is near 0; a fall says that learning takes its errors from labels that
    the model would not draw: it wants more sweeps a visit, or smaller rates. The kept chains stay where they are.

    sampler, chains: those of the loss; logits: float ``[N, L, *shape]``, of images ``index`` (int64 ``[N]``); the rest as in
    `Sampler.init`. Raises ValueError or TypeError naming the argument.

    >>> loss = CRFLoss(GridCRF(3, Neighborhood.nearest(8)), chains=ChainStore([(8, 9)], seed=0))
    >>> logits = torch.zeros(1, 3, 8, 9, requires_grad=True)
    >>> loss(logits, torch.zeros(1, 8, 9, dtype=torch.long), torch.tensor([0])).backward()
    >>> lag(loss.sampler, loss.chains, logits, torch.tensor([0])).tolist()
    [[0.0]]
    """
    validation.whole("sweeps", sweeps, 1)
    validation.logits(logits, sampler.crf.num_labels, sampler.crf.neighborhood.ndim, sampler.crf.device)
    shape = tuple(logits.shape[2:])
    index = validation.shaped("index", index, [(len(logits),)], validation.INTEGERS, chains.device).long()
    if bool(((index < 0) | (index >= len(chains))).any()):
        raise ValueError(f"index: expected positions from 0 to {len(chains) - 1}, got {index.tolist()}")
    own = torch.tensor([shape] * len(index), device=chains.device) if sizes is None else sizes.to(chains.device)
    if not torch.equal(own.long(), chains.sizes[index]):
        raise ValueError(f"sizes: expected those of the chains, {chains.sizes[index].tolist()}, got {own.tolist()}")
    state = sampler.init(
        logits, chains.fetch(chains.places(index, shape)), index, sizes=sizes, mask=mask, clamp=clamp,
        replicas=chains.replicas, phase="free", count=chains.sweeps[index],
    )  # fmt: skip

    def energies() -> Tensor:
        labels = state.labels
        every = [sampler.crf.energy(logits, labels[:, replica], sizes=sizes, mask=mask) for replica in range(chains.replicas)]
        return torch.stack(every, 1)

    before = energies()
    sampler.run(state, sweeps)
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
    still = torch.where(between > 0, torch.inf, 1.0)
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
    time = (2 * monotone.sum(-1) - 1).clamp(min=1 / torch.log10(torch.tensor(float(chains * length + 10))))
    size = (chains * length / time).clamp(max=chains * length)
    return torch.where(total > 0, size, torch.full_like(size, chains * length))


def _halves(traces: Tensor) -> Tensor:
    if traces.dim() < 2 or traces.shape[-1] < 4:
        raise ValueError(f"traces: expected shape [..., replicas, sweeps] with at least 4 sweeps, got {list(traces.shape)}")
    half = traces.shape[-1] // 2
    traces = traces.double()
    return torch.cat([traces[..., :half], traces[..., -half:]], -2)
