"""The engines agree bit for bit where tables see the image, and what is told of edges does what it says, no more.

torch by gather is the reference (`test_known_answers_edges` ties it to an independent program): both updates, both engines, padded
and ragged batches, holes, clamps, forbidden labels, replicas, temperatures; counts and errors of label pairs against loops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="numba is not installed: pip install numba")

from tests.enumeration import Offsets
from tests.test_kernels_interpret import unmoved
from tritoncrf import GridCRF, Neighborhood, Sampler, contract
from tritoncrf.chains import ChainState
from tritoncrf.engines import load
from tritoncrf.engines import numba as engine
from tritoncrf.engines.numba_rows import Rows

UPDATES = ("gather", "incremental", "auto")
OTHERS = [("torch", "incremental"), ("torch", "auto"), *itertools.product(["numba"], UPDATES)]
PLANE = [(0, 1), (1, 0), (1, -1), (-2, 3), (0, 6)]
SOME, FEW = [(-2, 3), (0, 1), (0, 6)], [(1, -1), (1, 0)]
Rng = np.random.Generator


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One thread: between torch's operations its idle threads would spin on busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def floats(rng: Rng, *shape: int, spread: float = 1.0) -> Tensor:
    return torch.from_numpy(rng.normal(0, spread, shape)).float()


def hood(offsets: Offsets) -> Neighborhood:
    return Neighborhood.from_offsets(offsets)


def model(
    rng: Rng, labels: int, offsets: Offsets, kinds: int | None, ranks: int,
    kinds_on: Offsets | None = None, gates_on: Offsets | None = None, spread: float = 0.5,
) -> GridCRF:  # fmt: skip
    extra: dict[str, Any] = {}
    if kinds is not None:
        extra |= {"kinds": kinds, "kinds_on": None if kinds_on is None else hood(kinds_on)}
    if ranks:
        chosen = offsets if gates_on is None else gates_on
        extra |= {"gates": ranks, "gates_on": None if gates_on is None else hood(gates_on)}
        extra["gated"] = floats(rng, ranks, len(chosen), labels, labels, spread=1.5 * spread).clamp(-16, 16)
    tables = floats(rng, len(offsets), *([] if kinds is None else [kinds]), labels, labels, spread=spread)
    return GridCRF(labels, hood(offsets), tables, **extra)


def edge_arguments(rng: Rng, crf: GridCRF, images: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Kinds and gates of a batch, of all values, many gates 0, 1 and between steps."""
    given: dict[str, Any] = {}
    if crf.form.kinds is not None:
        values = rng.integers(0, crf.form.kinds, (images, len(crf.form.kinds_on), *shape))
        given["kinds"] = torch.from_numpy(values.astype(np.uint8))
    if crf.form.gates:
        gates = rng.random((images, crf.form.gates, len(crf.form.gates_on), *shape))
        gates = np.where(rng.random(gates.shape) < 0.3, np.round(gates), gates)
        given["gates"] = torch.from_numpy(gates).float()
    return given


def ragged(rng: Rng, labels: int, shape: tuple[int, ...] = (13, 17), images: int = 3) -> dict[str, Any]:
    """Padded images with holes, clamps, forbidden labels, wide index and count, and two replicas."""
    logits = rng.normal(0, 2, (images, labels, *shape)).astype(np.float32)
    forbid = rng.random(logits.shape) < 0.2
    forbid[:, 0] = False
    logits[forbid] = -np.inf
    area = (images, *shape)
    clamp = torch.from_numpy(rng.random(area) < 0.2)
    sizes = np.stack([rng.integers(1, np.array(shape) + 1) for _ in range(images)])
    sizes[0] = shape
    return {
        "logits": torch.from_numpy(logits), "clamp": clamp, "replicas": 2,
        "labels": torch.where(clamp, torch.from_numpy(rng.integers(0, labels, area)), 255),
        "mask": torch.from_numpy(rng.random(area) < 0.9), "sizes": torch.from_numpy(sizes),
        "index": torch.tensor([2**40 - 1, 3, 2**33][:images]), "count": torch.tensor([0, 2**34 - 30, 7][:images]),
    }  # fmt: skip


