"""What is the error of each factor? The gradient of ``E(y) - E(y')`` for a pair of samples, and how it flows back.

Kirillov et al. 2016, Algorithm 1, steps 6 and 7, with the sign of a loss to be minimised.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tritoncrf import contract
from tritoncrf.chains import ChainState
from tritoncrf.sampler import Sampler


def errors(sampler: Sampler, data: ChainState, free: ChainState) -> tuple[Tensor, Tensor]:
    """The gradient of ``E(y) - E(y')`` per factor, averaged over replicas; the one place where shared tables come together.

    Logits: ``[y' = l] - [y = l]``, float32 ``[N, L, *shape]``. Tables: ``counts(y) - counts(y')``, float32 ``[C, L, L]``,
    summed over the batch.
    """
    labels, replicas = free.plan.labels, free.replicas
    shape = (len(free.index), labels, *free.shape)
    unary = torch.zeros(shape, dtype=torch.float32, device=free.rows.device)
    for state, weight in ((free, 1.0 / replicas), (data, -1.0 / replicas)):
        drawn = state.labels
        exists = (drawn != contract.VOID).to(unary.dtype)
        unary.scatter_add_(1, drawn.long().clamp(max=labels - 1), exists * weight)
    counts = sampler.pair_counts(data) - sampler.pair_counts(free)
    return unary, counts.sum((0, 1)).to(torch.float32) / replicas


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
