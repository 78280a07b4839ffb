"""The sampler's law is the model's, and this test can tell: planted faults fail the checks that the sampler passes.

Two lattices small enough to list: 2 x 3 with 3 labels and all seven classes that have an edge there, and 3 x 4 with 2 labels
and 4 neighbours. Energies have sd 1 and lie on rule 1's grid, so the oracle's energies are the sampler's own. Chi-square
over the joint of all labellings, and total variation against what perfect samples would show; from the initial draw after
as many sweeps as the enumerated transition law needs, and from exact samples after 1, 2 and 7. Longer strips: mean energies
against transfer matrices. 10^5 chains by default, 10^6 with ``-m slow``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from tests import enumeration
from tests.enumeration import Floats, Integers, Offsets
from tritoncrf import GridCRF, Neighborhood, Sampler
from tritoncrf.engines import Engine, Plan, Tables, Work, load, report
from tritoncrf.layout import Layout

Record = Callable[[str, object], None]
Fault = Callable[[pytest.MonkeyPatch], None]
IMAGES, REPLICAS = 400, 250
BATCH = IMAGES * REPLICAS
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(state != "ready", reason=f"{name}: {state}"))
    for name, state in report(torch.device("cpu")).items()
    if name != "triton"
]


@dataclass(frozen=True)
class Problem:
    shape: tuple[int, int]
    labels: int
    offsets: Offsets
    unary: Floats
    tables: Floats
    listed: Integers
    law: Floats

    @property
    def sites(self) -> int:
        return math.prod(self.shape)

    def sampler(self, engine: str, update: str) -> Sampler:
        crf = GridCRF(self.labels, Neighborhood.from_offsets(self.offsets), torch.from_numpy(self.tables).float())
        return Sampler(crf, engine, seed=2016, update=update)

    def logits(self) -> Tensor:
        image = torch.from_numpy(-self.unary.T.reshape(1, self.labels, *self.shape)).float()
        return image.expand(IMAGES, -1, -1, -1)

    def histogram(self, labels: Tensor) -> Integers:
        digits = self.labels ** np.arange(self.sites)[::-1]
        return np.bincount(labels.reshape(-1, self.sites).numpy().astype(np.int64) @ digits, minlength=len(self.law))

    def samples(self, seed: int) -> Tensor:
        drawn = np.random.default_rng(seed).choice(len(self.law), BATCH, p=self.law)
        return torch.from_numpy(self.listed[drawn]).reshape(IMAGES, REPLICAS, *self.shape)


@cache
def problem(name: str) -> Problem:
    # A draw of energies whose chains mix within ten sweeps, which keeps the test short.
    rng = np.random.default_rng(1558)
    if name == "2x3":
        shape, labels, offsets = (2, 3), 3, [(0, 1), (0, 2), (1, -2), (1, -1), (1, 0), (1, 1), (1, 2)]
    else:
        shape, labels, offsets = (3, 4), 2, [(0, 1), (1, 0)]
    unary = enumeration.on_grid(rng.normal(0, 1, (math.prod(shape), labels)))
    tables = enumeration.on_grid(rng.normal(0, 1, (len(offsets), labels, labels)))
    listed = enumeration.labellings(math.prod(shape), labels)
    law = enumeration.joint(enumeration.energies(listed, unary, tables, shape, offsets))
    return Problem(shape, labels, offsets, unary, tables, listed, law)


PROBLEMS = ("2x3", "3x4")


@cache
def sweeps_needed(name: str) -> int:
    """After how many sweeps the initial law's error adds less than 0.1 to the expected chi-square of 10^6 chains."""
    given = problem(name)
    basis = enumeration.sublattice(given.offsets)
    sites = list(np.ndindex(*given.shape))
    order = sorted(range(given.sites), key=lambda n: enumeration.color_of(sites[n], basis))
    start = enumeration.joint(enumeration.energies(given.listed, given.unary, 0 * given.tables, given.shape, []))
    for sweeps in itertools.count(1):
        start = enumeration.after_sweep(start, given.law, given.sites, given.labels, order)
        if 10**6 * float(((start - given.law) ** 2 / given.law).sum()) < 0.1:
            return sweeps
    raise AssertionError("unreachable")


