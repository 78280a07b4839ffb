"""Chains that are watched, paced and pushed: the fall of energy over a visit, sweeps that follow it, and fast tables."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torch.utils.data import DataLoader

import tritoncrf as tc
from tests import enumeration, graph_cases
from tritoncrf import contract, energies
from tritoncrf.datasets import Indexed, collate
from tritoncrf.engines import report
from tritoncrf.fast import FastWeights
from tritoncrf.pace import AutoSweeps, Pace

ENGINES = [name for name, state in report(torch.device("cpu")).items() if name != "triton" and state == "ready"]
SIZES = [(7, 9), (6, 5), (7, 4)]


def model(**more: int) -> tc.GridCRF:
    torch.manual_seed(3)
    crf = tc.GridCRF(3, tc.Neighborhood.nearest(8), **more)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(contract.round_pairwise(0.4 * torch.randn_like(parameter)))
    return crf


def ragged() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits on rule 1's grid, targets, numbers and sizes of a padded batch."""
    torch.manual_seed(4)
    logits = torch.floor(torch.randn(3, 3, 7, 9) * 4096) / 4096
    return logits, torch.randint(0, 3, (3, 7, 9)), torch.arange(3), torch.tensor(SIZES)


def visits(loss: tc.CRFLoss, number: int, first: int = 0, rate: float = 0.3) -> Iterator[int]:
    """Learns from three images of many sizes; yields K of each visit."""
    logits, target, index, sizes = ragged()
    for n in range(first, first + number):
        one = slice(n % 3, n % 3 + 1)
        yield loss.sweeps
        loss.crf.zero_grad()
        loss(logits[one].requires_grad_(), target[one], index[one], sizes=sizes[one]).backward()
        with torch.no_grad():
            for parameter in loss.crf.parameters():
                assert parameter.grad is not None
                parameter.sub_(rate * parameter.grad)


def store(seed: int = 1, **more: bool | int) -> tc.ChainStore:
    return tc.ChainStore(SIZES, seed=seed, **more)  # type: ignore[arg-type]


# The fall of energy.


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", [{}, {"kinds": 2}, {"gates": 2}], ids=["plain", "kinds", "gates"])
def test_energies_are_the_models_own(engine: str, form: dict[str, int]) -> None:
    crf, (logits, _, index, sizes) = model(**form), ragged()
    kinds = torch.randint(0, 2, (3, 4, 7, 9), dtype=torch.uint8) if "kinds" in form else None
    gates = torch.randint(0, 129, (3, 2, 4, 7, 9)) / 128 if "gates" in form else None
    sampler = tc.Sampler(crf, engine, 0)
    chains = sampler.init(logits, index=index, sizes=sizes, replicas=2, kinds=kinds, gates=gates)
    found = energies.energy(sampler.engine, chains)
    # The model's has logits as they are, less the largest; a gated entry is rounded once an edge.
    inside = chains.exists
    shift = logits.amax(1).where(inside, 0.0).flatten(1).sum(1, dtype=torch.float64)
    own = tc.GridCRF.scores(crf, logits, chains.labels, sizes, None, tc.edges.Edges(kinds, gates)) + shift[:, None]
    assert torch.allclose(found, own, atol=1e-9 if gates is None else 0.02, rtol=0)
    assert torch.equal(found * contract.GRID, (found * contract.GRID).round())


