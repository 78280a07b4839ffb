"""The torch engine: gather vectorised over the sites of a colour, and the incremental update as a reference.

Runs on CPU and CUDA tensors. Only free sites are held: they are listed colour by colour and chain by chain. A site's energies
are its unary row plus one table row per neighbour, ``pairwise[c, :, y]`` for the one at +d_c and ``pairwise[c, y, :]`` for the
one at -d_c, of the table that the edge's kind chooses; the row of a void neighbour is zero. `embedding_bag` sums the rows in an
order of its own, which rule 1 makes harmless. Gated rows are weighed and put on the grid one by one. The draw is the contract's
reference function itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import FEWEST, Plan, Tables, averaging
from tritoncrf.engines import Work as AnyWork
from tritoncrf.engines.soft import soft_counts
from tritoncrf.engines.torch_counts import gated_errors, pair_counts, pair_errors, unary_errors
from tritoncrf.engines.torch_factors import gather, listing, touched

__all__ = [
    "average", "break_even", "conditionals", "field", "gated_errors", "initial", "missing", "pair_counts", "pair_errors",
    "prepare", "retable", "soft_counts", "sweep", "unary_errors",
]  # fmt: skip
break_even = 0.2
# Sites gathered at once: bounds the working memory (64 neighbours x 4 bytes x this).
CHUNK = 1 << 15
# Sites whose numbers are drawn at once on a CPU.
DRAWN = 1 << 15


@dataclass(frozen=True)
class Work:
    """Free sites of all chains, colour by colour; A of them, B without replicas."""

    plan: Plan
    rows: Tensor
    """float32 [2K * R * (L + 1), L]: neighbour at +d_k, kind of the edge, label y; then neighbour at -d_k. Of graphs
    [entries + 1], all tables and a zero."""
    steps: Tensor
    """int64 [2K]: +displacements, then -displacements."""
    unary: Tensor
    """float32 [B, L]."""
    source: Tensor | None
    """int64 [A]: row of ``unary`` of each listed site; None if it is the site itself (one replica)."""
    bounds: tuple[int, ...]
    """Phase bounds in the list."""
    image: Tensor
    """int64 [A]."""
    replica: Tensor
    """int64 [A]."""
    slot: Tensor
    """int64 [A]."""
    where: Tensor
    """int64 [A]: position in the flattened labels of all chains."""
    kinds: Tensor | None
    """uint8 [B, 2K]: of the edges to the neighbours at +d_k, then at -d_k."""
    gates: Tensor | None
    """uint8 [B, 2, Kg, G]: of those that have gates, in steps of 1 / 128."""
    gated: Tensor | None
    """float32 [2, Kg, G, L + 1, L]: the rows that gates weigh."""

    def unaries(self, a: int, b: int) -> Tensor:
        return self.unary[a:b] if self.source is None else self.unary[self.source[a:b]]

    def at(self, sites: Tensor) -> Tensor:
        """Rows of what replicas share, of listed sites."""
        return sites if self.source is None else self.source[sites]


def missing(device: torch.device, labels: int = FEWEST, arity: int = 0) -> str | None:
    """Runs wherever torch does, with any number of labels."""
    return None


def prepare(plan: Plan, logits: Tensor, tables: Tables, like: AnyWork | None = None) -> Work:
    device = logits.device
    image, slot, bounds = _listing(plan) if plan.factors is None else listing(plan, plan.factors)
    energies = logits.detach().flatten(2)[image, :, plan.pixels[slot]]
    unary = contract.round_unary(energies, dim=1)
    kinds = gates = None
    if plan.edges is not None:
        kinds = plan.edges.kinds_at(plan, image, plan.positions[slot]) if plan.kinded else None
        gates = plan.edges.gates_at(plan, image, plan.positions[slot]) if plan.edges.gated else None
    source, replica = None, torch.zeros_like(image)
    if plan.replicas > 1:
        # Replicas of a site lie side by side inside its colour and share its unary row.
        source = torch.arange(len(image), device=device).repeat_interleave(plan.replicas)
        replica = torch.arange(plan.replicas, device=device).repeat(len(image))
        image, slot = image[source], slot[source]
        bounds = [bound * plan.replicas for bound in bounds]
    where = (image * plan.replicas + replica) * plan.volume + plan.positions[slot]
    steps = torch.tensor(plan.displacements, dtype=torch.int64, device=device)
    steps = torch.cat([steps, -steps])
    return Work(
        plan, _rows(plan, tables), steps, unary, source, tuple(bounds), image, replica, slot, where, kinds, gates,
        _gated_rows(plan, tables),
    )  # fmt: skip


def _listing(plan: Plan) -> tuple[Tensor, Tensor, list[int]]:
    """Image and slot of each free site, colour by colour, and the colours' bounds."""
    images, slots, bounds = [], [], [0]
    for a, b in zip(plan.color_bounds, plan.color_bounds[1:], strict=False):
        image, slot = plan.free[:, a:b].nonzero(as_tuple=True)
        images.append(image)
        slots.append(slot + a)
        bounds.append(bounds[-1] + len(image))
    return torch.cat(images), torch.cat(slots), bounds


