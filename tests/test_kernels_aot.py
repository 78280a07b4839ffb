"""The Triton kernels compiled ahead of time, with no GPU: hardly a spill, no contracted arithmetic, and no growth unseen.

Compilation excludes Triton's interpreter, so it runs in a process of its own (`bench.compiled`). By default sm_90 at 20 labels
without kinds or gates; those, sm_80, gfx942 and other label counts under ``-m slow``.
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

from bench.compiled import RESULTS
from bench.launches import EXACT, KERNELS, SWEEPS
from tests.warm import Warm

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
# By how much a figure may pass the committed one.
GROWTH = 1.1
GROWING = (
    "registers", "shared", "instructions", "site", "redraw", "shared_redraw", "row", "packed", "packed_shared", "push", "gated",
)  # fmt: skip
# Bytes a thread of a sweep, outside of its inner loops.
SPILLED = 64
USUAL = [kernel for kernel in KERNELS if "+" not in kernel]

Figures = dict[str, dict[str, Any]]


def compiled(warm: Warm, *arguments: str) -> Figures:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = warm.run(["-m", "bench.compiled", *arguments], env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    found: Figures = json.loads(done.stdout)
    return found


def check(found: Figures) -> None:
    assert found
    for name, figures in found.items():
        kernel = name.split()[0].partition("+")[0]
        assert figures["spilled"] <= (SPILLED if kernel in SWEEPS else 0), f"{name}: {figures}"
        if kernel in EXACT:
            assert figures["contracted"] == 0, f"{name}: {figures}"
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
def usual(warm: Warm) -> Figures:
    return compiled(warm, "--kernels", *USUAL)


def test_every_kernel_compiles_without_spills_or_contraction(usual: Figures) -> None:
    assert len(usual) == len(USUAL)
    check(usual)


def test_no_figure_grew_over_the_committed_table(usual: Figures) -> None:
    kept = committed()
    assert set(usual) <= set(kept)
    assert not grown(usual, kept)
    assert not lost(usual, kept)


def test_growth_is_found() -> None:
    costs = dict.fromkeys(GROWING, 0.0) | {"site": 800.0, "row": 40.0, "push": 110.0, "resident_warps": 32}
    kept = {"k": {**costs, "registers": 50, "shared": 0, "instructions": 1000, "barriers": 2}}
    assert not grown({"k": {**costs, "registers": 55, "shared": 0, "instructions": 1100}}, kept)
    assert lost({"k": {"barriers": 1}}, kept) == ["k"]
    assert len(grown({"k": {**costs, "registers": 56, "shared": 32, "instructions": 1101}}, kept)) == 3
    for name, more in (("site", 881.0), ("row", 44.5), ("push", 122.0), ("packed", 1.0), ("resident_warps", 28)):
        assert len(grown({"k": kept["k"] | {name: more}}, kept)) == 1, name


def test_a_spill_is_found() -> None:
    figures: dict[str, Any] = {"spilled": 64, "contracted": 0, "wide_addresses": 1}
    check({"lazy+kinds 20 sm_90": figures})
    for name, spilled in (("lazy+kinds 20 sm_90", 68), ("initial_draw 20 sm_90", 4)):
        with pytest.raises(AssertionError, match="spilled"):
            check({name: figures | {"spilled": spilled}})


def test_contraction_is_found(warm: Warm) -> None:
    """The draw compiled as Triton would by default has what the check looks for."""
    found = compiled(warm, "--kernels", "initial_draw", "--contract")
    with pytest.raises(AssertionError, match="contracted"):
        check(found)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "sm_80", "gfx942"])
@pytest.mark.parametrize("labels", [2, 20, 64])
def test_other_targets_label_counts_and_forms(warm: Warm, labels: int, target: str) -> None:
    found = compiled(warm, "--targets", target, "--labels", str(labels), "--kernels", *(KERNELS if labels == 20 else USUAL))
    check(found)
    assert not grown(found, committed())
    assert not lost(found, committed())


def test_a_first_compilation_is_told(tmp_path: Path) -> None:
    """Once: the second process finds the kernel on disk."""
    code = """
from triton import knobs
from tritoncrf.kernels import device
knobs.compilation.listener = device.tell
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
