"""What does the image say of an edge? Kinds, which choose its table, and gates, which weigh one, from the two ends' pixels.

Class c joins pixel i to j = i + d_c, and what is said of that edge stands at its first end, i. From an image x:

- `steps`: ``x_j - x_i`` of one channel against thresholds ``t_1 < .. < t_n``, by size or also by sign;
- `contrast`: the distance ``|x_j - x_i|`` over all channels against thresholds, a contrast-sensitive table in steps
  (Boykov and Jolly 2001 have a smooth one);
- `gaussian`: a gate ``exp(-|f_j - f_i|^2 / (2 h^2))``, the edge weight of the dense CRF (Krähenbühl and Koltun 2011) on a
  window, in features that may be learned, as those of pixel-adaptive CRFs are (Su et al. 2019);
- `edge_trees`: decision trees over both ends' values.

Entries of edges that leave the image are kind 0 and gate 0, and nothing reads them. `thresholds` finds thresholds in data.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tritoncrf import validation
from tritoncrf.edge_ends import Images, Slices, check_image, check_neighborhood, ends, sample, scenes, wide
from tritoncrf.edge_inputs import Edges
from tritoncrf.lattice import Neighborhood

__all__ = ["FORMS", "MAX_KINDS", "EdgeMaker", "Edges", "Recipe", "contrast", "gaussian", "parse", "steps", "thresholds"]
MAX_KINDS = 255
FORMS = ("steps", "contrast", "gaussian")


EdgeMaker: TypeAlias = Callable[[Tensor], Edges]


def steps(
    image: Tensor, neighborhood: Neighborhood, thresholds: Sequence[float], *, channel: int = 0, signed: bool = True
) -> Tensor:
    """Kinds by the step ``image[i + d] - image[i]`` of one channel, uint8 ``[N, C, *shape]``.

    image: float ``[N, channels, *shape]``; thresholds: ``t_1 < .. < t_n``, positive, in the image's unit. Signed: kind n for
    steps of at most t_1 either way, n + 1 .. 2n upward and n - 1 .. 0 downward as they grow; else 0 .. n by size. A step
    of exactly a threshold counts as the smaller size, and NaN as no step. Steps are taken in float32, or in the image's
    float64. Raises ValueError or TypeError naming the argument.

    >>> steps(torch.tensor([[[0.0, 0.5, 0.4, 0.0]]]), Neighborhood.nearest(2, ndim=1), (0.2,))
    tensor([[[2, 1, 0, 0]]], dtype=torch.uint8)
    """
    check_image("image", image, neighborhood)
    levels = _thresholds("thresholds", thresholds, signed)
    validation.whole("channel", channel, 0, image.shape[1] - 1)
    plane = wide(image.detach()[:, channel])
    kinds = image.new_zeros((len(image), len(neighborhood), *image.shape[2:]), dtype=torch.uint8)
    for c, offset in enumerate(neighborhood.offsets):
        first, second = ends(offset, image.shape[2:])
        step = plane[second] - plane[first]
        own = kinds[:, c][first]
        for level in levels:
            own += (step if signed else step.abs()) > level
            if signed:
                own += (step < -level).logical_not_()
    return kinds


def contrast(image: Tensor, neighborhood: Neighborhood, thresholds: Sequence[float]) -> Tensor:
    """Kinds 0 .. n by the Euclidean distance of the ends over all channels, uint8 ``[N, C, *shape]``.

    image and thresholds as in `steps`; of one channel it is `steps` without sign. Raises ValueError or TypeError naming the
    argument.
    """
    check_image("image", image, neighborhood)
    levels = _thresholds("thresholds", thresholds, signed=False)
    planes = wide(image.detach()).unbind(1)
    kinds = image.new_zeros((len(image), len(neighborhood), *image.shape[2:]), dtype=torch.uint8)
    for c, offset in enumerate(neighborhood.offsets):
        first, second = ends(offset, image.shape[2:])
        # Channel by channel, so that the order of a sum, and with it a kind, is the same on every device.
        distance = torch.zeros_like(planes[0][first])
        for plane in planes:
            distance += (plane[second] - plane[first]).square_()
        distance.sqrt_()
        own = kinds[:, c][first]
        for level in levels:
            own += distance > level
    return kinds


def gaussian(features: Tensor, neighborhood: Neighborhood, bandwidth: float | Sequence[float]) -> Tensor:
    """Gates ``exp(-sum_k (f_jk - f_ik)^2 / (2 h_k^2))``, float ``[N, 1, C, *shape]``, differentiable (once) in features.

    features: float ``[N, channels, *shape]``, an image or a network's output; bandwidth: h, positive, in the features' unit,
    one for all channels or one each. Gates are float64 for float64 features, else float32. Raises ValueError or TypeError
    naming the argument.
    """
    check_image("features", features, neighborhood)
    scales = _positive("bandwidth", bandwidth)
    channels = features.shape[1]
    if len(scales) not in (1, channels):
        raise ValueError(f"bandwidth: expected one number, or one for each of {channels} channels, got {len(scales)}")
    if len(scales) < channels:
        scales *= channels
    gates: Tensor = _Gaussian.apply(wide(features), neighborhood, scales)  # type: ignore[no-untyped-call]
    return gates


class _Gaussian(torch.autograd.Function):
    """Keeps features and gates alone; autograd would keep every class's differences of every channel."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, neighborhood: Neighborhood, scales: tuple[float, ...]) -> Tensor:
        gates = features.new_zeros((len(features), 1, len(neighborhood), *features.shape[2:]))
        for c, offset in enumerate(neighborhood.offsets):
            first, second = ends(offset, features.shape[2:])
            own = gates[:, 0, c][first]
            for k, scale in enumerate(scales):
                own += _scaled(features[:, k], first, second, scale).square_()
            own.mul_(-0.5).exp_()
        ctx.save_for_backward(features, gates)
        ctx.settings = neighborhood, scales  # type: ignore[attr-defined]
        return gates

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, gates = ctx.saved_tensors  # type: ignore[attr-defined]
        neighborhood, scales = ctx.settings  # type: ignore[attr-defined]
        out = torch.zeros_like(features)
        for c, offset in enumerate(neighborhood.offsets):
            first, second = ends(offset, features.shape[2:])
            flow = grad[:, 0, c][first] * gates[:, 0, c][first]
            for k, scale in enumerate(scales):
                # The gate's derivative in f_i is gate * (f_j - f_i) / h^2, and in f_j its negative.
                part = _scaled(features[:, k], first, second, scale).mul_(flow).div_(scale)
                out[:, k][first] += part
                out[:, k][second] -= part
        return out, None, None


