"""The torch engine: gather vectorised over the sites of a colour, and the incremental way as a reference.

Runs on CPU and CUDA tensors. Only free sites are held: they are listed phase by phase and chain by chain. A site's energies
are its unary row plus one table row per neighbour, ``pairwise[c, :, y]`` for the one at +d_c and ``pairwise[c, y, :]`` for the
one at -d_c; the row of a void neighbour is zero. `embedding_bag` sums the rows in an order of its own, which rule 1 makes
harmless. The draw is the contract's reference function itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tritoncrf import contract
from tritoncrf.engines import FEWEST, Plan, averaging
from tritoncrf.engines import Work as AnyWork

break_even = 0.2
# Sites gathered at once: bounds the working memory (64 neighbours x 4 bytes x this).
CHUNK = 1 << 15
# Counters filled at once by pair_counts.
COUNTERS = 1 << 20


@dataclass(frozen=True)
class Work:
    """Free sites of all chains, phase by phase; A of them, B without replicas."""

    plan: Plan
    rows: Tensor
    """float32 [2K * (L + 1), L]: neighbour at +d_k with label y, then neighbour at -d_k."""
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

    def unaries(self, a: int, b: int) -> Tensor:
        return self.unary[a:b] if self.source is None else self.unary[self.source[a:b]]


def missing(device: torch.device, labels: int = FEWEST) -> str | None:
    """Runs wherever torch does, with any number of labels."""
    return None


def prepare(plan: Plan, logits: Tensor, pairwise: Tensor) -> Work:
    device = logits.device
    images, slots, bounds = [], [], [0]
    for a, b in zip(plan.phases, plan.phases[1:], strict=False):
        image, slot = plan.free[:, a:b].nonzero(as_tuple=True)
        images.append(image)
        slots.append(slot + a)
        bounds.append(bounds[-1] + len(image))
    image, slot = torch.cat(images), torch.cat(slots)
    energies = logits.detach().flatten(2)[image, :, plan.pixels[slot]]
    unary = contract.round_unary(energies, dim=1)
    source, replica = None, torch.zeros_like(image)
    if plan.replicas > 1:
        # Replicas of a site lie side by side inside its phase and share its unary row.
        source = torch.arange(len(image), device=device).repeat_interleave(plan.replicas)
        replica = torch.arange(plan.replicas, device=device).repeat(len(image))
        image, slot = image[source], slot[source]
        bounds = [bound * plan.replicas for bound in bounds]
    where = (image * plan.replicas + replica) * plan.volume + plan.positions[slot]
    steps = torch.tensor(plan.displacements, dtype=torch.int64, device=device)
    steps = torch.cat([steps, -steps])
    return Work(plan, _rows(plan, pairwise), steps, unary, source, tuple(bounds), image, replica, slot, where)


def retable(work: AnyWork, pairwise: Tensor) -> Work:
    work = _own(work)
    return replace(work, rows=_rows(work.plan, pairwise))


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    work = _own(work)
    flat = labels.view(-1)
    u = _uniform(work, slice(None), count, key, purpose + contract.INITIAL)
    for a, b in _chunks(work.bounds):
        where = work.where[a:b]
        drawn = contract.draw(work.unaries(a, b).T.contiguous(), torch.zeros_like(where), u[a:b], contract.scale_of(1.0))
        now = flat[where]
        flat[where] = torch.where(now == work.plan.void, drawn.to(torch.uint8), now)


def field(work: AnyWork, labels: Tensor) -> Tensor:
    work = _own(work)
    flat = labels.view(-1)
    # One row more than there are sites: flips push the differences of clamped or missing neighbours into it.
    energies = torch.zeros((len(work.where) + 1, work.plan.labels), dtype=torch.float32, device=labels.device)
    for a, b in _chunks(work.bounds):
        energies[a:b] = _gather(work, flat, a, b)
    return energies


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int,
) -> Tensor:  # fmt: skip
    work = _own(work)
    plan, flat = work.plan, labels.view(-1)
    flips = torch.zeros(plan.chains, dtype=torch.int64, device=labels.device)
    if not len(work.where):
        return flips.view(-1, plan.replicas)
    listed = None if field is None else _listed(work, flat.numel())
    everything = slice(None)
    chain = work.image * plan.replicas + work.replica
    for done in range(sweeps):
        u = _uniform(work, everything, count + done, key, purpose)
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


def conditionals(work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor) -> Tensor:
    work = _own(work)
    plan, flat = work.plan, labels.view(-1)
    energy = torch.zeros(plan.chains, dtype=torch.float64, device=labels.device)
    for a, b in _chunks(work.bounds):
        energies = _gather(work, flat, a, b) if field is None else field[a:b]
        weight = contract.weights(energies.T.contiguous(), scale)
        weight /= contract.in_label_order(weight) * plan.replicas
        image, slot, own = work.image[a:b], work.slot[a:b], flat[work.where[a:b]].long()
        out.view(-1, plan.labels).index_add_(0, image * len(plan.positions) + slot, weight.T.to(out.dtype))
        energy.index_add_(0, image * plan.replicas + work.replica[a:b], energies.gather(1, own[:, None])[:, 0].double())
    return energy.view(-1, plan.replicas)


average = averaging(sweep, conditionals)


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    rows = labels.flatten(0, -2).to(torch.int32)
    size = plan.labels + 1
    # With void as one more label every position counts, and the pairs that have no edge fall into the last row or column.
    counts = rows.new_zeros((len(rows), plan.num_classes, plan.labels, plan.labels), dtype=torch.int64)
    together = max(1, COUNTERS // size**2)
    for part in range(0, len(rows), together):
        wide = rows[part : part + together]
        chain = torch.arange(len(wide), device=rows.device, dtype=torch.int32)[:, None] * size**2
        first, second = wide * size + chain, wide
        for displacement, c in zip(plan.displacements, plan.classes, strict=True):
            step = abs(displacement)
            near, far = slice(0, wide.shape[1] - step), slice(step, None)
            i, j = (near, far) if displacement > 0 else (far, near)
            pairs = (first[:, i] + second[:, j]).flatten()
            histogram = torch.bincount(pairs, minlength=len(wide) * size**2).view(-1, size, size)
            counts[part : part + together, c] = histogram[:, :-1, :-1]
    return counts.view(*labels.shape[:-1], plan.num_classes, plan.labels, plan.labels)


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    return (pair_counts(plan, data) - pair_counts(plan, free)).sum((0, 1))


def unary_errors(data: Tensor, free: Tensor, labels: int) -> Tensor:
    images, replicas, *shape = data.shape
    errors = torch.zeros((images, labels, *shape), dtype=torch.float32, device=data.device)
    for drawn, sign in ((free, 1.0), (data, -1.0)):
        exists = (drawn != contract.VOID).to(errors.dtype)
        errors.scatter_add_(1, drawn.long().clamp(max=labels - 1), exists * sign)
    # Whole numbers until here: what cancels, cancels exactly.
    return errors if replicas == 1 else errors * (1.0 / replicas)


def _own(work: AnyWork) -> Work:
    if not isinstance(work, Work):
        raise TypeError(f"work: expected what the torch engine prepared, got {type(work).__name__}")
    return work


def _chunks(bounds: tuple[int, ...]) -> list[tuple[int, int]]:
    total = bounds[-1]
    return [(a, min(a + CHUNK, total)) for a in range(0, total, CHUNK)]


def _rows(plan: Plan, pairwise: Tensor) -> Tensor:
    tables = contract.round_pairwise(pairwise)[list(plan.classes)]
    padded = tables.new_zeros((2, len(plan.classes), plan.labels + 1, plan.labels))
    padded[0, :, :-1] = tables.transpose(1, 2)
    padded[1, :, :-1] = tables
    return padded.flatten(0, 2)


def _bag(work: Work, neighbours: Tensor, labels: Tensor) -> Tensor:
    base = torch.arange(len(work.steps), device=labels.device, dtype=torch.int32) * (work.plan.labels + 1)
    return labels[neighbours].to(torch.int32) + base


def _gather(work: Work, flat: Tensor, a: int, b: int) -> Tensor:
    unary = work.unaries(a, b)
    if not len(work.steps) or a == b:
        return unary.clone()
    rows = _bag(work, work.where[a:b, None] + work.steps, flat)
    return F.embedding_bag(rows, work.rows, mode="sum") + unary


def _listed(work: Work, positions: int) -> Tensor:
    """Row of the field at each position; the spare row where no free site is."""
    listed = torch.full((positions,), len(work.where), dtype=torch.int64, device=work.where.device)
    listed[work.where] = torch.arange(len(work.where), device=work.where.device)
    return listed


def _push(work: Work, flat: Tensor, field: Tensor, listed: Tensor, before: Tensor, a: int, b: int) -> None:
    """Adds ``row[new] - row[old]`` of each site that flipped in phase a:b to the field of its neighbours."""
    where = work.where[a:b]
    now = flat[where]
    flipped = (now != before).nonzero()[:, 0]
    steps, size = len(work.steps), work.plan.labels + 1
    if not steps:
        return
    # The neighbour at +d sees the flipped site at -d, so the halves of the row table change places.
    base = (torch.arange(steps, device=flat.device).roll(steps // 2) * size)[None]
    for part in torch.split(flipped, CHUNK // 8):
        old, new = before[part].long()[:, None] + base, now[part].long()[:, None] + base
        target = listed[where[part, None] + work.steps]
        field.index_add_(0, target.flatten(), (work.rows[new] - work.rows[old]).flatten(0, 1))


def _uniform(work: Work, part: slice, count: Tensor, key: tuple[int, int], purpose: int) -> Tensor:
    plan, image = work.plan, work.image[part]
    site = plan.sites[image, work.slot[part]]
    return contract.draw_uniform(site, count[image], plan.index[image], work.replica[part], purpose, key)
