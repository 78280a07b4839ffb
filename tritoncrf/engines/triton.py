"""The Triton engine: fused kernels for NVIDIA and AMD GPUs, the torch engine's labels bit for bit.

Free sites are listed phase by phase and image by image without a look from the host: a site's rank in its phase is a running
count, so no launch depends on how many there are, and lanes past the end do nothing. Few chains are updated phase by phase,
many by one program each that goes through all phases and sweeps (`tritoncrf.kernels.shapes`). With TRITON_INTERPRET=1 in the
environment when Triton is first imported the same kernels run on CPU tensors, slowly. Every entry is an opaque custom
operator, so a compiler neither looks inside nor contracts its arithmetic.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
from dataclasses import dataclass, replace
from dataclasses import field as column
from types import ModuleType

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import FEWEST, Plan, Tables, averaging
from tritoncrf.engines import Work as AnyWork
from tritoncrf.engines.triton_grid import Grid, grid_of

break_even = 0.05
MAX_LABELS = 64
OLDEST = (3, 6)


@dataclass
class Work:
    """Energies and tables by rank: free site r of phase k is column ``phases[k] + r`` of its image's lists."""

    plan: Plan
    grid: Grid
    unary: Tensor
    """float32 [N, S, PAD], unwritten where no free site is."""
    rows: Tensor
    """float32 [2, K, R, L + 1, PAD]: of the neighbour at +d_k by kind and label, then of the one at -d_k; 0 for void."""
    words: Tensor
    """int32 [2, K, R, L + 1, pitch]: the rows as int16 units of 2^-12, two to a word."""
    fits: Tensor
    """int32 [1]: 1 where all entries fit the words, which gather then reads in the rows' place; the host never looks."""
    slot: Tensor
    """int32 [N, S]: which slot a rank is, -1: none."""
    position: Tensor
    """int32 [N, S]: where its label is in a chain's row, -1: none."""
    site: Tensor
    """int32 [N, S]: the bits of its site number (rule 2)."""
    counts: Tensor
    """int32 [N, phases]: free sites of each phase."""
    kinds: Tensor | None = None
    """uint8 [N, 2K, S], where a class has several tables: by rank, of the edges to the neighbours at +d_k, then at -d_k."""
    gates: Tensor | None = None
    """uint8 [N, Kg, 2, G, S]: likewise, of the displacements that have gates, in steps of 1 / 128."""
    gated: Tensor | None = None
    """float32 [Kg, 2, G, L + 1, PAD]: the rows that gates weigh."""
    lookup: list[Tensor] = column(default_factory=list)
    """int32 [N, volume], once a field was asked for: the rank at a position, -1: none."""

    @property
    def edges(self) -> tuple[Tensor | None, ...]:
        """What kernels read of the edges (`tritoncrf.kernels.edges.Edges`)."""
        return self.kinds, self.gates, self.gated, None if self.gates is None else self.grid.gating


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def missing(device: torch.device, labels: int = FEWEST) -> str | None:
    """Why Triton cannot run on ``device`` with so many labels, and what to do about it."""
    if labels > MAX_LABELS:
        return f"it holds at most {MAX_LABELS} labels in registers and the model has {labels}: use engine='torch'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'tritoncrf[triton]' (Linux; GPU builds of torch bring their own)"
    version = _version()
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        return f"it needs Triton 3.6 or newer and found {version}: pip install -U 'triton>=3.6'"
    if device.type != "cuda" and not _interpreted():
        return f"it needs a GPU and the tensors are on {device}: move model and logits there, or use engine='torch'"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0 or newer and {device} has less: use engine='torch'"
    return None


def _version() -> str:
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    # Built from source, without metadata: as new as whoever built it wanted.
    return f"{OLDEST[0]}.{OLDEST[1]}"


