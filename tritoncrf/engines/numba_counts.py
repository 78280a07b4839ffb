"""How often does each pair of labels stand on an edge, and each tuple on a factor? Counts and errors, on the engine's threads.

All are whole numbers, so their order never matters: a part of the images, or of a graph's factors, has zeros of its own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritoncrf.engines import Plan
from tritoncrf.engines import numba_errors as differences
from tritoncrf.engines import numba_nets as nets
from tritoncrf.engines.numba_sites import Array
from tritoncrf.engines.numba_threads import share

# Factors that a thread of its own is worth.
FACTORS = 1 << 14


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    if plan.factors is not None:
        # Each chain has counts of its own: for threads to have them too there may be no room.
        found = torch.zeros((*labels.shape[:2], plan.factors.starts[-1]), dtype=torch.int64, device="cpu")
        for arguments, number in _factors(plan, labels.shape[1], labels):
            given: tuple[Any, ...] = (0, number, *arguments, found.flatten(0, 1).numpy())
            nets.factor_counts(*given)
        return found
    rows = labels.flatten(0, -2).contiguous().numpy()
    shape = (len(rows), plan.num_classes, plan.num_kinds, plan.num_labels, plan.num_labels)
    counts = torch.zeros(shape, dtype=torch.int64, device="cpu")
    replicas = len(rows) // max(len(plan.index), 1)
    bounds = np.arange(len(rows) + 1)
    share(differences.pair_counts, bounds, replicas, rows, *counting(plan), counts.numpy())
    return counts.view(*labels.shape[:-1], *_shape(plan))


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    if plan.factors is not None:
        size = (plan.factors.starts[-1],)
        parts = [
            _summed(nets.factor_errors, size, -(-number // FACTORS), *arguments, last=number)
            for arguments, number in _factors(plan, plan.replicas, data, free)
        ]
        return sum(parts[1:], start=parts[0])
    rows = [_flat(labels.contiguous()) for labels in (data, free)]
    shape = (plan.num_classes, plan.num_kinds, plan.num_labels, plan.num_labels)
    found = _summed(differences.pair_errors, shape, len(plan.index), plan.replicas, *rows, *counting(plan), differences.MOST)
    return found.view(_shape(plan))


def gated_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    edges = plan.edges
    if edges is None or edges.gates is None:
        return torch.zeros((0, 0, plan.num_labels, plan.num_labels), dtype=torch.int64, device="cpu")
    rows = [_flat(labels.contiguous()) for labels in (data, free)]
    steps = np.array([plan.displacements[k] for k in edges.gated], np.int64)
    columns = np.array([edges.gating[k] for k in edges.gated], np.int64)
    shape = (*edges.gates.shape[1:3], plan.num_labels, plan.num_labels)
    gates = edges.gates.numpy(), edges.pixels.numpy()
    return _summed(differences.gated_errors, shape, len(plan.index), plan.replicas, *rows, steps, columns, *gates)


def _summed(
    function: Callable[..., None], shape: tuple[int, ...], parts: int, *arguments: Any, last: int | None = None
) -> Tensor:
    """The sum of what a function adds over ``last`` items, int64, in that many parts; None: an item a part."""
    total, guard = np.zeros(shape, np.int64), threading.Lock()
    last = parts if last is None else last

    def add(begin: int, end: int) -> None:
        own = np.zeros(shape, np.int64)
        function(begin, end, *arguments, own)
        with guard:
            np.add(total, own, out=total)

    if parts <= 1:
        function(0, last, *arguments, total)
    else:
        bounds = np.linspace(0, last, parts + 1).astype(np.int64)
        share(lambda begin, end: add(int(bounds[begin]), int(bounds[end])), np.arange(parts + 1))
    return torch.from_numpy(total)


def _factors(plan: Plan, replicas: int, *labels: Tensor) -> list[tuple[tuple[Any, ...], int]]:
    """What the compiled functions take before their answer, and how many factors there are, of each arity."""
    factors = plan.factors
    if factors is None:
        return []
    rows = [_flat(part.contiguous()) for part in labels]
    starts, none = np.array(factors.starts, np.int64), np.zeros(0, np.uint8)
    return [
        (
            (
                replicas, *rows, part.members.numpy(), factors.first.numpy(), part.table.numpy(),
                none if part.gate is None else part.gate.numpy(), plan.unit, starts, plan.num_labels,
            ),
            len(part.members),
        )
        for part in factors.ends
    ]  # fmt: skip


def counting(plan: Plan) -> tuple[Array, ...]:
    """Displacements, their classes, kinds ``[N, Ck, area]``, where a displacement's stand, and the pixel of each position."""
    steps, classes = (np.array(values, np.int64) for values in (plan.displacements, plan.classes))
    if plan.edges is None or plan.edges.kinds is None:
        return steps, classes, np.zeros((1, 0, 0), np.uint8), np.full(len(steps), -1), np.zeros(0, np.int64)
    return steps, classes, plan.edges.kinds.numpy(), np.array(plan.edges.kinded, np.int64), plan.edges.pixels.numpy()


def _shape(plan: Plan) -> tuple[int, ...]:
    return (plan.num_classes, *([plan.num_kinds] if plan.kinded else []), plan.num_labels, plan.num_labels)


def unary_errors(data: Tensor, free: Tensor, labels: int) -> Tensor:
    images, replicas, *shape = data.shape
    errors = torch.zeros((images, labels, math.prod(shape)), dtype=torch.float32, device="cpu")
    # Contiguous, for other layouts would be compiled apart.
    rows = [drawn.reshape(images * replicas, -1).contiguous().numpy() for drawn in (data, free)]
    share(differences.unary_errors, np.arange(images + 1), replicas, *rows, np.float32(1 / replicas), errors.numpy())
    return errors.view(images, labels, *shape)


def _flat(labels: Tensor) -> Array:
    rows: Array = labels.view(-1, labels.shape[-1]).numpy()
    return rows
