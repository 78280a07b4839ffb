"""How does the Triton engine walk a graph? Lists of factors and of free nodes as its kernels read them, and their launches.

By gather alone, at any arity: each node's rows are read from lists, node by node. What depends on a batch's factors alone is
made once and kept with them; free nodes are sorted by colour on the device, without a look from the host.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Ends, Factors, Plan, Tables, averaging
from tritoncrf.engines.triton_shapes import plain, sweeping

if TYPE_CHECKING:
    from tritoncrf.kernels.factor_counts import Part
    from tritoncrf.kernels.graphs import Net, Nodes


@dataclass(frozen=True)
class GraphWork:
    """Energies, rows and lists of a batch of graphs; its methods are the engine's functions, keys signed."""

    plan: Plan
    unary: Tensor
    """float32 [N, S, PAD]."""
    rows: Tensor
    """float32 [rows, PAD]."""
    net: Net
    nodes: Nodes

    def with_plan(self, plan: Plan) -> GraphWork:
        """The same energies where other nodes are free."""
        return replace(self, plan=plan, nodes=_nodes(plan, _factors(plan)))

    def retable(self, tables: Tables) -> GraphWork:
        return replace(self, rows=_rows(_factors(self.plan), tables, self.unary.shape[2]))

    def initial(self, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
        from tritoncrf.kernels import initial
        from tritoncrf.kernels.listing import Listing

        slot, site, starts = self.nodes
        # A node's number is its position.
        lists, plan, scale = Listing(slot, slot, site, starts, starts), self.plan, contract.scale_of(1.0)
        initial.initial(labels, self.unary, lists, plan.index, count, scale, key, purpose, plan.num_labels, *plain(plan))

    def field(self, labels: Tensor) -> Tensor:
        """None: what is given it gathers."""
        return labels.new_empty(0, dtype=torch.int32)

    def sweep(
        self, labels: Tensor, field: Tensor | None, sweeps: int, scale: float, key: tuple[int, int], count: Tensor,
        purpose: int, bad: Tensor | None,
    ) -> Tensor:  # fmt: skip
        from tritoncrf.kernels import graphs

        plan = self.plan
        flips = torch.zeros(labels.shape[:2], dtype=torch.int64, device=labels.device)
        shape = sweeping(plan, False, self.nodes.starts.shape[1] - 1, labels.device)
        graphs.sweep(
            labels, self.unary, self.rows, self.net, self.nodes, plan.index, count, flips, bad, sweeps, scale, key, purpose,
            plan.num_labels, shape,
        )  # fmt: skip
        return flips

    def conditionals(
        self, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None
    ) -> Tensor:
        from tritoncrf.kernels import graphs

        energy: Tensor = graphs.conditionals(
            labels, self.unary, self.rows, self.net, self.nodes, bad, out, scale, self.plan.num_labels, *plain(self.plan)
        )
        return energy

    def average(
        self, labels: Tensor, field: Tensor | None, sweeps: int, scale: float, key: tuple[int, int], count: Tensor,
        purpose: int, out: Tensor, bad: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return everywhere(self, labels, field, sweeps, scale, key, count, purpose, out, bad)


everywhere = averaging(GraphWork.sweep, GraphWork.conditionals)


def prepare(plan: Plan, factors: Factors, logits: Tensor, tables: Tables) -> GraphWork:
    from tritoncrf.kernels import initial

    unary = initial.build_unary(logits.detach(), plan.pixels, *plain(plan))
    return GraphWork(plan, unary, _rows(factors, tables, unary.shape[2]), _net(factors), _nodes(plan, factors))


def factor_counts(plan: Plan, factors: Factors, data: Tensor, free: Tensor | None) -> Tensor:
    """`Engine.pair_counts`, or `Engine.pair_errors` where ``free`` is given."""
    from tritoncrf.kernels import factor_counts

    name = "triton.parts"
    if name not in factors.kept:
        factors.kept[name] = [_part(factors, part) for part in factors.ends]
    parts: list[Part] = factors.kept[name]  # type: ignore[assignment]
    given = data.contiguous(), None if free is None else free.contiguous(), parts
    found: Tensor = factor_counts.factor_counts(*given, plan.num_labels, factors.starts[-1], plan.unit)
    return found


def _factors(plan: Plan) -> Factors:
    if plan.factors is None:
        raise TypeError("plan: expected one of graphs, got a lattice's")
    return plan.factors


def _nodes(plan: Plan, factors: Factors) -> Nodes:
    from tritoncrf.kernels.graphs import Nodes

    colors = factors.num_colors
    key, order = factors.colors.masked_fill(~plan.free, colors).sort(dim=1, stable=True)
    steps = torch.arange(colors + 1, dtype=key.dtype, device=key.device).expand(len(key), -1).contiguous()
    listed = order.masked_fill(key == colors, -1).int()
    # A site's number has 32 bits, whatever they say as a signed one.
    site = plan.sites.expand(len(key), -1).gather(1, order).int()
    return Nodes(listed, site, torch.searchsorted(key, steps).int())


def _net(factors: Factors) -> Net:
    from tritoncrf.kernels.graphs import Net

    name = "triton.net"
    if name not in factors.kept:
        factors.kept[name] = Net(factors.first, *_ends(factors))
    found = factors.kept[name]
    assert isinstance(found, Net)
    return found


def _ends(factors: Factors) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`Net.pointer`, `base`, `others` and `gates`: the ends of all arities, node by node."""
    device, most = factors.first.device, factors.ends[-1].arity - 1
    pointer = torch.stack([part.pointer for part in factors.ends]).sum(0)
    total = int(pointer[-1])
    if total >= 1 << 31 or _count(factors) >= 1 << 31:
        raise ValueError(
            f"factors: expected fewer than 2^31 members of all factors and rows of all tables for engine='triton', got {total} "
            f"and {_count(factors)}"
        )
    base = torch.empty(total, dtype=torch.int32, device=device)
    others = torch.full((most, total), -1, dtype=torch.int32, device=device)
    gates = torch.full((total,), contract.GATE_STEPS, dtype=torch.uint8, device=device) if factors.gated else None
    begin, filled = torch.tensor(_begins(factors), dtype=torch.int64, device=device), torch.zeros_like(pointer[:-1])
    for part in factors.ends:
        length = part.pointer.diff()
        # Ends of a node stand one behind the other, those of smaller factors first.
        shift = pointer[:-1] + filled - part.pointer[:-1]
        where = torch.arange(len(part.factor), device=device) + shift.repeat_interleave(length)
        filled += length
        factor = part.factor.long()
        base[where] = (begin[part.table[factor].long()] + part.axis.long() * factors.num_labels ** (part.arity - 1)).int()
        others[most + 1 - part.arity :, where] = part.others.T
        if gates is not None and part.gate is not None:
            gates[where] = part.gate[factor]
    return pointer.int(), base, others, gates


def _part(factors: Factors, ends: Ends) -> Part:
    from tritoncrf.kernels.factor_counts import Part

    graph = factors.graph_of(ends.members[:, 0])
    start = torch.tensor(factors.starts, dtype=torch.int64, device=graph.device)[ends.table.long()]
    members = (ends.members - factors.first[graph, None]).T.int().contiguous()
    return Part(members, graph.int(), start, ends.gate)


def _arities(factors: Factors) -> list[int]:
    """The arity of each table."""
    return [arity for arity, kinds in zip(factors.arities, factors.kinds, strict=True) for _ in range(kinds)]


def _begins(factors: Factors) -> list[int]:
    """Where the rows of each table begin: a block for each of its axes; then how many rows there are."""
    found = [0]
    for arity in _arities(factors):
        found.append(found[-1] + arity * factors.num_labels ** (arity - 1))
    return found


def _count(factors: Factors) -> int:
    return _begins(factors)[-1]


def _rows(factors: Factors, tables: Tables, pad: int) -> Tensor:
    """float32 ``[rows, PAD]``: every table once for each of its axes, that axis last, on rule 1's grid."""
    name, number, flat = "triton.rows", factors.num_labels, contract.round_pairwise(tables.pairwise.detach())
    if name not in factors.kept:
        parts = []
        for start, arity in zip(factors.starts, _arities(factors), strict=False):
            entries = torch.arange(start, start + number**arity, device=flat.device).view([number] * arity)
            parts += [entries.movedim(axis, -1).reshape(-1, number) for axis in range(arity)]
        factors.kept[name] = torch.cat(parts) if parts else torch.empty((0, number), dtype=torch.int64, device=flat.device)
    chosen: Tensor = factors.kept[name]  # type: ignore[assignment]
    return F.pad(flat[chosen], (0, pad - number))
