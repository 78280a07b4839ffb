"""What do neighbours say when each edge reads the table of its kind? `messages` with ``psi_{c, k}``, k the edge's own.

``(M q)_i(l) = sum_c sum_m psi_{c, k_c(i)}(l, m) q_{i+d}(m) + psi_{c, k_c(i-d)}(m, l) q_{i-d}(m)``. Known neighbours say
the same whatever q is: `labelled` looks their table rows up, once a visit, or all of them where every neighbour has a label. Of
the free ones the pairs (i, j) are grouped by side, class and kind, so that a group is one small product, and summed by i: as
many multiplications as with one table a class.

An edge has one kind from both of its ends, so M is symmetric still, and the gradient with respect to q is M applied to what
flows back. q alone is kept for the backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from bench.paper.edges import Maker
from bench.paper.methods.messages import Sites
from tritoncrf.batches import Batch
from tritoncrf.evaluation import edges_of
from tritoncrf.grid_crf import GridCRF


def of_edges(crf: GridCRF, edge_maker: Maker, batch: Batch, sites: Sites) -> Tensor:
    """Of the edges to each free pixel's neighbours, uint8 ``[P, 2 C]``; 0 for classes that ``edge_maker`` does not tell of."""
    kinds = edges_of(edge_maker, batch.image, None).kinds
    if kinds is None or crf.form.kinds is None:
        raise ValueError(f"told: expected kinds for a CRF that has them, got {edge_maker!r} for {crf!r}")
    # One more class, of zeros, for those that have none.
    return sites.kinds(F.pad(kinds.movedim(1, -1), (0, 1))[..., list(crf.form.kinded)].movedim(-1, 1))


def labelled(tables: Tensor, sites: Sites, kinds: Tensor, labels: Tensor | None = None) -> Tensor:
    """The field of neighbours whose label is known, ``[P, L]``; differentiable in tables ``[C, R, L, L]``.

    kinds: integers ``[P, 2 C]``, of `Sites.kinds`; labels: int64 ``[P]`` of the free pixels, which count too; None: none does.
    """
    classes, count, size, _ = tables.shape
    own = torch.full_like(sites.where[0], size) if labels is None else labels
    names = torch.cat([own, torch.arange(size + 1, device=own.device)])[sites.neighbours]
    said = names < size
    slots = torch.arange(2 * classes, device=own.device) * count + kinds
    offsets = said.sum(1).cumsum(0).roll(1)
    offsets[:1] = 0
    return F.embedding_bag((slots * size + names)[said], _weights(tables).flatten(0, 1), offsets, mode="sum")


@dataclass(frozen=True)
class Groups:
    """The E pairs of a free pixel and a free neighbour, in groups by the neighbour's side, class and kind."""

    hearing: Tensor
    """int64 [E]: the pixel's place."""
    heard: Tensor
    """int64 [E]: the neighbour's."""
    counts: list[int]
    """Pairs of each of the 2 C R groups."""
    order: Tensor
    """int64 [E]: the pairs pixel by pixel."""
    offsets: Tensor
    """int64 [P]: where each pixel's begin in that order."""

    @classmethod
    def of(cls, sites: Sites, kinds: Tensor, count: int) -> Groups:
        """kinds: integers ``[P, 2 C]`` below ``count``, of `Sites.kinds`."""
        pixels, slots = sites.neighbours.shape
        hearing, slot = (sites.neighbours < pixels).nonzero(as_tuple=True)
        keys = slot * count + kinds[hearing, slot]
        grouped = keys.argsort(stable=True)
        order = torch.empty_like(grouped)
        # Pairs were found pixel by pixel: this is where the groups have put them.
        order[grouped] = torch.arange(len(grouped), device=order.device)
        counts = keys.bincount(minlength=slots * count).tolist()
        offsets = hearing.bincount(minlength=pixels).cumsum(0).roll(1)
        offsets[:1] = 0
        return cls(hearing[grouped], sites.neighbours[hearing, slot][grouped], counts, order, offsets)


def messages(q: Tensor, tables: Tensor, groups: Groups) -> Tensor:
    """The expected energies of the free neighbours, ``[P, L]``: q ``[P, L]``, tables ``[C, R, L, L]``; once differentiable."""
    result: Tensor = _Messages.apply(q, tables, groups)  # type: ignore[no-untyped-call]
    return result


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, tables: Tensor, groups: Groups) -> Tensor:
        ctx.save_for_backward(q, tables)
        ctx.groups = groups  # type: ignore[attr-defined]
        return _send(q, _weights(tables), groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        q, tables = ctx.saved_tensors  # type: ignore[attr-defined]
        need_q, need_tables, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        groups: Groups = ctx.groups  # type: ignore[attr-defined]
        weights, grad, to_tables = _weights(tables), grad.contiguous(), None
        if need_tables:
            said, flows = F.embedding(groups.heard, q).T, F.embedding(groups.hearing, grad)
            to_weights, begin = torch.zeros_like(weights), 0
            for out, count in zip(to_weights, groups.counts, strict=True):
                torch.mm(said[:, begin : begin + count], flows[begin : begin + count], out=out)
                begin += count
            ahead, behind = to_weights.view(2, *tables.shape)
            to_tables = ahead.transpose(2, 3) + behind
        return _send(grad, weights, groups) if need_q else None, to_tables, None


def _send(q: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    said, begin = F.embedding(groups.heard, q), 0
    heard = torch.empty_like(said)
    for weight, count in zip(weights, groups.counts, strict=True):
        torch.mm(said[begin : begin + count], weight, out=heard[begin : begin + count])
        begin += count
    return F.embedding_bag(groups.order, heard, groups.offsets, mode="sum")


def _weights(tables: Tensor) -> Tensor:
    """``[2 C R, L, L]``: from a neighbour's side, class and kind, and its label, to the pixel's own label."""
    return torch.cat([tables.transpose(2, 3), tables]).flatten(0, 1)
