"""The numba engine: compiled sweeps on CPU tensors, chains side by side on threads of its own.

The gather way sums each site's table rows at every visit. The incremental way passes over the sites whose label surely stays
(`numba_sweeps` holds the argument) and gathers at the others; what the sampler keeps for it between calls, the field, is an
upper bound of each site's odds against staying, one float32 a site, not its energies. A field lives through changes of the
labels made by sweeps only, as every engine's does; its last entry is the scale that it was made for.

Compiled code is kept on disk beside this package, or in the directory that NUMBA_CACHE_DIR names; where neither can be
written it is compiled in every process.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import FEWEST, Plan
from tritoncrf.engines import Work as AnyWork
from tritoncrf.engines import numba_errors as differences
from tritoncrf.engines import numba_sweeps as compiled
from tritoncrf.engines.numba_average import average as lazily
from tritoncrf.engines.numba_sites import Array, Sites, listed, rounding, rounding_rows
from tritoncrf.engines.numba_threads import share
from tritoncrf.engines.numba_vectors import LANES

break_even = 0.15
LINE, SHORT = 64, 32767
_NOWHERE, _NOTHING = np.empty((1, 0), np.int32), np.empty((1, 0), np.float32)


@dataclass(frozen=True)
class Tables:
    """What neighbours add."""

    rows: Array
    """Bytes of [K, 2, L + 1, P]: of neighbours at +d_k, then at -d_k, by label; a void neighbour's row is zero."""
    short: bool
    """int16 in steps of the grid, which every entry fits, or else float32."""
    parts: Array
    """int64: bounds of ranges of classes whose int16 sums cannot overflow."""
    grid: Array
    """float32 [K, L, L]: the tables themselves, in steps of the grid."""


@dataclass(frozen=True)
class Work:
    """Rounded energies of free sites, padded to a multiple of eight labels."""

    plan: Plan
    sites: Sites
    unary: Array
    """float32 [B, P]."""
    tables: Tables
    kept: dict[str, Array]
    """What only the incremental way needs, made when it first runs."""


def missing(device: torch.device, labels: int = FEWEST) -> str | None:
    """Runs on CPU tensors with any number of labels; the package itself is imported with this module."""
    if device.type != "cpu":
        return "it runs on CPU tensors only: use engine='torch' or 'triton'"
    return None


def prepare(plan: Plan, logits: Tensor, pairwise: Tensor) -> Work:
    sites = listed(plan)
    width = -(-plan.labels // LANES) * LANES
    unary = _aligned((len(sites.position), width), np.float32)
    forbidden, cap = np.float32(contract.FORBIDDEN), np.float32(contract.UNARY_CAP)
    last = logits.detach().movedim(1, -1)
    # Networks that run channels last leave a pixel's logits side by side: only those of free sites are read then.
    function, values = (rounding_rows, last.flatten(1, -2)) if last.is_contiguous() else (rounding, logits.detach().flatten(2))
    energies = values.float().contiguous().numpy()
    share(function, sites.first, energies, plan.pixels.numpy(), sites.first, sites.slot, forbidden, cap, unary)
    return Work(plan, sites, unary, _tables(plan, pairwise, width), kept={})


def retable(work: AnyWork, pairwise: Tensor) -> Work:
    work = _own(work)
    tables = _tables(work.plan, pairwise, work.unary.shape[1])
    kept = {name: value for name, value in work.kept.items() if name == "lookup"}
    return replace(work, tables=tables, kept=kept)


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    work = _own(work)
    plan, s = work.plan, work.sites
    share(
        compiled.initial, s.work, plan.replicas, plan.void, _flat(labels), s.first, s.position, s.site, s.index,
        work.unary, s.base, s.uniforms, s.blocks, *key, purpose + contract.INITIAL, count.numpy(),
        np.float32(contract.scale_of(1.0)),
    )  # fmt: skip


def field(work: AnyWork, labels: Tensor) -> Tensor:
    """Nothing is known of any site yet: the first sweep gathers everywhere."""
    return torch.from_numpy(np.full(int(_own(work).sites.base[-1]) + 1, np.inf, np.float32))


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int,
) -> Tensor:  # fmt: skip
    work = _own(work)
    flips = torch.zeros(work.plan.chains, dtype=torch.int64)
    share(compiled.sweep, work.sites.work, *_sweeping(work, labels, field, sweeps, scale, key, count, purpose, flips))
    return flips.view(-1, work.plan.replicas)


