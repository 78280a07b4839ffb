"""Who touches whom on a graph? Factors of two to four nodes, class by class, and how several graphs become one batch.

``E(y) = sum_v psi_v(y_v) + sum_c sum_(f in class c) g_f T_c[k_f, y_f1, .., y_fk]``: a factor of class c joins a few nodes, in
the order of its table's axes, reads the table of its *kind* and is weighed by its *gate* (Kirillov et al. 2016, eq. 3). Kinds
are 0 and gates 1 where none are given. A batch is the disjoint union of its graphs, so no factor joins two of them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.compiling import Unopened, unopened
from tritoncrf.engines.factors import graph_of
from tritoncrf.graph_coloring import first_fit

# Nodes of a factor: what one has alone stands in the logits, and the table of many would have no end.
LEAST, MOST = 2, 4
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Carried(metaclass=Unopened):
    """A graph, or none, as an operator takes it. Holds it weakly, for the graph holds this."""

    def __init__(self, graph: FactorGraph | None) -> None:
        self._graph = None if graph is None else weakref.ref(graph)

    def graph(self) -> FactorGraph | None:
        """Raises RuntimeError where nobody has the graph any more."""
        found = None if self._graph is None else self._graph()
        if found is None and self._graph is not None:
            raise RuntimeError("graph: expected one that is held while a compiled step runs, got one that is gone")
        return found


CARRIED = unopened(Carried)
NO_GRAPH = Carried(None)


@dataclass(frozen=True, eq=False)
class FactorGraph:
    """A graph of V nodes with classes of factors; what a `FactorCRF` is given beside logits ``[V, L]``.

    num_nodes: V, 1 to 2^31 - 1. members: a tensor of integers ``[F, k]`` a class, k from 2 to 4: each factor's nodes, which
    differ, in the order of its table's axes; a class may have no factors. kind: uint8 ``[F]`` a class, or None where all are of
    kind 0. gate: floats ``[F]`` in [0, 1] a class, or None where all are 1, rounded to multiples of 1 / 128, as samplers use
    them; gradients pass straight through. Tensors are copied, so that what is checked here stays as it is. Raises ValueError
    or TypeError naming the argument.

    >>> triangle = FactorGraph(3, [torch.tensor([[0, 1], [1, 2], [2, 0]])])
    >>> triangle
    FactorGraph(3 nodes, 3 factors of 2)
    >>> triangle.coloring()
    tensor([0, 1, 2], dtype=torch.int32)
    >>> FactorGraph.batch([triangle, triangle]).first
    tensor([0, 3, 6])
    """

    num_nodes: int
    """V."""
    members: tuple[Tensor, ...]
    """int64 [F, k] a class."""
    kind: tuple[Tensor | None, ...]
    """uint8 [F] a class; None: all of kind 0."""
    gate: tuple[Tensor | None, ...]
    """float32 [F] a class, multiples of 1 / 128; None: all 1."""
    first: Tensor
    """int64 [G + 1]: nodes ``first[g]`` to ``first[g + 1]`` are graph g of a batch."""
    kept: dict[str, Tensor] = field(repr=False)
    """What depends on members alone, once it was asked for: colours, and engines' lists. A dict, for setting a default in it
    cannot be divided among threads."""
    carried: Carried = field(repr=False)
    """The graph as an operator takes it."""

    def __init__(
        self, num_nodes: int, members: Sequence[Tensor], kind: Sequence[Tensor | None] | None = None,
        gate: Sequence[Tensor | None] | None = None,
    ) -> None:  # fmt: skip
        num_nodes = validation.whole("num_nodes", num_nodes, 1, 2**31 - 1)
        if isinstance(members, Tensor) or not isinstance(members, Sequence) or not len(members):
            got = "none" if isinstance(members, Sequence) else type(members).__name__
            raise TypeError(f"members: expected a list of integer tensors [F, k], one a class of factors, got {got}")
        nodes = tuple(_members(c, part, num_nodes, members[0]) for c, part in enumerate(members))
        kinds = tuple(_kind(c, part, nodes[c]) for c, part in enumerate(_per_class("kind", kind, len(nodes))))
        gates = tuple(_gate(c, part, nodes[c]) for c, part in enumerate(_per_class("gate", gate, len(nodes))))
        first = torch.tensor([0, num_nodes], dtype=torch.int64, device=nodes[0].device)
        self._set(num_nodes, nodes, kinds, gates, first, {})

    def _set(
        self, num_nodes: int, members: tuple[Tensor, ...], kind: tuple[Tensor | None, ...], gate: tuple[Tensor | None, ...],
        first: Tensor, kept: dict[str, Tensor],
    ) -> FactorGraph:  # fmt: skip
        values = (num_nodes, members, kind, gate, first, kept)
        for name, value in zip(("num_nodes", "members", "kind", "gate", "first", "kept"), values, strict=True):
            object.__setattr__(self, name, value)
        # Made here: a compiler that meets the graph finds it and need not look into what it is made of.
        object.__setattr__(self, "carried", Carried(self))
        return self

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "carried"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, carried=Carried(self))

    @classmethod
    def batch(cls, graphs: Sequence[FactorGraph]) -> FactorGraph:
        """The disjoint union of graphs with the same classes of factors, nodes of the first one first.

        A batch of batches is a batch of all their graphs. Raises ValueError or TypeError naming ``graphs``.
        """
        if not isinstance(graphs, Sequence) or not len(graphs) or not all(isinstance(one, FactorGraph) for one in graphs):
            got = [type(one).__name__ for one in graphs][:4] if isinstance(graphs, Sequence) else type(graphs).__name__
            raise TypeError(f"graphs: expected a list of at least one FactorGraph, got {got}")
        head = graphs[0]
        for n, one in enumerate(graphs):
            if (one.arities, one.device) != (head.arities, head.device):
                raise ValueError(
                    f"graphs: expected factors of arities {head.arities} on {head.device}, as the first graph's, got "
                    f"{one.arities} on {one.device} in graph {n}"
                )
        starts = [0, *itertools.accumulate(one.num_nodes for one in graphs)]
        if starts[-1] >= 2**31:
            raise ValueError(f"graphs: expected fewer than 2^31 nodes altogether, got {starts[-1]}")
        begins = list(zip(graphs, starts, strict=False))
        members = tuple(torch.cat([one.members[c] + start for one, start in begins]) for c in range(len(head.members)))
        kind, gate = (
            tuple(_joined([getattr(one, name)[c] for one in graphs], [one.members[c] for one in graphs], none, dtype)
                  for c in range(len(members)))
            for name, none, dtype in (("kind", 0, torch.uint8), ("gate", 1, torch.float32))
        )  # fmt: skip
        first = torch.cat([head.first[:1], *(one.first[1:] + start for one, start in begins)])
        # First fit within each graph is first fit of their union.
        known = [one.kept.get("color") for one in graphs]
        kept = {} if any(part is None for part in known) else {"color": torch.cat([part for part in known if part is not None])}
        return cls.__new__(cls)._set(starts[-1], members, kind, gate, first, kept)

    def coloring(self) -> Tensor:
        """int32 ``[V]``: first fit in node order; no factor has two nodes of one colour. Made once; nobody writes into it.

        Raises ValueError for a node that would need colour 10^4.
        """
        if "color" not in self.kept:
            color = first_fit(self.num_nodes, [part.cpu().numpy() for part in self.members])
            self.kept.setdefault("color", torch.from_numpy(color).to(self.device))
        return self.kept["color"]

    @property
    def num_colors(self) -> int:
        """How many colours a sweep goes through."""
        return int(self.coloring().max()) + 1

    @property
    def arities(self) -> tuple[int, ...]:
        """Nodes of a factor, class by class."""
        return tuple(part.shape[1] for part in self.members)

    @property
    def num_graphs(self) -> int:
        """Graphs of the batch; 1 for one graph."""
        return len(self.first) - 1

    @property
    def device(self) -> torch.device:
        return self.first.device

    def to(self, device: torch.device | str) -> FactorGraph:
        """The same graph on another device; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        kind, gate = (tuple(None if part is None else part.to(device) for part in parts) for parts in (self.kind, self.gate))
        members = tuple(part.to(device) for part in self.members)
        kept = {name: part.to(device) for name, part in self.kept.items()}
        return FactorGraph.__new__(FactorGraph)._set(self.num_nodes, members, kind, gate, self.first.to(device), kept)

    def having(
        self, *, kind: Sequence[Tensor | None] | None = None, gate: Sequence[Tensor | None] | None = None
    ) -> FactorGraph:
        """The same nodes and factors with other kinds or gates (None: those they have); colours need not be found again.

        Raises as the constructor does.
        """
        kinds = self.kind if kind is None else tuple(
            _kind(c, part, self.members[c]) for c, part in enumerate(_per_class("kind", kind, len(self.members)))
        )  # fmt: skip
        gates = self.gate if gate is None else tuple(
            _gate(c, part, self.members[c]) for c, part in enumerate(_per_class("gate", gate, len(self.members)))
        )  # fmt: skip
        return FactorGraph.__new__(FactorGraph)._set(self.num_nodes, self.members, kinds, gates, self.first, self.kept)

    def divided(self, first: Tensor) -> FactorGraph:
        """The same graph as a batch, of which ``first`` says where each graph begins: integers ``[G + 1]``, from 0 to V.

        Raises ValueError or TypeError for an empty graph, or a factor that joins two of them.
        """
        first = validation.tensor("first", first)
        if first.dim() != 1 or len(first) < 2 or first.dtype not in validation.INTEGERS:
            raise ValueError(f"first: expected integers of shape [graphs + 1], got {first.dtype} {list(first.shape)}")
        first = first.detach().to(self.device, torch.int64, copy=True)
        if int(first[0]) != 0 or int(first[-1]) != self.num_nodes or bool((first.diff() < 1).any()):
            raise ValueError(
                f"first: expected numbers that rise from 0 to {self.num_nodes}, for graphs of at least one node, got "
                f"{first[:8].tolist()}{'...' if len(first) > 8 else ''}"
            )
        for c, part in enumerate(self.members):
            of = torch.searchsorted(first, part, right=True)
            apart = (of != of[:, :1]).any(1)
            if bool(apart.any()):
                factor = int(apart.int().argmax())
                raise ValueError(
                    f"first: expected factors within one graph, got nodes {part[factor].tolist()} of graphs "
                    f"{(of[factor] - 1).tolist()} in factor {factor} of class {c}"
                )
        # Colours stay as they are, but what engines list has each graph in a row of its own.
        kept = {name: part for name, part in self.kept.items() if name == "color"}
        return FactorGraph.__new__(FactorGraph)._set(self.num_nodes, self.members, self.kind, self.gate, first, kept)

    def __repr__(self) -> str:
        parts = [f"{len(part)} factors of {part.shape[1]}" for part in self.members]
        graphs = f"{self.num_graphs} graphs, " if self.num_graphs > 1 else ""
        return f"FactorGraph({graphs}{self.num_nodes} nodes, {', '.join(parts)})"


