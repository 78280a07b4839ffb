"""The numba engine: compiled sweeps on CPU tensors, chains side by side on threads of its own.

Gather sums each site's table rows at every visit. The incremental update passes over the sites whose label surely stays
(`numba_sweeps` holds the argument) and gathers at the others; what the sampler keeps for it between calls, the field, is an
upper bound of each site's odds against staying, one float32 a site, not its energies. A field lives through changes of the
labels made by sweeps only, as every engine's does; its last entry is the scale that it was made for.

Compiled code is kept on disk beside this package, or in the directory that NUMBA_CACHE_DIR names; where neither can be
written it is compiled in every process.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numba import config
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import FEWEST, Plan, Tables, averaging
from tritoncrf.engines import Work as AnyWork
from tritoncrf.engines import numba_edges as seeing
from tritoncrf.engines import numba_nets as nets
from tritoncrf.engines import numba_sweeps as compiled
from tritoncrf.engines.numba_average import average as lazily
from tritoncrf.engines.numba_counts import gated_errors, pair_counts, pair_errors, unary_errors
from tritoncrf.engines.numba_rows import Rows, aligned, factors, rows_of
from tritoncrf.engines.numba_sites import Array, Sites, listed, rounding, rounding_rows
from tritoncrf.engines.numba_soft import soft_counts
from tritoncrf.engines.numba_threads import share
from tritoncrf.engines.numba_vectors import LANES

__all__ = [
    "average", "break_even", "conditionals", "field", "gated_errors", "initial", "missing", "pair_counts", "pair_errors",
    "prepare", "retable", "soft_counts", "sweep", "unary_errors",
]  # fmt: skip
break_even = 0.15
_NOWHERE, _NOTHING = np.empty((1, 0), np.int32), np.empty((1, 0), np.float32)


@dataclass(frozen=True)
class Work:
    """Rounded energies of free sites, padded to a multiple of eight labels."""

    plan: Plan
    sites: Sites
    unary: Array
    """float32 [B, P]."""
    edges: Array
    """uint8 [B, E]: kinds and gates of the sites' edges, as `numba_edges` has them."""
    tables: Rows | nets.GraphRows
    net: nets.Lists | None
    """Of graphs."""
    kept: dict[str, Array]
    """What only the incremental update needs, made when it first runs."""


def missing(device: torch.device, labels: int = FEWEST, arity: int = 0) -> str | None:
    """Runs on CPU tensors with any number of labels; the package itself is imported with this module."""
    if device.type != "cpu":
        return "it runs on CPU tensors only: use engine='torch' or 'triton'"
    if getattr(config, "DISABLE_JIT", 0):
        return "numba is told to compile nothing: unset NUMBA_DISABLE_JIT"
    return None


