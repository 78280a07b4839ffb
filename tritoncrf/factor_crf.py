"""What is the energy on a graph? Unaries, and a table for each factor, shared by its class and chosen by its kind.

``E(y) = sum_v psi_v(y_v) + sum_c sum_(f in class c) g_f T_c[k_f, y_f1, .., y_fk]`` and ``p(y|x) = exp(-E(y)) / Z``: Kirillov
et al. 2016, eq. (1) and (3), with factors of two to four nodes. Unary energies are a network's negated logits. A factor of
class c reads table T_c of its kind at its members' labels, in the order in which the graph names them, weighed by its gate.
Rule 1's bound is a node's: twice the largest entry of each of its factors' tables, as it counts, adds up to 1023 at most. A
gated class holds entries of at most 16 in size. Tables are linear in the energy: ``sum_c <T_c, counts_c(y)>``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.edge_inputs import Given
from tritoncrf.engines import Plan, Tables, starts_of
from tritoncrf.engines.torch import pair_counts
from tritoncrf.frame import Shape
from tritoncrf.graph_rows import Fold
from tritoncrf.graphs import LEAST, MOST, FactorGraph
from tritoncrf.incidence import GraphCache
from tritoncrf.layout import Layout, pack
from tritoncrf.model_protocol import CRF, piecewise, whole
from tritoncrf.node_bound import bound
from tritoncrf.validation import Guard

# Entries of all tables, which engines number with 32 bits.
ENTRIES = 1 << 31
# Nodes whose pseudolikelihoods are computed together.
NODES = 1 << 15


class FactorCRF(CRF):
    """A CRF on graphs of any form with learned tables per class of factors; the graph comes with each batch (`FactorGraph`).

    num_labels: L, 2 to 255; arities: of each class, 2 to 4 nodes a factor; kinds: how many tables each class has, 1 to 255,
    one each if None; factors: tables to start from, float ``[kinds, L, .., L]`` a class (None: zeros).
    ``crf.factors[c]`` is class c's parameter ``[kinds, L, .., L]``. Raises ValueError or TypeError naming the argument.

    >>> crf = FactorCRF(3, arities=(2, 3), kinds=(1, 4))
    >>> [tuple(table.shape) for table in crf.factors]
    [(1, 3, 3), (4, 3, 3, 3)]
    >>> graph = FactorGraph(4, [torch.tensor([[0, 1], [1, 2]]), torch.tensor([[1, 2, 3]])])
    >>> crf.energy(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), graph)
    tensor([0.], grad_fn=<ToCopyBackward0>)
    """

    factors: nn.ParameterList
    own = "crf.factors"

    def __init__(
        self, num_labels: int, arities: Sequence[int], kinds: Sequence[int] | None = None,
        factors: Sequence[Tensor | None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_labels = validation.whole("num_labels", num_labels, 2, contract.MAX_LABELS)
        self.arities = _each("arities", arities, LEAST, MOST)
        self.kinds = (1,) * len(self.arities) if kinds is None else _each("kinds", kinds, 1, contract.MAX_LABELS)
        if len(self.kinds) != len(self.arities):
            raise ValueError(f"kinds: expected a number of tables for each of {len(self.arities)} classes, got {self.kinds}")
        self._starts = starts_of(self.arities, self.kinds, self.num_labels)
        if self._starts[-1] >= ENTRIES:
            raise ValueError(f"arities: expected fewer than 2^31 entries of all tables together, got {self._starts[-1]}")
        given = [None] * len(self.arities) if factors is None else factors
        if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != len(self.arities):
            got, wanted = f"{len(given)}" if isinstance(given, list | tuple) else type(given).__name__, len(self.arities)
            raise ValueError(f"factors: expected a list with a table or None for each of {wanted} classes, got {got}")
        self.factors = nn.ParameterList(_table(f"factors[{c}]", part, shape) for c, (part, shape) in
                                        enumerate(zip(given, self._shapes, strict=True)))  # fmt: skip
        self.layouts = GraphCache(self.num_labels, self.kinds)
        self.rounded(Guard(immediate=True), self.tables)

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        """Of each class's parameter."""
        return [(count, *[self.num_labels] * arity) for arity, count in zip(self.arities, self.kinds, strict=True)]

    @property
    def arity(self) -> int:  # type: ignore[override]
        """Of the largest factor."""
        return max(self.arities)

    @property
    def ndim(self) -> int:
        return 1

    @property
    def parts(self) -> list[Tensor]:
        return list(self.factors)

    @property
    def tables(self) -> Tables:
        """All tables in one row, float ``[entries]``: class after class, kind after kind."""
        rows = [whole(part).flatten() for part in self.parts]
        return Tables(rows[0] if len(rows) == 1 else torch.cat(rows))

    def split(self, row: Tensor) -> tuple[Tensor, ...]:
        """What is told of `tables`' entries ``[.., entries]``, by class: ``[.., kinds, L, .., L]``."""
        shapes = self._shapes
        sizes = [torch.Size(shape).numel() for shape in shapes]
        parts = torch.split(row, sizes, -1)
        return tuple(part.reshape(*row.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True))

    def get_extra_state(self) -> Tensor:
        """int64: labels, classes, arities and kinds, so that tables of others are not taken for these."""
        return torch.tensor([self.num_labels, len(self.arities), *self.arities, *self.kinds], device="cpu")

    def describe(self, state: object) -> str:
        try:
            labels, classes, *rest = state.tolist()  # type: ignore[attr-defined]
            arities, kinds = rest[:classes], rest[classes:]
            if len(kinds) == classes > 0:
                return _form(labels, tuple(arities), tuple(kinds))
        except (AttributeError, TypeError, ValueError):
            pass
        return "another model"

    def extra_repr(self) -> str:
        return _form(self.num_labels, self.arities, self.kinds)

    def rounded(self, guard: Guard, tables: Tables, plan: Plan | None = None) -> Tables:
        """Tables on rule 1's grid, checked; with a plan, each node's bound too."""
        on_grid = Tables(contract.round_pairwise(tables.pairwise))
        bound(guard, on_grid.pairwise, self._starts, None if plan is None else plan.factors)
        return on_grid

    def fold(self, graph: FactorGraph | None, *, sizes: object = None, kinds: object = None, gates: object = None,
             view: object = None) -> Fold:  # fmt: skip
        if not isinstance(graph, FactorGraph):
            raise TypeError(f"graph: expected a FactorGraph for a FactorCRF, got {type(graph).__name__}")
        if graph.arities != self.arities:
            raise ValueError(f"graph: expected factors of {self.arities} nodes, class by class, got {graph.arities}")
        validation.same_device("graph", graph.first, self.device)
        for name, value in (("sizes", sizes), ("kinds", kinds), ("gates", gates), ("view", view)):
            if value is not None:
                raise ValueError(f"{name}: expected None beside a graph, which says it itself, got {type(value).__name__}")
        return self.layout((), graph).fold  # type: ignore[return-value]

    def flows(self, graph: FactorGraph | None) -> Tensor | None:
        found = [] if graph is None else [_gates(graph, arity) for arity in sorted(set(self.arities))]
        gates = [part for part in found if part is not None]
        return torch.cat(gates) if gates else None

    def layout(self, shape: Shape, given: Given) -> Layout:
        assert isinstance(given, FactorGraph), "checked by `fold`"
        return self.layouts.get(given)

    def plan_with_edges(
        self, guard: Guard, plan: Plan, layout: Layout, present: Tensor, sizes: Tensor | None, given: Given
    ) -> Plan:
        return plan

    def scores(self, logits: Tensor, labels: Tensor, sizes: Tensor | None, mask: Tensor | None, given: Given) -> Tensor:
        assert isinstance(given, FactorGraph), "checked by `fold`"
        return self.energy(logits, labels, given, mask=mask)

    def foreign(self, plan: Plan, layout: Layout) -> str | None:
        of = plan.factors
        if of is None:
            return f"those of {plan.num_labels} labels on a lattice"
        if (of.num_labels, of.arities, of.kinds) == (self.num_labels, self.arities, self.kinds):
            return None
        return f"those of {_form(of.num_labels, of.arities, of.kinds)}"

    @property
    def caches(self) -> tuple[int, int]:
        return len(self.layouts), self.layouts.nbytes

    def factor_counts(
        self, labels: Tensor, graph: FactorGraph, *, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """How often each tuple of labels stands on a factor of each class and kind: labels ``[V]`` -> ``[G, kinds, L, .., L]``
        a class, labelings ``[M, V]`` -> ``[G, M, kinds, L, .., L]``; int64, or where the graph has gates float64, a factor
        counting its gate. mask: bool ``[V]``, False where a node does not exist. Raises ValueError or TypeError."""
        plan, rows, _ = self._lay_out(labels, graph, mask)
        counts = pair_counts(plan, rows)
        counts = counts if plan.unit == 1 else counts.double() / plan.unit
        return self.split(counts if labels.dim() == 2 else counts[:, 0])

    def energy(self, logits: Tensor, labels: Tensor, graph: FactorGraph, *, mask: Tensor | None = None) -> Tensor:
        """E(y) in nats, float32 ``[G]``, differentiable in logits ``[V, L]``, tables and the graph's gates.

        labels: integers ``[V]``, or labelings ``[M, V]``, whose energies are ``[G, M]``; mask: bool ``[V]``, False where a node
        does not exist. Raises ValueError or TypeError naming the argument.
        """
        plan, rows, fold = self._lay_out(labels, graph, mask)
        scores = -fold.logits(logits, self.num_labels, self.device).float()
        here = rows[:, :, :-1].long().clamp(max=self.num_labels - 1)
        unary = scores.gather(1, here).masked_fill(~plan.exists[:, None], 0.0)
        found = unary.sum(2, dtype=torch.float64)
        factors = plan.factors
        assert factors is not None, "laid out"
        tables = F.pad(self.tables.pairwise.double(), (0, 1))
        for part in factors.ends:
            values = tables[factors.entries(part, rows)]
            gates = _gates(graph, part.arity)
            values = values if gates is None else values * gates
            sums = values.new_zeros((len(values), len(found))).index_add(1, factors.graph_of(part.members[:, 0]), values)
            found = found + sums.T
        return (found if labels.dim() == 2 else found[:, 0]).float()

    def log_pseudolikelihood(
        self, logits: Tensor, labels: Tensor, graph: FactorGraph, *, mask: Tensor | None = None
    ) -> Tensor:
        """``sum_v log p(y_v | others)`` (Besag 1975), float32 ``[G]`` or ``[G, M]``, differentiable in logits and tables."""
        plan, rows, fold = self._lay_out(labels, graph, mask)
        scores, factors = fold.logits(logits, self.num_labels, self.device).float(), plan.factors
        assert factors is not None, "laid out"
        tables = F.pad(self.tables.pairwise.float(), (0, 1))
        image, slot = plan.exists.nonzero(as_tuple=True)
        nodes = factors.first[image] + slot

        def part(some: Tensor, tables: Tensor, image: Tensor, slot: Tensor, nodes: Tensor, flat: Tensor) -> Tensor:
            for site, entries, gate in factors.rows(nodes, image * plan.volume, flat):
                read = tables[entries]
                read = read if gate is None else read * (gate[:, None].float() / float(contract.GATE_STEPS))
                some = some.index_add(0, site, -read)
            own = flat[image * plan.volume + slot].long()
            return some.log_softmax(1).gather(1, own[:, None])[:, 0]

        found = []
        for labeling in rows.unbind(1):
            flat = labeling.flatten()
            pieces = zip(*(torch.split(whole, NODES) for whole in (scores[image, :, slot], image, slot, nodes)), strict=True)
            own = piecewise(part, ((some, tables, *at, flat) for some, *at in pieces))
            found.append(own.new_zeros(len(rows)).index_add(0, image, own))
        return torch.stack(found, 1) if labels.dim() == 2 else found[0]

    def _lay_out(self, labels: Tensor, graph: FactorGraph, mask: Tensor | None) -> tuple[Plan, Tensor, Fold]:
        fold = self.fold(graph)
        labels = validation.tensor("labels", labels)
        many = labels.dim() == 2
        rows = fold.labels("labels", labels)
        assert rows is not None
        rows = rows if many else rows[:, None]
        validation.shaped("labels", rows, [rows.shape], validation.INTEGERS, self.device)
        mask = fold.each("mask", mask)
        guard, shape = Guard(immediate=True), (fold.width,)
        sizes, mask = validation.extents(guard, fold.graphs, shape, fold.sizes, mask, self.device)
        layout = self.layout(shape, graph)
        index = torch.arange(fold.graphs, device=self.device)
        present = layout.frame(shape).exists(fold.graphs, sizes, mask)
        plan = layout.plan(self.num_labels, shape, index, rows.shape[1], sizes, mask, None, present)
        validation.label_values(guard, "labels", rows, self.num_labels, present[:, None], graph=True)
        safe = rows.long().clamp(0, self.num_labels - 1).to(torch.uint8)
        return plan, pack(plan, layout, safe, present), fold


def _gates(graph: FactorGraph, arity: int) -> Tensor | None:
    """float32 [F]: gates of all factors of an arity, with the gradient that flows into them."""
    own = [(part, members) for part, members in zip(graph.gate, graph.members, strict=True) if members.shape[1] == arity]
    if all(part is None for part, _ in own):
        return None
    ones = (members.new_ones(len(members), dtype=torch.float32) for _, members in own)
    return torch.cat([one if part is None else part for (part, _), one in zip(own, ones, strict=True)])


def _form(labels: int, arities: tuple[int, ...], kinds: tuple[int, ...]) -> str:
    parts = (f"{count} {'kind' if count == 1 else 'kinds'} of {arity}" for arity, count in zip(arities, kinds, strict=True))
    return f"{labels} labels, factors of {', '.join(parts)}"


def _each(name: str, given: Sequence[int], least: int, most: int) -> tuple[int, ...]:
    if isinstance(given, str | Tensor) or not isinstance(given, Sequence) or not len(given):
        raise TypeError(f"{name}: expected a sequence of integers, one a class of factors, got {given!r}")
    return tuple(validation.whole(f"{name}[{c}]", value, least, most) for c, value in enumerate(given))


def _table(name: str, given: Tensor | None, shape: tuple[int, ...]) -> nn.Parameter:
    if given is None:
        return nn.Parameter(torch.zeros(shape, dtype=torch.float32))
    table = validation.tensor(name, given).detach().clone()
    if tuple(table.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)} (kinds, then labels of each member), got {list(table.shape)}")
    if not table.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {table.dtype}")
    return nn.Parameter(table)
