"""How fast are others on the same problem? One small file a peer; ``python -m bench.peers`` pairs them with our engines.

A peer is a module with ``start(task) -> {update: chains}``, or a sentence that says why it cannot run here. All start from the
same settled labels, a chain for each thread, and sweep exactly: site by site or by the colours that the task names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bench.problem import Standard
from tritoncrf.coloring import sublattice_coloring

Array = npt.NDArray[Any]


class Chains(Protocol):
    """Labellings being sampled, as many as the task has to start from."""

    def run(self, sweeps: int) -> int:
        """Moves every chain so many sweeps on; returns how many labels changed, -1 where it is not told."""

    def labels(self) -> Array:
        """Integers [chains, H, W], of a graph [chains, V]."""


Ways = dict[str, Chains]


@dataclass(frozen=True)
class Task:
    """A problem as plain arrays, with labels to start from."""

    unary: Array
    """float32 [H, W, L]: energies."""
    pairwise: Array
    """float32 [C, L, L]: table of class c for (y_i, y_j), j = i + offsets[c]."""
    offsets: Array
    """int64 [C, 2]."""
    color: Array
    """int64 [H, W]: sites of one colour share no edge."""
    start: Array
    """uint8 [chains, H, W]."""
    kind: str
    """Of the standard problem, "" for another."""

    @classmethod
    def of(cls, problem: Standard, start: Array, kind: str = "") -> Task:
        unary = np.ascontiguousarray(-problem.logits[0].movedim(0, -1).numpy())
        neighborhood = problem.crf.neighborhood
        coordinates = np.moveaxis(np.indices(unary.shape[:2]), 0, -1)
        color = sublattice_coloring(neighborhood).color(coordinates)
        pairwise = problem.crf.pairwise.detach().numpy()
        return cls(unary, pairwise, np.array(neighborhood.offsets), color, start, kind)


@dataclass(frozen=True)
class Frame:
    """A task laid out flat with a border of ``void`` (label L) around each image, as torch and JAX programs like it."""

    shape: tuple[int, int]
    """Of an image with its border."""
    reach: int
    labels: Array
    """uint8 [chains, pixels with border]."""
    steps: Array
    """int64 [D]: to the neighbours, both ends of every class."""
    rows: Array
    """float32 [D, L + 1, L]: the energy that a neighbour's label adds to each of ours; void adds none."""
    phases: list[Array]
    """int64 [sites] of each colour: where its sites are."""
    unaries: list[Array]
    """float32 [sites, L] of each colour."""

    @classmethod
    def of(cls, task: Task) -> Frame:
        (height, width), labels = task.color.shape, task.unary.shape[-1]
        reach = int(np.abs(task.offsets).max())
        padded = np.pad(task.start, ((0, 0), (reach, reach), (reach, reach)), constant_values=labels)
        wide = width + 2 * reach
        steps = task.offsets @ np.array([wide, 1])
        rows = np.zeros((2 * len(steps), labels + 1, labels), np.float32)
        rows[0::2, :-1] = task.pairwise.transpose(0, 2, 1)
        rows[1::2, :-1] = task.pairwise
        place = (np.arange(height)[:, None] + reach) * wide + np.arange(width) + reach
        chosen = [task.color == color for color in np.unique(task.color)]
        return cls(
            shape=(height + 2 * reach, wide), reach=reach, labels=padded.reshape(len(padded), -1),
            steps=np.stack([steps, -steps], 1).ravel(), rows=rows,
            phases=[place[mask] for mask in chosen], unaries=[task.unary[mask] for mask in chosen],
        )  # fmt: skip

    def image(self, labels: Array) -> Array:
        """Labels ``[chains, pixels with border]`` without their border, ``[chains, H, W]``."""
        r = self.reach
        return labels.reshape(len(labels), *self.shape)[:, r:-r, r:-r]


def side_by_side(calls: Sequence[Callable[[], int]]) -> int:
    """Makes every call on a thread of its own; the sum of what they return."""
    found = [0] * len(calls)

    def work(place: int) -> None:
        found[place] = calls[place]()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(1, len(calls))]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    return sum(found)
