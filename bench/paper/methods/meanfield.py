"""What would unrolled inference give? Mean field on our own tables, a fixed number of iterations learned through.

Section 4 of Kirillov et al. 2016 argues against it: too few iterations lose quality, more slow learning down and keep more for
the backward. In parallel, as in Krähenbühl and Koltun 2011 and CRF-as-RNN (Zheng et al. 2015):
``Q^0_i = softmax(logit_i)``, ``Q^{t+1}_i(l) ∝ exp(logit_i(l) - (M Q^t)_i(l))`` with M of `messages`. Learning minimises the
cross-entropy of Q^T on free labelled pixels, with respect to tables and network; the test runs the same T iterations.
Where an edge chooses its table, M is that of `kinds`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.edges import Maker
from bench.paper.methods import kinds
from bench.paper.methods.descent import descend, marginals
from bench.paper.methods.messages import Sites, messages
from bench.paper.problem import Predictor, Problem
from tritoncrf import contract, validation
from tritoncrf.batches import Batch
from tritoncrf.evaluation import forward
from tritoncrf.grid_crf import GridCRF

Messages = Callable[[Tensor, Tensor, Sites], Tensor]


def learn(problem: Problem, work: Path, *, iterations: int, edges: str | None = None) -> Predictor:
    """Joint learning through ``iterations`` of mean field; edges "kinds": tables by the preset's recipe, as in our own row.

    Raises ValueError below 1 iteration, or for another word.
    """
    validation.whole("iterations", iterations, 1)
    if edges not in (None, "kinds"):
        raise ValueError(f"edges: expected None or 'kinds', got {edges!r}")
    edge_maker = None if edges is None else problem.edges()
    network, crf = problem.network(), problem.crf(edge_maker)
    name = f"meanfield{iterations}" + ("" if edges is None else f" {edges}")
    descend(problem, network, crf, objective(crf, iterations, edge_maker=edge_maker), work, name, joint=True)

    @torch.no_grad()
    def predict(batch: Batch) -> tuple[Tensor, Tensor]:
        logits, _ = forward(network, None, batch.image)
        sites = Sites.of(batch, crf.neighborhood, crf.num_labels)
        alone = marginals(batch, logits.softmax(1))
        found = _scores(crf, logits, batch, sites, iterations, messages, edge_maker)
        return alone, sites.spread(found.softmax(1), alone)

    return predict


def objective(
    crf: GridCRF, iterations: int, via: Messages = messages, edge_maker: Maker | None = None
) -> Callable[[Tensor, Batch], Tensor]:
    """Logits and their batch -> the cross-entropy of Q^T. told: what chooses the tables, for a CRF with kinds."""

    def value(logits: Tensor, batch: Batch) -> Tensor:
        sites = Sites.of(batch, crf.neighborhood, crf.num_labels)
        return pixel_cross_entropy(_scores(crf, logits, batch, sites, iterations, via, edge_maker), batch, sites)

    return value


def _scores(
    crf: GridCRF, logits: Tensor, batch: Batch, sites: Sites, iterations: int, via: Messages, edge_maker: Maker | None
) -> Tensor:
    picked = sites.pick(logits)
    if edge_maker is None:
        return scores(picked, crf.pairwise, sites, iterations, via)
    chosen = kinds.of_edges(crf, edge_maker, batch, sites)
    groups = kinds.Groups.of(sites, chosen, crf.pairwise.shape[1])
    fixed = kinds.labelled(crf.pairwise, sites, chosen)
    return scores(picked, crf.pairwise, sites, iterations, lambda q, tables, _: fixed + kinds.messages(q, tables, groups))


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
