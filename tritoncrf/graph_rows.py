"""How do graphs pass for images? Node lists ``[V, ..]`` as a batch of rows, and answers back.

A batch of G graphs is a batch of G images of one axis, each as long as its graph has nodes, padded to the longest: what is
above the plan then knows images alone. Of one graph, and of graphs of one length, nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf import validation
from tritoncrf.graphs import FactorGraph


@dataclass(frozen=True)
class Fold:
    """Which node of a batch is which pixel of a row."""

    graphs: int
    nodes: int
    """V."""
    width: int
    """Nodes of the largest graph."""
    device: torch.device
    sizes: Tensor | None
    """int64 [G, 1]: each graph's nodes; None where all have as many."""
    node: Tensor | None
    """int64 [G, width]: the node at each pixel, a graph's last one beyond it; None where all graphs have as many nodes."""
    pixel: Tensor | None
    """int64 [V]: the pixel of each node, of all rows one after another; None likewise."""

    @classmethod
    def of(cls, graph: FactorGraph) -> Fold:
        first, graphs = graph.first, graph.num_graphs
        lengths = first.diff()
        if bool((lengths == lengths[0]).all()):
            return cls(graphs, graph.num_nodes, graph.num_nodes // graphs, graph.device, None, None, None)
        width = int(lengths.max())
        steps = torch.arange(width, device=graph.device)
        node = first[:-1, None] + torch.minimum(steps, lengths[:, None] - 1)
        number = torch.arange(graphs, device=graph.device).repeat_interleave(lengths)
        pixel = torch.arange(graph.num_nodes, device=graph.device) - first[number] + number * width
        return cls(graphs, graph.num_nodes, width, graph.device, lengths[:, None], node, pixel)

    def rows(self, values: Tensor) -> Tensor:
        """``[V, ..]`` -> ``[G, .., width]``, differentiable."""
        found = values.reshape(self.graphs, self.width, *values.shape[1:]) if self.node is None else values[self.node]
        return found.movedim(1, -1)

    def back(self, rows: Tensor) -> Tensor:
        """``[G, .., width]`` -> ``[V, ..]``."""
        found = rows.movedim(-1, 1).flatten(0, 1)
        return found if self.pixel is None else found[self.pixel]

    def labelings(self, rows: Tensor) -> Tensor:
        """Labels ``[G, R, width]`` -> ``[R, V]``."""
        return self.back(rows).movedim(1, 0)

    def logits(self, value: object, labels: int, device: torch.device, name: str = "logits") -> Tensor:
        """Logits ``[V, L]`` as ``[G, L, width]``. Raises ValueError or TypeError unless they are that."""
        value = validation.tensor(name, value)
        if tuple(value.shape) != (self.nodes, labels):
            raise ValueError(
                f"{name}: expected shape [{self.nodes}, {labels}], a row a node of the graph, got "
                f"{validation.shape_text(value.shape)}"
            )
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
        validation.same_device(name, value, device)
        return self.rows(value)

    def each(self, name: str, value: object) -> Tensor | None:
        """One value a node, ``[V]``, as ``[G, width]``; None as None. Raises ValueError or TypeError unless it is that."""
        if value is None:
            return None
        value = validation.tensor(name, value)
        if tuple(value.shape) != (self.nodes,):
            raise ValueError(f"{name}: expected shape [{self.nodes}], one a node, got {validation.shape_text(value.shape)}")
        return self.rows(value)

    def labels(self, name: str, value: object) -> Tensor | None:
        """Labels ``[V]`` or labelings ``[R, V]`` as ``[G, width]`` or ``[G, R, width]``. Raises as `each`."""
        if not isinstance(value, Tensor) or value.dim() < 2:
            return self.each(name, value)
        if value.dim() != 2 or value.shape[1] != self.nodes:
            raise ValueError(
                f"{name}: expected shape [{self.nodes}] or [R, {self.nodes}], one a node, got "
                f"{validation.shape_text(value.shape)}"
            )
        return self.rows(value.movedim(0, 1))
