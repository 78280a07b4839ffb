"""Builders against graphs written out by hand, and recipes against the potentials they stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests import enumeration
from tests.graph_cases import one_sentence
from tritoncrf import graph_recipes as recipes
from tritoncrf.graph_builders import from_edges, from_networkx, grid, superpixels
from tritoncrf.graphs import FactorGraph

Array = npt.NDArray[Any]


def test_edges_of_both_directions_are_one_factor() -> None:
    edge_index = torch.tensor([[3, 1, 1, 0, 2, 1, 3], [1, 3, 0, 1, 2, 0, 2]])
    graph = from_edges(4, edge_index)
    assert graph.members[0].tolist() == [[0, 1], [1, 3], [2, 3]]
    kind = torch.tensor([1, 1, 2, 2, 9, 2, 3], dtype=torch.uint8)
    gate = torch.tensor([0.5, 0.5, 0.25, 0.25, 0, 0.25, 1.0])
    seen = from_edges(4, edge_index, kind=kind, gate=gate)
    assert seen.kind[0].tolist() == [2, 1, 3]  # type: ignore[union-attr]
    assert seen.gate[0].tolist() == [0.25, 0.5, 1.0]  # type: ignore[union-attr]
    ordered = from_edges(4, edge_index, kind=kind, gate=gate, directed=True)
    assert ordered.members[0].tolist() == [[3, 1], [1, 3], [1, 0], [0, 1], [1, 0], [3, 2]]
    assert ordered.kind[0].tolist() == [1, 1, 2, 2, 2, 3]  # type: ignore[union-attr]
    kind[1] = 0
    with pytest.raises(ValueError, match="kind: expected the same for both directions of an edge, got 1 in column 0 and 0 in"):
        from_edges(4, edge_index, kind=kind)


def test_edges_of_a_batch_know_their_graphs() -> None:
    edge_index = torch.tensor([[0, 1, 2, 3, 3], [1, 0, 3, 2, 4]])
    graph = from_edges(5, edge_index, ptr=torch.tensor([0, 2, 5]))
    parts = [from_edges(2, edge_index[:, :2]), from_edges(3, edge_index[:, 2:] - 2)]
    joined = FactorGraph.batch(parts)
    assert torch.equal(graph.first, joined.first)
    assert torch.equal(graph.members[0], joined.members[0])
    with pytest.raises(ValueError, match="first: expected factors within one graph"):
        from_edges(5, edge_index, ptr=torch.tensor([0, 3, 5]))


def test_gates_of_edges_keep_their_gradient() -> None:
    gate = torch.tensor([0.5, 1.0, 0.5], requires_grad=True)
    found = from_edges(3, torch.tensor([[1, 2, 0], [0, 1, 1]]), gate=gate).gate[0]
    assert found is not None
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert gate.grad is not None
    assert gate.grad.sum() == 2


def test_a_graph_without_edges_has_nodes() -> None:
    for edges in (torch.zeros(2, 0, dtype=torch.int64), torch.tensor([[1], [1]])):
        graph = from_edges(3, edges)
        assert (graph.num_nodes, graph.members[0].shape, graph.num_colors) == (3, (0, 2), 1)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (1, 4), (3, 2, 4)])
def test_cliques_of_a_grid(shape: tuple[int, ...]) -> None:
    one = tuple(int(axis == len(shape) - 1) for axis in range(len(shape)))
    back = tuple(-int(axis == 0) for axis in range(len(shape)))
    none = (0,) * len(shape)
    cliques = [(none, one), (none, one, back), (back, tuple(2 * s for s in one))]
    if len(shape) == 1:
        cliques[1] = (none, one, (3,))
    graph = grid(shape, cliques)
    number = {y: n for n, y in enumerate(itertools.product(*map(range, shape)))}
    for clique, members in zip(cliques, graph.members, strict=True):
        expected = []
        for y in number:
            places = [tuple(a + b for a, b in zip(y, position, strict=True)) for position in clique]
            if all(place in number for place in places):
                expected.append([number[place] for place in places])
        # An anchor may lie off the grid where no position is the clique's own 0.
        if none in clique:
            assert members.tolist() == expected
        else:
            assert sorted(members.tolist()) == members.tolist()
            assert len(members) == math.prod(n - 2 * a - abs(b) for n, a, b in zip(shape, one, back, strict=True) if n)


def test_networkx_graphs_keep_the_order_of_their_nodes() -> None:
    networkx = pytest.importorskip("networkx")
    named = networkx.Graph()
    named.add_nodes_from("cab")
    named.add_edge("a", "b", kind=2, weight=0.5)
    named.add_edge("c", "b", kind=1, weight=1.0)
    graph = from_networkx(named, kind="kind", gate="weight")
    assert graph.members[0].tolist() == [[0, 2], [1, 2]]
    assert graph.kind[0].tolist() == [1, 2]  # type: ignore[union-attr]
    assert graph.gate[0].tolist() == [1.0, 0.5]  # type: ignore[union-attr]
    arrows = networkx.DiGraph([(1, 0), (0, 1), (0, 2)])
    assert from_networkx(arrows).members[0].tolist() == [[0, 1], [1, 0], [1, 2]]
    with pytest.raises(ValueError, match="gate: expected an attribute 'length' of every edge, got none of"):
        from_networkx(named, gate="length")
    with pytest.raises(TypeError, match="graph: expected a networkx graph, got Tensor"):
        from_networkx(torch.zeros(2))  # type: ignore[arg-type]
    named.edges["a", "b"]["kind"] = 300
    with pytest.raises(ValueError, match="kind: expected kinds from 0 to 255, got 300"):
        from_networkx(named, kind="kind")


@pytest.mark.parametrize("shape", [(7, 9), (4, 5, 6), (12,)])
def test_superpixels_against_a_loop(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    segments = random.choice([-1, 2, 3, 5, 8, 13], size=shape)
    found = superpixels(segments)
    numbers = sorted(set(segments[segments >= 0].tolist()))
    contact: dict[tuple[int, int], int] = {}
    for y in np.ndindex(*shape):
        for axis in range(len(shape)):
            z = tuple(v + (a == axis) for a, v in enumerate(y))
            if z[axis] < shape[axis]:
                pair = sorted((int(segments[y]), int(segments[z])))
                if pair[0] >= 0 and pair[0] != pair[1]:
                    key = numbers.index(pair[0]), numbers.index(pair[1])
                    contact[key] = contact.get(key, 0) + 1
    assert [tuple(pair) for pair in found.graph.members[0].tolist()] == sorted(contact)
    assert found.contact.tolist() == [contact[key] for key in sorted(contact)]
    features = torch.from_numpy(random.normal(size=(3, *shape))).requires_grad_()
    means = torch.stack([features[:, torch.from_numpy(segments == n)].mean(1) for n in numbers])
    torch.testing.assert_close(found.mean(features), means)
    back = found.spread(torch.tensor(numbers), outside=-1)
    assert torch.equal(back, torch.from_numpy(segments))
    assert found.spread(means).shape == (*shape, 3)
    found.mean(features).sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert float(features.grad.sum()) == pytest.approx(3 * len(numbers))
    assert torch.equal(superpixels(torch.from_numpy(segments)).node, found.node)


def energies(labels: Array, logits: Tensor, graph: FactorGraph, tables: list[Tensor]) -> Array:
    """E of labellings ``[M, V]``, factor by factor, +inf where a label is forbidden; tables ``[kinds, L, ..]`` a class."""
    total = np.zeros(len(labels))
    for v, scores in enumerate(logits.double().numpy()):
        total -= scores[labels[:, v]]
    for c, part in enumerate(graph.members):
        kind, gate = graph.kind[c], graph.gate[c]
        for f, nodes in enumerate(part.tolist()):
            table = tables[c][0 if kind is None else int(kind[f])].double().numpy()
            total += (1.0 if gate is None else float(gate[f])) * table[tuple(labels[:, v] for v in nodes)]
    return total


def summed_out(logits: Tensor, graph: FactorGraph, tables: list[Tensor], nodes: int, labels: int) -> Array:
    """-log of the sum over the added nodes of exp(-E), for every labelling of the first ones, in which label L is not used."""
    every = enumeration.labellings(len(logits), logits.shape[1])
    energy = energies(every, logits, graph, tables)
    weight = np.exp(-energy).reshape([logits.shape[1]] * nodes + [-1]).sum(-1)
    found: Array = -np.log(weight[(slice(0, labels),) * nodes])
    return found


def test_a_patch_costs_a_robust_potts_potential() -> None:
    logits, limit, weight = torch.randn(4, 2, generator=torch.manual_seed(1)), torch.tensor([1.5, 0.7]), 0.9
    patches = [[0, 1, 2], [1, 3]]
    pairs = [(v, p) for p, patch in enumerate(patches) for v in patch]
    membership = torch.tensor(pairs).T
    graph = recipes.with_patches(from_edges(4, torch.tensor([[0, 2], [1, 3]])), membership)
    assert graph.num_nodes == 6
    edge = torch.nn.functional.pad(torch.tensor([[[0.3, -0.2], [0.4, 0.1]]]), (0, 1, 0, 1), value=99.0)
    given = recipes.patch_logits(logits, limit)
    found = summed_out(given, graph, [edge, recipes.patch_table(2, weight)], 4, 2)
    for y in itertools.product(range(2), repeat=4):
        expected = -sum(float(logits[v, y[v]]) for v in range(4)) + float(edge[0, y[0], y[1]] + edge[0, y[2], y[3]])
        for patch, most in zip(patches, limit.tolist(), strict=True):
            costs = [most, *(weight * sum(y[v] != label for v in patch) for label in range(2))]
            expected -= math.log(sum(math.exp(-cost) for cost in costs))
        assert found[y] == pytest.approx(expected, abs=1e-5)


def test_label_costs_and_labels_together() -> None:
    logits, cost, weight, pair = torch.randn(3, 3, generator=torch.manual_seed(2)), torch.tensor([0.5, 2.0, 1.0]), 1.2, 0.8
    plain = recipes.with_label_nodes(from_edges(3, torch.tensor([[0], [1]])), 3)
    edge, uses = torch.rand(1, 3, 3), recipes.label_table(3, weight)
    found = summed_out(recipes.label_logits(logits, cost), plain, [edge, uses], 3, 3)
    both = recipes.with_label_nodes(from_edges(3, torch.tensor([[0], [1]])), 3, torch.tensor([[0, 2], [1, 2]]))
    together = torch.zeros(2, 3, 3)
    together[1, 1, 1] = pair
    more = summed_out(recipes.label_logits(logits, cost), both, [edge, uses, together], 3, 3)
    for y in itertools.product(range(3), repeat=3):
        base = -sum(float(logits[v, y[v]]) for v in range(3)) + float(edge[0, y[0], y[1]])
        unused = [math.exp(-weight * y.count(label)) for label in range(3)]
        used = [math.exp(-float(part)) for part in cost]
        single = [a + b for a, b in zip(unused, used, strict=True)]
        assert found[y] == pytest.approx(base - sum(map(math.log, single)), abs=1e-5)
        joined = single[1] * single[2] - used[1] * used[2] * (1 - math.exp(-pair))
        assert more[y] == pytest.approx(base - math.log(single[0] * joined), abs=1e-5)


def test_chains_and_trees() -> None:
    graph = recipes.chain(5, torch.tensor([[0, 3], [4, 1]]))
    assert [part.tolist() for part in graph.members] == [[[0, 1], [1, 2], [2, 3], [3, 4]], [[0, 3], [4, 1]]]
    assert recipes.chain(1).num_colors == 1
    forest = recipes.tree(torch.tensor([3, -1, 0, 1, -1, 4]))
    assert forest.members[0].tolist() == [[3, 0], [0, 2], [1, 3], [4, 5]]
    assert forest.num_colors <= 3
    deep = recipes.tree(torch.arange(-1, 4095))
    assert deep.num_colors == 2


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "shape": (lambda: from_edges(3, torch.zeros(4, 2, dtype=torch.int64)), r"edge_index: expected shape \[2, E\], got"),
    "floats": (lambda: from_edges(3, torch.zeros(2, 2)), "edge_index: expected an integer dtype, got"),
    "range": (
        lambda: from_edges(3, torch.tensor([[0, 1], [1, 3]])),
        r"edge_index: expected nodes from 0 to 2, got \[1, 3\] in column 1",
    ),
    "kinds": (
        lambda: from_edges(3, torch.tensor([[0], [1]]), kind=torch.zeros(2, dtype=torch.uint8)),
        r"kind: expected shape \[1\], one for each column, got \[2\]",
    ),
    "no grid": (lambda: grid((), [((0,), (1,))]), r"shape: expected at least one, got \(\)"),
    "no cliques": (lambda: grid((3, 3), []), r"cliques: expected at least one, got \[\]"),
    "a position twice": (lambda: grid((3, 3), [((0, 0), (0, 0))]), "cliques: expected different positions"),
    "positions of another dimension": (lambda: grid((3, 3), [((0,), (1,))]), "cliques: expected different positions of 2"),
    "a clique of five": (lambda: grid((9,), [[(n,) for n in range(5)]]), r"members\[0\]: expected shape \[F, k\] with"),
    "segments of floats": (lambda: superpixels(torch.zeros(3, 3)), "segments: expected integers, got float32"),
    "no segment": (lambda: superpixels(np.full((3, 3), -1)), r"segments: expected at least one segment, got \[3, 3\]"),
    "features": (
        lambda: superpixels(np.zeros((3, 3), int)).mean(torch.zeros(2, 3, 4)),
        r"features: expected floats of shape \[C, 3, 3\], got torch.float32 \[2, 3, 4\]",
    ),
    "values": (lambda: superpixels(np.zeros((3, 3), int)).spread(torch.zeros(2)), r"values: expected shape \[1, ...\], got"),
    "a circle": (lambda: recipes.tree(torch.tensor([-1, 2, 3, 1])), "parents: expected no circle, got one above node 1"),
    "a parent": (lambda: recipes.tree(torch.tensor([-1, 4])), "parents: expected nodes from 0 to 1, or -1, got -1 to 4"),
    "membership": (
        lambda: recipes.with_patches(recipes.chain(3), torch.tensor([[0, 3], [0, 0]])),
        r"membership: expected nodes from 0 to 2 and patches from 0, got \[0, 0\] to \[3, 0\]",
    ),
    "a batch": (
        lambda: recipes.with_label_nodes(FactorGraph.batch([recipes.chain(3)] * 2), 3),
        "graph: expected one graph, to be batched afterwards, got a batch of 2",
    ),
    "pairs": (
        lambda: recipes.with_label_nodes(recipes.chain(3), 3, torch.tensor([[0, 3]])),
        "pairs: expected labels from 0 to 2, got 0 to 3",
    ),
    "costs": (lambda: recipes.label_logits(torch.zeros(3, 3), torch.zeros(2)), r"cost: expected floats of shape \[3\], got"),
    "limits": (lambda: recipes.patch_logits(torch.zeros(3, 3), torch.zeros(2, 1)), r"limit: expected floats of shape \[P\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str) -> None:
    one_sentence(*BAD[name])
