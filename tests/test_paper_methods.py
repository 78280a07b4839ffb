"""The methods that the paper's table compares with: each against a loop over pixels written from its formula alone."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

import tritoncrf as tc
from bench.paper.methods import crfrnn, descent, forest, growth, learn, meanfield, piecewise, pseudolikelihood, storage
from bench.paper.methods.messages import Sites, messages, plain
from bench.paper.presets import PRESETS
from bench.paper.problem import Problem
from tritoncrf import networks
from tritoncrf.batches import Batch
from tritoncrf.checkpoint import CheckpointError
from tritoncrf.datasets import Figures

LABELS, SHAPE = 3, (5, 4)
AROUND = tc.Neighborhood.from_offsets([(0, 1), (1, -1), (2, 1)])
ROWS = (
    "forest", "crfrnn_separate", "crfrnn_joint", "piecewise", "pseudolikelihood", "meanfield2", "separate_kinds", "joint_kinds",
    "joint_gates", "joint_gaussian", "meanfield5_kinds", "dtf",
)  # fmt: skip


def scene(seed: int = 0) -> tuple[Batch, Tensor, Tensor]:
    """A batch of two images with known, unlabelled and missing pixels; float64 logits and tables."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(LABELS, (2, *SHAPE), generator=draw)
    known = torch.where(torch.rand((2, *SHAPE), generator=draw) < 0.3, target, 255).to(torch.uint8)
    mask = torch.rand((2, *SHAPE), generator=draw) < 0.85
    target[0, 2, 2], known[0, 2, 2], mask[0, 2, 2] = 255, 255, True
    image = torch.randn((2, 1, *SHAPE), generator=draw, dtype=torch.float64)
    batch = Batch(image, target, torch.arange(2), None, mask, known)
    logits = torch.randn((2, LABELS, *SHAPE), generator=draw, dtype=torch.float64)
    return batch, logits, torch.randn((len(AROUND), LABELS, LABELS), generator=draw, dtype=torch.float64)


def pixels() -> list[tuple[int, int]]:
    return list(itertools.product(range(SHAPE[0]), range(SHAPE[1])))


def state(batch: Batch, logits: Tensor) -> Tensor:
    """Q^0 dense, ``[N, L, H, W]``: softmax, one-hot where known, zeros where no pixel is."""
    assert batch.known is not None
    q = logits.softmax(1).clone()
    for n in range(len(q)):
        for y, x in pixels():
            if batch.known[n, y, x] != 255:
                q[n, :, y, x] = F.one_hot(batch.known[n, y, x].long(), LABELS)
            if not batch.present[n, y, x]:
                q[n, :, y, x] = 0
    return q


def field_by_loop(q: Tensor, tables: Tensor) -> Tensor:
    """``sum_c sum_m psi_c(l, m) q_{i+d}(m) + psi_c(m, l) q_{i-d}(m)`` of dense q ``[N, L, H, W]``."""
    out = torch.zeros_like(q)
    for n, (y, x), (c, (dy, dx)) in itertools.product(range(len(q)), pixels(), enumerate(AROUND.offsets)):
        for label in range(LABELS):
            if (y + dy, x + dx) in pixels():
                out[n, label, y, x] += tables[c, label] @ q[n, :, y + dy, x + dx]
            if (y - dy, x - dx) in pixels():
                out[n, label, y, x] += tables[c, :, label] @ q[n, :, y - dy, x - dx]
    return out


def free_of(batch: Batch) -> Tensor:
    assert batch.known is not None
    return batch.present & (batch.known == 255)


def test_messages_are_the_loops() -> None:
    batch, logits, tables = scene()
    sites = Sites.of(batch, AROUND, LABELS)
    q = sites.pick(state(batch, logits))
    expected = sites.pick(field_by_loop(state(batch, logits), tables))
    assert len(sites) == int(free_of(batch).sum()) > 10
    for update in (messages, plain):
        assert torch.allclose(update(q, tables, sites), expected, atol=1e-12)


def test_messages_gradients() -> None:
    batch, logits, tables = scene()
    sites = Sites.of(batch, AROUND, LABELS)
    q = sites.pick(logits).softmax(1).requires_grad_()
    tables.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: messages(a, b, sites), (q, tables))


