"""Can the Triton engine be trusted on this card, and how fast is it? ``python -m bench.gpu_check --out DIR``

One command: environment, equality with the torch engine on the CPU, exactness against listed probabilities, speed on the
standard problem beside plain torch, one image's sweep as a CUDA graph, training steps, bad input. ``DIR/gpu_check.json`` is
written after every stage, so a stop loses nothing. ``--dry-run`` goes through all stages at toy size in Triton's interpreter;
its times mean nothing. A stage that fails is reported with its error, and the rest runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import bare

Found = dict[str, Any]
FAILED = "failed"
# Of the search for launch shapes, whose every row compiles kernels anew; what is left then is named.
SHAPES_SECONDS = 150


@dataclass(frozen=True)
class Setting:
    """Where the check runs and how large."""

    device: torch.device
    toy: bool

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int) -> list[float]:
        """Of each run after a first that compiles and warms up; by events on a GPU."""
        work()
        found = []
        for _ in range(1 if self.toy else repeats):
            self.wait()
            if self.device.type == "cuda":
                events: Any = torch.cuda.Event
                begin, end = events(enable_timing=True), events(enable_timing=True)
                begin.record()
                work()
                end.record()
                end.synchronize()
                found.append(begin.elapsed_time(end) / 1e3)
            else:
                began = time.perf_counter()
                work()
                found.append(time.perf_counter() - began)
        return found


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def environment(setting: Setting) -> Found:
    found: Found = {"python": platform.python_version(), "torch": torch.__version__, "device": str(setting.device)}
    found["triton"] = importlib.metadata.version("triton")
    if setting.device.type == "cuda":
        facts = torch.cuda.get_device_properties(setting.device)
        found |= {"name": facts.name, "multiprocessors": facts.multi_processor_count, "memory": facts.total_memory}
        found["capability"] = list(torch.cuda.get_device_capability(setting.device))
    return found


def equality(setting: Setting) -> Found:
    """Labels against the torch engine's on the CPU; a mismatch fails the stage."""
    import tritoncrf as tc

    generator = torch.Generator().manual_seed(0)
    cases: list[tuple[tuple[int, ...], int, tc.Neighborhood, int]] = [
        ((400,), 2, tc.Neighborhood.from_offsets([(1,), (3,), (40,)]), 1),
        ((90, 77), 20, tc.Neighborhood.nearest(64), 1),
        ((33, 41), 5, tc.Neighborhood.nearest(8), 100),
        ((9, 11, 13), 33, tc.Neighborhood.from_offsets([(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, -1, 2)]), 3),
        ((64, 50), 64, tc.Neighborhood.nearest(24), 2),
    ]
    found: Found = {"cases": 0, "sites": 0, "mismatches": 0}
    for shape, labels, hood, replicas in cases[:1] if setting.toy else cases:
        shape = (12,) if setting.toy else shape
        tables = 0.3 * torch.randn(len(hood), labels, labels, generator=generator)
        logits = 2 * torch.randn(3, labels, *shape, generator=generator)
        expected = tc.Sampler(tc.GridCRF(labels, hood, tables), "torch", seed=5, way="gather")
        there = expected.run(expected.init(logits, replicas=replicas), 3).labels
        crf = tc.GridCRF(labels, hood, tables).to(setting.device)
        for way in ("gather", "incremental"):
            sampler = tc.Sampler(crf, "triton", seed=5, way=way)
            here = sampler.run(sampler.init(logits.to(setting.device), replicas=replicas), 3).labels.cpu()
            found["cases"] += 1
            found["sites"] += here.numel()
            found["mismatches"] += int((here != there).sum())
    if found["mismatches"]:
        raise RuntimeError(f"labels differ: {found}")
    return found


