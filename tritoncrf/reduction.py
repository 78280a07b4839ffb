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
from typing import NamedTuple

import torch
from torch import Tensor

from tritoncrf.engines import Plan, Tables
from tritoncrf.gradient import Errors, Sums, errors, sums, unary_gap
from tritoncrf.inputs import ALLOWED, Batch, Known
from tritoncrf.model_protocol import CRF
from tritoncrf.objective import PLAIN, Objective, Soft
from tritoncrf.objective import cross_entropy as cross_entropy
from tritoncrf.phases import Sample
from tritoncrf.ranks import Ranks
from tritoncrf.sampler import Sampler
from tritoncrf.statistics import Tally, agreeing


class Outputs(NamedTuple):
    """What a visit tells autograd."""

    value: Tensor
    """float32 [], or [N] where each image has one."""
    logits: Tensor
    """This and the next three: the fields of `Errors`, with one error of the tables an image where each has a value."""
    pairwise: Tensor
    gated: Tensor
    gates: Tensor
    factor: Tensor
    """float32 []: by which all errors count, a mean's share."""
    bad: Tensor
    """bool []: whether the call was bad on any rank."""


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
    terms: Terms, batch: Batch, tables: Tables, known: Known, data: Sample, free: Sample, ranks: Ranks,
    parcel: Callable[[], Tensor | None],
) -> tuple[Outputs, Tally, list[Tensor]]:  # fmt: skip
    """What autograd is told, the tally, and every rank's parcel.

    parcel: makes the bytes that travel with the sums of several ranks.
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
    labelled = known.counted.sum()
    # What figures to watch are made from.
    right: tuple[Tensor, ...] = (samples[1], known.labels, known.counted)
    updates, flips, whole = free.chains.plan.free, free.chains.flips, gap
    if free.path is None:
        raise RuntimeError("free: expected a free phase that was swept")
    path, fallen = free.path, None
    parcels: list[Tensor] = []
    soft, each = None, terms.reduction == "none"
    if terms.objective.cross_entropy:
        soft = cross_entropy(
            terms.sampler, batch, free.chains, free.contexts, tables, known, bad, terms.objective,
            moved=terms.objective.margin > 0 or free.chains.tables is not batch.tables, flow=terms.flow, each=each,
        )  # fmt: skip

    if each:
        error = _each(terms, data, free, tables)
    else:
        pair = terms.sampler, data.chains, free.chains, tables, samples, terms.flow
        if ranks.size == 1:
            error = errors(*pair)
        else:
            figures = torch.stack([
                labelled, agreeing(*right), updates.sum(), flips.sum(), bad.long(), _fixed(gap.sum()), *path.drops().sum(1),
                path.sites.sum(),
            ])  # fmt: skip
            differences, figures, soft, parcels = _of_all(ranks, sums(*pair), figures, soft, parcel())
            error = differences.averaged(free.chains)
            labelled, correct, updates, flips, faults, fixed = figures[:6].unbind()
            right, bad, whole, fallen = (correct,), faults > 0, fixed.double() / float(STEPS), figures[6:]
        whole = whole if not whole.dim() else whole.sum() if len(whole) > 1 else whole.view(())
    for part, table in zip((error.pairwise, error.gated), tables, strict=True):
        if table is not None:
            whole = whole + _inner(part, table.detach(), whole.dim())
    gap, whole = whole, terms.objective.value(whole, soft)
    error = terms.objective.errors(error, soft)
    if terms.weight is not None:
        error.logits.mul_(weight)
    if ranks.size > 1:
        error.logits.mul_(ranks.size)
        error.gates.mul_(ranks.size)
    share = labelled.float()
    if terms.reduction != "mean":
        share = share.clamp_(max=1.0)
    # 1 over 0 labelled pixels is 0 here, over a bad call's NaN.
    share = share.masked_fill_(bad, torch.nan).reciprocal_().nan_to_num_(nan=torch.nan, posinf=0.0)
    tally = Tally(labelled, gap, right, updates, flips, free.chains.replicas, terms.sweeps, path, fallen)
    return Outputs((whole * share).float(), *error, share.nan_to_num(nan=0.0), bad), tally, parcels


def _of_all(
    ranks: Ranks, differences: Sums, figures: Tensor, soft: Soft | None, parcel: Tensor | None
) -> tuple[Sums, Tensor, Soft | None, list[Tensor]]:
    """All whole numbers summed over the ranks in one message, and every rank's parcel."""
    # Of one type whatever a rank's batch: messages of unlike lengths would end every process.
    parts = (differences.pairwise.long(), differences.gated.long(), figures, *(() if soft is None else soft.numbers()))
    flat, parcels = ranks.sum_with(torch.cat([part.flatten() for part in parts]), parcel)
    pairwise, gated, figures, *others = (
        summed.view(part.shape) for summed, part in zip(torch.split(flat, [p.numel() for p in parts]), parts, strict=True)
    )
    soft = None if soft is None else soft.read(*others)
    return differences._replace(pairwise=pairwise, gated=gated), figures, soft, parcels


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
