"""What does the paper say? The rows of its Table 2 with their figures, and the comparisons that make its claim.

Kirillov et al., ACCV 2016, Table 2: per cent of body pixels right, one figure a method, no deviation. What the paper does not
have (the control, CD-10, our K, the objectives that its section 4 argues against in words, tables that see the image) has no
figure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    title: str
    paper: float | None
    """The paper's accuracy, per cent."""


METHODS: dict[str, Method] = {
    "cnn": Method("CNN", 84.47),
    "control": Method("control: the CNN with as many further visits", None),
    "forest": Method("random forest", 79.0),
    "crfrnn_separate": Method("CRF-as-RNN, separate", 86.55),
    "crfrnn_joint": Method("CRF-as-RNN, joint", 88.17),
    "separate_pcd": Method("ours, separate PCD", 87.62),
    "joint_cd1": Method("ours, joint CD-1", 88.17),
    "joint_cd2": Method("ours, joint CD-2", 88.15),
    "joint_cd5": Method("ours, joint CD-5", 88.23),
    "joint_cd10": Method("ours, joint CD-10", None),
    "joint_pcd1": Method("ours, joint PCD, K = 1 as in the paper", 89.01),
    "joint_pcd": Method("ours, joint PCD, our K", None),
    "piecewise": Method("piecewise training (14)", None),
    "pseudolikelihood": Method("pseudo-likelihood", None),
    "meanfield2": Method("unrolled mean field, 2 iterations", None),
    "meanfield5": Method("unrolled mean field, 5 iterations", None),
    "meanfield10": Method("unrolled mean field, 10 iterations", None),
    "separate_kinds": Method("ours, separate PCD, tables by kind of edge", None),
    "joint_kinds": Method("ours, joint PCD, tables by kind of edge", None),
    "joint_kinds_ce": Method("ours, joint PCD, tables by kind of edge, cross-entropy beside the likelihood", None),
    "control_quick": Method("control, three times the rate", None),
    "joint_kinds_quick": Method(
        "ours, joint PCD, tables by kind of edge, cross-entropy of a quarter of the pixels, K = 10, three times the rates", None
    ),
    "joint_gates": Method("ours, joint PCD, the network's own gates", None),
    "joint_gaussian": Method("ours, joint PCD, Gaussian gates as in PAC-CRF", None),
    "meanfield5_kinds": Method("unrolled mean field, 5 iterations, tables by kind of edge", None),
    "dtf": Method("decision tree field: tables by trees, pseudo-likelihood", None),
}

# What a row stands for in a comparison where the paper has but one PCD.
STANDS_FOR = {"joint_pcd": "joint_pcd1"}

# First over second. The first group is the claim: joint PCD > joint CD-K > separate PCD, and ours joint over CRF-as-RNN joint.
CLAIM: tuple[tuple[str, str], ...] = (
    ("joint_pcd", "joint_cd1"),
    ("joint_pcd", "joint_cd2"),
    ("joint_pcd", "joint_cd5"),
    ("joint_pcd", "joint_cd10"),
    ("joint_cd1", "separate_pcd"),
    ("joint_cd2", "separate_pcd"),
    ("joint_cd5", "separate_pcd"),
    ("joint_cd10", "separate_pcd"),
    ("joint_pcd", "separate_pcd"),
    ("joint_pcd", "crfrnn_joint"),
)
FURTHER: tuple[tuple[str, str], ...] = (
    ("joint_pcd", "cnn"),
    ("joint_pcd", "control"),
    ("separate_pcd", "cnn"),
    ("separate_pcd", "control"),
    ("separate_pcd", "crfrnn_separate"),
    ("crfrnn_joint", "crfrnn_separate"),
    ("crfrnn_separate", "cnn"),
    ("cnn", "forest"),
    ("joint_pcd1", "joint_cd1"),
    ("joint_pcd1", "separate_pcd"),
    ("joint_pcd", "joint_pcd1"),
)
# What section 4 argues against.
ARGUMENT: tuple[tuple[str, str], ...] = (
    ("joint_pcd", "piecewise"),
    ("joint_pcd", "pseudolikelihood"),
    ("joint_pcd", "meanfield2"),
    ("joint_pcd", "meanfield5"),
    ("joint_pcd", "meanfield10"),
)
# Tables that see the image.
EDGES: tuple[tuple[str, str], ...] = (
    ("joint_kinds", "control"),
    ("joint_kinds", "joint_pcd"),
    ("joint_kinds", "meanfield5"),
    ("joint_kinds", "meanfield5_kinds"),
    ("joint_kinds", "separate_kinds"),
    ("joint_kinds", "dtf"),
    ("joint_kinds", "joint_gates"),
    ("joint_kinds", "joint_gaussian"),
    ("separate_kinds", "separate_pcd"),
    ("joint_gates", "joint_pcd"),
    ("joint_gaussian", "joint_pcd"),
    ("meanfield5_kinds", "meanfield5"),
    ("dtf", "pseudolikelihood"),
)
# A cross-entropy beside the likelihood.
OBJECTIVE: tuple[tuple[str, str], ...] = (
    ("joint_kinds_ce", "control"),
    ("joint_kinds_ce", "joint_kinds"),
    ("joint_kinds_ce", "meanfield5_kinds"),
    ("joint_kinds_quick", "control"),
    ("joint_kinds_quick", "control_quick"),
    ("joint_kinds_quick", "joint_kinds"),
    ("joint_kinds_quick", "joint_kinds_ce"),
    ("joint_kinds_quick", "meanfield5_kinds"),
)


def margin(first: str, second: str) -> float | None:
    """The paper's margin in points, None where it has no figure for one of them."""
    a, b = (METHODS[name].paper for name in (first, second))
    if a is None:
        a = METHODS[STANDS_FOR.get(first, first)].paper
    if STANDS_FOR.get(first) == second or a is None or b is None:
        return None
    return a - b
