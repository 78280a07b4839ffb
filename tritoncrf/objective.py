"""What is to go down? The sampled likelihood, a cross-entropy of averaged conditionals beside it, a margin.

- likelihood: ``-log p(y|x)``, for whole labellings (`gradient`).
- cross-entropy: ``-sum_i log (1 / M) sum_k p(t_i | y'_k)`` over the labelled pixels i, for single ones. Contexts y'_1 .. y'_M
  are the free phase's labels after M of a visit's sweeps. A mean of conditionals (16) is what `marginals` answers with, so this
  is the answer's cross-entropy, with the neighbours' labels held. Let ``e_k(l)`` be the pixel's energies in context k and
  ``p_k = softmax(-e_k)``. With the responsibilities ``r_k = p_k(t) / sum_j p_j(t)`` the gradient by e_k(l) is
  ``a_k(l) = r_k ([l = t] - p_k(l))``: on logits ``-sum_k a_k``, on each table row that a neighbour in context k chooses, a_k
  (`engines.soft`). With M = 1 and y' = y it would be Besag's pseudolikelihood (1975); here contexts are the model's own
  samples, as when it answers. Neighbours say nearly the same of neighbours, so a visit may ask one pixel of every n: those
  whose ``x + (n // 2) y + ..`` leaves a remainder by n that is drawn anew for each image at each visit, each pixel with chance
  1 / n, and n times their sum. Its expectation, given the contexts, is the whole sum and the whole sum's gradient.
- margin a: softmax-margin (Gimpel and Smith 2010), ``E(y) + log sum_y' exp(-E(y') + a |{i: y'_i != t_i}|)``. The cost raises
  the probability of wrong labellings in the free phase, which is sampled from ``logits - a [l = t]``, a constant apart from
  ``logits + a [l != t]``: the truth has to win by a label's cost. The gradient is the likelihood's with such samples.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.chains import ChainState
from tritoncrf.engines import Tables
from tritoncrf.engines.soft import STEP, soft_factor_gates, soft_gated, soft_gates
from tritoncrf.frame import Shape
from tritoncrf.gradient import Errors
from tritoncrf.inputs import Batch, Known
from tritoncrf.model_protocol import CRF
from tritoncrf.sampler import Sampler

# A conditional below counts as that, 87.3 nat.
LEAST = 2.0**-126
# Contexts, and pixels that one is asked of.
MOST = 1 << 16
# What tables' sums are whole multiples of, where gates weigh them too.
UNIT = STEP / contract.GATE_STEPS


@dataclass(frozen=True)
class Objective:
    """What `CRFLoss` learns by: ``likelihood * L + cross_entropy * H``, both as the module says.

    likelihood, cross_entropy: weights of at least 0, not both 0. contexts: M, how many labellings of a visit H averages over:
    those after the last sweep and, evenly back, M - 1 more; with replicas, of each. margin: nats a wrong pixel of the free
    phase is favoured by, at least 0. every: of how many pixels H asks one a visit, whose terms count as many times. Raises
    ValueError or TypeError naming the argument.

    >>> Objective(cross_entropy=1.0, contexts=2)
    Objective(likelihood=1.0, cross_entropy=1.0, contexts=2, margin=0.0, every=1)
    """

    likelihood: float = 1.0
    cross_entropy: float = 0.0
    contexts: int = 4
    margin: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name in ("contexts", "every"):
                object.__setattr__(self, spec.name, validation.whole(spec.name, value, 1, MOST))
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{spec.name}: expected a number, got {type(value).__name__}")
            if not 0 <= (number := float(value)) < math.inf:
                raise ValueError(f"{spec.name}: expected a finite number of at least 0, got {value!r}")
            object.__setattr__(self, spec.name, number)
        if not self.likelihood and not self.cross_entropy:
            raise ValueError("cross_entropy: expected a weight above 0 where that of the likelihood is 0, got 0.0")

    @property
    def numbers(self) -> Tensor:
        """All of it, float64."""
        return torch.tensor([getattr(self, spec.name) for spec in fields(self)], dtype=torch.float64, device="cpu")

    def stops(self, sweeps: int) -> list[int]:
        """After which of a visit's sweeps contexts are kept, the last one among them; none without a cross-entropy."""
        kept = self.contexts if self.cross_entropy else 0
        return [-(-sweeps * (k + 1) // kept) for k in range(kept)]

    def check(self, sweeps: int) -> None:
        """Raises ValueError if a visit has too few sweeps."""
        if self.cross_entropy and self.contexts > sweeps:
            raise ValueError(f"contexts: expected at most the {sweeps} sweeps of a visit, got {self.contexts}")

    def favoured(self, logits: Tensor, known: Known) -> Tensor | None:
        """The logits ``[N, L, *shape]`` that the free phase samples by; None for the model's own."""
        if not self.margin:
            return None
        cost = known.labelled[:, None].to(torch.float32) * -self.margin
        place = known.labels[:, None].long().clamp(max=logits.shape[1] - 1)
        return logits.detach().to(torch.float32).scatter_add(1, place, cost)

    def asked(self, shape: Shape, index: Tensor, count: Tensor, key: tuple[int, int]) -> Tensor | None:
        """Which pixels H asks after ``count`` sweeps of images ``index``, int64 ``[N]``: bool ``[N, *shape]``; None: all."""
        if self.every == 1:
            return None
        drawn = contract.draw_uniform(torch.zeros_like(index), count, index, 0, contract.ASKED, key)
        first = (drawn * self.every).long().clamp(max=self.every - 1)
        place = first.view(-1, *[1] * len(shape))
        for axis, size in enumerate(reversed(shape)):
            steps = torch.arange(size, device=index.device) * (self.every // 2 if axis else 1)
            place = place + steps.view(-1, *[1] * axis)
        return place % self.every == 0

    def value(self, gap: Tensor, soft: Soft | None) -> Tensor:
        """The whole's, float64 ``[]`` or ``[N]`` as the likelihood's ``gap``."""
        if soft is None:
            return gap if self.likelihood == 1 else gap * self.likelihood
        return gap * self.likelihood + self.cross_entropy * (soft.value if gap.dim() else soft.value.sum())

    def errors(self, found: Errors, soft: Soft | None) -> Errors:
        """The whole's, of the likelihood's."""
        parts = list(found) if self.likelihood == 1 else [part * self.likelihood for part in found]
        for k, own in enumerate(() if soft is None else soft[1:]):
            if own.numel():
                parts[k] = parts[k] + (self.cross_entropy * own).to(parts[k].dtype)
        return Errors(*parts)


PLAIN = Objective()


class Soft(NamedTuple):
    """The cross-entropy H and its gradient; each image's apart where asked for."""

    value: Tensor
    """float64 [N]."""
    logits: Tensor
    """float64 [N, L, *shape]."""
    pairwise: Tensor
    """float64 [C, L, L] or [C, R, L, L], of graphs [entries]: whole multiples of `STEP`."""
    gated: Tensor
    """float64 [G, Cg, L, L], of whole multiples of `STEP` / 128; empty without gates."""
    gates: Tensor
    """float64 [N, G, Cg, *shape]; of graphs [F]; empty where no gate wants one."""

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Whole numbers that ranks sum, int64: of both tables, and of the value."""
        parts = (self.pairwise / UNIT, self.gated / UNIT, self.value.sum()[None].clamp(0, 1e9) / STEP)
        first, second, value = (part.round().long() for part in parts)
        return first, second, value

    def read(self, pairwise: Tensor, gated: Tensor, value: Tensor) -> Soft:
        """This with the sums of all ranks' `numbers`."""
        return self._replace(pairwise=pairwise.double() * UNIT, gated=gated.double() * UNIT, value=value.double() * STEP)


def cross_entropy(
    sampler: Sampler[CRF], batch: Batch, free: ChainState, contexts: list[Tensor], tables: Tables, known: Known,
    bad: Tensor, objective: Objective, *, moved: bool, flow: bool, each: bool,
) -> Soft:  # fmt: skip
    """H of a visit's contexts, rows uint8 ``[N, R, volume]`` each, times what the objective asks one pixel of.

    bad: bool [], whether the call is; moved: whether the chains are of other logits or tables than the model's; flow: whether
    gates want their errors; each: tables' apart for each image, ``[N, ..]``.
    """
    plan, engine, images = replace(free.plan, replicas=1), sampler.engine, len(free.index)
    own = not moved and free.replicas == 1
    asked = objective.asked(free.shape, plan.index, free.count, contract.key_of(sampler.seed))
    if asked is not None:
        # Conditionals of the others are not needed.
        plan = replace(plan, free=plan.free & asked.flatten(1)[:, plan.pixels])
    work = free.work
    if not own or asked is not None:
        work = engine.prepare(plan, batch.logits, batch.tables, work if own else None)
    counted = plan.free & known.counted.flatten(1)[:, plan.pixels]
    sites = _sites(counted)
    slots, number = len(plan.positions), plan.num_labels
    image = sites.div(slots, rounding_mode="floor")
    pixel = plan.pixels[sites - image * slots]
    target = known.labels.flatten(1)[image, pixel].long().clamp(max=number - 1)
    # On a GPU all slots are listed, for how many count is not asked.
    counts = counted.flatten()[sites] & ~bad
    labels = torch.cat(contexts, 1)
    chances = []
    for k in range(labels.shape[1]):
        found = torch.zeros((images, slots, number), dtype=torch.float64, device=sites.device)
        engine.conditionals(work, labels[:, k : k + 1].contiguous(), None, contract.scale_of(1.0), found)
        chances.append(found.view(-1, number)[sites])
    right = [part.gather(1, target[:, None])[:, 0].clamp(min=LEAST) for part in chances]
    total = sum(right[1:], start=right[0])
    value = (-(total / len(right)).log()).masked_fill(~counts, 0.0)
    truth = F.one_hot(target, number)
    for part, own_right in zip(chances, right, strict=True):
        # Responsibilities times [l = t] - p(l).
        part.neg_().add_(truth).mul_((own_right / total)[:, None]).masked_fill_(~counts[:, None], 0.0)
    unary = -sum(chances[1:], start=chances[0])
    dense = unary.new_zeros((images, math.prod(free.shape), number))
    # Slots without a pixel, which add nothing, name pixel 0.
    dense.index_put_((image, pixel), unary, accumulate=dense.device.type != "cpu")
    # Sums of whole steps do not depend on order.
    weights = torch.stack([(part / STEP).round_().mul_(STEP).float() for part in chances])
    parts = [weights * (image == n)[:, None] for n in range(images)] if each else [weights]
    given = plan, labels, sites
    pairwise = [engine.soft_counts(*given, part) for part in parts]
    gated = [soft_gated(*given, part) if tables.gated is not None else unary.new_zeros(0) for part in parts]
    gates = unary.new_zeros(0)
    if flow and tables.gated is not None:
        gates = soft_gates(*given, weights, tables.gated.detach(), dense.shape[1])
        gates = gates.view(*gates.shape[:-1], *free.shape)
    elif flow and plan.factors is not None:
        gates = soft_factor_gates(*given, weights, tables.pairwise.detach())
    join: Callable[[list[Tensor]], Tensor] = torch.stack if each else operator.itemgetter(0)
    logits = dense.movedim(-1, 1).reshape(images, number, *free.shape)
    soft = Soft(value.new_zeros(images).index_add(0, image, value), logits, join(pairwise), join(gated), gates)
    return soft if asked is None else Soft(*(objective.every * part for part in soft))


def _sites(counted: Tensor) -> Tensor:
    """Numbers of the slots that count, int64; of all of them where that would stall a stream."""
    if counted.device.type == "cpu":
        return counted.flatten().nonzero()[:, 0]
    return torch.arange(counted.numel(), device=counted.device)