def retable(work: AnyWork, tables: Tables) -> Work:
    work = _check_work(work)
    return replace(work, rows=_rows(work.plan, tables), gated=_gated_rows(work.plan, tables))


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    work = _check_work(work)
    flat = labels.view(-1)
    u = _uniform(work, count, key, purpose + contract.INITIAL)
    for a, b in _chunks(work.bounds):
        where = work.where[a:b]
        drawn = contract.draw(work.unaries(a, b).T.contiguous(), torch.zeros_like(where), u[a:b], contract.scale_of(1.0))
        now = flat[where]
        flat[where] = torch.where(now == work.plan.void, drawn.to(torch.uint8), now)


def field(work: AnyWork, labels: Tensor) -> Tensor:
    work = _check_work(work)
    flat = labels.view(-1)
    # One row more than there are sites: flips push the differences of clamped or missing neighbours into it.
    energies = torch.zeros((len(work.where) + 1, work.plan.num_labels), dtype=torch.float32, device=labels.device)
    for a, b in _chunks(work.bounds):
        energies[a:b] = _gather(work, flat, a, b)
    return energies


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, bad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    work = _check_work(work)
    plan, flat = work.plan, labels.view(-1)
    flips = torch.zeros(plan.chains, dtype=torch.int64, device=labels.device)
    if not len(work.where) or (bad is not None and bool(bad)):
        return flips.view(-1, plan.replicas)
    listed = None if field is None else _listed(work, flat.numel())
    chain = work.image * plan.replicas + work.replica
    for done in range(sweeps):
        u = _uniform(work, count + done, key, purpose)
        before = flat[work.where]
        for a, b in zip(work.bounds, work.bounds[1:], strict=False):
            for start in range(a, b, CHUNK):
                stop = min(start + CHUNK, b)
                where = work.where[start:stop]
                energies = _gather(work, flat, start, stop) if field is None else field[start:stop]
                drawn = contract.draw(energies.T.contiguous(), flat[where].long(), u[start:stop], scale)
                flat[where] = drawn.to(torch.uint8)
            if field is not None and listed is not None:
                _push(work, flat, field, listed, before[a:b], a, b)
        flips.index_add_(0, chain, (flat[work.where] != before).long())
    return flips.view(-1, plan.replicas)


def conditionals(
    work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None = None
) -> Tensor:  # fmt: skip
    work = _check_work(work)
    plan, flat = work.plan, labels.view(-1)
    energy = torch.zeros(plan.chains, dtype=torch.float64, device=labels.device)
    for a, b in _chunks((0,) if bad is not None and bool(bad) else work.bounds):
        energies = _gather(work, flat, a, b) if field is None else field[a:b]
        weight = contract.weights(energies.T.contiguous(), scale)
        weight /= contract.in_label_order(weight) * plan.replicas
        image, slot, current = work.image[a:b], work.slot[a:b], flat[work.where[a:b]].long()
        out.view(-1, plan.num_labels).index_add_(0, image * len(plan.positions) + slot, weight.T.to(out.dtype))
        energy.index_add_(0, image * plan.replicas + work.replica[a:b], energies.gather(1, current[:, None])[:, 0].double())
    return energy.view(-1, plan.replicas)


average = averaging(sweep, conditionals)


def _check_work(work: AnyWork) -> Work:
    if not isinstance(work, Work):
        raise TypeError(f"work: expected what the torch engine prepared, got {type(work).__name__}")
    return work


def _chunks(bounds: tuple[int, ...]) -> list[tuple[int, int]]:
    total = bounds[-1]
    return [(a, min(a + CHUNK, total)) for a in range(0, total, CHUNK)]


def _rows(plan: Plan, tables: Tables) -> Tensor:
    if plan.factors is not None:
        return F.pad(contract.round_pairwise(tables.pairwise), (0, 1))
    pairwise = contract.round_pairwise(tables.pairwise)[list(plan.classes)]
    pairwise = pairwise if plan.kinded else pairwise[:, None]
    padded = pairwise.new_zeros((2, len(plan.classes), plan.num_kinds, plan.num_labels + 1, plan.num_labels))
    padded[0, :, :, :-1] = pairwise.transpose(2, 3)
    padded[1, :, :, :-1] = pairwise
    return padded.flatten(0, 3)


