"""Which sites does a thread visit, and what are their unary energies? Lists of free sites, and rule 1 for their logits.

Free sites are listed image by image and colour by colour, so that a colour is a range of a list; what is clamped, masked out or
outside of an image costs nothing after that, its logits are not even rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritoncrf.engines import Plan
from tritoncrf.engines.numba_cache import entry_point
from tritoncrf.engines.numba_draw import Integers, Positions, Singles, Words
from tritoncrf.engines.numba_threads import share

Array = npt.NDArray[Any]
# Sites that are looked at together.
GROUP = 16


@dataclass(frozen=True)
class Sites:
    """The free sites of all images, image by image and colour by colour; A of image n, B of all. Independent of energies."""

    first: Array
    """int64 [N + 1]: where each image's sites begin."""
    bounds: Array
    """int64 [N, K + 1]: colour bounds within an image's sites."""
    position: Array
    """int32 [B]: position in a chain's labels."""
    work: Array
    """int64 [N * R + 1]: sites up to each chain, by which chains are shared among threads."""
    site: Array
    """uint32 [B]: rule 2's number."""
    slot: Array
    """int32 [B]."""
    base: Array
    """int64 [N + 1]: where each image's chains begin in ``uniforms`` / 4 and in the field."""
    uniforms: Array
    """float32: for each chain ``[4, A + padding]``, the numbers of its current block of four sweeps."""
    blocks: Array
    """int64 [N * R]: which block that is, -1 for none."""
    stream: list[tuple[int, int, int]]
    """Key and purpose that ``uniforms`` were drawn with; mutable like them."""
    index: Array
    steps: Array
    """int64 [K]."""


