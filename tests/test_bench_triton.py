"""The GPU benchmark's bodies run in Triton's interpreter, and `bench.gpu_check` with torch and Triton alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
BODIES = """
import torch
from bench import bench_triton as bench
cpu = torch.device("cpu")
for way in ("gather", "incremental"):
    work, told = bench.sweeps(cpu, way, 2, "hot", toy=True)
    work()
    found = told()
    assert found["updates"] == 18 and found["images"] == 2 and 0 < found["flip_rate"] <= 1, found
work, told = bench.sweeps(cpu, "gather", 1, "calm", "torch", toy=True)
work()
assert told()["updates"] == 9
for name, part in bench.parts(cpu, 1, toy=True).items():
    part()
bench.step(cpu, 1, toy=True)()
clock = bench.Clock(cpu, 64)
clock.flush()
assert clock() == clock() == 64
print("all ran")
"""
# Nothing but torch, Triton and what these need is found, the installed tritoncrf least of all.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder
LACKING = {"PIL", "einops", "numba", "safetensors", "tqdm", "scipy", "matplotlib"}
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in LACKING else super().find_spec(name, path, target)
sys.meta_path[:] = [
    Bare if finder is PathFinder else finder for finder in sys.meta_path if "editable" not in repr(finder).lower()
]
sys.path.insert(0, ".")
runpy.run_module("bench.gpu_check", run_name="__main__", alter_sys=True)
"""


def run(code: str, *arguments: str) -> str:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_bodies_run() -> None:
    assert run(BODIES).strip() == "all ran"


def test_a_bare_machine_can_check(tmp_path: Path) -> None:
    run(BARE, "--dry-run", "--out", str(tmp_path), "--stages", "environment", "equality", "bad_input")
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["equality"]["mismatches"] == 0
    assert found["bad_input"]["raised"]


@pytest.mark.slow
def test_every_stage_runs_dry(tmp_path: Path) -> None:
    run(BARE, "--dry-run", "--out", str(tmp_path))
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert not any("failed" in stage for stage in found.values() if isinstance(stage, dict))
    assert found["shapes"]["best"]
