"""What would a decision tree field give? Tables chosen by trees, learned by pseudo-likelihood (Nowozin et al. 2011).

The paper's [4]: a tree for each class of factors asks the image at an edge's two ends, and its leaf names the table; trees are
grown first, from pairs of true labels, then all tables are learned by pseudo-likelihood, convex in them. Theirs choose the
unary tables by trees too; here the unaries are the pre-trained network's, as in every separate row, so that the pairwise part
is what differs. The answer is found by our sampler, as in the pseudo-likelihood row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from bench.paper.edges import Maker
from bench.paper.methods import kinds as kinded
from bench.paper.methods.descent import by_sampling, descend
from bench.paper.methods.messages import Sites
from bench.paper.problem import Predictor, Problem
from tritoncrf import checkpoint, contract
from tritoncrf.batches import Batch
from tritoncrf.edge_trees import EdgeTree
from tritoncrf.grid_crf import GridCRF

# Edges of an image that trees are grown from.
PAIRS = 2000


def learn(problem: Problem, work: Path, *, kinds: int) -> Predictor:
    """kinds: leaves of a tree, so tables of a class, at most; the first two or three tell background from body."""
    tree = _tree(problem, work / "trees.safetensors", kinds)
    network, crf = problem.network(), problem.crf(tree)
    rate = problem.preset.separate_rate
    descend(problem, network, crf, objective(crf, tree), work, "treefield", joint=False, rate=rate)
    return by_sampling(problem, network, crf, tree)


def objective(crf: GridCRF, edge_maker: Maker) -> Callable[[Tensor, Batch], Tensor]:
    """Logits and their batch -> minus the log pseudo-likelihood, a mean over its terms, as `pseudolikelihood` has it."""

    def value(logits: Tensor, batch: Batch) -> Tensor:
        sites = Sites.of(batch, crf.neighborhood, crf.num_labels, exists=batch.target != contract.VOID)
        target = sites.labels_of(batch.target)
        field = kinded.labelled(crf.pairwise, sites, kinded.of_edges(crf, edge_maker, batch, sites), target)
        return F.cross_entropy(sites.pick(logits) - field, target, reduction="sum") / max(len(target), 1)

    return value


def _tree(problem: Problem, path: Path, kinds: int) -> EdgeTree:
    """The trees, or those that an earlier run grew."""
    if path.exists():
        return EdgeTree.from_state(checkpoint.tensors(checkpoint.read(path, kind="paper trees"), "trees"))
    neighborhood, labels = problem.preset.neighborhood, problem.train.num_labels
    tree = EdgeTree.grow(problem.train, neighborhood, labels, kinds, pairs=PAIRS, seed=problem.seed)
    checkpoint.write(path, {"trees": dict(tree.state())}, kind="paper trees")
    return tree
