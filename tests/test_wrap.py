"""Is a ring a ring? Periodic lattices against listing every labelling, a transfer matrix and autograd; graphs are refused."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from torch import Tensor

from tests.enumeration import joint, labellings, on_grid
from tritoncrf import ChainStore, CRFLoss, GridCRF, Neighborhood
from tritoncrf.inference import anneal, marginals, max_marginal
from tritoncrf.layout import Layout
from tritoncrf.model_state import form_of, model_tree
from tritoncrf.sampler import Sampler

HOOD = Neighborhood(((0, 1), (1, 0), (1, -1)))
CASES = [((3, 3), (True, True)), ((3, 4), (True, False)), ((4, 3), (False, True))]
ENGINES = [("torch", "gather"), ("torch", "incremental"), ("numba", "gather"), ("numba", "incremental")]


def grid(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(on_grid(np.random.default_rng(seed).normal(0, 0.6, shape))).float()


def ring_edges(shape: tuple[int, int], wrap: tuple[bool, bool], hood: Neighborhood = HOOD) -> list[tuple[int, int, int]]:
    """(class, i, j), straight from ``j = (i + d) mod n``."""
    found = []
    for y, x in itertools.product(*map(range, shape)):
        for c, (dy, dx) in enumerate(hood.offsets):
            v, u = (y + dy) % shape[0] if wrap[0] else y + dy, (x + dx) % shape[1] if wrap[1] else x + dx
            if 0 <= v < shape[0] and 0 <= u < shape[1]:
                found.append((c, y * shape[1] + x, v * shape[1] + u))
    return found


def listed(crf: GridCRF, logits: Tensor, kinds: Tensor | None = None, gates: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All labellings of an image and their energies, float64, differentiable."""
    shape = (logits.shape[2], logits.shape[3])
    wrap = (crf.form.wrap[0], crf.form.wrap[1]) if crf.form.wrap else (False, False)
    every = torch.from_numpy(labellings(shape[0] * shape[1], crf.num_labels))
    unary = -logits[0].double().flatten(1)
    energy = sum(unary[every[:, site], site] for site in range(every.shape[1]))
    assert isinstance(energy, Tensor)
    for c, i, j in ring_edges(shape, wrap, crf.neighborhood):
        table = crf.pairwise[c] if kinds is None else crf.pairwise[c, int(kinds[0, c].flatten()[i])]
        energy = energy + table.double()[every[:, i], every[:, j]]
        if gates is not None and crf.gated is not None:
            energy = energy + gates[0, 0, c].flatten()[i].double() * crf.gated[0, c].double()[every[:, i], every[:, j]]
    return every, energy


@pytest.mark.parametrize(("shape", "wrap"), CASES)
def test_energies_of_many_labelings(shape: tuple[int, int], wrap: tuple[bool, bool]) -> None:
    crf, logits = GridCRF(2, HOOD, grid(0, 3, 2, 2), wrap=wrap), grid(1, 1, 2, *shape)
    every, energy = listed(crf, logits)
    labels = every.view(1, -1, *shape)[:, ::7]
    assert torch.allclose(crf.energy(logits, labels)[0].double(), energy[::7], atol=1e-5)
    assert torch.equal(crf.energy(logits, labels)[:, 3], crf.energy(logits, labels[:, 3]))
    assert torch.equal(crf.pair_counts(labels)[:, 3], crf.pair_counts(labels[:, 3]))
    likely = crf.log_pseudolikelihood(logits, labels)
    assert torch.equal(likely[:, 3], crf.log_pseudolikelihood(logits, labels[:, 3]))
    # Besag: each site's conditional from the listed energies.
    number = 21
    base, total, sites = every[number], 0.0, every.shape[1]
    for site in range(sites):
        flip = number ^ (1 << (sites - 1 - site))
        assert int((every[flip] != base).sum()) == 1
        total -= math.log1p(math.exp(float((energy[number] - energy[flip]).detach())))
    assert likely[0, 3].item() == pytest.approx(total, abs=1e-4)


