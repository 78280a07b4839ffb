"""The Triton engine in Triton's interpreter: the torch engine's labels, counts and conditionals, bit for bit.

Interpretation is switched on before Triton is imported and excludes compilation, so the checks (functions named ``check_*``)
run in a process of their own, with every fresh tensor poisoned; what stands here as a test starts that process. There a
program runs after another, so that teams of several, which wait for each other, are for `tests/test_gpu.py`. What the kernels
are made of is checked in `tests/test_kernels_parts.py`, bounds of odds in `tests/test_bounds_interpret.py`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import json
import math
import os
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import enumeration
from tritoncrf import GridCRF, Neighborhood, Sampler, contract, engines
from tritoncrf.chains import ChainState
from tritoncrf.engines import Work, load, triton_needs

HERE = Path(__file__)
CPU = torch.device("cpu")
VECTORS = HERE.resolve().parents[2] / "shared" / "contract" / "vectors.json"
# Set for the process in which Triton interprets.
INTERPRETED = "TRITONCRF_CHECKS"
NO_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")


def interpret(*arguments: str, file: Path = HERE) -> None:
    """Runs a file's checks in the interpreter; fails with their report."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "python_functions=check_*"]
    environment = os.environ | {"TRITON_INTERPRET": "1", INTERPRETED: "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(file), *arguments], env=environment, cwd=HERE.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    print(done.stdout.strip().splitlines()[-1])


@NO_TRITON
def test_the_checks_pass_in_the_interpreter() -> None:
    interpret()


@NO_TRITON
@pytest.mark.slow
def test_the_full_checks_pass_in_the_interpreter() -> None:
    interpret("-m", "slow")


@NO_TRITON
def test_the_engine_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("triton")
    assert not isinstance(engine, str)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "needs a GPU" in str(engine.missing(torch.device("cpu")))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert engine.missing(torch.device("cpu")) is None
    monkeypatch.setattr(triton_needs, "_version", lambda: "3.5.1")
    assert "needs Triton 3.6 or newer and found 3.5.1" in str(engine.missing(torch.device("cpu")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'tritoncrf[triton]'" in str(engine.missing(torch.device("cpu")))


# Prints, for each update and team, how many loops over sweeps and phases stand around each barrier of the compiled kernel.
BARRIERS = """
import json, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tritoncrf import GridCRF, Neighborhood, Sampler
from tritoncrf.engines import triton as engine
from tritoncrf.kernels import conditionals, counts, edges, errors, initial, listing, shapes, sweeps, tables

def compiled(kernel, programs, *given, **options):
    names = dict(zip(kernel.arg_names, given)) | options
    kinds = {torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64", torch.float32: "fp32"}
    signature, fixed = {}, {}
    for name in kernel.arg_names:
        value = names[name]
        if value is None or name.isupper():
            signature[name], fixed[name] = "constexpr", value
        else:
            signature[name] = "*" + kinds[value.dtype] if torch.is_tensor(value) else "fp32" if name == "scale" else "i32"
    chosen = {name: value for name, value in options.items() if name not in kernel.arg_names}
    target = GPUTarget("cuda", 90, 32)
    loops, found = [], []
    for line in triton.compile(ASTSource(kernel, signature, fixed), target=target, options=chosen).asm["ttir"].splitlines():
        line = line.strip()
        if "barrier" in line:
            found.append(sum(loops))
        if line.startswith("}"):
            loops.pop()
        if line.count("{") > line.count("}") or line.endswith("{"):
            loops.append("scf.for" in line)
    print(json.dumps(found))

engine.missing = lambda device, labels: None
for module in (conditionals, counts, edges, errors, initial, listing, tables):
    module.launch = lambda *given, **options: None
sweeps.launch = compiled
for update in ("gather", "incremental"):
    for shapes.TEAM in (1, 3):
        sampler = Sampler(GridCRF(2, Neighborhood.nearest(4)), "triton", update=update)
        sampler.run(sampler.init(torch.zeros(1, 2, 4, 5)), 1)
"""


@NO_TRITON
def test_barriers_stand_between_phases() -> None:
    """What the interpreter, which runs a program's threads in step, cannot miss: inside the loops over sweeps and phases."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", BARRIERS]
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    # Where a phase ends, and of a team once more when all have come; incrementally before: behind
    # the list of doubtful sites, and behind that of flips.
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[2], [2, 2], [2, 2, 2], [2, 2, 2, 2]]


@NO_TRITON
def test_too_many_labels_name_the_torch_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert Sampler(GridCRF(64, Neighborhood.nearest(4)), "triton").engine_name == "triton"
    with pytest.raises(RuntimeError, match=r"at most 64 labels in registers and the model has 65: use engine='torch'"):
        Sampler(GridCRF(65, Neighborhood.nearest(4)), "triton")
    # Where it would interpret nobody means it who does not name it.
    assert engines.find("auto", torch.device("cpu"), 64)[0] == "numba"
    # Asked for its labels first, the Triton engine looks at no device; numba has no business on a GPU.
    assert engines.find("auto", torch.device("cuda"), 65)[0] == "torch"


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel wrote must not look like an answer."""
    empty = torch.empty

    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        made = empty(*arguments, **options)
        return made.fill_(torch.nan if made.is_floating_point() else 255 if made.dtype == torch.uint8 else 0x7F7F7F7F)

    if INTERPRETED in os.environ:
        monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel reads, writes or adds to lies within the tensors that it was handed."""
    if INTERPRETED not in os.environ:
        return
    from triton.runtime import interpreter

    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    run, starts, ends = executor.__call__, np.zeros(0, np.uint64), np.zeros(0, np.uint64)

    def handed(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal starts, ends
        patched.clear()
        storages = [value.untyped_storage() for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
        parts = sorted({(storage.data_ptr(), storage.nbytes()) for storage in storages if storage.nbytes()})
        starts = np.array([start for start, _ in parts], np.uint64)
        ends = starts + np.array([size for _, size in parts], np.uint64)
        return run(self, *arguments, **options)

    def within(pointers: Any, mask: Any, what: str) -> None:
        asked = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        where, size = pointers.data[asked], np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        owner = np.searchsorted(starts, where, side="right") - 1
        if len(where) and (owner.min() < 0 or (where + size > ends[owner]).any()):
            outside = int(((owner < 0) | (where + size > ends[owner])).sum())
            raise IndexError(f"{outside} of {len(where)} addresses of a {what} lie outside of the kernel's tensors")

    load, store, add = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def loaded(pointers: Any, mask: Any, *rest: Any) -> Any:
        within(pointers, mask, "load")
        return load(pointers, mask, *rest)

    def stored(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        within(pointers, mask, "store")
        return store(pointers, value, mask, *rest)

    def added(operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        within(pointers, mask, "atomic")
        return add(operation, pointers, value, mask, *rest)

    # Each call of a device function patches the language anew, which takes a fifth of the time: once a launch is enough.
    patched: set[Any] = set()

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.fn not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn)
        return self.rewrite()(*arguments, **options)

    monkeypatch.setattr(executor, "__call__", handed)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", called)
    for name, function in (("create_masked_load", loaded), ("create_masked_store", stored), ("create_atomic_rmw", added)):
        monkeypatch.setattr(builder, name, function, raising=False)


@dataclass(frozen=True)
class Case:
    """A problem small enough for the interpreter."""

    shape: tuple[int, ...]
    labels: int
    offsets: tuple[tuple[int, ...], ...]
    images: int = 1
    replicas: int = 1
    ragged: bool = False
    holes: bool = False
    clamps: bool = False
    forbidden: bool = False
    beta: float = 1.0
    sweeps: int = 2
    dtype: torch.dtype = torch.float32
    entries: str = "inside"
    """Of the tables: "inside" [-8, 8 - 2^-12], at its "edge" too, or one just "below" or "above" it."""
    kinds: int | None = None
    kinds_on: tuple[int, ...] | None = None
    """Which of the offsets have kinds, in the order of the argument; None: all, and a model without an argument for it."""
    gates: int = 0
    gates_on: tuple[int, ...] | None = None

    @property
    def seeing(self) -> bool:
        return self.kinds is not None or self.gates > 0

    def form(self) -> dict[str, Any]:
        """What `GridCRF` is told of it."""

        def part(chosen: tuple[int, ...] | None) -> Neighborhood | None:
            return None if chosen is None else Neighborhood.from_offsets([self.offsets[c] for c in chosen])

        return {"kinds": self.kinds, "kinds_on": part(self.kinds_on), "gates": self.gates, "gates_on": part(self.gates_on)}

    def __str__(self) -> str:
        extras = [name for name in ("ragged", "holes", "clamps", "forbidden") if getattr(self, name)]
        extras += [self.entries] if self.entries != "inside" else []
        for count, chosen, name in ((self.kinds, self.kinds_on, "kinds"), (self.gates, self.gates_on, "gates")):
            extras += [f"{count}{name}{'' if chosen is None else len(chosen)}"] if count else []
        counts = f"{self.labels}L{len(self.offsets)}C{self.images}N{self.replicas}R"
        return "-".join(["x".join(map(str, self.shape)), counts, *extras])


FIVE = ((0, 1), (1, 0), (1, -1), (-2, 3), (0, 6))
LINE, SOLID = ((1,), (3,), (40,)), ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (1, -1, 2))
FAR = Neighborhood.nearest(64).offsets
CASES = [
    Case((37,), 2, LINE, images=3, ragged=True, clamps=True, entries="edge"),
    Case((7, 9), 3, FIVE, images=2, replicas=3, ragged=True, holes=True, entries="below"),
    Case((3, 4, 5), 5, SOLID, replicas=2, clamps=True, forbidden=True, beta=0.3, dtype=torch.float64, entries="edge"),
    Case((6, 7), 20, FIVE, images=2, holes=True, clamps=True, forbidden=True, dtype=torch.float16, entries="above"),
    Case((5, 4), 33, ((0, 1),), images=2, forbidden=True, beta=40.0, entries="edge"),
    Case((4, 5), 64, ((1, 1), (9, 0)), replicas=2, entries="edge"),
    Case((4, 6), 20, FAR, sweeps=1, holes=True, entries="edge"),
    Case((4, 6), 20, FIVE, sweeps=1),
]
# Tables that see the image. Of the last one's classes with gates none has an edge, as if it had no gates.
SEEING = [
    Case((37,), 2, LINE, images=3, ragged=True, clamps=True, entries="edge", kinds=3, sweeps=3),
    Case((7, 9), 3, FIVE, images=2, replicas=3, ragged=True, holes=True, gates=1, sweeps=3),
    Case(
        (3, 4, 5), 5, SOLID, replicas=2, clamps=True, forbidden=True, beta=0.3, kinds=2, kinds_on=(3, 1), gates=2,
        gates_on=(4, 0, 1),
    ),
    Case((6, 7), 20, FIVE, images=2, holes=True, clamps=True, entries="above", kinds=3, kinds_on=(2, 0, 1), gates=1),
    Case((5, 4), 33, ((0, 1),), images=2, forbidden=True, entries="below", kinds=1, gates=2),
    Case((4, 5), 64, ((1, 1), (9, 0)), sweeps=1, kinds=2, kinds_on=(1, 0), gates=1, gates_on=(1,)),
]
SLOW = [
    Case(shape, labels, offsets, 2, replicas, ragged=True, holes=True, clamps=True, forbidden=True, entries=entries)
    for place, labels in enumerate((2, 3, 5, 20, 33, 64))
    for shape, offsets, replicas, entries in (
        ((41,), LINE, 1, ("edge", "above")[place % 2]), ((9, 8), FIVE, 2, ("below", "edge")[place % 2]),
        ((3, 4, 5), SOLID, 2, "edge"), ((6, 9), FAR, 1, "edge"),
    )
] + [
    Case(shape, labels, offsets, 2, replicas, ragged=True, holes=True, clamps=True, forbidden=True, entries=entries, **form)
    for labels in (2, 5, 20, 64)
    for shape, offsets, replicas, entries, form in (
        ((41,), LINE, 1, "edge", {"kinds": 3}), ((9, 8), FIVE, 2, "above", {"kinds": 5, "kinds_on": (4, 1), "gates": 1}),
        ((3, 4, 5), SOLID, 2, "inside", {"gates": 3, "gates_on": (2, 0)}), ((6, 9), FAR, 1, "inside", {"kinds": 2, "gates": 1}),
    )
]  # fmt: skip
# Lanes, lanes to a site where few are left, looks, and classes at once, so small that a phase takes several of each.
LAUNCHES = [(32, 1, 32, 1), (32, 4, 32, 2), (16, 8, 32, 4), (32, 2, 32, 4)]


@dataclass(frozen=True)
class Problem:
    crf: GridCRF
    logits: Tensor
    given: dict[str, Any]

    def start(self, engine: str, update: str, order: list[int] | None = None) -> tuple[Sampler, ChainState]:
        rows = list(range(len(self.logits))) if order is None else order
        given: dict[str, Any] = dict(self.given)
        if order is not None:
            given |= {name: value[rows] for name, value in given.items() if isinstance(value, Tensor)}
        sampler = Sampler(self.crf, engine, seed=2**63 + 12345, update=update)
        return sampler, sampler.init(self.logits[rows], **given)


def problem(case: Case, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    size = (case.images, *case.shape)
    of_class = (case.labels, case.labels) if case.kinds is None else (case.kinds, case.labels, case.labels)
    tables = torch.from_numpy(rng.normal(0, 0.5, (len(case.offsets), *of_class))).float()
    if case.entries != "inside":
        spots = rng.permutation(tables.numel())[:12]
        tables.view(-1)[spots[::2]] = -8.0
        tables.view(-1)[spots[1::2]] = 8.0 - 2.0**-12
    if case.entries in ("below", "above"):
        tables.view(-1)[spots[0]] = -8.0 - 2.0**-12 if case.entries == "below" else 8.0
    logits = rng.normal(0, 1.5, (case.images, case.labels, *case.shape))
    if case.forbidden:
        banned = rng.random(logits.shape) < 0.2
        banned[:, 1] = False
        logits[banned] = -np.inf
    given: dict[str, Any] = {"replicas": case.replicas, "phase": "data"}
    # Every other number of a longer list, as a view.
    given["index"] = torch.from_numpy(rng.integers(0, 2**40, 2 * case.images))[::2]
    given["count"] = torch.from_numpy(rng.integers(0, 2**33, 2 * case.images))[::2]
    labels = np.full(size, 255)
    if case.ragged:
        given["sizes"] = torch.from_numpy(rng.integers(1, np.array(case.shape) + 1, (case.images, len(case.shape))))
        given["sizes"][0] = torch.tensor(case.shape)
    if case.holes:
        given["mask"] = torch.from_numpy(rng.random(size) < 0.85)
    if case.clamps:
        held = rng.random(size) < 0.3
        labels[held] = rng.integers(0, case.labels, int(held.sum()))
        given["clamp"] = torch.from_numpy(held)
    given["labels"] = torch.from_numpy(labels)
    gated = None
    if case.kinds is not None:
        classes = len(case.offsets if case.kinds_on is None else case.kinds_on)
        kinds = rng.integers(0, case.kinds, (case.images, classes, *case.shape), dtype=np.uint8)
        given["kinds"] = torch.from_numpy(kinds)
    if case.gates:
        classes = len(case.offsets if case.gates_on is None else case.gates_on)
        gated = torch.from_numpy(rng.normal(0, 0.7, (case.gates, classes, case.labels, case.labels))).float()
        gated.view(-1)[rng.permutation(gated.numel())[:4]] = torch.tensor([16.0, -16.0, 2.0**-12, -(2.0**-12)])
        # Both ends of the range, halves of a step, and products that lie halfway between two multiples of 2^-12.
        steps = rng.random((case.images, case.gates, classes, *case.shape))
        chosen = rng.choice([0.0, 1.0, 0.5, 1.5 / 128], steps.shape)
        given["gates"] = torch.from_numpy(np.where(rng.random(steps.shape) < 0.4, chosen, steps)).float()
    crf = GridCRF(case.labels, Neighborhood.from_offsets(case.offsets), tables, gated=gated, **case.form())
    return Problem(crf, torch.from_numpy(logits).to(case.dtype), given)


def launched(monkeypatch: pytest.MonkeyPatch, lanes: int, split: int, scan: int, ahead: int) -> None:
    """All sweeps inside by one launch shape, on a GPU by teams of it."""
    from tritoncrf.kernels import shapes

    shape = shapes.Launch(lanes, 1, split, scan, ahead)
    monkeypatch.setattr(shapes, "TABLE", {(64, lazy): (shape, shape) for lazy in (False, True)})


@pytest.fixture(params=LAUNCHES[:2], ids=["plain", "split"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of few sites, so that phases take several rounds and end in half-empty ones."""
    launched(monkeypatch, *request.param)


def read_one_form(chains: ChainState) -> Work:
    """The work with those rows spoiled that sweeps should not read: float32 ones where words serve, else words."""
    from tritoncrf.kernels import shapes

    work = cast(Any, chains.work)
    labels, rows, steepest = chains.plan.num_labels, work.rows, int(work.rows.steepest)
    shape = shapes.choose(labels, False, 1, 1, 1)
    limits = [32768 // shape.asked(len(work.grid.steps), split, work.edges.kinds is not None) for split in (1, shape.split)]
    if steepest < min(limits):
        rows = rows._replace(rows=torch.full_like(rows.rows, torch.nan))
    elif steepest >= max(limits):
        rows = rows._replace(words=torch.full_like(rows.words, 0x7F7F7F7F))
    return cast(Work, replace(work, rows=rows))


def energies_by_slot(state: ChainState, field: Tensor) -> Tensor:
    """The torch engine's field, float32 [N, R, S, L] by slot, 0 where no free site is."""
    work: Any = state.work
    found = field.new_zeros(*state.rows.shape[:2], len(state.plan.positions), state.plan.num_labels)
    found[work.image, work.replica, work.slot] = field[:-1]
    return found


def log_odds(chains: ChainState, crf: GridCRF, scale: float) -> Tensor:
    """1024 log2 of each free site's odds against staying, float64 [N, R, S] by slot, from the torch engine's energies."""
    engine = load("torch")
    assert not isinstance(engine, str)
    work = engine.prepare(chains.plan, chains.logits, crf.tables)
    energies = energies_by_slot(replace(chains, work=work), engine.field(work, chains.rows)).double()
    exponents = -energies * scale * math.log(2.0)
    own = chains.rows[:, :, chains.plan.positions].long().clamp(max=chains.plan.num_labels - 1)[..., None]
    others = exponents.scatter(-1, own, -torch.inf).logsumexp(-1)
    return (others - exponents.gather(-1, own)[..., 0]) * (1024 / math.log(2.0))


# Odds of 2^24 cover no u of the contract: beyond them a bound need not rise.
COVERED = 24 * 1024 + 1


def parts_of(chains: ChainState) -> tuple[Tensor, Tensor]:
    """Of the Triton engine's field the odds [N, R, S], by slot (those of no free site are beyond all), and tags [N, R]."""
    assert chains.field is not None
    (images, replicas), slots = chains.rows.shape[:2], len(chains.plan.positions)
    odds, tags = chains.field.split([images * replicas * slots, images * replicas])
    odds = odds.view(images, replicas, slots)
    slot = cast(Any, chains.work).listing.slot.expand(images, slots)
    found = torch.full_like(odds, 1 << 30)
    image, rank = (slot >= 0).nonzero(as_tuple=True)
    assert torch.equal(found.new_ones(images, slots)[image, slot[image, rank].long()], found.new_ones(len(image)))
    found[image, :, slot[image, rank].long()] = odds[image, :, rank]
    return found, tags.view(images, replicas)


def assert_bounds(chains: ChainState, crf: GridCRF, beta: float) -> int:
    """No free site's odds against staying exceed what is kept as their bound; how many sites the bounds leave no doubt of."""
    scale = contract.scale_of(beta)
    odds, tags = parts_of(chains)
    assert set(tags.unique().tolist()) <= {struct.unpack("<i", struct.pack("<f", scale))[0]}
    free = chains.plan.free[:, None].expand_as(odds)
    exact = log_odds(chains, crf, scale).clamp(max=COVERED)[free]
    above = exact - odds[free]
    low = int((above > 0).sum())
    assert not low, f"{low} of {len(above)} bounds too low, by up to {float(above.max()):.1f} units"
    return int((odds[free] < 0).sum())


def swept(case: Case, update: str) -> tuple[Sampler, ChainState, Sampler, ChainState]:
    """Both engines' chains after the case's sweeps, which agree; bounds hold."""
    asked = problem(case)
    ours, chains = asked.start("triton", update)
    theirs, expected = asked.start("torch", "gather")
    assert torch.equal(chains.rows, expected.rows), "initial labels"
    # A look at the tables would lay them out anew.
    right, chains.work = chains.work, read_one_form(chains)
    # In one call: a bound lives from one of its sweeps to the next.
    ours.run(chains, case.sweeps, beta=case.beta)
    chains.work = right
    theirs.run(expected, case.sweeps, beta=case.beta)
    assert torch.equal(chains.rows, expected.rows), f"{int((chains.rows != expected.rows).sum())} labels differ"
    assert torch.equal(chains.flips, expected.flips)
    assert int(expected.flips.sum()) > 0
    assert (chains.field is not None) == (update == "incremental")
    if chains.field is not None:
        assert_bounds(chains, asked.crf, case.beta)
    return ours, chains, theirs, expected


def compare(case: Case, update: str) -> None:
    ours, chains, theirs, expected = swept(case, update)
    found = [torch.zeros((*state.plan.free.shape, case.labels), dtype=torch.float64) for state in (chains, expected)]
    energies = [
        sampler.conditionals(state, out, beta=case.beta)
        for sampler, state, out in zip((ours, theirs), (chains, expected), found, strict=True)
    ]
    assert torch.equal(*energies)
    assert torch.equal(*found)
    assert torch.equal(ours.pair_counts(chains), theirs.pair_counts(expected))
    # Of a pair of samples: what stands now, and the first labels.
    _, before = problem(case).start("torch", "gather")
    for name in ("pair_errors", "gated_errors"):
        pairs = [getattr(sampler.engine, name)(expected.plan, before.rows, expected.rows) for sampler in (ours, theirs)]
        assert torch.equal(*pairs), name


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("launches")
def check_small_problems(case: Case, request: pytest.FixtureRequest) -> None:
    """Each case with both launches and both updates, in two of the four pairs; the slow checks have them all."""
    odd = CASES.index(case) % 2 == 1
    compare(case, "incremental" if odd != ("split" in request.node.name) else "gather")


@pytest.mark.parametrize("case", SEEING, ids=str)
@pytest.mark.usefixtures("launches")
def check_tables_that_see_the_image(case: Case, request: pytest.FixtureRequest) -> None:
    """Likewise."""
    odd = SEEING.index(case) % 2 == 1
    compare(case, "incremental" if odd == ("split" in request.node.name) else "gather")


@pytest.mark.slow
@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("case", [*CASES, *SEEING, *SLOW], ids=str)
@pytest.mark.usefixtures("launches")
def check_all_pairs(case: Case, update: str) -> None:
    compare(case, update)


@pytest.mark.slow
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("labels", [2, 20, 64])
def check_the_tables_own_shapes(labels: int, update: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritoncrf.kernels import shapes

    table = {key: both[small:] + both[:small] for key, both in shapes.TABLE.items()}
    monkeypatch.setattr(shapes, "TABLE", table)
    compare(Case((21, 18), labels, FIVE, images=2, clamps=True), update)


@pytest.mark.slow
@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("update", ["gather", "incremental"])
def check_offsets_past_two_to_the_31(update: str) -> None:
    """A problem whose labels, energies and bounds lie beyond 2^31 elements; memory that is not touched is not there."""
    from tritoncrf.kernels import shapes, sweeps
    from tritoncrf.kernels.listing import Listing

    case = Case((6, 7), 3, FIVE, images=2, replicas=3, kinds=2, gates=1, gates_on=(3, 1))
    asked = problem(case)
    sampler, chains = asked.start("triton", update)
    start, work, plan = chains.rows.clone(), cast(Any, chains.work), chains.plan
    sampler.run(chains, 2)
    # Six chains, or two images of rows of 4; of bounds six times 3 * 2^27.
    shift, ahead = (1 << 31) - 1000, 3 << 27
    slots, volume = ahead + len(plan.positions), shift + plan.volume

    def far(small: Tensor, *shape: int) -> Tensor:
        """Uninitialised but for the last columns, which hold ``small``'s."""
        large = torch.UntypedStorage(math.prod(shape) * small.element_size())
        wide = torch.tensor([], dtype=small.dtype).set_(large).view(shape)
        axis = small.dim() - 1 if wide.dim() == small.dim() and shape[-1] != small.shape[-1] else small.dim() - 2
        wide.narrow(axis, shape[axis] - small.shape[axis], small.shape[axis]).copy_(small)
        return wide

    def listed(part: Tensor, add: int) -> Tensor:
        return torch.where(part >= 0, part + add, -1).expand(2, -1).contiguous()

    labels, unary = far(start, 2, 3, volume), far(work.unary, 2, slots, 4)
    given, bounds = work.listing, [ahead + bound for bound in plan.color_bounds]
    listing = Listing(
        far(listed(given.slot, ahead), 2, slots), far(listed(given.position, shift), 2, slots),
        far(listed(given.site, 0), 2, slots), given.counts.expand(2, -1).contiguous(),
        far(listed(given.lookup, ahead), 2, volume),
    )  # fmt: skip
    field = None
    if update == "incremental":
        # Tags that are none, behind odds that nobody asked for.
        field = far(torch.zeros(1, 6, dtype=torch.int32), 1, 6 * slots + 6).view(-1)
        assert field.numel() > 1 << 31
    flips = torch.zeros(2, 3, dtype=torch.int64)
    low, high = ((word ^ 1 << 31) - (1 << 31) for word in contract.key_of(sampler.seed))
    edges = work.edges._replace(kinds=far(work.edges.kinds, 2, 8, 2, slots), gates=far(work.edges.gates, 2, 2, 2, 1, slots))
    assert min(edges.kinds.numel(), unary.numel()) > 1 << 31
    sweeps.sweep(
        labels, unary, work.rows, work.grid.steps, torch.tensor(bounds, dtype=torch.int32), listing, plan.index,
        asked.given["count"].contiguous(), flips, None, field, bounds, 2, contract.scale_of(1.0), (low, high), 2, 3,
        shapes.choose(3, update == "incremental", 2, 3, 6), edges,
    )  # fmt: skip
    assert torch.equal(labels[:, :, shift:], chains.rows)
    _, once = asked.start("torch", "gather")
    assert torch.equal(flips, Sampler(asked.crf, "torch", sampler.seed).run(once, 2).flips)


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def check_the_order_of_a_batch_does_not_show(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, *LAUNCHES[3])
    asked = problem(case)
    backwards = list(range(case.images))[::-1]
    (ours, chains), (theirs, swapped) = asked.start("triton", "incremental"), asked.start("triton", "gather", backwards)
    ours.run(chains, 2)
    theirs.run(swapped, 2)
    assert torch.equal(chains.rows, swapped.rows.flip(0))


@pytest.mark.parametrize("case", [Case((4, 5), 3, FIVE, replicas=2, kinds=2, gates=1)], ids=str)
def check_temperature_tables_and_way_may_change(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of another temperature, of other tables or of other labels would show."""
    launched(monkeypatch, *LAUNCHES[3])
    asked = problem(case)
    (ours, chains), (theirs, expected) = asked.start("triton", "incremental"), asked.start("torch", "gather")
    # At 0.05 and below no bound is kept, at 10^6 only the best labels have a weight.
    changes = [(3.0, 1.0, "incremental"), (0.05, 1.0, "incremental"), (3.0, 1.0, "incremental"), (0.2, 1.0, "incremental")]
    changes += [(1e6, 1.0, "incremental"), (1.0, 1.0, "incremental"), (1.0, -0.5, "incremental"), (1.0, 1.0, "gather")]
    # Past what words hold and back: nothing but the tables is prepared anew.
    for beta, tables, update in [*changes, (1.0, 32.0, "gather"), (0.1, 1.0, "incremental"), (1.0, 1 / 32, "gather")]:
        with torch.no_grad():
            asked.crf.pairwise.mul_(tables)
            if asked.crf.gated is not None:
                asked.crf.gated.mul_(-1.0)
        ours.update = update
        for sampler, state in ((ours, chains), (theirs, expected)):
            sampler.run(state, 2, beta=beta)
        assert torch.equal(chains.rows, expected.rows), (beta, tables, update)


def moved(asked: Problem, device: torch.device) -> Problem:
    given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in asked.given.items()}
    return Problem(copy.deepcopy(asked.crf).to(device), asked.logits.to(device), given)


def everything(chains: ChainState, out: Tensor) -> list[Tensor]:
    return [part.clone() for part in (chains.rows, chains.count, *(() if chains.field is None else (chains.field,)), out)]


def unmoved(name: str, update: str, device: torch.device = CPU) -> None:
    """Where a call is bad an engine leaves labels, field and averages as they are, tells of no flip, and can go on."""
    case = Case((4, 5), 3, FIVE[:2], images=2, clamps=True)
    asked = moved(problem(case), device)
    (sampler, chains), (_, expected) = (asked.start(name, update) for _ in range(2))
    engine: Any = sampler.engine
    key = contract.key_of(sampler.seed)
    for state in (chains, expected):
        sampler.run(state, 2)
    out = torch.rand((*chains.plan.free.shape, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    kept = everything(chains, out)
    given = chains.work, chains.rows, chains.field
    yes, no = (torch.tensor(value, device=device) for value in (True, False))
    for beta in (1.0, 2.0):
        rest: Any = 2, contract.scale_of(beta), key, chains.count, chains.purpose
        assert not engine.sweep(*given, *rest, yes).any()
        flips, energy = engine.average(*given, *rest, out, yes)
        assert not flips.any()
        assert not energy.any()
        assert not engine.conditionals(*given, 1.0, out, yes).any()
        left = everything(chains, out)
        # What is known of one temperature may be forgotten where another is asked for.
        same = range(len(kept)) if beta == 1 or name == "triton" else (0, 1, -1)
        assert [place for place in same if not torch.equal(kept[place], left[place])] == []
    found = torch.zeros_like(out), torch.zeros_like(out)
    assert engine.sweep(*given, *rest, no).any()
    engine.conditionals(*given, 1.0, found[0], no)
    sampler.run(expected, 2, beta=2.0)
    sampler.engine.conditionals(expected.work, expected.rows, expected.field, 1.0, found[1])
    assert torch.equal(chains.rows, expected.rows)
    assert torch.equal(*found)


@pytest.mark.parametrize(("update", "launch"), [("gather", LAUNCHES[0]), ("incremental", LAUNCHES[3])])
def check_nothing_happens_where_a_call_is_bad(update: str, launch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, *launch)
    unmoved("triton", update)


class Listening(TorchDispatchMode):
    """Notes torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launched_kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Name and arguments of each launch, which then does nothing."""
    from tritoncrf.kernels import conditionals, counts, edges, errors, initial, listing, standing, sweeps, tables

    found: list[tuple[Any, ...]] = []

    def note(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        found.append((kernel.fn.__name__, programs, *arguments, *options.values()))

    for module in (conditionals, counts, edges, errors, initial, listing, standing, sweeps, tables):
        monkeypatch.setattr(module, "launch", note)
    return found


# Of 32 classes with three labels: twenty are in other cases, and take longer.
AVERAGED = [replace(case, sweeps=4) for case in (*CASES[:4], *SEEING[:4], replace(CASES[6], labels=3))]
WAITS = {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero", "_unique2", "bincount", "equal", "item"}
PLAIN = {Tensor, int, float, bool, type(None)}


def check_preparing_does_not_wait(launched_kernels: list[tuple[Any, ...]]) -> None:
    """Once a layout is there, nothing asks for a number on the device, nor is a tensor made on the host and sent."""
    case = Case((5, 6), 3, FIVE, images=2, ragged=True, clamps=True, kinds=2, kinds_on=(0, 3), gates=2, gates_on=(1, 4))
    asked = problem(case)
    _, chains = asked.start("triton", "gather")
    engine = load("triton")
    assert not isinstance(engine, str)
    launched_kernels.clear()
    with Listening() as listening:
        work = engine.prepare(chains.plan, asked.logits, asked.crf.tables)
        engine.prepare(chains.plan, asked.logits, asked.crf.tables, work)
        engine.retable(work, asked.crf.tables)
        engine.initial(work, chains.rows, (1, 2), chains.count, 0)
        engine.field(work, chains.rows)
        engine.pair_counts(chains.plan, chains.rows)
        engine.pair_errors(chains.plan, chains.rows, chains.rows)
        engine.gated_errors(chains.plan, chains.rows, chains.rows)
        engine.unary_errors(chains.labels, chains.labels, 3)
    assert {name for name, *_ in launched_kernels} == {
        "unary_rows", "list_sites", "table_rows", "edge_bytes", "initial_draw", "pair_products", "gated_products",
        "unary_differences",
    }  # fmt: skip
    assert {type(argument) for _, *call in launched_kernels for argument in call} <= PLAIN
    assert len(listening.asked) > 20
    assert not {name.split(".")[1] for name in listening.asked} & WAITS


@pytest.mark.parametrize("case", [CASES[0], SEEING[2]], ids=str)
@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("bad", [False, True])
def check_a_call_is_a_launch(case: Case, update: str, bad: bool, launched_kernels: list[tuple[Any, ...]]) -> None:
    """A sweep makes no tensor on the host and reads none: one launch, of numbers and of tensors from before."""
    _, chains = problem(case).start("triton", update)
    engine = load("triton")
    assert not isinstance(engine, str)
    field = engine.field(chains.work, chains.rows) if update == "incremental" else None
    refused = torch.tensor(True) if bad else None
    launched_kernels.clear()
    with Listening() as listening:
        engine.sweep(chains.work, chains.rows, field, 3, 1.0, (1, 2), chains.count, 0, refused)
    ((name, *call),) = launched_kernels
    assert name == "sweep_chains"
    assert any(argument is refused for argument in call)
    assert {type(argument) for argument in call} <= PLAIN
    launched_kernels.clear()
    out = torch.zeros((*chains.plan.free.shape, case.labels), dtype=torch.float64)
    with listening:
        engine.average(chains.work, chains.rows, field, 2, 1.0, (1, 2), chains.count, 0, out, refused)
    settled = ["sweep_chains", "sweep_chains", "mark_stale", "settle", "settle"]
    assert [name for name, *_ in launched_kernels] == (["sweep_chains", "add_conditionals"] * 2 if field is None else settled)
    assert {type(argument) for _, *call in launched_kernels for argument in call} <= PLAIN
    assert not {name.split(".")[1] for name in listening.asked} & WAITS


@pytest.mark.parametrize("case", AVERAGED, ids=str)
def check_averages_of_what_stands(case: Case) -> None:
    """What stands is added once, and no energy's change is missed: as torch adds everything after every sweep."""
    asked = problem(case)
    (ours, chains), (theirs, expected) = asked.start("triton", "incremental"), asked.start("torch", "gather")
    ours.run(chains, 1, beta=case.beta)
    theirs.run(expected, 1, beta=case.beta)
    found, out = (torch.zeros((*state.plan.free.shape, case.labels), dtype=torch.float64) for state in (chains, expected))
    for sweeps in (case.sweeps, 1, 2):
        energies = [
            sampler.average(state, sweeps, to, beta=case.beta)
            for sampler, state, to in ((ours, chains, found), (theirs, expected, out))
        ]
        assert torch.equal(*energies)
        assert torch.equal(chains.rows, expected.rows)
        assert torch.equal(chains.flips, expected.flips)
        torch.testing.assert_close(found, out, rtol=1e-12, atol=1e-12)
    # A whole sweep's share of every free site.
    share = found.sum(-1)[chains.plan.free]
    torch.testing.assert_close(share, torch.full_like(share, case.sweeps + 3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("labels", [3, 20])
def check_sweeps_that_redraw_nothing(labels: int) -> None:
    """Bounds that stand leave no doubtful site: no label moves, no flip is counted."""
    logits = torch.zeros(1, labels, 6, 7)
    logits[:, 0] = 60.0
    tables = 3.0 * (1 - torch.eye(labels)).expand(2, labels, labels).contiguous()
    sampler = Sampler(GridCRF(labels, Neighborhood.nearest(4), tables), "triton", 1, update="incremental")
    chains = sampler.init(logits)
    sampler.run(chains, 1)
    before = chains.rows.clone()
    sampler.run(chains, 2)
    assert torch.equal(chains.rows, before)
    assert chains.flips.item() == 0


@pytest.mark.parametrize("update", ["gather", "incremental"])
def check_a_team_without_room_gives_way(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full device says of a cooperative launch; any other fault is the caller's."""
    from tritoncrf.kernels import shapes, sweeps

    said, tried, launch = "Triton Error [CUDA]: too many blocks in cooperative launch", list[bool](), sweeps.launch

    def full(*given: Any, **options: Any) -> None:
        tried.append(options["TEAMED"])
        if options["TEAMED"]:
            raise RuntimeError(said)
        launch(*given, **options)

    launched(monkeypatch, *LAUNCHES[1])
    monkeypatch.setattr(shapes, "TEAM", 3)
    monkeypatch.setattr(sweeps, "launch", full)
    asked = problem(Case((7, 9), 3, FIVE, images=2))
    (ours, chains), (theirs, expected) = asked.start("triton", update), asked.start("torch", "gather")
    ours.run(chains, 2)
    theirs.run(expected, 2)
    assert tried == [True, False]
    assert torch.equal(chains.rows, expected.rows)
    said = "Triton Error [CUDA]: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal"):
        ours.run(chains, 1)
    assert tried == [True, False, True]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often sweeps take each update, by what their parts are called with."""
    from tritoncrf.kernels import edges, odds, shapes, sweeps

    found: Counter[str] = Counter()
    redraw, scan, push, doubtful = sweeps.redraw, sweeps.scan, odds.push, odds.doubtful

    def number(value: Any) -> int:
        return int(value.handle.data.item()) if hasattr(value, "handle") else int(value)

    def named(function: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(inspect.signature(function.fn).parameters, arguments, strict=True))

    def redrawn(*arguments: Any) -> Any:
        given = named(redraw, arguments)
        lanes, split, left = (number(part) for part in (given["LANES"], given["SPLIT"], given["end"] - given["start"]))
        which = f"{'split' if split > 1 else 'wide'} {'whole' if left >= lanes // split else 'part'}"
        found[f"{'lazy' if number(given['LAZY']) else 'every'} {which}"] += 1
        found["a further round"] += number(given["start"]) > 0
        found["a further group"] += number(given["origin"]) > 0
        found["replicas together"] += number(given["here_replicas"]) > 1
        return redraw(*arguments)

    def scanned(*arguments: Any) -> Any:
        given = named(scan, arguments)
        size, start, end = (number(given[name]) for name in ("SIZE", "start", "end"))
        found[f"a look of {size}"] += 1
        found["a look of 32 by 16 lanes"] += size == 32 and shapes.choose(2, True, 1, 1, 1).lanes == 16
        found["a look's remainder"] += end - start < size
        found["a further look"] += start > 0
        return scan(*arguments)

    def doubted(*arguments: Any) -> Any:
        found["known" if number(named(doubtful, arguments)["known"]) else "unknown"] += 1
        return doubtful(*arguments)

    def pushed(*arguments: Any) -> Any:
        given = named(push, arguments)
        lanes, spread, changed = (number(given[name]) for name in ("LANES", "SPREAD", "changed"))
        found["flips side by side" if spread < lanes else "a flip in parts" if spread > lanes else "a flip a round"] += 1
        found["no flip"] += changed == 0
        found["several pushes"] += changed > max(1, lanes // spread)
        return push(*arguments)

    for name, function in (("redraw", redrawn), ("scan", scanned), ("doubtful", doubted), ("push", pushed)):
        monkeypatch.setattr(sweeps, name, function)
    for name in ("add_words", "add_floats"):
        right = getattr(edges, name)
        monkeypatch.setattr(edges, name, lambda *given, right=right, name=name: found.update([name]) or right(*given))
    return found


def check_every_branch_of_a_sweep_is_taken(taken: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases longer than a look and a round, every site doubtful at first and few later, groups of replicas."""
    line = Case((75,), 3, ((1,), (2,)), images=2, ragged=True, clamps=True, sweeps=4)
    square = Case((4, 6), 3, FIVE, replicas=5, beta=3.0)
    edge = replace(line, offsets=((1,), (3,)), entries="edge", images=1, clamps=False, sweeps=2)
    far = replace(square, offsets=FAR[:9], replicas=1)
    for launch, case in ((0, line), (1, replace(line, images=1)), (2, edge), (2, square), (2, far), (3, square)):
        launched(monkeypatch, *LAUNCHES[launch])
        for update in ("gather", "incremental"):
            swept(case, update)
    parts = [f"{who} {part} {size}" for who in ("lazy", "every") for part in ("wide", "split") for size in ("whole", "part")]
    parts += ["a further round", "a further group", "replicas together", "a look of 16", "a look's remainder", "a further look"]
    parts += ["a look of 32 by 16 lanes", "known", "unknown", "flips side by side", "no flip", "several pushes"]
    parts += ["a flip a round", "a flip in parts", "add_words", "add_floats"]
    assert not [part for part in parts if not taken[part]], dict(taken)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not VECTORS.is_file():
        pytest.skip("the contract's vectors are not here: they lie in the shared folder beside the checkout")
    small: dict[str, Any] = json.loads(VECTORS.read_text())["small"]
    return small


GOLDEN = [("line", "incremental"), ("plane", "incremental"), ("volume", "gather")]


@pytest.mark.parametrize(("name", "update"), GOLDEN)
def check_the_contracts_vectors(name: str, update: str, golden: dict[str, Any]) -> None:
    case = golden[name]
    sites, labels, classes = int(np.prod(case["shape"])), case["labels"], len(case["offsets"])
    words = [[enumeration.philox((s, k, 0, 0), (1, 0))[0] >> 16 for s in range(sites)] for k in range(labels)]
    entries = [[enumeration.philox((c, k, 1, 0), (1, 0))[0] >> 20 for k in range(labels**2)] for c in range(classes)]
    tables = (torch.tensor(entries).view(classes, labels, labels) - 2048) / 4096
    crf = GridCRF(labels, Neighborhood.from_offsets(case["offsets"]), tables.float())
    logits = (torch.tensor(words) / 4096).view(1, labels, *case["shape"])
    sampler = Sampler(crf, "triton", case["seed"], update=update)
    replica = case["replica"]
    chains = sampler.init(logits, index=torch.tensor([case["index"]]), replicas=replica + 1, phase=case["phase"])
    (sweeps, (expected, changed)) = next(iter(case["after_sweeps"].items()))

    def sha() -> str:
        return hashlib.sha256(chains.labels[0, replica].contiguous().numpy().tobytes()).hexdigest()

    assert sha() == case["initial"]
    sampler.run(chains, int(sweeps) - 1, beta=case["beta"])
    sampler.run(chains, 1, beta=case["beta"])
    assert sha() == expected
    assert f"changed {int(chains.flips[0, replica])}" == changed
