"""How are soft counts summed on a CPU? `soft.soft_counts` of a lattice as compiled loops: one row of float64 a neighbour.

Sums of multiples of `soft.STEP` are exact, so every part of the sites has zeros of its own.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tritoncrf.engines import Plan, soft
from tritoncrf.engines.numba_cache import entry_point, jit
from tritoncrf.engines.numba_counts import counting
from tritoncrf.engines.numba_draw import Bytes, Integers
from tritoncrf.engines.numba_sites import Array
from tritoncrf.engines.numba_threads import share
from tritoncrf.engines.numba_vectors import add_doubles, address, byte, keep

# Sites that a thread of its own is worth; sites whose weights stay in the cache while class after class passes over them.
WORTH, BLOCK = 1 << 12, 1 << 8
# Labels are padded to as many as are added at once.
LANES = 4


@jit
def _add(row: int, target: int, size: int) -> None:
    """Adds ``size`` bytes of float64 from an address to those at another."""
    for place in range(0, size, 8 * LANES):
        add_doubles(target + place, row + place)


@jit
def _pour(
    labels: int, many: int, volume: int, own: int, apart: int, total: int, target: int, number: int, size: int
) -> None:
    """Adds a site's weights to the rows, at ``target``, of a neighbour's labels in labelings ``volume`` bytes apart.

    own: address of the weights of the first labeling, the others ``apart`` further on; total: of their sum.
    """
    first, alike = byte(labels), True
    for m in range(1, many):
        alike &= byte(labels + m * volume) == first
    if alike:
        if first < number:
            _add(total, target + first * size, size)
        return
    for m in range(many):
        y = byte(labels + m * volume)
        if y < number:
            _add(own + m * apart, target + y * size, size)


@entry_point
def summed(
    begin: int, end: int, number: int, sites: Integers, weights: Array, total: Array, slots: int, positions: Integers,
    labels: Bytes, steps: Integers, classes: Integers, kinds: Bytes, kinded: Integers, pixels: Integers, ahead: Array,
    behind: Array,
) -> None:  # fmt: skip
    """Adds the weights of sites ``begin`` to ``end`` to ``ahead`` and ``behind`` ``[C, R, L, P]``, the neighbour's label first.

    number: L; weights: float64 ``[M, A, P]``, L padded by zeros, total: their sum ``[A, P]``; labels: ``[N, M, volume]``;
    kinds, kinded, pixels: as in `numba_errors.pair_counts`. Where a neighbour's label is the same in all labelings, as it
    mostly is, the sum is added.
    """
    many, volume, size = labels.shape[1], labels.shape[2], 8 * total.shape[1]
    apart, plane = len(sites) * size, number * size
    for first in range(begin, end, BLOCK):
        for k in range(len(steps)):
            place, step = kinded[k], steps[k]
            front, back = address(ahead[classes[k]]), address(behind[classes[k]])
            for a in range(first, min(first + BLOCK, end)):
                image = sites[a] // slots
                p, here, there = positions[sites[a] - image * slots], front, back
                if place >= 0:
                    here += plane * np.int64(kinds[image, place, pixels[p]])
                    there += plane * np.int64(kinds[image, place, pixels[p - step]])
                row, own = address(labels[image]) + p, address(weights) + a * size
                _pour(row + step, many, volume, own, apart, address(total) + a * size, here, number, size)
                _pour(row - step, many, volume, own, apart, address(total) + a * size, there, number, size)
    keep(labels)
    keep(weights)
    keep(total)
    keep(ahead)
    keep(behind)


def soft_counts(plan: Plan, labels: Tensor, sites: Tensor, weights: Tensor) -> Tensor:
    """As `soft.soft_counts`, which it calls for graphs."""
    if plan.factors is not None:
        return soft.soft_counts(plan, labels, sites, weights)
    wide = F.pad(weights.double(), (0, -plan.num_labels % LANES))
    shape = (2, plan.num_classes, plan.num_kinds, plan.num_labels, wide.shape[2])
    found, guard = np.zeros(shape), threading.Lock()
    given: tuple[Any, ...] = (
        plan.num_labels, sites.numpy(), wide.contiguous().numpy(), wide.sum(0).numpy(), len(plan.positions),
        plan.positions.numpy(), labels.contiguous().numpy(), *counting(plan),
    )  # fmt: skip

    def add(begin: int, end: int) -> None:
        own = np.zeros(shape)
        arguments: tuple[Any, ...] = (begin, end, *given, own[0], own[1])
        summed(*arguments)
        with guard:
            np.add(found, own, out=found)

    bounds = np.linspace(0, len(sites), min(torch.get_num_threads(), len(sites) // WORTH + 1) + 1).astype(np.int64)
    share(lambda first, last: add(int(bounds[first]), int(bounds[last])), np.arange(len(bounds)))
    ahead, behind = torch.from_numpy(found)[..., : plan.num_labels].unbind()
    # Ahead the own label is the first of the pair, behind the second.
    counts = ahead.transpose(2, 3) + behind
    return counts if plan.kinded else counts[:, 0]
