"""What is told of the edges? Texts of the experiment for kinds and gates, and the CRF that asks for them.

A text is one of `tritoncrf.edges.parse`, "steps:0.2" or "contrast:0.1,0.3" or "gaussian:0.3", over all classes of a
neighbourhood, or, with " on far" or " on near" behind it, over the sparse grid's classes or those of the two dense blocks.
Depth comes in units of 0.3 m about the body's own mean, pixels without depth 0.9 m behind it (`tritoncrf.datasets.DepthScale`):
0.2 is 60 mm, and an edge from a body to its background is a large step whose far end is known. Of one channel "contrast" is the
step's size without its sign.
"""

from __future__ import annotations

import itertools
from typing import Protocol

from torch import Tensor

import tritoncrf as tc
from bench.paper.presets import DENSE, Preset
from tritoncrf.batches import Batch
from tritoncrf.edge_inputs import Edges
from tritoncrf.edges import Recipe, parse
from tritoncrf.evaluation import edges_of
from tritoncrf.lattice import Neighborhood


class Form(Protocol):
    """What a CRF must know of what it is told."""

    @property
    def neighborhood(self) -> Neighborhood: ...

    @property
    def kinds(self) -> int | None: ...

    @property
    def gates(self) -> int: ...


class Maker(Form, Protocol):
    """What tells of the edges of images ``[N, channels, *shape]``: recipes and trees are such."""

    def __call__(self, image: Tensor) -> Edges: ...


def text_of(word: str, preset: Preset) -> str:
    """What a row of `methods` means by a word: the preset's text, or the word itself."""
    return {"kinds": preset.edges, "gaussian": f"gaussian:{preset.bandwidth:g}"}.get(word, word)


def maker(text: str, neighborhood: Neighborhood) -> Recipe:
    """The maker of a text. Raises ValueError that names the forms."""
    recipe, on, part = text.partition(" on ")
    parts = {"": neighborhood, "far": tc.Neighborhood(neighborhood.offsets[:-DENSE] or neighborhood.offsets)}
    parts["near"] = tc.Neighborhood(neighborhood.offsets[-DENSE:])
    if part not in parts or bool(on) != bool(part):
        raise ValueError(f"edges: expected a recipe, alone or with ' on far' or ' on near', got {text!r}")
    return parse(recipe, parts[part])


def kind_names(edge_maker: Recipe) -> list[str]:
    """What each kind says of its edges."""
    levels, size = [f"{number:g}" for number in edge_maker.numbers], "|step|" if edge_maker.form == "steps" else "distance"
    between = [f"{low} < {size} ≤ {high}" for low, high in itertools.pairwise(levels)]
    sizes = [f"{size} ≤ {levels[0]}", *between, f"{size} > {levels[-1]}"]
    if edge_maker.form == "contrast":
        return sizes
    down, up = ([part.replace("|step|", word) for part in sizes[1:]] for word in ("step down", "step up"))
    return [*down[::-1], sizes[0], *up]


def crf_of(labels: int, neighborhood: Neighborhood, edge_maker: Form | None) -> tc.GridCRF:
    """Zero tables of each class, and one more of each kind, or a gated one, where ``edge_maker`` has them."""
    if edge_maker is None:
        return tc.GridCRF(labels, neighborhood)
    part = None if edge_maker.neighborhood == neighborhood else edge_maker.neighborhood
    kinds, gates = edge_maker.kinds, edge_maker.gates
    return tc.GridCRF(
        labels, neighborhood, kinds=kinds, kinds_on=part if kinds else None, gates=gates, gates_on=part if gates else None
    )


def loss_of(
    loss: tc.CRFLoss, logits: Tensor, batch: Batch, edge_maker: Maker | None = None, gates: Tensor | None = None
) -> Tensor:
    """What a visit of a batch loses, with what ``edge_maker`` tells of its edges, or the network's own gates."""
    kinds, gates = edges_of(edge_maker, batch.image, gates)
    value: Tensor = loss(
        logits, batch.labels, batch.index, sizes=batch.sizes, mask=batch.mask, clamp=batch.clamp, kinds=kinds, gates=gates
    )
    return value
