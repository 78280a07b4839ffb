"""What does a random forest reach? Differences of depth at two offsets (Shotton et al. 2011; Denil et al. 2013 grow it online).

``f(x) = z(x + u / s) - z(x + v / s)`` with offsets drawn up to `REACH` of a median image's height and ``s`` the pixel's depth
over the body's mean: what is nearer is larger. Every tree sees other pixels of each image and other features, and a split is
the best of random thresholds at some of them. Trees are grown by scikit-learn, kept as arrays, and answer with the mean of
their leaves' distributions.

The image is the network's own input, so absolute distance is not in it: the body's mean is taken to be `DISTANCE`. In a
photograph offsets are not scaled, and the two ends look at channels of their own. Each tree visits each image once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from bench.paper.methods.descent import free_pixels, marginals
from bench.paper.problem import Predictor, Problem
from tritoncrf import checkpoint, contract
from tritoncrf.batches import Batch
from tritoncrf.checkpoint import CheckpointError
from tritoncrf.datasets.depth import DepthScale

REACH = 0.35
# Millimetres from the camera, on average over the bodies.
DISTANCE = 2750.0


@dataclass(frozen=True)
class Growth:
    """How large the forest is."""

    trees: int = 20
    pixels: int = 150
    """Drawn from each image for each tree."""
    features: int = 400
    """Drawn for each tree."""
    depth: int = 20
    leaf: int = 4
    """Pixels that a leaf holds at least."""


@dataclass(frozen=True)
class Tree:
    """A grown tree as arrays over its nodes, and the features it asks for."""

    features: Tensor
    """float32 [F, 6]: dy, dx and channel of either end."""
    feature: Tensor
    """int64 [nodes], a row of `features`; -2 at a leaf."""
    threshold: Tensor
    """float64 [nodes], as scikit-learn compares: at most this goes left."""
    children: Tensor
    """int64 [nodes, 2], left and right; a leaf's are itself."""
    leaf: Tensor
    """float32 [nodes, L], each a distribution."""


def learn(problem: Problem, work: Path, *, growth: Growth | None = None) -> Predictor:
    """Grows the forest, or the trees that ``work/model.safetensors`` lacks; both answers are the forest's."""
    growth = growth or Growth()
    path, labels = work / "model.safetensors", problem.train.num_labels
    trees = _load(path, growth) if path.exists() else []
    reach = REACH * median(height for height, _ in problem.train.sizes)
    while len(trees) < growth.trees:
        trees.append(_grow(problem, growth, reach, len(trees)))
        checkpoint.write(
            path, {"growth": dict(vars(growth)), "trees": [dict(vars(tree)) for tree in trees]}, kind="paper forest"
        )  # fmt: skip
    held = [Tree(**{name: part.to(problem.device) for name, part in vars(tree).items()}) for tree in trees]

    def predict(batch: Batch) -> tuple[Tensor, Tensor]:
        where = free_pixels(batch).nonzero(as_tuple=True)
        ends = Ends.of(batch, where)
        found = torch.stack([answer(tree, ends) for tree in held]).mean(0)
        dense = torch.zeros((*batch.target.shape, labels), device=batch.image.device)
        dense[where] = found
        given = marginals(batch, dense.movedim(-1, 1))
        return given, given

    return predict


@dataclass(frozen=True)
class Ends:
    """The pixels asked about, and the images they look at."""

    image: Tensor
    """float [N, C, H + 2, W + 2]: one pixel of border."""
    where: tuple[Tensor, ...]
    """int64 [P] each: image, y, x."""
    scale: Tensor
    """float [P]: what an offset is multiplied with."""

    @classmethod
    def of(cls, batch: Batch, where: tuple[Tensor, ...]) -> Ends:
        depth = DepthScale()
        outside = depth.background if batch.image.shape[1] == 1 else 0.0
        image = batch.image.masked_fill(~batch.present[:, None], outside)
        scale = torch.ones(len(where[0]), device=image.device)
        if image.shape[1] == 1:
            scale = DISTANCE / (DISTANCE + depth.unit_mm * image[:, 0][where])
        return cls(F.pad(image, (1, 1, 1, 1), value=outside), where, scale)

    def __call__(self, features: Tensor, pixels: Tensor | None = None) -> Tensor:
        """The values of features ``[P, 6]``, one a pixel of ``pixels`` (None: of all), or ``[F, 1, 6]`` of all: ``[F, P]``."""
        image, y, x = (part if pixels is None else part[pixels] for part in self.where)
        scale = self.scale if pixels is None else self.scale[pixels]
        first, second = (self._at(image, y, x, scale, features[..., end : end + 3]) for end in (0, 3))
        return first - second

    def _at(self, image: Tensor, y: Tensor, x: Tensor, scale: Tensor, end: Tensor) -> Tensor:
        height, width = self.image.shape[2:]
        down = (y + 1 + (end[..., 0] * scale).round().long()).clamp(0, height - 1)
        across = (x + 1 + (end[..., 1] * scale).round().long()).clamp(0, width - 1)
        return self.image[image, end[..., 2].long(), down, across]


