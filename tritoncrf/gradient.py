"""What is the error of each factor? The gradient of ``E(y) - E(y')`` for a pair of samples, and how it flows back.

Kirillov et al. 2016, Algorithm 1, steps 6 and 7, with the sign of a loss to be minimised.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tritoncrf import contract
from tritoncrf.chains import ChainState
from tritoncrf.engines import Tables
from tritoncrf.model_protocol import CRF
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
    """[N, G, Cg, *shape]: ``G[y_i, y_j] - G[y'_i, y'_j]`` of the edge to j = i + d, 0 where none is; of graphs [F]."""


class Sums(NamedTuple):
    """`Errors` before those of tables are averaged: sums over replicas, in whole numbers that ranks can add up."""

    logits: Tensor
    """float32 [N, L, *shape], an average already."""
    pairwise: Tensor
    """int64 [C, L, L] or [C, R, L, L]."""
    gated: Tensor
    """int64 [G, Cg, L, L], in steps of a gate; empty without gates."""
    gates: Tensor
    """float32 [N, G, Cg, *shape], an average already; of graphs [F]; empty where no gate wants one."""

    def averaged(self, free: ChainState) -> Errors:
        """free: the free phase's chains, which say over how many replicas."""
        pairwise, parts = self.pairwise.to(torch.float32), free.replicas * free.plan.unit
        if parts > 1:
            pairwise = pairwise / parts
        gated = self.gated.to(torch.float32)
        if gated.numel():
            gated = gated / (free.replicas * contract.GATE_STEPS)
        return Errors(self.logits, pairwise, gated, self.gates)


def errors(
    sampler: Sampler[CRF], data: ChainState, free: ChainState, tables: Tables, samples: tuple[Tensor, Tensor] | None = None,
    flow: bool = True,
) -> Errors:  # fmt: skip
    """The errors of a pair of samples; arguments as of `sums`."""
    return sums(sampler, data, free, tables, samples, flow).averaged(free)


def sums(
    sampler: Sampler[CRF], data: ChainState, free: ChainState, tables: Tables, samples: tuple[Tensor, Tensor] | None = None,
    flow: bool = True,
) -> Sums:  # fmt: skip
    """What a pair of samples differs by; the one place where shared tables come together.

    tables: the model's own; samples: the labels of data and free, where they are at hand; flow: whether gates want an error.
    """
    y, drawn = (data.images, free.images) if samples is None else samples
    unary = sampler.engine.unary_errors(y, drawn, free.plan.num_labels)
    counts = sampler.engine.pair_errors(free.plan, data.rows, free.rows)
    gated, gates = counts.new_empty(0), unary.new_empty(0)
    if tables.gated is not None:
        gated = sampler.engine.gated_errors(free.plan, data.rows, free.rows)
        gates = gate_errors(data, free, tables.gated) if flow else gates
    elif flow and free.plan.factors is not None:
        gates = factor_gate_errors(data, free, tables.pairwise)
    return Sums(unary, counts, gated, gates)


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


def factor_gate_errors(data: ChainState, free: ChainState, tables: Tensor) -> Tensor:
    """`Errors.gates` of a graph's factors, ``T[y_f] - T[y'_f]``: float32 ``[F]``, those of arities that have gates."""
    factors, found, read = free.plan.factors, [], F.pad(tables.detach().float(), (0, 1))
    for part in () if factors is None else factors.ends:
        if part.gate is not None:
            taken = (read[part_of].sum(0) for part_of in (factors.entries(part, of.rows) for of in (data, free)))  # type: ignore[union-attr]
            found.append(next(taken) - next(taken))
    return torch.cat(found) / free.replicas if found else read.new_empty(0)


def unary_gap(logits: Tensor, data: Tensor, free: Tensor, whole: bool) -> Tensor:
    """The unary part of ``E(y) - E(y')`` of each image, averaged over replicas: float64 ``[N]``; not finite where y has a
    forbidden label.

    logits: ``[N, L, *shape]``; data, free: the samples, uint8 ``[N, R, *shape]``, 255 in both where no pixel exists; whole:
    whether all do.
    """
    drawn, replicas = torch.cat([free, data], 1), data.shape[1]
    drawn = drawn.long() if whole else drawn.clamp_(max=logits.shape[1] - 1).long()
    taken = logits.detach().gather(1, drawn).double()
    found = taken[:, :replicas] - taken[:, replicas:]
    if not whole:
        # Logits of no pixel may be anything.
        found.masked_fill_(data == free, 0.0)
    found = found.flatten(1).sum(1)
    return found if replicas == 1 else found / replicas


class Sampled(torch.autograd.Function):
    """Carries a value whose gradient is known: the errors, times what flows back."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, pairwise: Tensor, gated: Tensor | None, gates: Tensor | None, owner: Tensor | None,
        value: Tensor, factor: Tensor, *found: Tensor,
    ) -> Tensor:  # fmt: skip
        """found: the fields of `Errors`, of graphs ``[V, L]`` for logits; factor: float32 [], by which they all count; owner:
        int64 ``[V]``, each node's graph where there is a value a graph."""
        ctx.save_for_backward(owner, factor, *found)  # type: ignore[arg-type]
        ctx.dtypes = [None if part is None else part.dtype for part in (logits, pairwise, gated, gates)]  # type: ignore[attr-defined]
        # Nobody else has it, but to return it as it is would make it a view.
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        owner, factor, *found = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = factor * grad
        # With a value a graph what flows to a node is its graph's.
        grads = (grad if owner is None else grad[owner], grad, grad, grad)
        wanted = zip(found, ctx.dtypes, ctx.needs_input_grad, strict=False)  # type: ignore[attr-defined]
        # Of logits and gates each image has its own errors; with a value an image those of tables are apart too.
        shared = (False, True, True, False)
        flows = [
            _flow(error, flow, tables).to(kind) if needed and kind is not None else None
            for (error, kind, needed), flow, tables in zip(wanted, grads, shared, strict=True)
        ]
        return *flows, *[None] * (3 + len(found))


def _flow(error: Tensor, grad: Tensor, tables: bool) -> Tensor:
    """An error times what flows back, ``[]`` or one an image; tables: to be summed over images."""
    if grad.dim() == 0:
        return error * grad
    found = error * grad.to(error.dtype).view(-1, *[1] * (error.dim() - 1))
    return found.sum(0) if tables else found