def _scaled(plane: Tensor, first: Slices, second: Slices, scale: float) -> Tensor:
    # A gate is 0 from 64 bandwidths on in every precision, and a bound keeps infinity times 0 out of gradients.
    return (plane[second] - plane[first]).div_(scale).clamp_(-64, 64)


@dataclass(frozen=True)
class Recipe:
    """An `EdgeMaker` that can be written down; ``str(recipe)`` is the text that `parse` reads.

    form: "steps" (signed, of the first channel), "contrast" or "gaussian"; numbers: the thresholds, or the bandwidths.
    ``recipe(image)`` gives the kinds or the gates of images ``[N, channels, *shape]``. Raises ValueError or TypeError.
    """

    form: str
    numbers: tuple[float, ...]
    neighborhood: Neighborhood

    def __post_init__(self) -> None:
        validation.choice("form", self.form, FORMS)
        if self.form == "gaussian":
            _positive("numbers", self.numbers)
        else:
            _thresholds("numbers", self.numbers, signed=self.form == "steps")
        check_neighborhood(self.neighborhood)

    @property
    def kinds(self) -> int | None:
        """Number of kinds, each a table of every class; None without kinds."""
        return {"steps": 2 * len(self.numbers) + 1, "contrast": len(self.numbers) + 1}.get(self.form)

    @property
    def gates(self) -> int:
        """Number of ranks of gates; 0 without gates."""
        return 1 if self.form == "gaussian" else 0

    def __call__(self, image: Tensor) -> Edges:
        if self.form == "gaussian":
            return Edges(gates=gaussian(image, self.neighborhood, self.numbers))
        return Edges(kinds=(steps if self.form == "steps" else contrast)(image, self.neighborhood, self.numbers))

    def __str__(self) -> str:
        return f"{self.form}:{','.join(repr(float(number)).removesuffix('.0') for number in self.numbers)}"


