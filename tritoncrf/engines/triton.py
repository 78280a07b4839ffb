"""The Triton engine: fused kernels for NVIDIA and AMD GPUs, the torch engine's labels bit for bit.

Free sites are listed phase by phase by a kernel, without a look from the host, so no launch depends on how many there are. All
sweeps of a batch are one launch, by a program for each image or, of few images, by several (`tritoncrf.kernels.sweeps`). The
incremental update passes over sites that surely stay; what the sampler keeps for it between calls, the field, is a bound of each
site's odds against staying, made in whole numbers, so that it does not depend on order (`tritoncrf.kernels.odds`).

With TRITON_INTERPRET=1 in the environment when Triton is first imported the same kernels run on CPU tensors, slowly.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import FEWEST, Plan, Tables, averaging
from tritoncrf.engines import Work as AnyWork
from tritoncrf.engines.triton_grid import Grid, grid_of

if TYPE_CHECKING:
    from tritoncrf.kernels.counts import Ends
    from tritoncrf.kernels.edges import Edges
    from tritoncrf.kernels.listing import Listing
    from tritoncrf.kernels.tables import Rows

# Where the times of both updates at 0.6, 2.2 and 84 % of flips cross, on an H200 at 20 labels.
break_even = 0.06
MAX_LABELS = 64
OLDEST = (3, 6)


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


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def missing(device: torch.device, labels: int = FEWEST, arity: int = 0) -> str | None:
    """Why Triton cannot run on ``device`` with so many labels, and what to do about it."""
    if arity:
        return "it samples lattices, and the model is one of graphs: use engine='torch'"
    if labels > MAX_LABELS:
        return f"it holds at most {MAX_LABELS} labels in registers and the model has {labels}: use engine='torch'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'tritoncrf[triton]' (Linux; GPU builds of torch bring their own)"
    version = _version()
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        return f"it needs Triton 3.6 or newer and found {version}: pip install -U 'triton>=3.6'"
    if device.type != "cuda" and not _interpreted():
        return f"it needs a GPU and the tensors are on {device}: move model and logits there, or use engine='torch'"
    if device.type != "cuda" and (trouble := uninterpretable(version, importlib.metadata.version("numpy"))):
        return f"{trouble}, or use engine='torch'"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0 or newer and {device} has less: use engine='torch'"
    return None


def uninterpretable(triton: str, numpy: str) -> str | None:
    """What ails Triton's interpreter with this NumPy, and what to do; None: nothing that is known."""
    ours, theirs = (tuple(int(part) for part in re.findall(r"\d+", version)[:2]) for version in (triton, numpy))
    # Up to 3.6 it takes a loop's end with int() from an array of one dimension, which NumPy 2.4 refuses.
    if not ours or ours > (3, 6) or theirs < (2, 4):
        return None
    found = f"Triton {triton} cannot interpret kernels (TRITON_INTERPRET=1) with NumPy {numpy}"
    return f"{found}, though it compiles them for a GPU: pip install 'numpy<2.4'"


def _version() -> str:
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    # Built from source, without metadata: as new as whoever built it wanted.
    return f"{OLDEST[0]}.{OLDEST[1]}"


def prepare(plan: Plan, logits: Tensor, tables: Tables, like: AnyWork | None = None) -> Work:
    if plan.volume >= 1 << 31 or len(plan.positions) * plan.replicas >= 1 << 31:
        raise ValueError("logits: expected fewer than 2^31 sites times replicas an image for engine='triton', got more")
    from tritoncrf.kernels import initial, listing, shapes

    # Kernels read numbers one behind the other, whatever view the caller gave.
    plan, grid = replace(plan, index=plan.index.contiguous()), grid_of(plan)
    free, sites = (part if part.stride(1) == 1 else part.contiguous() for part in (plan.free, plan.sites))
    alike = free.stride(0) == sites.stride(0) == 0
    lists = listing.build_listing(
        free.view(torch.uint8), sites, plan.positions, grid.phases, plan.volume, min(len(free), 1) if alike else len(free)
    )
    if like is not None:
        before = _own(like)
        return replace(before, plan=plan, listing=lists, edges=_edges(plan, grid, lists.position, before.edges))
    unary = initial.build_unary(logits.detach(), plan.pixels, *shapes.plain(plan.labels, _wide()))
    edges = _edges(plan, grid, lists.position, _weighed(plan, grid, tables))
    return Work(plan, grid, unary, _rows(plan, grid, tables), lists, edges)


