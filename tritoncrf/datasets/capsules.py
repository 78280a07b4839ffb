"""What does a body of capsules look like from the front?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def render(
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    radii: NDArray[np.float64],
    labels: NDArray[np.uint8],
    size: tuple[int, int],
    background: int,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Renders capsules (segments with round ends) orthographically along -z, the nearest surface winning.

    Args:
        starts, ends: [n, 3] the segments' ends as (x right, y down, z towards the viewer), in pixels; pixel (row, col)
            is seen at (col, row).
        radii: [n], in pixels. labels: [n].
        size: (H, W) of the picture.
        background: the label where nothing is hit.

    Returns:
        height [H, W] along z in pixels, -inf where nothing is hit, and the labels [H, W].
    """
    rows, cols = size
    height = np.full(size, -np.inf, dtype=np.float32)
    label = np.full(size, background, dtype=np.uint8)
    low = np.ceil(np.minimum(starts, ends)[:, :2] - radii[:, None]).astype(int).clip(0)
    high = np.floor(np.maximum(starts, ends)[:, :2] + radii[:, None]).astype(int) + 1
    for n in range(len(radii)):
        x0, y0 = low[n]
        x1, y1 = min(high[n, 0], cols), min(high[n, 1], rows)
        if x0 >= x1 or y0 >= y1:
            continue
        window = (slice(y0, y1), slice(x0, x1))
        z = _capsule(
            np.arange(x0, x1, dtype=np.float32)[None, :],
            np.arange(y0, y1, dtype=np.float32)[:, None],
            starts[n].astype(np.float32),
            ends[n].astype(np.float32),
            np.float32(radii[n]),
        )
        nearer = z > height[window]
        height[window] = np.where(nearer, z, height[window])
        label[window][nearer] = labels[n]
    return height, label


def _capsule(
    x: NDArray[np.float32], y: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32], r: np.float32
) -> NDArray[np.float32]:
    """The largest z on the capsule over each (x, y), -inf beside it."""
    axis = b - a
    across = axis[0] ** 2 + axis[1] ** 2  # the axis' squared length as seen in the picture
    best = np.maximum(_ball(x, y, a, r), _ball(x, y, b, r))
    if across < 1e-6:
        return best
    # On the cylinder: z solves a quadratic along the ray; t is the place on the axis of the point found.
    dx, dy = x - a[0], y - a[1]
    length2 = across + axis[2] ** 2
    along = dx * axis[0] + dy * axis[1]
    inside = r * r * across - (dx * axis[1] - dy * axis[0]) ** 2
    z = (along * axis[2] + np.sqrt(length2 * np.maximum(inside, 0))) / across
    t = (along + z * axis[2]) / length2
    hit = (inside >= 0) & (t >= 0) & (t <= 1)
    return np.where(hit, np.maximum(best, z + a[2]), best)


def _ball(x: NDArray[np.float32], y: NDArray[np.float32], centre: NDArray[np.float32], r: np.float32) -> NDArray[np.float32]:
    under = r * r - (x - centre[0]) ** 2 - (y - centre[1]) ** 2
    return np.where(under >= 0, np.sqrt(np.maximum(under, 0)) + centre[2], np.float32(-np.inf))