def prepare(plan: Plan, logits: Tensor, tables: Tables) -> Work:
    if plan.volume >= 1 << 31 or len(plan.positions) * plan.replicas >= 1 << 31:
        raise ValueError("logits: expected fewer than 2^31 sites times replicas an image for engine='triton', got more")
    grid = grid_of(plan)
    slots = len(plan.positions)
    seen = torch.nn.functional.pad(plan.free.cumsum(1), (1, 0))
    before = seen[:, grid.ends]
    rank = grid.ends[grid.phase] + seen[:, :-1] - before[:, grid.phase]
    # One column more than there are slots: what is not free goes there.
    slot = torch.full((len(plan.index), slots + 1), -1, dtype=torch.int32, device=plan.free.device)
    numbers = torch.arange(slots, dtype=torch.int32, device=slot.device).expand(len(slot), -1)
    slot.scatter_(1, torch.where(plan.free, rank, slots), numbers)
    slot = slot[:, :-1].contiguous()
    chosen = slot.clamp(min=0).long()
    position = torch.where(slot >= 0, plan.positions[chosen], -1).int()
    site = plan.sites.gather(1, chosen)
    # The bits of a uint32 in an int32, without a conversion that would be out of range.
    site = torch.where(site >= 1 << 31, site - (1 << 32), site).int()
    # Kernels read numbers one behind the other, whatever view the caller gave.
    plan = replace(plan, index=plan.index.contiguous())
    unary = _operators().unary_rows(logits.detach(), plan.pixels, slot, *_shape(plan, "gather")[:2])
    counts = before.diff(dim=1).int()
    kinds, gates = _edge_bytes(plan, grid, position)
    gated = _gated_rows(plan, grid, tables)
    return Work(plan, grid, unary, *_rows(plan, grid, tables), slot, position, site, counts, kinds, gates, gated)


def retable(work: AnyWork, tables: Tables) -> Work:
    work = _own(work)
    rows, words, fits = _rows(work.plan, work.grid, tables)
    return replace(work, rows=rows, words=words, fits=fits, gated=_gated_rows(work.plan, work.grid, tables))


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    work = _own(work)
    plan = work.plan
    _operators().initial_labels(
        labels, work.unary, work.position, work.site, plan.index, count.contiguous(), contract.scale_of(1.0),
        *_signed(key), purpose, plan.labels, *_shape(plan, "gather")[:2],
    )  # fmt: skip


def field(work: AnyWork, labels: Tensor) -> Tensor:
    work = _own(work)
    plan = work.plan
    if not work.lookup:
        # One position more than there are: what is not free goes there.
        lookup = torch.full((len(plan.index), plan.volume + 1), -1, dtype=torch.int32, device=labels.device)
        numbers = torch.arange(len(plan.positions), dtype=torch.int32, device=labels.device).expand(len(lookup), -1)
        lookup.scatter_(1, torch.where(work.slot >= 0, work.position, plan.volume).long(), numbers)
        work.lookup.append(lookup[:, :-1].contiguous())
    built: Tensor = _operators().field(
        labels, work.unary, work.rows, work.words, work.fits, work.grid.displacements, work.position, plan.labels,
        *_shape(plan, "incremental")[:2], *work.edges,
    )  # fmt: skip
    return built


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int,
) -> Tensor:  # fmt: skip
    work = _own(work)
    plan, grid = work.plan, work.grid
    flips = torch.zeros(labels.shape[:2], dtype=torch.int64, device=labels.device)
    lists = (grid.displacements, grid.phases, work.position, work.site)
    counted = (work.counts, plan.index, count.contiguous(), flips, list(plan.phases), sweeps, scale)
    drawn = (*_signed(key), purpose, plan.labels)
    if field is None:
        _operators().gather_sweeps(
            labels, work.unary, work.rows, work.words, work.fits, *lists, *counted, *drawn, *_shape(plan, "gather"),
            *work.edges,
        )  # fmt: skip
    else:
        _operators().incremental_sweeps(
            labels, field, work.rows, *lists, work.lookup[0], *counted, *drawn, *_shape(plan, "incremental"), *work.edges
        )
    return flips


def conditionals(work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor) -> Tensor:
    work = _own(work)
    energy: Tensor = _operators().add_conditionals(
        labels, work.unary, field, work.rows, work.words, work.fits, work.grid.displacements, work.position, work.slot, out,
        scale, work.plan.labels, *_shape(work.plan, "gather" if field is None else "incremental")[:2], *work.edges,
    )  # fmt: skip
    return energy


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    grid, edges = grid_of(plan), plan.edges
    found = (labels.contiguous(), grid.displacements, grid.tables, plan.labels, plan.num_classes)
    counts: Tensor
    if edges is None or edges.kinds is None or plan.kinds == 1:
        counts = _operators().pair_counts(*found, int(plan.kinded))
    else:
        counts = _operators().pair_counts(*found, plan.kinds, edges.kinds, edges.pixels, grid.kinded[0])
    return counts


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    return (pair_counts(plan, data) - pair_counts(plan, free)).sum((0, 1))