@pytest.mark.parametrize("name", ["cycle", "clique"])
def test_energies_of_graphs_are_the_models_own(name: str) -> None:
    graph = graph_cases.case(name)
    crf, told, logits = graph_cases.model(graph), graph_cases.factor_graph(graph), graph_cases.logits(graph)
    sampler = tc.Sampler(crf, "torch", 0)
    chains = sampler.init(logits, replicas=5, graph=told)
    own = crf.energy(logits, chains.labels, told) + logits.amax(1).sum()
    assert torch.allclose(energies.energy(sampler.engine, chains), own.double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_drop_is_the_difference_of_the_models_energies(engine: str, replicas: int) -> None:
    crf, (logits, target, index, sizes) = model(), ragged()
    loss = tc.CRFLoss(crf, chains=store(replicas=replicas), sweeps=3, engine=engine)
    given = logits.requires_grad_(), target, index
    loss(*given, sizes=sizes).backward()

    def kept() -> Tensor:
        labels = loss.chains.fetch(loss.chains.pixel_indices(index, (7, 9), None, sizes))  # type: ignore[union-attr]
        return crf.energy(logits, labels, sizes=sizes)

    before = kept()
    # In the middle of learning, not at its end: tables that have just moved.
    with torch.no_grad():
        crf.pairwise.add_(contract.round_pairwise(torch.randn_like(crf.pairwise) / 4))
    before = kept()
    loss(*given, sizes=sizes).backward()
    pixels = sizes.prod(1) * replicas
    told = loss.statistics
    assert told is not None
    fallen = (before - kept()).reshape(3, replicas).sum(1)
    assert torch.allclose(told.drops, (fallen / pixels).float(), atol=1e-5)
    assert float(told.energy_drop) == pytest.approx(float(fallen.sum() / pixels.sum()), abs=1e-5)
    assert float(told.drops.abs().min()) > 1e-3


def test_a_bad_call_says_nothing_and_images_apart_say_the_same() -> None:
    crf, (logits, target, index, sizes) = model(), ragged()
    together, apart = (tc.CRFLoss(crf, chains=store(), sweeps=3) for _ in range(2))
    together(logits.clone().requires_grad_(), target, index, sizes=sizes).backward()
    assert together.statistics is not None
    for n in range(3):
        one, (height, width) = slice(n, n + 1), SIZES[n]
        cut = logits[one, :, :height, :width].clone().requires_grad_()
        apart(cut, target[one, :height, :width], index[one]).backward()
        assert apart.statistics is not None
        assert torch.equal(apart.statistics.drops, together.statistics.drops[one])


def falls(push: float) -> Tensor:
    """Falls of energy of 400 settled chains within a visit, of tables that stand still, or that are stronger by ``push``."""
    torch.manual_seed(0)
    crf = tc.GridCRF(3, tc.Neighborhood.nearest(4), -0.4 * torch.eye(3).expand(2, 3, 3))
    loss = tc.CRFLoss(crf, chains=tc.ChainStore([(12, 12)] * 400, seed=2), sweeps=40)
    logits = torch.randn(1, 3, 12, 12).expand(400, -1, -1, -1).clone().requires_grad_()
    given = logits, torch.zeros(400, 12, 12, dtype=torch.long), torch.arange(400)
    loss(*given).backward()
    loss.sweeps = 4
    with torch.no_grad():
        crf.pairwise.sub_(push * torch.eye(3))
    loss(*given).backward()
    assert loss.statistics is not None
    return loss.statistics.drops


def test_in_equilibrium_the_drop_is_zero_in_the_mean_and_a_chain_left_behind_drops() -> None:
    calm, behind = falls(0.0), falls(0.1)
    error = float(calm.std()) / 20
    assert abs(float(calm.mean())) < 5.5 * error
    # The energy falls on the whole, though the stronger tables lowered that of the labels that stood there already.
    assert float(behind.mean()) > 5.5 * error


# Sweeps that follow the chains.


@pytest.mark.parametrize(
    ("sweeps", "late", "then"),
    [(10, 0.0101, 12), (10, 0.0099, 8), (9, -0.2, 8), (39, 0.2, 40), (2, 0.2, 3), (9, 0.0, 8), (40, 0.5, 40)],
)
def test_k_grows_while_the_second_half_still_falls(sweeps: int, late: float, then: int) -> None:
    bounds = AutoSweeps(2 if sweeps == 2 else 8, 40, tolerance=0.01)
    assert bounds.after(sweeps, round(late * contract.GRID * 1000), 1000) == then
    assert bounds.after(sweeps, 5, 0) == sweeps


def paced(engine: str = "auto", **more: object) -> tc.CRFLoss:
    return tc.CRFLoss(model(), chains=store(), sweeps=AutoSweeps(2, 12, 0.001, 3), engine=engine, **more)  # type: ignore[arg-type]


def test_k_follows_goes_on_from_its_state_and_is_the_engines_alike() -> None:
    whole = paced("torch", fast=FastWeights(0.2))
    ks = list(visits(whole, 40))
    assert len(set(ks)) > 3
    first = paced(fast=FastWeights(0.2))
    assert list(visits(first, 17)) == ks[:17]
    second = paced(fast=FastWeights(0.2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert list(visits(second, 23, 17)) == ks[17:]
    for name, part in whole.state_dict().items():
        assert torch.equal(part, second.state_dict()[name]), name
    third = copy.deepcopy(first)
    third.chains = copy.deepcopy(first.chains)
    assert list(visits(third, 23, 17)) == ks[17:]


def test_a_bad_call_moves_neither_pace_nor_fast_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = paced(fast=FastWeights(0.2))
    list(visits(loss, 4))
    assert loss.pace is not None
    assert loss.fast is not None
    before = loss.pace.clone(), loss.fast.clone()
    pace = Pace(AutoSweeps(2, 12, 0.001, 3))
    pace.sweeps(loss.pace)
    sums = loss.pace[2:5].clone()
    pace.note(loss.pace, torch.tensor([4096, 4096]), torch.tensor(63), torch.tensor(False))
    assert torch.equal(loss.pace[2:5], sums)
    FastWeights(1.0).move(loss.fast, torch.ones_like(loss.fast), torch.tensor(3), torch.tensor(False))
    assert torch.equal(loss.fast, before[1])
    assert torch.equal(before[0][2:5], sums)


def test_a_halved_visit_is_the_visit() -> None:
    one, other = tc.CRFLoss(model(), chains=store(), sweeps=7), tc.CRFLoss(model(), chains=store(), sweeps=AutoSweeps(7, 7))
    list(visits(one, 6))
    list(visits(other, 6))
    assert torch.equal(one.chains.labels, other.chains.labels)  # type: ignore[union-attr]
    assert torch.equal(one.crf.pairwise, other.crf.pairwise)
    assert one.statistics is not None
    assert other.statistics is not None
    for name, part in vars(one.statistics).items():
        assert torch.equal(part, vars(other.statistics)[name]), name


def test_sweeps_may_be_set_and_what_is_none_is_refused() -> None:
    loss = tc.CRFLoss(model(), chains=store())
    assert "pace" not in loss.state_dict()
    assert "fast" not in loss.state_dict()
    loss.sweeps = "auto"
    assert loss.sweeps == 10
    assert loss.pace is not None
    loss.sweeps = 30
    assert loss.sweeps == 30
    assert loss.pace is None
    say = graph_cases.one_sentence
    often = lambda: tc.CRFLoss(model(), chains=store(), sweeps="often")  # noqa: E731
    say(often, "sweeps: expected a number, 'auto' or AutoSweeps, got 'often'")
    say(lambda: AutoSweeps(1), "floor: expected")
    say(lambda: AutoSweeps(10, 9), "ceiling: expected")
    say(lambda: AutoSweeps(tolerance=-1.0), "tolerance: expected")
    say(lambda: AutoSweeps(period=0), "period: expected")
    say(lambda: FastWeights(-1.0), "rate: expected")
    say(lambda: FastWeights(decay=1.0), "decay: expected")
    say(lambda: tc.CRFLoss(model(), method="cd", fast=FastWeights()), "fast: expected FastWeights with method='pcd'")


class Images(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    sizes = [(6, 7)] * 5

    def __len__(self) -> int:
        return 5

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        make = torch.Generator().manual_seed(n)
        return torch.randn(2, 6, 7, generator=make), torch.randint(0, 3, (6, 7), generator=make)


def trained(folder: Path, stop: int | None = None) -> tc.Trainer:
    torch.manual_seed(0)
    loss = paced(fast=FastWeights(0.2))
    loss.chains = tc.ChainStore(Images.sizes, seed=1)
    trainer = tc.Trainer(torch.nn.Conv2d(2, 3, 1), loss.crf, loss=loss, quiet=True, log=folder / "log.jsonl")
    file = folder / "run.safetensors"
    if file.exists():
        trainer.load(file)
    loader = DataLoader(Indexed(Images()), 1, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(7))
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == stop:
            raise KeyboardInterrupt

    loss.register_forward_hook(count)
    trainer.fit(loader, epochs=8, checkpoint=file, every=1)
    return trainer


def test_a_killed_run_of_the_trainer_goes_on_at_its_pace(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole = trained(folders[0])
    with pytest.raises(KeyboardInterrupt):
        trained(folders[1], stop=19)
    resumed = trained(folders[1])
    assert whole.loss is not None
    assert resumed.loss is not None
    for name, part in whole.loss.state_dict().items():
        assert torch.equal(part, resumed.loss.state_dict()[name]), name
    assert whole.loss.pace is not None
    assert int(whole.loss.pace[0]) > 2
    assert '"energy_drop"' in (folders[0] / "log.jsonl").read_text()


# Fast tables.


@pytest.mark.parametrize("fast", [FastWeights(0.0), FastWeights(1.0, 0.0)], ids=["rate 0", "decay 0"])
@pytest.mark.parametrize("kinds", [None, 2])
def test_without_rate_or_decay_it_is_plain_pcd(fast: FastWeights, kinds: int | None) -> None:
    logits, target, index, sizes = ragged()
    more = {} if kinds is None else {"kinds": torch.randint(0, 2, (3, 4, 7, 9), dtype=torch.uint8)}
    found = []
    for option in (None, fast, FastWeights(1.0)):
        crf = model() if kinds is None else model(kinds=kinds)
        loss = tc.CRFLoss(crf, chains=store(latent=True), sweeps=4, fast=option)
        for _ in range(5):
            crf.zero_grad()
            loss(logits.clone().requires_grad_(), target, index, sizes=sizes, **more).backward()
            assert crf.pairwise.grad is not None
            with torch.no_grad():
                crf.pairwise.sub_(0.3 * crf.pairwise.grad)
        found.append((crf.pairwise.detach().clone(), loss.chains.labels.clone()))  # type: ignore[union-attr]
    plain, off, on = found
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))
    assert not torch.equal(plain[1], on[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fast_tables_take_the_gradient_of_a_pixel_and_forget(reduction: str) -> None:
    logits, target, index, sizes = ragged()
    target[:, 0] = 255
    loss = tc.CRFLoss(model(), chains=store(latent=True), sweeps=4, reduction=reduction, fast=FastWeights(0.7, 0.9))
    assert loss.fast is not None
    counted = sum((h - 1) * w for h, w in SIZES)
    for _ in range(3):
        before = loss.fast.clone()
        loss.crf.zero_grad()
        loss(logits.clone().requires_grad_(), target, index, sizes=sizes).sum().backward()
        gradient = loss.crf.pairwise.grad
        assert gradient is not None
        gradient = gradient if reduction == "mean" else gradient / counted
        assert torch.allclose(loss.fast, 0.9 * (before - 0.7 * gradient), atol=1e-7)
        assert bool(loss.fast.any())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_free_phase_samples_tables_and_fast_tables_and_the_data_phase_the_tables(engine: str) -> None:
    rng = np.random.default_rng(11)
    shape, labels, offsets, images = (2, 3), 3, [(0, 1), (1, 0), (1, 1)], 40_000
    unary, slow, fast = (enumeration.on_grid(rng.normal(0, s, form)) for s, form in (
        (0.7, (6, labels)), (0.5, (3, labels, labels)), (0.6, (3, labels, labels))))  # fmt: skip
    listed = enumeration.labellings(6, labels)
    crf = tc.GridCRF(labels, tc.Neighborhood.from_offsets(offsets), torch.from_numpy(slow).float())
    chains = tc.ChainStore([shape] * images, seed=5, latent=True)
    loss = tc.CRFLoss(crf, chains=chains, sweeps=12, engine=engine, fast=FastWeights(0.0, 0.5))
    assert loss.fast is not None
    loss.fast.copy_(torch.from_numpy(fast))
    logits = torch.from_numpy(-unary.T.reshape(1, labels, *shape)).float().expand(images, -1, -1, -1)
    target = torch.full((images, *shape), 255)
    target[:, 0, 0] = 1
    loss(logits.clone().requires_grad_(), target, torch.arange(images)).backward()
    places = chains.pixel_indices(torch.arange(images), shape)
    for data, tables in ((False, slow + fast), (True, slow)):
        energy = enumeration.energies(listed, unary, tables, shape, offsets)
        law = enumeration.joint(enumeration.given(energy, listed, {0: 1}) if data else energy)
        drawn = chains.fetch(places, data=data).reshape(images, 6).long().numpy()
        counts = np.bincount(drawn @ labels ** np.arange(6)[::-1], minlength=len(law))
        order = np.argsort(law)
        expected, seen = images * law[order], counts[order]
        # The rarest pooled to an expected count of 5.
        rare = int(np.searchsorted(expected.cumsum(), 5.0)) + 1
        expected, seen = (np.concatenate([[part[:rare].sum()], part[rare:]]) for part in (expected, seen))
        big = expected >= 5
        expected, seen = (np.append(part[big], part[~big].sum()) for part in (expected, seen))
        statistic = float(((seen - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
        assert chi2.sf(statistic, len(expected) - 1) > 1e-6, (data, statistic)