def test_messages_cross_chunks() -> None:
    draw = torch.Generator().manual_seed(3)
    target = torch.randint(LABELS, (1, 20, 30), generator=draw)
    sites = Sites.of(Batch(torch.zeros(1, 1, 20, 30), target, torch.zeros(1)), AROUND, LABELS)
    assert len(sites) == 600
    q = torch.rand((600, LABELS), generator=draw, dtype=torch.float64)
    tables = torch.randn((len(AROUND), LABELS, LABELS), generator=draw, dtype=torch.float64)
    grads = []
    for update in (messages, plain):
        leaves = q.clone().requires_grad_(), tables.clone().requires_grad_()
        grads.append(torch.autograd.grad(update(*leaves, sites).sin().sum(), leaves))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("iterations", [1, 4])
def test_mean_field_is_the_loops(iterations: int) -> None:
    batch, logits, tables = scene(1)
    q, free = state(batch, logits), free_of(batch)
    for _ in range(iterations):
        updated = (logits - field_by_loop(q, tables)).softmax(1)
        q = torch.where(free[:, None], updated, q)
    sites = Sites.of(batch, AROUND, LABELS)
    found = meanfield.scores(sites.pick(logits), tables, sites, iterations).softmax(1)
    assert torch.allclose(found, sites.pick(q), atol=1e-12)


def test_mean_field_converges_to_a_fixed_point_near_the_marginals() -> None:
    """Weak couplings: mean field is right to first order in them, and its fixed point answers its own update."""
    from tests import enumeration

    offsets, shape = ((0, 1), (1, 0)), (2, 3)
    around = tc.Neighborhood(offsets)
    draw = torch.Generator().manual_seed(5)
    logits = torch.randn((1, 2, *shape), generator=draw, dtype=torch.float64)
    tables = 0.05 * torch.randn((2, 2, 2), generator=draw, dtype=torch.float64)
    sites = Sites.of(Batch(torch.zeros(1, 1, *shape), torch.zeros((1, *shape), dtype=torch.int64), torch.zeros(1)), around, 2)
    picked = sites.pick(logits)
    found, again = (meanfield.scores(picked, tables, sites, count).softmax(1) for count in (60, 61))
    assert torch.allclose(found, again, atol=1e-12)
    listed = enumeration.labellings(6, 2)
    energy = enumeration.energies(listed, -picked.numpy(), tables.numpy(), shape, offsets)
    exact = torch.from_numpy(enumeration.marginals(enumeration.joint(energy), listed, 2))
    alone = picked.softmax(1)
    assert float((found - exact).abs().max()) < 0.1 * float((alone - exact).abs().max())


def test_mean_field_objective_gradients() -> None:
    batch, logits, tables = scene(2)
    sites = Sites.of(batch, AROUND, LABELS)

    def value(a: Tensor, b: Tensor) -> Tensor:
        return meanfield.pixel_cross_entropy(meanfield.scores(sites.pick(a), b, sites, 3), batch, sites)

    assert torch.autograd.gradcheck(value, (logits.requires_grad_(), tables.requires_grad_()))


def test_pseudolikelihood_is_the_models() -> None:
    """The library's own, whose terms of known pixels a logit of -inf on all other labels makes 0."""
    batch, logits, tables = scene(4)
    assert batch.known is not None
    logits = logits.float()
    mine, theirs = (tc.GridCRF(LABELS, AROUND, tables.float()) for _ in range(2))
    value = pseudolikelihood.objective(mine)(logits.requires_grad_(), batch)
    exists = batch.present & (batch.target != 255)
    free = free_of(batch) & exists
    own = F.one_hot(batch.labels.clamp(max=LABELS - 1), LABELS).movedim(-1, 1).bool()
    again = logits.detach().clone().requires_grad_()
    held = torch.where(free[:, None], again, torch.where(own, 0.0, -torch.inf))
    labels = batch.labels.masked_fill(~exists, 0)
    other = -theirs.log_pseudolikelihood(held, labels, mask=exists).sum() / free.sum()
    assert int(free.sum()) < int(exists.sum())
    assert torch.allclose(value, other, atol=1e-5)
    pairs = torch.autograd.grad(value, (logits, mine.pairwise)), torch.autograd.grad(other, (again, theirs.pairwise))
    for ours, found in zip(*pairs, strict=True):
        assert torch.allclose(ours, torch.nan_to_num(found), atol=1e-5)


