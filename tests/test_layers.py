"""Imports go down the list of rooms only, no engine imports another, and kernels are for the Triton engine alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tritoncrf"
# Top to bottom; a file may import from files further down, and from its own folder's.
ROOMS = [
    "__init__", "__main__", "cli", "commands", "training", "distributed", "head", "evaluation", "loop", "optimizers",
    "generators", "model_state", "batches", "networks", "loss", "held_out", "visit_operator", "visit", "short_visit",
    "agreement", "chain_lookup", "monitor", "reduction", "phases", "objective", "gradient", "course", "pace", "fast",
    "tempering", "inference", "diagnostics", "metrics", "plots", "edge_trees", "edges", "edge_ends", "datasets",
    "index_sampler", "partition", "sampler", "inputs", "statistics", "energies", "chains", "flip_rate", "store",
    "pixel_indices", "sharding", "sizes", "ranks", "finite", "checkpoint", "model_kinds", "factor_crf", "grid_crf",
    "model_protocol", "incidence", "node_bound", "edge_inputs", "layout", "graph_rows", "frame", "coloring", "sublattices",
    "periodic", "graph_recipes", "graph_builders", "graphs", "graph_coloring", "lattice", "target_watch", "tiles", "validation",
    "guard", "engines", "compiling", "interrupts", "contract", "kernels", "_version",
]  # fmt: skip
# What engines share.
NAMED = ("NAMES", "averaging", "find", "load", "report", "soft")
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names below tritoncrf that a file imports, function bodies included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("tritoncrf.") for name in names if name == "tritoncrf" or name.startswith("tritoncrf.")}


def faults(source: str, own: str) -> list[str]:
    """Imports of room ``own`` that do not go down."""
    return [
        name for name in sorted({part.split(".")[0] for part in [source]})
        if name in ROOMS and name != own and ROOMS.index(name) < ROOMS.index(own)
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    assert own in ROOMS, f"{own}: a room without a place in the list"
    upward = [name for name in imported(path) if faults(name, own)]
    if own == "cli" or own == "commands":
        upward = [name for name in upward if name.split(".")[0] not in ("cli", "commands", "__init__")]
    assert not upward


def test_an_upward_import_is_found() -> None:
    assert faults("loss.CRFLoss", "sampler") == ["loss"]
    assert not faults("contract", "sampler")


@pytest.mark.parametrize("path", sorted((PACKAGE / "engines").glob("*.py")), ids=lambda path: path.name)
def test_engines_know_neither_each_other_nor_models(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] in ("engines", "compiling", "contract", "kernels")
        assert parts[0] != "kernels" or path.name.startswith("triton")
        if parts[0] == "engines" and path.name != "__init__.py" and len(parts) > 1:
            own = parts[1].startswith(path.stem.split("_")[0] + "_")
            assert own or parts[1][0].isupper() or parts[1] in NAMED


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    assert ast.get_docstring(ast.parse(path.read_text())), "a file says which question it answers"


def test_importing_the_package_needs_no_extra() -> None:
    import subprocess
    import sys

    names = ("matplotlib", "triton", "scipy", "numba", "torch._dynamo")
    code = f"import sys, tritoncrf; print([m for m in {names} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
