"""What do a pixel's neighbours say on average? ``(M q)_i(l) = sum_c sum_m psi_c(l, m) q_{i+d}(m) + psi_c(m, l) q_{i-d}(m)``.

The expected field of eq. (16) when every neighbour j has the distribution q_j: with q the truth's one-hot rows it is the field
of the pseudo-likelihood, with q a mean-field state the sum in its update. Only free pixels are computed. A neighbour whose
label is known is a one-hot row; one that does not exist is a row of zeros.

M is symmetric (``q' M q / 2`` is an expected energy), so the gradient with respect to q is M applied to what flows back:
gathers again, no scatter. And q alone is kept for the backward, not the ``2 C`` rows a pixel: those are gathered anew.
`plain` is the same map left to autograd, which keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from bench.paper.methods.descent import free_pixels
from tritoncrf.batches import Batch
from tritoncrf.lattice import Neighborhood

# Pixels a time: their gathered rows stay in the L2 cache.
CHUNK = 128


@dataclass(frozen=True)
class Sites:
    """The P free pixels of a batch, and where each one's neighbours stand among the rows of q."""

    where: tuple[Tensor, ...]
    """int64 [P] each: image, then position along every axis."""
    neighbours: Tensor
    """int64 [P, 2 C], first at +d_c, then at -d_c: a free pixel's place, P + l where label l is known, P + L for nobody."""
    labels: int
    neighborhood: Neighborhood

    @classmethod
    def of(cls, batch: Batch, neighborhood: Neighborhood, labels: int, exists: Tensor | None = None) -> Sites:
        """``exists`` bool ``[N, *shape]`` leaves out more pixels than the batch does."""
        free = free_pixels(batch) if exists is None else free_pixels(batch) & exists
        where = free.nonzero(as_tuple=True)
        count, reach = len(where[0]), neighborhood.reach
        rows = torch.full(free.shape, count + labels, dtype=torch.int64, device=free.device)
        if batch.known is not None and batch.clamp is not None:
            rows = torch.where(batch.clamp & batch.present, batch.known.long() + count, rows)
        rows[where] = torch.arange(count, device=free.device)
        # A border as wide as the reach holds nobody, so no neighbour needs a bounds test.
        border = [wide for step in reversed(reach) for wide in (step, step)]
        rows = F.pad(rows, border, value=count + labels)
        strides = torch.tensor(rows.stride(), device=free.device)
        centre = sum(
            (at + step) * stride for at, step, stride in zip(where, (0, *reach), rows.stride(), strict=True)
        ) + torch.zeros_like(where[0])  # fmt: skip
        steps = (torch.tensor(neighborhood.offsets, device=free.device) * strides[1:]).sum(1)
        return cls(where, rows.flatten()[centre[:, None] + torch.cat([steps, -steps])], labels, neighborhood)

    def __len__(self) -> int:
        return len(self.neighbours)

    def pick(self, dense: Tensor) -> Tensor:
        """``[N, L, *shape]`` -> ``[P, L]``."""
        return dense.movedim(1, -1)[self.where]

    def spread(self, rows: Tensor, like: Tensor) -> Tensor:
        """``[P, L]`` -> ``[N, L, *shape]`` with the values of ``like`` at all other pixels."""
        dense = like.movedim(1, -1).clone()
        dense[self.where] = rows.to(dense.dtype)
        return dense.movedim(-1, 1)

    def kinds(self, kinds: Tensor) -> Tensor:
        """Of the edges to the neighbours, uint8 ``[P, 2 C]``, from those at first ends ``[N, C, *shape]``; 0 for nobody."""
        image, *at = self.where
        shape, behind = kinds.shape[2:], list[Tensor]()
        for c, offset in enumerate(self.neighborhood.offsets):
            first = [place - step for place, step in zip(at, offset, strict=True)]
            inside = torch.stack([(place >= 0) & (place < size) for place, size in zip(first, shape, strict=True)]).all(0)
            safe = [place.clamp(0, size - 1) for place, size in zip(first, shape, strict=True)]
            behind.append(torch.where(inside, kinds[:, c][(image, *safe)], 0))
        return torch.cat([kinds.movedim(1, -1)[self.where], torch.stack(behind, 1)], 1)

    def labels_of(self, labels: Tensor) -> Tensor:
        """Integers ``[N, *shape]`` -> int64 ``[P]``."""
        return labels[self.where].long()


def messages(q: Tensor, tables: Tensor, sites: Sites) -> Tensor:
    """The expected energies of the neighbours, ``[P, L]``: q ``[P, L]``, tables ``[C, L, L]``; once differentiable."""
    result: Tensor = _Messages.apply(q, tables, sites.neighbours)  # type: ignore[no-untyped-call]
    return result


def plain(q: Tensor, tables: Tensor, sites: Sites) -> Tensor:
    """As `messages`, with autograd's own graph."""
    return _rows(q)[sites.neighbours].flatten(1) @ _weights(tables)


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, tables: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(q, tables, neighbours)
        rows, weights, out = _rows(q), _weights(tables), torch.empty_like(q)
        for begin in range(0, len(q), CHUNK):
            part = slice(begin, begin + CHUNK)
            torch.mm(_gather(rows, neighbours[part]), weights, out=out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        q, tables, neighbours = ctx.saved_tensors  # type: ignore[attr-defined]
        need_q, need_tables, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        labels = q.shape[1]
        grad, weights, rows = grad.contiguous(), _weights(tables), _rows(q)
        # What flows back stands at free pixels alone: known neighbours give none.
        back = F.pad(grad, (0, 0, 0, labels + 1))
        to_q, to_weights = torch.empty_like(q), torch.zeros_like(weights)
        for begin in range(0, len(q), CHUNK):
            part = slice(begin, begin + CHUNK)
            if need_q:
                torch.mm(_gather(back, neighbours[part]), weights, out=to_q[part])
            if need_tables:
                to_weights.addmm_(_gather(rows, neighbours[part]).T, grad[part])
        ahead, behind = to_weights.view(2, -1, labels, labels)
        return to_q if need_q else None, ahead.transpose(1, 2) + behind if need_tables else None, None


def _rows(q: Tensor) -> Tensor:
    """q, then a one-hot row for each label, then zeros: ``[P + L + 1, L]``."""
    fixed = torch.eye(q.shape[1] + 1, q.shape[1], dtype=q.dtype, device=q.device)
    return torch.cat([q, fixed])


def _weights(tables: Tensor) -> Tensor:
    """``[2 C L, L]``: from a neighbour's class, side and label to the pixel's own label."""
    return torch.cat([tables.transpose(1, 2), tables]).flatten(0, 1)


def _gather(rows: Tensor, neighbours: Tensor) -> Tensor:
    return F.embedding(neighbours, rows).flatten(1)