def eq14_by_loop(batch: Batch, tables: Tensor) -> Tensor:
    """Minus eq. (14) of the pairwise factors, edge by edge, given the known labels."""
    assert batch.known is not None
    total = torch.zeros((), dtype=torch.float64)
    labels = batch.labels
    for n, (y, x), (c, (dy, dx)) in itertools.product(range(len(labels)), pixels(), enumerate(AROUND.offsets)):
        ends = [(y, x), (y + dy, x + dx)]
        if any(end not in pixels() or not batch.present[n][end] or labels[n][end] == 255 for end in ends):
            continue
        truth = tuple(int(labels[n][end]) for end in ends)
        held = [bool(batch.known[n][end] != 255) for end in ends]
        choices = [[label] if fixed else list(range(LABELS)) for label, fixed in zip(truth, held, strict=True)]
        scores = torch.stack([-tables[c, a, b] for a, b in itertools.product(*choices)])
        total = total + tables[c, truth[0], truth[1]] + scores.logsumexp(0)
    return total


def test_piecewise_counts_give_the_sum_over_edges() -> None:
    batch, _, tables = scene(6)
    counts = piecewise.edge_counts(batch, piecewise.doubled(tc.GridCRF(LABELS, AROUND)))
    found = piecewise.objective(tables, counts.double())
    assert torch.allclose(found, eq14_by_loop(batch, tables), atol=1e-9)


def test_piecewise_solution_is_the_least() -> None:
    batch, _, _ = scene(6)
    counts = piecewise.edge_counts(batch, piecewise.doubled(tc.GridCRF(LABELS, AROUND)))
    found = piecewise.solve(counts, ridge=1e-3).double().requires_grad_()
    value = eq14_by_loop(batch, found)
    (slope,) = torch.autograd.grad(value, found)
    # What is left is the ridge's pull, 1e-3 of an entry, and the centring's where an edge class has known ends.
    assert float(slope.abs().max()) < 0.05
    assert float(value.detach()) < float(eq14_by_loop(batch, torch.zeros_like(found)).detach())


def test_piecewise_without_known_labels_is_minus_the_log_frequency() -> None:
    """Why the surrogate overcounts: each table is its pairs' frequency, whatever the others say."""
    counts = torch.zeros((1, 4, 4), dtype=torch.int64)
    counts[0, :2, :2] = torch.tensor([[700, 100], [50, 150]])
    found = piecewise.solve(counts, ridge=1e-6)[0]
    expected = -(counts[0, :2, :2] / 1000).log()
    assert torch.allclose(found - found.mean(), expected - expected.mean(), atol=1e-3)


def test_filters_are_the_loops() -> None:
    batch, logits, _ = scene(7)
    exists, free, image = batch.present[0], free_of(batch)[0], batch.image[0]
    widths = crfrnn.Bandwidths(1.5, 3.0, 0.7)
    q = logits[0].softmax(0) * exists
    for apply, present, tone in (
        (crfrnn.position_filter(exists, widths.smooth), exists, math.inf),
        (None, free, widths.tone),
    ):
        reach = widths.smooth if apply is not None else widths.reach
        inside = [place for place in pixels() if present[place]]
        kernel = torch.zeros((len(inside), len(inside)), dtype=torch.float64)
        for (i, a), (j, b) in itertools.product(enumerate(inside), repeat=2):
            distance = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / reach**2 + ((image[0][a] - image[0][b]) / tone) ** 2
            kernel[i, j] = 0.0 if i == j else torch.exp(-0.5 * distance)
        norm = kernel.sum(1).rsqrt()
        expected = (norm[:, None] * kernel * norm) @ q[:, present].T
        if apply is not None:
            assert torch.allclose(apply(q)[:, present].T, expected, atol=1e-9)
        else:
            assert torch.allclose(crfrnn.appearance_filter(image, free, widths)(q[:, free].T), expected, atol=1e-9)


