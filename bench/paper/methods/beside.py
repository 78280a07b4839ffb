"""What else could go down beside the likelihood? Two gradients of the answer's own cross-entropy, tried and compared.

Both start from an image's persistent chain y' after a visit's sweeps and never write to it. mu_i(l) is the average of the
conditionals (16) over a few sweeps more, the quantity that `tritoncrf.marginals` answers with; t is the truth.

- "field": one differentiable mean-field step from it, ``-mean_i log softmax(logit_i - (M mu)_i)(t_i)`` with M of `messages` and
  mu held: unlike `tritoncrf.Objective`'s cross-entropy the neighbours' averages go into one field, not their labels into many.
- "nudges": two-sided implicit differentiation (Domke 2010, Implicit differentiation by perturbation): for a loss H of the
  marginals ``dH/dtheta = lim_r [phi(theta + r dH/dmu) - phi(theta - r dH/dmu)] / 2 r`` with phi the expected statistics, here
  those of two samples that share their random numbers, each some sweeps from y'. ``dH/dmu_i = -[l = t_i] / mu_i(t_i)``; a
  conditional below `LEAST` counts as that, for the nudge must stay small.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import tritoncrf as tc
from bench.paper.edges import Maker
from bench.paper.methods import kinds
from bench.paper.methods.descent import free_pixels
from bench.paper.methods.meanfield import pixel_cross_entropy
from bench.paper.methods.messages import Sites, messages
from tritoncrf import contract
from tritoncrf.batches import Batch
from tritoncrf.evaluation import edges_of

WAYS = ("field", "nudges")
# Sweeps that mu is averaged over, those of a nudged sample, r, and the least of a conditional.
AVERAGED, NUDGED, STEP, LEAST = 4, 10, 0.1, 0.1


def value(way: str, loss: tc.CRFLoss, logits: Tensor, batch: Batch, edge_maker: Maker | None) -> Tensor:
    """What goes down, a mean over the labelled free pixels; its gradient is what counts. After a visit of a loss with chains.

    Raises ValueError for an unknown way.
    """
    if way not in WAYS:
        raise ValueError(f"way: expected one of {', '.join(WAYS)}, got {way!r}")
    crf = loss.crf
    if not isinstance(crf, tc.GridCRF) or loss.chains is None:
        raise ValueError("loss: expected one with a GridCRF and chains")
    shape = tuple(batch.target.shape[1:])
    kept = loss.chains.fetch(loss.chains.pixel_indices(batch.index, shape, None, batch.sizes))[:, 0]
    if batch.known is not None and batch.clamp is not None:
        kept = torch.where(batch.clamp, batch.known, kept)
    told = edges_of(edge_maker, batch.image, None)
    given = {"index": batch.index, "sizes": batch.sizes, "mask": batch.mask, "clamp": batch.clamp, "kinds": told.kinds}
    mu = tc.marginals(crf, logits.detach(), labels=kept, sweeps=AVERAGED, burn_in=0, seed=loss.seed, **given)  # type: ignore[arg-type]
    if way == "nudges":
        return _nudges(crf, logits, batch, kept, mu, loss.seed, given)
    sites = Sites.of(batch, crf.neighborhood, crf.num_labels)
    rows = sites.pick(mu)
    if edge_maker is None:
        field = messages(rows, crf.pairwise, sites)
    else:
        chosen = kinds.of_edges(crf, edge_maker, batch, sites)
        field = kinds.labelled(crf.pairwise, sites, chosen)
        field = field + kinds.messages(rows, crf.pairwise, kinds.Groups.of(sites, chosen, crf.pairwise.shape[1]))
    return pixel_cross_entropy(sites.pick(logits) - field, batch, sites)


def _nudges(
    crf: tc.GridCRF, logits: Tensor, batch: Batch, kept: Tensor, mu: Tensor, seed: int, given: dict[str, Tensor | None]
) -> Tensor:
    counted = free_pixels(batch) & (batch.target != contract.VOID)
    truth = batch.target.long().masked_fill(~counted, 0)
    chance = mu.gather(1, truth[:, None])[:, 0].clamp(min=LEAST)
    # dH/dmu of the sum over pixels; H's mean is taken below.
    towards = F.one_hot(truth, mu.shape[1]).movedim(-1, 1) * (-counted.float() / chance)[:, None]
    sampler, energies = tc.Sampler(crf, seed=seed), []
    for sign in (1, -1):
        nudged = logits.detach() + sign * STEP * towards
        chains = sampler.run(sampler.init(nudged, kept, **given), NUDGED)  # type: ignore[arg-type]
        labels = chains.labels[:, 0]
        energies.append(crf.energy(logits, labels, sizes=batch.sizes, mask=batch.mask, kinds=given["kinds"]))
    # The statistics are minus the energy's gradient.
    return (energies[1] - energies[0]).sum() / (2 * STEP) / counted.sum().clamp(min=1)
