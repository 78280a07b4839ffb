"""What comes in? A batch of images, its targets and the labels chains start from, checked once for both phases.

Whatever a deferred check will report is made harmless here: it must not index out of anything meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.chains import ChainState
from tritoncrf.edge_inputs import Given
from tritoncrf.engines import Plan, Tables
from tritoncrf.layout import Layout
from tritoncrf.model_protocol import CRF
from tritoncrf.validation import Guard

ALLOWED = "target: expected labels that the logits allow"


@dataclass(frozen=True)
class Batch:
    """N images and the tables, checked."""

    logits: Tensor
    present: Tensor
    """bool [N, *shape]: the pixels that exist."""
    layout: Layout
    plan: Plan
    """With no site clamped."""
    count: Tensor
    """int64 [N]: sweeps done over each image's life."""
    tables: Tables
    """float32, rounded."""
    version: tuple[int, ...] | None
    """As in `ChainState`."""
    whole: bool = False
    """Whether all pixels are known to exist."""

    def at(self, index: Tensor, count: Tensor | None) -> Batch:
        """The batch under other random numbers: int64 ``[N]`` positions in the data set, and sweeps done, None for as many."""
        count = self.count if count is None else count
        return replace(self, plan=replace(self.plan, index=index.contiguous()), count=count)


@dataclass(frozen=True)
class LossInputs:
    """What a loss was called with, all as in `CRFLoss.forward`; a graph's nodes are the pixels of a row already."""

    logits: Tensor
    target: Tensor
    index: Tensor | None
    sizes: Tensor | None
    mask: Tensor | None
    clamp: Tensor | None
    edges: Given
    view: Tensor | None


class Known(NamedTuple):
    """What is known of the labels of N images."""

    labels: Tensor
    """uint8 [N, *shape], 255 where none is known."""
    labelled: Tensor
    """bool [N, *shape]."""
    clamp: Tensor | None
    """bool [N, *shape]: the pixels whose labels are known at test time too; None: none is."""
    counted: Tensor
    """bool [N, *shape]: the labelled pixels that are not clamped."""


def check_batch(
    guard: Guard, crf: CRF, logits: Tensor, index: Tensor | None, sizes: Tensor | None, mask: Tensor | None, replicas: int,
    count: Tensor | None, edges: Given, values: bool = True,
) -> tuple[Plan, Layout, Tensor, Tensor]:  # fmt: skip
    """Plan, layout, present pixels and counts of a batch given as to `Sampler.init`.

    values: whether the logits' are looked at, as they are unless somebody else does.
    """
    device, labels = crf.device, crf.num_labels
    validation.logits(logits, labels, crf.ndim, device)
    replicas = validation.whole("replicas", replicas, 1, 1 << contract.REPLICA_BITS)
    images, shape = len(logits), tuple(logits.shape[2:])
    layout = crf.layout(shape, edges)
    frame, (order, none) = layout.frame(shape), layout.numbers(images).unbind()
    sizes, mask = validation.extents(guard, images, shape, sizes, mask, device, frame.limits)
    index = check_numbers(guard, "index", index, 1 << contract.INDEX_BITS, order)
    count = check_numbers(guard, "count", count, 1 << contract.SWEEP_BITS, none)
    present = frame.exists(images, sizes, mask)
    if values:
        held = None if sizes is None and mask is None else present
        validation.logit_values(guard, logits, held, graph=layout.fold is not None)
    plan = layout.plan(labels, shape, index, replicas, sizes, mask, None, present)
    return crf.plan_with_edges(guard, plan, layout, present, sizes, edges), layout, present, count


def check_logits(guard: Guard, crf: CRF, chains: ChainState, logits: Tensor) -> Tensor:
    """New logits of chains that are under way, checked; those of graphs as rows."""
    fold = chains.layout.fold
    logits = logits if fold is None else fold.logits(logits, crf.num_labels, crf.device)
    validation.logits(logits, crf.num_labels, crf.ndim, crf.device)
    expected = (len(chains.index), crf.num_labels, *chains.shape)
    if logits.shape != expected:
        raise ValueError(f"logits: expected the chains' shape {list(expected)}, got {list(logits.shape)}")
    validation.logit_values(guard, logits, chains.exists, graph=fold is not None)
    return logits