def test_a_kernel_in_chunks_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    image, free = torch.randn((1, 12, 9), generator=draw), torch.rand((12, 9), generator=draw) < 0.8
    q = torch.rand((int(free.sum()), 4), generator=draw)
    whole = crfrnn.appearance_filter(image, free, crfrnn.Bandwidths())(q)
    monkeypatch.setattr(crfrnn, "WHOLE", 10)
    monkeypatch.setattr(crfrnn, "CHUNK", 7)
    assert torch.allclose(crfrnn.appearance_filter(image, free, crfrnn.Bandwidths())(q), whole, atol=1e-5)


def test_a_kernel_is_not_used_after_the_next_one_took_its_memory() -> None:
    batch, logits, _ = scene(7)
    image, free = batch.image[0], free_of(batch)[0]
    scratch = crfrnn.Scratch()
    first = crfrnn.appearance_filter(image, free, crfrnn.Bandwidths(), scratch)
    q = logits[0][:, free].T
    assert torch.equal(first(q), crfrnn.appearance_filter(image, free, crfrnn.Bandwidths())(q))
    second = crfrnn.appearance_filter(batch.image[1], free_of(batch)[1], crfrnn.Bandwidths(), scratch)
    assert second(logits[1][:, free_of(batch)[1]].T).isfinite().all()
    with pytest.raises(RuntimeError, match="scratch: expected a kernel's last use before the next one is built"):
        first(q)


@pytest.mark.parametrize("iterations", [1, 3])
def test_dense_crf_is_its_formula(iterations: int) -> None:
    batch, logits, _ = scene(8)
    crf = crfrnn.DenseCRF(LABELS, crfrnn.Bandwidths(1.5, 3.0, 0.7), (0.8, 1.3)).double()
    with torch.no_grad():
        crf.compatibility.add_(torch.randn((LABELS, LABELS), generator=torch.Generator().manual_seed(2)), alpha=0.3)
        crf.weights[:, 1] += 0.5
    free = free_of(batch)
    found = crfrnn._each(crf, logits, batch, iterations)
    for n in range(2):
        smooth = crfrnn.position_filter(batch.present[n], 1.5)
        appear = crfrnn.appearance_filter(batch.image[n], free[n], crf.widths)
        q = state(batch, logits)[n]
        for _ in range(iterations):
            near, alike = smooth(q), torch.zeros_like(q)
            alike[:, free[n]] = appear(q[:, free[n]].T).T
            updated = torch.zeros_like(q)
            for y, x in pixels():
                for label in range(LABELS):
                    updated[label, y, x] = logits[n, label, y, x]
                    for m in range(LABELS):
                        heard = crf.weights[0, m] * near[m, y, x] + crf.weights[1, m] * alike[m, y, x]
                        updated[label, y, x] -= crf.compatibility[label, m] * heard
            q = torch.where(free[n], updated.softmax(0), q).detach()
        assert torch.allclose(found[n].softmax(1), q[:, free[n]].T, atol=1e-9)


def test_dense_crf_gradients() -> None:
    batch, logits, _ = scene(9)
    crf = crfrnn.DenseCRF(LABELS, crfrnn.Bandwidths(1.5, 3.0, 0.7)).double()
    names = [name for name, _ in crf.named_parameters()]

    def value(a: Tensor, *parts: Tensor) -> Tensor:
        def call(*inputs: object) -> Tensor:
            found: Tensor = torch.func.functional_call(crf, dict(zip(names, parts, strict=True)), inputs)
            return found

        free = free_of(batch)[0]
        known = state(batch, logits.detach())[0] * (batch.present & ~free_of(batch))[0]
        return call(a[0], batch.image[0], free, known, 3).log_softmax(1)[:, 0].sum()

    leaves = [logits.requires_grad_(), *(part.detach().clone().requires_grad_() for part in crf.parameters())]
    assert torch.autograd.gradcheck(value, leaves)


def problem(epochs: int = 2, images: int = 6) -> Problem:
    preset = replace(
        PRESETS["toy"], train=images, test=2, epochs=epochs, neighborhood=tc.Neighborhood.nearest(8), burn_in=2, sweeps=3
    )
    torch.manual_seed(0)
    train, test = (tc.Indexed(Figures(count, seed=seed, size=(32, 24))) for count, seed in ((images, 0), (2, 1)))
    return Problem(preset, "figures", 0, train, test, networks.small(1, 20, 6), torch.device("cpu"))


