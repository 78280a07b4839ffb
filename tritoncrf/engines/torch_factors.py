"""How does the torch engine walk a graph? Lists of free nodes by colour, rows gathered by lists of factors, and counts.

Any arity. Rows are added in whatever order, which rule 1 makes harmless.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Factors, Plan


def listing(plan: Plan, factors: Factors) -> tuple[Tensor, Tensor, list[int]]:
    """Graph and slot of each free node, colour by colour, and the colours' bounds."""
    image, slot = plan.free.nonzero(as_tuple=True)
    color = factors.colors[image, slot].long()
    order = color.argsort(stable=True)
    bounds = torch.bincount(color, minlength=factors.num_colors).cumsum(0).tolist()
    return image[order], slot[order], [0, *bounds]


def gather(
    plan: Plan, factors: Factors, tables: Tensor, unary: Tensor, flat: Tensor, image: Tensor, slot: Tensor, where: Tensor
) -> Tensor:
    """Energies float32 ``[A, L]`` of listed nodes: their unaries, and a row for each of their factors.

    tables: float32 ``[entries + 1]``, rounded, and a zero; flat: labels of all chains; image, slot, where: int64 ``[A]``,
    graph, number in it, and place in ``flat``.
    """
    energies = unary.clone()
    for site, entries, gate in factors.rows(factors.first[image] + slot, where - plan.positions[slot], flat):
        rows = tables[entries]
        energies.index_add_(0, site, rows if gate is None else contract.gate(gate[:, None], rows))
    return energies


def touched(plan: Plan, factors: Factors, listed: Tensor, spare: int, image: Tensor, slot: Tensor, where: Tensor) -> Tensor:
    """int64: the listed nodes that share a factor with one of these, each once.

    listed: int64, by place among the labels of all chains, which listed node stands there, ``spare`` for none.
    """
    base = where - plan.positions[slot]
    near = factors.neighbours(factors.first[image] + slot)
    parts = [listed[(base[owner, None] + others).flatten()] for owner, others in near]
    found = torch.unique(torch.cat(parts))
    # A clamped node has no energies to keep.
    kept: Tensor = found[found < spare]
    return kept


def factor_counts(factors: Factors, labels: Tensor) -> Tensor:
    """int64 ``[N, R, entries]``: how often each entry is read under labels ``[N, R, volume]``, a factor counting its gate."""
    size, graphs = factors.starts[-1], len(factors.first) - 1
    unit = contract.GATE_STEPS if factors.gated else 1
    counts = labels.new_zeros((graphs, labels.shape[1], size + 1), dtype=torch.int64)
    for part in factors.ends:
        owner = factors.graph_of(part.members[:, 0]) * (size + 1)
        weight = torch.full_like(owner, unit) if part.gate is None else part.gate.long()
        for replica, entries in enumerate(factors.entries(part, labels)):
            own = torch.zeros(graphs * (size + 1), dtype=torch.int64, device=labels.device)
            counts[:, replica] += own.index_add_(0, owner + entries, weight).view(graphs, -1)
    return counts[..., :-1]
