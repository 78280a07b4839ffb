"""A step of network and loss on graphs, compiled whole: the same numbers, no graph break, and no graph that is never let go."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.graph_cases import one_sentence
from tests.test_factor_crf import ENGINE, pairs, ragged
from tritoncrf import ChainStore, CRFLoss, FactorCRF, FactorGraph
from tritoncrf.visit_operator import OPERATOR

CARRIES = pytest.mark.skipif(not OPERATOR, reason="this torch cannot carry a visit through a compiler")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """A step that could not be compiled is not tried again in a process, whatever other tests make of it."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def compiled_steps(compiled: bool, method: str, reduction: str, train: bool, learned: bool) -> list[Tensor]:
    """Values, gradients and chains of steps on batches of one to three graphs."""
    # Its gates are drawn.
    torch.manual_seed(3)
    crf, graphs, fields, targets = ragged()
    weight = torch.zeros((), requires_grad=True)
    store = ChainStore([(7,), (4,), (9,)], seed=7) if method == "pcd" else None
    loss = CRFLoss(crf, method=method, chains=store, engine=ENGINE, reduction=reduction, seed=None if store else 4)
    loss.train(train)

    def step(field: Tensor, target: Tensor, index: Tensor, graph: FactorGraph) -> Tensor:
        value: Tensor = loss(field * 2, target, index, graph=graph)
        # How many values there are is known when the step is compiled.
        return value + 10 * value.numel()

    run = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
    found = []
    for chosen in ([0, 1, 2], [1, 2, 0], [2]):
        graph = FactorGraph.batch([graphs[n] for n in chosen])
        if learned:
            gate = torch.sigmoid(weight + torch.linspace(-2, 2, len(graph.members[0])))
            graph = graph.having(gate=[gate, None])
        field = torch.cat([fields[n] for n in chosen]).requires_grad_()
        value = run(field, torch.cat([targets[n] for n in chosen]), torch.tensor(chosen), graph)
        found.append(value.detach())
        if train:
            # Nodes of different graphs are told apart.
            (value * torch.arange(1.0, 1.0 + value.numel()).view(value.shape)).sum().backward()  # type: ignore[no-untyped-call]
            parts = (field.grad, weight.grad, *(table.grad for table in crf.factors))
            found += [part.clone() for part in parts if part is not None]
    return found if store is None else [*found, store.labels, store.sweeps]


@CARRIES
@pytest.mark.parametrize(
    ("method", "reduction", "train", "learned"),
    [("cd", "sum", True, True), ("pcd", "none", True, False), ("pcd", "none", False, False)],
)
def test_a_step_is_compiled_whole_and_keeps_its_numbers(method: str, reduction: str, train: bool, learned: bool) -> None:
    one, other = (compiled_steps(compiled, method, reduction, train, learned) for compiled in (False, True))
    assert len(one) == len(other) >= 3
    assert not learned or float(one[2].abs()) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@CARRIES
def test_graphs_of_other_sizes_are_not_compiled_again() -> None:
    """Twice: for the first one's sizes, and for any; and no compiled step holds a graph."""
    from torch._dynamo.testing import CompileCounterWithBackend

    crf, count = FactorCRF(3, (2,)), CompileCounterWithBackend("eager")
    gone: list[weakref.ref[FactorGraph]] = []
    loss = CRFLoss(crf, method="cd", engine=ENGINE, seed=1)
    step = torch.compile(lambda field, target, graph: loss(field, target, graph=graph), backend=count, fullgraph=True)
    for nodes in (12, 17, 14, 23):
        graph = FactorGraph(nodes, [pairs(nodes, 2 * nodes, nodes)])
        step(torch.zeros(nodes, 3, requires_grad=True), torch.zeros(nodes, dtype=torch.long), graph)
        gone.append(weakref.ref(graph))
        del graph
    gc.collect()
    assert count.frame_count == 2
    assert not any(one() is not None for one in gone)


def test_a_graph_that_is_carried_is_the_graph_itself() -> None:
    _, graphs, _, _ = ragged()
    copies = (copy.deepcopy(graphs[0]), pickle.loads(pickle.dumps(graphs[0])), FactorGraph.batch(graphs), graphs[0])
    assert all(one.carried.graph() is one for one in copies)
    carried = FactorGraph(2, [torch.tensor([[0, 1]])]).carried
    gc.collect()
    with pytest.raises(RuntimeError, match="graph: expected one that is held while a compiled step runs, got one that is gone"):
        carried.graph()


@CARRIES
def test_what_does_not_belong_together_is_said_in_a_compiled_step_too() -> None:
    crf, graphs, fields, targets = ragged()
    loss = CRFLoss(crf, method="cd", engine=ENGINE)
    run = torch.compile(loss, backend="eager")
    one_sentence(lambda: run(fields[0], targets[0]), "graph: expected a FactorGraph for a FactorCRF, got NoneType")
    one_sentence(lambda: run(fields[1], targets[0], graph=graphs[0]), r"logits: expected shape \[7, 3\], a row a node")
    sizes = torch.tensor([[7]])
    one_sentence(lambda: run(fields[0], targets[0], sizes=sizes, graph=graphs[0]), "sizes: expected None beside a graph")
    one_sentence(lambda: run(fields[0], targets[0], gates=fields[0], graph=graphs[0]), "gates: expected None beside a graph")
    assert int(loss.visits) == 0


def test_a_value_a_graph_weighs_that_graph_s_nodes() -> None:
    torch.manual_seed(3)
    crf, graphs, fields, targets = ragged()
    weights, found = torch.tensor([1.0, -3.0, 0.25]), []
    for weight in (torch.ones(3), weights):
        store = ChainStore([(7,), (4,), (9,)], seed=7)
        field = torch.cat(fields).requires_grad_()
        loss = CRFLoss(crf, chains=store, engine=ENGINE, reduction="none")
        value = loss(field, torch.cat(targets), torch.arange(3), graph=FactorGraph.batch(graphs))
        found.append(torch.autograd.grad((value * weight).sum(), field)[0])
    assert float(found[0].abs().sum()) > 0
    assert torch.equal(found[1], found[0] * weights.repeat_interleave(torch.tensor([7, 4, 9]))[:, None])


@pytest.mark.parametrize("train", [True, False])
def test_logits_that_are_none_are_said_to_be(train: bool) -> None:
    crf, graphs, _, targets = ragged()
    loss = CRFLoss(crf, method="cd", engine=ENGINE).train(train)
    one_sentence(lambda: loss([[0.0]], targets[0], graph=graphs[0]), "logits: expected a torch tensor, got list")
