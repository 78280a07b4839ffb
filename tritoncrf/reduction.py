"""What does a visit tell the model? The pair of samples reduced to a value, errors, and figures to watch.

With several ranks all of these are of all ranks' images: a mean is over the labelled pixels of all. What flows into a network
is multiplied by the number of ranks, for DDP and FSDP will take the mean over them of a network's gradients; what flows into
the tables is the whole sum already, the same on every rank, and stays so under a mean.

Weights w of labels count the data's and the sample's errors alike: ``w_l ([y' = l] - [y = l])``. That is the gradient of
``-log p(y|x)`` by the network seen through a scale per label, which is 0 where the plain one is: weights say which labels'
errors a network mends first that cannot mend all. Weights of the data's errors alone would move that place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritoncrf.engines import Plan, Tables
from tritoncrf.gradient import Errors, errors, unary_gap
from tritoncrf.inputs import ALLOWED, Batch
from tritoncrf.model_protocol import CRF
from tritoncrf.objective import PLAIN, Objective
from tritoncrf.objective import cross_entropy as cross_entropy
from tritoncrf.phases import Sample
from tritoncrf.ranks import Ranks
from tritoncrf.sampler import Sampler
from tritoncrf.statistics import Tally, agreeing

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

# Of a nat: energies of several ranks are added as whole numbers too.
STEPS = 1 << 20


@dataclass(frozen=True)
class Terms:
    """How a loss counts."""

    sampler: Sampler[CRF]
    reduction: str
    sweeps: int
    weight: Tensor | None
    """float [L]."""
    flow: bool
    """Whether the gates want an error."""
    clamped: bool
    """Whether some pixels may be clamped."""
    objective: Objective = PLAIN


def reduced(
    terms: Terms, batch: Batch, tables: Tables, known: Tensor, counted: Tensor, data: Sample, free: Sample, ranks: Ranks,
    parcel: Callable[[], Tensor | None],
) -> tuple[Outputs, Tally, list[Tensor]]:  # fmt: skip
    """Value, the fields of `Errors`, the factor by which they count and whether the call was bad on any rank; then the tally.

    known: uint8 ``[N, *shape]``, the known labels; counted: bool ``[N, *shape]``, which pixels count; parcel: makes the bytes
    that travel with the sums. Beside all that, every rank's parcel.
    """
    samples = data.labels, free.labels
    logits, guard = batch.logits, terms.sampler.guard
    if terms.weight is not None:
        weight = terms.weight.to(torch.float32).view(-1, *[1] * (logits.dim() - 2))
        logits = logits * weight
    gap = unary_gap(logits, *samples, whole=batch.whole and not terms.clamped)
    if not guard.waits(gap.device):
        guard.require(gap < torch.inf, ALLOWED, str)
    bad = guard.flag(gap.device)
    labelled = counted.sum()
    # What figures to watch are made from.
    right: tuple[Tensor, ...] = (samples[1], known, counted)
    updates, flips, whole = free.chains.plan.free, free.chains.flips, gap
    if free.path is None:
        raise RuntimeError("free: expected a free phase that was swept")
    path, fallen = free.path, None
    parcels: list[Tensor] = []
    soft, each = None, terms.reduction == "none"
    if terms.objective.cross_entropy:
        soft = cross_entropy(
            terms.sampler, batch, free.chains, free.contexts, tables, known, counted, bad, terms.objective,
            moved=terms.objective.margin > 0 or free.chains.tables is not batch.tables, flow=terms.flow, each=each,
        )  # fmt: skip

    def total(counts: Tensor, weighed: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal labelled, right, updates, flips, bad, whole, parcels, soft, fallen
        own = [*path.drops().sum(1), path.sites.sum()]
        figures = torch.stack([labelled, agreeing(*right), updates.sum(), flips.sum(), bad.long(), _fixed(gap.sum()), *own])
        # Of one type whatever a rank's batch: messages of unlike lengths would end every process.
        parts = (counts.long(), weighed.long(), figures, *(() if soft is None else soft.numbers()))
        flat, parcels = ranks.sum_with(torch.cat([part.flatten() for part in parts]), parcel())
        counts, weighed, figures, *others = (
            part.view(own.shape)
            for part, own in zip(torch.split(flat, [p.numel() for p in parts]), parts, strict=True)
        )
        labelled, correct, updates, flips, faults, fixed = figures[:6].unbind()
        fallen = figures[6:]
        right, bad, whole = (correct,), faults > 0, fixed.double() / float(STEPS)
        soft = None if soft is None else soft.read(*others)
        return counts, weighed

    if each:
        found = _each(terms, data, free, tables)
    else:
        found = errors(
            terms.sampler, data.chains, free.chains, tables, samples, terms.flow, total if ranks.size > 1 else None
        )
        whole = whole if not whole.dim() else whole.sum() if len(whole) > 1 else whole.view(())
    for error, table in zip((found.pairwise, found.gated), tables, strict=True):
        if table is not None:
            whole = whole + _inner(error, table.detach(), whole.dim())
    gap, whole = whole, terms.objective.value(whole, soft)
    found = terms.objective.errors(found, soft)
    if terms.weight is not None:
        found.logits.mul_(weight)
    if ranks.size > 1:
        found.logits.mul_(ranks.size)
        found.gates.mul_(ranks.size)
    share = labelled.float()
    if terms.reduction != "mean":
        share = share.clamp_(max=1.0)
    # 1 over 0 labelled pixels is 0 here, over a bad call's NaN.
    share = share.masked_fill_(bad, torch.nan).reciprocal_().nan_to_num_(nan=torch.nan, posinf=0.0)
    tally = Tally(labelled, gap, right, updates, flips, free.chains.replicas, terms.sweeps, path, fallen)
    return ((whole * share).float(), *found, share.nan_to_num(nan=0.0), bad), tally, parcels


def _fixed(energy: Tensor) -> Tensor:
    # Beyond what any model says, 10^12 nat, a value is no figure any more, and must not wrap.
    return (energy.nan_to_num(0.0).clamp(-1e12, 1e12) * STEPS).round().long()


def _inner(error: Tensor, table: Tensor, axes: int) -> Tensor:
    """Sums of products of errors ``[.., *table]``, float64 with ``axes`` axes."""
    return (error * table).sum(tuple(range(axes, error.dim())), dtype=torch.float64)


def _each(terms: Terms, data: Sample, free: Sample, tables: Tables) -> Errors:
    """Errors with those of tables apart for each image, ``[N, ..]``."""
    parts = []
    for n in range(len(data.labels)):
        one = slice(n, n + 1)
        y, drawn = (replace(of.chains, plan=_only(of.chains.plan, one), rows=of.chains.rows[one]) for of in (data, free))
        parts.append(errors(terms.sampler, y, drawn, tables, (data.labels[one], free.labels[one]), terms.flow))
    logits, pairwise, gated, gates = zip(*parts, strict=True)
    return Errors(torch.cat(logits), torch.stack(pairwise), torch.stack(gated), torch.cat(gates))


def _only(plan: Plan, images: slice) -> Plan:
    edges, factors = plan.edges, plan.factors
    if edges is not None:
        kinds, gates = (None if part is None else part[images] for part in (edges.kinds, edges.gates))
        edges = replace(edges, kinds=kinds, gates=gates)
    return replace(
        plan, exists=plan.exists[images], free=plan.free[images], sites=plan.sites[images], index=plan.index[images],
        edges=edges, factors=None if factors is None else factors.only(images.start),
    )  # fmt: skip
