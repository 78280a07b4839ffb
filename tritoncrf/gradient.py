"""What is the error of each factor? The gradient of ``E(y) - E(y')`` for a pair of samples, and how it flows back.

Kirillov et al. 2016, Algorithm 1, steps 6 and 7, with the sign of a loss to be minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tritoncrf import contract
from tritoncrf.chains import ChainState
from tritoncrf.engines import Tables
from tritoncrf.sampler import Sampler


class Errors(NamedTuple):
    """The gradient of ``E(y) - E(y')`` per factor, averaged over replicas, float32; what a model does not have is empty."""

    logits: Tensor
    """[N, L, *shape]: ``[y' = l] - [y = l]``."""
    pairwise: Tensor
    """[C, L, L] or [C, R, L, L]: ``counts(y) - counts(y')``, summed over the batch."""
    gated: Tensor
    """[G, Cg, L, L]: the same with each edge counting its gate."""
    gates: Tensor
    """[N, G, Cg, *shape]: ``G[y_i, y_j] - G[y'_i, y'_j]`` of the edge to j = i + d, 0 where none is."""


def errors(
    sampler: Sampler, data: ChainState, free: ChainState, tables: Tables, samples: tuple[Tensor, Tensor] | None = None,
    flow: bool = True, total: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> Errors:  # fmt: skip
    """The errors of a pair of samples; the one place where shared tables come together.

    tables: the model's own; samples: the labels of data and free, where they are at hand; flow: whether gates want theirs;
    total: makes of the two tables' whole numbers, int64, those of all ranks.
    """
    y, drawn = (data.labels, free.labels) if samples is None else samples
    unary = sampler.engine.unary_errors(y, drawn, free.plan.labels)
    counts = sampler.engine.pair_errors(free.plan, data.rows, free.rows)
    weighed, gates = counts.new_zeros(0), unary.new_zeros(0)
    if tables.gated is not None:
        weighed = sampler.engine.gated_errors(free.plan, data.rows, free.rows)
        gates = gate_errors(data, free, tables.gated) if flow else gates
    if total is not None:
        counts, weighed = total(counts, weighed)
    return Errors(
        unary, counts.to(torch.float32) / free.replicas,
        weighed.to(torch.float32) / (free.replicas * contract.GATE_STEPS), gates,
    )  # fmt: skip


def gate_errors(data: ChainState, free: ChainState, gated: Tensor) -> Tensor:
    """`Errors.gates` of tables ``[G, Cg, L, L]``."""
    edges, shape = free.plan.edges, free.shape
    found = torch.zeros((len(free.index), *gated.shape[:2], *shape), device=gated.device)
    # A row and a column of zeros are what void reads.
    tables = F.pad(gated.detach().float(), (0, 1, 0, 1))
    for k in () if edges is None else edges.gated:
        for chains, sign in ((data, 1.0), (free, -1.0)):
            here = chains.layout.crop(chains.rows, shape).long()
            there = chains.layout.ahead(chains.rows, shape, chains.plan.displacements[k]).long()
            place = free.plan.edges.gating[k]  # type: ignore[union-attr]
            found[:, :, place] += sign * tables[:, place][:, here, there].sum(2).movedim(0, 1)
    return found / free.replicas


def unary_gap(logits: Tensor, data: Tensor, free: Tensor) -> Tensor:
    """The unary part of ``E(y) - E(y')`` of each image, averaged over replicas: float64 ``[N]``.

    logits: ``[N, L, *shape]``; data, free: the samples, uint8 ``[N, R, *shape]``, 255 in both where no pixel exists.
    """
    apart = data != free
    # Only where they differ: elsewhere a forbidden label's -inf would make NaN, and nothing else.
    taken = (logits.detach().gather(1, torch.where(apart, drawn, 0).long()).double() for drawn in (free, data))
    return torch.where(apart, next(taken) - next(taken), 0.0).flatten(1).sum(1) / data.shape[1]


class Sampled(torch.autograd.Function):
    """Carries a value whose gradient is known: the errors, times what flows back."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, pairwise: Tensor, gated: Tensor | None, gates: Tensor | None, value: Tensor,
        *found: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(*found)
        ctx.dtypes = [None if part is None else part.dtype for part in (logits, pairwise, gated, gates)]  # type: ignore[attr-defined]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)  # type: ignore[attr-defined]
        # Of logits and gates each image has its own errors; with a value an image those of tables are apart too.
        shared = (False, True, True, False)
        flows = [
            _flow(error, grad, tables).to(kind) if needed and kind is not None else None
            for (error, kind, needed), tables in zip(wanted, shared, strict=True)
        ]
        return *flows, *[None] * (1 + len(ctx.saved_tensors))  # type: ignore[attr-defined]


def _flow(error: Tensor, grad: Tensor, tables: bool) -> Tensor:
    """An error times what flows back, ``[]`` or one an image; tables: to be summed over images."""
    if grad.dim() == 0:
        return error * grad
    found = error * grad.to(error.dtype).view(-1, *[1] * (error.dim() - 1))
    return found.sum(0) if tables else found
