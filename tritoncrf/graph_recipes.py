"""How is a known model said as a graph? Chains, trees, and nodes of their own for what many nodes share.

*Robust P^n Potts* (Kohli et al. 2009): a patch p costs ``min(limit_p, min_l w #{i in p: y_i != l})``. A node z_p of L + 1
labels says which label the patch is of, or none: ``w [z_p != y_i]`` for each of its nodes i, ``limit_p`` for none. The least
over z_p is the potential, a sampler's soft minimum is ``-log(exp(-limit_p) + sum_l exp(-w #{i in p: y_i != l}))``.

*Label costs* (Delong et al. 2012; of labels together: Ladicky et al. 2010): a node u_l of two labels says whether label l is in
use: ``cost_l`` if it is, ``w`` for each node that has label l though it is not. Summed over u_l, a label that n nodes have
costs ``-log(exp(-w n) + exp(-cost_l))``, less that of n = 0: about ``min(w n, cost_l)``. Two such nodes may share a factor.

Nodes differ in their numbers of labels: logits of -inf forbid those that a node lacks, and a table's entries for them are
never read. A node of many factors needs small tables: twice the sum of their largest entries is at most 1023 (rule 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.graphs import FactorGraph


def chain(length: int, skips: Tensor | None = None) -> FactorGraph:
    """A sequence: a class of the pairs ``(t, t + 1)``, and one of skip edges, integers ``[S, 2]``, where they are given.

    A skip-chain CRF (Sutton & McCallum 2004) joins places that look alike. Raises ValueError or TypeError naming the argument.

    >>> chain(5, torch.tensor([[0, 3]]))
    FactorGraph(5 nodes, 4 factors of 2, 1 factors of 2)
    """
    length = validation.whole("length", length, 1, 2**31 - 1)
    steps = torch.arange(length - 1)
    return FactorGraph(length, [torch.stack([steps, steps + 1], 1), *([] if skips is None else [skips])])


def tree(parents: Tensor) -> FactorGraph:
    """A forest from each node's parent, integers ``[V]``, -1 for a root: one class of pairs ``(parent, child)``.

    Raises ValueError or TypeError naming ``parents``, also where they run in a circle.

    >>> tree(torch.tensor([-1, 0, 0, 1])).members[0].tolist()
    [[0, 1], [0, 2], [1, 3]]
    """
    parents = validation.tensor("parents", parents)
    if parents.dim() != 1 or parents.dtype not in validation.INTEGERS or not len(parents):
        raise ValueError(f"parents: expected integers of shape [V], got {parents.dtype} {list(parents.shape)}")
    above, number = parents.long(), len(parents)
    if int(above.min()) < -1 or int(above.max()) >= number:
        raise ValueError(f"parents: expected nodes from 0 to {number - 1}, or -1, got {int(above.min())} to {int(above.max())}")
    # Each round doubles the steps that were taken upwards: whoever is below a root has left it by then.
    far = torch.cat([above, above.new_full((1,), -1)])
    for _ in range(number.bit_length()):
        far = far[far]
    if bool((far[:-1] >= 0).any()):
        raise ValueError(f"parents: expected no circle, got one above node {int((far[:-1] >= 0).int().argmax())}")
    child = (above >= 0).nonzero()[:, 0]
    return FactorGraph(number, [torch.stack([above[child], child], 1)])


def with_nodes(logits: Tensor, more: Tensor) -> Tensor:
    """Logits of nodes followed by more nodes of other labels: ``[V, L]`` and ``[A, K]`` -> ``[V + A, max(L, K)]``.

    Labels that a node lacks get -inf. Raises ValueError or TypeError naming the argument.
    """
    for name, value in (("logits", logits), ("more", more)):
        if validation.tensor(name, value).dim() != 2 or not value.is_floating_point():
            raise ValueError(f"{name}: expected floats of shape [nodes, labels], got {value.dtype} {list(value.shape)}")
    most = max(logits.shape[1], more.shape[1])
    parts = (torch.nn.functional.pad(part, (0, most - part.shape[1]), value=-torch.inf) for part in (logits, more.to(logits)))
    return torch.cat(list(parts))


def with_patches(graph: FactorGraph, membership: Tensor) -> FactorGraph:
    """Adds a node a patch, and a last class of the pairs (node, its patch's node); patches may overlap.

    membership: integers ``[2, M]``, node and patch, whose numbers run from 0 to P - 1 and become nodes ``V + p``. Tables of the
    class are `patch_table`, logits `patch_logits`. Raises ValueError or TypeError naming the argument.
    """
    _single(graph)
    membership = validation.tensor("membership", membership)
    if membership.dim() != 2 or len(membership) != 2 or membership.dtype not in validation.INTEGERS or not membership.numel():
        raise ValueError(f"membership: expected integers of shape [2, M], got {membership.dtype} {list(membership.shape)}")
    node, patch = membership.long()
    lowest, highest = torch.stack([node, patch], 1).aminmax(dim=0)
    if int(lowest.min()) < 0 or int(highest[0]) >= graph.num_nodes:
        raise ValueError(
            f"membership: expected nodes from 0 to {graph.num_nodes - 1} and patches from 0, got {lowest.tolist()} to "
            f"{highest.tolist()}"
        )
    return _extended(graph, int(highest[1]) + 1, [torch.stack([node, patch + graph.num_nodes], 1)], [None])


def patch_logits(logits: Tensor, limit: Tensor) -> Tensor:
    """Logits ``[V, L]`` of the nodes and limits ``[P]`` of the patches, in nats -> ``[V + P, L + 1]``."""
    limit = validation.tensor("limit", limit)
    if limit.dim() != 1 or not limit.is_floating_point():
        raise ValueError(f"limit: expected floats of shape [P], got {limit.dtype} {list(limit.shape)}")
    labels = validation.tensor("logits", logits).shape[-1]
    return with_nodes(logits, torch.cat([limit.new_zeros(len(limit), labels), -limit[:, None]], 1))


def patch_table(num_labels: int, weight: float) -> Tensor:
    """``weight`` where a node differs from its patch, 0 where the patch is of no label: float32 ``[1, L + 1, L + 1]``."""
    table = weight * (1 - torch.eye(num_labels + 1))
    table[:, num_labels] = 0
    return table[None]


def with_label_nodes(graph: FactorGraph, num_labels: int, pairs: Tensor | None = None) -> FactorGraph:
    """Adds a node ``V + l`` a label, and a last class of the pairs (node, ``V + l``) of kind l, every node with every label.

    pairs: integers ``[P, 2]``, labels that may cost something together: a further class of their nodes, each of a kind of its
    own. Tables of the first class are `label_table`, logits `label_logits`. Raises ValueError or TypeError naming the argument.
    """
    _single(graph)
    num_labels = validation.whole("num_labels", num_labels, 2, contract.MAX_LABELS)
    nodes, labels = torch.arange(graph.num_nodes, device=graph.device), torch.arange(num_labels, device=graph.device)
    uses = torch.stack([nodes.repeat_interleave(num_labels), (labels + graph.num_nodes).repeat(len(nodes))], 1)
    members, kinds = [uses], [labels.to(torch.uint8).repeat(len(nodes))]
    if pairs is not None:
        pairs = validation.tensor("pairs", pairs)
        if pairs.dim() != 2 or pairs.shape[1] != 2 or not 0 < len(pairs) <= contract.MAX_LABELS:
            raise ValueError(f"pairs: expected shape [P, 2] with P from 1 to {contract.MAX_LABELS}, got {list(pairs.shape)}")
        if int(pairs.min()) < 0 or int(pairs.max()) >= num_labels:
            raise ValueError(f"pairs: expected labels from 0 to {num_labels - 1}, got {int(pairs.min())} to {int(pairs.max())}")
        members.append(pairs.long() + graph.num_nodes)
        kinds.append(torch.arange(len(pairs), device=graph.device, dtype=torch.uint8))
    return _extended(graph, num_labels, members, kinds)


def label_logits(logits: Tensor, cost: Tensor) -> Tensor:
    """Logits ``[V, L]`` of the nodes and the labels' costs ``[L]``, in nats -> ``[V + L, L]``."""
    cost = validation.tensor("cost", cost)
    if cost.shape != validation.tensor("logits", logits).shape[-1:] or not cost.is_floating_point():
        raise ValueError(f"cost: expected floats of shape [{logits.shape[-1]}], got {cost.dtype} {list(cost.shape)}")
    return with_nodes(logits, torch.stack([torch.zeros_like(cost), -cost], 1))


def label_table(num_labels: int, weight: float) -> Tensor:
    """``weight`` where a node has label l and node ``V + l`` says it is not in use: float32 ``[L, L, L]``, kind l first."""
    table = torch.zeros(num_labels, num_labels, num_labels)
    every = torch.arange(num_labels)
    table[every, every, 0] = weight
    return table


def _single(graph: FactorGraph) -> None:
    if not isinstance(graph, FactorGraph):
        raise TypeError(f"graph: expected a FactorGraph, got {type(graph).__name__}")
    if graph.num_graphs != 1:
        raise ValueError(f"graph: expected one graph, to be batched afterwards, got a batch of {graph.num_graphs}")


def _extended(graph: FactorGraph, nodes: int, members: list[Tensor], kinds: Sequence[Tensor | None]) -> FactorGraph:
    return FactorGraph(
        graph.num_nodes + nodes, [*graph.members, *members], [*graph.kind, *kinds], [*graph.gate, *[None] * len(members)]
    )