def test_kinds_and_gates_stand_at_the_first_end() -> None:
    crf = GridCRF(2, HOOD, grid(2, 3, 2, 2, 2), kinds=2, gates=1, gated=grid(3, 1, 3, 2, 2), wrap=True)
    kinds = torch.randint(0, 2, (1, 3, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    gates = torch.arange(27).view(1, 1, 3, 3, 3) % 5 / 8
    logits = grid(4, 1, 2, 3, 3)
    every, energy = listed(crf, logits, kinds, gates)
    found = crf.energy(logits, every.view(1, -1, 3, 3), kinds=kinds, gates=gates)[0]
    assert torch.allclose(found.double(), energy, atol=1e-4)
    with pytest.raises(ValueError, match="kinds: expected kinds from 0 to 1 where an edge is, got 2 at pixel \\(2, 2\\)"):
        crf.energy(logits, every[:1].view(1, 3, 3), kinds=kinds.index_put((*map(torch.tensor, (0, 0, 2, 2)),),
                   torch.tensor(2, dtype=torch.uint8)), gates=gates)  # fmt: skip


def law(
    engine: str, update: str, shape: tuple[int, int], wrap: tuple[bool, bool], replicas: int = 40_000, labels: int = 2
) -> tuple[float, float]:
    """The p-value of final labels against the listed law, and their total variation over that of perfect samples."""
    crf, logits = GridCRF(labels, HOOD, grid(5, 3, labels, labels), wrap=wrap), grid(6, 1, labels, *shape)
    sampler = Sampler(crf, engine, seed=3, update=update)
    # At most 65,536 replicas an image.
    images = -(-replicas // 50_000)
    chains = sampler.init(logits.repeat(images, 1, 1, 1), replicas=replicas // images)
    found = sampler.run(chains, 30).labels.flatten(0, 1).flatten(1).long()
    _, energy = listed(crf, logits)
    expected = joint(energy.detach().numpy()) * replicas
    number = (found * (labels ** torch.arange(found.shape[1] - 1, -1, -1))).sum(1)
    counts = np.bincount(number.numpy(), minlength=len(expected)).astype(float)
    rare = expected < 5
    observed, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    keep = wanted > 0
    share = wanted / replicas
    # The mean of |N - np| of a binomial count, by its normal limit.
    perfect = np.sqrt(2 * wanted * (1 - share) / np.pi).sum()
    p_value = float(stats.chi2.sf((((observed - wanted) ** 2)[keep] / wanted[keep]).sum(), keep.sum() - 1))
    return p_value, float(np.abs(observed - wanted).sum() / perfect)


@pytest.mark.parametrize(("engine", "update"), ENGINES[2:])
@pytest.mark.parametrize(("shape", "wrap"), CASES)
def test_samples_have_the_law(engine: str, update: str, shape: tuple[int, int], wrap: tuple[bool, bool]) -> None:
    p_value, ratio = law(engine, update, shape, wrap)
    assert p_value > 1e-4
    assert ratio < 1.25


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "update"), ENGINES[2:])
@pytest.mark.parametrize(("shape", "wrap", "labels"), [(*case, 2) for case in CASES] + [((3, 3), (True, True), 3)])
def test_samples_have_the_law_at_full_size(
    engine: str, update: str, shape: tuple[int, int], wrap: tuple[bool, bool], labels: int
) -> None:
    p_value, ratio = law(engine, update, shape, wrap, 1_000_000 if labels == 2 else 250_000, labels)
    print(f"rings {shape} {wrap}, {labels} labels, {engine} {update}: p = {p_value:.3g}, TV ratio {ratio:.3f}")
    assert p_value > 1e-6
    assert ratio < 1.25


def _dropped(layout: Layout) -> Layout:
    keep = [k for k, c in enumerate(layout.classes) if c not in layout.classes[:k]]
    steps, classes = (tuple(of[k] for k in keep) for of in (layout.displacements, layout.classes))
    return replace(layout, displacements=steps, classes=classes)


def _turned(layout: Layout) -> Layout:
    """Seam edges walked from their other end: their tables transposed."""
    seam = [c in layout.classes[:k] for k, c in enumerate(layout.classes)]
    return replace(layout, displacements=tuple(-d if s else d for d, s in zip(layout.displacements, seam, strict=True)))


def _merged(layout: Layout) -> Layout:
    return replace(layout, color_bounds=(*layout.color_bounds[:1], *layout.color_bounds[2:]))


@pytest.mark.parametrize("fault", [_dropped, _turned, _merged])
def test_planted_faults_fail(fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Layout.build
    monkeypatch.setattr(Layout, "build", lambda *args: fault(build(*args)))  # type: ignore[operator]
    assert law("numba", "gather", (3, 3), (True, True))[0] < 1e-6


def test_engines_agree() -> None:
    crf, logits = GridCRF(3, Neighborhood.nearest(8), grid(7, 4, 3, 3), wrap=(True, True)), grid(8, 2, 3, 6, 7)
    mask = torch.ones(2, 6, 7, dtype=torch.bool)
    mask[0, 0, 2:4] = False
    found = []
    for engine, update in ENGINES:
        sampler = Sampler(crf, engine, seed=1, update=update)
        chains = sampler.run(sampler.init(logits, mask=mask, replicas=2), 6)
        found.append((chains.labels, sampler.pair_counts(chains)))
    for labels, counts in found[1:]:
        assert torch.equal(labels, found[0][0])
        assert torch.equal(counts, found[0][1])


@pytest.mark.parametrize("length", [4, 5, 6])
def test_ising_on_a_torus(length: int) -> None:
    """Log Z and mean energy per site: listing is not needed, the trace of T^n is."""
    coupling = 0.25
    states = 1 - 2 * labellings(4, 2)

    def log_z(beta: float) -> float:
        around = (states * np.roll(states, -1, 1)).sum(1)
        return math.log(np.trace(np.linalg.matrix_power(np.exp(beta * (states @ states.T + around[:, None])), length)))

    exact = -coupling * (log_z(coupling + 1e-4) - log_z(coupling - 1e-4)) / 2e-4
    table = -coupling * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    crf = GridCRF(2, Neighborhood.nearest(4), table.repeat(2, 1, 1), wrap=True)
    logits, sampler = torch.zeros(1, 2, length, 4), Sampler(crf, "numba", seed=0)
    chains = sampler.run(sampler.init(logits, replicas=4000), 40)
    energies = crf.energy(logits, chains.labels)[0].detach().double()
    assert abs(float(energies.mean()) - exact) < 4.5 * float(energies.std()) / math.sqrt(4000)
    # An even ring is a checkerboard; an odd one is not.
    assert (len(chains.plan.color_bounds) - 1 == 2) == (length % 2 == 0)


@pytest.mark.parametrize("method", ["cd", "pcd"])
@pytest.mark.parametrize(("kinded", "engine"), [(False, "torch"), (True, "numba")])
def test_gradients(kinded: bool, engine: str, method: str) -> None:
    """Of tables, logits, gated tables and gates, against autograd through the listed log Z."""
    images, replicas = 8, 2000
    make = torch.Generator().manual_seed(2)
    crf = GridCRF(2, HOOD, grid(9, 3, 2, 2), wrap=True)
    if kinded:
        crf = GridCRF(2, HOOD, grid(9, 3, 2, 2, 2), wrap=True, kinds=2, gates=1, gated=grid(3, 1, 3, 2, 2))
    logits, truth = grid(10, 1, 2, 3, 3), torch.tensor([[[0, 1, 1], [0, 0, 1], [1, 0, 1]]])
    kinds = torch.randint(0, 2, (1, 3, 3, 3), dtype=torch.uint8, generator=make) if kinded else None
    gates = (torch.arange(27).view(1, 1, 3, 3, 3) % 5 / 8).requires_grad_() if kinded else None
    store = ChainStore([(3, 3)] * images, replicas=replicas, seed=0)
    loss = CRFLoss(crf, chains=store, method=method, sweeps=30, reduction="sum", engine=engine)
    many = logits.repeat(images, 1, 1, 1).requires_grad_()
    wide = None if gates is None else gates.detach().repeat(images, 1, 1, 1, 1).requires_grad_()
    more = {} if kinds is None or wide is None else {"kinds": kinds.repeat(images, 1, 1, 1), "gates": wide}
    loss(many, truth.expand(images, 3, 3), torch.arange(images), **more).backward()
    each = [many.grad, *([] if wide is None else [wide.grad])]
    found = [part.mean(0, keepdim=True) for part in each if part is not None]
    found += [part.grad / images for part in crf.parameters() if part.grad is not None]
    crf.zero_grad()
    logits.requires_grad_()
    every, energy = listed(crf, logits, kinds, gates)
    own = energy[(every == truth.flatten()).all(1)].sum()
    (own + (-energy).logsumexp(0)).backward()  # type: ignore[no-untyped-call]
    exact = [logits.grad, *([] if gates is None else [gates.grad]), *(part.grad for part in crf.parameters())]
    assert len(found) == len(exact) == (4 if kinded else 2)
    for mine, wanted in zip(found, exact, strict=True):
        assert wanted is not None
        # 16,000 samples of counts up to 9: five standard errors.
        assert torch.allclose(mine.double(), wanted.double(), atol=0.06)


def test_annealing_and_labels_of_most_marginal_probability() -> None:
    crf, logits = GridCRF(2, HOOD, grid(11, 3, 2, 2), wrap=True), grid(12, 1, 2, 3, 3)
    every, energy = listed(crf, logits)
    best = every[int(energy.argmin())].view(1, 3, 3)
    assert torch.equal(anneal(crf, logits, sweeps=200, replicas=20, seed=0).long(), best)
    exact = ((-energy).softmax(0)[:, None] * every).sum(0).view(1, 3, 3)
    clear = (exact - 0.5).abs() > 0.02
    labels = max_marginal(crf, logits, sweeps=200, burn_in=20, replicas=20)
    assert torch.equal(labels[clear].bool(), (exact > 0.5)[clear])


def test_marginals() -> None:
    crf, logits = GridCRF(2, HOOD, grid(11, 3, 2, 2), wrap=True), grid(12, 1, 2, 3, 3)
    every, energy = listed(crf, logits)
    exact = ((-energy).softmax(0)[:, None] * every).sum(0).view(3, 3)
    found = marginals(crf, logits, sweeps=200, burn_in=20, replicas=40, engine="numba")[0, 1]
    assert torch.allclose(found.double(), exact, atol=0.02)


def test_refusals() -> None:
    crf, logits = GridCRF(2, Neighborhood.nearest(8), wrap=(True, False)), torch.zeros(1, 2, 2, 5)
    with pytest.raises(ValueError, match="wrap: expected at least 3 sites along axis 0"):
        Sampler(crf, "torch").init(logits)
    with pytest.raises(ValueError, match="wrap: expected at least 3 sites along axis 0"):
        crf.energy(logits, torch.zeros(1, 2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="sizes: expected the batch's full length along axis 0, which wraps, got 4 of 6"):
        Sampler(crf, "torch").init(torch.zeros(1, 2, 6, 5), sizes=torch.tensor([[4, 5]]))
    Sampler(crf, "torch").init(torch.zeros(1, 2, 6, 5), sizes=torch.tensor([[6, 3]]))
    with pytest.raises(ValueError, match=r"wrap: expected a bool, or 2 of them"):
        GridCRF(2, HOOD, wrap=(True,))


def test_state_knows_its_rings() -> None:
    ring, line = GridCRF(2, HOOD, grid(13, 3, 2, 2), wrap=(True, False)), GridCRF(2, HOOD)
    with pytest.raises(ValueError, match=r"wrap \(True, False\)"):
        line.load_state_dict(ring.state_dict())
    with pytest.raises(ValueError, match=r"state: expected tables of .* wrap"):
        ring.load_state_dict(line.state_dict())
    other = GridCRF(2, HOOD, wrap=(True, False))
    other.load_state_dict(ring.state_dict())
    assert torch.equal(other.pairwise, ring.pairwise)
    assert form_of(model_tree(ring)) == ring.form
    assert form_of(model_tree(line)) == line.form
    with pytest.raises(ValueError, match="chains: expected chains of"):
        Sampler(line, "torch").run(Sampler(ring, "torch").init(torch.zeros(1, 2, 4, 4)), 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda crf: pickle.loads(pickle.dumps(crf))], ids=["copied", "pickled"])
def test_a_copy_is_still_a_ring(copied: Callable[[GridCRF], GridCRF]) -> None:
    crf, logits = GridCRF(2, HOOD, grid(0, 3, 2, 2), wrap=True), grid(1, 1, 2, 3, 4)
    every, energy = listed(crf, logits)
    twin = copied(crf)
    assert torch.allclose(twin.energy(logits, every.view(1, -1, 3, 4))[0].double(), energy, atol=1e-5)
    drawn = [(sampler := Sampler(one, seed=0)).run(sampler.init(logits), 5).labels for one in (crf, twin)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("graph", [torch.zeros(5, 2, dtype=torch.long), sparse.eye(4, format="csr")])
def test_graphs_are_refused(graph: object) -> None:
    with pytest.raises(TypeError, match=r"neighborhood: expected .*FactorCRF"):
        GridCRF(2, graph)  # type: ignore[arg-type]
    if not isinstance(graph, Tensor):
        with pytest.raises(TypeError, match=r"offsets: expected .*FactorCRF"):
            Neighborhood.from_offsets(graph)  # type: ignore[arg-type]
