"""How much is there in all? log Z by annealed importance sampling, with the chains that everything else uses.

The path goes from the unaries alone, whose ``Z_0 = prod_i sum_l exp(-psi_i(l))`` is a product, to the whole model: f_j has
the tables ``T_j``, beta_j times the model's on rule 1's grid, beta_j = j / n. A chain is drawn from f_0, weighed by
``f_j / f_(j-1)`` and then moved by sweeps that leave f_j as it is, for j = 1 .. n - 1. The last weight goes to the model as it
is, unrounded, so that

    Z = Z_0 E[w],    w = prod_j f_j(y_(j-1)) / f_(j-1)(y_(j-1))

holds for the energies of `crf.energy` themselves, whatever the number of steps and sweeps (Neal 2001, eq. 2 to 8); the
more there are, the less the weights differ. (A draw's polynomial, and its cut at 2^-100, are off by 2 * 10^-7 at most.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.energies import pair_energy
from tritoncrf.engines import Tables
from tritoncrf.graphs import FactorGraph
from tritoncrf.model_protocol import CRF
from tritoncrf.sampler import Sampler


@dataclass(frozen=True)
class Partition:
    """log Z of N images, or graphs, from R weights each."""

    log_weights: Tensor
    """float64 [N, R]: independent estimates' logarithms; the mean of their exponentials is Z, without bias."""

    @property
    def mean(self) -> Tensor:
        """log Z, float64 ``[N]``: the logarithm of the mean weight, which is low by about half of the squared `error`."""
        return self.log_weights.logsumexp(1) - math.log(self.log_weights.shape[1])

    @property
    def error(self) -> Tensor:
        """Standard error of `mean`, float64 ``[N]``: of the mean weight, over it. Not to be trusted where `ess` is small."""
        relative = self._relative
        return relative.std(1) / math.sqrt(relative.shape[1])

    @property
    def ess(self) -> Tensor:
        """Effective sample size, float64 ``[N]``, 1 to R: ``(sum w)^2 / sum w^2``; 1 where one weight is all."""
        relative = self._relative
        return relative.sum(1).square() / relative.square().sum(1)

    @property
    def _relative(self) -> Tensor:
        """Weights over their mean."""
        return (self.log_weights - self.mean[:, None]).exp()


@torch.no_grad()
def log_partition(
    crf: CRF, logits: Tensor, *, steps: int = 100, sweeps: int = 1, replicas: int = 32, labels: Tensor | None = None,
    index: Tensor | None = None, sizes: Tensor | None = None, mask: Tensor | None = None, clamp: Tensor | None = None,
    engine: str = "auto", seed: int | None = 0, kinds: Tensor | None = None, gates: Tensor | None = None,
    graph: FactorGraph | None = None,
) -> Partition:  # fmt: skip
    """log Z of each image or graph, ``Z = sum_y exp(-E(y))``, by ``replicas`` weights of ``steps`` steps of ``sweeps`` sweeps.

    With it ``log p(y | x) = -crf.energy(logits, y) - log Z`` can be told, and models can be compared. With ``clamp`` the sum is
    over labellings that agree with ``labels`` there, which are not looked at elsewhere: the likelihood is then that of the rest
    given those. Look at the answer's
    `Partition.ess`: where few of the weights count, take more steps. Memory grows with the replicas.

    steps: n of the path, at least 1 (one step is plain importance sampling from the unaries); replicas: at least 2; the rest as
    in `Sampler.init`. Waits for the device. Raises ValueError or TypeError naming the argument.

    >>> crf = GridCRF(3, Neighborhood.nearest(4), torch.full((2, 3, 3), 0.1))
    >>> found = log_partition(crf, torch.zeros(1, 3, 2, 2))
    >>> round(float(found.mean), 4), round(4 * math.log(3) - 4 * 0.1, 4)
    (3.9944, 3.9944)
    """
    steps, sweeps = validation.whole("steps", steps, 1), validation.whole("sweeps", sweeps, 1)
    replicas = validation.whole("replicas", replicas, 2, 1 << contract.REPLICA_BITS)
    sampler = Sampler(crf, engine, seed, validate=True)
    chains = sampler.init(
        logits, _held(labels, clamp, graph), index, sizes=sizes, mask=mask, clamp=clamp, replicas=replicas, kinds=kinds,
        gates=gates, graph=graph,
    )  # fmt: skip
    plan, rows = chains.plan, chains.rows
    scores = chains.logits.flatten(2)[:, :, plan.pixels]
    # Where no pixel exists anything may stand.
    unary = contract.round_unary(scores.masked_fill(~plan.exists[:, None], 0.0)).double()
    start = torch.logsumexp(-unary, 1).where(plan.free, 0.0).sum(1)
    weights = start[:, None].repeat(1, replicas)
    given = crf.tables
    before = _scaled(given, 0.0)
    for step in range(1, steps):
        after = _scaled(given, step / steps)
        counts = sampler.engine.pair_counts(plan, rows)
        weights += pair_energy(plan, rows, counts, before) - pair_energy(plan, rows, counts, after)
        chains.work, chains.field = sampler.engine.retable(chains.work, after), None
        sampler.check_sweep_limit(chains, sweeps)
        sampler.advance(chains, sweeps)
        before = after
    here = rows[:, :, plan.positions].long()
    chosen = here.clamp(max=crf.num_labels - 1)
    drawn = unary.gather(1, chosen).where(plan.free[:, None], 0.0).sum(2)
    exact = -scores.double().gather(1, chosen).where(plan.exists[:, None], 0.0).sum(2)
    if not bool(exact.isfinite().all()):
        raise ValueError("labels: expected labels that the logits allow where clamp holds them, got -inf at some of them")
    counts = sampler.engine.pair_counts(plan, rows)
    weights += drawn + pair_energy(plan, rows, counts, before) - exact - pair_energy(plan, rows, counts, given, rounded=False)
    return Partition(weights)


def _held(labels: Tensor | None, clamp: Tensor | None, graph: FactorGraph | None) -> Tensor | None:
    """Labels where they are clamped, and free sites to be drawn: chains must begin where f_0 says."""
    if labels is None:
        return None
    if clamp is None:
        raise ValueError("labels: expected None without a clamp that holds them, got a tensor")
    many = graph is None and validation.tensor("labels", labels).dim() == validation.tensor("clamp", clamp).dim() + 1
    clamp = clamp[:, None] if many else clamp
    # Those that fit nothing are left for `Sampler.init` to refuse.
    sizes = zip(reversed(clamp.shape), reversed(labels.shape), strict=False)
    fits = clamp.dtype == torch.bool and clamp.dim() <= labels.dim() and all(own in (1, size) for own, size in sizes)
    return labels.long().masked_fill(~clamp, contract.VOID) if fits else labels


def _scaled(tables: Tables, beta: float) -> Tables:
    """Tables of f_j, on the grid."""
    pairwise, gated = tables
    return Tables(
        contract.round_pairwise(pairwise * beta), None if gated is None else contract.round_pairwise(gated * beta)
    )
