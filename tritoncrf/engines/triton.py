"""The Triton engine: fused kernels for NVIDIA and AMD GPUs, the torch engine's labels bit for bit.

Free sites are listed phase by phase by a kernel, without a look from the host, so no launch depends on how many there are. All
sweeps of a batch are one launch, by a program for each image or, of few images, by several (`tritoncrf.kernels.sweeps`). The
incremental update passes over sites that surely stay; what the sampler keeps for it between calls, the field, bounds each
site's odds against staying, made in whole numbers, so that it does not depend on order (`tritoncrf.kernels.odds`).

With TRITON_INTERPRET=1 in the environment when Triton is first imported the same kernels run on CPU tensors, slowly.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import Plan, Tables, averaging, triton_graphs
from tritoncrf.engines import Work as AnyWork
from tritoncrf.engines.soft import soft_counts
from tritoncrf.engines.triton_graphs import GraphWork
from tritoncrf.engines.triton_grid import Grid, grid_of
from tritoncrf.engines.triton_needs import missing

if TYPE_CHECKING:
    from tritoncrf.kernels.counts import Ends
    from tritoncrf.kernels.edges import Edges
    from tritoncrf.kernels.listing import Listing
    from tritoncrf.kernels.shapes import Launch
    from tritoncrf.kernels.tables import Rows

__all__ = [
    "average", "break_even", "conditionals", "field", "gated_errors", "initial", "missing", "pair_counts", "pair_errors",
    "prepare", "retable", "soft_counts", "sweep", "unary_errors",
]  # fmt: skip
# Where the times of both updates at 0.6, 2.2 and 84 % of flips cross, on an H200 at 20 labels.
break_even = 0.06


@dataclass(frozen=True)
class Work:
    """Energies and tables of a batch, and lists of its free sites."""

    plan: Plan
    grid: Grid
    unary: Tensor
    """float32 [N, S, PAD], by slot."""
    rows: Rows
    listing: Listing
    edges: Edges


def prepare(plan: Plan, logits: Tensor, tables: Tables, like: AnyWork | None = None) -> Work | GraphWork:
    if plan.volume >= 1 << 31 or len(plan.positions) * plan.replicas >= 1 << 31:
        raise ValueError("logits: expected fewer than 2^31 sites times replicas an image for engine='triton', got more")
    from tritoncrf.kernels import initial, listing, shapes

    # Kernels read numbers one behind the other, whatever view the caller gave.
    plan = replace(plan, index=plan.index.contiguous())
    if isinstance(like, GraphWork):
        return triton_graphs.with_plan(like, plan)
    if plan.factors is not None:
        rows = initial.build_unary(logits.detach(), plan.pixels, *shapes.plain(plan.labels, _wide()))
        return triton_graphs.prepare(plan, plan.factors, rows, tables)
    grid = grid_of(plan)
    free, sites = (part if part.stride(1) == 1 else part.contiguous() for part in (plan.free, plan.sites))
    alike = free.stride(0) == sites.stride(0) == 0
    lists = listing.build_listing(
        free.view(torch.uint8), sites, plan.positions, grid.phases, plan.volume, min(len(free), 1) if alike else len(free)
    )
    if like is not None:
        before = _check_work(like)
        return replace(before, plan=plan, listing=lists, edges=_edges(plan, grid, lists.position, before.edges))
    unary = initial.build_unary(logits.detach(), plan.pixels, *shapes.plain(plan.labels, _wide()))
    edges = _edges(plan, grid, lists.position, _weighed(plan, grid, tables))
    return Work(plan, grid, unary, _rows(plan, grid, tables), lists, edges)


def retable(work: AnyWork, tables: Tables) -> Work | GraphWork:
    if isinstance(work, GraphWork):
        return triton_graphs.retable(work, tables)
    work = _check_work(work)
    new = _weighed(work.plan, work.grid, tables)
    edges = work.edges._replace(gated=new.gated, steep=new.steep)
    return replace(work, rows=_rows(work.plan, work.grid, tables), edges=edges)


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    from tritoncrf.kernels import initial, shapes

    if isinstance(work, GraphWork):
        shape = shapes.plain(work.plan.labels, _wide())
        return triton_graphs.initial(work, labels, _signed(key), count, purpose, shape)
    work = _check_work(work)
    plan = work.plan
    initial.initial(
        labels, work.unary, work.listing, plan.index, count.contiguous(), contract.scale_of(1.0), _signed(key), purpose,
        plan.labels, *shapes.plain(plan.labels, _wide()),
    )  # fmt: skip


def field(work: AnyWork, labels: Tensor) -> Tensor:
    """Nothing is known of any site yet: odds, int32 ``[N, R, S]``, and behind them a tag for each chain, all 0."""
    if isinstance(work, GraphWork):
        return labels.new_empty(0, dtype=torch.int32)
    plan = _check_work(work).plan
    return torch.zeros(plan.chains * (len(plan.positions) + 1), dtype=torch.int32, device=labels.device)


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, bad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    from tritoncrf.kernels import sweeps as moving
    from tritoncrf.kernels.draw import far

    flips = torch.zeros(labels.shape[:2], dtype=torch.int64, device=labels.device)
    if isinstance(work, GraphWork):
        shape = _shape(work.plan, False, work.nodes.starts.shape[1] - 1, labels.device)
        return triton_graphs.sweep(work, labels, flips, sweeps, scale, _signed(key), count, purpose, bad, shape)
    work = _check_work(work)
    plan, grid = work.plan, work.grid
    lazy = field is not None and not far(scale)
    if field is not None and not lazy:
        # Labels move, and what is known of their sites does not move with them.
        field[-plan.chains :].zero_()
    shape = _shape(plan, lazy, len(plan.phases) - 1, labels.device)
    moving.sweep(
        labels, work.unary, work.rows, grid.steps, grid.phases, work.listing, plan.index, count.contiguous(), flips, bad,
        field if lazy else None, list(plan.phases), sweeps, scale, _signed(key), purpose, plan.labels, shape, work.edges,
    )  # fmt: skip
    return flips


def conditionals(
    work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None = None
) -> Tensor:  # fmt: skip
    from tritoncrf.kernels import conditionals, shapes

    if isinstance(work, GraphWork):
        return triton_graphs.conditionals(work, labels, scale, out, bad, shapes.plain(work.plan.labels, _wide()))
    work = _check_work(work)
    energy: Tensor = conditionals.conditionals(
        labels, work.unary, work.rows, work.grid.steps, work.listing, bad, out, scale, work.plan.labels,
        *shapes.plain(work.plan.labels, _wide()), work.edges,
    )  # fmt: skip
    return energy


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    from tritoncrf.kernels import counts

    if plan.factors is not None:
        return triton_graphs.factor_counts(plan, plan.factors, labels, None)
    grid = grid_of(plan)
    found: Tensor = counts.pair_counts(labels.contiguous(), grid.displacements, grid.tables, *_counted(plan, grid))
    return found


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    from tritoncrf.kernels import counts

    if plan.factors is not None:
        return triton_graphs.factor_counts(plan, plan.factors, data, free)
    grid = grid_of(plan)
    given = data.contiguous(), free.contiguous(), grid.displacements, grid.tables
    found: Tensor = counts.pair_errors(*given, *_counted(plan, grid))
    return found


def _counted(plan: Plan, grid: Grid) -> tuple[int, int, int, Ends | None]:
    from tritoncrf.kernels.counts import Ends

    edges = plan.edges
    if edges is None or edges.kinds is None or plan.kinds == 1:
        return plan.labels, plan.num_classes, int(plan.kinded), None
    return plan.labels, plan.num_classes, plan.kinds, Ends(edges.kinds, edges.pixels, grid.planes)


def gated_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    from tritoncrf.kernels import counts

    grid, edges = grid_of(plan), plan.edges
    if edges is None or edges.gates is None:
        return data.new_zeros((0, 0, plan.labels, plan.labels), dtype=torch.int64)
    ends = counts.Ends(edges.gates, edges.pixels, grid.gating)
    errors: Tensor = counts.gated_errors(
        data.contiguous(), free.contiguous(), grid.steps, plan.labels, len(edges.gated), ends
    )
    return errors


def unary_errors(data: Tensor, free: Tensor, labels: int) -> Tensor:
    from tritoncrf.kernels import errors

    return errors.unary_errors(free, data, labels)  # type: ignore[no-any-return]


def _check_work(work: AnyWork) -> Work:
    if not isinstance(work, Work):
        raise TypeError(f"work: expected what the triton engine prepared, got {type(work).__name__}")
    return work


def _signed(key: tuple[int, int]) -> tuple[int, int]:
    """Key words as signed 32-bit integers, so that every seed runs the same compiled kernel."""
    low, high = ((word ^ 1 << 31) - (1 << 31) for word in key)
    return low, high


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
    if edges is not None and edges.kinds is not None and plan.kinds > 1:
        kinds = by_rank(edges.kinds, *grid.kinded, edges.pixels, position)
    if edges is not None and edges.gates is not None and edges.gated:
        gates = by_rank(edges.gates.flatten(1, 2), *grid.weighing, edges.pixels, position)
        gates = gates.view(images, len(edges.gated), 2, -1, position.shape[1])
    return weighed._replace(kinds=kinds, gates=gates, gating=None if gates is None else grid.gating)


def _wide() -> bool:
    """Whether warps have 64 lanes."""
    return torch.version.hip is not None


def _shape(plan: Plan, lazy: bool, phases: int, device: torch.device) -> Launch:
    from tritoncrf.kernels import shapes

    length = len(plan.positions) // max(phases, 1)
    return shapes.choose(plan.labels, lazy, len(plan.index), plan.replicas, length, _processors(device), _wide())


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors; one where kernels are interpreted, a program after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_everywhere = averaging(sweep, conditionals)


def average(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, out: Tensor, bad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if field is None or sweeps < 2 or isinstance(work, GraphWork):
        # Where many labels flip nearly no conditional stands.
        return _everywhere(work, labels, field, sweeps, scale, key, count, purpose, out, bad)
    from tritoncrf.kernels import shapes, standing

    own, shape = _check_work(work), shapes.plain(_check_work(work).plan.labels, _wide())
    found: tuple[Tensor, Tensor] = standing.average(
        lambda done: sweep(work, labels, field, 1, scale, key, count + done, purpose, bad), sweeps, labels, own.unary,
        own.rows, own.grid.steps, own.listing, bad, out, scale, own.plan.labels, *shape, own.edges,
    )  # fmt: skip
    return found
