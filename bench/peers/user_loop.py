"""How fast is the loop that a user writes? Row-major arrays, a bounds test for every neighbour, colours one after another.

The model's own arrays are read as they are: no border, no transposed tables, numba's own random numbers, libm's exp.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, unused-ignore"

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bench.peers import Array, Task, Ways, side_by_side


@functools.cache
def _compiled() -> Any:
    import numba as nb

    @nb.njit(nogil=True)
    def sweep(labels: Array, unary: Array, pairwise: Array, offsets: Array, ys: Array, xs: Array, sweeps: int) -> int:
        height, width, count = unary.shape
        energy = np.empty(count, np.float32)
        flips = 0
        for _ in range(sweeps):
            # Sites are listed colour by colour.
            for y, x in zip(ys, xs):  # noqa: B905
                for label in range(count):
                    energy[label] = unary[y, x, label]
                for c in range(len(offsets)):
                    dy, dx = offsets[c]
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        other = labels[y + dy, x + dx]
                        for label in range(count):
                            energy[label] += pairwise[c, label, other]
                    if 0 <= y - dy < height and 0 <= x - dx < width:
                        other = labels[y - dy, x - dx]
                        for label in range(count):
                            energy[label] += pairwise[c, other, label]
                low, total = energy.min(), 0.0
                for label in range(count):
                    energy[label] = np.exp(low - energy[label])
                    total += energy[label]
                left, new = np.random.random() * total, 0  # noqa: NPY002
                while new < count - 1 and left >= energy[new]:
                    left -= energy[new]
                    new += 1
                flips += new != labels[y, x]
                labels[y, x] = new
        return flips

    return sweep


class Loop:
    """A labelling for each chain, swept by the loop above."""

    def __init__(self, task: Task, sweep: Any) -> None:
        self.images = [image.copy() for image in task.start]
        order = np.argsort(task.color, axis=None, kind="stable")
        self.arguments = (task.unary, task.pairwise, task.offsets, *np.divmod(order, task.color.shape[1]))
        self.sweep = sweep

    def run(self, sweeps: int) -> int:
        return int(side_by_side([lambda y=image: self.sweep(y, *self.arguments, sweeps) for image in self.images]))  # type: ignore[misc]

    def labels(self) -> Array:
        return np.stack(self.images)


def start(task: Task) -> Ways | str:
    """The loop, a thread for each chain."""
    try:
        return {"gather": Loop(task, _compiled())}
    except ImportError:
        return "numba is not installed: pip install numba"
