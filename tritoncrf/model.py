"""What is the energy? ``E(y) = sum_n psi_n(y_n) + sum_c sum_{(i,j) in E_c} psi_c(y_i, y_j)``, ``p(y|x) = exp(-E(y)) / Z``.

Kirillov et al. 2016, eq. (1) and (15); lower energy is likelier. Unary energies are the network's negated logits,
``psi_n(l) = -logit_n(l)``, so logits enter unchanged and a constant per pixel cancels. Class c joins the pairs (i, i + d_c)
and shares one table ``pairwise[c, l, m]`` for ``(y_i, y_{i+d_c}) = (l, m)``: of any form, directional, not symmetric. Tables
are linear in the energy: ``sum_c <pairwise[c], counts_c(y)>``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.engines import Plan
from tritoncrf.engines.torch import pair_counts
from tritoncrf.lattice import Neighborhood
from tritoncrf.layout import LayoutCache, pack
from tritoncrf.validation import Guard


class GridCRF(nn.Module):
    """A CRF on a grid of any dimension with one learned table per edge class.

    num_labels: L, 2 to 255; neighborhood: C classes; pairwise: float ``[C, L, L]`` to start from, zeros if None.
    ``crf.pairwise`` is the parameter. Raises ValueError or TypeError for anything else.

    >>> crf = GridCRF(3, Neighborhood.nearest(4))
    >>> crf.energy(torch.zeros(1, 3, 5, 7), torch.zeros(1, 5, 7, dtype=torch.long))
    tensor([0.], grad_fn=<ToCopyBackward0>)
    """

    pairwise: nn.Parameter

    def __init__(self, num_labels: int, neighborhood: Neighborhood, pairwise: Tensor | None = None) -> None:
        super().__init__()
        validation.whole("num_labels", num_labels, 2, contract.MAX_LABELS)
        if not isinstance(neighborhood, Neighborhood):
            raise TypeError(f"neighborhood: expected a Neighborhood, got {type(neighborhood).__name__}")
        self.num_labels = num_labels
        self.neighborhood = neighborhood
        shape = (len(neighborhood), num_labels, num_labels)
        tables = torch.zeros(shape)
        if pairwise is not None:
            tables = validation.tensor("pairwise", pairwise).detach().clone()
            if tables.shape != shape:
                raise ValueError(f"pairwise: expected shape {list(shape)} (classes, labels, labels), got {list(tables.shape)}")
            if not tables.is_floating_point():
                raise TypeError(f"pairwise: expected a floating-point dtype, got {tables.dtype}")
            validation.tables(Guard(immediate=True), contract.round_pairwise(tables))
        self.pairwise = nn.Parameter(tables)
        self.layouts = LayoutCache(neighborhood)

    @property
    def device(self) -> torch.device:
        return self.pairwise.device

    def extra_repr(self) -> str:
        return f"{self.num_labels} labels, {self.neighborhood!r}"

    def pair_counts(self, labels: Tensor, *, sizes: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """How often each pair of labels stands on an edge of each class: labels ``[N, *shape]`` -> int64 ``[N, C, L, L]``.

        ``sizes`` int64 ``[N, d]`` where images are padded, ``mask`` bool ``[N, *shape]`` False where no pixel exists.
        Raises ValueError or TypeError naming the argument.
        """
        plan, rows = self._lay_out(labels, sizes, mask)
        return pair_counts(plan, rows)[:, 0]

    def energy(self, logits: Tensor, labels: Tensor, *, sizes: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """E(y) of eq. (15) in nats, float32 ``[N]``, differentiable in logits ``[N, L, *shape]`` and tables.

        labels: integers ``[N, *shape]``; ``sizes`` and ``mask`` as in `pair_counts`. Raises as `pair_counts`.
        """
        validation.logits(logits, self.num_labels, self.neighborhood.ndim, self.device)
        self._check_match(logits, labels)
        plan, rows = self._lay_out(labels, sizes, mask)
        slots = plan.pixels
        chosen = rows[:, 0, plan.positions].long().clamp(max=self.num_labels - 1)[:, None]
        unary = -logits.float().flatten(2)[:, :, slots].gather(1, chosen)[:, 0]
        # Counts go into the hundred thousands, past what half precision holds.
        pair = (pair_counts(plan, rows)[:, 0] * self.pairwise.double()).flatten(1).sum(1)
        return (unary.masked_fill(~plan.exists, 0.0).sum(1, dtype=torch.float64) + pair).float()

    def log_pseudolikelihood(
        self, logits: Tensor, labels: Tensor, *, sizes: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """``sum_i log p(y_i | all others)`` (Besag 1975) by eq. (16), float32 ``[N]``, differentiable as `energy`."""
        validation.logits(logits, self.num_labels, self.neighborhood.ndim, self.device)
        self._check_match(logits, labels)
        plan, rows = self._lay_out(labels, sizes, mask)
        image, slot = plan.exists.nonzero(as_tuple=True)
        steps = torch.tensor(plan.displacements, dtype=torch.int64, device=self.device)
        tables = self.pairwise[list(plan.classes)]
        # A zero row after each table's labels is what a void neighbour reads.
        padded = torch.cat([F.pad(tables.transpose(1, 2), (0, 0, 0, 1)), F.pad(tables, (0, 0, 0, 1))]).flatten(0, 1)
        where = image * plan.volume + plan.positions[slot]
        neighbours = rows.flatten()[where[:, None] + torch.cat([steps, -steps])].long()
        neighbours += torch.arange(2 * len(steps), device=self.device) * (self.num_labels + 1)
        scores = logits.float().flatten(2)[image, :, plan.pixels[slot]]
        if len(steps):
            scores = scores - F.embedding_bag(neighbours, padded, mode="sum")
        own = scores.log_softmax(1).gather(1, rows.flatten()[where].long()[:, None])[:, 0]
        return own.new_zeros(len(labels)).index_add(0, image, own)

    def _check_match(self, logits: Tensor, labels: Tensor) -> None:
        validation.tensor("labels", labels)
        expected = (len(logits), *logits.shape[2:])
        validation.shaped("labels", labels, [expected], validation.INTEGERS, self.device)

    def _lay_out(self, labels: Tensor, sizes: Tensor | None, mask: Tensor | None) -> tuple[Plan, Tensor]:
        labels = validation.tensor("labels", labels)
        ndim = self.neighborhood.ndim
        if labels.dim() != ndim + 1 or 0 in labels.shape:
            raise ValueError(f"labels: expected shape [N, {ndim} sizes], none 0, got {list(labels.shape)}")
        shape = tuple(labels.shape[1:])
        validation.shaped("labels", labels, [labels.shape], validation.INTEGERS, self.device)
        # The answer goes to the caller, so a fault on a GPU has to be waited for.
        guard = Guard(immediate=True)
        sizes, mask = validation.extents(guard, len(labels), shape, sizes, mask, self.device)
        index = torch.arange(len(labels), device=self.device)
        layout = self.layouts.get(shape, self.device)
        plan = layout.plan(self.num_labels, shape, index, 1, sizes, mask, None)
        present = validation.inside(shape, len(labels), sizes, mask, self.device)
        validation.label_values(guard, "labels", labels, self.num_labels, present)
        # A label that a deferred check will report must not index out of the tables meanwhile.
        safe = labels.long().clamp(0, self.num_labels - 1).to(torch.uint8)
        return plan, pack(plan, layout, safe[:, None], present)
