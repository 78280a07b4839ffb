"""The sampler's law is the model's where tables see the image: kinds, gates, both. Planted faults fail the same checks.

The lattices, the checks and their bounds are those of `test_exactness`; an edge's kind and gates are read at its first end, and
the parts of its energy have sd 1 together. 10^5 chains by default, 10^6 with ``-m slow``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import enumeration, scalar_edges, test_exactness, test_known_answers_edges
from tests.enumeration import Floats, Integers
from tests.test_exactness import ENGINES, IMAGES, Record, check_from_start, check_stationary
from tritoncrf import GridCRF, Neighborhood, Sampler, contract, marginals
from tritoncrf.chains import ChainState
from tritoncrf.engines import EdgeData, Plan, load

KINDS, RANKS = 3, 2
Fault = Callable[[pytest.MonkeyPatch], None]


class Seeing(Sampler):
    """A sampler that tells each image of its edges."""

    given: dict[str, Tensor]

    def init(self, logits: Tensor, *args: Any, **more: Any) -> ChainState:
        edge_arguments: dict[str, Any] = {name: value.expand(len(logits), *value.shape[1:]) for name, value in self.given.items()}
        return super().init(logits, *args, **(more | edge_arguments))


@dataclass(frozen=True)
class Problem(test_exactness.Problem):
    """``tables`` are ``[C, R, L, L]``."""

    kinds: Integers | None
    """[C, sites]."""
    gated: Floats | None
    gates: Floats | None
    """[G, C, sites], in steps of 1 / 128."""

    def energies(self) -> Floats:
        given = self.kinds, self.gated, self.gates
        return enumeration.seeing_energies(self.listed, self.unary, self.tables, self.shape, self.offsets, None, *given)

    def crf(self) -> GridCRF:
        tables, extra = torch.from_numpy(self.tables).float(), dict[str, Any]()
        if self.kinds is None:
            tables = tables[:, 0]
        else:
            extra["kinds"] = KINDS
        if self.gated is not None:
            extra |= {"gates": RANKS, "gated": torch.from_numpy(self.gated).float()}
        return GridCRF(self.labels, Neighborhood.from_offsets(self.offsets), tables, **extra)

    def sampler(self, engine: str, update: str) -> Sampler:
        sampler = Seeing(self.crf(), engine, seed=2016, update=update)
        sampler.given = {}
        if self.kinds is not None:
            sampler.given["kinds"] = torch.from_numpy(self.kinds).to(torch.uint8).view(1, -1, *self.shape)
        if self.gates is not None:
            sampler.given["gates"] = torch.from_numpy(self.gates).float().view(1, RANKS, -1, *self.shape)
        return sampler


@cache
def problem(name: str, sees: str) -> Problem:
    plain = test_exactness.problem(name)
    # A draw of energies of sd near 1 whose chains mix within eleven sweeps, which keeps the test short.
    rng = np.random.default_rng(1 if name == "2x3" else 8)
    classes, labels, sites = len(plain.offsets), plain.labels, plain.sites
    kinds = gated = gates = None
    # An edge's parts add to sd 1: gates of mean square 0.4 weigh two tables; "alone", nothing but these.
    spread = {"kinds": 1.0, "gates": 0.6, "both": 0.7, "alone": 0.0}[sees]
    chooses = sees in ("kinds", "both")
    tables = rng.normal(0, spread, (classes, KINDS if chooses else 1, labels, labels))
    if chooses:
        kinds = rng.integers(0, KINDS, (classes, sites))
    if sees != "kinds":
        gated = enumeration.on_grid(rng.normal(0, math.sqrt((1 - spread**2) / RANKS / 0.4), (RANKS, classes, labels, labels)))
        steps = rng.choice([0, 1, 37, 64, 101, 127, 128], (RANKS, classes, sites), p=[0.2, 0.05, 0.15, 0.15, 0.15, 0.1, 0.2])
        gates = steps / 128
    parts = plain.unary, enumeration.on_grid(tables), plain.listed, plain.law, kinds, gated, gates
    made = Problem(plain.shape, labels, plain.offsets, *parts)
    return replace(made, law=enumeration.joint(made.energies()))


CASES = list(itertools.product(test_exactness.PROBLEMS, ("kinds", "gates", "both")))


@cache
def sweeps_needed(name: str, sees: str) -> int:
    """As `test_exactness.sweeps_needed`."""
    given = problem(name, sees)
    basis, sites = enumeration.sublattice(given.offsets), list(np.ndindex(*given.shape))
    order = sorted(range(given.sites), key=lambda n: enumeration.color_of(sites[n], basis))
    start = enumeration.joint(enumeration.seeing_energies(given.listed, given.unary, given.tables, given.shape, []))
    for sweeps in range(1, 200):
        start = enumeration.after_sweep(start, given.law, given.sites, given.labels, order)
        if 10**6 * float(((start - given.law) ** 2 / given.law).sum()) < 0.1:
            return sweeps
    raise AssertionError("these chains mix too slowly for a test")


def some(*quick: tuple[str, str, str, str]) -> list[Any]:
    """All engines, lattices, cases and ways at 10^6 chains; at 10^5 the quick ones, "*" for any."""
    found = []
    for engine, (name, sees), update in itertools.product(ENGINES, CASES, ("gather", "incremental")):
        given = (str(engine.values[0]), name, sees, update)
        for batches, slow in ((1, False), (10, True)):
            if slow or any(all(a in (b, "*") for a, b in zip(asked, given, strict=True)) for asked in quick):
                marks = [*engine.marks, *([pytest.mark.slow] if slow else [])]
                found.append(pytest.param(*given, batches, marks=marks, id="-".join([*given, f"1e{4 + len(str(batches))}"])))
    return found


@pytest.mark.parametrize(
    ("engine", "name", "sees", "update", "batches"),
    some(("numba", "*", "both", "*"), ("numba", "3x4", "*", "incremental"), ("torch", "3x4", "both", "incremental")),
)
def test_law_from_the_initial_draw(
    engine: str, name: str, sees: str, update: str, batches: int, record_property: Record
) -> None:
    check_from_start(problem(name, sees), sweeps_needed(name, sees), engine, update, batches, record_property)


@pytest.mark.parametrize(
    ("engine", "name", "sees", "update", "batches"), some(("numba", "*", "*", "incremental"))
)
def test_law_stays(engine: str, name: str, sees: str, update: str, batches: int, record_property: Record) -> None:
    check_stationary(problem(name, sees), engine, update, batches, record_property)


@pytest.mark.parametrize("name", test_exactness.PROBLEMS)
def test_law_stays_where_gates_are_alone(name: str, record_property: Record) -> None:
    """What the fault of their bound is told from."""
    check_stationary(problem(name, "alone"), "numba", "incremental", 1, record_property)


@pytest.mark.parametrize(("name", "sees"), CASES)
def test_energies_have_sd_1_and_the_library_has_them_too(name: str, sees: str) -> None:
    given = problem(name, sees)
    edges = given.energies() - enumeration.seeing_energies(given.listed, given.unary, given.tables, given.shape, [])
    count = len(enumeration.edges(given.shape, given.offsets))
    assert 0.6 < edges.std() / math.sqrt(count) < 1.4
    labels = torch.from_numpy(given.listed).view(-1, *given.shape)
    sampler = given.sampler("torch", "gather")
    assert isinstance(sampler, Seeing)
    edge_arguments = {key: value.expand(len(labels), *value.shape[1:]) for key, value in sampler.given.items()}
    energy = sampler.crf.energy(given.logits()[:1].expand(len(labels), -1, -1, -1), labels, **edge_arguments)
    # The energy that is differentiated does not round what a gate makes of an entry.
    assert np.allclose(energy.detach().numpy(), given.energies(), atol=count * RANKS * 2**-13)


def swapped_kinds_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ahead reads the neighbour's kind, behind its own."""
    right = EdgeData.kinds_at

    def wrong(self: EdgeData, plan: Plan, image: Tensor, position: Tensor) -> Tensor:
        own = right(self, plan, image, position).chunk(2, 1)[0]
        assert self.kinds is not None
        there = [self.pixels[position + step] for step in plan.displacements]
        ahead = [self.kinds[image, k, pixel] for k, pixel in zip(self.kinded, there, strict=True)]
        return torch.cat([torch.stack(ahead, 1), own], 1)

    monkeypatch.setattr(EdgeData, "kinds_at", wrong)


