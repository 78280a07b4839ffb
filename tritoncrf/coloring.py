"""Who may update together: colours such that no edge joins two sites of one colour.

Sites of a sublattice of Z^d that contains no offset share no edge, and neither do the sites of its cosets, so each coset is
a colour and a sweep over the colours is exact Gibbs sampling (Gonzalez et al., AISTATS 2011). The sublattices of index
K = 1, 2, ... are walked as Hermite normal forms: upper triangular integer matrices with diagonal (r_1 .. r_d) of
product K and 0 <= h_ij < r_j right of it, ordered by (r_d, r_{d-1}, ..) and then by h, row by row. The first without an
offset wins. Colour numbers are part of the bit contract.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tritoncrf.lattice import Neighborhood
from tritoncrf.sublattices import free_bases

Basis = tuple[tuple[int, ...], ...]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coloring:
    """A sublattice colouring of Z^d: ``basis`` (Hermite normal form, a row per axis) and its number of colours."""

    basis: Basis

    @property
    def colors(self) -> int:
        """How many colours a sweep goes through."""
        return int(np.prod([row[axis] for axis, row in enumerate(self.basis)]))

    def color(self, coordinates: Integers) -> Integers:
        """Colour of each position: coordinates ``[..., d]`` -> ``[...]`` in 0 .. colors - 1."""
        return _mixed_radix(_residues(coordinates, self.basis), self.basis)

    def validate(self, neighborhood: Neighborhood) -> None:
        """Raises ValueError if an edge class joins two sites of one colour."""
        clash = self.color(np.array(neighborhood.offsets)) == 0
        if clash.any():
            offset = neighborhood.offsets[int(clash.argmax())]
            raise ValueError(f"coloring: expected the ends of every edge to differ in colour, got one colour for {offset}")


@lru_cache(maxsize=256)
def sublattice_coloring(neighborhood: Neighborhood) -> Coloring:
    """The contract's colouring of a neighbourhood: the first sublattice of smallest index that contains no offset."""
    for index in itertools.count(1):
        for diagonal in _diagonals(index, neighborhood.ndim):
            bases = free_bases(neighborhood.offsets, diagonal)
            if len(bases):
                coloring = Coloring(tuple(tuple(map(int, row)) for row in bases[0]))
                coloring.validate(neighborhood)
                return coloring
    raise AssertionError("unreachable: the box of reach + 1 along every axis always colours")


def _diagonals(index: int, ndim: int) -> Iterator[tuple[int, ...]]:
    """(r_1 .. r_d) of product ``index``, ordered by the last, then the one before it, ..."""
    if ndim == 1:
        yield (index,)
        return
    for last in range(1, index + 1):
        if index % last == 0:
            for rest in _diagonals(index // last, ndim - 1):
                yield (*rest, last)


def _residues(coordinates: Integers, basis: Basis) -> Integers:
    """Coordinates ``[..., d]`` reduced by the basis rows, axis by axis."""
    residue = np.array(coordinates, dtype=np.int64)
    for axis, row in enumerate(basis):
        residue -= (residue[..., axis] // row[axis])[..., None] * np.array(row)
    return residue


def _mixed_radix(residue: Integers, basis: Basis) -> Integers:
    color = np.zeros(residue.shape[:-1], dtype=np.int64)
    for axis, row in enumerate(basis):
        color = color * row[axis] + residue[..., axis]
    return color
