"""Can I trust the chain? R-hat and effective sample size on scalar traces, flip rates.

A trace is any scalar of the state recorded after each sweep, here the mean conditional energy of an image's labels, one row
per replica: ``[..., R, T]``. Split R-hat compares halves of all replicas (Gelman et al., Bayesian Data Analysis, 3rd ed.,
eq. 11.4); the effective sample size sums autocorrelations by Geyer's initial monotone sequence (Geyer 1992; eq. 11.8).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf.chains import ChainState

# R-hat above which replicas are said to disagree (Vehtari et al. 2021 advise 1.01 to 1.1 by purpose).
DISAGREE = 1.1


def flip_rate(chains: ChainState, sweeps: int) -> Tensor:
    """Label changes per free site and sweep in the last run of ``sweeps`` sweeps: float32 ``[N]``, 0 .. 1."""
    updates = chains.plan.free.sum(1) * chains.replicas * sweeps
    return chains.flips.sum(1) / updates.clamp(min=1)


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
