"""Marginals are those of enumeration, annealing finds the minimum, diagnostics know a chain that mixes."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tritoncrf import diagnostics, validation
from tritoncrf.batches import Batch
from tritoncrf.evaluation import answer, evaluate
from tritoncrf.inference import Estimate, estimate
from tritoncrf.metrics import Score

ALL = torch.tensor(list(itertools.product(range(3), repeat=6))).view(-1, 2, 3)


def problem() -> tuple[tc.GridCRF, Tensor]:
    make = torch.Generator().manual_seed(4)
    neighborhood = tc.Neighborhood.from_offsets([(0, 1), (1, 0), (1, -1)])
    crf = tc.GridCRF(3, neighborhood, 0.7 * torch.randn(3, 3, 3, generator=make))
    return crf, torch.randn(1, 3, 2, 3, generator=make)


def energies(crf: tc.GridCRF, logits: Tensor) -> Tensor:
    """By loops of its own: E of every labelling."""
    total = torch.zeros(len(ALL), dtype=torch.float64)
    tables = crf.pairwise.detach().double()
    for y, x in itertools.product(range(2), range(3)):
        total -= logits[0, :, y, x].double()[ALL[:, y, x]]
        for c, (dy, dx) in enumerate(crf.neighborhood.offsets):
            if 0 <= y + dy < 2 and 0 <= x + dx < 3:
                total += tables[c][ALL[:, y, x], ALL[:, y + dy, x + dx]]
    return total


def exact(probability: Tensor) -> Tensor:
    return torch.stack([(probability[:, None, None] * (ALL == label)).sum(0) for label in range(3)])


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_marginals_are_those_of_enumeration(beta: float) -> None:
    crf, logits = problem()
    found = estimate(crf, logits, sweeps=60, burn_in=15, replicas=400, beta=beta, seed=1)
    truth = exact(torch.softmax(-beta * energies(crf, logits), 0))
    assert float((found.marginals[0] - truth).abs().max()) < 0.006
    assert torch.allclose(found.marginals.sum(1), torch.ones(1, 2, 3), atol=1e-6)
    assert float(found.rhat) < 1.02
    # The largest two marginals of a pixel may lie closer than the error.
    clear = truth.topk(2, 0).values.diff(dim=0)[0].abs() > 0.02
    assert torch.equal(found.labels[0][clear], truth.argmax(0)[clear].to(torch.uint8))


def test_the_torch_engine_averages_as_the_default_does() -> None:
    crf, logits = problem()
    found = [estimate(crf, logits, sweeps=7, burn_in=3, replicas=3, engine=engine, seed=5) for engine in ("torch", "auto")]
    assert torch.allclose(found[0].marginals, found[1].marginals, atol=1e-6)
    assert torch.allclose(found[0].traces, found[1].traces, atol=1e-9)
    assert torch.equal(found[0].flip_rate, found[1].flip_rate)


def test_clamped_sites_condition_the_rest_and_holes_are_not_there() -> None:
    crf, logits = problem()
    clamp, mask = torch.zeros(1, 2, 3, dtype=torch.bool), torch.ones(1, 2, 3, dtype=torch.bool)
    clamp[0, 0, 1] = True
    given = torch.full((1, 2, 3), 255).masked_fill(clamp, 2)
    found = tc.marginals(crf, logits, sweeps=60, burn_in=15, replicas=400, labels=given, clamp=clamp)
    weight = torch.softmax(-energies(crf, logits), 0) * (ALL[:, 0, 1] == 2)
    assert float((found[0] - exact(weight / weight.sum())).abs().max()) < 0.006
    assert found[0, :, 0, 1].tolist() == [0, 0, 1]
    mask[0, 1, 2] = False
    holed = tc.max_marginal(crf, logits, sweeps=3, burn_in=1, mask=mask)
    assert holed[0, 1, 2] == 255
    assert int((holed == 255).sum()) == 1
    with pytest.raises(ValueError, match="labels: expected the labels that clamped sites keep, got None"):
        tc.marginals(crf, logits, sweeps=3, burn_in=1, clamp=clamp)


def test_the_first_sample_comes_from_the_logits_asked_for() -> None:
    crf, logits = problem()
    still = tc.GridCRF(3, crf.neighborhood)
    sure = torch.full_like(logits, -50.0)
    sure[:, 1] = 50.0
    drawn = tc.Sampler(still).init(sure).labels
    assert bool((drawn == 1).all())
    # Strong tables hold what the first draw gave, so the answers must differ with it.
    ferro = tc.GridCRF(3, crf.neighborhood, -8.0 * torch.eye(3).expand(3, 3, 3))
    for label in range(3):
        first = torch.full_like(logits, -50.0)
        first[:, label] = 50.0
        found = tc.max_marginal(ferro, logits, sweeps=5, burn_in=5, init_logits=first)
        assert bool((found == label).all())


@pytest.mark.parametrize("seed", range(3))
def test_annealing_finds_the_lowest_energy(seed: int) -> None:
    crf, logits = problem()
    found = tc.anneal(crf, logits, sweeps=100, replicas=4, seed=seed)
    assert torch.equal(found[0].long(), ALL[energies(crf, logits).argmin()])


def test_replicas_that_disagree_warn() -> None:
    crf = tc.GridCRF(2, tc.Neighborhood.nearest(8), -3.0 * torch.eye(2).expand(4, 2, 2))
    with pytest.warns(UserWarning, match="the replicas of 1 of 1 images disagree"):
        estimate(crf, torch.zeros(1, 2, 12, 12), sweeps=20, burn_in=30, replicas=6, seed=3)


def autoregressive(rho: float, length: int = 4000, chains: int = 8) -> Tensor:
    make = torch.Generator().manual_seed(0)
    values = [torch.randn(chains, generator=make, dtype=torch.float64)]
    for _ in range(length - 1):
        values.append(rho * values[-1] + math.sqrt(1 - rho * rho) * torch.randn(chains, generator=make, dtype=torch.float64))
    return torch.stack(values, -1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregressive_trace_is_known(rho: float) -> None:
    traces = autoregressive(rho)
    assert float(diagnostics.ess(traces)) == pytest.approx(32_000 * (1 - rho) / (1 + rho), rel=0.12)
    assert float(diagnostics.rhat(traces)) == pytest.approx(1, abs=0.01)


def test_rhat_is_that_of_the_formula_and_sees_a_trend() -> None:
    traces = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 4.0, 4.0]])
    halves = torch.tensor([[1.0, 2], [2, 2], [3, 4], [4, 4]], dtype=torch.float64)
    within, between = halves.var(1).mean(), 2 * halves.mean(1).var()
    assert float(diagnostics.rhat(traces)) == pytest.approx(float(((within / 2 + between / 2) / within).sqrt()))
    assert float(diagnostics.rhat(autoregressive(0.0) + torch.linspace(0, 5, 4000))) > 1.4
    assert float(diagnostics.rhat(torch.ones(2, 8))) == 1
    assert math.isinf(float(diagnostics.rhat(torch.tensor([[0.0] * 8, [1.0] * 8]))))
    with pytest.raises(ValueError, match=r"traces: expected shape .* with at least 4 sweeps"):
        diagnostics.rhat(torch.ones(2, 3))


def test_flip_rate_counts_changes_per_free_site() -> None:
    crf, logits = problem()
    sampler = tc.Sampler(crf)
    chains = sampler.init(logits, replicas=50)
    before = chains.labels
    sampler.run(chains, 1)
    assert float(diagnostics.flip_rate(chains, 1)) == pytest.approx(float((before != chains.labels).float().mean()))


def test_scores_by_hand() -> None:
    target, given = torch.tensor([[0, 0, 1, 1, 2, 255]]), torch.tensor([[0, 1, 1, 1, 0, 1]])
    score = Score.empty(4).plus(target, given)
    assert score.accuracy == pytest.approx(3 / 5)
    assert score.iou[:3] == pytest.approx([1 / 3, 2 / 3, 0])
    assert score.mean_iou == pytest.approx(1 / 3)
    assert math.isnan(score.per_class[3])
    without = Score.empty(4, background=0).plus(target, given)
    assert without.accuracy == pytest.approx(2 / 3)
    assert without.mean_iou == pytest.approx(1 / 3)
    assert math.isnan(Score.empty(2).accuracy)


def test_evaluation_looks_at_existing_labelled_pixels_only() -> None:
    crf, logits = problem()
    target = torch.tensor([[[0, 1, 2], [255, 1, 0]]])
    batch = Batch(logits, target, torch.tensor([0]), sizes=torch.tensor([[2, 2]]))

    def answers(batch: Batch, *options: int) -> tuple[Tensor, Tensor]:
        return answer(crf, logits, None, batch, 2, 1)

    found = evaluate(answers, [batch], 3, None, 2, 1, 1, 0)
    assert int(found.network.confusion.sum()) == int(found.crf.confusion.sum()) == 3


def test_replicas_clamped_apart_share_their_marginal() -> None:
    crf, logits = problem()
    clamp = torch.ones(1, 2, 3, dtype=torch.bool)
    held = torch.tensor([0, 2]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    found = tc.marginals(crf, logits, sweeps=1, burn_in=0, labels=held, clamp=clamp, replicas=2)
    assert found[0, :, 0, 0].tolist() == [0.5, 0, 0.5]


def test_wrong_arguments_are_named() -> None:
    crf, logits = problem()
    with pytest.raises(ValueError, match=r"init_logits: expected shape \[1, 3, 2, 3\], got \[1, 3, 2, 2\]"):
        tc.marginals(crf, logits, sweeps=1, burn_in=0, init_logits=logits[..., :2])
    with pytest.raises(ValueError, match=r"betas: expected a pair \(first, last\)"):
        tc.anneal(crf, logits, betas=(1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sweeps: expected an integer of at least 1, got 0"):
        tc.marginals(crf, logits, sweeps=0, burn_in=0)


def kept_chains(replicas: int) -> tuple[tc.CRFLoss, Tensor, dict[str, Tensor]]:
    """A loss with tables that pull, whose chains of two padded images were visited once, its logits and extras."""
    generator = torch.Generator().manual_seed(3)
    crf = tc.GridCRF(4, tc.Neighborhood.nearest(8), 0.3 * torch.randn(4, 4, 4, generator=generator))
    chains = tc.ChainStore([(5, 6), (9, 9), (7, 4)], replicas=replicas, seed=5)
    loss = tc.CRFLoss(crf, chains=chains, sweeps=3)
    logits = torch.randn(2, 4, 7, 6, generator=generator, requires_grad=True)
    clamp = torch.zeros(2, 7, 6, dtype=torch.bool)
    clamp[:, 1] = True
    extras = {"sizes": torch.tensor([[7, 4], [5, 6]]), "clamp": clamp}
    loss(logits, torch.ones(2, 7, 6, dtype=torch.long), torch.tensor([2, 0]), **extras)
    return loss, logits, extras


@pytest.mark.parametrize("replicas", [1, 2])
def test_lag_is_what_further_visits_do_to_the_energy(replicas: int) -> None:
    loss, logits, extras = kept_chains(replicas)
    chains, index = loss.chains, torch.tensor([2, 0])
    assert chains is not None
    before, counts = chains.labels.clone(), chains.sweeps.clone()
    found = diagnostics.lag(
        loss.crf, chains, logits, index.to(torch.uint8), sweeps=6, sizes=extras["sizes"], clamp=extras["clamp"]
    )
    assert torch.equal(chains.labels, before)
    assert torch.equal(chains.sweeps, counts)

    def energies() -> Tensor:
        labels = chains.fetch(chains.pixel_indices(index, (7, 6))).long()
        inside = validation.inside((7, 6), 2, extras["sizes"], None, torch.device("cpu"))
        labels = labels.masked_fill(~inside[:, None], 0)
        return torch.stack(
            [loss.crf.energy(logits.detach(), labels[:, r], sizes=extras["sizes"]) for r in range(replicas)], 1
        ).detach()

    start = energies()
    for _ in range(2):
        loss(logits, torch.ones(2, 7, 6, dtype=torch.long), index, **extras)
    free = torch.tensor([[6 * 4], [4 * 6]])
    torch.testing.assert_close(found, (energies() - start) / free, rtol=0, atol=1e-5)
    assert found.abs().max() > 0.01


def test_lag_says_what_is_wrong() -> None:
    loss, logits, extras = kept_chains(1)
    given = {"crf": loss.crf, "chains": loss.chains, "logits": logits, "index": torch.tensor([2, 0]), **extras}
    forbidden = logits.detach().clone()
    forbidden[:, 1] = -math.inf
    unvisited = tc.ChainStore([(5, 6), (9, 9), (7, 4)], seed=5)
    foreign = tc.ChainStore([(5, 6), (9, 9), (7, 4)], seed=5)
    foreign.labels.fill_(9)
    contrastive = tc.CRFLoss(loss.crf, chains=unvisited, method="cd", sweeps=3)
    contrastive(logits, torch.ones(2, 7, 6, dtype=torch.long), torch.tensor([2, 0]), **extras)
    cases: list[tuple[str, object, str]] = [
        ("index", torch.tensor([2, 3]), "index: expected positions from 0 to 2, got 3"),
        ("index", torch.tensor([2]), r"index: expected shape \[2\], got \[1\]"),
        (
            "index",
            torch.tensor([0, 2]),
            r"sizes: expected each image at the size its chain has, got \[7, 4\] for image 0 of \[5, 6\]",
        ),
        ("sizes", None, r"sizes: expected each image at the size its chain has, got \[7, 6\] for image 2 of \[7, 4\]"),
        ("sizes", torch.tensor([[7, 4]]), r"sizes: expected shape \[2, 2\], got \[1, 2\]"),
        ("sizes", [[7, 4], [5, 6]], "sizes: expected a torch tensor, got list"),
        ("sweeps", 0, "sweeps: expected"),
        ("chains", None, "crf, chains: expected a GridCRF or a FactorCRF, and a ChainStore, got GridCRF, NoneType"),
        ("crf", loss.sampler, "crf, chains: expected a GridCRF or a FactorCRF, and a ChainStore, got Sampler, ChainStore"),
        ("chains", unvisited, "chains: expected chains that PCD has visited, got image 2, not drawn yet"),
        ("chains", foreign, "chains: expected a store of chains of 4 labels, got label 9"),
        ("logits", forbidden, "logits: expected ones that allow the labels of the kept chains"),
        ("engine", "cuda", "engine: expected"),
    ]
    for name, value, sentence in cases:
        with pytest.raises((ValueError, TypeError), match=sentence):
            diagnostics.lag(**{**given, name: value})  # type: ignore[arg-type]


def test_lag_sees_chains_away_from_the_model_on_both_sides() -> None:
    crf = tc.GridCRF(3, tc.Neighborhood.nearest(8))
    chains = tc.ChainStore([(12, 12)], seed=0)
    logits = torch.zeros(1, 3, 12, 12)
    logits[:, 0] = 2.0
    found = []
    for label in (2, 0):
        chains.labels[0, :-1] = label
        found.append(float(diagnostics.lag(crf, chains, logits, torch.tensor([0]), sweeps=20)))
    # Independent pixels: the mean energy is -2 p, with p = e^2 / (e^2 + 2) of label 0.
    share = math.exp(2) / (math.exp(2) + 2)
    assert found == pytest.approx([-2 * share, 2 - 2 * share], abs=0.25)
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, :, :6] = True
    chains.labels[0].view(-1)[:-1].view(12, 12)[:, 6:] = 255
    assert math.isfinite(float(diagnostics.lag(crf, chains, logits, torch.tensor([0]), mask=mask)))


def test_arviz_reads_the_traces() -> None:
    """R-hat of halves is ArviZ's to rounding, chains of each image its own; the effective size agrees within a quarter."""
    arviz = pytest.importorskip("arviz_stats", reason="ArviZ is not installed: pip install '.[arviz]'")
    make = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 400, generator=make, dtype=torch.float64)
    traces = noise.clone()
    for t in range(1, 400):
        traces[..., t] += torch.tensor([0.0, 0.6, 0.9])[:, None] * traces[..., t - 1]
    traces[0, 0] += 1  # one replica of the first image disagrees
    found = Estimate(torch.zeros(3, 2, 1, 1), traces, torch.zeros(3))
    tree = found.to_arviz()
    assert dict(tree["posterior"].sizes) == {"chain": 4, "draw": 400, "image": 3}
    split = torch.from_numpy(arviz.rhat(tree, method="split")["energy"].values)
    assert torch.allclose(found.rhat, split, rtol=1e-12, atol=0)
    assert float(split[0]) > 1.05 > float(split[1])
    size = torch.from_numpy(arviz.ess(tree, method="mean")["energy"].values)
    assert torch.allclose(found.ess, size, rtol=0.25, atol=0)


def test_without_arviz_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    found = Estimate(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 4), torch.zeros(1))
    with pytest.raises(ImportError, match=r'to_arviz: expected ArviZ, got none .*: pip install "tritoncrf\[arviz\]"'):
        found.to_arviz()