def sampled(
    crf: GridCRF, name: str, update: str, arguments: dict[str, Any], sweeps: int, beta: float
) -> tuple[ChainState, list[Tensor], list[Tensor]]:
    """The chains; what must be equal to the last bit; what may differ in rounding (averages of conditionals, energies)."""
    sampler = Sampler(crf, name, 7, update=update)
    chains = sampler.init(**arguments)
    exact = [chains.rows.clone()]
    for part in (sweeps - 2, 2):
        sampler.run(chains, part, beta=beta)
        exact += [chains.rows.clone(), chains.flips.clone()]
    out = torch.zeros((*chains.plan.free.shape, crf.num_labels), dtype=torch.float64)
    close = [sampler.conditionals(chains, out, beta=beta)]
    close += [sampler.average(chains, 3, out, beta=beta), out]
    exact += [chains.rows.clone(), chains.flips.clone(), chains.count.clone(), sampler.pair_counts(chains)]
    return chains, exact, close


def assert_equal(
    crf: GridCRF, arguments: dict[str, Any], sweeps: int = 8, beta: float = 1.0, others: Any = tuple(OTHERS)
) -> ChainState:
    """Asserts that all give what torch gives by gather; returns the last chains."""
    chains, exact, close = sampled(crf, "torch", "gather", arguments, sweeps, beta)
    for name, update in others:
        chains, mine, near = sampled(crf, name, update, arguments, sweeps, beta)
        for what, (a, b) in enumerate(zip(exact, mine, strict=True)):
            assert torch.equal(a, b), (name, update, what)
        for what, (a, b) in enumerate(zip(close, near, strict=True)):
            assert torch.allclose(a, b, atol=1e-5, rtol=1e-9), (name, update, what)
    return chains


SEES: dict[str, dict[str, Any]] = {
    "1 kind": {"kinds": 1, "ranks": 0},
    "3 kinds": {"kinds": 3, "ranks": 0},
    "40 kinds on some": {"kinds": 40, "ranks": 0, "kinds_on": SOME},
    "1 gate on few": {"kinds": None, "ranks": 1, "gates_on": FEW},
    "2 gates": {"kinds": None, "ranks": 2},
    "both": {"kinds": 3, "ranks": 2, "kinds_on": SOME, "gates_on": FEW},
}


def rows_of(chains: ChainState) -> Rows:
    """The tables as the engine laid them out."""
    tables = engine._own(chains.work).tables
    assert isinstance(tables, Rows)
    return tables


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("labels", [2, 5, 20, 33])
def test_ragged_batches_with_holes_clamps_and_forbidden_labels(labels: int, sees: str) -> None:
    rng = np.random.default_rng(labels)
    crf, arguments = model(rng, labels, PLANE, **SEES[sees]), ragged(rng, labels)
    chains = assert_equal(crf, arguments | edge_arguments(rng, crf, 3, (13, 17)))
    assert rows_of(chains).short


@pytest.mark.parametrize("sees", ["3 kinds", "2 gates", "both"])
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.3, 3.0])
def test_temperatures(beta: float, sees: str) -> None:
    rng = np.random.default_rng(3)
    crf, arguments = model(rng, 5, PLANE, **SEES[sees]), ragged(rng, 5)
    assert_equal(crf, arguments | edge_arguments(rng, crf, 3, (13, 17)), 12, beta)


@pytest.mark.parametrize("labels", [5, 20, 40])
def test_large_entries_take_float32_tables(labels: int) -> None:
    rng = np.random.default_rng(labels)
    crf, arguments = model(rng, labels, PLANE, **SEES["both"]), ragged(rng, labels)
    with torch.no_grad():
        crf.pairwise[1, 2, 1, 0] = 9.0
        assert crf.gated is not None
        crf.gated[1, 0, 0, 1] = -16.0
    chains = assert_equal(crf, arguments | edge_arguments(rng, crf, 3, (13, 17)))
    assert not rows_of(chains).short


def test_int16_sums_of_kinds_are_taken_in_parts() -> None:
    """A kind of which one label is near the largest int16, kind by kind another: no two classes fit a sum."""
    rng = np.random.default_rng(0)
    crf = model(rng, 5, PLANE, 4, 0)
    with torch.no_grad():
        crf.pairwise.copy_(torch.where(floats(rng, 5, 4, 5, 5) > 0, 7.99, -7.99))
    logits = floats(rng, 1, 5, 20, 21, spread=20)
    chains = assert_equal(crf, {"logits": logits, **edge_arguments(rng, crf, 1, (20, 21))}, 15)
    assert len(rows_of(chains).parts) == 1 + len(PLANE)


