"""How often would each pair stand on an edge if one end's label were soft? Counts of labels at one end, weights at the other.

``soft[c, k, l, m] = sum_(i, j = i + d_c) a_i(l) [y_j = m] + [y_i = l] a_j(m)`` over edges of class c and kind k: the gradient,
by the tables, of a sum over sites of functions of their conditional energies ``e_i``, with ``a_i`` the gradient by e_i and the
neighbours' labels held. Several labelings are added up, each with weights of its own. Weights are multiples of
`STEP` of at most 1 in size: in float32 they are exact, and 2^28 of them add up exactly in float64, so that neither an order
matters nor how a batch is divided.

In all functions labels are uint8 ``[N, M, volume]``, sites int64 ``[A]``, numbers ``n S + slot``, and weights float32
``[M, A, L]``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Plan

STEP = 2.0**-24


def soft_counts(plan: Plan, labels: Tensor, sites: Tensor, weights: Tensor) -> Tensor:
    """float64, as the pairwise tables. Of graphs a factor counts its gate."""
    image, slot = _split(plan, sites)
    size, edges, where = plan.num_labels + 1, plan.edges, image * plan.volume + plan.positions[slot]
    kinds = edges.kinds_at(plan, image, plan.positions[slot]).long() if edges is not None and plan.kinded else None
    found = weights.new_zeros((plan.num_classes, plan.num_kinds, plan.num_labels, plan.num_labels), dtype=torch.float64)
    if plan.factors is not None:
        found = weights.new_zeros(plan.factors.starts[-1] + 1, dtype=torch.float64)
    for flat, soft in _labelings(labels, weights):
        if plan.factors is not None:
            for site, entries, gate in plan.factors.rows(plan.factors.first[image] + slot, image * plan.volume, flat):
                told = soft[site] if gate is None else soft[site] * (gate[:, None].double() / contract.GATE_STEPS)
                found.index_add_(0, entries.flatten(), told.flatten())
            continue
        for k, (step, c) in enumerate(zip(plan.displacements, plan.classes, strict=True)):
            for end, place in enumerate((step, -step)):
                row = flat[where + place].long()
                if kinds is not None:
                    row = row + kinds[:, k + end * len(plan.displacements)] * size
                counts = soft.new_zeros((plan.num_kinds * size, plan.num_labels)).index_add_(0, row, soft)
                counts = counts.view(plan.num_kinds, size, plan.num_labels)[:, :-1]
                # Ahead the own label is the first of the pair, behind the second.
                found[c] += counts if end else counts.transpose(1, 2)
    return found[:-1] if plan.factors is not None else found if plan.kinded else found[:, 0]


def soft_gated(plan: Plan, labels: Tensor, sites: Tensor, weights: Tensor) -> Tensor:
    """As `soft_counts`, an edge counting its gate: float64 ``[G, Cg, L, L]``."""
    edges, (image, slot) = plan.edges, _split(plan, sites)
    if edges is None or edges.gates is None:
        return weights.new_zeros((0, 0, plan.num_labels, plan.num_labels), dtype=torch.float64)
    where = image * plan.volume + plan.positions[slot]
    gates = edges.gates_at(plan, image, plan.positions[slot]).double() / contract.GATE_STEPS
    found = weights.new_zeros((*edges.gates.shape[1:3], plan.num_labels, plan.num_labels), dtype=torch.float64)
    for flat, soft in _labelings(labels, weights):
        for j, k in enumerate(edges.gated):
            for end, place in enumerate((plan.displacements[k], -plan.displacements[k])):
                row = flat[where + place].long()
                for rank in range(len(found)):
                    counts = soft.new_zeros((plan.num_labels + 1, plan.num_labels))
                    counts.index_add_(0, row, soft * gates[:, end, j, rank, None])
                    found[rank, edges.gating[k]] += counts[:-1] if end else counts[:-1].T
    return found


def soft_gates(plan: Plan, labels: Tensor, sites: Tensor, weights: Tensor, tables: Tensor, area: int) -> Tensor:
    """The gradient by the gates, float64 ``[N, G, Cg, area]``, at an edge's first end: tables ``[G, Cg, L, L]``."""
    edges, (image, slot) = plan.edges, _split(plan, sites)
    found = weights.new_zeros((len(plan.index), *tables.shape[:2], area), dtype=torch.float64)
    read = F.pad(tables.double(), (0, 1, 0, 1))
    where = image * plan.volume + plan.positions[slot]
    for flat, soft in _labelings(labels, weights):
        for k in () if edges is None else edges.gated:
            for end, step in enumerate((plan.displacements[k], -plan.displacements[k])):
                there, at = flat[where + step].long(), plan.positions[slot] + end * step
                pixel, gating = edges.pixels[at], edges.gating[k]  # type: ignore[union-attr]
                for rank, table in enumerate(read[:, gating]):
                    rows = table[there, :-1] if end else table[:-1, there].T
                    found[:, rank, gating].index_put_((image, pixel), (soft * rows).sum(1), accumulate=True)
    return found


def soft_factor_gates(plan: Plan, labels: Tensor, sites: Tensor, weights: Tensor, tables: Tensor) -> Tensor:
    """The gradient by a graph's gates, float64 ``[F]``, of the factors of arities that have some: tables ``[entries]``."""
    factors, (image, slot) = plan.factors, _split(plan, sites)
    read, parts = F.pad(tables.double(), (0, 1)), list[Tensor]()
    for part in () if factors is None else factors.ends:
        if part.gate is None:
            continue
        own = weights.new_zeros(len(part.members), dtype=torch.float64)
        for flat, soft in _labelings(labels, weights):
            given = factors.first[image] + slot, image * plan.volume, flat  # type: ignore[union-attr]
            for site, entries, factor in factors.rows_of(part, *given):  # type: ignore[union-attr]
                own.index_add_(0, factor, (soft[site] * read[entries]).sum(1))
        parts.append(own)
    return torch.cat(parts) if parts else weights.new_zeros(0, dtype=torch.float64)


def _labelings(labels: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each labeling all images' labels ``[N * volume]``, and its weights, float64."""
    for rows, soft in zip(labels.unbind(1), weights, strict=True):
        yield rows.reshape(-1), soft.double()


def _split(plan: Plan, sites: Tensor) -> tuple[Tensor, Tensor]:
    """Image and slot of each site."""
    image = sites.div(len(plan.positions), rounding_mode="floor")
    return image, sites - image * len(plan.positions)
