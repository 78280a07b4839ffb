"""What is the error of each factor? The gradient of ``E(y) - E(y')`` for a pair of samples, and how it flows back.

Kirillov et al. 2016, Algorithm 1, steps 6 and 7, with the sign of a loss to be minimised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tritoncrf.chains import ChainState
from tritoncrf.sampler import Sampler


def errors(
    sampler: Sampler, data: ChainState, free: ChainState, samples: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The gradient of ``E(y) - E(y')`` per factor, averaged over replicas; the one place where shared tables come together.

    Logits: ``[y' = l] - [y = l]``, float32 ``[N, L, *shape]``. Tables: ``counts(y) - counts(y')``, float32 ``[C, L, L]``,
    summed over the batch. samples: the labels of data and free, where they are at hand.
    """
    y, drawn = (data.labels, free.labels) if samples is None else samples
    counts = sampler.engine.pair_errors(free.plan, data.rows, free.rows)
    return sampler.engine.unary_errors(y, drawn, free.plan.labels), counts.to(torch.float32) / free.replicas


def unary_gap(logits: Tensor, data: Tensor, free: Tensor) -> Tensor:
    """The unary part of ``E(y) - E(y')``, summed over the batch and averaged over replicas: float64 ``[]``.

    logits: ``[N, L, *shape]``; data, free: the samples, uint8 ``[N, R, *shape]``, 255 in both where no pixel exists.
    """
    apart = data != free
    # Only where they differ: elsewhere a forbidden label's -inf would make NaN, and nothing else.
    taken = (logits.detach().gather(1, torch.where(apart, drawn, 0).long()).double() for drawn in (free, data))
    return torch.where(apart, next(taken) - next(taken), 0.0).sum() / data.shape[1]


class Sampled(torch.autograd.Function):
    """Carries a value whose gradient is known: the errors, times what flows back."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, pairwise: Tensor, value: Tensor, unary: Tensor, tables: Tensor) -> Tensor:
        ctx.save_for_backward(unary, tables)
        ctx.dtypes = logits.dtype, pairwise.dtype  # type: ignore[attr-defined]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        unary, tables = ctx.saved_tensors  # type: ignore[attr-defined]
        dtypes = ctx.dtypes  # type: ignore[attr-defined]
        return (unary * grad).to(dtypes[0]), (tables * grad).to(dtypes[1]), None, None, None
