"""Where does a graph come from? Edge lists, cliques on a grid, networkx graphs, and the segments of a label image.

The nodes of a grid are its pixels, row-major; a clique is a list of positions, and there is a factor wherever all of them lie
on the grid. The nodes of a label image are its segments, joined where pixels of two of them are neighbours along an axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tritoncrf import validation
from tritoncrf.graphs import FactorGraph


class NetworkxGraph(Protocol):
    """What is used of a `networkx.Graph`, of either kind."""

    @property
    def nodes(self) -> Iterable[Any]: ...

    @property
    def edges(self) -> Any: ...

    def is_directed(self) -> bool: ...


def from_edges(
    num_nodes: int, edge_index: Tensor, *, kind: Tensor | None = None, gate: Tensor | None = None, directed: bool = False,
    ptr: Tensor | None = None,
) -> FactorGraph:  # fmt: skip
    """One class of pairwise factors from a list of edges, ``edge_index`` integers ``[2, E]`` as PyTorch Geometric has it.

    A pair of nodes is one factor, whichever way round and however often it is given, with the node of the smaller number first;
    factors are sorted by their nodes. ``directed``: every column is a factor of its own, first row first, in the order given;
    both directions of an edge are then two factors. Self-loops join nothing and are left out. kind: uint8 ``[E]``; gate: floats
    ``[E]`` in [0, 1]; a pair given several times must say the same every time. ptr: integers ``[G + 1]``, where the graphs of a
    `Batch` begin, as PyTorch Geometric has it. Raises ValueError or TypeError naming the argument.

    >>> from_edges(3, torch.tensor([[0, 1, 1, 2, 2], [1, 0, 2, 1, 2]])).members[0].tolist()
    [[0, 1], [1, 2]]
    """
    num_nodes = validation.whole("num_nodes", num_nodes, 1, 2**31 - 1)
    edge_index = validation.tensor("edge_index", edge_index)
    if edge_index.dtype not in validation.INTEGERS:
        raise TypeError(f"edge_index: expected an integer dtype, got {edge_index.dtype}")
    if edge_index.dim() != 2 or len(edge_index) != 2:
        raise ValueError(f"edge_index: expected shape [2, E], got {list(edge_index.shape)}")
    columns = edge_index.shape[1]
    if columns and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        column = int(((edge_index < 0) | (edge_index >= num_nodes)).any(0).int().argmax())
        raise ValueError(
            f"edge_index: expected nodes from 0 to {num_nodes - 1}, got {edge_index[:, column].tolist()} in column {column}"
        )
    for name, value in (("kind", kind), ("gate", gate)):
        if value is not None and validation.tensor(name, value).shape != (columns,):
            raise ValueError(f"{name}: expected shape [{columns}], one for each column, got {list(value.shape)}")
    given = (kind, gate)
    if directed:
        proper = edge_index[0] != edge_index[1]
        if not bool(proper.all()):
            edge_index, (kind, gate) = edge_index[:, proper], (None if part is None else part[proper] for part in given)
        graph = FactorGraph(num_nodes, [edge_index.T], [kind], [gate])
        return graph if ptr is None else graph.divided(ptr)
    start, end = (row.cpu().numpy().astype(np.int64, copy=False) for row in edge_index)
    key = np.minimum(start, end)
    key *= num_nodes
    key += np.maximum(start, end)
    order = None
    if kind is None and gate is None:
        # One of a pair is as good as another: no need to know where each came from.
        key.sort()
    else:
        order = np.argsort(key, kind="stable")
        key = key[order]
    new = np.ones(len(key), np.bool_)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    proper_keys = new & (key // num_nodes != key % num_nodes)
    if order is not None:
        group = new.cumsum() - 1
        kind, gate = (_agreed(name, part, order, group, new, proper_keys) for name, part in (("kind", kind), ("gate", gate)))
    key = key[proper_keys]
    pairs = np.empty((len(key), 2), np.int64)
    np.divmod(key, num_nodes, out=(pairs[:, 0], pairs[:, 1]))
    del key
    graph = FactorGraph(num_nodes, [torch.from_numpy(pairs).to(edge_index.device)], [kind], [gate])
    return graph if ptr is None else graph.divided(ptr)


def _agreed(
    name: str, part: Tensor | None, order: npt.NDArray[np.int64], group: npt.NDArray[np.int64], new: npt.NDArray[np.bool_],
    proper: npt.NDArray[np.bool_],
) -> Tensor | None:  # fmt: skip
    """What each pair's columns, listed in ``order`` pair by pair, say of it."""
    if part is None:
        return None
    listed = part[torch.from_numpy(order).to(part.device)]
    heads = torch.from_numpy(np.flatnonzero(new)).to(part.device)
    differs = listed.detach() != listed.detach()[heads][torch.from_numpy(group).to(part.device)]
    if bool(differs.any()):
        place = int(differs.int().argmax())
        column, first = int(order[place]), int(order[heads[group[place]]])
        raise ValueError(
            f"{name}: expected the same for both directions of an edge, got {part[first].item():g} in column {first} and "
            f"{part[column].item():g} in column {column} (directed=True takes them as two factors)"
        )
    return listed[torch.from_numpy(np.flatnonzero(proper)).to(part.device)]


