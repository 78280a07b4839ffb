"""Can the Triton engine be trusted on this card, and how fast is it? ``python -m bench.gpu_check --out DIR``

One command, with torch, Triton and pytest alone, from a checkout that need not be installed: bits against the torch engine on
the CPU, steps that never wait, samples against listed probabilities, speed, training, NVIDIA's profiler and sanitizer where
they are. ``DIR/gpu_check.json`` is written after every stage and ``DIR/gpu_check.log`` after every job. Every stage has its
time, and what is late, hangs or breaks the device is reported as failed while the rest goes on. ``--dry-run`` goes through all
stages at toy size in Triton's interpreter; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench import bare, gpu_equal, gpu_jobs, gpu_speed, gpu_tools, gpu_training
from bench.gpu_jobs import FAILED, TRACE, Here, Job, Row, Setting, Workers

# Together they interpret nothing; compiled code does not care.
OLD_TRITON, NEW_NUMPY = (3, 6), (2, 4)


def machine(setting: Setting) -> Row:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton", "numpy")}
    found: Row = {"python": platform.python_version(), **versions, "cpus": os.cpu_count(), "device": str(setting.device)}
    triton, numpy = (tuple(map(int, re.findall(r"\d+", versions[name])[:2])) for name in ("triton", "numpy"))
    found["code"] = "interpreted" if setting.toy else "compiled"
    if triton <= OLD_TRITON and numpy >= NEW_NUMPY:
        found["note"] = f"Triton {versions['triton']}'s interpreter fails with numpy {np.__version__}: compiled code only"
    if setting.device.type == "cuda":
        facts = torch.cuda.get_device_properties(setting.device)
        found |= {"name": facts.name, "multiprocessors": facts.multi_processor_count, "memory": facts.total_memory}
        found["capability"] = list(torch.cuda.get_device_capability(setting.device))
    if tool := shutil.which("nvidia-smi"):
        asked = ("driver_version", "clocks.max.sm", "power.limit")
        code, text = gpu_tools.output_of([tool, f"--query-gpu={','.join(asked)}", "--format=csv,noheader"], 20)
        found |= dict(zip(asked, map(str.strip, text.splitlines()[0].split(",")), strict=False)) if code == 0 and text else {}
    return found


def environment(setting: Setting) -> list[Job]:
    return [("environment", partial(machine, setting))]


@dataclass(frozen=True)
class Stage:
    """Jobs side by side ("many"), or in turn with nothing beside them ("one": what is timed), and by when they are done."""

    jobs: Callable[..., list[Job]]
    where: str
    seconds: float
    tool: bool = False
    """Its jobs also take the folder and the seconds that are left."""


# Neighbours of "many" start together, and their seconds count from there; the first of them includes 7 s of starting.
STAGES = {
    "environment": Stage(environment, "one", 30),
    "equality": Stage(gpu_equal.equality, "many", 90),
    "updates": Stage(gpu_equal.updates, "many", 90),
    "steps": Stage(gpu_equal.steps, "many", 90),
    "exactness": Stage(gpu_equal.exactness, "many", 90),
    "speed": Stage(gpu_speed.speed, "one", 60),
    "training": Stage(gpu_training.training, "one", 40),
    "profile": Stage(gpu_tools.profile, "one", 120, tool=True),
    "sanitizer": Stage(gpu_tools.sanitizer, "many", 90, tool=True),
    "rare": Stage(gpu_equal.rare, "many", 90),
}
DEFAULT = list(STAGES)
# Asked for by name, with candidates.
SHAPES = "shapes"


@dataclass
class Check:
    """One run of the command: what it may take, and what it has found."""

    setting: Setting
    out: Path
    seconds: float
    candidates: list[gpu_speed.Candidate]
    began: float = field(default_factory=time.monotonic)
    results: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.results["dry_run"] = self.setting.toy
        (self.out / "gpu_check.log").write_text("")

    def left(self) -> float:
        return self.began + self.seconds - time.monotonic()

    def log(self, text: str) -> None:
        line = f"[{time.monotonic() - self.began:6.1f}] {text}"
        print(line, file=sys.stderr, flush=True)
        with (self.out / "gpu_check.log").open("a") as file:
            file.write(line + "\n")

    def open(self, count: int) -> Workers | Here:
        return Here() if self.setting.toy else Workers(count)

    def run(self, names: list[str]) -> None:
        """The stages in their order; processes for many jobs start at once, so that they are there when asked for."""
        groups = self.groups(names)
        one: Workers | Here | None = None
        many = self.open(gpu_jobs.workers()) if any(where == "many" for where, _ in groups[:2]) else None
        try:
            for where, stages in groups:
                if where == "many":
                    many = many or self.open(gpu_jobs.workers())
                    self.group(many, stages)
                    many.close()
                    many = None
                    continue
                one = one or self.open(1)
                if not self.group(one, stages):
                    # What failed may have broken the device for its process.
                    one.close()
                    one = None
        finally:
            for workers in (one, many):
                if workers is not None:
                    workers.close()

    def groups(self, names: list[str]) -> list[tuple[str, dict[str, Stage]]]:
        """Stages that run together: neighbours with jobs side by side, and each other stage alone."""
        found: list[tuple[str, dict[str, Stage]]] = []
        for name in names:
            if name == SHAPES:
                jobs = [(json.dumps(one), one) for one in self.candidates]
                compiled = [(key, partial(gpu_speed.compiled, self.setting, one)) for key, one in jobs]
                tried = [(key, partial(gpu_speed.tried, self.setting, one)) for key, one in jobs]
                found.append(("many", {"shapes_equal": Stage(lambda setting, jobs=compiled: jobs, "many", 120)}))
                found.append(("one", {SHAPES: Stage(lambda setting, jobs=tried: jobs, "one", 120)}))
            elif found and found[-1][0] == STAGES[name].where == "many":
                found[-1][1][name] = STAGES[name]
            else:
                found.append((STAGES[name].where, {name: STAGES[name]}))
        return found

    def group(self, workers: Workers | Here, stages: dict[str, Stage]) -> bool:
        """Runs the stages' jobs together and writes each stage once its last job is done; whether all went well."""
        began = time.monotonic()
        bound = min(self.left(), max(stage.seconds for stage in stages.values()))
        if bound <= 0:
            for name in stages:
                self.write(name, {FAILED: f"not run: the {self.seconds:.0f} s of --seconds were over"})
            return False
        jobs: list[Job] = []
        missing: dict[str, list[str]] = {}
        for name, stage in stages.items():
            # A worker that is ended leaves the tool behind that it started: tools are to end before.
            extra = (self.out, 0.8 * bound) if stage.tool else ()
            own = stage.jobs(self.setting, *extra)
            missing[name] = [job for job, _ in own]
            jobs += [(f"{name}/{job}", work) for job, work in own]
        found: dict[str, dict[str, Row]] = {name: {} for name in stages}
        for key, answer in workers.answers(jobs, bound):
            name, _, job = key.partition("/")
            trace = answer.pop(TRACE, None)
            found[name][job] = answer
            missing[name].remove(job)
            self.log(f"{key}: {json.dumps(answer)}" + (f"\n{trace}" if trace else ""))
            if not missing[name]:
                self.write(name, summary(name, found[name]) | {"seconds": round(time.monotonic() - began, 2)})
        return not any(FAILED in self.results[name] for name in stages)

    def write(self, name: str, found: Row) -> None:
        self.results[name] = found
        text = json.dumps(self.results | {"seconds": round(time.monotonic() - self.began, 1)}, indent=1)
        written = self.out / "gpu_check.json.new"
        written.write_text(text + "\n")
        written.replace(self.out / "gpu_check.json")
        self.log(f"{name}: {found.get(FAILED, 'done')}")


