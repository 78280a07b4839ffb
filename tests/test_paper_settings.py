"""Settings that learning is tried with: what their texts say, and the two gradients that stand beside the likelihood."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from bench.paper import likelihood, mixing, tuning
from bench.paper.methods import beside
from bench.paper.presets import far
from bench.paper.settings import Setting, parse
from tests.test_paper_methods import problem
from tritoncrf.batches import Batch
from tritoncrf.fast import FastWeights


def test_a_text_says_what_it_changes() -> None:
    assert parse("joint") == Setting()
    assert parse("control, 12 epochs") == Setting(learns=False, changes={"epochs": 12})
    found = parse("joint, edges steps:0.1,0.3 on far, K = 30, fast 0.3, then cross-entropy of 2 averaged alone, nudges beside")
    assert found.edges == "steps:0.1,0.3 on far"
    assert found.second == tc.Objective(likelihood=0.0, cross_entropy=1.0, contexts=2)
    assert (found.fast, found.beside, found.changes) == (FastWeights(0.3), "nudges", {"visit_sweeps": 30})
    assert parse("joint, cross-entropy of 10 averaged x 0.3").objective == tc.Objective(cross_entropy=0.3, contexts=10)
    assert parse("joint, cross-entropy of 2 averaged x 1 every 4").objective == tc.Objective(1.0, 1.0, 2, every=4)
    assert parse("joint, margin 1").objective == tc.Objective(margin=1.0)
    assert parse("separate, table rate 1e-3, 100 + 200 sweeps").changes == {
        "table_rate": 1e-3, "separate_rate": 1e-3, "burn_in": 100, "sweeps": 200,
    }  # fmt: skip
    assert parse("joint, 20 classes to 16").changes == {"neighborhood": far(16, 8)}
    assert parse("joint, start x 0.5, cross-entropy x 0.2, centred tables") == Setting(soften=0.5, auxiliary=0.2, centred=True)


@pytest.mark.parametrize("text", [
    "", "both", "joint, fast x", "joint, K = 1.5", "joint, 21 classes to 16", "joint,K = 3", "joint, K = 3, K = 5",
    "joint, K = 0", "joint, K = -3", "joint, 0 epochs", "joint, network rate -1", "joint, table rate inf", "control, fast 0.3",
    "control, margin 1", "control, centred tables", "joint, piecewise tables x 0.3",
    "separate, fast 0.3, piecewise tables x 0.3",
])  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^setting: expected .* got '"):
        parse(text)


def test_curves_are_of_what_samples() -> None:
    assert likelihood.sampled("joint, K = 3") == parse("joint, K = 3")
    for text in ("control", "separate, piecewise tables x 0.3"):
        with pytest.raises(ValueError, match=f"^setting: expected one that learns by sampling, got '{text}'"):
            likelihood.sampled(text)


@pytest.mark.parametrize("text", ["K = 1.5", "K = 0", "auto, 0 to 10, 0.1", "K = 10, fast"])
def test_settings_of_mixing_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=f"^setting: expected 'K = 10' or .* got '{re.escape(text)}'"):
        mixing.parse(text)


@pytest.mark.parametrize("name", [
    "joint, fast 0.3, field beside", "joint, edges steps:0.1,0.3, nudges beside", "joint, edges contrast:0.8, field beside",
    "joint, then cross-entropy of 2 averaged alone, K = 2", "joint, fast 0.3, then cross-entropy of 2 averaged alone, K = 2",
])  # fmt: skip
def test_what_stands_beside_the_likelihood_learns(name: str, tmp_path: Path) -> None:
    given = problem(epochs=1, images=3)
    found = tuning._row(given, parse(name), tmp_path / "work")
    assert 0 < float(str(found["validation_accuracy"])) <= 1
    assert float(str(found["validation_iou"])) > 0


@pytest.mark.parametrize("parts", list(itertools.permutations(["margin 0.3", "cross-entropy of 2 averaged x 1 every 4"])))
def test_a_margin_and_a_cross_entropy_stand_beside_each_other_in_any_order(parts: tuple[str, str]) -> None:
    assert parse(", ".join(["joint", *parts])).objective == tc.Objective(1.0, 1.0, 2, 0.3, every=4)


def test_fast_tables_stay_when_the_objective_changes() -> None:
    given = problem(epochs=2, images=3)
    learned = tuning.Sampled(given, given.crf(None), parse("joint, fast 0.3, then cross-entropy of 2 averaged alone"))
    assert learned.later is not None
    assert learned.later.fast is not None
    assert learned.later.fast is learned.loss.fast


class Tiny:
    """A 2 x 2 image of three labels, tables that are not symmetric, one pixel without a label; so many times."""

    def __init__(self, images: int = 1, seed: int = 0) -> None:
        drawn = torch.Generator().manual_seed(seed)
        self.crf = tc.GridCRF(3, tc.Neighborhood.nearest(4))
        with torch.no_grad():
            self.crf.pairwise.copy_(0.7 * torch.randn(self.crf.pairwise.shape, generator=drawn))
        self.loss = tc.CRFLoss(self.crf, chains=tc.ChainStore([(2, 2)] * images, seed=3), sweeps=20)
        self.logits = torch.randn((1, 3, 2, 2), generator=drawn).repeat(images, 1, 1, 1).requires_grad_()
        target = torch.tensor([[[0, 2], [1, 255]]], dtype=torch.uint8).repeat(images, 1, 1)
        self.batch = Batch(torch.zeros(images, 1, 2, 2), target, torch.arange(images))

    def marginals(self) -> Tensor:
        """By enumeration, float32 ``[3, 2, 2]``, differentiable."""
        states = torch.tensor(list(itertools.product(range(3), repeat=4))).view(1, -1, 2, 2)
        weights = (-self.crf.energy(self.logits[:1], states)[0]).softmax(0)
        return torch.einsum("s,shwl->lhw", weights, torch.nn.functional.one_hot(states[0], 3).float())


def test_nudges_give_the_gradient_of_the_marginals_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over many samples: gradients by logits and tables against autograd through the enumerated marginals."""
    monkeypatch.setattr(beside, "LEAST", 1e-6)
    monkeypatch.setattr(beside, "AVERAGED", 400)
    monkeypatch.setattr(beside, "NUDGED", 8)
    # What is left of second order is then below the noise of so many images, 0.07 and 0.08 of the gradients.
    monkeypatch.setattr(beside, "STEP", 0.03)
    tiny = Tiny(images=16000)
    truth = tiny.batch.target[0].long().clamp(max=2)
    mu = tiny.marginals().gather(0, truth[None])[0]
    exact = torch.autograd.grad(-mu.log()[tiny.batch.target[0] != 255].mean(), [tiny.logits, tiny.crf.pairwise])
    tiny.loss(tiny.logits, tiny.batch.target, tiny.batch.index)
    value = beside.value("nudges", tiny.loss, tiny.logits, tiny.batch, None)
    found = torch.autograd.grad(value, [tiny.logits, tiny.crf.pairwise])
    for own, truly in zip(found, exact, strict=True):
        # Each image's logits have a part of the mean; enumerated were those of the first.
        total, part = (each.sum(0) if each.dim() == 4 else each for each in (own, truly))
        apart = float((total - part).norm() / part.norm())
        assert apart < 0.15, apart