@pytest.mark.parametrize("sees", [(3, 0), (None, 2), (2, 1)])
@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ((101,), [(1,), (2,), (5,)]), ((2,), [(1,), (2,), (5,)]), ((1,), [(1,)]), ((33, 21), [(0, 1)]),
        ((14, 12), Neighborhood.nearest(64).offsets), ((4, 3), Neighborhood.nearest(64).offsets),
        ((7, 8, 9), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, -1, 2), (6, 7, 8)]),
    ],
)  # fmt: skip
def test_shapes_and_neighbourhoods(
    shape: tuple[int, ...], offsets: Offsets, sees: tuple[int | None, int]
) -> None:
    rng = np.random.default_rng(11)
    crf = model(rng, 7, list(offsets), *sees, spread=0.5 / len(offsets) ** 0.5)
    given = {"logits": floats(rng, 2, 7, *shape, spread=2), "replicas": 3, "phase": "free", **edge_arguments(rng, crf, 2, shape)}
    assert_equal(crf, given, 6)


def random_problem(rng: Rng) -> tuple[GridCRF, dict[str, Any]]:
    """A small problem: any number of axes, any part of the classes, anything padded, clamped, forbidden or missing."""
    axes = int(rng.integers(1, 4))
    shape = tuple(int(n) for n in rng.integers(1, (30, 9, 6)[axes - 1], axes))
    offsets: list[tuple[int, ...]] = []
    for _ in range(rng.integers(1, 7)):
        offset = tuple(int(n) for n in rng.integers(-3, 4, axes))
        if any(offset) and offset not in offsets and tuple(-n for n in offset) not in offsets:
            offsets.append(offset)
    offsets = offsets or [(1,) * axes]

    def part() -> list[tuple[int, ...]] | None:
        chosen = [offsets[n] for n in rng.permutation(len(offsets))[: rng.integers(1, len(offsets) + 1)]]
        return None if rng.random() < 0.4 else chosen

    labels = int(rng.choice([2, 3, 4, 5, 8, 15, 16, 17, 20, 33]))
    kinds = [None, 1, 2, 3, 40][rng.integers(0, 5)]
    ranks = int(rng.integers(0 if kinds else 1, 3))
    spread = float(rng.choice([0.2, 0.7, 3.0]))
    crf = model(rng, labels, offsets, kinds, ranks, part() if kinds else None, part() if ranks else None, spread)
    images = int(rng.integers(1, 4))
    given = ragged(rng, labels, shape, images) | edge_arguments(rng, crf, images, shape) | {"replicas": int(rng.integers(1, 4))}
    for name in ("mask", "sizes", "index", "count"):
        if rng.random() < 0.3:
            del given[name]
    if rng.random() < 0.3:
        del given["clamp"], given["labels"]
    return crf, given | {"phase": str(rng.choice(["free", "data", "inference"]))}