def summary(name: str, jobs: dict[str, Row]) -> Row:
    """A stage's entry: its jobs', sums of what they counted, and how many of them failed."""
    found: Row = dict(jobs[name]) if list(jobs) == [name] else {"jobs": jobs}
    for count in ("cases", "sites", "updates"):
        if values := [job[count] for job in jobs.values() if count in job]:
            found[count] = sum(values)
    if failed := [job for job in jobs if FAILED in jobs[job]]:
        first = jobs[failed[0]][FAILED]
        found[FAILED] = f"{len(failed)} of {len(jobs)} jobs; {failed[0]}: {first}" if len(jobs) > 1 else first
    return found


def candidates(text: str) -> list[gpu_speed.Candidate]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected JSON, got {text[:80]!r} ({error})") from None
    if wrong := gpu_speed.faulty(found):
        raise argparse.ArgumentTypeError(f"expected {wrong}, got {text[:200]}")
    return list(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu_check.json")
    parser.add_argument(
        "--stages", nargs="+", choices=[*STAGES, SHAPES], default=DEFAULT,
        help=f"run in their own order; {SHAPES} times the candidates of --shapes",
    )  # fmt: skip
    parser.add_argument(
        "--shapes", type=candidates, default=[], metavar="JSON",
        help='launch shapes to try: [{"update": "incremental", "images": 128, "kind": "calm", "lanes": 512, "warps": 16}, ...]',
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=600, help="for the whole run; what is left then is reported as failed")
    parser.add_argument("--dry-run", action="store_true", help="toy size, in Triton's interpreter, without a GPU")
    options = parser.parse_args()
    if (SHAPES in options.stages) != bool(options.shapes):
        parser.error(f"--shapes: expected candidates with the stage {SHAPES} and without it none, got otherwise")
    if options.dry_run:
        # Before Triton is imported anywhere: it decides then.
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("no GPU here; --dry-run goes through the stages without one")
    bare.provide()
    options.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(torch.device("cpu" if options.dry_run else "cuda"), options.dry_run)
    check = Check(setting, options.out, options.seconds, options.shapes)
    check.run([name for name in (*STAGES, SHAPES) if name in options.stages])
    return int(any(FAILED in found for found in check.results.values() if isinstance(found, dict)))


if __name__ == "__main__":
    sys.exit(main())