def grid(shape: Sequence[int], cliques: Sequence[Sequence[Sequence[int]]]) -> FactorGraph:
    """The cliques of a grid of any dimension, a class each; nodes are pixels, row-major.

    cliques: each a list of 2 to 4 positions, of which there is a factor wherever all lie on the grid: ``((0, 0), (0, 1),
    (1, 0))`` is a pixel, the one right of it and the one below. Factors are in the order of their pixels. Raises ValueError or
    TypeError naming the argument.

    >>> grid((2, 3), [((0, 0), (0, 1)), ((0, 0), (0, 1), (1, 0))])
    FactorGraph(6 nodes, 4 factors of 2, 2 factors of 3)
    """
    sizes = [validation.whole("shape", n, 1) for n in shape]
    if not sizes or not len(cliques):
        name, got = ("shape", shape) if not sizes else ("cliques", cliques)
        raise ValueError(f"{name}: expected at least one, got {got!r}")
    members = []
    for clique in cliques:
        offsets = [tuple(validation.whole("cliques", step, -(2**31), 2**31) for step in position) for position in clique]
        if any(len(position) != len(sizes) for position in offsets) or len(set(offsets)) != len(offsets):
            raise ValueError(f"cliques: expected different positions of {len(sizes)} numbers each, got {clique!r}")
        ranges = []
        for axis, n in enumerate(sizes):
            steps = [position[axis] for position in offsets]
            ranges.append(range(max(0, -min(steps)), min(n, n - max(steps))))
        anchors = np.stack(np.meshgrid(*map(np.array, ranges), indexing="ij"), -1).reshape(-1, len(sizes)).astype(np.int64)
        strides = np.array([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))], np.int64)
        members.append(torch.from_numpy(np.stack([(anchors + position) @ strides for position in offsets], -1)))
    return FactorGraph(math.prod(sizes), members)


def from_networkx(graph: NetworkxGraph, *, kind: str | None = None, gate: str | None = None) -> FactorGraph:
    """One class of pairwise factors from a `networkx` graph, whose nodes are numbered in the order of ``graph.nodes``.

    kind, gate: names of the attributes of its edges that hold them. Directed graphs as `from_edges` with ``directed``. Raises
    ValueError or TypeError naming the argument.
    """
    if not (hasattr(graph, "nodes") and hasattr(graph, "edges") and hasattr(graph, "is_directed")):
        raise TypeError(f"graph: expected a networkx graph, got {type(graph).__name__}")
    number = {node: n for n, node in enumerate(graph.nodes)}
    found = list(graph.edges(data=True))
    for name, attribute in (("kind", kind), ("gate", gate)):
        lacks = next((edge[:2] for edge in found if attribute is not None and attribute not in edge[2]), None)
        if lacks is not None:
            raise ValueError(f"{name}: expected an attribute {attribute!r} of every edge, got none of {lacks}")
    kinds = [edge[2][kind] for edge in found] if kind is not None else None
    if kinds is not None and any(value not in range(256) for value in kinds):
        raise ValueError(f"kind: expected kinds from 0 to 255, got {next(k for k in kinds if k not in range(256))!r}")
    ends = torch.tensor([[number[edge[0]], number[edge[1]]] for edge in found], dtype=torch.int64).view(-1, 2)
    return from_edges(
        len(number), ends.T, kind=None if kinds is None else torch.tensor(kinds, dtype=torch.uint8),
        gate=None if gate is None else torch.tensor([float(edge[2][gate]) for edge in found], dtype=torch.float32),
        directed=graph.is_directed(),
    )  # fmt: skip


