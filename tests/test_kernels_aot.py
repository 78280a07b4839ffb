"""The Triton kernels compiled ahead of time, with no GPU: no spills, no contracted arithmetic, and no growth unseen.

Compilation excludes Triton's interpreter, so it runs in a process of its own (`bench.compiled`). By default sm_90 at 20 labels;
sm_80, gfx942 and other label counts under ``-m slow``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.compiled import EXACT, KERNELS, RESULTS

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
# By how much a figure may pass the committed one.
GROWTH = 1.1
GROWING = ("registers", "shared", "instructions", "site", "redraw", "row", "narrow", "push", "gated")

Figures = dict[str, dict[str, Any]]


def compiled(*arguments: str) -> Figures:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.compiled", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: Figures = json.loads(done.stdout)
    return found


def check(found: Figures) -> None:
    assert found
    for name, figures in found.items():
        assert figures["spilled"] == 0, f"{name}: {figures}"
        if name.split()[0].partition("+")[0] in EXACT:
            assert figures["fused_multiply_adds"] == 0, f"{name}: {figures}"
        # Offsets of rows and chains pass 2^31.
        assert figures["wide_addresses"] > 0, f"{name}: {figures}"


def grown(found: Figures, kept: Figures) -> list[str]:
    return [
        f"{name}: {figure} {kept[name][figure]} -> {figures[figure]}"
        for name, figures in found.items() if name in kept
        for figure in GROWING if figures[figure] > GROWTH * kept[name][figure]
    ] + [
        f"{name}: warps a multiprocessor holds {kept[name]['resident_warps']} -> {figures['resident_warps']}"
        for name, figures in found.items() if name in kept and GROWTH * figures["resident_warps"] < kept[name]["resident_warps"]
    ]  # fmt: skip


def lost(found: Figures, kept: Figures) -> list[str]:
    """Kernels with fewer barriers than the committed ones: what orders phases cannot be seen in the interpreter."""
    return [name for name, figures in found.items() if name in kept and figures["barriers"] < kept[name]["barriers"]]


def committed() -> Figures:
    everything: dict[str, Figures] = json.loads(RESULTS.read_text())
    version = importlib.metadata.version("triton")
    if version not in everything:
        pytest.skip(f"no committed figures for Triton {version}: python -m bench.compiled --write")
    return everything[version]


@pytest.fixture(scope="module")
def usual() -> Figures:
    return compiled()


def test_every_kernel_compiles_without_spills_or_contraction(usual: Figures) -> None:
    assert len(usual) == len(KERNELS)
    check(usual)


def test_no_figure_grew_over_the_committed_table(usual: Figures) -> None:
    kept = committed()
    assert set(usual) <= set(kept)
    assert not grown(usual, kept)
    assert not lost(usual, kept)


def test_growth_is_found() -> None:
    costs = {"site": 800.0, "redraw": 0.0, "row": 40.0, "narrow": 0.0, "push": 110.0, "gated": 0.0, "resident_warps": 32}
    kept = {"k": {"registers": 50, "shared": 0, "instructions": 1000, "barriers": 2, **costs}}
    assert not grown({"k": {"registers": 55, "shared": 0, "instructions": 1100, **costs}}, kept)
    assert lost({"k": {"barriers": 1}}, kept) == ["k"]
    assert len(grown({"k": {"registers": 56, "shared": 32, "instructions": 1101, **costs}}, kept)) == 3
    for name, more in (("site", 881.0), ("row", 44.5), ("push", 122.0), ("narrow", 1.0), ("resident_warps", 28)):
        assert len(grown({"k": kept["k"] | {name: more}}, kept)) == 1, name


def test_contraction_is_found() -> None:
    """The draw compiled as Triton would by default has what the check looks for."""
    found = compiled("--kernels", "initial_draw", "--contract")
    with pytest.raises(AssertionError, match="fused_multiply_adds"):
        check(found)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_80", "gfx942"])
@pytest.mark.parametrize("labels", [2, 20, 64])
def test_other_targets_and_label_counts(labels: int, target: str) -> None:
    found = compiled("--targets", target, "--labels", str(labels))
    check(found)
    assert not grown(found, committed())
    assert not lost(found, committed())


def test_a_first_compilation_is_told(tmp_path: Path) -> None:
    """Once: the second process finds the kernel on disk."""
    code = """
from triton import knobs
from tritoncrf.kernels import operators
knobs.compilation.listener = operators.tell
import runpy, sys
sys.argv = ["bench.compiled", "--kernels", "initial_draw"]
runpy.run_module("bench.compiled", run_name="__main__")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", code]
    said = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stderr for _ in range(2)
    ]
    assert "tritoncrf: compiled initial_draw for this GPU in " in said[0]
    assert "tritoncrf: compiled" not in said[1]
