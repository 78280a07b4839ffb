"""The sampler's law on a graph is the model's, and this test can tell: planted faults fail the checks that the sampler passes.

Cycles, a clique of four, factors of three and four nodes, kinds, gates and nodes of fewer labels, against listing every
labelling; from the initial draw after as many sweeps as the enumerated transition law needs, and from exact samples. Every
label of a chain against rules 1 to 3 read aloud. 10^5 chains by default, 10^6 with ``-m slow``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import enumeration, factor_oracle
from tests.factor_oracle import Graph
from tests.graph_cases import FORMS, case, factor_graph, logits, model
from tests.test_exactness import BATCHES, Record, assert_law
from tritoncrf import FactorCRF, FactorGraph, Sampler
from tritoncrf.engines import Ends, Factors, load

GRAPHS, REPLICAS = 20, 5000
UPDATES = ("gather", "incremental")
Fault = Callable[[pytest.MonkeyPatch], None]


def ready(arity: int) -> list[str]:
    names = []
    for name in ("torch", "numba"):
        engine = load(name)
        if not isinstance(engine, str) and engine.missing(torch.device("cpu"), 3, arity) is None:
            names.append(name)
    return names


def engines(name: str) -> list[str]:
    return ready(max(table.ndim - 1 for table in case(name).tables))


ENGINES = sorted({engine for name in FORMS for engine in engines(name)}, reverse=True)
CASES = [(engine, name) for name in FORMS for engine in engines(name)]


def histogram(graph: Graph, labels: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Of labelings ``[R, G * V]``."""
    digits = graph.labels ** np.arange(graph.nodes)[::-1]
    numbers = labels.reshape(-1, graph.nodes).numpy().astype(np.int64) @ digits
    return np.bincount(numbers, minlength=graph.labels**graph.nodes)


def sweeps_needed(graph: Graph, law: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
    """After how many sweeps the initial law's error adds less than 0.1 to the expected chi-square of 10^6 chains."""
    start = enumeration.joint(replace(graph, factors=[]).energies(enumeration.labellings(graph.nodes, graph.labels)))
    possible = law > 0
    for sweeps in range(1, 200):
        start = factor_oracle.after_sweep(graph, start, law)
        if 10**6 * float(((start - law)[possible] ** 2 / law[possible]).sum()) < 0.1:
            return sweeps
    raise AssertionError("these chains do not mix")


def check_law(name: str, engine: str, update: str, batches: int, record: Record, given: FactorGraph | None = None) -> None:
    graph = case(name)
    _, law = graph.law()
    sweeps, counts = sweeps_needed(graph, law), np.zeros(graph.labels**graph.nodes, np.int64)
    batch = FactorGraph.batch([factor_graph(graph)] * GRAPHS) if given is None else given
    for number in range(batches):
        sampler = Sampler(model(graph), engine, seed=2016, update=update)
        index = torch.arange(GRAPHS) + number * GRAPHS
        chains = sampler.init(logits(graph).repeat(GRAPHS, 1), index=index, graph=batch, replicas=REPLICAS)
        counts += histogram(graph, sampler.run(chains, sweeps).labels)
    assert counts[law == 0].sum() == 0
    assert_law(counts[law > 0], law[law > 0], record, f"{name} {engine} {update}, {sweeps} sweeps from the initial draw")


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("engine", "name"), CASES)
def test_law_from_the_initial_draw(engine: str, name: str, update: str, batches: int, record_property: Record) -> None:
    check_law(name, engine, update, batches, record_property)


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize(("engine", "name"), CASES)
def test_law_stays(engine: str, name: str, batches: int, record_property: Record) -> None:
    graph = case(name)
    listed, law = graph.law()
    batch = FactorGraph.batch([factor_graph(graph)] * GRAPHS)
    for sweeps, update in ((1, "gather"), (2, "incremental"), (7, "auto")):
        counts = np.zeros(len(law), np.int64)
        for number in range(batches):
            sampler = Sampler(model(graph), engine, seed=2016, update=update)
            drawn = np.random.default_rng(1000 * sweeps + number).choice(len(law), (REPLICAS, GRAPHS), p=law)
            exact = torch.from_numpy(listed[drawn]).flatten(1)
            chains = sampler.init(
                logits(graph).repeat(GRAPHS, 1), exact, torch.arange(GRAPHS) + number * GRAPHS, graph=batch, replicas=REPLICAS
            )
            assert torch.equal(chains.labels.long(), exact)
            counts += histogram(graph, sampler.run(chains, sweeps).labels)
        assert_law(counts[law > 0], law[law > 0], record_property, f"{name} {engine} {update}, {sweeps} sweeps from exact samples")


def wrong_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another member's label counts with a neighbouring axis's stride."""
    from tritoncrf.engines import factors

    strides = factors._strides

    def wrong(arity: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        own, others = strides(arity, number, device)
        return own, others.flip(1) if arity > 2 else others

    monkeypatch.setattr(factors, "_strides", wrong)


def transposed_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every end reads its table's axes the other way round."""
    change(monkeypatch, lambda part: replace(part, axis=(part.arity - 1 - part.axis.long()).to(torch.uint8)))


def kinds_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, lambda part: replace(part, table=part.table.roll(1)))


def gates_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, lambda part: replace(part, gate=None))


def change(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Ends], Ends]) -> None:
    relisted(monkeypatch, lambda factors: replace(factors, ends=tuple(map(fault, factors.ends))))


