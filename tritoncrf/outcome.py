"""What does a visit tell the model? The pair of samples reduced to a value, errors, and figures to watch.

With several ranks all of these are of all ranks' images: a mean is over the labelled pixels of all. What flows into a network
is multiplied by the number of ranks, for DDP and FSDP will take the mean over them of a network's gradients; what flows into
the tables is the whole sum already, the same on every rank, and stays so under a mean.

Weights w of labels count the data's and the sample's errors alike: ``w_l ([y' = l] - [y = l])``. That is the gradient of
``-log p(y|x)`` by the network seen through a scale per label, which is 0 where the plain one is: weights say which labels'
errors a network mends first that cannot mend all. Weights of the data's errors alone would move that place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritoncrf.chains import ChainState
from tritoncrf.engines import Plan, Tables
from tritoncrf.gradient import Errors, errors, unary_gap
from tritoncrf.intake import Batch
from tritoncrf.ranks import Ranks
from tritoncrf.sampler import Sampler

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

# Of a nat: energies of several ranks are added as whole numbers too.
STEPS = 1 << 20


@dataclass(frozen=True)
class Terms:
    """How a loss counts."""

    sampler: Sampler
    reduction: str
    sweeps: int
    weight: Tensor | None
    """float [L]."""
    flow: bool
    """Whether the gates want an error."""


def outcome(
    terms: Terms, batch: Batch, tables: Tables, known: Tensor, counted: Tensor, data: ChainState, free: ChainState,
    bad: Tensor, ranks: Ranks, parcel: Tensor | None = None,
) -> tuple[Found, list[Tensor]]:  # fmt: skip
    """Value, the fields of `Errors`, whether the call was bad on any rank, then the fields of `Statistics`.

    known: uint8 ``[N, R, *shape]``, the labels that are known; counted: bool ``[N, *shape]``, which pixels count; parcel: bytes
    that travel with the sums. Beside all that, every rank's parcel.
    """
    samples = data.labels, free.labels
    logits = batch.logits
    if terms.weight is not None:
        weight = terms.weight.to(torch.float32).view(-1, *[1] * (logits.dim() - 2))
        logits = logits * weight
    gap = unary_gap(logits, *samples)
    right = ((samples[1] == known) & counted[:, None]).sum()
    told = torch.stack([counted.sum(), right, free.plan.free.sum(), free.flips.sum(), bad.long(), _fixed(gap.sum())])

    parcels: list[Tensor] = []

    def total(counts: Tensor, weighed: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal told, parcels
        # Of one type whatever a rank's batch: messages of unlike lengths would end every process.
        parts = (counts.long(), weighed.long(), told)
        flat, parcels = ranks.sum_with(torch.cat([part.flatten() for part in parts]), parcel)
        counts, weighed, told = (
            whole.view(part.shape)
            for whole, part in zip(torch.split(flat, [p.numel() for p in parts]), parts, strict=True)
        )
        return counts, weighed

    if terms.reduction == "none":
        found = _each(terms, data, free, tables, samples)
    else:
        found = errors(terms.sampler, data, free, tables, samples, terms.flow, total if ranks.size > 1 else None)
    if terms.weight is not None:
        found.logits.mul_(weight)
    labelled, right, updates, flips, faults, whole = told.unbind()
    whole = gap.sum() if ranks.size == 1 else whole.double() / float(STEPS)
    bad = faults > 0
    factor = 1.0 / labelled.clamp(min=1).float() if terms.reduction == "mean" else torch.ones_like(labelled).float()
    factor = factor.where(labelled > 0, 0.0)
    gap = gap if terms.reduction == "none" else whole
    for error, table in zip((found.pairwise, found.gated), tables, strict=True):
        if table is not None:
            gap = gap + _inner(error, table.detach(), gap.dim())
    value = torch.where(bad, torch.nan, gap * factor).float()
    factor = torch.where(bad, 0.0, factor)
    result = (
        value,
        found.logits.mul_(factor * ranks.size),
        found.pairwise * factor,
        found.gated * factor,
        found.gates * (factor * ranks.size),
        bad,
        flips.float() / (updates * free.replicas * terms.sweeps).clamp(min=1).float(),
        (gap.sum() / labelled.clamp(min=1)).float(),
        right.float() / (labelled * free.replicas).clamp(min=1).float(),
        labelled.long(),
    )
    return result, parcels


def _fixed(energy: Tensor) -> Tensor:
    # Beyond what any model says, 10^12 nat, a value is no figure any more, and must not wrap.
    return (energy.nan_to_num(0.0).clamp(-1e12, 1e12) * STEPS).round().long()


def _inner(error: Tensor, table: Tensor, axes: int) -> Tensor:
    """Sums of products of errors ``[.., *table]``, float64 with ``axes`` axes."""
    return (error * table).sum(tuple(range(axes, error.dim())), dtype=torch.float64)


def _each(terms: Terms, data: ChainState, free: ChainState, tables: Tables, samples: tuple[Tensor, Tensor]) -> Errors:
    """Errors with those of tables apart for each image, ``[N, ..]``."""
    parts = []
    for n in range(len(data.rows)):
        one = slice(n, n + 1)
        pair = [replace(chains, plan=_only(chains.plan, one), rows=chains.rows[one]) for chains in (data, free)]
        labels = samples[0][one], samples[1][one]
        parts.append(errors(terms.sampler, pair[0], pair[1], tables, labels, terms.flow))
    logits, pairwise, gated, gates = zip(*parts, strict=True)
    return Errors(torch.cat(logits), torch.stack(pairwise), torch.stack(gated), torch.cat(gates))


def _only(plan: Plan, images: slice) -> Plan:
    edges = plan.edges
    if edges is not None:
        kinds, gates = (None if part is None else part[images] for part in (edges.kinds, edges.gates))
        edges = replace(edges, kinds=kinds, gates=gates)
    return replace(
        plan, exists=plan.exists[images], free=plan.free[images], sites=plan.sites[images], index=plan.index[images],
        edges=edges,
    )  # fmt: skip