def _members(c: int, part: object, num_nodes: int, head: object) -> Tensor:
    name = f"members[{c}]"
    part = validation.tensor(name, part)
    if part.dtype not in validation.INTEGERS:
        raise TypeError(f"{name}: expected an integer dtype, got {part.dtype}")
    if part.dim() != 2 or not LEAST <= part.shape[1] <= MOST:
        raise ValueError(f"{name}: expected shape [F, k] with k from {LEAST} to {MOST} nodes a factor, got {list(part.shape)}")
    if isinstance(head, Tensor) and part.device != head.device:
        raise ValueError(f"{name}: expected device {head.device} (that of the first class), got {part.device}")
    own = part.detach().to(torch.int64).contiguous()
    own = own.clone() if own.data_ptr() == part.data_ptr() else own
    if len(own) and (int(own.min()) < 0 or int(own.max()) >= num_nodes):
        factor, place = ((own < 0) | (own >= num_nodes)).nonzero()[0].tolist()
        raise ValueError(f"{name}: expected nodes from 0 to {num_nodes - 1}, got {int(own[factor, place])} in factor {factor}")
    for a, b in itertools.combinations(range(own.shape[1]), 2):
        twice = own[:, a] == own[:, b]
        if bool(twice.any()):
            factor = int(twice.int().argmax())
            raise ValueError(f"{name}: expected a factor's nodes to differ, got {own[factor].tolist()} in factor {factor}")
    return own


