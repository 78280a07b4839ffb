"""Graphs: what they accept, how they batch, and colours against first fit written out."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.graph_cases import one_sentence, random_members
from tritoncrf import graph_coloring
from tritoncrf.graph_builders import grid
from tritoncrf.graphs import FactorGraph


def colors_written_out(nodes: int, members: list[Tensor]) -> list[int]:
    around: list[set[int]] = [set() for _ in range(nodes)]
    for part in members:
        for factor in part.tolist():
            for a, b in itertools.permutations(factor, 2):
                around[a].add(b)
    color: list[int] = []
    for v in range(nodes):
        taken = {color[u] for u in around[v] if u < v}
        color.append(next(c for c in itertools.count() if c not in taken))
    return color


@pytest.mark.parametrize("factors", [{2: 300}, {3: 80}, {2: 200, 3: 60, 4: 40}, {2: 0}, {4: 3, 2: 0}])
@pytest.mark.parametrize("compiled", [True, False])
def test_colors_are_first_fit(factors: dict[int, int], compiled: bool) -> None:
    members = random_members(120, factors)
    found = graph_coloring.first_fit(120, [part.numpy() for part in members], compiled)
    assert found.tolist() == colors_written_out(120, members)
    assert FactorGraph(120, members).coloring().tolist() == found.tolist()


def test_a_graphs_colors_do_not_depend_on_its_batch() -> None:
    parts = [FactorGraph(40 + n, random_members(40 + n, {2: 90, 3: 20}, n)) for n in range(3)]
    whole, early = FactorGraph.batch(parts), [one.coloring() for one in parts]
    late = FactorGraph.batch(parts)
    assert torch.equal(whole.coloring(), torch.cat(early))
    assert torch.equal(late.coloring(), torch.cat(early))
    assert whole.first.tolist() == [0, 40, 81, 123]
    assert whole.num_graphs == 3
    assert whole.num_colors == max(one.num_colors for one in parts)
    nested = FactorGraph.batch([FactorGraph.batch(parts[:2]), parts[2]])
    assert torch.equal(nested.first, whole.first)
    assert all(torch.equal(a, b) for a, b in zip(nested.members, whole.members, strict=True))


def test_colors_that_share_a_factor_are_found() -> None:
    members = [part.numpy() for part in random_members(60, {2: 100, 3: 30})]
    color = graph_coloring.first_fit(60, members)
    node, other = members[1][7, 0], members[1][7, 2]
    color[other] = color[node]
    for compiled in (True, False):
        with pytest.raises(ValueError, match="coloring: expected the nodes of every factor to differ in colour, got"):
            graph_coloring.validate(color, members, compiled)


def test_a_graph_of_too_many_colors_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph_coloring.MAX_COLORS == 10_000
    monkeypatch.setattr(graph_coloring, "MAX_COLORS", 6)
    clique = [np.array(list(itertools.combinations(range(n), 2))) for n in (6, 7)]
    for compiled in (True, False):
        assert graph_coloring.first_fit(6, clique[:1], compiled).tolist() == list(range(6))
        with pytest.raises(ValueError, match=r"members: expected .* at most 6 colours, got node 6 with .*\(6 factors"):
            graph_coloring.first_fit(7, clique[1:], compiled)


@pytest.mark.parametrize("hub", [0, 30_000])
def test_a_hub_of_many_leaves_needs_two_colors(hub: int) -> None:
    leaves = torch.tensor([v for v in range(30_001) if v != hub])
    graph = FactorGraph(30_001, [torch.stack([torch.full_like(leaves, hub), leaves], 1)])
    assert graph.num_colors == 2
    assert graph_coloring.first_fit(30_001, [graph.members[0].numpy()], False).max() == 1


def test_threads_ask_for_colors_at_once() -> None:
    graph, found = grid((40, 40), [((0, 0), (0, 1)), ((0, 0), (1, 0))]), []
    jobs = [threading.Thread(target=lambda: found.append(graph.coloring())) for _ in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len({part.data_ptr() for part in found}) == 1
    assert found[0].tolist() == [(y + x) % 2 for y in range(40) for x in range(40)]


def test_what_is_given_is_copied() -> None:
    members, kind, gate = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1], dtype=torch.uint8), torch.tensor([0.5, 0.25])
    graph = FactorGraph(3, [members], [kind], [gate])
    members[0, 1], kind[0], gate[0] = 0, 9, 7.0
    assert graph.members[0].tolist() == [[0, 1], [1, 2]]
    assert graph.kind[0].tolist() == [0, 1]  # type: ignore[union-attr]
    assert graph.gate[0].tolist() == [0.5, 0.25]  # type: ignore[union-attr]


def test_gates_are_rounded_and_gradients_pass() -> None:
    gate = torch.tensor([0.1, 1.0, 0.0, 0.003], requires_grad=True)
    graph = FactorGraph(5, [torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4]])], gate=[gate])
    used = graph.gate[0]
    assert used is not None
    assert used.tolist() == [13 / 128, 1.0, 0.0, 0.0]
    (FactorGraph.batch([graph, graph]).gate[0] * torch.arange(8.0)).sum().backward()  # type: ignore[operator, no-untyped-call]
    assert gate.grad is not None
    assert gate.grad.tolist() == [4.0, 6.0, 8.0, 10.0]


def test_a_batch_fills_in_kinds_and_gates() -> None:
    one = FactorGraph(2, [torch.tensor([[0, 1]])], kind=[torch.tensor([3], dtype=torch.uint8)])
    other = FactorGraph(2, [torch.tensor([[1, 0]])], gate=[torch.tensor([0.5])])
    both = FactorGraph.batch([one, other, one])
    assert both.kind[0].tolist() == [3, 0, 3]  # type: ignore[union-attr]
    assert both.gate[0].tolist() == [1.0, 0.5, 1.0]  # type: ignore[union-attr]
    assert both.members[0].tolist() == [[0, 1], [3, 2], [4, 5]]
    again = both.having(kind=[None], gate=[torch.zeros(3)])
    assert (again.kind, again.gate[0].tolist()) == ((None,), [0.0, 0.0, 0.0])  # type: ignore[union-attr]
    assert again.coloring() is both.coloring()


def test_a_graph_travels() -> None:
    graph = FactorGraph.batch([FactorGraph(30, random_members(30, {2: 50, 3: 9}, n)) for n in (1, 2)])
    graph.coloring()
    for twin in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), graph.to("cpu")):
        assert repr(twin) == repr(graph) == "FactorGraph(2 graphs, 60 nodes, 100 factors of 2, 18 factors of 3)"
        assert torch.equal(twin.coloring(), graph.coloring())
        assert torch.equal(twin.first, graph.first)


PAIR = torch.tensor([[0, 1], [1, 2]])
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no nodes": (lambda: FactorGraph(0, [PAIR]), "num_nodes: expected an integer from 1 to 2147483647, got 0"),
    "no classes": (lambda: FactorGraph(3, []), "members: expected a list of integer tensors"),
    "a tensor": (lambda: FactorGraph(3, PAIR), "members: expected a list of integer"),  # type: ignore[arg-type]
    "out of range": (
        lambda: FactorGraph(3, [PAIR, torch.tensor([[0, 1, 2], [1, 2, 3]])]),
        r"members\[1\]: expected nodes from 0 to 2, got 3 in factor 1",
    ),
    "negative": (lambda: FactorGraph(3, [PAIR - 1]), r"members\[0\]: expected nodes from 0 to 2, got -1 in factor 0"),
    "doubled": (
        lambda: FactorGraph(3, [torch.tensor([[0, 1, 2], [2, 1, 2]])]),
        r"members\[0\]: expected a factor's nodes to differ, got \[2, 1, 2\] in factor 1",
    ),
    "arity 5": (lambda: FactorGraph(9, [torch.arange(5)[None]]), r"members\[0\]: expected shape \[F, k\] with k from 2 to 4"),
    "arity 1": (lambda: FactorGraph(9, [torch.arange(5)[:, None]]), r"members\[0\]: expected shape \[F, k\] with k from 2"),
    "floats": (lambda: FactorGraph(3, [PAIR.float()]), r"members\[0\]: expected an integer dtype, got torch.float32"),
    "kinds of other length": (
        lambda: FactorGraph(3, [PAIR], kind=[torch.zeros(3, dtype=torch.uint8)]),
        r"kind\[0\]: expected shape \[2\], got \[3\]",
    ),
    "kinds of int64": (
        lambda: FactorGraph(3, [PAIR], kind=[torch.zeros(2, dtype=torch.int64)]),
        r"kind\[0\]: expected torch.uint8, got torch.int64",
    ),
    "kinds of too few classes": (
        lambda: FactorGraph(3, [PAIR, PAIR], kind=[None]),
        "kind: expected a list with a tensor .* for each of 2 classes, got 1 of them",
    ),
    "gates above 1": (
        lambda: FactorGraph(3, [PAIR], gate=[torch.tensor([0.5, 1.5])]),
        r"gate\[0\]: expected numbers from 0 to 1, got 1.5 for factor 1",
    ),
    "gates NaN": (
        lambda: FactorGraph(3, [PAIR], gate=[torch.tensor([torch.nan, 1])]),
        r"gate\[0\]: expected numbers from 0 to 1, got nan for factor 0",
    ),
    "gates of bytes": (
        lambda: FactorGraph(3, [PAIR], gate=[torch.ones(2, dtype=torch.uint8)]),
        r"gate\[0\]: expected a floating-point dtype, got torch.uint8",
    ),
    "an empty batch": (lambda: FactorGraph.batch([]), r"graphs: expected a list of at least one FactorGraph, got \[\]"),
    "a batch of tensors": (lambda: FactorGraph.batch([PAIR]), "graphs: expected a list of at least"),  # type: ignore[list-item]
    "unlike graphs": (
        lambda: FactorGraph.batch([FactorGraph(3, [PAIR]), FactorGraph(3, [PAIR, PAIR])]),
        r"graphs: expected factors of arities \(2,\) on cpu, as the first graph's, got \(2, 2\) on cpu in graph 1",
    ),
    "a factor between graphs": (
        lambda: FactorGraph(3, [PAIR]).divided(torch.tensor([0, 2, 3])),
        r"first: expected factors within one graph, got nodes \[1, 2\] of graphs \[0, 1\] in factor 1 of class 0",
    ),
    "an empty graph in a batch": (
        lambda: FactorGraph(3, [PAIR]).divided(torch.tensor([0, 3, 3])),
        r"first: expected numbers that rise from 0 to 3, for graphs of at least one node, got \[0, 3, 3\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str) -> None:
    one_sentence(*BAD[name])