def exactness(setting: Setting) -> Found:
    """Chains of a 2 x 2 lattice with 3 labels against the probabilities of its 81 labellings."""
    import tritoncrf as tc

    chains, sweeps, offsets = (600 if setting.toy else 1 << 20), 12, [(0, 1), (1, 0), (1, 1), (1, -1)]
    generator = torch.Generator().manual_seed(3)
    tables = torch.round(torch.randn(len(offsets), 3, 3, generator=generator) * 2048) / 4096
    logits = torch.round(torch.randn(1, 3, 2, 2, generator=generator) * 4096) / 4096
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    energy = -torch.stack([logits[0].double().flatten(1)[every[:, site], site] for site in range(4)]).sum(0)
    for c, (i, j) in ((0, (0, 1)), (0, (2, 3)), (1, (0, 2)), (1, (1, 3)), (2, (0, 3)), (3, (1, 2))):
        energy = energy + tables[c].double()[every[:, i], every[:, j]]
    crf = tc.GridCRF(3, tc.Neighborhood.from_offsets(offsets), tables).to(setting.device)
    sampler, images = tc.Sampler(crf, "triton", seed=9), -(-chains // (1 << 16))
    replicas = chains // images
    state = sampler.init(logits.to(setting.device).expand(images, -1, -1, -1), replicas=replicas)
    drawn = sampler.run(state, sweeps).labels.flatten(2).flatten(0, 1).long().cpu()
    counts = torch.bincount((drawn * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81).double()
    expected = (-energy).softmax(0) * len(drawn)
    enough = expected >= 5
    chi = float(((counts - expected) ** 2 / expected)[enough].sum())
    p = float(torch.special.gammaincc((enough.sum() - 1) / 2.0, torch.tensor(chi / 2)))
    if p < 1e-6:
        raise RuntimeError(f"samples are not exact: chi-square {chi}, p = {p}")
    return {"chains": len(drawn), "sweeps": sweeps, "chi_square": chi, "p": p}


def updates(setting: Setting, engine: str, way: str, images: int, kind: str, far: bool = False) -> Found:
    """Site updates a nanosecond on the standard problem, with the flip rate beside."""
    import tritoncrf as tc
    from bench.problem import LABELS, standard

    problem = standard(kind)
    crf, logits = problem.crf, problem.logits
    if far:
        hood = tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2)
        tables = 0.03 * torch.randn(len(hood), LABELS, LABELS, generator=torch.Generator().manual_seed(0))
        crf = tc.GridCRF(LABELS, hood, tables)
    if setting.toy:
        logits = logits[:, :, 60:63, 160:164]
    crf = crf.to(setting.device)
    sampler = tc.Sampler(crf, engine, seed=1, way=way)
    state = sampler.init(logits.to(setting.device).expand(images, -1, -1, -1))
    sweeps = 1 if setting.toy or engine == "torch" else 10
    if not setting.toy:
        sampler.run(state, 30 if engine == "triton" else 3)
    times = setting.seconds(lambda: sampler.run(state, sweeps), 7)
    done = images * sweeps * logits[0, 0].numel()
    return {
        "engine": engine, "way": way, "images": images, "kind": kind, "far": far, "flip_rate": int(state.flips.sum()) / done,
        "updates_per_ns": done / median(times) / 1e9, "least": done / max(times) / 1e9, "most": done / min(times) / 1e9,
    }  # fmt: skip


def speed(setting: Setting) -> Found:
    rows = [("triton", way, images, kind, False)
            for images in (16, 128, 1) for kind in ("calm", "busy", "hot") for way in ("incremental", "gather")]  # fmt: skip
    rows += [("triton", way, 128, "calm", True) for way in ("incremental", "gather")]
    rows += [("torch", "gather", 16, "calm", False)]
    if setting.toy:
        rows = [("triton", "incremental", 2, "calm", False), ("triton", "gather", 1, "calm", True)]
        rows += [("torch", "gather", 2, "calm", False)]
    return {"rows": [updates(setting, *row) for row in rows]}


def latency(setting: Setting) -> Found:
    """One sweep of one image, launched phase by phase, replayed as a CUDA graph where there is one."""
    import tritoncrf as tc
    from bench.problem import standard
    from tritoncrf import contract, engines

    problem = standard("calm")
    logits = problem.logits[:, :, 60:63, 160:164] if setting.toy else problem.logits
    sampler = tc.Sampler(problem.crf.to(setting.device), "triton", seed=1, way="gather")
    state = sampler.init(logits.to(setting.device))
    found: Found = {}
    _, engine = engines.find("triton", setting.device)
    for way in ("gather", "incremental"):
        field = engine.field(state.work, state.rows) if way == "incremental" else None

        def sweep(field: Tensor | None = field) -> None:
            key = contract.key_of(1)
            engine.sweep(state.work, state.rows, field, 1, contract.scale_of(1.0), key, state.count, state.purpose)

        work: Callable[[], object] = sweep
        found[f"{way}_launched_us"] = median(setting.seconds(work, 20)) * 1e6
        if setting.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                sweep()
            found[f"{way}_graph_us"] = median(setting.seconds(graph.replay, 50)) * 1e6
    return found


def shapes(setting: Setting) -> Found:
    """Sweeps by every launch shape worth a try: of what `tritoncrf.kernels.shapes` should hold. No label depends on it."""
    from tritoncrf.kernels import shapes as launches  # type: ignore[import-not-found]

    import tritoncrf as tc

    kept, fused_from = dict(launches.TABLE), launches.FUSED_PROGRAMS
    rows: list[Found] = []
    generator, area = torch.Generator().manual_seed(0), (3, 4) if setting.toy else (130, 330)
    hood = tc.Neighborhood.nearest(4 if setting.toy else 64)
    began = time.perf_counter()
    try:
        for labels in (2,) if setting.toy else (20, 2, 64):
            crf = tc.GridCRF(labels, hood, 0.02 * torch.randn(len(hood), labels, labels, generator=generator))
            crf = crf.to(setting.device)
            one = (4 * torch.randn(1, labels, *area, generator=generator)).to(setting.device)
            tries = itertools.product((1, 16, 128), ("gather", "incremental"), (False, True), (64, 128, 256, 512))
            for images, way, fused, block in [(1, "gather", False, 16), (1, "gather", True, 16)] if setting.toy else tries:
                # Small batches by programs that hold whole images, and blocks of registers that do not fit, are no candidates.
                if not setting.toy and ((fused and images == 1) or (labels == 64 and block == 512)):
                    continue
                if time.perf_counter() - began > SHAPES_SECONDS:
                    rows.append({"left_out": [labels, images, way, fused, block]})
                    continue
                launches.TABLE = {(64, name, kind): block for name in ("gather", "incremental") for kind in (False, True)}
                launches.FUSED_PROGRAMS = 0 if fused else 1 << 30
                sampler = tc.Sampler(crf, "triton", seed=1, way=way)
                state = sampler.run(sampler.init(one.expand(images, -1, -1, -1)), 1 if setting.toy else 8)
                sweeps = 1 if setting.toy else 5
                spent = median(setting.seconds(partial(sampler.run, state, sweeps), 3))
                done = images * sweeps * one[0, 0].numel()
                row: Found = {"labels": labels, "images": images, "way": way, "fused": fused, "block": block}
                rows.append(row | {"updates_per_ns": done / spent / 1e9, "flip_rate": int(state.flips.sum()) / done})
    finally:
        launches.TABLE, launches.FUSED_PROGRAMS = kept, fused_from
    best: dict[str, Found] = {}
    for row in rows:
        if "updates_per_ns" in row:
            key = f"{row['labels']} labels, {row['images']} images, {row['way']}"
            best[key] = max(best.get(key, row), row, key=lambda found: float(found["updates_per_ns"]))
    return {"best": best, "rows": rows}


def training(setting: Setting) -> Found:
    """Steps of the paper's network with the loss, and with cross-entropy in its place: the sampler's share."""
    import tritoncrf as tc
    from tritoncrf import networks

    shape, found = ((5, 4) if setting.toy else (164, 72)), {}
    hood = tc.Neighborhood.nearest(4) if setting.toy else tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1)
    for images in (1,) if setting.toy else (1, 16):
        torch.manual_seed(0)
        network = (networks.small(1, 20, 4) if setting.toy else networks.table1(1, 20)).to(setting.device)
        crf = tc.GridCRF(20, hood).to(setting.device)
        store = tc.ChainStore([shape] * images, seed=0, device=setting.device)
        loss = tc.CRFLoss(crf, chains=store, sweeps=1 if setting.toy else 10, engine="triton")
        x = torch.randn(images, 1, *shape, device=setting.device)
        target = torch.randint(0, 20, (images, *shape), device=setting.device)
        index = torch.arange(images, device=setting.device)

        entropy = torch.nn.functional.cross_entropy
        whole = median(setting.seconds(partial(step, network, partial(loss, index=index), x, target), 10))
        alone = median(setting.seconds(partial(step, network, entropy, x, target), 10))
        found[f"batch_{images}"] = {"step_ms": whole * 1e3, "cross_entropy_ms": alone * 1e3, "share": 1 - alone / whole}
    return found


