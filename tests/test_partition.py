"""log Z by annealed importance sampling against enumeration and transfer matrices, and where it must be exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tests import enumeration
from tests.graph_cases import FORMS, case, factor_graph, model, one_sentence
from tests.graph_cases import logits as node_logits
from tritoncrf.diagnostics import Partition, log_partition
from tritoncrf.graph_recipes import chain

OFFSETS = ((0, 1), (1, 0), (1, -1))
AGREE = 5.5


def problem(shape: tuple[int, int], labels: int, scale: float = 0.7) -> tuple[tc.GridCRF, Tensor]:
    """Tables and logits of one image, none of them on the grid."""
    random = np.random.default_rng(3)
    tables = torch.from_numpy(random.normal(0, scale, (len(OFFSETS), labels, labels)).astype(np.float32))
    logits = torch.from_numpy(random.normal(0, 1, (1, labels, *shape)).astype(np.float32))
    return tc.GridCRF(labels, tc.Neighborhood(OFFSETS), tables), logits


def listed(crf: tc.GridCRF, logits: Tensor, given: dict[int, int] | None = None, **edges: Tensor) -> float:
    """log Z of the library's own energies, of every labelling that has ``given`` labels."""
    shape = tuple(logits.shape[2:])
    every = enumeration.labellings(math.prod(shape), crf.num_labels)
    fits = np.all([every[:, site] == label for site, label in (given or {}).items()], axis=0)
    labels = torch.from_numpy(every[fits] if given else every).view(1, -1, *shape)
    energy = crf.energy(logits, labels, **edges)[0].detach()
    return enumeration.log_partition(energy.double().numpy())


def agrees(found: Partition, expected: float, error: float) -> None:
    """The mean of all images' weights, which are independent, is Z to within its own error, and that is small."""
    weights = (found.log_weights - expected).exp().flatten()
    spread = float(weights.std()) / math.sqrt(len(weights))
    assert spread < error
    assert abs(float(weights.mean()) - 1) < AGREE * spread
    # And each image's error says how far it lies off.
    scores = (found.mean - expected) / found.error
    assert len(scores) >= 30
    assert 0.6 < float(scores.std()) < 1.6


@pytest.mark.parametrize(("steps", "sweeps", "error"), [(1, 1, 0.03), (4, 1, 0.015), (12, 2, 0.005)])
def test_against_enumeration(steps: int, sweeps: int, error: float) -> None:
    crf, logits = problem((2, 3), 3)
    expected = listed(crf, logits)
    unary, tables = -logits[0].flatten(1).T.double().numpy(), crf.pairwise.detach().double().numpy()
    every = enumeration.labellings(6, 3)
    oracle = enumeration.log_partition(enumeration.energies(every, unary, tables, (2, 3), OFFSETS))
    assert expected == pytest.approx(oracle, abs=1e-5)
    found = log_partition(crf, logits.expand(40, -1, -1, -1), steps=steps, sweeps=sweeps, replicas=500)
    agrees(found, oracle, error)


def test_the_weights_are_the_same_on_every_engine() -> None:
    crf, logits = problem((4, 5), 3)
    one, other = (log_partition(crf, logits, steps=9, replicas=20, engine=engine) for engine in ("numba", "torch"))
    torch.testing.assert_close(one.log_weights, other.log_weights, rtol=0, atol=1e-9)


def test_kinds_gates_and_clamped_pixels() -> None:
    random = torch.Generator().manual_seed(5)
    crf = tc.GridCRF(
        2, tc.Neighborhood(OFFSETS), torch.randn(3, 2, 2, 2, generator=random), kinds=2, gates=1,
        gated=torch.randn(1, 3, 2, 2, generator=random),
    )  # fmt: skip
    logits = torch.randn(1, 2, 3, 3, generator=random)
    edges = {
        "kinds": torch.randint(2, (1, 3, 3, 3), generator=random, dtype=torch.uint8),
        "gates": torch.rand(1, 3, 3, 3, generator=random)[:, None],
    }
    clamp, labels = torch.zeros(1, 3, 3, dtype=torch.bool), torch.zeros(1, 3, 3, dtype=torch.long)
    clamp[0, 1, 1] = clamp[0, 0, 2] = True
    labels[0, 1, 1] = 1
    many = {name: part.expand(40, *part.shape[1:]) for name, part in edges.items()}
    whole = log_partition(crf, logits.expand(40, -1, -1, -1), steps=16, replicas=300, **many)  # type: ignore[arg-type]
    agrees(whole, listed(crf, logits, None, **edges), 0.01)
    part = log_partition(
        crf, logits.expand(40, -1, -1, -1), steps=16, replicas=300, labels=labels.expand(40, -1, -1),
        clamp=clamp.expand(40, -1, -1), **many,  # type: ignore[arg-type]
    )  # fmt: skip
    agrees(part, listed(crf, logits, {4: 1, 2: 0}, **edges), 0.01)


