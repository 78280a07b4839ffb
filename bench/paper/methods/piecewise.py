"""What would piecewise training give? Every factor a classifier of its own (eq. 14 of Kirillov et al. 2016; Lin et al. 2015).

Eq. (14) maximises ``sum_f -psi_f(y_f) - log sum_{y_f'} exp(-psi_f(y_f'))``: no factor sees another. The unary factors are the
network's cross-entropy, so the network goes on as in the control. A table sees its own edges alone, and since it depends
on no image, through their counts alone: convex, and solved as such (L-BFGS, float64), for one pass over the data in all.
Conditional on the known labels, as in every row: an edge with one known end is normalised over the other end, and
one with two adds a constant. `RIDGE` keeps pairs that never occurred finite.

The paper: this surrogate "lacks a sound theoretical justification". It shows: at the optimum exp(-psi_c) is the frequency of
the pair, and the product of 2 C such factors a pixel counts the same evidence 2 C times. ``weight`` scales all tables; 1 is
(14).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.paper.methods.descent import by_sampling, cross_entropy, descend
from bench.paper.problem import Predictor, Problem
from tritoncrf import GridCRF
from tritoncrf.batches import Batch

# Of the squared entries, in edges a class: as if a label pair were seen this little.
RIDGE = 1.0


def learn(problem: Problem, work: Path, *, joint: bool = True, weight: float = 1.0) -> Predictor:
    """joint: the network's pieces go on learning (cross-entropy); weight: a factor on all tables, 1 for eq. (14)."""
    network, crf = problem.network(), problem.crf()
    double = doubled(crf)
    if joint:
        descend(problem, network, None, cross_entropy, work, "piecewise", joint=True)
    counts = torch.zeros((), dtype=torch.int64, device=problem.device)
    for item in problem.loader(shuffle=False):
        counts = counts + edge_counts(Batch.of(item, problem.device), double)
    with torch.no_grad():
        crf.pairwise.copy_(weight * solve(counts))
    return by_sampling(problem, network, crf)


def objective(tables: Tensor, counts: Tensor) -> Tensor:
    """Minus eq. (14) of the tables alone: tables ``[C, L, L]``, counts ``[C, 2 L, 2 L]`` as `edge_counts` has them."""
    labels = tables.shape[1]
    free, ahead, behind = counts[:, :labels, :labels], counts[:, :labels, labels:], counts[:, labels:, :labels]
    chosen = ((free + ahead + behind) * tables).sum()
    both = (free.sum((1, 2)) * (-tables).flatten(1).logsumexp(1)).sum()
    first = (ahead.sum(1) * (-tables).logsumexp(1)).sum()
    second = (behind.sum(2) * (-tables).logsumexp(2)).sum()
    return chosen + both + first + second


def solve(counts: Tensor, ridge: float = RIDGE) -> Tensor:
    """The tables ``[C, L, L]`` of least `objective` and ``ridge / 2`` times their squares; each class centred.

    A constant a class is none of the model's business, and centred tables are furthest from the bound of the contract.
    """
    labels = counts.shape[1] // 2
    counts = counts.double()
    scale = counts.sum((1, 2), keepdim=True).clamp(min=1)
    tables = torch.zeros((len(counts), labels, labels), dtype=torch.float64, device=counts.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [tables], max_iter=2000, max_eval=4000, history_size=20, tolerance_grad=1e-9, tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        # Classes are apart, so each may have a unit of its own.
        value = objective(tables, counts / scale) + (0.5 * ridge / scale * tables.square()).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = tables.detach()
    return (found - (found.amax((1, 2), keepdim=True) + found.amin((1, 2), keepdim=True)) / 2).float()


def doubled(crf: GridCRF) -> GridCRF:
    """A CRF of labels 0 .. 2 L - 1 on the same edges, for `edge_counts`. Raises ValueError past 127 labels."""
    return GridCRF(2 * crf.num_labels, crf.neighborhood).to(crf.device)


def edge_counts(batch: Batch, double: GridCRF) -> Tensor:
    """How often each pair of labels stands on an edge: int64 ``[C, 2 L, 2 L]``, a known label l counted as L + l.

    double: of `doubled`. Unlabelled pixels count as not there.
    """
    labels = double.num_labels // 2
    exists = batch.present & (batch.labels < labels) & (batch.labels >= 0)
    edge_maker = batch.labels.long() if batch.clamp is None else batch.labels.long() + labels * batch.clamp
    return double.pair_counts(edge_maker.masked_fill(~exists, 0), sizes=batch.sizes, mask=exists).sum(0)
