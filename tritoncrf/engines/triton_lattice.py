"""How does the Triton engine sweep a lattice? Neighbours by arithmetic, rows of tables, lists of free sites, and the launches.

A kernel lists free sites colour by colour, without a look from the host, so no launch depends on how many there are. All
sweeps of a batch are one launch, by a program for each image or, of few images, by several (`tritoncrf.kernels.sweeps`). The
incremental update passes over sites that surely stay; what the sampler keeps for it between calls, the field, bounds each
site's odds against staying, made in whole numbers, so that it does not depend on order (`tritoncrf.kernels.odds`).
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Plan, Tables, averaging
from tritoncrf.engines.triton_grid import Grid, grid_of
from tritoncrf.engines.triton_shapes import plain, sweeping

if TYPE_CHECKING:
    from tritoncrf.kernels.counts import Ends
    from tritoncrf.kernels.edges import Edges
    from tritoncrf.kernels.listing import Listing
    from tritoncrf.kernels.tables import Rows


@dataclass(frozen=True)
class LatticeWork:
    """Energies and tables of a batch, and lists of its free sites; its methods are the engine's functions, keys signed."""

    plan: Plan
    grid: Grid
    unary: Tensor
    """float32 [N, S, PAD], by slot."""
    rows: Rows
    listing: Listing
    edges: Edges

    def with_plan(self, plan: Plan) -> LatticeWork:
        """The same energies where other sites are free."""
        lists = _listing(plan, self.grid)
        return replace(self, plan=plan, listing=lists, edges=_edges(plan, self.grid, lists.position, self.edges))

    def retable(self, tables: Tables) -> LatticeWork:
        new = _weighed(self.plan, self.grid, tables)
        edges = self.edges._replace(gated=new.gated, steep=new.steep)
        return replace(self, rows=_rows(self.plan, self.grid, tables), edges=edges)

    def initial(self, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
        from tritoncrf.kernels import initial

        plan = self.plan
        initial.initial(
            labels, self.unary, self.listing, plan.index, count, contract.scale_of(1.0), key, purpose, plan.num_labels,
            *plain(plan),
        )  # fmt: skip

    def field(self, labels: Tensor) -> Tensor:
        """Nothing is known of any site yet: odds, int32 ``[N, R, S]``, and behind them a tag for each chain, all 0."""
        return torch.zeros(self.plan.chains * (len(self.plan.positions) + 1), dtype=torch.int32, device=labels.device)

    def sweep(
        self, labels: Tensor, field: Tensor | None, sweeps: int, scale: float, key: tuple[int, int], count: Tensor,
        purpose: int, bad: Tensor | None,
    ) -> Tensor:  # fmt: skip
        from tritoncrf.kernels import sweeps as moving
        from tritoncrf.kernels.draw import far

        plan, grid = self.plan, self.grid
        flips = torch.zeros(labels.shape[:2], dtype=torch.int64, device=labels.device)
        lazy = field is not None and not far(scale)
        if field is not None and not lazy:
            # Labels move, and what is known of their sites does not move with them.
            field[-plan.chains :].zero_()
        shape = sweeping(plan, lazy, len(plan.color_bounds) - 1, labels.device)
        moving.sweep(
            labels, self.unary, self.rows, grid.steps, grid.color_bounds, self.listing, plan.index, count, flips, bad,
            field if lazy else None, list(plan.color_bounds), sweeps, scale, key, purpose, plan.num_labels, shape, self.edges,
        )  # fmt: skip
        return flips

    def conditionals(
        self, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None
    ) -> Tensor:
        from tritoncrf.kernels import conditionals

        energy: Tensor = conditionals.conditionals(
            labels, self.unary, self.rows, self.grid.steps, self.listing, bad, out, scale, self.plan.num_labels,
            *plain(self.plan), self.edges,
        )  # fmt: skip
        return energy

    def average(
        self, labels: Tensor, field: Tensor | None, sweeps: int, scale: float, key: tuple[int, int], count: Tensor,
        purpose: int, out: Tensor, bad: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if field is None or sweeps < 2:
            # Where many labels flip nearly no conditional stands.
            return everywhere(self, labels, field, sweeps, scale, key, count, purpose, out, bad)
        from tritoncrf.kernels import standing

        found: tuple[Tensor, Tensor] = standing.average(
            lambda done: self.sweep(labels, field, 1, scale, key, count + done, purpose, bad), sweeps, labels, self.unary,
            self.rows, self.grid.steps, self.listing, bad, out, scale, self.plan.num_labels, *plain(self.plan), self.edges,
        )  # fmt: skip
        return found


everywhere = averaging(LatticeWork.sweep, LatticeWork.conditionals)


def prepare(plan: Plan, logits: Tensor, tables: Tables) -> LatticeWork:
    from tritoncrf.kernels import initial

    grid = grid_of(plan)
    lists = _listing(plan, grid)
    unary = initial.build_unary(logits.detach(), plan.pixels, *plain(plan))
    edges = _edges(plan, grid, lists.position, _weighed(plan, grid, tables))
    return LatticeWork(plan, grid, unary, _rows(plan, grid, tables), lists, edges)


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    from tritoncrf.kernels import counts

    grid = grid_of(plan)
    found: Tensor = counts.pair_counts(labels.contiguous(), grid.displacements, grid.tables, *_counted(plan, grid))
    return found


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    from tritoncrf.kernels import counts

    grid = grid_of(plan)
    given = data.contiguous(), free.contiguous(), grid.displacements, grid.tables
    found: Tensor = counts.pair_errors(*given, *_counted(plan, grid))
    return found


def gated_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    from tritoncrf.kernels import counts

    grid, edges = grid_of(plan), plan.edges
    if edges is None or edges.gates is None:
        return data.new_zeros((0, 0, plan.num_labels, plan.num_labels), dtype=torch.int64)
    ends = counts.Ends(edges.gates, edges.pixels, grid.gating)
    errors: Tensor = counts.gated_errors(
        data.contiguous(), free.contiguous(), grid.steps, plan.num_labels, len(edges.gated), ends
    )
    return errors


def _listing(plan: Plan, grid: Grid) -> Listing:
    from tritoncrf.kernels import listing

    free, sites = (part if part.stride(1) == 1 else part.contiguous() for part in (plan.free, plan.sites))
    alike = free.stride(0) == sites.stride(0) == 0
    return listing.build_listing(
        free.view(torch.uint8), sites, plan.positions, grid.color_bounds, plan.volume, min(len(free), 1) if alike else len(free)
    )


def _counted(plan: Plan, grid: Grid) -> tuple[int, int, int, Ends | None]:
    from tritoncrf.kernels.counts import Ends

    edges = plan.edges
    if edges is None or edges.kinds is None or plan.num_kinds == 1:
        return plan.num_labels, plan.num_classes, int(plan.kinded), None
    return plan.num_labels, plan.num_classes, plan.num_kinds, Ends(edges.kinds, edges.pixels, grid.planes)


def _rows(plan: Plan, grid: Grid, tables: Tables) -> Rows:
    from tritoncrf.kernels.tables import build_rows

    pairwise = tables.pairwise.detach()
    return build_rows(pairwise if plan.kinded else pairwise[:, None], grid.chosen)


def _weighed(plan: Plan, grid: Grid, tables: Tables) -> Edges:
    """The rows that gates weigh, and how steep they are."""
    from tritoncrf.kernels.edges import Edges
    from tritoncrf.kernels.tables import build_rows

    if plan.edges is None or tables.gated is None or not plan.edges.gated:
        return Edges()
    # On the device already, so that nothing is copied from the host.
    built = build_rows(tables.gated.detach().transpose(0, 1), grid.gating[-len(plan.edges.gated) :])
    return Edges(gated=built.rows, steep=built.spreads)


def _edges(plan: Plan, grid: Grid, position: Tensor, weighed: Edges) -> Edges:
    """Kinds, where a class has several tables, and gates by rank, beside the rows that gates weigh."""
    from tritoncrf.kernels.edges import by_rank

    edges, kinds, gates, images = plan.edges, None, None, len(plan.index)
    if edges is not None and edges.kinds is not None and plan.num_kinds > 1:
        kinds = by_rank(edges.kinds, *grid.kinded, edges.pixels, position)
    if edges is not None and edges.gates is not None and edges.gated:
        gates = by_rank(edges.gates.flatten(1, 2), *grid.weighing, edges.pixels, position)
        gates = gates.view(images, len(edges.gated), 2, -1, position.shape[1])
    return weighed._replace(kinds=kinds, gates=gates, gating=None if gates is None else grid.gating)