def test_the_field_is_a_mean_field_step_from_the_chains_average() -> None:
    tiny = Tiny()
    tiny.loss(tiny.logits, tiny.batch.target, tiny.batch.index)
    before = tiny.loss.chains.labels.clone()  # type: ignore[union-attr]
    found = beside.value("field", tiny.loss, tiny.logits, tiny.batch, None)
    assert torch.equal(before, tiny.loss.chains.labels)  # type: ignore[union-attr]
    chains = tiny.loss.chains
    assert chains is not None
    kept = chains.fetch(chains.pixel_indices(tiny.batch.index, (2, 2)))[:, 0]
    mu = tc.marginals(
        tiny.crf, tiny.logits.detach(), labels=kept, sweeps=beside.AVERAGED, burn_in=0, seed=3, index=tiny.batch.index
    )[0]
    total = torch.zeros(())
    for row, column in ((0, 0), (0, 1), (1, 0)):
        field = torch.zeros(3)
        for (down, right), table in zip(tiny.crf.neighborhood.offsets, tiny.crf.pairwise, strict=True):
            for sign, own in ((1, table), (-1, table.T)):
                there = row + sign * down, column + sign * right
                if all(0 <= place < 2 for place in there):
                    field = field + own @ mu[:, there[0], there[1]]
        chances = (tiny.logits[0, :, row, column] - field).log_softmax(0)
        total = total - chances[int(tiny.batch.target[0, row, column])] / 3
    assert float(found) == pytest.approx(float(total), abs=1e-6)
    parts = [torch.autograd.grad(value, [tiny.logits, tiny.crf.pairwise]) for value in (found, total)]
    for first, second in zip(*parts, strict=True):
        assert torch.allclose(first, second, atol=1e-6)
