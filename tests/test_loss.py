"""The sampled gradient is that of the enumerated likelihood: free, with latent, clamped and missing pixels, PCD and CD.

The oracle enumerates all labellings of a 2x3 lattice and differentiates log Z by autograd, with loops of its own. Sampled means
must lie within 5.5 standard errors (of the exact variances) and, at full size, within 1 % of the largest component.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tritoncrf.coloring import sublattice_coloring
from tritoncrf.gradient import Errors, errors

LABELS, SHAPE = 3, (2, 3)
SITES = list(itertools.product(range(2), range(3)))
OFFSETS = [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (1, 2), (1, -2)]
ALL = torch.tensor(list(itertools.product(range(LABELS), repeat=6))).view(-1, *SHAPE)
CHAINS = pytest.param(50_000, 0.02), pytest.param(1_000_000, 0.01, marks=pytest.mark.slow)


def energies(logits: Tensor, pairwise: Tensor, exists: Tensor) -> Tensor:
    """E of every labelling in `ALL`, differentiable: logits [L, 2, 3], pairwise [C, L, L]."""
    total = torch.zeros(len(ALL))
    for y, x in SITES:
        if exists[y, x]:
            total = total - logits[ALL[:, y, x], y, x]
            for c, (dy, dx) in enumerate(OFFSETS):
                v, w = y + dy, x + dx
                if 0 <= v < 2 and 0 <= w < 3 and exists[v, w]:
                    total = total + pairwise[c, ALL[:, y, x], ALL[:, v, w]]
    return total


@dataclass(frozen=True)
class Problem:
    crf: tc.GridCRF
    logits: Tensor
    target: Tensor
    clamp: Tensor
    mask: Tensor

    @property
    def labelled(self) -> Tensor:
        return (self.target != 255) & self.mask


def problem(latent: bool = False, clamp: bool = False, holes: bool = False) -> Problem:
    make = torch.Generator().manual_seed(3)
    crf = tc.GridCRF(LABELS, tc.Neighborhood.from_offsets(OFFSETS), torch.randn(7, LABELS, LABELS, generator=make))
    logits = torch.randn(LABELS, *SHAPE, generator=make)
    target = torch.randint(0, LABELS, SHAPE, generator=make)
    if latent:
        target[0, 0] = target[1, 1] = 255
    held, mask = torch.zeros(SHAPE, dtype=torch.bool), torch.ones(SHAPE, dtype=torch.bool)
    if clamp:
        held[0, 2] = held[1, 0] = True
    if holes:
        mask[0, 1] = False
    return Problem(crf, logits, target, held, mask)


def exact(p: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of -log p(labelled | clamped) by autograd, and the variance of one sample's error, for logits and tables."""
    logits, pairwise = p.logits.clone().requires_grad_(), p.crf.pairwise.detach().clone().requires_grad_()
    energy = energies(logits, pairwise, p.mask)
    agrees = (ALL == p.target) | ~p.labelled
    data = agrees.flatten(1).all(1)
    free = (agrees | ~p.clamp).flatten(1).all(1)
    likelihood = torch.logsumexp(-energy[free], 0) - torch.logsumexp(-energy[data], 0)
    likelihood.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert pairwise.grad is not None
    jacobians = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda x, tables: energies(x, tables, p.mask), (p.logits, p.crf.pairwise.detach()), vectorize=True
    )
    spread: list[Tensor] = []
    for parameter in (logits, pairwise):
        rows = jacobians[len(spread)]
        variance = torch.zeros_like(parameter)
        for chosen in (free, data):
            weight = torch.softmax(-energy.detach()[chosen], 0).view(-1, *[1] * parameter.dim())
            mean = (weight * rows[chosen]).sum(0)
            variance = variance + (weight * (rows[chosen] - mean) ** 2).sum(0)
        spread.append(variance.detach())
    return logits.grad, pairwise.grad, spread[0], spread[1]


def sampled(p: Problem, loss: tc.CRFLoss, images: int, visits: int) -> tuple[Tensor, Tensor]:
    """The mean gradient per image of the last visit, on logits and tables."""
    for _ in range(visits):
        logits = p.logits.expand(images, -1, -1, -1).clone().requires_grad_()
        p.crf.pairwise.grad = None
        wide = (images, -1, -1)
        value = loss(logits, p.target.expand(wide), torch.arange(images), mask=p.mask.expand(wide), clamp=p.clamp.expand(wide))
        value.backward()
    assert logits.grad is not None
    assert p.crf.pairwise.grad is not None
    return logits.grad.mean(0), p.crf.pairwise.grad / images


def agree(p: Problem, found: tuple[Tensor, Tensor], chains: int, tolerance: float) -> float:
    """Fails unless the sampled gradient is the exact one; returns the largest error over the largest component."""
    grad, tables, spread, table_spread = exact(p)
    worst = 0.0
    for mean, truth, variance in ((found[0], grad, spread), (found[1], tables, table_spread)):
        error = (mean - truth).abs()
        assert bool((error <= 5.5 * (variance / chains).sqrt() + 1e-4).all()), float(error.max())
        worst = max(worst, float(error.max() / truth.abs().max()))
    assert worst <= tolerance
    return worst


