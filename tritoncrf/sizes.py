"""Which sizes do a data set's images have? One tuple an image, whatever they were given as."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence

from torch import Tensor

from tritoncrf import contract


def table_of(sizes: Iterable[Sequence[int]] | Tensor) -> list[tuple[int, ...]]:
    """Sizes given as a sequence of tuples or an integer tensor ``[D, d]``. Raises ValueError or TypeError for anything else."""
    try:
        rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        table = [tuple(operator.index(n) for n in size) for size in rows]
    except TypeError:
        raise TypeError(f"sizes: expected a sequence of tuples of integers or a tensor [D, d], got {sizes!r:.80}") from None
    if not table or not table[0] or len({len(size) for size in table}) != 1:
        raise ValueError(f"sizes: expected a size of as many axes for every image, at least one image, got {table[:3]}...")
    for place, size in enumerate(table):
        if not all(n >= 1 for n in size):
            raise ValueError(f"sizes[{place}]: expected whole numbers of at least 1, got {size}")
        if math.prod(size) >= 1 << contract.SITE_BITS:
            raise ValueError(f"sizes[{place}]: expected fewer than 2^32 pixels, got {tuple(size)}")
    return table