@pytest.mark.parametrize("row", ROWS)
def test_rows_answer_with_distributions_and_what_is_known(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest, "Growth", lambda: forest_growth())
    given = problem()
    predict = learn(row, given, tmp_path)
    again = learn(row, given, tmp_path)
    for item in given.tests():
        batch = Batch.of(item, given.device)
        assert batch.known is not None
        assert batch.clamp is not None
        answers = predict(batch)
        for one, other in zip(answers, again(batch), strict=True):
            assert torch.equal(one, other), "what is learned is not learned again"
            assert torch.allclose(one.sum(1), torch.ones(()), atol=1e-5)
            assert torch.equal(one.argmax(1)[batch.clamp], batch.known[batch.clamp].long())


def forest_growth() -> forest.Growth:
    return _GROWTH


_GROWTH = forest.Growth(trees=2, pixels=40, features=30, depth=8)


def objective_of(row: str) -> tuple[torch.nn.Module, descent.Objective]:
    crf, dense = tc.GridCRF(20, tc.Neighborhood.nearest(8)), crfrnn.DenseCRF(20, crfrnn.Bandwidths())
    return {
        "meanfield": (crf, meanfield.objective(crf, 2)),
        "pseudolikelihood": (crf, pseudolikelihood.objective(crf)),
        "crfrnn": (dense, crfrnn.objective(dense, 2)),
    }[row]  # fmt: skip


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("row", ["meanfield", "pseudolikelihood", "crfrnn"])
def test_descent_goes_down_and_separate_keeps_the_network(row: str, joint: bool, tmp_path: Path) -> None:
    given = problem(epochs=6)
    network, (model, objective) = given.network(), objective_of(row)
    losses = descent.descend(given, network, model, objective, tmp_path, row, joint=joint)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    same = all(torch.equal(a, b) for a, b in zip(network.parameters(), given.start.parameters(), strict=True))
    assert same is not joint


def run(work: Path, stop: int | None) -> tuple[list[float], list[Tensor]]:
    """Two epochs of 6 images, killed in step ``stop``."""
    given = problem()
    network, crf = given.network(), given.crf()
    value, steps = meanfield.objective(crf, 2), itertools.count(1)

    def objective(logits: Tensor, batch: Batch) -> Tensor:
        if next(steps) == stop:
            raise RuntimeError("killed")
        return value(logits, batch)

    losses = descent.descend(given, network, crf, objective, work, "row", joint=True)
    return losses, [*network.parameters(), *crf.parameters()]


def test_a_killed_descent_ends_as_if_it_had_not_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "EVERY", 4)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", stop=10)
    ends = [run(tmp_path / name, stop=None) for name in ("killed", "through")]
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1], ends[1][1], strict=True))


def test_descent_refuses_another_methods_state(tmp_path: Path) -> None:
    given = problem(epochs=1, images=2)
    descent.descend(given, given.network(), None, descent.cross_entropy, tmp_path, "one", joint=True)
    with pytest.raises(CheckpointError, match="expected a tritoncrf paper other file, got paper one"):
        descent.descend(given, given.network(), None, descent.cross_entropy, tmp_path, "other", joint=True)
    wider = networks.small(1, 20, 7)
    with pytest.raises(CheckpointError, match="expected the state of this network and model"):
        descent.descend(given, wider, None, descent.cross_entropy, tmp_path, "one", joint=True)
    with pytest.raises(ValueError, match="model: expected parameters to learn"):
        descent.descend(given, given.network(), None, descent.cross_entropy, tmp_path / "x", "one", joint=False)


def test_forest_features_are_the_loops() -> None:
    batch, _, _ = scene(3)
    where = free_of(batch).nonzero(as_tuple=True)
    features = forest._draw(np.random.default_rng(0), 8, 3.0, 1)
    found = forest.Ends.of(batch, where)(features[:, None])
    background = 3.0

    def look(n: int, y: int, x: int) -> float:
        inside = 0 <= y < SHAPE[0] and 0 <= x < SHAPE[1] and bool(batch.present[n, y, x])
        return float(batch.image[n, 0, y, x]) if inside else background

    for f, (p, (n, y, x)) in itertools.product(range(8), enumerate(zip(*(part.tolist() for part in where), strict=True))):
        nearer = 2750.0 / (2750.0 + 300.0 * look(n, y, x))
        ends = [
            look(n, y + round(float(features[f, e]) * nearer), x + round(float(features[f, e + 1]) * nearer)) for e in (0, 3)
        ]
        assert found[f, p] == pytest.approx(ends[0] - ends[1])