CASES: dict[str, dict[str, bool]] = {
    "labelled": {},
    "latent": {"latent": True},
    "clamped": {"clamp": True},
    "holes": {"holes": True},
    "all": {"latent": True, "clamp": True, "holes": True},
}


@pytest.mark.parametrize(("chains", "tolerance"), CHAINS)
@pytest.mark.parametrize("case", CASES)
def test_pcd_gradient_is_that_of_the_enumerated_likelihood(
    case: str, chains: int, tolerance: float, record_property: Callable[[str, object], None]
) -> None:
    p = problem(**CASES[case])
    replicas = 1000
    store = tc.ChainStore([SHAPE] * (chains // replicas), replicas=replicas, seed=1, latent=True)
    loss = tc.CRFLoss(p.crf, chains=store, sweeps=10, reduction="sum")
    worst = agree(p, sampled(p, loss, chains // replicas, visits=2), chains, tolerance)
    record_property("largest error", worst)
    print(f"pcd {case}: largest error {100 * worst:.2f} % of the largest component, {chains} chains")


@pytest.mark.parametrize("case", ["labelled", "latent"])
def test_cd_with_many_sweeps_has_the_same_gradient(case: str) -> None:
    p = problem(**CASES[case])
    loss = tc.CRFLoss(p.crf, method="cd", sweeps=30, reduction="sum", seed=5)
    agree(p, sampled(p, loss, 20_000, visits=1), 20_000, 0.04)


def test_cd_1_is_one_sweep_from_the_data() -> None:
    p = problem()
    colors = sublattice_coloring(p.crf.neighborhood).color(torch.tensor(SITES).numpy())
    energy = energies(p.logits, p.crf.pairwise.detach(), p.mask).double()
    state = torch.zeros(LABELS**6, dtype=torch.float64)
    state[(ALL == p.target).flatten(1).all(1)] = 1
    state, joint = state.view([LABELS] * 6), torch.softmax(-energy, 0).view([LABELS] * 6)
    for site in sorted(range(6), key=lambda s: int(colors[s])):
        state = state.sum(site, keepdim=True) * joint / joint.sum(site, keepdim=True)
    after = torch.stack([(state.flatten()[:, None, None] * (ALL == label)).sum(0) for label in range(LABELS)])
    given = torch.stack([(p.target == label).double() for label in range(LABELS)])
    found, _ = sampled(p, tc.CRFLoss(p.crf, method="cd", sweeps=1, reduction="sum", seed=5), 50_000, visits=1)
    assert float((found - (after - given)).abs().max()) < 5.5 * 0.5 / 50_000**0.5


@pytest.mark.parametrize("fault", ["sign", "transposed counts", "unpaired phases"])
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = errors

    def wrong(*given: object) -> Errors:
        found = right(*given)  # type: ignore[arg-type]
        if fault == "sign":
            return found._replace(logits=-found.logits, pairwise=-found.pairwise)
        tables = found.pairwise.transpose(1, 2) if fault == "transposed counts" else found.pairwise * 0.9
        return found._replace(pairwise=tables)

    monkeypatch.setattr("tritoncrf.reduction.errors", wrong)
    p = problem()
    store = tc.ChainStore([SHAPE] * 20, replicas=1000, seed=1)
    loss = tc.CRFLoss(p.crf, chains=store, reduction="sum")
    with pytest.raises(AssertionError):
        agree(p, sampled(p, loss, 20, visits=2), 20_000, 0.02)


def test_value_is_the_energy_gap_and_mean_divides_by_labelled_pixels() -> None:
    p = problem(latent=True)
    values = {}
    for reduction in ("sum", "mean"):
        store = tc.ChainStore([SHAPE] * 4, seed=1, latent=True)
        loss = tc.CRFLoss(p.crf, chains=store, reduction=reduction)
        logits = p.logits.expand(4, -1, -1, -1).clone().requires_grad_()
        values[reduction] = loss(logits, p.target.expand(4, -1, -1), torch.arange(4))
        index = torch.arange(4)
        y, drawn = (store.fetch(store.pixel_indices(index, SHAPE), data=data)[:, 0].long() for data in (True, False))
        gap = (p.crf.energy(logits, y) - p.crf.energy(logits, drawn)).sum()
        assert torch.allclose(values["sum"], gap, atol=1e-4)
        values[reduction].backward()
        assert logits.grad is not None
        assert torch.allclose(logits.grad.sum(1), torch.zeros(4, *SHAPE), atol=1e-6)
    assert torch.allclose(values["mean"] * 16, values["sum"], atol=1e-4)


def test_no_labelled_pixel_gives_zero_and_not_nan() -> None:
    p = problem()
    loss = tc.CRFLoss(p.crf, method="cd", seed=0)
    logits = p.logits[None].clone().requires_grad_()
    value = loss(logits, torch.full((1, *SHAPE), 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    assert p.crf.pairwise.grad is not None
    assert not p.crf.pairwise.grad.any()