def _per_class(name: str, given: Sequence[Tensor | None] | None, classes: int) -> Sequence[Tensor | None]:
    if given is None:
        return [None] * classes
    if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != classes:
        got = f"{len(given)} of them" if isinstance(given, list | tuple) else type(given).__name__
        raise ValueError(f"{name}: expected a list with a tensor [F] or None for each of {classes} classes, got {got}")
    return given


def _kind(c: int, part: Tensor | None, members: Tensor) -> Tensor | None:
    if part is None:
        return None
    return validation.shaped(f"kind[{c}]", part, [(len(members),)], [torch.uint8], members.device).clone()


def _gate(c: int, part: Tensor | None, members: Tensor) -> Tensor | None:
    if part is None:
        return None
    name = f"gate[{c}]"
    if not validation.tensor(name, part).is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {part.dtype}")
    validation.shaped(name, part, [(len(members),)], FLOATS, members.device)
    fine = (part.detach() >= 0) & (part.detach() <= 1)
    if not bool(fine.all()):
        factor = int((~fine).int().argmax())
        raise ValueError(f"{name}: expected numbers from 0 to 1, got {float(part[factor].detach()):g} for factor {factor}")
    used = contract.round_gates(part).to(torch.float32) / float(contract.GATE_STEPS)
    # Straight through: the difference is 0, its gradient is not.
    return used + (part.float() - part.detach().float()) if part.requires_grad else used


def _joined(parts: list[Tensor | None], members: list[Tensor], none: float, dtype: torch.dtype) -> Tensor | None:
    """A class's kinds or gates of a batch, ``none`` for the factors of graphs that have none."""
    if all(part is None for part in parts):
        return None
    pairs = zip(parts, members, strict=True)
    return torch.cat([torch.full((len(m),), none, dtype=dtype, device=m.device) if p is None else p for p, m in pairs])


def owners(graph: FactorGraph | None) -> Tensor | None:
    """int64 ``[V]``: each node's graph."""
    if graph is None:
        return None
    return graph_of(graph.first, torch.arange(graph.num_nodes, device=graph.device))