class Superpixels(NamedTuple):
    """The segments of a label image as a graph, and the way between pixels and nodes."""

    graph: FactorGraph
    """A node a segment, in the order of the segments' numbers; a pairwise factor for every two that touch."""
    node: Tensor
    """int64 [*shape]: the node of each pixel, -1 where it is in no segment."""
    area: Tensor
    """int64 [V]: pixels of each node."""
    contact: Tensor
    """int64 [F]: how many pairs of neighbouring pixels lie across each factor; what a gate may be made of."""

    def mean(self, features: Tensor) -> Tensor:
        """The mean of floats ``[C, *shape]`` over each node's pixels, ``[V, C]``; differentiable."""
        shape = tuple(self.node.shape)
        if not isinstance(features, Tensor) or tuple(features.shape[1:]) != shape or not features.is_floating_point():
            got = f"{features.dtype} {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features: expected floats of shape [C, {', '.join(map(str, shape))}], got {got}")
        inside = self.node.flatten() >= 0
        total = features.new_zeros((len(self.area), len(features)))
        total = total.index_add(0, self.node.flatten()[inside], features.flatten(1)[:, inside].T)
        return total / self.area[:, None].to(total.dtype)

    def spread(self, values: Tensor, outside: float = 0) -> Tensor:
        """Values ``[V, ...]`` of nodes at their pixels, ``[*shape, ...]``; ``outside`` where a pixel is in no segment."""
        if not isinstance(values, Tensor) or values.shape[:1] != self.area.shape:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"values: expected shape [{len(self.area)}, ...], got {got}")
        found = values[self.node.clamp(min=0)]
        inside = (self.node >= 0).view(*self.node.shape, *[1] * (values.dim() - 1))
        return torch.where(inside, found, torch.full((), outside, dtype=values.dtype, device=values.device))


def superpixels(segments: Tensor | npt.NDArray[np.integer[Any]]) -> Superpixels:
    """The region adjacency graph of a label image, integers ``[*shape]``.

    Numbers may have gaps; negative ones are no segment. Two segments touch where a pixel of one follows a pixel of the other
    along an axis. Raises ValueError or TypeError naming ``segments``.

    >>> found = superpixels(torch.tensor([[1, 1, 2], [7, 7, 2]]))
    >>> found.graph.members[0].tolist(), found.contact.tolist()
    ([[0, 1], [0, 2], [1, 2]], [1, 2, 1])
    >>> found.mean(torch.arange(6.0).view(1, 2, 3)).T
    tensor([[0.5000, 3.5000, 3.5000]])
    """
    if not isinstance(segments, Tensor | np.ndarray):
        raise TypeError(f"segments: expected a tensor or an array, got {type(segments).__name__}")
    device = segments.device if isinstance(segments, Tensor) else torch.device("cpu")
    image = segments.cpu().numpy() if isinstance(segments, Tensor) else segments
    if not np.issubdtype(image.dtype, np.integer):
        raise TypeError(f"segments: expected integers, got {image.dtype}")
    inside = image >= 0
    if not image.ndim or not inside.any():
        raise ValueError(f"segments: expected at least one segment, got {list(image.shape)} without any")
    numbers, numbered = np.unique(image[inside], return_inverse=True)
    node = np.full(image.shape, -1, np.int64)
    node[inside] = numbered.reshape(-1)
    keys = []
    for axis in range(node.ndim):
        n: int = node.shape[axis]
        one, other = node.take(range(n - 1), axis), node.take(range(1, n), axis)
        joined = (one != other) & (one >= 0) & (other >= 0)
        one, other = one[joined], other[joined]
        keys.append(np.minimum(one, other) * len(numbers) + np.maximum(one, other))
    key, contact = np.unique(np.concatenate(keys), return_counts=True)
    pairs = torch.from_numpy(np.stack([key // len(numbers), key % len(numbers)], -1)).to(device)
    area = torch.from_numpy(np.bincount(node[inside], minlength=len(numbers))).to(device)
    graph = FactorGraph(len(numbers), [pairs])
    return Superpixels(graph, torch.from_numpy(node).to(device), area, torch.from_numpy(contact).to(device))
