"""Which methods are compared? One small file each; a method learns from a `Problem` and returns how it answers.

The rows stand in the order of the paper's Table 2, then what section 4 argues against, then tables that see the image.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from bench.paper.problem import Predictor, Problem

# Row -> module and what sets it apart.
METHODS: dict[str, tuple[str, dict[str, int | float | str | bool]]] = {
    "cnn": ("cnn", {"further": False}),
    "control": ("cnn", {"further": True}),
    "forest": ("forest", {}),
    "crfrnn_separate": ("crfrnn", {"joint": False}),
    "crfrnn_joint": ("crfrnn", {"joint": True}),
    "separate_pcd": ("sampling", {"joint": False, "method": "pcd"}),
    "joint_cd1": ("sampling", {"joint": True, "method": "cd", "sweeps": 1}),
    "joint_cd2": ("sampling", {"joint": True, "method": "cd", "sweeps": 2}),
    "joint_cd5": ("sampling", {"joint": True, "method": "cd", "sweeps": 5}),
    "joint_cd10": ("sampling", {"joint": True, "method": "cd", "sweeps": 10}),
    "joint_pcd1": ("sampling", {"joint": True, "method": "pcd", "sweeps": 1}),
    "joint_pcd": ("sampling", {"joint": True, "method": "pcd"}),
    "piecewise": ("piecewise", {}),
    "pseudolikelihood": ("pseudolikelihood", {}),
    "meanfield2": ("meanfield", {"iterations": 2}),
    "meanfield5": ("meanfield", {"iterations": 5}),
    "meanfield10": ("meanfield", {"iterations": 10}),
    "separate_kinds": ("sampling", {"joint": False, "method": "pcd", "edges": "kinds"}),
    "joint_kinds": ("sampling", {"joint": True, "method": "pcd", "edges": "kinds"}),
    "joint_kinds_ce": ("sampling", {"joint": True, "method": "pcd", "edges": "kinds", "cross_entropy": True}),
    # What won on photographs: few sweeps, larger rates, the cross-entropy of a quarter of the pixels; and the control for it.
    "control_quick": ("cnn", {"further": True, "faster": 3.0}),
    "joint_kinds_quick": ("sampling", {
        "joint": True, "method": "pcd", "edges": "kinds", "cross_entropy": True, "every": 4, "sweeps": 10, "faster": 3.0,
    }),
    "joint_gates": ("sampling", {"joint": True, "method": "pcd", "edges": "network"}),
    "joint_gaussian": ("sampling", {"joint": True, "method": "pcd", "edges": "gaussian"}),
    "meanfield5_kinds": ("meanfield", {"iterations": 5, "edges": "kinds"}),
    "dtf": ("treefield", {"kinds": 8}),
}


def edges_of(name: str) -> str | None:
    """What a row's tables see of the edges, in a word; None: nothing."""
    word = METHODS[name][1].get("edges")
    return None if word is None else str(word)


def learn(name: str, problem: Problem, work: Path) -> Predictor:
    """Learns a row, or goes on where a killed run in ``work`` was."""
    file, options = METHODS[name]
    module = importlib.import_module(f"bench.paper.methods.{file}")
    return cast(Predictor, module.learn(problem, work, **options))
