"""What would a decision tree field give? Tables chosen by trees, learned by pseudo-likelihood (Nowozin et al. 2011).

The paper's [4]: a tree for each class of factors asks the image at an edge's two ends, and its leaf names the table; trees are
grown first, from pairs of true labels, then all tables are learned by pseudo-likelihood, convex in them. Theirs choose the
unary tables by trees too; here the unaries are the pre-trained network's, as in every separate row, so that the pairwise part
is what differs. The answer is found by our sampler, as in the pseudo-likelihood row.
"""

from __future__ import annotations

from pathlib import Path

from bench.paper.methods import pseudolikelihood
from bench.paper.methods.descent import by_sampling, descend
from bench.paper.problem import Predictor, Problem
from tritoncrf import checkpoint
from tritoncrf.edge_trees import EdgeTree

# Edges of an image that trees are grown from.
PAIRS = 2000


def learn(problem: Problem, work: Path, *, kinds: int) -> Predictor:
    """kinds: leaves of a tree, so tables of a class, at most; the first two or three tell background from body."""
    tree = _tree(problem, work / "trees.safetensors", kinds)
    network, crf = problem.network(), problem.crf(tree)
    rate = problem.preset.separate_rate
    descend(problem, network, crf, pseudolikelihood.objective(crf, tree), work, "treefield", joint=False, rate=rate)
    return by_sampling(problem, network, crf, tree)


def _tree(problem: Problem, path: Path, kinds: int) -> EdgeTree:
    """The trees, or those that an earlier run grew."""
    if path.exists():
        return EdgeTree.from_state(checkpoint.tensors(checkpoint.read(path, kind="paper trees"), "trees"))
    neighborhood, labels = problem.preset.neighborhood, problem.train.num_labels
    tree = EdgeTree.grow(problem.train, neighborhood, labels, kinds, pairs=PAIRS, seed=problem.seed)
    checkpoint.write(path, {"trees": dict(tree.state())}, kind="paper trees")
    return tree
