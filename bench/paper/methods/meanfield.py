"""What would unrolled inference give? Mean field on our own tables, a fixed number of iterations learned through.

Section 4 of Kirillov et al. 2016 argues against it: too few iterations lose quality, more slow learning down and keep more for
the backward. In parallel, as in Krähenbühl and Koltun 2011 and CRF-as-RNN (Zheng et al. 2015):
``Q^0_i = softmax(logit_i)``, ``Q^{t+1}_i(l) ∝ exp(logit_i(l) - (M Q^t)_i(l))`` with M of `messages`. Learning minimises the
cross-entropy of Q^T on free labelled pixels, with respect to tables and network; the test runs the same T iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.methods.descent import descend, marginals
from bench.paper.methods.messages import Sites, messages
from bench.paper.problem import Predictor, Problem
from tritoncrf import contract, validation
from tritoncrf.batches import Batch
from tritoncrf.evaluation import forward
from tritoncrf.model import GridCRF

Messages = Callable[[Tensor, Tensor, Sites], Tensor]


def learn(problem: Problem, work: Path, *, iterations: int) -> Predictor:
    """Joint learning through ``iterations`` of mean field. Raises ValueError below 1."""
    validation.whole("iterations", iterations, 1)
    network, crf = problem.network(), problem.crf()
    descend(problem, network, crf, objective(crf, iterations), work, f"meanfield{iterations}", joint=True)

    @torch.no_grad()
    def predict(batch: Batch) -> tuple[Tensor, Tensor]:
        logits, _ = forward(network, None, batch.image)
        sites = Sites.of(batch, crf.neighborhood, crf.num_labels)
        alone = marginals(batch, logits.softmax(1))
        return alone, sites.spread(scores(sites.pick(logits), crf.pairwise, sites, iterations).softmax(1), alone)

    return predict


def objective(crf: GridCRF, iterations: int, via: Messages = messages) -> Callable[[Tensor, Batch], Tensor]:
    """Logits and their batch -> the cross-entropy of Q^T."""

    def value(logits: Tensor, batch: Batch) -> Tensor:
        sites = Sites.of(batch, crf.neighborhood, crf.num_labels)
        return pixel_cross_entropy(scores(sites.pick(logits), crf.pairwise, sites, iterations, via), batch, sites)

    return value


def scores(logits: Tensor, tables: Tensor, sites: Sites, iterations: int, via: Messages = messages) -> Tensor:
    """``log Q^T`` up to a constant a pixel, ``[P, L]``: logits ``[P, L]``, tables ``[C, L, L]``."""
    found = logits
    for _ in range(iterations):
        found = logits - via(found.softmax(1), tables, sites)
    return found


def pixel_cross_entropy(found: Tensor, batch: Batch, sites: Sites) -> Tensor:
    """The mean over free pixels that have a label: scores ``[P, L]``."""
    target = sites.labels_of(batch.target)
    counted = target != contract.VOID
    return F.cross_entropy(found, target.masked_fill(~counted, -100), reduction="sum") / counted.sum().clamp(min=1)
