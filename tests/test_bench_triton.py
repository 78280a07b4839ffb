"""The GPU benchmark's bodies run in Triton's interpreter, and `bench.gpu_check` with torch, Triton and pytest alone."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import gpu_check, gpu_equal, gpu_jobs, gpu_speed, gpu_tools
from bench.gpu_jobs import Job

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")
BODIES = """
import torch
from bench import bench_triton as bench
from tests import quick_interpreter
quick_interpreter.install()
cpu = torch.device("cpu")
for update in ("gather", "incremental"):
    work, figures = bench.sweeps(cpu, update, 2, "hot", toy=True)
    work()
    found = figures()
    assert found["updates"] == 18 and found["images"] == 2 and 0 < found["flip_rate"] <= 1, found
work, figures = bench.sweeps(cpu, "gather", 1, "calm", "torch", toy=True)
work()
assert figures()["updates"] == 9
for name, part in bench.parts(cpu, 1, toy=True).items():
    part()
bench.step(cpu, 1, toy=True)()
clock = bench.Clock(cpu, 64)
clock.flush()
assert clock() == clock() == 64
print("all ran")
"""
# Nothing but torch, Triton, pytest and what these need is found, the installed tritoncrf least of all.
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


# Beside what the command does by itself.
CANDIDATE: dict[str, int | str | bool] = {
    "update": "incremental", "images": 2, "kind": "calm", "lanes": 32, "warps": 1, "scan": 64,
}  # fmt: skip


@pytest.mark.slow
def test_a_bare_machine_goes_through_every_stage(tmp_path: Path) -> None:
    stages = [*gpu_check.STAGES, gpu_check.SHAPES]
    run(BARE, "--dry-run", "--out", str(tmp_path), "--shapes", json.dumps([CANDIDATE]), "--stages", *stages)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [name for name in found if isinstance(found[name], dict)] == [*gpu_check.STAGES, "shapes_equal", "shapes"]
    assert "failed" not in json.dumps(found)
    assert found["environment"]["code"] == "interpreted"
    assert found["equality"]["cases"] == 2
    assert found["equality"]["sites"] > 100
    assert found["updates"]["updates"] > 50
    assert len(found["steps"]["jobs"]) == 5
    assert 0 < found["exactness"]["p"] <= 1
    assert all(0 < row["flip_rate"] <= 1 for row in found["speed"]["jobs"].values())
    assert found["profile"]["skipped"] == found["sanitizer"]["skipped"] == "no GPU"
    assert found["shapes"]["jobs"][json.dumps(CANDIDATE)]["scan"] == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_check.json", "gpu_check.log"]


def spoiled() -> dict[str, object]:
    assert 1 + 1 == 3
    return {}


def slept(seconds: float) -> dict[str, object]:
    time.sleep(seconds)
    return {"slept": seconds}


def test_workers_outlive_what_fails_and_end_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In spawned processes, one of which interprets a case of the equality stage."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    setting = gpu_jobs.Setting(torch.device("cpu"), toy=True)
    workers, began = gpu_jobs.Workers(1), time.monotonic()
    try:
        jobs = [("spoiled", spoiled), gpu_equal.equality(setting)[0]]
        bad, good = workers.answers(jobs, 120)
        assert bad[1]["failed"] == "AssertionError: assert 1 + 1 == 3"
        assert "spoiled" in bad[1]["trace"]
        assert good[1]["sites"] > 10
        began = time.monotonic()
        late = list(workers.answers([("short", partial(slept, 0.0)), ("long", partial(slept, 600.0)), ("after", spoiled)], 2))
    finally:
        workers.close()
    assert time.monotonic() - began < 60
    assert late[0][1]["slept"] == 0
    assert [(name, found["failed"]) for name, found in late[1:]] == [(name, "not done after 2 s") for name in ("long", "after")]


def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 600, **jobs: Job) -> gpu_check.Check:
    """A dry run whose stages have one job each."""
    stages = {name: gpu_check.Stage(lambda setting, job=job: [job], "one", 60) for name, job in jobs.items()}
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    made = gpu_check.Check(gpu_jobs.Setting(torch.device("cpu"), toy=True), tmp_path, seconds, [])
    made.run(list(stages))
    return made


def test_a_stage_that_fails_is_written_and_the_rest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, monkeypatch, first=("first", spoiled), second=("part", partial(slept, 0.0)))
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["first"]["failed"].startswith("AssertionError: assert ")
    assert found["second"]["jobs"]["part"]["slept"] == 0
    assert "Traceback" in (tmp_path / "gpu_check.log").read_text()


def test_what_the_time_does_not_reach_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(tmp_path, monkeypatch, 0.2, first=("first", partial(slept, 0.3)), second=("second", spoiled)).results
    assert found["first"]["slept"] == 0.3
    assert found["second"] == {"failed": "not run: the 0 s of --seconds were over"}


# As Nsight Compute prints them.
NCU = """
  sweep_chains (128, 1, 1)x(256, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Section: Command line profiler metrics
    ------------------------------------------------------------------------ ----------- ------------
    Metric Name                                                              Metric Unit Metric Value
    ------------------------------------------------------------------------ ----------- ------------
    smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio                inst         0.35
    smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio        inst         5.74
    ------------------------------------------------------------------------ ----------- ------------
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    Elapsed Cycles                cycle    4,202,488
    DRAM Throughput                   %        25.83
    Duration                         ms         2.12
    ----------------------- ----------- ------------
    Local Memory Spilling Requests                                0
    Local Memory Spilling Request Overhead           %      no data
    Executed Instructions                           inst  371,460,297
    Registers Per Thread             register/thread              36
          On average, each warp of this workload spends 5.7 cycles being stalled waiting for a scoreboard dependency on
          a L1TEX (local, global, surface, texture) operation. Find the instruction producing the data being waited
"""


def tool(tmp_path: Path, script: str) -> str:
    found = tmp_path / "tool"
    found.write_text("#!/bin/sh\n" + script)
    found.chmod(0o755)
    return str(found)


def test_the_profilers_text_is_kept_and_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(NCU)
    # One that does not know the metrics first.
    ncu = tool(tmp_path, f'case "$*" in *--metrics*) echo unknown; exit 1;; *) cat {tmp_path}/text;; esac')
    found = gpu_tools.profiled_by(ncu, "incremental", tmp_path, 60)
    assert (tmp_path / "ncu_incremental.txt").read_text() == NCU
    assert found == {
        "stalls": {"long_scoreboard": 5.74, "barrier": 0.35}, "cycles": 4202488, "dram_percent": 25.83, "duration_ms": 2.12,
        "spills": 0, "instructions": 371460297, "registers": 36,
        "top_stall": "5.7 cycles waiting for a scoreboard dependency on a L1TEX (local, global, surface, texture) operation",
    }  # fmt: skip
    found = gpu_tools.profiled_by(tool(tmp_path, "echo no permission; exit 9"), "gather", tmp_path, 60)
    assert found["failed"] == "ncu ended with 9, 0 figures in its text: no permission"


def test_the_sanitizers_complaint_fails(tmp_path: Path) -> None:
    complains = tool(tmp_path, "echo '========= ERROR SUMMARY: 3 errors'; exit 86")
    found = gpu_tools.sanitized_by(complains, "memcheck", tmp_path, 60)
    assert found["failed"] == "memcheck ended with 86: ========= ERROR SUMMARY: 3 errors"
    assert (tmp_path / "sanitizer_memcheck.txt").is_file()
    assert "failed" not in gpu_tools.sanitized_by(tool(tmp_path, "echo none"), "racecheck", tmp_path, 60)


def test_a_late_tool_is_ended_with_what_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    # Its child holds the output open: without its end there is no end of reading.
    code, text = gpu_tools.output_of([tool(tmp_path, "sleep 600 & echo started; sleep 600")], 0.5)
    assert (code, text) == (-9, "started\n")
    assert time.monotonic() - began < 60


def test_a_candidates_values_are_those_launched() -> None:
    from tritoncrf.kernels import shapes

    before = shapes.choose(20, True, 128, 1, 200)
    with gpu_speed.shaped(CANDIDATE | {"warps": 3}):
        chosen = shapes.choose(20, True, 128, 1, 200)
        assert (chosen.lanes, chosen.warps, chosen.scan, chosen.split) == (32, 3, 64, before.split)
    assert shapes.choose(20, True, 128, 1, 200) == before
    with (
        pytest.raises(ValueError, match=r"^shapes: expected values of \['ahead', .*\], got \['blok'\]"),
        gpu_speed.shaped({**CANDIDATE, "blok": 3}),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "[{]"], "argument --shapes: expected JSON, got '[{]'"),
        (["--shapes", "{}"], "argument --shapes: expected a list of objects, got {}"),
        (["--shapes", '[{"update": "both"}]'], "argument --shapes: expected objects with an update, images and a kind of"),
        (["--stages", "shapes"], "--shapes: expected candidates with the stage shapes and without it none"),
    ],
)
def test_bad_arguments_are_said_in_a_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--dry-run", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