def test_images_of_several_sizes_and_holes() -> None:
    crf, logits = problem((2, 3), 3)
    padded = torch.full((40, 3, 4, 5), torch.nan)
    padded[:, :, :2, :3] = logits
    sizes = torch.tensor([[2, 3]]).expand(40, -1)
    plain = log_partition(crf, logits.expand(40, -1, -1, -1), steps=6, replicas=50)
    ragged = log_partition(crf, padded, steps=6, replicas=50, sizes=sizes)
    torch.testing.assert_close(plain.log_weights, ragged.log_weights, rtol=0, atol=1e-9)
    mask = torch.ones(40, 2, 3, dtype=torch.bool)
    mask[:, 0, 0] = False
    hole = log_partition(crf, logits.expand(40, -1, -1, -1), steps=8, replicas=300, mask=mask)
    every = enumeration.labellings(6, 3)
    every = every[every[:, 0] == 0]
    unary, tables = -logits[0].flatten(1).T.double().numpy(), crf.pairwise.detach().double().numpy()
    energy = enumeration.energies(every, unary, tables, (2, 3), OFFSETS, mask[0].numpy())
    agrees(hole, enumeration.log_partition(energy), 0.01)


@pytest.mark.parametrize(("rows", "columns", "labels"), [(40, 6, 2), (30, 2, 5)])
def test_against_transfer_matrices(rows: int, columns: int, labels: int) -> None:
    random = np.random.default_rng(7)
    tables = random.normal(0, 0.5, (2, labels, labels))
    unary = random.normal(0, 1, (rows, columns, labels))
    expected, _ = enumeration.strip(unary, tables[0], tables[1])
    crf = tc.GridCRF(labels, tc.Neighborhood(((1, 0), (0, 1))), torch.from_numpy(tables).float())
    logits = torch.from_numpy(-unary).float().movedim(-1, 0)[None]
    found = log_partition(crf, logits.expand(32, -1, -1, -1), steps=90, replicas=24, seed=2)
    agrees(found, expected, 0.02)
    assert float(found.ess.min()) > 6


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("name", FORMS)
def test_graphs_against_enumeration(name: str, engine: str) -> None:
    form = case(name)
    crf, graph, rows = model(form), factor_graph(form), node_logits(form)
    with torch.no_grad():
        for table in crf.factors:
            # Off the grid.
            table.mul_(0.77)
    listed, law = form.law()
    possible = torch.from_numpy(listed[law > 0])
    energy = crf.energy(rows, possible, graph)[0].detach().double().numpy()
    many = tc.FactorGraph.batch([graph] * 40)
    found = log_partition(crf, rows.repeat(40, 1), steps=10, replicas=100, graph=many, engine=engine)
    agrees(found, enumeration.log_partition(energy), 0.02)
    fits = (possible[:, 1] == 1).numpy() & (possible[:, 2] == 0).numpy()
    clamp, labels = torch.zeros(form.nodes, dtype=torch.bool), torch.full((100, form.nodes), 2)
    clamp[1:3], labels[:, 1], labels[:, 2] = True, 1, 0
    held = log_partition(
        crf, rows.repeat(40, 1), steps=10, replicas=100, graph=many, engine=engine, clamp=clamp.repeat(40),
        labels=labels.repeat(1, 40),
    )  # fmt: skip
    agrees(held, enumeration.log_partition(energy[fits]), 0.02)