def _gated_rows(plan: Plan, tables: Tables) -> Tensor | None:
    if plan.edges is None or tables.gated is None or not plan.edges.gated:
        return None
    gated = contract.round_pairwise(tables.gated)[:, [plan.edges.gating[k] for k in plan.edges.gated]].transpose(0, 1)
    padded = gated.new_zeros((2, *gated.shape[:2], plan.num_labels + 1, plan.num_labels))
    padded[0, :, :, :-1] = gated.transpose(2, 3)
    padded[1, :, :, :-1] = gated
    return padded


def _bag(work: Work, sites: Tensor, neighbours: Tensor, labels: Tensor) -> Tensor:
    size = work.plan.num_labels + 1
    base = torch.arange(len(work.steps), device=labels.device, dtype=torch.int32) * (work.plan.num_kinds * size)
    rows = labels[neighbours].to(torch.int32) + base
    return rows if work.kinds is None else rows + work.kinds[work.at(sites)].to(torch.int32) * size


def _gather(work: Work, flat: Tensor, a: int, b: int) -> Tensor:
    unary, plan = work.unaries(a, b), work.plan
    if plan.factors is not None:
        part = slice(a, b)
        return gather(plan, plan.factors, work.rows, unary, flat, work.image[part], work.slot[part], work.where[part])
    if not len(work.steps) or a == b:
        return unary.clone()
    sites = torch.arange(a, b, device=flat.device)
    rows = _bag(work, sites, work.where[a:b, None] + work.steps, flat)
    energies = F.embedding_bag(rows, work.rows, mode="sum") + unary
    if work.gated is not None and work.gates is not None and plan.edges is not None:
        gates = work.gates[work.at(sites)]
        for j, k in enumerate(plan.edges.gated):
            for end, step in enumerate((plan.displacements[k], -plan.displacements[k])):
                label = flat[work.where[a:b] + step].long()
                for rank in range(gates.shape[-1]):
                    energies += contract.gate(gates[:, end, j, rank, None], work.gated[end, j, rank, label])
    return energies


def _listed(work: Work, positions: int) -> Tensor:
    """Row of the field at each position; the spare row where no free site is."""
    listed = torch.full((positions,), len(work.where), dtype=torch.int64, device=work.where.device)
    listed[work.where] = torch.arange(len(work.where), device=work.where.device)
    return listed


def _push(work: Work, flat: Tensor, field: Tensor, listed: Tensor, before: Tensor, a: int, b: int) -> None:
    """Adds ``row[new] - row[old]`` of each site that flipped in colour a:b to the field of its neighbours."""
    where, plan = work.where[a:b], work.plan
    now = flat[where]
    flipped = (now != before).nonzero()[:, 0]
    if plan.factors is not None:
        of = work.image[a:b][flipped], work.slot[a:b][flipped], where[flipped]
        near = touched(plan, plan.factors, listed, len(work.where), *of)
        unary, at = work.unary[work.at(near)], (work.image[near], work.slot[near], work.where[near])
        field[near] = gather(plan, plan.factors, work.rows, unary, flat, *at)
        return
    steps, size = len(work.steps), plan.num_labels + 1
    if not steps:
        return
    # The neighbour at +d sees the flipped site at -d, so the halves of the row table change places; the edge is the same.
    base = (torch.arange(steps, device=flat.device).roll(steps // 2) * (plan.num_kinds * size))[None]
    for part in torch.split(flipped, CHUNK // 8):
        old, new = before[part].long(), now[part].long()
        kind = base if work.kinds is None else base + work.kinds[work.at(part + a)].long() * size
        target = listed[where[part, None] + work.steps]
        change = work.rows[new[:, None] + kind] - work.rows[old[:, None] + kind]
        field.index_add_(0, target.flatten(), change.flatten(0, 1))
        if work.gated is not None and work.gates is not None and plan.edges is not None:
            gates = work.gates[work.at(part + a)]
            for j, k in enumerate(plan.edges.gated):
                for end in (0, 1):
                    for rank in range(gates.shape[-1]):
                        gate, rows = gates[:, end, j, rank, None], work.gated[1 - end, j, rank]
                        change = contract.gate(gate, rows[new]) - contract.gate(gate, rows[old])
                        field.index_add_(0, target[:, k + end * len(plan.displacements)], change)


def _uniform(work: Work, count: Tensor, key: tuple[int, int], purpose: int) -> Tensor:
    """Of every free site."""
    plan, found = work.plan, []
    # A CPU's cache holds a chunk through the rounds, ten times as fast as from its memory; a GPU wants few launches.
    size = DRAWN if count.device.type == "cpu" else max(len(work.image), 1)
    for image, slot, replica in zip(*(torch.split(part, size) for part in (work.image, work.slot, work.replica)), strict=True):
        site = plan.sites[image, slot]
        found.append(contract.draw_uniform(site, count[image], plan.index[image], replica, purpose, key))
    return torch.cat(found)