def retable(work: AnyWork, tables: Tables) -> Work:
    work = _own(work)
    new = _weighed(work.plan, work.grid, tables)
    edges = work.edges._replace(gated=new.gated, steep=new.steep)
    return replace(work, rows=_rows(work.plan, work.grid, tables), edges=edges)


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    from tritoncrf.kernels import initial, shapes

    work = _own(work)
    plan = work.plan
    initial.initial(
        labels, work.unary, work.listing, plan.index, count.contiguous(), contract.scale_of(1.0), _signed(key), purpose,
        plan.labels, *shapes.plain(plan.labels, _wide()),
    )  # fmt: skip


def field(work: AnyWork, labels: Tensor) -> Tensor:
    """Nothing is known of any site yet: odds, int32 ``[N, R, S]``, and behind them a tag for each chain, all 0."""
    plan = _own(work).plan
    return torch.zeros(plan.chains * (len(plan.positions) + 1), dtype=torch.int32, device=labels.device)


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, bad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    from tritoncrf.kernels import shapes
    from tritoncrf.kernels import sweeps as moving
    from tritoncrf.kernels.draw import far

    work = _own(work)
    plan, grid = work.plan, work.grid
    flips = torch.zeros(labels.shape[:2], dtype=torch.int64, device=labels.device)
    lazy = field is not None and not far(scale)
    if field is not None and not lazy:
        # Labels move, and what is known of their sites does not move with them.
        field[-plan.chains :].zero_()
    length = len(plan.positions) // max(len(plan.phases) - 1, 1)
    shape = shapes.choose(
        plan.labels, lazy, len(plan.index), plan.replicas, length, _processors(labels.device), _wide()
    )
    moving.sweep(
        labels, work.unary, work.rows, grid.steps, grid.phases, work.listing, plan.index, count.contiguous(), flips, bad,
        field if lazy else None, list(plan.phases), sweeps, scale, _signed(key), purpose, plan.labels, shape, work.edges,
    )  # fmt: skip
    return flips


def conditionals(
    work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None = None
) -> Tensor:  # fmt: skip
    from tritoncrf.kernels import conditionals, shapes

    work = _own(work)
    energy: Tensor = conditionals.conditionals(
        labels, work.unary, work.rows, work.grid.steps, work.listing, bad, out, scale, work.plan.labels,
        *shapes.plain(work.plan.labels, _wide()), work.edges,
    )  # fmt: skip
    return energy


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

    found: Tensor = errors.unary_errors(free, data, labels)
    return found


def _own(work: AnyWork) -> Work:
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


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors; one where kernels are interpreted, a program after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_everywhere = averaging(sweep, conditionals)


def average(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, out: Tensor, bad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if field is None or sweeps < 2:
        # Where many labels flip nearly no conditional stands.
        return _everywhere(work, labels, field, sweeps, scale, key, count, purpose, out, bad)
    from tritoncrf.kernels import shapes, standing

    own, shape = _own(work), shapes.plain(_own(work).plan.labels, _wide())
    found: tuple[Tensor, Tensor] = standing.average(
        lambda done: sweep(work, labels, field, 1, scale, key, count + done, purpose, bad), sweeps, labels, own.unary,
        own.rows, own.grid.steps, own.listing, bad, out, scale, own.plan.labels, *shape, own.edges,
    )  # fmt: skip
    return found
