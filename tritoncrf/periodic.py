"""What is a neighbour on a ring? The edges across the seam of an axis that wraps, as edges of an open lattice.

On an axis of n sites that wraps, class c joins i and ``(i + d_c) mod n``. Those that cross the seam are the edges of an open
lattice with offset ``d_c - n`` (``d_c + n`` where d_c is negative) under the same table, still from i to j. So a periodic
lattice is an open one with up to ``2^w`` offsets a class, w the axes that wrap along which it steps. An axis needs
``2 * reach + 1`` sites: then no pair is joined twice and no site to itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from tritoncrf.lattice import Neighborhood, Offset
from tritoncrf.validation import Guard

Wrap = tuple[bool, ...]


def axes(wrap: Sequence[bool] | bool, ndim: int) -> Wrap:
    """Which of the axes wrap, one bool each, () for none of them; one bool stands for all. Else ValueError."""
    given = (wrap,) * ndim if isinstance(wrap, bool) else tuple(wrap) if isinstance(wrap, Sequence) else None
    if given is None or len(given) != ndim or not all(isinstance(ring, bool) for ring in given):
        raise ValueError(f"wrap: expected a bool, or {ndim} of them (one an axis), got {wrap!r}")
    return given if any(given) else ()


def unroll(neighborhood: Neighborhood, wrap: Wrap, shape: Sequence[int]) -> tuple[Neighborhood, tuple[int, ...]]:
    """The open lattice's offsets, those within ``shape`` alone where an axis wraps, and the class each belongs to."""
    offsets: list[Offset] = []
    classes: list[int] = []
    for c, offset in enumerate(neighborhood.offsets):
        ways = [
            (step, step - length if step > 0 else step + length) if ring and step else (step,)
            for step, length, ring in zip(offset, shape, wrap or (False,) * len(shape), strict=True)
        ]
        for way in itertools.product(*ways):
            offsets.append(way)
            classes.append(c)
    return Neighborhood(tuple(offsets)) if wrap else neighborhood, tuple(classes)


def check(guard: Guard, neighborhood: Neighborhood, wrap: Wrap, shape: Sequence[int], sizes: Tensor | None) -> None:
    """Raises ValueError unless images of padded ``shape``, of own ``sizes`` ``[N, d]``, can be rings where axes wrap."""
    for axis, ring in enumerate(wrap):
        least = 2 * neighborhood.reach[axis] + 1
        if ring and shape[axis] < least:
            raise ValueError(
                f"wrap: expected at least {least} sites along axis {axis}, which wraps (twice the reach of "
                f"{neighborhood.reach[axis]}, and one), got {shape[axis]}"
            )
        if ring and sizes is not None:
            own = sizes[:, axis]

            def got(own: Tensor = own, axis: int = axis) -> str:
                return f"{int(own[own != shape[axis]][0])} of {shape[axis]}"

            guard.require(own == shape[axis], f"sizes: expected the batch's full length along axis {axis}, which wraps", got)