def answer(tree: Tree, ends: Ends) -> Tensor:
    """The leaf's distribution of every pixel, ``[P, L]``."""
    node = torch.zeros_like(ends.where[0])
    open_ = torch.arange(len(node), device=node.device)
    while len(open_):
        at = node[open_]
        inner = tree.feature[at] >= 0
        open_, at = open_[inner], at[inner]
        value = ends(tree.features[tree.feature[at]], open_)
        node[open_] = tree.children[at, (value.double() > tree.threshold[at]).long()]
    return tree.leaf[node]


def _grow(problem: Problem, growth: Growth, reach: float, number: int) -> Tree:
    random = np.random.default_rng([problem.seed, number])
    features = _draw(random, growth.features, reach, problem.train.channels)
    columns: list[NDArray[np.float32]] = []
    answers: list[NDArray[np.int64]] = []
    for item in problem.loader(shuffle=False):
        batch = Batch.of(item, torch.device("cpu"))
        free = (free_pixels(batch) & (batch.target != contract.VOID)).nonzero()
        if len(free) == 0:
            continue
        taken = free[torch.from_numpy(random.choice(len(free), min(growth.pixels, len(free)), replace=False))]
        where = tuple(taken.T)
        columns.append(Ends.of(batch, where)(features[:, None]).T.numpy().astype(np.float32))
        answers.append(batch.target[where].numpy().astype(np.int64))
    if not answers:
        raise ValueError("problem: expected training images with labelled pixels that are not known, got none")
    grown = DecisionTreeClassifier(
        splitter="random", max_features="sqrt", max_depth=growth.depth, min_samples_leaf=growth.leaf,
        random_state=int(random.integers(2**31)),
    ).fit(np.concatenate(columns), np.concatenate(answers))  # fmt: skip
    return _arrays(grown, features, problem.train.num_labels)


def _draw(random: np.random.Generator, count: int, reach: float, channels: int) -> Tensor:
    """``[count, 6]``: offsets uniform in a square, one end in every other feature the pixel itself."""
    found = np.empty((count, 2, 3), dtype=np.float32)
    found[..., :2] = random.uniform(-reach, reach, (count, 2, 2))
    found[..., 2] = random.integers(channels, size=(count, 2))
    found[::2, 1, :2] = 0.0
    return torch.from_numpy(found.reshape(count, 6))


def _arrays(grown: DecisionTreeClassifier, features: Tensor, labels: int) -> Tree:
    tree = grown.tree_
    nodes = np.arange(tree.node_count)
    children = np.stack([tree.children_left, tree.children_right], 1)
    leaf = np.zeros((len(nodes), labels), dtype=np.float32)
    # Classes that no pixel of this tree has are not in its values.
    values = tree.value[:, 0]
    leaf[:, grown.classes_] = values / values.sum(1, keepdims=True)
    return Tree(
        features, torch.from_numpy(tree.feature.astype(np.int64)), torch.from_numpy(tree.threshold.astype(np.float64)),
        torch.from_numpy(np.where(children < 0, nodes[:, None], children).astype(np.int64)), torch.from_numpy(leaf),
    )  # fmt: skip


def _load(path: Path, growth: Growth) -> list[Tree]:
    tree = checkpoint.read(path, kind="paper forest")
    if tree.get("growth") != vars(growth):
        raise CheckpointError(f"{path}: expected a forest of {growth}, got one of {tree.get('growth')}")
    kept = tree.get("trees")
    return [Tree(**checkpoint.tensors({"tree": part}, "tree")) for part in kept] if isinstance(kept, list) else []
