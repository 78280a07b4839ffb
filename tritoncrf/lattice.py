"""Who touches whom: the offsets that make the edge classes of a lattice.

Class c joins every pair of sites ``(i, i + d_c)`` that both exist. An offset and its antipode are the same edges, so a
neighbourhood holds one of each pair, and C classes give a site up to 2C neighbours (Kirillov et al. 2016, eq. 15, Fig. 2b).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Offset = tuple[int, ...]
# No image is longer: its sites are numbered with 32 bits.
FARTHEST = (1 << 32) - 1


def _antipode(offset: Offset) -> Offset:
    return tuple(-step for step in offset)


def _is_half(offset: Offset) -> bool:
    """True for the member of an antipodal pair whose first non-zero step is positive."""
    return offset > (0,) * len(offset)


def _by_distance(offset: Offset) -> tuple[int, int, Offset]:
    return sum(step * step for step in offset), max(map(abs, offset)), offset


def _halves(points: Iterable[Offset]) -> list[Offset]:
    """Each antipodal pair once, without zero, nearest first."""
    unique = {p if _is_half(p) else _antipode(p) for p in points if any(p)}
    return sorted(unique, key=_by_distance)


def _integer(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return operator.index(value)


def _graph(given: object) -> str | None:
    """What a graph calls itself, where one is given for offsets; None for anything else."""
    kind = type(given)
    if kind.__module__.split(".")[0] == "scipy" and hasattr(given, "tocoo"):
        return f"a scipy {kind.__name__}"
    if hasattr(given, "adjacency") and hasattr(given, "edges"):
        return f"a graph ({kind.__name__})"
    if getattr(given, "layout", None) is not None and str(getattr(given, "layout")) != "torch.strided":  # noqa: B009
        return f"a sparse {kind.__name__}"
    return None


def refuse_graph(name: str, given: object) -> None:
    """Raises TypeError where a graph is given for a neighbourhood: a scipy or torch sparse matrix, a networkx graph."""
    found = _graph(given)
    if found is not None:
        raise TypeError(
            f"{name}: expected offsets of a lattice (a graph is a FactorGraph, its model a FactorCRF), got {found}"
        )


@dataclass(frozen=True)
class Neighborhood:
    """Offsets of the edge classes, one of each antipodal pair, in the order given.

    ``offsets[c]`` is class c's step ``(dy, dx)`` (one integer per axis, any number of axes) and names table ``pairwise[c]``.

    >>> Neighborhood.nearest(8).offsets
    ((0, 1), (1, 0), (1, -1), (1, 1))
    >>> len(Neighborhood.grid(24, 8) | Neighborhood.grid(1) | Neighborhood.grid(2, 2))
    32
    """

    offsets: tuple[Offset, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.offsets, tuple):
            raise TypeError(f"offsets: expected a tuple of tuples (or use from_offsets), got {type(self.offsets).__name__}")
        if not self.offsets:
            raise ValueError("offsets: expected at least one offset, got none")
        seen: dict[Offset, int] = {}
        for place, offset in enumerate(self.offsets):
            if not isinstance(offset, tuple) or not all(type(step) is int for step in offset) or not offset:
                raise ValueError(f"offsets[{place}]: expected a tuple of integers, got {offset!r}")
            if len(offset) != len(self.offsets[0]):
                raise ValueError(f"offsets[{place}]: expected {len(self.offsets[0])} steps, got {offset}")
            if any(abs(step) > FARTHEST for step in offset):
                raise ValueError(f"offsets[{place}]: expected steps of at most {FARTHEST} sites, got {offset}")
            if not any(offset):
                raise ValueError(f"offsets[{place}]: expected a step away from the site, got zero {offset}")
            if offset in seen:
                raise ValueError(f"offsets[{place}]: expected distinct offsets, got {offset} again (first at {seen[offset]})")
            if _antipode(offset) in seen:
                raise ValueError(
                    f"offsets[{place}]: expected one of each antipodal pair, got {offset}, "
                    f"the opposite of offsets[{seen[_antipode(offset)]}]: the same edges"
                )
            seen[offset] = place

    @property
    def ndim(self) -> int:
        """Number of axes: 1 for sequences, 2 for images, 3 for volumes."""
        return len(self.offsets[0])

    @property
    def reach(self) -> tuple[int, ...]:
        """Longest step along each axis, in sites."""
        return tuple(max(abs(offset[axis]) for offset in self.offsets) for axis in range(self.ndim))

    def __len__(self) -> int:
        return len(self.offsets)

    def __or__(self, other: Neighborhood) -> Neighborhood:
        """The union: the classes of ``self``, then those of ``other`` whose edges are not there yet."""
        if not isinstance(other, Neighborhood):
            raise TypeError(f"other: expected a Neighborhood, got {type(other).__name__}")
        if other.ndim != self.ndim:
            raise ValueError(f"other: expected a neighbourhood of {self.ndim} axes, got {other.ndim}")
        mine = set(self.offsets) | {_antipode(offset) for offset in self.offsets}
        return Neighborhood(self.offsets + tuple(offset for offset in other.offsets if offset not in mine))

    def places(self, name: str, part: Neighborhood) -> tuple[int, ...]:
        """Where each of these classes stands in ``part``, a neighbourhood of some of them, -1 where not. Else ValueError."""
        if not isinstance(part, Neighborhood):
            raise TypeError(f"{name}: expected a Neighborhood, got {type(part).__name__}")
        strange = [offset for offset in part.offsets if offset not in self.offsets]
        if strange:
            near = "its opposite is one: the same edges" if _antipode(strange[0]) in self.offsets else "not among them"
            raise ValueError(f"{name}: expected offsets of the model's own neighbourhood, got {strange[0]}, {near}")
        stands = {offset: place for place, offset in enumerate(part.offsets)}
        return tuple(stands.get(offset, -1) for offset in self.offsets)

    def __repr__(self) -> str:
        return f"Neighborhood({len(self)} classes, {2 * len(self)} neighbours, reach {self.reach})"

    @classmethod
    def from_offsets(cls, offsets: Iterable[Sequence[int]]) -> Neighborhood:
        """Offsets as given; anything with integer steps (lists, numpy rows). Zero, duplicate and antipodal ones: ValueError."""
        rows: list[Offset] = []
        refuse_graph("offsets", offsets)
        if not isinstance(offsets, Iterable):
            raise TypeError(f"offsets: expected a sequence of offsets, got {type(offsets).__name__}")
        for place, offset in enumerate(offsets):
            try:
                if any(isinstance(step, bool) for step in offset):
                    raise TypeError
                rows.append(tuple(step.__index__() for step in offset))
            except (TypeError, AttributeError):
                raise ValueError(f"offsets[{place}]: expected a sequence of integers, got {offset!r}") from None
        return cls(tuple(rows))

    @classmethod
    def nearest(cls, neighbours: int, ndim: int = 2) -> Neighborhood:
        """The nearest ``neighbours`` (an even number) sites by Euclidean distance; 64 gives 32 classes."""
        pairs = _integer("neighbours", neighbours, 2) // 2
        if neighbours % 2:
            raise ValueError(f"neighbours: expected an even number (both ends of each class), got {neighbours}")
        _integer("ndim", ndim, 1)
        radius = 1
        while True:
            halves = _halves(itertools.product(range(-radius, radius + 1), repeat=ndim))
            # Every point within `radius` lies in the cube, so the ranking is final up to that distance.
            if len(halves) >= pairs and _by_distance(halves[pairs - 1])[0] <= radius * radius:
                return cls(tuple(halves[:pairs]))
            radius += 1

    @classmethod
    def grid(cls, reach: int, step: int = 1, ndim: int = 2) -> Neighborhood:
        """All multiples of ``step`` up to ``reach`` along every axis: grid(1) is the 3 x 3 block around a site."""
        _integer("step", step, 1), _integer("reach", reach, step), _integer("ndim", ndim, 1)
        span = range(-(reach // step) * step, reach + 1, step)
        return cls(tuple(_halves(itertools.product(span, repeat=ndim))))

    @classmethod
    def rays(cls, reach: int | Sequence[int], count: int = 8, ndim: int = 2) -> Neighborhood:
        """Rays along axes and diagonals. ``reach``: the radii in steps, or the longest of ``count`` log-spaced ones."""
        radii = tuple(reach) if isinstance(reach, Sequence) else _spaced(_integer("reach", reach, 1), count)
        for radius in radii:
            _integer("reach", radius, 1)
        directions = _halves(itertools.product((-1, 0, 1), repeat=_integer("ndim", ndim, 1)))
        return cls(tuple(_halves(tuple(radius * step for step in way) for radius in radii for way in directions)))

    @classmethod
    def log_polar(cls, reach: int, rings: int = 8, directions: int = 8) -> Neighborhood:
        """Rings in the plane at log-spaced radii up to ``reach``, every second one turned by half a step.

        ``directions`` (even) points a ring; points that round to the same offset are kept once.
        """
        _integer("reach", reach, 1), _integer("rings", rings, 1), _integer("directions", directions, 2)
        if directions % 2:
            raise ValueError(f"directions: expected an even number (antipodal points are one class), got {directions}")
        points: list[Offset] = []
        for ring in range(rings):
            radius = reach ** (ring / (rings - 1)) if rings > 1 else float(reach)
            for k in range(directions):
                angle = 2 * math.pi * (k + ring % 2 / 2) / directions
                # Rounding twice keeps a last-bit difference of sine and cosine from moving a point.
                points.append((round(round(radius * math.sin(angle), 6)), round(round(radius * math.cos(angle), 6))))
        return cls(tuple(_halves(points)))


def _spaced(reach: int, count: int) -> tuple[int, ...]:
    """Up to ``count`` distinct whole radii, log-spaced from 1 to ``reach``."""
    _integer("count", count, 1)
    if count == 1:
        return (reach,)
    return tuple(sorted({round(round(reach ** (k / (count - 1)), 6)) for k in range(count)}))
