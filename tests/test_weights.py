"""Class weights and one value an image: what flows back is what the sum of the parts says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tritoncrf.visit import OPERATOR

SHAPE = (5, 6)
WEIGHT = torch.tensor([0.0, 0.5, 2.0])


def given(kinds: int | None = None, gates: int = 0) -> tuple[tc.GridCRF, Tensor, Tensor, dict[str, Tensor]]:
    make = torch.Generator().manual_seed(2)
    hood = tc.Neighborhood.nearest(8)
    crf = tc.GridCRF(3, hood, kinds=kinds, gates=gates)
    for table in crf.parameters():
        torch.nn.init.normal_(table, std=0.3, generator=make)
    more: dict[str, Tensor] = {}
    if kinds is not None:
        more["kinds"] = torch.randint(0, kinds, (4, 4, *SHAPE), generator=make, dtype=torch.uint8)
    if gates:
        more["gates"] = torch.rand(4, gates, 4, *SHAPE, generator=make).requires_grad_()
    target = torch.randint(0, 3, (4, *SHAPE), generator=make)
    target[:, 0, :2] = 255
    return crf, torch.randn(4, 3, *SHAPE, generator=make), target, more


def flow(
    crf: tc.GridCRF, logits: Tensor, target: Tensor, more: dict[str, Tensor], reduction: str, factors: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The value, and what flows to logits, tables and gates."""
    crf = copy.deepcopy(crf)
    store = tc.ChainStore([SHAPE] * 4, seed=1, replicas=2)
    loss = tc.CRFLoss(crf, chains=store, reduction=reduction, sweeps=3, weight=weight)
    logits = logits.clone().requires_grad_()
    more = {name: part.detach().clone().requires_grad_(part.requires_grad) for name, part in more.items()}
    value = loss(logits, target, torch.arange(4), **more)
    (value if factors is None else (factors * value).sum()).backward()
    wanted = [logits, *crf.parameters(), *(part for part in more.values() if part.requires_grad)]
    return value.detach(), [part.grad for part in wanted if part.grad is not None]


@pytest.mark.parametrize(("kinds", "gates"), [(None, 0), (3, 0), (2, 2)])
def test_a_value_an_image_sums_to_the_sum(kinds: int | None, gates: int) -> None:
    problem = given(kinds, gates)
    whole, errors = flow(*problem, "sum")
    each, parts = flow(*problem, "none", torch.ones(4))
    assert each.shape == (4,)
    assert float(each.double().sum()) == pytest.approx(float(whole), rel=1e-5)
    for one, other in zip(errors, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    _, first = flow(*problem, "none", torch.tensor([1.0, 0, 0, 0]))
    _, rest = flow(*problem, "none", torch.tensor([0.0, 1, 1, 1]))
    assert not bool(first[0][1:].any())
    for one, two, both in zip(first, rest, errors, strict=True):
        assert torch.allclose(one + two, both, atol=1e-5)


def test_weights_scale_the_errors_of_data_and_sample_alike() -> None:
    problem = given()
    _, plain = flow(*problem, "sum")
    _, weighed = flow(*problem, "sum", weight=WEIGHT)
    assert torch.equal(weighed[0], plain[0] * WEIGHT.view(-1, 1, 1))
    assert torch.equal(weighed[1], plain[1])
    assert bool(plain[0][:, 0].any())


def test_the_weighed_value_is_that_of_scaled_logits() -> None:
    crf, logits, target, _ = given()
    loss = tc.CRFLoss(crf, chains=tc.ChainStore([SHAPE] * 4, seed=1), reduction="none", sweeps=3, weight=WEIGHT)
    full = target.clamp(max=2)
    value = loss(logits.clone().requires_grad_(), full, torch.arange(4)).detach()
    assert loss.chains is not None
    free = loss.chains.fetch(loss.chains.pixel_indices(torch.arange(4), SHAPE))[:, 0].long()
    scaled = logits * WEIGHT.view(-1, 1, 1)
    assert torch.allclose(value, crf.energy(scaled, full) - crf.energy(scaled, free), atol=1e-3)


def test_weights_move_with_the_loss_and_stand_in_its_state() -> None:
    loss = tc.CRFLoss(given()[0], method="cd", weight=WEIGHT)
    assert torch.equal(loss.state_dict()["weight"], WEIGHT)
    assert loss.to("meta").weight.device.type == "meta"  # type: ignore[union-attr]
    assert "weight" not in tc.CRFLoss(given()[0], method="cd").state_dict()


def test_a_value_an_image_in_eval_mode() -> None:
    crf, logits, target, _ = given()
    each = tc.CRFLoss(crf, method="cd", reduction="none").eval()(logits, target)
    whole = tc.CRFLoss(crf, method="cd", reduction="sum").eval()(logits, target)
    assert each.shape == (4,)
    assert float(each.sum()) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.skipif(not OPERATOR, reason="this torch cannot carry a visit through a compiler")
def test_both_in_a_compiled_step() -> None:
    crf, logits, target, _ = given()
    index = torch.arange(4)
    values = []
    for compiled in (False, True):
        loss = tc.CRFLoss(crf, chains=tc.ChainStore([SHAPE] * 4, seed=1), reduction="none", weight=WEIGHT)
        step = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
        values.append(step(logits.clone().requires_grad_(), target, index).detach())
    assert torch.equal(*values)