def average(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, out: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    work = _own(work)
    flips = torch.zeros(work.plan.chains, dtype=torch.int64)
    energies = np.zeros((work.plan.chains, sweeps))
    arguments = _sweeping(work, labels, field, sweeps, scale, key, count, purpose, flips)
    # An image's replicas add to the same place: a thread takes all of them.
    share(lazily, work.sites.first, *arguments, work.sites.slot, _lookup(work), out.numpy(), energies)
    return flips.view(-1, work.plan.replicas), torch.from_numpy(energies).view(-1, work.plan.replicas, sweeps)


def _sweeping(
    work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float, key: tuple[int, int], count: Tensor,
    purpose: int, flips: Tensor,
) -> tuple[Any, ...]:  # fmt: skip
    """What the compiled sweep takes after its range of chains."""
    plan, s, t = work.plan, work.sites, work.tables
    if s.stream[0] != (*key, purpose):
        s.blocks.fill(-1)
        s.stream[0] = (*key, purpose)
    lookup, push, odds = _NOWHERE, _NOTHING, _NOTHING[0]
    # At smaller scales a label can pass the 1024 nat at a weight that is not small, and no bound holds.
    lazy = field is not None and scale * contract.CUTOFF > 1 - contract.MIN_EXPONENT
    if field is not None:
        odds = field.numpy()
        if odds[-1] != scale or not lazy:
            odds.fill(np.inf)
            odds[-1] = scale
    if lazy:
        lookup, push = _lookup(work), _factors(work, scale)
    sure = np.float32(1 - (plan.labels + 64) * 2.0**-23)
    return (
        plan.replicas, _flat(labels), s.first, s.bounds, s.position, s.site, s.index, work.unary, t.rows, t.short, s.steps,
        t.parts, s.base, s.uniforms, s.blocks, *key, purpose, count.numpy(), plan.labels, sweeps, np.float32(scale), lazy,
        odds, lookup, push, sure, flips.numpy(),
    )  # fmt: skip


def conditionals(work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor) -> Tensor:
    work = _own(work)
    plan, s, t = work.plan, work.sites, work.tables
    energy = np.zeros(plan.chains)
    share(
        compiled.conditionals, s.first, plan.replicas, _flat(labels), s.first, s.position, s.slot, work.unary, t.rows,
        t.short, s.steps, t.parts, plan.labels, np.float32(scale), out.numpy(), energy,
    )  # fmt: skip
    return torch.from_numpy(energy).view(-1, plan.replicas)


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    rows = labels.flatten(0, -2).contiguous().numpy()
    counts = torch.zeros((len(rows), plan.num_classes, plan.labels, plan.labels), dtype=torch.int64)
    steps, classes = (np.array(values, np.int64) for values in (plan.displacements, plan.classes))
    share(differences.pair_counts, np.arange(len(rows) + 1), rows, steps, classes, counts.numpy())
    return counts.view(*labels.shape[:-1], *counts.shape[1:])


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    counts = torch.zeros((len(plan.index), plan.num_classes, plan.labels, plan.labels), dtype=torch.int64)
    rows = [_flat(labels.contiguous()) for labels in (data, free)]
    steps, classes = (np.array(values, np.int64) for values in (plan.displacements, plan.classes))
    bounds = np.arange(len(counts) + 1)
    share(differences.pair_errors, bounds, plan.replicas, *rows, steps, classes, differences.MOST, counts.numpy())
    return counts.sum(0)


def unary_errors(data: Tensor, free: Tensor, labels: int) -> Tensor:
    images, replicas, *shape = data.shape
    errors = torch.zeros((images, labels, math.prod(shape)), dtype=torch.float32)
    rows = [drawn.reshape(images * replicas, -1).numpy() for drawn in (data, free)]
    share(differences.unary_errors, np.arange(images + 1), replicas, *rows, np.float32(1 / replicas), errors.numpy())
    return errors.view(images, labels, *shape)


def _own(work: AnyWork) -> Work:
    if not isinstance(work, Work):
        raise TypeError(f"work: expected what the numba engine prepared, got {type(work).__name__}")
    return work


def _flat(labels: Tensor) -> Array:
    rows: Array = labels.view(-1, labels.shape[-1]).numpy()
    return rows


def _tables(plan: Plan, pairwise: Tensor, width: int) -> Tables:
    grid = (contract.round_pairwise(pairwise)[list(plan.classes)] * contract.GRID).numpy()
    classes, labels = len(grid), plan.labels
    largest = np.abs(grid).max((1, 2), initial=0).tolist()
    short = max(largest, default=0) <= SHORT
    parts, total = [0], 0.0
    for k, size in enumerate(largest):
        total += size
        if short and total > SHORT:
            parts.append(k)
            total = size
    rows = _aligned((classes, 2, labels + 1, width), np.int16 if short else np.float32)
    rows[:, 0, :-1, :labels] = grid.transpose(0, 2, 1)
    rows[:, 1, :-1, :labels] = grid
    if not short:
        rows /= contract.GRID
    return Tables(rows.reshape(-1).view(np.uint8), short, np.array([*parts, classes], np.int64), grid)


def _aligned(shape: tuple[int, ...], kind: Any) -> Array:
    """Zeros that begin on a cache line, so that a row of 32 labels covers as few as it can."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    room = np.zeros(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    aligned: Array = room[start : start + size].view(kind).reshape(shape)
    return aligned


def _factors(work: Work, scale: float) -> Array:
    """float32 [L + 1, 2K]: by how much a label that comes or goes can raise the odds of the neighbour at +d_k, -d_k."""
    made = work.kept.get("push")
    if made is None or work.kept["scale"] != scale:
        # Largest minus smallest entry of the row that a neighbour reads of a label: the one at +d_k has the label at -d_k.
        grid = work.tables.grid.astype(np.float64) / contract.GRID
        spread = np.zeros((work.plan.labels + 1, len(grid), 2))
        spread[:-1] = np.stack([np.ptp(grid, axis=2), np.ptp(grid, axis=1)], -1).transpose(1, 0, 2)
        with np.errstate(over="ignore"):
            made = (np.exp2(spread.reshape(len(spread), -1) * scale) * (1 + 2.0**-16)).astype(np.float32)
        work.kept["push"], work.kept["scale"] = made, np.array(scale)
    return made


def _lookup(work: Work) -> Array:
    """int32 [N, volume]: the place of each position among its image's free sites, the one past them where none is."""
    if "lookup" not in work.kept:
        s, plan = work.sites, work.plan
        lookup = np.empty((len(s.index), plan.volume), np.int32)
        for n, (a, b) in enumerate(itertools.pairwise(s.first)):
            lookup[n] = b - a
            lookup[n, s.position[a:b]] = np.arange(b - a)
        work.kept["lookup"] = lookup
    return work.kept["lookup"]
