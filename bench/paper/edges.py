"""What is told of the edges? Texts of the experiment for kinds and gates, and the CRF that asks for them.

A text is one of `tritoncrf.edges.parse`, "steps:0.2" or "contrast:0.1,0.3" or "gaussian:0.3", over all classes of a
neighbourhood, or, with " on far" or " on near" behind it, over the sparse grid's classes or those of the two dense blocks.
Depth comes in units of 0.3 m about the body's own mean, pixels without depth 0.9 m behind it (`tritoncrf.datasets.DepthScale`):
0.2 is 60 mm, and an edge from a body to its background is a large step whose far end is known. Of one channel "contrast" is the
step's size without its sign.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

import tritoncrf as tc
from bench.paper.presets import DENSE
from tritoncrf.edge_inputs import Edges
from tritoncrf.edges import parse
from tritoncrf.lattice import Neighborhood


class Maker(Protocol):
    """What tells of the edges of images ``[N, channels, *shape]``: recipes and trees are such."""

    @property
    def neighborhood(self) -> Neighborhood:
        """The classes that it tells of."""

    @property
    def kinds(self) -> int | None: ...

    @property
    def gates(self) -> int: ...

    def __call__(self, image: Tensor) -> Edges: ...


def maker(text: str, neighborhood: Neighborhood) -> Maker:
    """The maker of a text. Raises ValueError that names the forms."""
    recipe, on, part = text.partition(" on ")
    parts = {"": neighborhood, "far": tc.Neighborhood(neighborhood.offsets[:-DENSE] or neighborhood.offsets)}
    parts["near"] = tc.Neighborhood(neighborhood.offsets[-DENSE:])
    if part not in parts or bool(on) != bool(part):
        raise ValueError(f"edges: expected a recipe, alone or with ' on far' or ' on near', got {text!r}")
    return parse(recipe, parts[part])


def crf_of(labels: int, neighborhood: Neighborhood, told: Maker | None) -> tc.GridCRF:
    """Zero tables of each class, and one more of each kind, or a gated one, where ``told`` has them."""
    if told is None:
        return tc.GridCRF(labels, neighborhood)
    part = None if told.neighborhood == neighborhood else told.neighborhood
    kinds, gates = told.kinds, told.gates
    return tc.GridCRF(
        labels, neighborhood, kinds=kinds, kinds_on=part if kinds else None, gates=gates, gates_on=part if gates else None
    )