def prepare(plan: Plan, logits: Tensor, tables: Tables, like: AnyWork | None = None) -> Work:
    sites = listed(plan)
    width = -(-plan.num_labels // LANES) * LANES
    unary = aligned((len(sites.position), width), np.float32)
    forbidden, cap = np.float32(contract.FORBIDDEN), np.float32(contract.UNARY_CAP)
    last = logits.detach().movedim(1, -1)
    # Networks that run channels last leave a pixel's logits side by side: only those of free sites are read then.
    function, values = (rounding_rows, last.flatten(1, -2)) if last.is_contiguous() else (rounding, logits.detach().flatten(2))
    energies = values.float().contiguous().numpy()
    share(function, sites.first, energies, plan.pixels.numpy(), sites.first, sites.slot, forbidden, cap, unary)
    net = None if plan.factors is None else nets.lists(plan.factors, sites.first, sites.slot)
    return Work(plan, sites, unary, _edges(plan, sites), _rows(plan, tables, width), net, kept={})


def _rows(plan: Plan, tables: Tables, width: int) -> Rows | nets.GraphRows:
    return rows_of(plan, tables, width) if plan.factors is None else nets.rows_of(plan.factors, tables, width)


def retable(work: AnyWork, tables: Tables) -> Work:
    work = _check_work(work)
    rows = _rows(work.plan, tables, work.unary.shape[1])
    kept = {name: value for name, value in work.kept.items() if name == "lookup"}
    return replace(work, tables=rows, kept=kept)


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    work = _check_work(work)
    plan, s = work.plan, work.sites
    share(
        compiled.initial, s.work, plan.replicas, plan.void, _flat(labels), s.first, s.position, s.site, s.index,
        work.unary, s.base, s.uniforms, s.blocks, *key, purpose + contract.INITIAL, count.numpy(),
        np.float32(contract.scale_of(1.0)),
    )  # fmt: skip


def field(work: AnyWork, labels: Tensor) -> Tensor | None:
    """Nothing is known of any site yet: the first sweep gathers everywhere. None where factors join more than two."""
    factors = work.plan.factors if isinstance(work, Work) else None
    if factors is not None and factors.arity > 2:
        return None
    return torch.from_numpy(np.full(int(_check_work(work).sites.base[-1]) + 1, np.inf, np.float32))


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, bad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    work = _check_work(work)
    flips = torch.zeros(work.plan.chains, dtype=torch.int64, device="cpu")
    if bad is None or not bool(bad):
        share(compiled.sweep, work.sites.work, *_sweeping(work, labels, field, sweeps, scale, key, count, purpose, flips))
    return flips.view(-1, work.plan.replicas)


def average(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, out: Tensor, bad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    work = _check_work(work)
    if work.net is not None:
        return averaging(sweep, conditionals)(work, labels, field, sweeps, scale, key, count, purpose, out, bad)
    flips = torch.zeros(work.plan.chains, dtype=torch.int64, device="cpu")
    energies = np.zeros((work.plan.chains, sweeps))
    *arguments, _, changed = _sweeping(work, labels, field, sweeps, scale, key, count, purpose, flips)
    # An image's replicas add to the same place: a thread takes all of them.
    if bad is None or not bool(bad):
        share(lazily, work.sites.first, *arguments, changed, work.sites.slot, _lookup(work), out.numpy(), energies)
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
    # A graph's factors of growth are a row, a lattice's tables of two axes.
    lookup, push, lifts, odds = _NOWHERE, _NOTHING, _NOTHING if work.net is None else _NOTHING[0], _NOTHING[0]
    # At smaller scales a label can pass the 1024 nat at a weight that is not small, and no bound holds.
    lazy = field is not None and scale * contract.CUTOFF > 1 - contract.MIN_EXPONENT
    if field is not None:
        odds = field.numpy()
        if odds[-1] != scale or not lazy:
            odds.fill(np.inf)
            odds[-1] = scale
    if lazy:
        lookup, (push, lifts) = _lookup(work), _factors(work, scale)
    short, parts = _short(t)
    sure = np.float32(1 - (plan.num_labels + 64) * 2.0**-23)
    return (
        plan.replicas, _flat(labels), s.first, s.bounds, s.position, s.site, s.index, work.unary, t.rows, short, s.steps,
        parts, s.base, s.uniforms, s.blocks, *key, purpose, count.numpy(), plan.num_labels, sweeps, np.float32(scale), lazy,
        odds, lookup, push, lifts, sure, _seen(work), _net(work), flips.numpy(),
    )  # fmt: skip


def conditionals(
    work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None = None
) -> Tensor:  # fmt: skip
    work = _check_work(work)
    plan, s, t = work.plan, work.sites, work.tables
    energy, (short, parts) = np.zeros(plan.chains), _short(t)
    if bad is not None and bool(bad):
        return torch.from_numpy(energy).view(-1, plan.replicas)
    share(
        compiled.conditionals, s.first, plan.replicas, _flat(labels), s.first, s.position, s.slot, work.unary, t.rows,
        short, s.steps, parts, plan.num_labels, np.float32(scale), _seen(work), _net(work), out.numpy(), energy,
    )  # fmt: skip
    return torch.from_numpy(energy).view(-1, plan.replicas)


def _check_work(work: AnyWork) -> Work:
    if not isinstance(work, Work):
        raise TypeError(f"work: expected what the numba engine prepared, got {type(work).__name__}")
    return work


def _flat(labels: Tensor) -> Array:
    rows: Array = labels.view(-1, labels.shape[-1]).numpy()
    return rows


def _edges(plan: Plan, sites: Sites) -> Array:
    """The bytes of all free sites' edges."""
    edges = plan.edges
    if edges is None:
        return np.zeros((len(sites.position), 0), np.uint8)
    kinds = np.zeros((1, 0, 0), np.uint8) if edges.kinds is None else edges.kinds.numpy()
    gates = np.zeros((1, 0, 0, 0), np.uint8) if edges.gates is None else edges.gates.numpy()
    kinded, which = np.array(edges.kinded if plan.kinded else (), np.int64), np.array(edges.gated, np.int64)
    columns = np.array([edges.gating[k] for k in edges.gated], np.int64)
    factor = plan.num_labels + 1 if plan.num_kinds * (plan.num_labels + 1) <= 256 else 1
    found = np.empty((len(sites.position), 2 * (len(kinded) + len(which) * gates.shape[1])), np.uint8)
    share(
        seeing.listing, sites.first, sites.first, sites.position, edges.pixels.numpy(), sites.steps, kinds, kinded, factor,
        gates, which, columns, found,
    )  # fmt: skip
    return found


def _seen(work: Work) -> seeing.Seen | None:
    """None for tables that do not see the image: the compiled loops are then those without."""
    plan = work.plan
    if plan.edges is None or not isinstance(work.tables, Rows):
        return None
    weighed = work.tables.weighed
    gated = plan.edges.gated
    steps = np.array([plan.displacements[k] for k in gated], np.int64)
    kinds = plan.num_kinds if plan.kinded else 0
    return kinds, work.edges, steps, weighed.shape[2] if len(steps) else 0, weighed, seeing.FACTORS


def _short(tables: Rows | nets.GraphRows) -> tuple[bool, Array]:
    """What the loops over a lattice's displacements want to know of its rows."""
    return (tables.short, tables.parts) if isinstance(tables, Rows) else (tables.block > 0, np.zeros(1, np.int64))


def _net(work: Work) -> tuple[Array, Array, Array, int] | None:
    """None for lattices, likewise."""
    if work.net is None or isinstance(work.tables, Rows):
        return None
    return work.net.sections, work.net.cuts, work.net.ends, work.tables.block


def _factors(work: Work, scale: float) -> tuple[Array, Array]:
    if "push" not in work.kept or work.kept["scale"] != scale:
        if isinstance(work.tables, Rows):
            work.kept["push"], work.kept["lifts"] = factors(work.tables, work.plan.num_labels, scale)
        else:
            work.kept["push"], work.kept["lifts"] = _NOTHING, nets.push_of(work.tables, scale)
        work.kept["scale"] = np.array(scale)
    return work.kept["push"], work.kept["lifts"]


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