def swapped_gates_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate of the antipode's edge at the site, and the site's own behind."""
    right = EdgeData.gates_at
    monkeypatch.setattr(EdgeData, "gates_at", lambda *given: right(*given).flip(1).contiguous())


def listed_otherwise(monkeypatch: pytest.MonkeyPatch, change: Callable[[Plan, Any], Any]) -> None:
    engine: Any = load("numba")
    right = engine._edges
    monkeypatch.setattr(engine, "_edges", lambda plan, sites: np.ascontiguousarray(change(plan, right(plan, sites))))


def swapped_kinds_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(plan: Plan, found: Any) -> Any:
        wide = 2 * len(plan.displacements) if plan.kinded else 0
        kinds = found[:, :wide].reshape(len(found), -1, 2)[:, :, ::-1].reshape(len(found), wide)
        return np.concatenate([kinds, found[:, wide:]], 1)

    listed_otherwise(monkeypatch, change)


def swapped_gates_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(plan: Plan, found: Any) -> Any:
        wide = 2 * len(plan.displacements) if plan.kinded else 0
        gates = found[:, wide:].reshape(len(found), -1, 2, RANKS)[:, :, ::-1].reshape(len(found), -1)
        return np.concatenate([found[:, :wide], gates], 1)

    listed_otherwise(monkeypatch, change)


def push_without_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = load("torch")
    right = engine._push
    monkeypatch.setattr(engine, "_push", lambda work, *given: right(replace(work, kinds=None), *given))


def push_without_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = load("torch")
    right = engine._push
    monkeypatch.setattr(engine, "_push", lambda work, *given: right(replace(work, gates=None), *given))


def bound_without_lifts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = load("numba")
    right = engine._factors

    def wrong(work: Any, scale: float) -> Any:
        push, lifts = right(work, scale)
        return push, np.ones_like(lifts)

    monkeypatch.setattr(engine, "_factors", wrong)


def bound_without_push(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = load("numba")
    right = engine._factors

    def wrong(work: Any, scale: float) -> Any:
        push, lifts = right(work, scale)
        return np.ones_like(push), lifts

    monkeypatch.setattr(engine, "_factors", wrong)


FAULTS: list[tuple[Fault, str, str, str]] = [
    (swapped_kinds_torch, "torch", "kinds", "gather"),
    (swapped_gates_torch, "torch", "gates", "gather"),
    (push_without_kinds, "torch", "kinds", "incremental"),
    (push_without_gates, "torch", "gates", "incremental"),
    (swapped_kinds_numba, "numba", "kinds", "gather"),
    (swapped_kinds_numba, "numba", "both", "incremental"),
    (swapped_gates_numba, "numba", "gates", "gather"),
    (swapped_gates_numba, "numba", "both", "incremental"),
    # Beside tables of their own, what these add to the bound covers for the gates'.
    (bound_without_lifts, "numba", "alone", "incremental"),
    (bound_without_push, "numba", "kinds", "incremental"),
]


@pytest.mark.parametrize("name", [pytest.param("2x3", marks=pytest.mark.slow), "3x4"])
@pytest.mark.parametrize(("fault", "engine", "sees", "update"), FAULTS, ids=[f"{f[0].__name__}-{f[2]}-{f[3]}" for f in FAULTS])
def test_planted_faults_fail(
    fault: Fault, engine: str, sees: str, update: str, name: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    pytest.importorskip(engine)
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="chi-square p =") as caught:
        check_stationary(problem(name, sees), engine, update, 1, record_property)
    print(fault.__name__, caught.value)


def toward_zero(steps: Tensor, entries: Tensor) -> Tensor:
    return torch.trunc((steps.float() * (1.0 / 128)) * entries * contract.GRID) / contract.GRID


def halves_up(steps: Tensor, entries: Tensor) -> Tensor:
    return torch.floor((steps.float() * (1.0 / 128)) * entries * contract.GRID + 0.5) / contract.GRID


def gate_to_even(gates: Tensor) -> Tensor:
    return torch.round(gates.float() * 128).nan_to_num(0.0).clamp_(0, 128).to(torch.uint8)


@pytest.mark.parametrize("fault", [toward_zero, halves_up, gate_to_even])
@pytest.mark.parametrize("update", ["gather", "incremental"])
def test_another_rounding_fails_the_known_answers(
    fault: Callable[..., Tensor], update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chi-square cannot see 2^-13 nat; the case made of ties, and those of many gates, can."""
    seen = 0
    names = [name for name, case in test_known_answers_edges.ANSWERS.items() if case["ranks"]]
    inputs = {name: scalar_edges.inputs(test_known_answers_edges.ANSWERS[name]) for name in names}
    for name in names:
        test_known_answers_edges.assert_answers(test_known_answers_edges.ANSWERS[name], inputs[name], "torch", update)
    monkeypatch.setattr(contract, "round_gates" if fault is gate_to_even else "gate", fault)
    for name in names:
        try:
            test_known_answers_edges.assert_answers(test_known_answers_edges.ANSWERS[name], inputs[name], "torch", update)
        except AssertionError:
            seen += 1
    print(f"{fault.__name__} {update}: {seen} of {len(names)} known answers fail")
    assert seen


