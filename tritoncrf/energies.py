"""What is the energy of chains, as samplers add it up? Rule 1's whole multiples of 2^-12 nat, exact in any order.

A labelling's energy is its unaries' and its edges' or factors': each class's counts of label pairs times its table. Of a
visit's sweeps the difference of energies before and after tells whether the chain stood where the model wants it: in
equilibrium it is zero in the mean, for sweeps leave the distribution as it is; a chain that lags behind the learning drops
(Tieleman 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tritoncrf import contract
from tritoncrf.chains import ChainState
from tritoncrf.engines import Engine, Factors, Plan, Tables


def pair_energy(plan: Plan, rows: Tensor, counts: Tensor, tables: Tables, rounded: bool = True) -> Tensor:
    """Energy of all edges or factors, float64 ``[N, R]``, of labels that were counted; rounded: as samplers add it up."""
    if plan.factors is not None and plan.factors.gated:
        return _factors(plan.factors, rows, tables.pairwise, rounded)
    total = counts.double().flatten(2) @ tables.pairwise.double().flatten()
    if plan.edges is None or plan.edges.gates is None or tables.gated is None:
        return total
    entries = F.pad(tables.gated.double(), (0, 1, 0, 1))
    here = rows[:, :, plan.positions].long()
    for k in plan.edges.gated:
        there, place = rows[:, :, plan.positions + plan.displacements[k]].long(), plan.edges.gating[k]
        for rank, table in enumerate(entries[:, place]):
            steps, read = plan.edges.gates[:, None, rank, place, plan.pixels], table[here, there]
            total += contract.gate(steps, read.float()).double().sum(2) if rounded else _weighed(steps, read).sum(2)
    return total


def _factors(factors: Factors, rows: Tensor, tables: Tensor, rounded: bool) -> Tensor:
    """`pair_energy` of a graph with gates; tables ``[entries]``."""
    total, read = rows.new_zeros(rows.shape[:2], dtype=torch.float64), F.pad(tables.double(), (0, 1))
    for part in factors.ends:
        values = read[factors.entries(part, rows)]
        if part.gate is not None:
            values = contract.gate(part.gate, values.float()).double() if rounded else _weighed(part.gate, values)
        total.index_add_(0, factors.graph_of(part.members[:, 0]), values.T)
    return total


def _weighed(steps: Tensor, entries: Tensor) -> Tensor:
    return steps.double() / contract.GATE_STEPS * entries


def unary_energy(logits: Tensor, labels: Tensor) -> Tensor:
    """Rounded unaries of a labelling, float64 ``[N, R]``: logits ``[N, L, *shape]``, labels uint8 ``[N, R, *shape]`` of which
    what is no label has no pixel."""
    outside = labels >= logits.shape[1]
    taken = logits.gather(1, labels.long().masked_fill_(outside, 0)).float()
    distance = (logits.amax(1, keepdim=True).float() - taken).clamp_(max=contract.UNARY_CAP)
    rounded = torch.floor(distance * contract.GRID + 0.5) / contract.GRID
    rounded.masked_fill_(torch.isneginf(taken), contract.FORBIDDEN).masked_fill_(outside, 0.0)
    return rounded.flatten(2).sum(2, dtype=torch.float64)


def energy(engine: Engine, chains: ChainState, rows: Tensor | None = None) -> Tensor:
    """Energies of chains, or of other rows of theirs, under their own logits and rounded tables: float64 ``[N, R]``, exact."""
    rows = chains.rows if rows is None else rows
    # Rounded already but where an engine rounds by itself: there is nothing to lose by it a second time.
    tables = Tables(*(None if part is None else contract.round_pairwise(part) for part in chains.tables))  # type: ignore[arg-type]
    pairs = pair_energy(chains.plan, rows, engine.pair_counts(chains.plan, rows), tables)
    return pairs + unary_energy(chains.logits.detach(), chains.layout.crop(rows, chains.shape))


@dataclass(frozen=True)
class Path:
    """Where a phase's chains were: before its sweeps, after half of them where somebody asked, and at the end."""

    engine: Engine
    chains: ChainState
    marks: tuple[Tensor, ...]
    """Rows before the end, uint8 [N, R, volume]."""

    @property
    def sites(self) -> Tensor:
        """int64 [N]: free sites of all replicas."""
        return self.chains.plan.free.sum(1) * self.chains.replicas

    def whole(self) -> Path:
        """The path without the marks on its way."""
        return Path(self.engine, self.chains, self.marks[:1])

    def drops(self) -> Tensor:
        """By how much energy fell from each mark to the next, summed over replicas: int64 ``[marks, N]``, in 2^-12 nat."""
        energies = torch.stack([energy(self.engine, self.chains, rows) for rows in (*self.marks, self.chains.rows)])
        # What no energy is, a fault that raises later has made.
        fixed = (energies.nan_to_num(0.0, 0.0, 0.0).sum(2) * contract.GRID).long()
        return fixed[:-1] - fixed[1:]