def listed(plan: Plan) -> Sites:
    """The free sites of a plan. Raises ValueError for images too large for int32 positions."""
    if plan.volume >= 1 << 31:
        raise ValueError(f"logits: expected images of fewer than 2^31 padded pixels, got {plan.volume}")
    images = len(plan.index)
    first = np.zeros(images + 1, np.int64)
    free = plan.free.contiguous().numpy()
    # Not torch's sum: its threads spin for a while after an operation, and ours would find the cores taken.
    first[1:] = np.count_nonzero(free, axis=1).cumsum()
    total = int(first[-1])
    # One entry beyond a chain's sites stands for all that are not free, and whole groups are read past the end.
    strides = (np.diff(first) // GROUP + 2) * GROUP * plan.replicas
    base = np.zeros(images + 1, np.int64)
    base[1:] = strides.cumsum()
    position, slot = np.empty(total, np.int32), np.empty(total, np.int32)
    site, bounds = np.empty(total, np.uint32), np.empty((images, len(plan.color_bounds)), np.int64)
    if plan.factors is not None:
        colors = plan.factors.colors.contiguous().numpy()
        bounds = np.empty((images, plan.factors.num_colors + 1), np.int64)
        share(by_color, first, free, colors, plan.sites.contiguous().numpy(), first, position, site, slot, bounds)
    else:
        share(
            listing, first, free, plan.positions.numpy(), plan.sites.contiguous().numpy(),
            np.array(plan.color_bounds, np.int64), first, position, site, slot, bounds,
        )  # fmt: skip
    uniforms, blocks = np.empty(4 * int(base[-1]), np.float32), np.full(plan.chains, -1, np.int64)
    steps = np.array(plan.displacements, np.int64)
    work = np.zeros(plan.chains + 1, np.int64)
    work[1:] = np.diff(first).repeat(plan.replicas).cumsum()
    return Sites(first, bounds, position, work, site, slot, base, uniforms, blocks, [(0, 0, -1)], plan.index.numpy(), steps)


@entry_point
def listing(
    begin: int, end: int, free: npt.NDArray[np.bool_], positions: Integers, sites: Integers, color_bounds: Integers,
    first: Integers, position: Positions, site: Words, slot: Positions, bounds: Integers,
) -> None:  # fmt: skip
    """Lists the free sites of images ``begin`` to ``end``, colour by colour."""
    for image in range(begin, end):
        t = first[image]
        for color in range(len(color_bounds) - 1):
            bounds[image, color] = t - first[image]
            for s in range(color_bounds[color], color_bounds[color + 1]):
                if free[image, s]:
                    position[t], site[t], slot[t] = positions[s], sites[image, s], s
                    t += 1
        bounds[image, len(color_bounds) - 1] = t - first[image]


@entry_point
def by_color(
    begin: int, end: int, free: npt.NDArray[np.bool_], colors: Positions, sites: Integers, first: Integers, position: Positions,
    site: Words, slot: Positions, bounds: Integers,
) -> None:  # fmt: skip
    """Lists the free nodes of graphs ``begin`` to ``end`` colour by colour, in order within one."""
    for graph in range(begin, end):
        number = bounds[graph]
        number[:] = 0
        for s in range(free.shape[1]):
            if free[graph, s]:
                number[colors[graph, s] + 1] += 1
        for c in range(1, len(number)):
            number[c] += number[c - 1]
        at = number[:-1].copy()
        for s in range(free.shape[1]):
            if free[graph, s]:
                t = first[graph] + at[colors[graph, s]]
                position[t], site[t], slot[t] = s, sites[graph, s], s
                at[colors[graph, s]] += 1


@entry_point
def rounding(
    begin: int, end: int, logits: Singles, pixels: Integers, first: Integers, slot: Positions, forbidden: float, cap: float,
    unary: Singles,
) -> None:  # fmt: skip
    """Rule 1: logits ``[N, L, pixels]`` of images ``begin`` to ``end`` to the rows of their free sites."""
    number, area = logits.shape[1], logits.shape[2]
    part = 64
    listed = np.empty(area, np.int32)
    values, top = np.empty((number, part), np.float32), np.empty(part, np.float32)
    grid, half, back = np.float32(4096.0), np.float32(0.5), np.float32(1 / 4096)
    for image in range(begin, end):
        if first[image] == first[image + 1]:
            continue
        listed[:] = -1
        for t in range(first[image], first[image + 1]):
            listed[pixels[slot[t]]] = t - first[image]
        for corner in range(0, area, part):
            n = min(part, area - corner)
            some = np.int32(-1)
            for j in range(n):
                some = max(some, listed[corner + j])
            if some < 0:
                continue
            for j in range(n):
                top[j] = logits[image, 0, corner + j]
            for label in range(1, number):
                for j in range(n):
                    value = logits[image, label, corner + j]
                    top[j] = value if value > top[j] else top[j]
            for label in range(number):
                for j in range(n):
                    value = logits[image, label, corner + j]
                    away = top[j] - value
                    away = np.floor((away if away < cap else cap) * grid + half) * back
                    values[label, j] = forbidden if value == -np.inf else away
            for j in range(n):
                t = listed[corner + j]
                if t >= 0:
                    target = unary[first[image] + t]
                    for label in range(number):
                        target[label] = values[label, j]
                    for label in range(number, len(target)):
                        target[label] = forbidden


@entry_point
def rounding_rows(
    begin: int, end: int, logits: Singles, pixels: Integers, first: Integers, slot: Positions, forbidden: float, cap: float,
    unary: Singles,
) -> None:  # fmt: skip
    """As `rounding`, of logits ``[N, pixels, L]``."""
    number, width = logits.shape[2], unary.shape[1]
    grid, half, back = np.float32(4096.0), np.float32(0.5), np.float32(1 / 4096)
    for image in range(begin, end):
        for t in range(first[image], first[image + 1]):
            source, target = logits[image, pixels[slot[t]]], unary[t]
            top = source[0]
            for label in range(1, number):
                top = source[label] if source[label] > top else top
            for label in range(number):
                away = top - source[label]
                away = np.floor((away if away < cap else cap) * grid + half) * back
                target[label] = forbidden if source[label] == -np.inf else away
            for label in range(number, width):
                target[label] = forbidden