def assert_law(counts: Integers, law: Floats, record: Record, what: str) -> None:
    """Fails unless the counts look like perfect samples of the law: the promise of exactness."""
    total = int(counts.sum())
    expected = law * total
    order = np.argsort(expected)
    # The rarest labellings form one cell together, grown until it expects 5 as well.
    rare = int((expected < 5).sum())
    while rare and expected[order[:rare]].sum() < 5:
        rare += 1
    kept = order[rare:]
    seen = np.concatenate([counts[kept], [counts[order[:rare]].sum()] if rare else []])
    wanted = np.concatenate([expected[kept], [expected[order[:rare]].sum()] if rare else []])
    p_value = float(chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1))
    perfect = np.random.default_rng(0).multinomial(total, law / law.sum(), size=60)
    typical = float(np.abs(perfect / total - law).sum(1).mean()) / 2
    ratio = float(np.abs(counts / total - law).sum()) / 2 / typical
    line = f"{what}: {total} chains, {len(wanted)} cells, chi-square p = {p_value:.3g}, total variation {ratio:.3f} of typical"
    record("figures", line)
    print(line)
    assert p_value > 1e-6, line
    assert ratio <= 1.25, line


def check_from_start(given: Problem, sweeps: int, engine: str, update: str, batches: int, record: Record) -> None:
    counts = np.zeros(len(given.law), np.int64)
    for batch in range(batches):
        sampler = given.sampler(engine, update)
        index = torch.arange(IMAGES) + batch * IMAGES
        counts += given.histogram(sampler.run(sampler.init(given.logits(), None, index, replicas=REPLICAS), sweeps).labels)
    assert_law(counts, given.law, record, f"{given.shape} {engine} {update}, {sweeps} sweeps from the initial draw")


def check_stationary(given: Problem, engine: str, update: str, batches: int, record: Record) -> None:
    for sweeps in (1, 2, 7):
        counts = np.zeros(len(given.law), np.int64)
        for batch in range(batches):
            sampler = given.sampler(engine, update)
            index = torch.arange(IMAGES) + batch * IMAGES
            exact = given.samples(1000 * sweeps + batch)
            chains = sampler.init(given.logits(), exact, index, replicas=REPLICAS)
            assert torch.equal(chains.labels.long(), exact)
            counts += given.histogram(sampler.run(chains, sweeps).labels)
        assert_law(counts, given.law, record, f"{given.shape} {engine} {update}, {sweeps} sweeps from exact samples")


BATCHES = [pytest.param(1, id="1e5"), pytest.param(10, id="1e6", marks=pytest.mark.slow)]


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_law_from_the_initial_draw(engine: str, name: str, update: str, batches: int, record_property: Record) -> None:
    check_from_start(problem(name), sweeps_needed(name), engine, update, batches, record_property)


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_law_stays(engine: str, name: str, update: str, batches: int, record_property: Record) -> None:
    check_stationary(problem(name), engine, update, batches, record_property)


@pytest.mark.parametrize("name", PROBLEMS)
def test_initial_draw_has_the_law_of_the_unaries(name: str, record_property: Record) -> None:
    given = problem(name)
    independent = enumeration.joint(enumeration.energies(given.listed, given.unary, given.tables, given.shape, []))
    check_from_start(replace(given, law=independent), 0, "torch", "gather", 1, record_property)


def torch_engine() -> Engine:
    engine = load("torch")
    assert not isinstance(engine, str)
    return engine


def relaid(monkeypatch: pytest.MonkeyPatch, change: Callable[[Layout], Layout]) -> None:
    build = Layout.build

    def changed(
        neighborhood: Neighborhood, shape: tuple[int, ...], device: torch.device, wrap: tuple[bool, ...] = ()
    ) -> Layout:
        return change(build(neighborhood, shape, device, wrap))

    monkeypatch.setattr(Layout, "build", changed)


def transposed_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = torch_engine()
    prepare = engine.prepare

    def turned(plan: Plan, logits: Tensor, tables: Tables, like: Work | None = None) -> Work:
        return prepare(plan, logits, tables._replace(pairwise=tables.pairwise.transpose(1, 2)), like)

    monkeypatch.setattr(engine, "prepare", turned)


def synchronous_update(monkeypatch: pytest.MonkeyPatch) -> None:
    relaid(monkeypatch, lambda layout: replace(layout, color_bounds=(0, layout.color_bounds[-1])))


def merged_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    relaid(monkeypatch, lambda layout: replace(layout, color_bounds=(layout.color_bounds[0], *layout.color_bounds[2:])))


def wrapped_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """No border between the rows: a step off the right edge lands on the next row's first site."""

    def change(layout: Layout) -> Layout:
        width = layout.shape[1]
        steps = [dy * width + dx for dy, dx in (problem(PROBLEMS[width == 4]).offsets[c] for c in layout.classes)]
        positions = layout.start + layout.coordinates @ torch.tensor([width, 1])
        volume = 2 * layout.start + math.prod(layout.shape)
        return replace(layout, padded=layout.shape, positions=positions, displacements=tuple(steps), volume=volume)

    relaid(monkeypatch, change)


