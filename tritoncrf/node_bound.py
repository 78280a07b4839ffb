"""Can a node's energies be added exactly? Rule 1's bound on graphs, node by node.

``sum_f 2 max|g_f T_f| <= 1023`` over a node's factors, of rounded tables and gates: then every partial sum is a multiple of
2^-12 below 4096. Gated tables hold entries of at most 16 in size, so that a gate's product is exact.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Factors
from tritoncrf.validation import Guard


def bound(guard: Guard, rounded: Tensor, starts: tuple[int, ...], factors: Factors | None) -> None:
    """Requires finite tables and, of a batch, that no node's factors pass the bound.

    rounded: float32 ``[entries]``; starts: where each table begins, and the end.
    """
    largest = torch.stack([rounded[a:b].abs().amax() for a, b in itertools.pairwise(starts)])
    guard.require(
        largest < torch.inf, "factors: expected finite table entries",
        lambda: f"NaN or infinity in table {int((~(largest < torch.inf)).int().argmax())}",
    )  # fmt: skip
    if factors is None:
        return
    for part in factors.ends:
        if part.gate is not None and len(part.gate):
            _gated(guard, largest[part.table.long()], part.gate)
    if guard.waits(rounded.device) and _surely(largest, factors):
        return
    total = rounded.new_zeros(factors.nodes, dtype=torch.float64)
    for part in factors.ends:
        mass = largest[part.table.long()]
        mass = mass if part.gate is None else contract.gate(part.gate, mass)
        for members in part.members.unbind(1):
            total.index_add_(0, members, 2.0 * mass.double())

    def got() -> str:
        worst = int(total.argmax())
        n = int(factors.graph_of(total.argmax()[None])[0])
        graph = f" of graph {n}" if len(factors.first) > 2 else ""
        return f"{float(total[worst]):.6g} at node {worst - int(factors.first[n])}{graph}"

    expected = f"factors: expected 2 * sum of the largest |entry| of each of a node's factors of at most {contract.TABLE_BOUND:g}"
    guard.require(total <= contract.TABLE_BOUND, expected, got)


def _gated(guard: Guard, mass: Tensor, gate: Tensor) -> None:
    # A factor without a gate of its own counts whole, whatever its entries.
    fine = (mass <= contract.GATED_BOUND) | (gate == contract.GATE_STEPS)
    guard.require(
        fine, f"factors: expected entries of at most {contract.GATED_BOUND:g} in size where a gate weighs them",
        lambda: f"{float(mass[~fine][0]):g}",
    )  # fmt: skip


def _surely(largest: Tensor, factors: Factors) -> bool:
    """Whether the node with most factors would be within the bound if all of them had the largest entry."""
    total = 0.0
    for part in factors.ends:
        if len(part.factor):
            total += 2.0 * float(largest.max()) * int(part.pointer.diff().max())
    return total <= contract.TABLE_BOUND
