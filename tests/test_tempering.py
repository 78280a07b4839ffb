"""Replicas at temperatures of their own: the bits of separate runs, the model's law where plain chains keep to a mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

import tritoncrf as tc
from tests import enumeration
from tests.graph_cases import one_sentence
from tritoncrf import contract, tempering
from tritoncrf.engines import report
from tritoncrf.tempering import Ladder, temper

ENGINES = [name for name, state in report(torch.device("cpu")).items() if name != "triton" and state == "ready"]
BETAS = (1.0, 0.7, 0.45, 0.25)
IMAGES, SWEEPS = 4000, 24
OFFSETS = [(0, 1), (1, 0)]
TABLES = enumeration.on_grid(-1.6 * np.eye(2)[None].repeat(2, 0))
UNARY = enumeration.on_grid(np.array([[0.0, 0.1]] * 9))
LISTED = enumeration.labellings(9, 2)
LAW = enumeration.joint(enumeration.energies(LISTED, UNARY, TABLES, (3, 3), OFFSETS))


def crf() -> tc.GridCRF:
    return tc.GridCRF(2, tc.Neighborhood.from_offsets(OFFSETS), torch.from_numpy(TABLES).float())


def logits(images: int) -> Tensor:
    return torch.from_numpy(-UNARY.T.reshape(1, 2, 3, 3)).float().expand(images, -1, -1, -1).contiguous()


@pytest.mark.parametrize("engine", ENGINES)
def test_each_replica_has_the_labels_of_a_run_at_its_temperature(engine: str) -> None:
    torch.manual_seed(0)
    model = tc.GridCRF(4, tc.Neighborhood.nearest(8), 0.5 * torch.randn(4, 4, 4))
    sampler, scores = tc.Sampler(model, engine, seed=7), torch.randn(3, 4, 9, 11)
    index = torch.tensor([5, (1 << 39) + 3, 0])
    ladder = Ladder(sampler, sampler.init(scores, index=index, replicas=4), BETAS)
    ladder.run(9)
    for r, beta in enumerate(BETAS):
        alone = sampler.run(sampler.init(scores, index=index, replicas=4), 9, beta=beta)
        assert torch.equal(ladder.rows[:, r], alone.rows[:, r])


def distance(labels: Tensor) -> float:
    """Chi-square's p of labellings ``[N, 3, 3]`` of the model's law, cells pooled to an expected count of 5."""
    codes = labels.reshape(-1, 9).long().numpy() @ 2 ** np.arange(9)[::-1]
    counts, expected = np.bincount(codes, minlength=512).astype(float), len(labels) * LAW
    big = expected >= 5
    counts, expected = (np.append(part[big], part[~big].sum()) for part in (counts, expected))
    return float(chi2.sf(float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1))


def tempered(engine: str) -> Ladder:
    """All of them start in the mode of label 1, the less likely one."""
    sampler = tc.Sampler(crf(), engine, seed=3)
    start = torch.ones(IMAGES, 3, 3, dtype=torch.long)
    ladder = Ladder(sampler, sampler.init(logits(IMAGES), start, replicas=len(BETAS)), BETAS)
    for _ in range(SWEEPS):
        ladder.run(1)
        ladder.swap()
    return ladder


@pytest.mark.parametrize("engine", ENGINES)
def test_where_plain_chains_stay_in_a_mode_tempered_ones_have_the_models_law(engine: str) -> None:
    found = tempered(engine)
    assert distance(found.rungs[0].labels[:, 0]) > 1e-6
    assert found.who.sort(1).values.equal(torch.arange(4).repeat(IMAGES, 1))
    sampler = tc.Sampler(crf(), engine, seed=3)
    plain = sampler.run(sampler.init(logits(IMAGES), torch.ones(IMAGES, 3, 3, dtype=torch.long)), SWEEPS)
    assert distance(plain.labels[:, 0]) < 1e-12
    # As many sweeps as all replicas together.
    plain = sampler.run(plain, SWEEPS * (len(BETAS) - 1))
    assert distance(plain.labels[:, 0]) < 1e-6


def test_a_swap_of_the_wrong_sign_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tempering.exponent
    monkeypatch.setattr(tempering, "exponent", lambda *given: -right(*given))
    assert distance(tempered("torch").rungs[0].labels[:, 0]) < 1e-12


def test_a_swap_that_is_always_made_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tempering.exponent
    monkeypatch.setattr(tempering, "exponent", lambda *given: right(*given).abs())
    assert distance(tempered("torch").rungs[0].labels[:, 0]) < 1e-12


@pytest.mark.skipif(len(ENGINES) < 2, reason="numba is not installed: pip install numba")
def test_engines_swap_alike_and_images_apart_too() -> None:
    one, other = (tempered(engine) for engine in ENGINES[:2])
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.made, other.made)
    sampler = tc.Sampler(crf(), "torch", seed=3)
    start = torch.ones(1, 3, 3, dtype=torch.long)
    ladder = Ladder(sampler, sampler.init(logits(1), start, torch.tensor([17]), replicas=4), BETAS)
    for _ in range(SWEEPS):
        ladder.run(1)
        ladder.swap()
    assert torch.equal(ladder.rows[0], one.rows[17])


def test_at_one_temperature_every_swap_is_made_and_labellings_travel_straight() -> None:
    sampler = tc.Sampler(crf(), "torch", seed=3)
    ladder = Ladder(sampler, sampler.init(logits(2), replicas=4), (1.0,) * 4)
    for _ in range(32):
        ladder.run(1)
        ladder.swap()
    assert torch.equal(ladder.made, ladder.proposed)
    # Of four labellings each is back every eight rounds: the first of them by then, the others on their way.
    assert 12 <= int(ladder.round_trips[0]) <= 16


@pytest.mark.parametrize("engine", ENGINES)
def test_marginals_are_the_models(engine: str) -> None:
    found = temper(crf(), logits(40), betas=BETAS, sweeps=400, burn_in=40, every=2, engine=engine)
    expected = torch.from_numpy(enumeration.marginals(LAW, LISTED, 2).T.reshape(2, 3, 3)).float()
    assert float((found.marginals.mean(0) - expected).abs().max()) < 0.02
    assert found.acceptance.shape == (40, 3)
    assert float(found.acceptance.min()) > 0.1
    assert int(found.round_trips.min()) > 0
    assert found.traces.shape == (40, 1, 400)


def test_bad_input_is_one_sentence() -> None:
    def asked(betas: tuple[float, ...], every: int = 1) -> None:
        temper(crf(), logits(1), betas=betas, sweeps=2, burn_in=0, every=every)

    one_sentence(lambda: asked((1.0,)), "betas: expected at least two")
    one_sentence(lambda: asked((0.5, 1.0)), "betas: expected at least two .* not rise")
    one_sentence(lambda: asked((1.0, -1.0)), "beta: expected")
    one_sentence(lambda: asked((1.0, 0.5), every=0), "every: expected")
    sampler = tc.Sampler(crf(), "torch", seed=3)
    one_sentence(lambda: Ladder(sampler, sampler.init(logits(1), replicas=3), BETAS), "betas: expected one for each of 3")
    assert contract.SWAP not in contract.PURPOSES.values()


def test_swaps_read_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    right, asked = contract.draw_uniform, list[tuple[int, int, int, int, int]]()

    def noted(
        site: Tensor, sweep: Tensor, index: Tensor, replica: Tensor | int, purpose: int, key: tuple[int, int]
    ) -> Tensor:  # fmt: skip
        if purpose == contract.SWAP:
            asked.append((int(site[0]), int(sweep[0]), int(index[0]), int(replica), purpose))
        return right(site, sweep, index, replica, purpose, key)

    monkeypatch.setattr(contract, "draw_uniform", noted)
    sampler = tc.Sampler(crf(), "torch", seed=3)
    ladder = Ladder(sampler, sampler.init(logits(1), index=torch.tensor([9]), replicas=4), BETAS)
    for _ in range(2):
        ladder.run(5)
        ladder.swap()
    assert asked == [(0, 5, 9, 0, 3), (2, 5, 9, 0, 3), (1, 10, 9, 0, 3)]
