"""How often does each pair of labels stand on an edge? Histograms of label pairs, and the errors that follow from them.

``counts[c, k, l, m]`` is the number of edges of class c and kind k between labels l and m; a gated table's count weighs an edge
by its gate, in whole steps of 1 / 128. All are whole numbers, so their order never matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Plan
from tritoncrf.engines.torch_factors import factor_counts

# Counters filled at once.
COUNTERS = 1 << 20


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    if plan.factors is not None:
        return factor_counts(plan.factors, labels)
    return _counts(plan, labels, None).to(torch.int64)


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    return (pair_counts(plan, data) - pair_counts(plan, free)).sum((0, 1))


def gated_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    edges = plan.edges
    if edges is None or edges.gates is None:
        return data.new_zeros((0, 0, plan.num_labels, plan.num_labels), dtype=torch.int64)
    errors = data.new_zeros((edges.gates.shape[1], edges.gates.shape[2], plan.num_labels, plan.num_labels), dtype=torch.int64)
    for rank in range(len(errors)):
        # Whole numbers below 2^53: exact in float64 in any order.
        counts = (_counts(plan, labels, rank).sum((0, 1)) for labels in (data, free))
        difference = next(counts) - next(counts)
        for k in edges.gated:
            errors[rank, edges.gating[k]] = difference[plan.classes[k]].to(torch.int64)
    return errors


def _counts(plan: Plan, labels: Tensor, rank: int | None) -> Tensor:
    """Counts ``[N, R, C, (kinds,) L, L]`` of label pairs, or of what one gate weighs them with: float64 ``[N, R, C, L, L]``."""
    rows, edges = labels.flatten(0, -2).to(torch.int32), plan.edges
    size, replicas = plan.num_labels + 1, labels.shape[:-1].numel() // max(len(plan.index), 1)
    kinds = plan.num_kinds if rank is None else 1
    # With void as one more label every position counts, and the pairs that have no edge fall into the last row or column.
    counts = rows.new_zeros((len(rows), plan.num_classes, kinds, plan.num_labels, plan.num_labels), dtype=torch.float64)
    together = max(1, COUNTERS // (kinds * size**2))
    for part in range(0, len(rows), together):
        wide = rows[part : part + together]
        image = torch.arange(part, part + len(wide), device=rows.device) // replicas
        chain = torch.arange(len(wide), device=rows.device, dtype=torch.int32)[:, None] * (kinds * size**2)
        first, second = wide * size + chain, wide
        for k, (displacement, c) in enumerate(zip(plan.displacements, plan.classes, strict=True)):
            step = abs(displacement)
            near, far = slice(0, wide.shape[1] - step), slice(step, None)
            i, j = (near, far) if displacement > 0 else (far, near)
            pairs, weights = first[:, i] + second[:, j], None
            if edges is not None and rank is None and edges.kinds is not None and edges.kinded[k] >= 0:
                pairs = pairs + edges.kinds[image, edges.kinded[k]][:, edges.pixels[i]].to(torch.int32) * size**2
            if edges is not None and rank is not None and edges.gates is not None:
                if edges.gating[k] < 0:
                    continue
                weights = edges.gates[image, rank, edges.gating[k]][:, edges.pixels[i]].flatten().double()
            histogram = torch.bincount(pairs.flatten(), weights, minlength=len(wide) * kinds * size**2)
            # Several displacements may read one table: those across a seam.
            counts[part : part + together, c] += histogram.view(-1, kinds, size, size)[..., :-1, :-1].to(counts.dtype)
    shape = (*labels.shape[:-1], plan.num_classes, *([plan.num_kinds] if plan.kinded and rank is None else []))
    return counts.view(*shape, plan.num_labels, plan.num_labels)


def unary_errors(data: Tensor, free: Tensor, labels: int) -> Tensor:
    images, replicas, *shape = data.shape
    errors = torch.zeros((images, labels, *shape), dtype=torch.float32, device=data.device)
    for drawn, sign in ((free, 1.0), (data, -1.0)):
        exists = (drawn != contract.VOID).to(errors.dtype)
        errors.scatter_add_(1, drawn.long().clamp(max=labels - 1), exists * sign)
    # Whole numbers until here: what cancels, cancels exactly.
    return errors if replicas == 1 else errors * (1.0 / replicas)
