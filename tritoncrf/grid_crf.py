"""What is the energy? Unaries, and one table per edge class, chosen and weighted by what the image says of the edge.

``E(y) = sum_n psi_n(y_n) + sum_c sum_{(i,j) in E_c} ( T[c, k_c(i), y_i, y_j] + sum_r g_{r,c}(i) G[r, c, y_i, y_j] )`` with
j = i + d_c and ``p(y|x) = exp(-E(y)) / Z``: Kirillov et al. 2016, eq. (1), (3) and (15); lower energy is likelier. Unary
energies are the network's negated logits, ``psi_n(l) = -logit_n(l)``, so logits enter unchanged and a constant per pixel
cancels. Class c joins the pairs (i, i + d_c); its tables are of any form, directional, not symmetric. A *kind* k, given at the
edge's first end, chooses one of R tables (decision tree fields, Nowozin et al. 2011, the paper's [4]); a *gate* g in [0, 1]
weighs a table of its own. Both are optional. Tables are linear in the energy: ``sum_c <pairwise[c], counts_c(y)>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.edge_inputs import EdgeForm, Edges, Given, describe, plan_with_edges
from tritoncrf.engines import Plan, Tables
from tritoncrf.engines.torch import pair_counts
from tritoncrf.frame import Shape
from tritoncrf.graphs import FactorGraph
from tritoncrf.lattice import Neighborhood, refuse_graph
from tritoncrf.layout import Layout, LayoutCache, pack
from tritoncrf.model_protocol import CRF, piecewise, whole
from tritoncrf.periodic import axes, check
from tritoncrf.validation import Guard

# Sites whose pseudolikelihoods are computed together: of each, all neighbours' labels are needed at once.
SITES = 1 << 13


class GridCRF(CRF):
    """A CRF on a grid of any dimension with learned tables per edge class.

    num_labels: L, 2 to 255; neighborhood: C classes; pairwise: float ``[C, L, L]`` to start from, zeros if None.
    kinds: R, 1 to 255: an edge reads one of R tables of its class, ``pairwise`` is ``[C, R, L, L]``, and every call takes
    ``kinds`` uint8 ``[N, C, *shape]``, at each edge's first end. kinds_on: those classes that have kinds (all if None), Ck of
    them, in which order the argument has them; the others read table 0.
    gates: G >= 1: ``gated`` is a parameter ``[G, Cg, L, L]``, entries of at most 16 in size, and every call takes ``gates``
    float ``[N, G, Cg, *shape]`` in [0, 1]. gates_on: the Cg classes that have gates (all if None). gated: to start from.
    wrap: which axes are rings, a bool for each or one for all: class c then joins i and ``(i + d_c) mod n``, under the same
    table. Such an axis needs twice the reach and one more sites, and images of a batch all have its full length (``mask`` may
    have holes). A class costs a sweep up to two look-ups an axis, and a chain's row a border as long as the axis.
    ``crf.pairwise`` and ``crf.gated`` (None without gates) are the parameters; `torch.nn.utils.parametrize` may stand before
    either. Raises ValueError or TypeError for anything else.

    >>> crf = GridCRF(3, Neighborhood.nearest(4))
    >>> crf.energy(torch.zeros(1, 3, 5, 7), torch.zeros(1, 5, 7, dtype=torch.long))
    tensor([0.], grad_fn=<ToCopyBackward0>)
    >>> GridCRF(3, Neighborhood.nearest(8), kinds=5, gates=1, gates_on=Neighborhood.nearest(4)).gated.shape
    torch.Size([1, 2, 3, 3])
    """

    pairwise: nn.Parameter
    gated: nn.Parameter | None

    def __init__(
        self, num_labels: int, neighborhood: Neighborhood, pairwise: Tensor | None = None, *, kinds: int | None = None,
        kinds_on: Neighborhood | None = None, gates: int = 0, gates_on: Neighborhood | None = None,
        gated: Tensor | None = None, wrap: Sequence[bool] | bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        num_labels = validation.whole("num_labels", num_labels, 2, contract.MAX_LABELS)
        if not isinstance(neighborhood, Neighborhood):
            refuse_graph("neighborhood", neighborhood)
            graph = isinstance(neighborhood, Tensor) and neighborhood.dim() == 2
            hint = " (edges of a graph are for a FactorCRF)" if graph else ""
            raise TypeError(f"neighborhood: expected a Neighborhood, got {type(neighborhood).__name__}{hint}")
        self.num_labels = num_labels
        self.neighborhood = neighborhood
        self.form = EdgeForm.of(neighborhood, kinds, kinds_on, gates, gates_on, axes(wrap, neighborhood.ndim))
        if gated is not None and not gates:
            raise ValueError(f"gated: expected None for a model without gates, got {type(gated).__name__}")
        square = (num_labels, num_labels)
        tables = _tables("pairwise", pairwise, (len(neighborhood), *([] if kinds is None else [kinds]), *square))
        weighed = _tables("gated", gated, (gates, len(self.form.gates_on), *square)) if gates else None
        self.pairwise = nn.Parameter(tables)
        self.register_parameter("gated", None if weighed is None else nn.Parameter(weighed))
        self.rounded(Guard(immediate=True), self.tables)
        self.layouts = LayoutCache(neighborhood, wrap=self.form.wrap)

    def get_extra_state(self) -> Tensor:
        """int64: what the tables are tables of, so that those of other labels, offsets, kinds or gates are not taken for it."""
        return self.form.numbers(self.num_labels)

    def describe(self, state: object) -> str:
        return describe(state)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "form" not in state:
            # Pickled before tables could see the image.
            self.form = EdgeForm.of(self.neighborhood, None, None, 0, None)
            self.register_parameter("gated", None)

    @property
    def ndim(self) -> int:
        return self.neighborhood.ndim

    @property
    def parts(self) -> list[Tensor]:
        return [self.pairwise] if self.gated is None else [self.pairwise, self.gated]

    @property
    def tables(self) -> Tables:
        """Both parameters, as they are now; whole on every rank, also where FSDP has them in shards."""
        return Tables(*map(whole, self.parts))

    def rounded(self, guard: Guard, tables: Tables, plan: Plan | None = None) -> Tables:
        """Tables on rule 1's grid, checked."""
        pairwise, gated = tables
        on_grid = Tables(contract.round_pairwise(pairwise), None if gated is None else contract.round_pairwise(gated))
        validation.tables(guard, *on_grid, self.form.gating)
        return on_grid

    def fold(self, graph: FactorGraph | None, *, sizes: object = None, kinds: object = None, gates: object = None,
             view: object = None) -> None:  # fmt: skip
        if graph is not None:
            raise ValueError(f"graph: expected None for a GridCRF, whose neighbours are offsets, got {type(graph).__name__}")

    def layout(self, shape: Shape, given: Given) -> Layout:
        check(Guard(), self.neighborhood, self.form.wrap, shape, None)
        return self.layouts.get(shape, self.device)

    def plan_with_edges(
        self, guard: Guard, plan: Plan, layout: Layout, present: Tensor, sizes: Tensor | None, given: Given
    ) -> Plan:
        if sizes is not None:
            check(guard, self.neighborhood, self.form.wrap, tuple(present.shape[1:]), sizes)
        assert isinstance(given, Edges), "checked by `fold`"
        return plan_with_edges(guard, self.form, plan, layout, present, given)

    def scores(self, logits: Tensor, labels: Tensor, sizes: Tensor | None, mask: Tensor | None, given: Given) -> Tensor:
        assert isinstance(given, Edges), "checked by `fold`"
        return self.energy(logits, labels, sizes=sizes, mask=mask, kinds=given.kinds, gates=given.gates)

    def foreign(self, plan: Plan, layout: Layout) -> str | None:
        of = layout.neighborhood, plan.num_labels, plan.form, layout.wrap
        if of == (self.neighborhood, self.num_labels, self.form.asked(layout.classes), self.form.wrap):
            return None
        seen = "" if plan.edges is None else f", {plan.form[0] or 'no'} kinds, {plan.form[1] or 'no'} gates"
        return f"those of {of[1]} labels, {of[0] or 'graphs'!r}{seen}" + (f", wrap {of[3]}" if of[3] else "")

    @property
    def caches(self) -> tuple[int, int]:
        return len(self.layouts), self.layouts.nbytes

    def extra_repr(self) -> str:
        return f"{self.num_labels} labels, {self.neighborhood!r}{self.form}"

    def pair_counts(
        self, labels: Tensor, *, sizes: Tensor | None = None, mask: Tensor | None = None, kinds: Tensor | None = None
    ) -> Tensor:
        """How often each pair of labels stands on an edge of each class (and kind): labels ``[N, *shape]`` -> int64
        ``[N, C, L, L]``, with kinds ``[N, C, R, L, L]``; of labelings
        ``[N, M, *shape]`` likewise ``[N, M, ...]``.

        ``sizes`` int64 ``[N, d]`` where images are padded, ``mask`` bool ``[N, *shape]`` False where no pixel exists, ``kinds``
        uint8 ``[N, Ck, *shape]``. Raises ValueError or TypeError naming the argument.
        """
        plan, rows = self._lay_out(labels, sizes, mask, Edges(kinds), gates=False)
        counts = pair_counts(plan, rows)
        return counts if self._many(labels) else counts[:, 0]

    def energy(
        self, logits: Tensor, labels: Tensor, *, sizes: Tensor | None = None, mask: Tensor | None = None,
        kinds: Tensor | None = None, gates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """E(y) in nats, float32 ``[N]``, differentiable in logits ``[N, L, *shape]``, tables and gates.

        labels: integers ``[N, *shape]``, or M labelings an image ``[N, M, *shape]``, whose energies are ``[N, M]``; ``sizes``,
        ``mask`` and ``kinds`` as in `pair_counts`; ``gates`` float ``[N, G, Cg, *shape]``, taken as the multiples of 1 / 128
        that samplers use (straight through). Raises as `pair_counts`.
        """
        plan, rows = self._match(logits, labels, sizes, mask, Edges(kinds, gates))
        slots = plan.pixels
        here = rows[:, :, plan.positions].long()
        unary = -logits.float().flatten(2)[:, :, slots].gather(1, here.clamp(max=self.num_labels - 1))
        # Counts go into the hundred thousands, past what half precision holds.
        pair = (pair_counts(plan, rows) * self.tables.pairwise.double()).flatten(2).sum(2)
        for k, weight, table in self._gated(plan, gates):
            there = rows[:, :, plan.positions + plan.displacements[k]].long()
            pair = pair + (weight[:, None, :, slots] * table[:, here, there].movedim(0, 2)).double().flatten(2).sum(2)
        found = unary.masked_fill(~plan.exists[:, None], 0.0).sum(2, dtype=torch.float64) + pair
        return (found if self._many(labels) else found[:, 0]).float()

    def log_pseudolikelihood(
        self, logits: Tensor, labels: Tensor, *, sizes: Tensor | None = None, mask: Tensor | None = None,
        kinds: Tensor | None = None, gates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``sum_i log p(y_i | others)`` (Besag 1975), eq. (16), float32 ``[N]`` or ``[N, M]``, differentiable as `energy`."""
        plan, rows = self._match(logits, labels, sizes, mask, Edges(kinds, gates))
        found = torch.stack([self._pseudolikelihood(plan, logits, part, gates) for part in rows.unbind(1)], 1)
        return found if self._many(labels) else found[:, 0]

    def _pseudolikelihood(self, plan: Plan, logits: Tensor, rows: Tensor, gates: Tensor | None) -> Tensor:
        """`log_pseudolikelihood` of one labeling an image, flat rows ``[N, volume]``."""
        image, slot = plan.exists.nonzero(as_tuple=True)
        # Of a million pixels all neighbours are 64 million numbers: the fewer bytes the better.
        size, kind = self.num_labels + 1, torch.int32 if rows.numel() < 1 << 31 else torch.int64
        near = torch.tensor([*plan.displacements, *(-d for d in plan.displacements)], dtype=kind, device=self.device)
        tables = (self.tables.pairwise if plan.kinded else self.tables.pairwise[:, None])[list(plan.classes)]
        # A zero row after each table's labels is what a void neighbour reads.
        padded = torch.cat([F.pad(tables.transpose(2, 3), (0, 0, 0, 1)), F.pad(tables, (0, 0, 0, 1))]).flatten(0, 2)
        first = torch.arange(len(near), dtype=kind, device=self.device) * (plan.num_kinds * size)
        gated, flat, labels = list(self._gated(plan, gates)), rows.flatten(), rows.flatten().to(kind)

        def part(scores: Tensor, image: Tensor, slot: Tensor) -> Tensor:
            position = plan.positions[slot]
            where = image * plan.volume + position
            neighbours = labels.index_select(0, (where.to(kind)[:, None] + near).flatten()).view(len(where), len(near)) + first
            if plan.edges is not None and plan.kinded:
                neighbours += plan.edges.kinds_at(plan, image, position).to(kind) * size
            if len(near):
                scores = scores - F.embedding_bag(neighbours, padded, mode="sum")
            for k, weight, table in gated:
                step = plan.displacements[k]
                ahead, behind = table[:, :-1, flat[where + step].long()], table[:, flat[where - step].long(), :-1]
                scores = scores - torch.einsum("sg,gls->sl", weight[image, :, plan.pixels[slot]], ahead)
                before = plan.edges.pixels[position - step]  # type: ignore[union-attr]
                scores = scores - torch.einsum("sg,gsl->sl", weight[image, :, before], behind)
            return scores.log_softmax(1).gather(1, flat[where].long()[:, None])[:, 0]

        scores = logits.float().flatten(2)[image, :, plan.pixels[slot]]
        cut = zip(*(torch.split(whole, SITES) for whole in (scores, image, slot)), strict=True)
        own = piecewise(part, cut)
        return own.new_zeros(len(rows)).index_add(0, image, own)

    def _gated(self, plan: Plan, gates: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each displacement with gates: its number, they float32 ``[N, G, pixels]``, and its tables ``[G, L + 1, L + 1]``."""
        gated = self.tables.gated
        if plan.edges is None or plan.edges.gates is None or gates is None or gated is None:
            return
        tables = F.pad(gated.float(), (0, 1, 0, 1))
        for k in plan.edges.gated:
            place = plan.edges.gating[k]
            used = plan.edges.gates[:, :, place].float() / float(contract.GATE_STEPS)
            # What does not count, beyond an image or an edge, may be NaN, and must not spoil the gradient.
            given = gates[:, :, place].flatten(2).float()
            yield k, used + (given - given.detach()).nan_to_num(0.0, 0.0, 0.0), tables[:, place]

    def _match(
        self, logits: Tensor, labels: Tensor, sizes: Tensor | None, mask: Tensor | None, given: Edges
    ) -> tuple[Plan, Tensor]:
        validation.logits(logits, self.num_labels, self.neighborhood.ndim, self.device)
        validation.tensor("labels", labels)
        many = [labels.shape[1]] if self._many(labels) else []
        expected = (len(logits), *many, *logits.shape[2:])
        validation.shaped("labels", labels, [expected], validation.INTEGERS, self.device)
        return self._lay_out(labels, sizes, mask, given)

    def _many(self, labels: Tensor) -> bool:
        """Whether labels are of several labelings an image."""
        return labels.dim() == self.neighborhood.ndim + 2

    def _lay_out(
        self, labels: Tensor, sizes: Tensor | None, mask: Tensor | None, given: Edges, gates: bool = True
    ) -> tuple[Plan, Tensor]:
        labels = validation.tensor("labels", labels)
        ndim = self.neighborhood.ndim
        if labels.dim() not in (ndim + 1, ndim + 2) or 0 in labels.shape:
            raise ValueError(f"labels: expected shape [N, {ndim} sizes] or [N, M, {ndim} sizes], none 0, "
                             f"got {list(labels.shape)}")  # fmt: skip
        many = self._many(labels)
        labels = labels if many else labels[:, None]
        shape = tuple(labels.shape[2:])
        validation.shaped("labels", labels, [labels.shape], validation.INTEGERS, self.device)
        # The answer goes to the caller, so a fault on a GPU has to be waited for.
        guard = Guard(immediate=True)
        sizes, mask = validation.extents(guard, len(labels), shape, sizes, mask, self.device)
        check(guard, self.neighborhood, self.form.wrap, shape, sizes)
        index = torch.arange(len(labels), device=self.device)
        layout = self.layouts.get(shape, self.device)
        plan = layout.plan(self.num_labels, shape, index, labels.shape[1], sizes, mask, None)
        present = layout.frame(shape).exists(len(labels), sizes, mask)
        plan = plan_with_edges(guard, self.form if gates else self.form.without_gates(), plan, layout, present, given)
        held = present[:, None] if many else present
        validation.label_values(guard, "labels", labels if many else labels[:, 0], self.num_labels, held)
        # A label that a deferred check will report must not index out of the tables meanwhile.
        safe = labels.long().clamp(0, self.num_labels - 1).to(torch.uint8)
        return plan, pack(plan, layout, safe, present)


def _tables(name: str, given: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Tables to start from, zeros if None."""
    if given is None:
        # On torch's default device, as any module's; a default dtype of fewer bits could not hold what they learn.
        return torch.zeros(shape, dtype=torch.float32)
    tables = validation.tensor(name, given).detach().clone()
    if tables.shape != shape:
        axes = {3: "classes, labels, labels", 4: "classes, kinds, labels, labels"}[len(shape)]
        axes = "gates, classes, labels, labels" if name == "gated" else axes
        raise ValueError(f"{name}: expected shape {list(shape)} ({axes}), got {list(tables.shape)}")
    if not tables.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {tables.dtype}")
    return tables