def test_forest_answers_as_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem()
    kept = []
    original = forest._arrays

    def spy(grown: DecisionTreeClassifier, features: Tensor, labels: int) -> forest.Tree:
        kept.append(grown)
        return original(grown, features, labels)

    monkeypatch.setattr(forest, "_arrays", spy)
    tree = forest._grow(given, _GROWTH, 12.0, 0)
    batch = Batch.of(next(iter(given.tests())), given.device)
    ends = forest.Ends.of(batch, descent.free_pixels(batch).nonzero(as_tuple=True))
    expected = kept[0].predict_proba(ends(tree.features[:, None]).T.numpy())
    found = forest.answer(tree, ends).double()
    assert torch.allclose(found[:, kept[0].classes_], torch.from_numpy(expected), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones((), dtype=torch.float64), atol=1e-5)


def test_a_tree_knows_labels_that_it_never_saw() -> None:
    draw = np.random.default_rng(0)
    grown = DecisionTreeClassifier(max_depth=2).fit(draw.random((40, 2)), draw.choice([1, 3], 40))
    leaf = forest._arrays(grown, torch.zeros(2, 6), 5).leaf
    assert torch.equal(leaf[:, [0, 2, 4]], torch.zeros(len(leaf), 3))
    assert torch.allclose(leaf[:, [1, 3]].sum(1), torch.ones(len(leaf)))


def test_a_killed_forest_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    given = problem()
    batch = Batch.of(next(iter(given.tests())), given.device)
    through = forest.learn(given, tmp_path / "a", growth=_GROWTH)(batch)[1]
    grow, forest._grow = forest._grow, lambda *_: (_ for _ in ()).throw(RuntimeError("killed"))
    try:
        with pytest.raises(RuntimeError, match="killed"):
            forest.learn(given, tmp_path / "b", growth=_GROWTH)
    finally:
        forest._grow = grow
    assert torch.equal(forest.learn(given, tmp_path / "b", growth=_GROWTH)(batch)[1], through)
    with pytest.raises(CheckpointError, match="expected a forest of"):
        forest.learn(given, tmp_path / "a", growth=replace(_GROWTH, trees=3))


def test_storage_counts_every_factor_and_the_papers_figures() -> None:
    around, size = tc.Neighborhood.grid(4, 2), (7, 3)
    listed = [
        (site, offset)
        for site in itertools.product(*map(range, size))
        for offset in around.offsets
        if all(0 <= a + b < n for a, b, n in zip(site, offset, size, strict=True))
    ]
    assert storage.factors(around, size) == len(listed)
    small, large = storage.paper()
    # "around 10^6 pairwise factors", "around 200MB per image and 0.4TB for the whole dataset", "only 78MB".
    assert 1.0e6 < small.factors_per_image < large.factors_per_image < 1.4e6
    assert 180e6 < small.dual_bytes_per_image < 200e6 < large.dual_bytes_per_image < 210e6
    assert 0.36e12 < small.dual_bytes < 0.4e12 < large.dual_bytes < 0.42e12
    assert small.chain_bytes < 78e6 < large.chain_bytes
    assert small.dual_bytes_per_image == 2 * 20 * 4 * small.factors_per_image


def test_growth_with_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    """An unrolled step keeps more with every iteration; a sampling step's own memory does not depend on K."""
    given = problem(images=2)
    rows = {row.name: row for row in growth.rows(given, iterations=(2, 6), visits=1)}
    plainly = [rows[f"mean field {count}, autograd"].peak_bytes for count in (2, 6)]
    anew = [rows[f"mean field {count}"].peak_bytes for count in (2, 6)]
    assert plainly[1] > 1.8 * plainly[0]
    assert anew[0] < plainly[0]
    assert anew[1] > anew[0]
    assert anew[1] - anew[0] < plainly[1] - plainly[0]
    growth.show(list(rows.values()))
    assert {json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()} == set(rows)
