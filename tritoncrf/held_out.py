"""How good is the model on labels it does not learn from? Their negative log-pseudolikelihood (Besag 1975).

``-sum_i log p(y_i | y_j of the labelled neighbours j)`` by eq. (16) of Kirillov et al. 2016: proper, so that the model that the
labels came from has the least in the mean, and without sampling noise. The conditionals are those that sampling draws from, of
rounded energies; one below 2^-126 counts as that, 87.3 nat. Pixels without a label are left out, as if they did not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.compiling import uncompiled
from tritoncrf.edge_inputs import Edges
from tritoncrf.graphs import Carried, FactorGraph
from tritoncrf.inputs import check_target
from tritoncrf.layout import pack, with_clamps
from tritoncrf.visit import Visit
from tritoncrf.visit_operator import OPERATOR

LEAST = 2.0**-126


@uncompiled
def held_out(
    loss: Visit, logits: Tensor, target: Tensor, sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None,
    kinds: Tensor | None, gates: Tensor | None, graph: FactorGraph | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The value, float32 ``[]`` or ``[N]``, as the loss reduces, over labelled, unclamped pixels, and whether the call was bad.

    Arguments as of `CRFLoss.forward`. Moves no chain and draws nothing.
    """
    sampler, crf = loss.sampler, loss.sampler.crf
    if (fold := None if graph is None else crf.fold(graph, sizes=sizes, kinds=kinds, view=None)) is not None:
        logits, target, mask, clamp = fold.inputs(crf.num_labels, crf.device, logits, target, mask, clamp)
        sizes = fold.sizes
    with sampler.guard.call(crf.device), torch.no_grad():
        edges = Edges(kinds, gates) if graph is None else graph
        batch = sampler.lay_out(logits, None, sizes=sizes, mask=mask, replicas=1, count=None, edges=edges)
        known = check_target(sampler.guard, batch, target, clamp, loss.ignore_index)
        counted = known.counted
        plan = with_clamps(batch.plan, ~counted)
        rows = pack(plan, batch.layout, known.labels[:, None], known.labelled)
        found = torch.zeros((*plan.free.shape, plan.num_labels), dtype=torch.float64, device=rows.device)
        work = sampler.engine.prepare(plan, batch.logits, batch.tables)
        sampler.engine.conditionals(work, rows, None, contract.scale_of(1.0), found)
        own = torch.where(counted, known.labels, 0).flatten(1)[:, plan.pixels].long()
        taken = found.gather(2, own[..., None])[..., 0].clamp(min=LEAST)
        value = -torch.where(plan.free, taken.log(), 0.0).sum(1)
        if loss.reduction != "none":
            value = value.sum() / (counted.sum().clamp(min=1) if loss.reduction == "mean" else 1)
        bad = sampler.guard.flag(batch.present.device)
        return torch.where(bad, torch.nan, value).float(), bad


if OPERATOR:

    @torch.library.custom_op("tritoncrf::held_out", mutates_args=())
    def operator(
        loss: Visit, logits: Tensor, target: Tensor, sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None,
        kinds: Tensor | None, gates: Tensor | None, images: int, graph: Carried,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """`held_out` of a compiled step; images: how many of them, or graphs, have a value each; 0: there is one."""
        value, bad = held_out(loss, logits, target, sizes, mask, clamp, kinds, gates, graph.graph())
        return value, bad.clone()

    @operator.register_fake
    def _(
        loss: Visit, logits: Tensor, target: Tensor, sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None,
        kinds: Tensor | None, gates: Tensor | None, images: int, graph: Carried,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        shape = [images] if images else []
        return logits.new_empty(shape, dtype=torch.float32), logits.new_empty((), dtype=torch.bool)