def reused_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sweep of a call reads the count the call began with."""
    engine = torch_engine()
    sweep = engine.sweep

    def stuck(
        work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
        key: tuple[int, int], count: Tensor, purpose: int, bad: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        flips = [sweep(work, labels, field, 1, scale, key, count, purpose, bad) for _ in range(sweeps)]
        return torch.stack(flips).sum(0)

    monkeypatch.setattr(engine, "sweep", stuck)


def reversed_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(layout: Layout) -> Layout:
        parts = [torch.arange(a, b) for a, b in itertools.pairwise(layout.color_bounds)][::-1]
        order = torch.cat(parts)
        phases = (0, *itertools.accumulate(map(len, parts)))
        positions, coordinates = layout.positions[order], layout.coordinates[order]
        return replace(layout, color_bounds=phases, positions=positions, coordinates=coordinates)

    relaid(monkeypatch, change)


FAULTS = [transposed_tables, synchronous_update, merged_colors, wrapped_border, reused_randomness]


SLOW_INCREMENTAL = ["gather", pytest.param("incremental", marks=pytest.mark.slow)]


@pytest.mark.parametrize("update", SLOW_INCREMENTAL)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_fail_from_exact_samples(
    fault: Fault, name: str, update: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    print(fault.__name__)
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="chi-square p ="):
        check_stationary(problem(name), "torch", update, 1, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_fail_from_the_initial_draw(
    fault: Fault, name: str, update: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    print(fault.__name__)
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="chi-square p ="):
        check_from_start(problem(name), sweeps_needed(name), "torch", update, 1, record_property)


@pytest.mark.parametrize("name", PROBLEMS)
def test_another_color_order_keeps_the_law_but_not_the_bits(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    given = problem(name)

    def bits() -> list[bool]:
        sampler = given.sampler("torch", "gather")
        logits = given.logits()[:20]
        got = sampler.run(sampler.init(logits, phase="free"), 5).labels[:, 0].numpy()
        pixels, tables = logits[0].movedim(0, -1).numpy(), given.tables.astype(np.float32)
        expected = [enumeration.chain(pixels, tables, given.offsets, 5, seed=2016, index=n)[1] for n in range(20)]
        return [bool((a == b).all()) for a, b in zip(got, expected, strict=True)]

    assert all(bits())
    reversed_colors(monkeypatch)
    assert not all(bits())
    check_stationary(given, "torch", "gather", 1, record_property)


def strip_problem(name: str) -> tuple[Floats, Floats, Floats]:
    """(unary [rows, columns, L], table of the class (1, 0), table of (0, 1)) of a strip with open boundaries."""
    rng = np.random.default_rng(12)
    if name == "ising":
        attract = -0.7 * np.eye(2)
        return np.zeros((40, 12, 2)), enumeration.on_grid(attract), enumeration.on_grid(attract)
    if name == "field":
        tables = enumeration.on_grid(rng.normal(0, 0.6, (2, 2, 2)))
        return enumeration.on_grid(rng.normal(0, 0.5, (40, 12, 2))), tables[0], tables[1]
    attract = enumeration.on_grid(-np.eye(20) + rng.normal(0, 0.5, (20, 20)))
    return np.zeros((64, 3, 20)), attract, attract.T


@pytest.mark.parametrize(("chains", "burn_in", "kept"), [(100, 60, 60), pytest.param(512, 150, 450, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["ising", "field", "potts"])
def test_energy_per_site_of_strips(name: str, chains: int, burn_in: int, kept: int, record_property: Record) -> None:
    """Within 5 standard errors (over independent chains) of the transfer matrix, and these below 0.5 per cent."""
    unary, down, right = strip_problem(name)
    rows, columns, labels = unary.shape
    exact = enumeration.strip(unary, down, right)[1] / (rows * columns)
    crf = GridCRF(labels, Neighborhood.nearest(4), torch.from_numpy(np.stack([right, down])).float())
    sampler = Sampler(crf, seed=7)
    logits = torch.from_numpy(-unary).movedim(-1, 0)[None].float()
    state = sampler.run(sampler.init(logits, replicas=chains), burn_in)
    traces = []
    for _ in range(kept // 3):
        drawn = sampler.run(state, 3).labels.reshape(chains, -1).numpy().astype(np.int64)
        tables, offsets = np.stack([right, down]), [(0, 1), (1, 0)]
        traces.append(enumeration.energies(drawn, unary.reshape(-1, labels), tables, (rows, columns), offsets))
    means = np.mean(traces, axis=0) / (rows * columns)
    error = float(means.std(ddof=1)) / math.sqrt(chains)
    off = float(means.mean() - exact)
    line = f"{name} {columns} x {rows}: {exact:.5f} exact, {off / error:+.2f} standard errors of {error / abs(exact):.2%}"
    record_property("figures", line)
    print(line)
    assert abs(off) <= 5 * error, line
    assert error <= 0.005 * abs(exact), line