def fuzz(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crf, given = random_problem(rng)
    sweeps, beta = int(rng.integers(3, 10)), float(rng.choice([0.05, 0.3, 1.0, 3.0]))
    chosen = [("torch", "incremental"), ("numba", str(rng.choice(UPDATES))), ("numba", "incremental")]
    assert_equal(crf, given, sweeps, beta, chosen)
    sampler = Sampler(crf, "torch", 7)
    assert_errors_equal(sampler.init(**given), sampler.run(sampler.init(**given), int(rng.integers(0, 3))))


def assert_errors_equal(data: ChainState, free: ChainState) -> tuple[Tensor, Tensor]:
    plain, quick = load("torch"), load("numba")
    assert not isinstance(plain, str)
    assert not isinstance(quick, str)
    pairs = plain.pair_errors(free.plan, data.rows, free.rows)
    gated = plain.gated_errors(free.plan, data.rows, free.rows)
    with pytest.MonkeyPatch.context() as patch:
        for most in (0.0, 0.2, 2.0):
            patch.setattr("tritoncrf.engines.numba_errors.MOST", most)
            assert torch.equal(quick.pair_errors(free.plan, data.rows, free.rows), pairs), most
    found = quick.gated_errors(free.plan, data.rows, free.rows)
    assert found.shape == gated.shape
    assert torch.equal(found, gated)
    return pairs, gated


@pytest.mark.parametrize("block", [*range(10), *(pytest.param(n, marks=pytest.mark.slow) for n in range(10, 200))])
def test_fuzz(block: int) -> None:
    """Fifteen random problems a block."""
    for seed in range(15 * block, 15 * block + 15):
        try:
            fuzz(seed)
        except Exception as error:
            raise AssertionError(f"fuzz({seed})") from error


def test_random_ways_temperatures_tables_and_logits() -> None:
    """Whatever is changed between calls, the chains go on as those of torch by gather do."""
    rng = np.random.default_rng(1)
    crf = model(rng, 6, PLANE, **SEES["both"])
    arguments = ragged(rng, 6) | edge_arguments(rng, crf, 3, (13, 17)) | {"count": torch.tensor([0, 2**34 - 99, 7])}
    samplers = [Sampler(crf, "torch", 3, update="gather"), Sampler(crf, "numba", 3)]
    chains = [sampler.init(**arguments) for sampler in samplers]
    for turn in range(24):
        beta, sweeps, logits = float(rng.choice([0.06, 0.5, 1.0, 2.0])), int(rng.integers(0, 4)), None
        samplers[1].update = str(rng.choice(UPDATES))
        assert crf.gated is not None
        with torch.no_grad():
            if turn % 4 == 1:
                crf.gated.copy_(floats(rng, *crf.gated.shape))
            if turn % 4 == 2:
                crf.pairwise.copy_(floats(rng, *crf.pairwise.shape, spread=0.3))
        if turn % 6 == 5:
            logits = arguments["logits"] * float(rng.random())
        for sampler, state in zip(samplers, chains, strict=True):
            sampler.run(state, sweeps if turn < 20 else 1, beta=beta, logits=logits)
        assert torch.equal(chains[0].rows, chains[1].rows), turn
        assert torch.equal(chains[0].flips, chains[1].flips), turn


@pytest.mark.parametrize("sees", ["3 kinds", "2 gates", "both"])
def test_bounds_are_above_the_odds(sees: str) -> None:
    """After many flips around it, every site's bound still covers its exact odds, by float64 from its energies."""
    rng = np.random.default_rng(5)
    crf = model(rng, 9, PLANE, **SEES[sees], spread=0.3)
    given = {"logits": floats(rng, 1, 9, 40, 45, spread=6), **edge_arguments(rng, crf, 1, (40, 45))}
    sampler = Sampler(crf, "numba", 5, update="incremental")
    chains = sampler.run(sampler.init(**given), 15)
    assert chains.field is not None
    plain = Sampler(crf, "torch", 5)
    twin = plain.init(labels=chains.labels, **given)
    energies = plain.engine.field(twin.work, twin.rows)[:-1].double().numpy()
    where = engine._own(chains.work).sites.position.astype(np.int64)
    assert np.array_equal(where, twin.work.where.numpy())  # type: ignore[attr-defined]
    own = np.take_along_axis(energies, chains.rows[0, 0].numpy()[where, None].astype(np.int64), 1)
    odds = np.exp(own - energies).sum(1) - 1
    bounds = chains.field.numpy()[: len(where)].astype(np.float64)
    assert (bounds >= odds).all()
    assert (bounds < 0.5).mean() > 0.3


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", ["torch", "numba"])
def test_batch_order_size_padding_and_replicas_do_not_show(name: str, update: str) -> None:
    rng, sizes, index = np.random.default_rng(8), torch.tensor([[9, 11], [5, 11], [7, 3]]), torch.tensor([4, 2**33 + 1, 0])
    crf = model(rng, 5, PLANE, **SEES["both"])
    logits, edges = floats(rng, 3, 5, 9, 11), edge_arguments(rng, crf, 3, (9, 11))
    sampler = Sampler(crf, name, 4, update=update)
    expected = sampler.run(sampler.init(logits, None, index, sizes=sizes, replicas=2, **edges), 6).labels

    def grown(value: Tensor, pad: int) -> Any:
        nonsense = 255 if value.dtype == torch.uint8 else torch.nan
        return torch.nn.functional.pad(value, (0, 2 * pad, 0, pad), value=nonsense)

    for rows, pad, replicas in (([2, 0, 1], 0, 2), ([1, 0], 4, 1), ([2], 19, 2)):
        given: dict[str, Any] = {key: grown(value[rows], pad) for key, value in edges.items()}
        chains = sampler.init(grown(logits[rows], pad), None, index[rows], sizes=sizes[rows], replicas=replicas, **given)
        assert torch.equal(sampler.run(chains, 6).labels[:, :, :9, :11], expected[rows, :replicas])
    for n, (height, width) in enumerate(sizes.tolist()):
        given = {key: value[n : n + 1, ..., :height, :width] for key, value in edges.items()}
        alone = sampler.init(logits[n : n + 1, :, :height, :width], None, index[n : n + 1], replicas=2, **given)
        assert torch.equal(sampler.run(alone, 6).labels[0], expected[n, :, :height, :width])


def joined(exists: Tensor, offset: tuple[int, ...]) -> Tensor:
    """Whether an edge of this class begins at a pixel, bool ``[N, *shape]``."""
    found, shape = torch.zeros_like(exists), exists.shape[1:]
    for site in itertools.product(*map(range, shape)):
        other = tuple(a + b for a, b in zip(site, offset, strict=True))
        if all(0 <= a < n for a, n in zip(other, shape, strict=True)):
            found.movedim(0, -1)[site] = exists.movedim(0, -1)[site] & exists.movedim(0, -1)[other]
    return found


@pytest.mark.parametrize("sees", ["3 kinds", "2 gates", "both"])
@pytest.mark.parametrize(("name", "update"), [("torch", "gather"), *OTHERS])
def test_what_is_told_of_edges_that_do_not_exist_changes_nothing(name: str, update: str, sees: str) -> None:
    rng = np.random.default_rng(2)
    crf, arguments = model(rng, 5, PLANE, **SEES[sees]), ragged(rng, 5, (7, 9))
    edges = edge_arguments(rng, crf, 3, (7, 9))
    plain = Sampler(crf, name, 1, update=update)
    chains = plain.init(**arguments, **edges)
    exists, changed = chains.exists, dict(edges)
    for key, offsets, nonsense in (("kinds", crf.form.kinds_on, 255), ("gates", crf.form.gates_on, torch.nan)):
        if key in changed:
            absent = torch.stack([~joined(exists, offset) for offset in offsets.offsets], 1)
            assert bool(absent.any())
            changed[key] = changed[key].masked_fill(absent if key == "kinds" else absent[:, None], nonsense)
            wild = changed[key].clone()
            wild[absent if key == "kinds" else absent[:, None].expand_as(wild)] = 200 if key == "kinds" else -7
            changed[f"wild {key}"] = wild
    for prefix in ("", "wild "):
        given = {key: changed[prefix + key] for key in edges}
        other = plain.init(**arguments, **given)
        assert torch.equal(plain.pair_counts(other), plain.pair_counts(plain.init(**arguments, **edges)))
        assert torch.equal(plain.run(other, 5).rows, plain.run(plain.init(**arguments, **edges), 5).rows)


def on_grid(values: Tensor) -> Tensor:
    return contract.round_pairwise(values)


@pytest.mark.parametrize(("name", "update"), [("torch", "gather"), *OTHERS])
def test_models_that_say_nothing_new_give_the_labels_of_the_model_without(name: str, update: str) -> None:
    """Kinds that share a table, gates of 0, and gates of 1 where the table holds them already."""
    rng = np.random.default_rng(6)
    arguments, labels = ragged(rng, 5), 5
    tables, gated = on_grid(floats(rng, 5, labels, labels)), on_grid(floats(rng, 2, 5, labels, labels, spread=2.0))

    def run(crf: GridCRF, **edges: Any) -> Tensor:
        sampler = Sampler(crf, name, 3, update=update)
        chains = sampler.run(sampler.init(**arguments, **edges), 6)
        out = torch.zeros((*chains.plan.free.shape, labels), dtype=torch.float64)
        sampler.average(chains, 2, out)
        return torch.cat([chains.rows.flatten().double(), chains.flips.flatten().double(), out.flatten()])

    plain = run(GridCRF(labels, hood(PLANE), tables))
    same = model(rng, labels, PLANE, 7, 2)
    with torch.no_grad():
        same.pairwise.copy_(tables[:, None].expand(-1, 7, -1, -1))
    edges = edge_arguments(rng, same, 3, (13, 17))
    none = torch.zeros(3, 2, 5, 13, 17)
    assert torch.equal(run(GridCRF(labels, hood(PLANE), same.pairwise, kinds=7), kinds=edges["kinds"]), plain)
    assert torch.equal(run(GridCRF(labels, hood(PLANE), tables, gates=2, gated=gated), gates=none), plain)
    assert torch.equal(run(same, kinds=edges["kinds"], gates=none), plain)
    assert not torch.equal(run(same, **edges), plain)
    added = run(GridCRF(labels, hood(PLANE), tables + gated.sum(0)))
    assert torch.equal(run(GridCRF(labels, hood(PLANE), tables, gates=2, gated=gated), gates=none + 1), added)
    # One gate alone, of some classes, as kinds that choose between two tables.
    choice = (edges["kinds"] > 3).float()
    two = torch.stack([tables, tables + gated[0]], 1)
    by_kind = run(GridCRF(labels, hood(PLANE), two, kinds=2), kinds=choice.to(torch.uint8))
    by_gate = run(GridCRF(labels, hood(PLANE), tables, gates=1, gated=gated[:1]), gates=choice[:, None])
    assert torch.equal(by_kind, by_gate)
    assert not torch.equal(by_kind, plain)


SHAPES: list[tuple[tuple[int, ...], Offsets]] = [
    ((17,), [(1,), (-3,), (20,)]), ((7, 6), PLANE), ((3, 4, 5), [(0, 0, 1), (1, -1, 2), (-1, 0, 0), (0, 5, 0)])
]  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize(("shape", "offsets"), SHAPES)
def test_counts_and_errors_against_loops(
    shape: tuple[int, ...], offsets: Offsets, replicas: int, share: float
) -> None:
    """Samples that differ nowhere, here and there, and almost everywhere; each edge counts where it begins."""
    rng = np.random.default_rng(5)
    crf = model(rng, 4, offsets, 3, 2, offsets[::-1][:2], offsets[1:])
    sizes = torch.tensor([shape, [max(1, n - 2) for n in shape]])
    mask, edges = torch.from_numpy(rng.random((2, *shape)) < 0.9), edge_arguments(rng, crf, 2, shape)
    first = rng.integers(0, 4, (2, replicas, *shape))
    second = np.where(rng.random(first.shape) < share, rng.integers(0, 4, first.shape), first)
    given: dict[str, Any] = {"logits": torch.zeros(2, 4, *shape), "sizes": sizes, "mask": mask, "replicas": replicas, **edges}
    sampler = Sampler(crf, "numba")
    data, free = (sampler.init(labels=torch.from_numpy(labels), **given) for labels in (first, second))
    pairs, gated = assert_errors_equal(data, free)
    counts = torch.zeros(2, 2, replicas, len(offsets), 3, 4, 4, dtype=torch.int64)
    weighed = torch.zeros(2, 2, len(offsets) - 1, 4, 4, dtype=torch.int64)
    for n, (c, offset) in itertools.product(range(2), enumerate(offsets)):
        for site in joined(data.exists, offset)[n].nonzero().tolist():
            other = tuple(a + b for a, b in zip(site, offset, strict=True))
            place = crf.form.kinded[c]
            kind = int(edges["kinds"][(n, place, *site)]) if place >= 0 else 0
            for which, r in itertools.product(range(2), range(replicas)):
                y = (first, second)[which][n, r]
                counts[which, n, r, c, kind, y[tuple(site)], y[other]] += 1
                if crf.form.gating[c] >= 0:
                    for rank in range(2):
                        steps = math.floor(float(edges["gates"][(n, rank, crf.form.gating[c], *site)]) * 128 + 0.5)
                        weighed[which, rank, crf.form.gating[c], y[tuple(site)], y[other]] += steps
    assert torch.equal(pairs, (counts[0] - counts[1]).sum((0, 1)))
    assert torch.equal(gated, weighed[0] - weighed[1])
    for name in ("torch", "numba"):
        counter = Sampler(crf, name)
        for which, labels in enumerate((first, second)):
            chains = counter.init(labels=torch.from_numpy(labels), **given)
            assert torch.equal(counter.pair_counts(chains), counts[which])
    assert bool(pairs.any()) == (share > 0)


def test_errors_of_many_labels_and_kinds() -> None:
    rng = np.random.default_rng(9)
    for labels, kinds, shape in ((20, 40, (21, 30)), (33, 3, (40, 9)), (2, 255, (30, 30))):
        crf = model(rng, labels, PLANE, kinds, 2, SOME, FEW)
        edges, drawn = edge_arguments(rng, crf, 2, shape), rng.integers(0, labels, (2, *shape))
        sampler = Sampler(crf, "torch")
        other = np.where(rng.random(drawn.shape) < 0.1, (drawn + 1) % labels, drawn)
        given = {"logits": torch.zeros(2, labels, *shape), **edges}
        data, free = (sampler.init(labels=torch.from_numpy(part), **given) for part in (drawn, other))
        pairs, gated = assert_errors_equal(data, free)
        assert bool(pairs.any())
        assert bool(gated.any())


@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("name", ["torch", "numba"])
def test_nothing_happens_where_a_call_is_bad(name: str, update: str) -> None:
    unmoved(name, update)