def parse(text: str, neighborhood: Neighborhood) -> Recipe:
    """The recipe of a text: "steps:0.2", "contrast:0.1,0.3", "gaussian:0.1". Raises ValueError that names the forms.

    >>> recipe = parse("steps:0.1,0.3", Neighborhood.nearest(4))
    >>> str(recipe), recipe.kinds, recipe.gates
    ('steps:0.1,0.3', 5, 0)
    """
    check_neighborhood(neighborhood)
    if not isinstance(text, str):
        raise TypeError(f"text: expected a recipe such as 'steps:0.2', got {text!r}")
    form, _, rest = text.partition(":")
    try:
        return Recipe(form, tuple(float(part) for part in rest.split(",")), neighborhood)
    except ValueError:
        raise ValueError(
            "text: expected steps:T[,T..] or contrast:T[,T..] with positive thresholds T that increase "
            f"(at most {MAX_KINDS} kinds), or gaussian:H[,H..] with positive bandwidths H, got {text!r}"
        ) from None


def thresholds(
    images: Images, neighborhood: Neighborhood, quantiles: Sequence[float], *, channel: int | None = None,
    edges: int = 2000, seed: int = 0,
) -> tuple[float, ...]:  # fmt: skip
    """Thresholds for `steps` (give its channel) or `contrast` (channel None): quantiles of the edges of a training set.

    images: float ``[C, *shape]`` each, or items of a data set, whose extras leave out edges that touch a pixel of known
    label, or one that does not exist; quantiles: shares between 0 and 1 that increase; edges: how many to draw an image, by
    ``seed``, where it has more. Raises ValueError or TypeError naming the argument; ValueError too where two thresholds
    are equal or one is 0, as in images most of whose neighbours are alike.

    >>> thresholds([torch.tensor([[0.0, 1.0, 3.0, 6.0]])], Neighborhood.nearest(2, ndim=1), (0.5,))
    (2.0,)
    """
    shares = _increasing("quantiles", quantiles)
    if shares[-1] >= 1:
        raise ValueError(f"quantiles: expected numbers below 1, got {shares}")
    edges = validation.whole("edges", edges, 1)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for scene in scenes(images, neighborhood):
        if channel is not None:
            validation.whole("channel", channel, 0, len(scene.image) - 1)
        _, first, second = sample(scene.exists & ~scene.known, neighborhood, edges, generator)
        pixels = wide(scene.image if channel is None else scene.image[channel, None]).flatten(1)
        found.append((pixels[:, second] - pixels[:, first]).square().sum(0).sqrt())
    sizes = torch.cat(found).double().numpy() if found else np.empty(0)
    if not len(sizes):
        raise ValueError("images: expected at least one edge between pixels that are not known, got none")
    levels = tuple(float(level) for level in np.quantile(sizes, shares))
    if not all(low < high < math.inf for low, high in itertools.pairwise((0.0, *levels))):
        raise ValueError(f"quantiles: expected thresholds above 0 that increase, got {levels} from {shares}")
    return levels


def _positive(name: str, values: object) -> tuple[float, ...]:
    values = values.tolist() if isinstance(values, Tensor) else values
    given = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
    real = all(isinstance(number, numbers.Real) and not isinstance(number, bool) for number in given)
    if not given or not real or not all(0 < number < math.inf for number in given):
        raise ValueError(f"{name}: expected positive finite numbers, one at least, got {values!r}")
    return tuple(float(number) for number in given)


def _increasing(name: str, values: object) -> tuple[float, ...]:
    given = _positive(name, values)
    if any(high <= low for low, high in itertools.pairwise(given)):
        raise ValueError(f"{name}: expected numbers that increase, got {given}")
    return given


def _thresholds(name: str, values: object, signed: bool) -> tuple[float, ...]:
    levels = _increasing(name, values)
    kinds = (2 if signed else 1) * len(levels) + 1
    if kinds > MAX_KINDS:
        raise ValueError(f"{name}: expected at most {MAX_KINDS} kinds, got {len(levels)} thresholds, which make {kinds}")
    return levels
