"""What do NVIDIA's own tools say of the kernels? Nsight Compute's figures of a sweep, and the sanitizer's complaints.

Both run this file as a program of their own (``python -m bench.gpu_tools profiled incremental``) and are ended after a while.
Nsight Compute's text is kept whole, and its main figures are read from it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench import bare
from bench.gpu_jobs import FAILED, SKIPPED, Job, Row, Setting

ROOT = Path(__file__).parent.parent
TOOL_SECONDS = 60.0
# Kernels' names begin so; each way's sweep of many chains is one launch, of the same kernel compiled otherwise.
KERNELS = {"incremental": "^sweep_chains", "gather": "^sweep_chains"}
SECTIONS = (
    "SpeedOfLight", "WarpStateStats", "SchedulerStats", "MemoryWorkloadAnalysis", "Occupancy", "InstructionStats",
    "LaunchStats",
)  # fmt: skip
STALLS = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
# What they are called in the text, and here.
FIGURES = {
    "Duration": "duration", "Registers Per Thread": "registers", "One or More Eligible": "issue_slots_busy_percent",
    "Executed Instructions": "instructions", "DRAM Throughput": "dram_percent", "L2 Cache Throughput": "l2_percent",
    "L1/TEX Cache Throughput": "l1_percent", "Compute (SM) Throughput": "compute_percent", "L1/TEX Hit Rate": "l1_hit_percent",
    "L2 Hit Rate": "l2_hit_percent", "Achieved Occupancy": "occupancy_percent", "Elapsed Cycles": "cycles",
    "Warp Cycles Per Issued Instruction": "cycles_an_instruction", "Local Memory Spilling Requests": "spills",
}  # fmt: skip
LINE = re.compile(r"^ {4}(?P<name>\S.*?) {2,}(?:(?P<unit>[^\s\d]\S*) +)?(?P<value>[\d,]+(?:\.\d+)?)\s*$")
STALL = re.compile(r"stalled_(?P<reason>\w+?)_per_issue_active\.ratio")
TOP_STALL = re.compile(r"spends ([\d.]+) cycles being stalled (.+?)\. ")


def figures(text: str) -> Row:
    """The main figures of one profiled launch, as Nsight Compute prints them, and stall reasons in cycles an instruction."""
    found, stalls = Row(), dict[str, float]()
    for match in filter(None, map(LINE.match, text.splitlines())):
        value = float(match["value"].replace(",", ""))
        if stall := STALL.search(match["name"]):
            stalls[stall["reason"]] = value
        elif key := FIGURES.get(match["name"]):
            unit = match["unit"]
            found[f"{key}_{unit}" if key == "duration" else key] = value
    if top := TOP_STALL.search(" ".join(text.split())):
        found["top_stall"] = f"{top[1]} cycles {top[2]}"
    return found | {"stalls": dict(sorted(stalls.items(), key=lambda pair: -pair[1]))}


def output_of(command: list[str], seconds: float, extra: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of a program, which is ended with all that it started when it is late: then the code is -9."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | (extra or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=seconds)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return -signal.SIGKILL, text


def profiled_by(ncu: str, update: str, out: Path, seconds: float) -> Row:
    sections = [word for section in SECTIONS for word in ("--section", section)]
    stalls = ["--metrics", "regex:^" + STALLS.format(".*").replace(".ratio", r"\.ratio") + "$"]
    until, code, text = time.monotonic() + min(seconds, TOOL_SECONDS), 1, ""
    # Sections alone where this ncu knows no such metrics, which it says at once.
    for asked in (sections + stalls, sections):
        code, text = output_of(
            [ncu, "--clock-control", "none", "-k", f"regex:{KERNELS[update]}", "--launch-skip", "2", "--launch-count", "1",
             *asked, sys.executable, "-m", "bench.gpu_tools", "profiled", update], until - time.monotonic(),
        )  # fmt: skip
        if code == 0 or code == -signal.SIGKILL:
            break
    (out / f"ncu_{update}.txt").write_text(text)
    found = figures(text)
    if code or "instructions" not in found:
        return found | {FAILED: f"ncu ended with {code}, {len(found) - 1} figures in its text: {tail(text)}"}
    return found


def tail(text: str) -> str:
    return " ".join(text.split())[-300:]


def profile(setting: Setting, out: Path, seconds: float) -> list[Job]:
    ncu = shutil.which("ncu")
    if setting.toy or ncu is None:
        return [("profile", partial(skipped, "no GPU" if setting.toy else "ncu is not on the path"))]
    return [(update, partial(profiled_by, ncu, update, out, seconds / len(KERNELS))) for update in KERNELS]


def sanitized_by(sanitizer: str, tool: str, out: Path, seconds: float) -> Row:
    command = [sanitizer, "--tool", tool, "--error-exitcode", "86", sys.executable, "-m", "bench.gpu_tools", "sanitized"]
    # Blocks of torch's own allocator would hide what lies past a tensor's end.
    code, text = output_of(command, min(seconds, TOOL_SECONDS), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    (out / f"sanitizer_{tool}.txt").write_text(text)
    last = tail(text.strip().rpartition("\n")[2])
    return {"last_line": last} | ({FAILED: f"{tool} ended with {code}: {last}"} if code else {})


def sanitizer(setting: Setting, out: Path, seconds: float) -> list[Job]:
    found = shutil.which("compute-sanitizer")
    if setting.toy or found is None:
        return [("sanitizer", partial(skipped, "no GPU" if setting.toy else "compute-sanitizer is not on the path"))]
    return [(tool, partial(sanitized_by, found, tool, out, seconds)) for tool in ("memcheck", "racecheck")]


def skipped(why: str) -> Row:
    return {SKIPPED: why}


def profiled(update: str) -> None:
    """128 images of the standard problem, settled, in launches of 4 sweeps: the third launch is looked at."""
    import torch

    import tritoncrf as tc
    from bench.problem import standard

    asked = standard("calm")
    sampler = tc.Sampler(asked.crf.to("cuda"), "triton", seed=1, update=update)
    state = sampler.init(asked.logits.to("cuda").expand(128, -1, -1, -1))
    for sweeps in (40, 4, 4, 4):
        sampler.run(state, sweeps)
    torch.cuda.synchronize()


def sanitized() -> None:
    """Small problems by both updates and launch shapes, of one chain an image and of several."""
    import torch

    import tritoncrf as tc
    from bench.gpu_equal import TEAMS, UPDATES, forced

    generator = torch.Generator().manual_seed(0)
    hood = tc.Neighborhood.nearest(8)
    crf = tc.GridCRF(20, hood, 0.3 * torch.randn(len(hood), 20, 20, generator=generator)).to("cuda")
    logits = torch.randn(2, 20, 23, 19, generator=generator).to("cuda")
    for update in UPDATES:
        for team in TEAMS:
            for replicas in (1, 3):
                with forced(team):
                    sampler = tc.Sampler(crf, "triton", seed=1, update=update)
                    state = sampler.run(sampler.init(logits, replicas=replicas), 2)
                    sampler.pair_counts(state)
    torch.cuda.synchronize()


if __name__ == "__main__":
    bare.provide()
    if sys.argv[1] == "profiled":
        profiled(sys.argv[2])
    else:
        sanitized()
