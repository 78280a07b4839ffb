"""How many site updates a nanosecond on this card, and by which launch shape? Sweeps of the standard problem, by events.

A row is one update, batch and kind. Chains that have settled are timed in calls of 10 sweeps and of 30: a call's first sweep may
build the field, so the slope between the two is what a sweep itself takes (``sweep_us``), and ``updates_per_ns`` is of calls
of 10. ``first`` is the first ten sweeps after `Sampler.init`. A throughput means nothing without its flip rate beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bench.gpu_jobs import Job, Row, Setting

if TYPE_CHECKING:
    from tritoncrf import GridCRF

KINDS = ("calm", "busy", "hot")

BATCHES = (128, 16, 1)
FEW, MANY, SETTLED = 10, 30, 40
# Of one row's timed calls of one length: slow rows are repeated less often.
ROW_SECONDS = 1.0
Candidate = Mapping[str, int | str | bool]


@cache
def problem(kind: str, toy: bool) -> tuple[GridCRF, Tensor]:
    """The standard problem's CRF and logits; nine of its pixels and the two nearest displacements at toy size."""
    import tritoncrf as tc
    from bench.problem import standard

    asked = standard(kind)
    if not toy:
        return asked.crf, asked.logits
    hood = tc.Neighborhood.from_offsets(asked.crf.neighborhood.offsets[:2])
    return tc.GridCRF(asked.crf.num_labels, hood, asked.crf.pairwise.detach()[:2]), asked.logits[:, :, 60:63, 160:163]


def row(setting: Setting, update: str, images: int, kind: str, engine: str = "triton", wide: bool = False) -> Row:
    """One row of the table; wide: one row of the tables is too steep for words, so that float32 rows are read."""
    import tritoncrf as tc

    asked, logits = problem(kind, setting.toy)
    tables = asked.pairwise.detach().clone()
    if wide:
        # Of one pair of labels at one offset: chains move as they did, near enough.
        tables[0, 1, 2] = 8.0
    crf = tc.GridCRF(asked.num_labels, asked.neighborhood, tables).to(setting.device)
    sampler = tc.Sampler(crf, engine, seed=1, update=update)
    logits = logits.to(setting.device).expand(images, -1, -1, -1)
    slow = setting.toy or engine == "torch"
    few, many, settled = (1, 2, 1) if slow else (FEW, MANY, SETTLED)
    sampler.run(sampler.init(logits), 1)
    first = []
    for _ in range(1 if slow else 3):
        state = sampler.init(logits)
        first.append(setting.once(partial(sampler.run, state, few)))
    sites = images * logits[0, 0].numel()
    first_flips = int(state.flips.sum()) / (sites * few)
    spent = setting.once(partial(sampler.run, state, settled)) / settled
    tens = setting.seconds(partial(sampler.run, state, few), times(spent * few))
    flips = int(state.flips.sum()) / (sites * few)
    thirties = setting.seconds(partial(sampler.run, state, many), times(spent * many))
    sweep = (thirties - tens) / (many - few)
    return {
        "engine": engine, "update": update, "images": images, "kind": kind, "rows": "float32" if wide else "packed",
        "flip_rate": flips, "updates_per_ns": sites * few / tens / 1e9, "call_of_10_ms": tens * 1e3,
        "call_of_30_ms": thirties * 1e3, "sweep_us": sweep * 1e6, "settled_updates_per_ns": sites / sweep / 1e9,
        "host_us_a_call": setting.host_seconds(partial(sampler.run, state, few), 3) * 1e6,
        "first_ms": sorted(first)[len(first) // 2] * 1e3, "first_flip_rate": first_flips,
    }  # fmt: skip


def times(seconds: float) -> int:
    """How often to repeat what takes so long: five times, less where that would be too much."""
    return max(1, min(5, int(ROW_SECONDS / max(seconds, 1e-9))))


def against_torch(setting: Setting) -> Row:
    """The plain torch engine at batch 16, and how many times faster this one is."""
    images = 2 if setting.toy else 16
    theirs = row(setting, "gather", images, "calm", engine="torch")
    ours = {update: row(setting, update, images, "calm")["updates_per_ns"] for update in ("incremental", "gather")}
    return theirs | {f"{update}_times_faster": rate / theirs["updates_per_ns"] for update, rate in ours.items()}


def speed(setting: Setting) -> list[Job]:
    rows = [(update, images, kind)
            for images in BATCHES for kind in KINDS for update in ("incremental", "gather")
            if kind != "hot" or images == 128]  # fmt: skip
    wide = [("gather", 128, "calm"), ("gather", 128, "hot")]
    if setting.toy:
        rows, wide = [("incremental", 2, "calm"), ("gather", 1, "hot")], [("gather", 1, "calm")]
    jobs: list[Job] = [(named(*given), partial(row, setting, *given)) for given in rows]
    jobs += [(named(*given) + ", float32 rows", partial(row, setting, *given, wide=True)) for given in wide]
    return [*jobs, ("torch beside", partial(against_torch, setting))]


def named(update: str, images: int, kind: str) -> str:
    return f"{update}, batch {images}, {kind}"


@contextlib.contextmanager
def shaped(candidate: Candidate) -> Iterator[None]:
    """Sweeps inside are launched with the candidate's values in place of the table's, of a launch shape's fields. The one place
    that knows how to ask for it."""
    shapes: Any = importlib.import_module("tritoncrf.kernels.shapes")
    wanted = {name: value for name, value in candidate.items() if name not in ("update", "images", "kind")}
    fields = {field.name for field in dataclasses.fields(shapes.Launch)}
    if unknown := sorted(wanted.keys() - fields):
        raise ValueError(f"shapes: expected values of {sorted(fields)}, got {unknown}")
    choose = shapes.choose

    def chosen(*asked: object, **named: object) -> Any:
        return dataclasses.replace(choose(*asked, **named), **wanted)

    shapes.choose = chosen
    try:
        yield
    finally:
        shapes.choose = choose


def labels(setting: Setting, update: str, images: int, kind: str) -> Tensor:
    """Of three sweeps, ``[N, 1, S]`` as chains hold them."""
    import tritoncrf as tc

    crf, logits = problem(kind, setting.toy)
    sampler = tc.Sampler(crf.to(setting.device), "triton", seed=1, update=update)
    return sampler.run(sampler.init(logits.to(setting.device).expand(images, -1, -1, -1)), 3).rows


def compiled(setting: Setting, candidate: Candidate) -> Row:
    """Compiles what `tried` will time, in another process, and compares its labels with those of the table's shape."""
    given = str(candidate["update"]), int(candidate["images"]), str(candidate["kind"])
    with shaped(candidate):
        found = labels(setting, *given)
    differ = int((found != labels(setting, *given)).sum())
    if differ:
        raise RuntimeError(f"{differ} labels differ from those of the table's shape")
    return {"sites": found.numel()}


def tried(setting: Setting, candidate: Candidate) -> Row:
    with shaped(candidate):
        found = row(setting, str(candidate["update"]), int(candidate["images"]), str(candidate["kind"]))
    return dict(candidate) | found


def faulty(candidates: object) -> str | None:
    """What is wrong with the argument of the command, in words."""
    if not isinstance(candidates, list) or not candidates:
        return "a list of objects"
    for one in candidates:
        if not isinstance(one, dict) or one.get("update") not in ("gather", "incremental") or one.get("kind") not in KINDS:
            return f"objects with an update, images and a kind of {KINDS}"
        if not isinstance(one.get("images"), int) or one["images"] < 1:
            return "images of 1 or more"
    return None