def relisted(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Factors], Factors]) -> None:
    from tritoncrf import incidence

    build = incidence.factors_of
    monkeypatch.setattr(incidence, "factors_of", lambda *given: fault(build(*given)))


def node_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of more than two nodes name one of them twice."""
    change(monkeypatch, lambda part: replace(part, others=part.others[:, :1].repeat(1, part.arity - 1)))


def shared_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of one factor are drawn at once."""
    relisted(monkeypatch, lambda factors: replace(factors, colors=torch.zeros_like(factors.colors), num_colors=1))


def merged_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last colour joins the one before it."""
    relisted(monkeypatch, lambda factors: replace(
        factors, colors=factors.colors.clamp(max=factors.num_colors - 2), num_colors=factors.num_colors - 1
    ))  # fmt: skip


FAULTS: list[tuple[str, Fault]] = [
    ("third", wrong_stride), ("clique", wrong_stride), ("cycle", transposed_tables), ("third", transposed_tables),
    ("cycle", kinds_shifted), ("clique", gates_dropped), ("third", gates_dropped), ("cycle", shared_colors),
    ("third", node_twice), ("clique", node_twice), ("clique", merged_colors), ("third", merged_colors),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda part: getattr(part, "__name__", part))
def test_planted_faults_fail(name: str, fault: Fault, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match="chi-square"):
        check_law(name, "torch", "gather", 1, record_property)


def test_a_factor_that_names_a_node_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"members\[0\]: expected a factor's nodes to differ, got \[2, 2\] in factor 1"):
        FactorGraph(3, [torch.tensor([[0, 1], [2, 2]])])
    # Written behind its back, it has no colours.
    given = factor_graph(case("third"))
    given.members[1][:, 1] = given.members[1][:, 0]
    with pytest.raises(ValueError, match="expected the nodes of every factor to differ in colour"):
        Sampler(model(case("third")), "torch").init(logits(case("third")), graph=given)


def scaled(graph: Graph, scale: float) -> FactorCRF:
    """The model with tables off the grid."""
    crf = model(graph)
    with torch.no_grad():
        for table in crf.factors:
            table.mul_(scale)
    return crf


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("engine", "name"), CASES)
def test_every_label_is_the_contract_s(engine: str, name: str, update: str, beta: float) -> None:
    """Alone and in a batch of graphs of other sizes, with a clamped node, on three replicas."""
    graph, sweeps, seed = case(name), 6, 2**40 + 7
    crf = scaled(graph, 0.77)
    rounded = replace(graph, tables=[enumeration.on_grid(table.detach().numpy()) for table in crf.factors])
    given, own = factor_graph(graph), logits(graph) * 1.3
    other = FactorGraph(9, [torch.tensor([[8, *range(arity - 1)]]) for arity in crf.arities])
    clamp, held = torch.zeros(graph.nodes, dtype=torch.bool), torch.full((graph.nodes,), 255)
    clamp[1], held[1] = True, 2
    sampler = Sampler(crf, engine, seed, update=update)
    batch = FactorGraph.batch([other, given, other])
    noise = torch.randn(9, graph.labels, generator=torch.Generator().manual_seed(0))
    for graphs, first, index in ((given, 0, [5]), (batch, 9, [2**33, 5, 1])):
        whole = graphs is given
        rows = own if whole else torch.cat([noise, own, noise])
        fixed = clamp if whole else torch.cat([torch.zeros(9, dtype=torch.bool), clamp, torch.zeros(9, dtype=torch.bool)])
        start = held if whole else torch.cat([torch.full((9,), 255), held, torch.full((9,), 255)])
        chains = sampler.init(
            rows, start, torch.tensor(index), graph=graphs, clamp=fixed, replicas=3, phase="free",
            count=torch.zeros(len(index), dtype=torch.int64),
        )  # fmt: skip
        begun = chains.labels[:, first : first + graph.nodes]
        done = sampler.run(chains, sweeps, beta=beta).labels[:, first : first + graph.nodes]
        for replica in range(3):
            expected = factor_oracle.chain(
                rounded, own.numpy(), sweeps, seed=seed, index=5, replica=replica, beta=beta, held={1: 2}
            )
            assert np.array_equal(begun[replica].numpy(), expected[0])
            assert np.array_equal(done[replica].numpy(), expected[1])


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("engine", "name"), CASES)
def test_factors_of_a_node_that_does_not_exist_say_nothing(engine: str, name: str, update: str) -> None:
    graph, mask = case(name), torch.ones(case(name).nodes, dtype=torch.bool)
    mask[2] = False
    sampler = Sampler(model(graph), engine, 3, update=update)
    given = logits(graph)
    given[2] = torch.nan
    chains = sampler.init(given, graph=factor_graph(graph), mask=mask)
    expected = factor_oracle.chain(graph, given.numpy(), 5, seed=3, purpose=2, missing=(2,))
    assert np.array_equal(chains.labels[0].numpy(), expected[0])
    assert np.array_equal(sampler.run(chains, 5).labels[0].numpy(), expected[1])


def test_energies_are_the_oracle_s() -> None:
    for name in FORMS:
        graph = case(name)
        listed, _ = graph.law()
        expected = graph.energies(listed)
        possible = np.isfinite(expected)
        whole = model(graph).energy(logits(graph), torch.from_numpy(listed[possible]), factor_graph(graph))
        # A gate's product is rounded where it is sampled, not here.
        assert np.abs(whole[0].detach().double().numpy() - expected[possible]).max() <= len(graph.factors) * 2.0**-13 + 1e-5