def test_a_chain_against_transfer_matrices() -> None:
    random = np.random.default_rng(9)
    unary, table = random.normal(0, 1, (100, 4)), random.normal(0, 0.5, (4, 4))
    expected, _ = enumeration.strip(unary[:, None], table, np.zeros((4, 4)))
    crf = tc.FactorCRF(4, [2], factors=[torch.from_numpy(table).float()[None]])
    graph = tc.FactorGraph.batch([chain(100)] * 32)
    rows = torch.from_numpy(-unary).float().repeat(32, 1)
    agrees(log_partition(crf, rows, steps=120, replicas=24, graph=graph), expected, 0.02)


def test_what_rounding_takes_away_is_given_back() -> None:
    # Entries below half a step of the grid are nothing to the sampler; of equal ones log Z is known.
    crf = tc.GridCRF(3, tc.Neighborhood(OFFSETS), torch.full((3, 3, 3), 1e-4))
    logits = torch.randn(2, 3, 30, 40, generator=torch.Generator().manual_seed(1)) * 1e-4
    edges = 30 * 39 + 29 * 40 + 29 * 39
    expected = logits.double().logsumexp(1).sum((1, 2)) - 1e-4 * edges
    found = log_partition(crf, logits, steps=3, replicas=200)
    assert float((found.mean - expected).abs().max()) < AGREE * float(found.error.max()) < 1e-3


def test_independent_pixels_have_no_error() -> None:
    crf = tc.GridCRF(4, tc.Neighborhood(OFFSETS))
    # On the grid, with a forbidden label.
    logits = torch.randint(-4000, 4000, (2, 4, 6, 7), generator=torch.Generator().manual_seed(2)) / 4096
    logits[:, 2, :3] = -torch.inf
    found = log_partition(crf, logits, steps=5, replicas=4)
    torch.testing.assert_close(found.mean, logits.double().logsumexp(1).sum((1, 2)), rtol=0, atol=1e-8)
    assert float(found.error.max()) < 1e-9
    assert found.ess.tolist() == pytest.approx([4, 4])


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "steps": (lambda: log_partition(*problem((2, 2), 2), steps=0), "steps: expected an integer of at least 1, got 0"),
    "sweeps": (lambda: log_partition(*problem((2, 2), 2), sweeps=0), "sweeps: expected an integer of at least 1, got 0"),
    "replicas": (lambda: log_partition(*problem((2, 2), 2), replicas=1), "replicas: expected an integer from 2 to 65536"),
    "logits": (
        lambda: log_partition(problem((2, 2), 2)[0], torch.zeros(1, 3, 2, 2)),
        r"logits: expected shape \[N, 2, H, W\], got \[1, 3, 2, 2\]",
    ),
    "clamp alone": (
        lambda: log_partition(*problem((2, 2), 2), clamp=torch.ones(1, 2, 2, dtype=torch.bool)),
        "labels: expected the labels that clamped sites keep, got None",
    ),
    "labels alone": (
        lambda: log_partition(*problem((2, 2), 2), labels=torch.ones(1, 2, 2, dtype=torch.long)),
        "labels: expected None without a clamp that holds them, got a tensor",
    ),
    "clamp of another shape": (
        lambda: log_partition(
            *problem((2, 2), 2), labels=torch.ones(1, 2, 2, dtype=torch.long), clamp=torch.ones(1, 3, 2, dtype=torch.bool)
        ),
        r"clamp: expected shape \[1, 2, 2\], got \[1, 3, 2\]",
    ),
    "a graph for a lattice": (
        lambda: log_partition(*problem((2, 2), 2), graph=chain(4)),
        "graph: expected None",
    ),
    "forbidden": (
        lambda: log_partition(
            problem((2, 2), 2)[0], torch.tensor([0.0, -torch.inf]).view(1, 2, 1, 1).expand(1, 2, 2, 2),
            labels=torch.ones(1, 2, 2, dtype=torch.long), clamp=torch.ones(1, 2, 2, dtype=torch.bool),
        ),
        "labels: expected labels that the logits allow where clamp holds them, got -inf at some of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str) -> None:
    one_sentence(*BAD[name])
