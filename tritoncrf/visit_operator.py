"""How does a compiled step carry a visit? As one operator, which compilers do not open: the bit contract covers what is in it.

What a visit writes in place, chains and counts, the operator names, so that neither a compiled nor a captured step reorders it.
Without opaque types of torch's there is none, and a compiled step breaks its graph at the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf.compiling import unopened
from tritoncrf.graphs import CARRIED, Carried
from tritoncrf.visit import Visit

OPERATOR = unopened(Visit) and CARRIED
"""Whether this torch's compilers can carry a visit: else a compiled step breaks its graph at the loss."""

if OPERATOR:

    @torch.library.custom_op("tritoncrf::visit", mutates_args=("visits", "labels", "sweeps"))
    def visit(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, view: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None,
        sweeps: Tensor | None, images: int, graph: Carried,
    ) -> tuple[
        Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
    ]:  # fmt: skip
        """A visit of a compiled step; images: how many of them, or graphs, there are."""
        given = (target, index, sizes, mask, clamp, kinds, gates, weight, view, flow, each, visits, labels, sweeps)
        # An operator may not return what shares memory with another of its results.
        (value, unary, tables, weighed, flowing, factor, bad), tally = loss(
            logits, pairwise, gated, *given, graph.graph()
        )
        read = tally.statistics()
        flips, gap, accuracy, labelled = read.flip_rate, read.energy_gap, read.chain_accuracy, read.labelled.clone()
        return (
            value, unary.contiguous(), tables, weighed, flowing.clone(), factor, bad, flips, gap, accuracy, labelled,
            read.energy_drop, read.drops,
        )  # fmt: skip

    @visit.register_fake
    def _(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, view: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None,
        sweeps: Tensor | None, images: int, graph: Carried,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        dtypes = (torch.float32, torch.bool, torch.float32, torch.float32, torch.float32, torch.int64, torch.float32)
        factor, bad, *read = (logits.new_empty((), dtype=dtype) for dtype in dtypes)
        apart = [images] if each else []
        value = logits.new_empty(apart, dtype=torch.float32)
        shapes = [logits.shape, (*apart, *pairwise.shape), (*apart, *((0,) if gated is None else gated.shape))]
        shapes.append((0,) if gates is None or not flow else gates.shape)
        unary, tables, weighed, flowing = (logits.new_empty(shape, dtype=torch.float32) for shape in shapes)
        drops = logits.new_empty(images, dtype=torch.float32)
        return value, unary, tables, weighed, flowing, factor, bad, *read, drops