@pytest.mark.parametrize("engine", ["numba", pytest.param("torch", marks=pytest.mark.slow)])
def test_chains_of_images_that_differ_have_laws_that_differ(engine: str, record_property: Record) -> None:
    """Each image of a batch is told of its own edges: two problems side by side, each with its own law."""
    first = problem("3x4", "both")
    assert first.kinds is not None
    assert first.gates is not None
    other = replace(first, kinds=first.kinds[::-1].copy(), gates=first.gates[:, :, ::-1].copy())
    other = replace(other, law=enumeration.joint(other.energies()))
    assert float(np.abs(first.law - other.law).sum()) / 2 > 0.1
    tellers = [part.sampler(engine, "auto") for part in (first, other)]
    sampler, images = Sampler(tellers[0].crf, engine, seed=5), IMAGES // 2
    edge_arguments: dict[str, Any] = {}
    for key in ("kinds", "gates"):
        values = torch.cat([teller.given[key] for teller in tellers if isinstance(teller, Seeing)])
        edge_arguments[key] = values.repeat_interleave(images, 0)
    exact = torch.cat([part.samples(n)[:images] for n, part in enumerate((first, other))])
    chains = sampler.run(sampler.init(first.logits(), exact, replicas=test_exactness.REPLICAS, **edge_arguments), 3)
    for part, labels in zip((first, other), (chains.labels[:images], chains.labels[images:]), strict=True):
        test_exactness.assert_law(part.histogram(labels), part.law, record_property, f"{engine}, two images in one batch")


@pytest.mark.parametrize("name", test_exactness.PROBLEMS)
def test_averaged_conditionals_are_the_enumerated_marginals(name: str) -> None:
    given = problem(name, "both")
    sampler = given.sampler("numba", "auto")
    assert isinstance(sampler, Seeing)
    edge_arguments: dict[str, Any] = sampler.given
    found = marginals(sampler.crf, given.logits()[:1], sweeps=800, burn_in=20, replicas=100, seed=3, **edge_arguments)
    expected = enumeration.marginals(given.law, given.listed, given.labels)
    error = float(np.abs(found[0].flatten(1).T.numpy() - expected).max())
    print(f"{name}: largest error of a marginal {error:.5f}")
    assert error < 0.005
