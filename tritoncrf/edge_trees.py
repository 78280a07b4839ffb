"""Which table does an edge read, by a decision tree? The leaf where the pixels at its two ends arrive.

In decision tree fields (Nowozin et al., ICCV 2011) every node on a factor's way down a tree adds a table of energies. The
sum over a way belongs to its leaf alone, so one table a leaf says the same: leaf k of class c's tree is kind k. As there,
trees are grown first and tables learned after. A tree tells the pairs of labels (y_i, y_j) apart: by entropy, what a split
gains is the log-likelihood of the pairs under each side's own frequencies over that under common ones.

What a tree asks of an edge (i, j = i + d_c), for each channel of the image x: `step` ``x_j - x_i``, `size` ``|x_j - x_i|``,
`first` ``x_i`` and `second` ``x_j``, in float32. Growing needs scikit-learn; using a tree does not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.datasets.base import VOID
from tritoncrf.edge_ends import Images, Scene, check_image, check_neighborhood, ends, sample, scenes
from tritoncrf.edge_inputs import Edges
from tritoncrf.edges import MAX_KINDS
from tritoncrf.lattice import Neighborhood

QUESTIONS = ("step", "size", "first", "second")
_NODES = ("feature", "threshold", "left", "right", "kind")


@dataclass(frozen=True, eq=False)
class EdgeTree:
    """One tree for each class, an `EdgeMaker`: ``tree(image)`` gives the kinds of images, as `by_tree` does.

    Nodes are numbered from the root, 0, children after their parents; trees of fewer nodes are filled up with leaves.
    Raises ValueError for tensors of other shapes or dtypes, or that are no trees.
    """

    neighborhood: Neighborhood
    channels: int
    kinds: int
    """Most leaves of a tree, so tables of a class; a tree may have fewer."""
    feature: Tensor
    """int64 [C, nodes]: at an inner node, channel * 4 + the place in `QUESTIONS` of what it asks; -1 at a leaf."""
    threshold: Tensor
    """float32 [C, nodes]: edges of at most this go left."""
    left: Tensor
    """int64 [C, nodes]: the left child's number; -1 at a leaf."""
    right: Tensor
    """int64 [C, nodes], likewise."""
    kind: Tensor
    """uint8 [C, nodes]: a leaf's kind, counted from the left; 0 at an inner node."""

    def __post_init__(self) -> None:
        check_neighborhood(self.neighborhood)
        validation.whole("channels", self.channels, 1)
        validation.whole("kinds", self.kinds, 2, MAX_KINDS)
        shape = (len(self.neighborhood), validation.tensor("feature", self.feature).shape[-1])
        for name, dtype in zip(_NODES, (torch.int64, torch.float32, torch.int64, torch.int64, torch.uint8), strict=True):
            validation.shaped(name, getattr(self, name), [shape], [dtype], torch.device("cpu"))
        inner, own = self.feature >= 0, torch.arange(shape[1], device="cpu")
        # Children after their parents: every way down ends.
        fine = (self.feature < 4 * self.channels) & (self.kind < self.kinds)
        for child in (self.left, self.right):
            fine &= ~inner | ((child > own) & (child < shape[1]))
        if not bool(fine.all()):
            c, node = torch.nonzero(~fine)[0].tolist()
            raise ValueError(f"EdgeTree: expected features, children and kinds of trees, got others at class {c}, node {node}")

    @property
    def gates(self) -> int:
        """Number of ranks of gates: none."""
        return 0

    def __call__(self, image: Tensor) -> Edges:
        return Edges(kinds=by_tree(image, self.neighborhood, self))

    @cached_property
    def nodes(self) -> list[list[tuple[int, float, int, int, int]]]:
        """(feature, threshold, left, right, kind) of every node of every class, as numbers of the host."""
        columns = [getattr(self, name).tolist() for name in _NODES]
        return [list(zip(*own, strict=True)) for own in zip(*columns, strict=True)]

    @classmethod
    def grow(
        cls, images: Images, neighborhood: Neighborhood, num_labels: int, kinds: int, *, pairs: int = 4000, seed: int = 0
    ) -> EdgeTree:
        """Grows a tree of at most ``kinds`` (2 to 255) leaves for each class from the edges of a training set.

        images: items of a data set, ``(image, target)`` with whatever else (float ``[channels, *shape]``, integers
        ``[*shape]``); num_labels: L; pairs: at most so many edges an image, drawn by ``seed``. Edges count where both ends
        have a label and not both have one that is known. Raises ValueError or TypeError naming the argument; ImportError
        without scikit-learn.
        """
        try:
            from sklearn.tree import DecisionTreeClassifier
        except ImportError as error:
            raise ImportError(
                "scikit-learn: expected it to be installed for growing trees: pip install 'tritoncrf[paper]'"
            ) from error
        validation.whole("num_labels", num_labels, 2, contract.MAX_LABELS)
        validation.whole("kinds", kinds, 2, MAX_KINDS)
        validation.whole("pairs", pairs, 1)
        validation.whole("seed", seed, 0, 2**32 - 1)
        generator = torch.Generator().manual_seed(seed)
        found = [_pairs(scene, neighborhood, num_labels, pairs, generator) for scene in scenes(images, neighborhood)]
        widths = {answers.shape[1] for _, answers, _ in found}
        if len(widths) > 1:
            raise ValueError(f"images: expected one number of channels, got {sorted(width // 4 for width in widths)}")
        if not sum(len(goals) for _, _, goals in found):
            raise ValueError("images: expected at least one edge with two labels that are not both known, got none")
        classes, answers, goals = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        # So many nodes has a tree of that many leaves; a class without an edge keeps a leaf alone.
        shape = len(neighborhood), 2 * kinds - 1
        feature, left, right = (np.full(shape, -1, np.int64) for _ in range(3))
        threshold, kind = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        for c in np.unique(classes):
            own = classes == c
            tree = DecisionTreeClassifier(criterion="entropy", max_leaf_nodes=kinds, random_state=seed)
            with warnings.catch_warnings():
                # Where a class has few edges: pairs of labels may well be half as many.
                warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
                grown = tree.fit(answers[own], goals[own]).tree_
            inner = np.flatnonzero(grown.children_left >= 0)
            feature[c, inner], threshold[c, inner] = grown.feature[inner], _rounded_down(grown.threshold[inner])
            left[c, inner], right[c, inner] = grown.children_left[inner], grown.children_right[inner]
            kind[c] = _numbered(left[c], right[c])
        nodes = (torch.from_numpy(part) for part in (feature, threshold, left, right, kind))
        return cls(neighborhood, widths.pop() // 4, kinds, *nodes)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors on the CPU, to be saved with a model."""
        numbers = {"offsets": self.neighborhood.offsets, "channels": self.channels, "kinds": self.kinds}
        kept = {name: torch.tensor(value, dtype=torch.int64, device="cpu") for name, value in numbers.items()}
        return kept | {name: getattr(self, name).clone() for name in _NODES}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> EdgeTree:
        """The trees that `state` describes. Raises ValueError for a name that lacks, and as the class does."""
        for name in ("offsets", "channels", "kinds", *_NODES):
            if not isinstance(state.get(name), Tensor):
                raise ValueError(f"state: expected a tensor {name!r}, got {type(state.get(name)).__name__}")
        neighborhood = Neighborhood.from_offsets(state["offsets"].tolist())
        nodes = [state[name].detach().cpu() for name in _NODES]
        return cls(neighborhood, int(state["channels"]), int(state["kinds"]), *nodes)


def by_tree(image: Tensor, neighborhood: Neighborhood, tree: EdgeTree) -> Tensor:
    """Kinds by the leaves where edges arrive, uint8 ``[N, C, *shape]``, on the image's device.

    image: float ``[N, channels, *shape]``, with the channels and the neighbourhood that the trees were grown with. NaN goes
    right. Raises ValueError or TypeError naming the argument.
    """
    check_image("image", image, neighborhood)
    if not isinstance(tree, EdgeTree):
        raise TypeError(f"tree: expected an EdgeTree, got {type(tree).__name__}")
    if neighborhood != tree.neighborhood:
        raise ValueError(f"neighborhood: expected the offsets that the trees were grown with, got others: {neighborhood!r}")
    if image.shape[1] != tree.channels:
        raise ValueError(f"image: expected {tree.channels} channels as the trees have, got {image.shape[1]}")
    pixels = image.detach().float()
    kinds = image.new_zeros((len(image), len(neighborhood), *image.shape[2:]), dtype=torch.uint8)
    for c, (offset, nodes) in enumerate(zip(neighborhood.offsets, tree.nodes, strict=True)):
        first, second = ends(offset, image.shape[2:])
        own = kinds[:, c][first]
        # Masks of the edges at a node; depth first, so that only a way's are held. Nothing is asked of the device.
        open_nodes = [(0, torch.ones_like(own, dtype=torch.bool))]
        while open_nodes:
            node, here = open_nodes.pop()
            feature, threshold, left, right, kind = nodes[node]
            if feature < 0:
                own.masked_fill_(here, kind)
                continue
            plane = pixels[:, feature // 4]
            lower = here & (_answer(plane[first], plane[second], feature % 4) <= threshold)
            open_nodes += [(right, here ^ lower), (left, lower)]
    return kinds


def _answer(first: Tensor, second: Tensor, question: int) -> Tensor:
    if question < 2:
        step = second - first
        return step.abs_() if question else step
    return first if question == 2 else second


def _pairs(
    scene: Scene, neighborhood: Neighborhood, labels: int, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one image's edges: classes ``[E]``, answers float32 ``[E, 4 * channels]``, pairs of labels ``[E]``."""
    if scene.target is None:
        raise ValueError("images: expected items (image, target, ..), got an image without a target")
    target = validation.shaped("target", scene.target, [scene.exists.shape], validation.INTEGERS, scene.exists.device).long()
    labelled = scene.exists & (target != VOID)
    if bool((labelled & ((target < 0) | (target >= labels))).any()):
        raise ValueError(f"target: expected labels from 0 to {labels - 1} (or {VOID}), got {int(target[labelled].max())}")
    if not bool(scene.image.isfinite().all()):
        raise ValueError("images: expected finite numbers, got NaN or infinity")
    classes, first, second = sample(labelled, neighborhood, most, generator)
    known, target, pixels = scene.known.flatten(), target.flatten(), scene.image.float().flatten(1)
    free = ~(known[first] & known[second])
    classes, first, second = classes[free], first[free], second[free]
    answers = [_answer(plane[first], plane[second], question) for plane in pixels for question in range(len(QUESTIONS))]
    return classes, torch.stack(answers, 1), target[first] * labels + target[second]


def _rounded_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """A float32 value is at most such a threshold exactly where it is at most the double."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _numbered(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The leaves' numbers from the left, 0 at inner nodes."""
    kind, open_nodes, count = np.zeros(len(left), np.uint8), [0], 0
    while open_nodes:
        node = open_nodes.pop()
        if left[node] >= 0:
            open_nodes += [int(right[node]), int(left[node])]
        else:
            kind[node], count = count, count + 1
    return kind
