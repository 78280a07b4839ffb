"""How is an image cut that does not fit whole? Into windows that overlap, each of which answers for its middle alone.

Along an axis of n pixels windows of t pixels begin at 0, t - 2h, 2 (t - 2h), .. and n - t, h being the halo; where two overlap,
the first answers up to the middle of what they share. So a pixel is answered by one window, and lies h pixels or more from each
side of it that is not the image's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tritoncrf import validation

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Window:
    """A window and what it answers for, one slice an axis."""

    seen: Slices
    """Of the image: what the window sees."""
    answered: Slices
    """Of the image: what it answers for."""
    core: Slices
    """Of the window: the same pixels."""


def windows(shape: Sequence[int], tile: int | Sequence[int], overlap: int | Sequence[int]) -> list[Window]:
    """The windows of an image of ``shape``, in raster order; an axis shorter than its tile is seen whole.

    tile: a window's side in pixels, overlap: the halo h in pixels, each one for all axes or one an axis. Raises ValueError or
    TypeError naming the argument, ValueError also if a tile is not above twice its overlap.

    >>> [(one.seen, one.answered) for one in windows((10,), 6, 1)]
    [((slice(0, 6, None),), (slice(0, 5, None),)), ((slice(4, 10, None),), (slice(5, 10, None),))]
    """
    sides, halos = _each("tile", tile, len(shape), 1), _each("overlap", overlap, len(shape), 0)
    for side, halo in zip(sides, halos, strict=True):
        if side <= 2 * halo:
            raise ValueError(f"tile: expected more than twice the overlap of {halo}, got {side}")
    axes = [_axis(length, side, halo) for length, side, halo in zip(shape, sides, halos, strict=True)]
    return [Window(*(tuple(parts) for parts in zip(*chosen, strict=True))) for chosen in itertools.product(*axes)]


def _axis(length: int, side: int, halo: int) -> list[tuple[slice, slice, slice]]:
    side = min(side, length)
    # A window that is all of the axis has no inner side, so its halo does not matter.
    starts = [0] if side == length else [*range(0, length - side, side - 2 * halo), length - side]
    borders = [0, *((first + side + second) // 2 for first, second in itertools.pairwise(starts)), length]
    return [
        (slice(start, start + side), slice(low, high), slice(low - start, high - start))
        for start, (low, high) in zip(starts, itertools.pairwise(borders), strict=True)
    ]


def _each(name: str, value: int | Sequence[int], axes: int, least: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes
    if len(given) != axes:
        raise ValueError(f"{name}: expected one integer or {axes}, one an axis, got {value!r}")
    return tuple(validation.whole(name, each, least) for each in given)