def starting_labels(guard: Guard, labels: Tensor | None, present: Tensor, clamp: Tensor | None, plan: Plan) -> Tensor:
    """uint8 ``[N, R, *shape]`` of labels given as to `Sampler.init`, 255 where a site is to be drawn, or none is."""
    images, *area = present.shape
    shape = images, plan.replicas, *area
    if labels is None:
        return torch.full(shape, contract.VOID, dtype=torch.uint8, device=present.device)
    labels = validation.shaped("labels", labels, [tuple(present.shape), shape], validation.INTEGERS, present.device)
    # The narrower integer types do not hold 255.
    labels = labels.long()
    if labels.dim() < len(shape):
        labels = labels[:, None].expand(shape)
    held = present[:, None].expand(shape)
    graph = plan.factors is not None
    validation.label_values(guard, "labels", labels, plan.num_labels, held, also=contract.VOID, graph=graph)
    if clamp is not None:
        lost = held & clamp[:, None] & (labels == contract.VOID)
        guard.require(~lost, "labels: expected a label at every clamped site",
                      lambda: f"255 at {validation.first(lost, graph)}")  # fmt: skip
    valid = held & (labels >= 0) & (labels < plan.num_labels)
    return torch.where(valid, labels, contract.VOID).to(torch.uint8)


def check_target(
    guard: Guard, batch: Batch, target: Tensor, clamp: Tensor | None, ignore_index: int, later: bool = False
) -> Known:
    """What is known of a batch's labels.

    later: whether the caller checks that the logits allow them, which it never does where pixels are clamped.
    """
    present, labels, graph = batch.present, batch.plan.num_labels, batch.plan.factors is not None
    if clamp is not None:
        clamp = validation.shaped("clamp", clamp, [tuple(present.shape)], [torch.bool], present.device)
    target = validation.shaped("target", target, [tuple(present.shape)], validation.INTEGERS, present.device)
    # Bytes hold every label; narrower integers with a sign do not.
    target = target if target.dtype == torch.uint8 else target.long()
    safe = target.clamp(0, labels - 1)
    labelled = safe.eq(target)
    fine = labelled
    if target.dtype != torch.uint8 or 0 <= ignore_index <= contract.VOID:
        fine = labelled | target.eq(ignore_index)
    if not batch.whole:
        labelled, fine = labelled & present, fine.ge(present)
    expected = f"target: expected labels from 0 to {labels - 1} (or {ignore_index})"
    guard.require(fine, expected, lambda: f"{int(target[~fine][0])} at {validation.first(~fine, graph)}")
    void = batch.layout.frame(tuple(present.shape[1:])).void
    known = torch.where(labelled, safe, void).to(torch.uint8)
    if clamp is not None or not later:
        forbidden = labelled & torch.isneginf(batch.logits.gather(1, safe.long()[:, None])[:, 0])
        got = lambda: f"{int(target[forbidden][0])} with logit -inf at {validation.first(forbidden, graph)}"  # noqa: E731
        guard.require(~forbidden, ALLOWED, got)
    if clamp is not None:
        # A clamped pixel without a label is less than one with it.
        held = labelled.ge(clamp if batch.whole else clamp & present)
        guard.require(held, "clamp: expected a label in target at every clamped pixel",
                      lambda: f"ignore_index at {validation.first(~held, graph)}")  # fmt: skip
    return Known(known, labelled, clamp, labelled if clamp is None else labelled.gt(clamp))


def check_numbers(guard: Guard, name: str, value: Tensor | None, limit: int, default: Tensor) -> Tensor:
    """Integers from 0 to limit - 1 given as an argument, int64 of ``default``'s shape; ``default`` where there are none."""
    if value is None:
        return default
    value = validation.shaped(name, value, [tuple(default.shape)], validation.INTEGERS, default.device).long()
    bad = (value < 0) | (value >= limit)
    guard.require(~bad, f"{name}: expected integers from 0 to 2^{limit.bit_length() - 1} - 1", lambda: f"{int(value[bad][0])}")
    return value.clamp(0, limit - 1).contiguous()
