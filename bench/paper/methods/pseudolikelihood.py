"""What would pseudo-likelihood give? ``sum_i log p(y_i | all others)`` (Besag 1975) in place of the likelihood.

Each free labelled pixel is predicted from its neighbours' true labels by eq. (16) of Kirillov et al. 2016; pixels whose label
is known are neighbours and contribute no term, unlabelled ones do not exist. It needs no sample, but asks for labels given
the truth around them, which no pixel has at test time. The field of the truth is `messages` of its one-hot rows. Learned joint
or separate; the answer is found by our sampler, as in the sampling rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from bench.paper.edges import Maker
from bench.paper.methods import kinds
from bench.paper.methods.descent import by_sampling, descend
from bench.paper.methods.messages import Sites, messages
from bench.paper.problem import Predictor, Problem
from tritoncrf import contract
from tritoncrf.batches import Batch
from tritoncrf.grid_crf import GridCRF


def learn(problem: Problem, work: Path, *, joint: bool = True) -> Predictor:
    """Learns tables, and the network if joint, by pseudo-likelihood."""
    network, crf = problem.network(), problem.crf()
    name = "pseudolikelihood" if joint else "pseudolikelihood_separate"
    descend(problem, network, crf, objective(crf), work, name, joint=joint)
    return by_sampling(problem, network, crf)


def objective(crf: GridCRF, edge_maker: Maker | None = None) -> Callable[[Tensor, Batch], Tensor]:
    """Logits and their batch -> minus the log pseudo-likelihood, a mean over its terms; edge_maker: for a CRF with kinds."""

    def value(logits: Tensor, batch: Batch) -> Tensor:
        sites = Sites.of(batch, crf.neighborhood, crf.num_labels, exists=batch.target != contract.VOID)
        target = sites.labels_of(batch.target)
        if edge_maker is None:
            field = messages(F.one_hot(target, crf.num_labels).to(logits.dtype), crf.pairwise, sites)
        else:
            field = kinds.labelled(crf.pairwise, sites, kinds.of_edges(crf, edge_maker, batch, sites), target)
        return F.cross_entropy(sites.pick(logits) - field, target, reduction="sum") / max(len(target), 1)

    return value