def gated_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    grid, edges = grid_of(plan), plan.edges
    if edges is None or edges.gates is None:
        return data.new_zeros((0, 0, plan.labels, plan.labels), dtype=torch.int64)
    errors: Tensor = _operators().gated_errors(
        data.contiguous(), free.contiguous(), grid.displacements, plan.labels, len(edges.gated), edges.gates, edges.pixels,
        grid.gating,
    )  # fmt: skip
    return errors


def _operators() -> ModuleType:
    from tritoncrf.kernels import operators

    module: ModuleType = operators
    return module


def _own(work: AnyWork) -> Work:
    if not isinstance(work, Work):
        raise TypeError(f"work: expected what the triton engine prepared, got {type(work).__name__}")
    return work


def _signed(key: tuple[int, int]) -> tuple[int, int]:
    """Key words as signed 32-bit integers, so that every seed runs the same compiled kernel."""
    low, high = ((word ^ 1 << 31) - (1 << 31) for word in key)
    return low, high


def _rows(plan: Plan, grid: Grid, tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
    """Table rows, the same packed, and whether they fit that."""
    from tritoncrf.kernels.rows import pack

    pairwise = contract.round_pairwise(tables.pairwise).index_select(0, grid.tables)
    rows = _both_ways(plan, pairwise if plan.kinded else pairwise[:, None], 0)
    return rows, *pack(rows)


def _gated_rows(plan: Plan, grid: Grid, tables: Tables) -> Tensor | None:
    if plan.edges is None or tables.gated is None or not plan.edges.gated:
        return None
    # On the device already, so that nothing is copied from the host.
    planes = grid.gating[-len(plan.edges.gated) :]
    return _both_ways(plan, contract.round_pairwise(tables.gated).transpose(0, 1).index_select(0, planes), 1)


def _both_ways(plan: Plan, tables: Tensor, axis: int) -> Tensor:
    """Tables ``[K, any, L, L]`` as rows of the neighbour ahead and of the one behind, on a new axis; 0 for void and padding."""
    from tritoncrf.kernels.rows import padded

    shape = [*tables.shape[:2], plan.labels + 1, padded(plan.labels)]
    shape.insert(axis, 2)
    rows = tables.new_zeros(shape)
    if rows.numel() >= 1 << 31:
        raise ValueError(f"pairwise, gated: expected fewer than 2^31 numbers in rows for engine='triton', got {rows.numel()}")
    ahead, behind = rows.unbind(axis)
    ahead[:, :, :-1, : plan.labels] = tables.transpose(2, 3)
    behind[:, :, :-1, : plan.labels] = tables
    return rows


def _edge_bytes(plan: Plan, grid: Grid, position: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Kinds, where a class has several tables, and gates by rank."""
    edges, kinds, gates = plan.edges, None, None
    if edges is not None and edges.kinds is not None and plan.kinds > 1:
        kinds = _operators().edge_bytes(edges.kinds, *grid.kinded, edges.pixels, position)
    if edges is not None and edges.gates is not None and edges.gated:
        gates = _operators().edge_bytes(edges.gates.flatten(1, 2), *grid.weighing, edges.pixels, position)
        gates = gates.unflatten(1, (len(edges.gated), 2, -1))
    return kinds, gates


def _shape(plan: Plan, way: str) -> tuple[int, int, bool]:
    from tritoncrf.kernels import shapes

    length = len(plan.positions) // max(len(plan.phases) - 1, 1)
    launch = shapes.choose(plan.labels, way, len(plan.index), plan.replicas, length, torch.version.hip is not None)
    return launch.block, launch.warps, launch.fused


average = averaging(sweep, conditionals)


def unary_errors(data: Tensor, free: Tensor, labels: int) -> Tensor:
    errors: Tensor = _operators().unary_errors(free, data, torch.ones((), device=free.device), labels)
    return errors