def step(network: Any, loss: Any, x: Tensor, target: Tensor) -> None:
    loss(network(x), target=target).backward()


def bad_input(setting: Setting) -> Found:
    """NaN in the logits raises, or makes the loss NaN, its gradient 0 and leaves the chains where they were."""
    import tritoncrf as tc

    crf = tc.GridCRF(3, tc.Neighborhood.nearest(4)).to(setting.device)
    loss = tc.CRFLoss(crf, method="cd", seed=0, sweeps=1, engine="triton")
    logits = torch.zeros(1, 3, 4, 5, device=setting.device)
    logits[0, 1, 2, 3] = torch.nan
    logits.requires_grad_()
    try:
        value = loss(logits, torch.zeros(1, 4, 5, dtype=torch.long, device=setting.device))
    except ValueError as error:
        return {"raised": str(error)}
    value.backward()
    if not bool(value.isnan()) or logits.grad is None or bool(logits.grad.any()):
        raise RuntimeError(f"loss {float(value)} and its gradient were not voided")
    return {"voided": True}


STAGES: dict[str, Callable[[Setting], Found]] = {
    stage.__name__: stage for stage in (environment, equality, exactness, speed, latency, training, bad_input, shapes)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu_check.json")
    parser.add_argument("--stages", nargs="*", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="toy size, in Triton's interpreter, without a GPU")
    options = parser.parse_args()
    if options.dry_run:
        # Before Triton is imported anywhere: it decides then.
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("no GPU here; --dry-run goes through the stages without one")
    bare.provide()
    setting = Setting(torch.device("cpu" if options.dry_run else "cuda"), options.dry_run)
    options.out.mkdir(parents=True, exist_ok=True)
    results: Found = {"dry_run": options.dry_run}
    for name in options.stages:
        began = time.perf_counter()
        try:
            found = STAGES[name](setting)
        except Exception as error:
            traceback.print_exc()
            found = {FAILED: f"{type(error).__name__}: {error}"}
        results[name] = found | {"seconds": round(time.perf_counter() - began, 2)}
        (options.out / "gpu_check.json").write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
    return int(any(FAILED in results[name] for name in options.stages))


if __name__ == "__main__":
    sys.exit(main())
