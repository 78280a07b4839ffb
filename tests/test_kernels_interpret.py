"""The Triton kernels in Triton's interpreter: the torch engine's labels, counts and conditionals, bit for bit.

Interpretation is switched on before Triton is imported and excludes compilation, so the checks (functions named ``check_*``)
run in a process of their own, with every fresh tensor poisoned; what stands here as a test starts that process.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import enumeration
from tritoncrf import GridCRF, Neighborhood, Sampler, contract, engines
from tritoncrf.chains import ChainState
from tritoncrf.engines import load
from tritoncrf.gradient import errors

HERE = Path(__file__)
VECTORS = HERE.resolve().parents[2] / "shared" / "contract" / "vectors.json"
# Set for the process in which Triton interprets.
INTERPRETED = "TRITONCRF_CHECKS"
NO_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")


def interpret(*arguments: str) -> None:
    """Runs this file's checks in the interpreter; fails with their report."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "python_functions=check_*"]
    environment = os.environ | {"TRITON_INTERPRET": "1", INTERPRETED: "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE), *arguments], env=environment, cwd=HERE.parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    print(done.stdout.strip().splitlines()[-1])


if INTERPRETED in os.environ:
    import triton
    import triton.language as tl
    from tritoncrf.kernels.draw import draw, exp2, philox

    @triton.jit
    def philox_words(inputs, out):
        """inputs: int64 [4, 6], counter and key; out: int64 [4, 4]."""
        lane = tl.arange(0, 4)
        c0 = tl.load(inputs + lane * 6).to(tl.uint32)
        c1 = tl.load(inputs + lane * 6 + 1).to(tl.uint32)
        c2 = tl.load(inputs + lane * 6 + 2).to(tl.uint32)
        c3 = tl.load(inputs + lane * 6 + 3).to(tl.uint32)
        k0 = tl.load(inputs + lane * 6 + 4).to(tl.uint32)
        k1 = tl.load(inputs + lane * 6 + 5).to(tl.uint32)
        w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
        tl.store(out + lane * 4, w0.to(tl.int64))
        tl.store(out + lane * 4 + 1, w1.to(tl.int64))
        tl.store(out + lane * 4 + 2, w2.to(tl.int64))
        tl.store(out + lane * 4 + 3, w3.to(tl.int64))

    @triton.jit
    def powers_of_two(inputs, out):
        """inputs, out: float32 [4096]."""
        lane = tl.arange(0, 4096)
        tl.store(out + lane, exp2(tl.load(inputs + lane)))

    @triton.jit
    def draws(energies, current, u, out, bounds):
        """energies: float32 [5, 1024]; current, out: int32 [1024]; u, bounds: float32 [1024]."""
        lane = tl.arange(0, 1024)
        e0, e1 = tl.load(energies + lane), tl.load(energies + 1024 + lane)
        e2, e3 = tl.load(energies + 2048 + lane), tl.load(energies + 3072 + lane)
        values = e0, e1, e2, e3, tl.load(energies + 4096 + lane)
        drawn, bound = draw(values, tl.load(current + lane), tl.load(u + lane), 1.0, 5)
        tl.store(out + lane, drawn)
        tl.store(bounds + lane, bound)


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
    monkeypatch.setattr(engine, "_version", lambda: "3.5.1")
    assert "needs Triton 3.6 or newer and found 3.5.1" in str(engine.missing(torch.device("cpu")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'tritoncrf[triton]'" in str(engine.missing(torch.device("cpu")))


# Prints, for each kernel whose threads read what others wrote, how many loops stand around each of its own barriers.
BARRIERS = """
import json, sys, triton
from bench.compiled import compiled
seen, found, compile = [], {}, triton.compile
triton.compile = lambda *given, **options: seen.append(compile(*given, **options)) or seen[-1]
for kernel in sys.argv[1:]:
    compiled(kernel, 2, "sm_90")
    loops, found[kernel] = [], []
    for line in map(str.strip, seen[-1].asm["ttir"].splitlines()):
        if "barrier" in line:
            found[kernel].append(sum(loops))
        if line.startswith("}"):
            loops.pop()
        if line.count("{") > line.count("}") or line.endswith("{"):
            loops.append("scf.for" in line)
print(json.dumps(found))
"""


@NO_TRITON
def test_barriers_stand_between_phases() -> None:
    """What the interpreter, which runs a program's threads in step, cannot miss: inside the loops over sweeps and phases."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", BARRIERS, "gather_fused", "incremental_phase", "incremental_fused"]
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    # Incrementally: behind the list of doubtful sites, behind that of flips, and behind what was pushed.
    expected = {"gather_fused": [2], "incremental_phase": [0], "incremental_fused": [2, 2, 2]}
    assert json.loads(done.stdout) == expected


@NO_TRITON
def test_too_many_labels_name_the_torch_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert Sampler(GridCRF(64, Neighborhood.nearest(4)), "triton").engine_name == "triton"
    with pytest.raises(RuntimeError, match=r"at most 64 labels in registers and the model has 65: use engine='torch'"):
        Sampler(GridCRF(65, Neighborhood.nearest(4)), "triton")
    monkeypatch.setattr(engines, "AUTOMATIC", engines.NAMES)
    assert [engines.find("auto", torch.device("cpu"), labels)[0] for labels in (64, 65)] == ["triton", "numba"]
    # Asked for its labels first, the Triton engine looks at no device; numba has no business on a GPU.
    assert engines.find("auto", torch.device("cuda"), 65)[0] == "torch"


@pytest.fixture(autouse=True)
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel wrote must not look like an answer."""
    empty = torch.empty

    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        made = empty(*arguments, **options)
        return made.fill_(torch.nan if made.is_floating_point() else 255 if made.dtype == torch.uint8 else 0x7F7F7F7F)

    if request.node.name.startswith("check_"):
        monkeypatch.setattr(torch, "empty", poisoned)


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
# (sites a program, whether it goes through all phases itself)
LAUNCHES = [(16, False), (32, True)]


@dataclass(frozen=True)
class Problem:
    crf: GridCRF
    logits: Tensor
    given: dict[str, Any]

    def start(self, engine: str, way: str, order: list[int] | None = None) -> tuple[Sampler, ChainState]:
        rows = list(range(len(self.logits))) if order is None else order
        given: dict[str, Any] = dict(self.given)
        if order is not None:
            given |= {name: value[rows] for name, value in given.items() if isinstance(value, Tensor)}
        sampler = Sampler(self.crf, engine, seed=2**63 + 12345, way=way)
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


@pytest.fixture(params=LAUNCHES, ids=["phases", "fused"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of few sites, so that phases take several and end in half-empty ones."""
    from tritoncrf.kernels import shapes

    block, fused = request.param
    table = {(64, way, kind): block for way in ("gather", "incremental") for kind in (False, True)}
    monkeypatch.setattr(shapes, "TABLE", table)
    monkeypatch.setattr(shapes, "FUSED_PROGRAMS", 0 if fused else 1 << 30)


def read_one_form(case: Case, chains: ChainState, way: str) -> None:
    """Spoils what should not be read: float32 rows where all entries fit int16 (flips push differences of them), else words."""
    work: Any = chains.work
    fits = case.entries in ("inside", "edge")
    assert work.fits.tolist() == [int(fits)]
    if fits and way == "gather":
        chains.work = replace(work, rows=torch.full_like(work.rows, torch.nan))
    if not fits:
        chains.work = replace(work, words=torch.full_like(work.words, 0x7F7F7F7F))


def energies_by_slot(state: ChainState, field: Tensor) -> Tensor:
    """An engine's field, float32 [N, R, S, L] by slot, 0 where no free site is."""
    work: Any = state.work
    found = torch.zeros(*state.rows.shape[:2], len(state.plan.positions), state.plan.labels)
    if hasattr(work, "replica"):
        found[work.image, work.replica, work.slot] = field[:-1]
        return found
    image, rank = (work.slot >= 0).nonzero(as_tuple=True)
    found[image, :, work.slot[image, rank].long()] = field[image, :, rank, : state.plan.labels]
    return found


def compare(case: Case, way: str) -> None:
    asked = problem(case)
    ours, chains = asked.start("triton", way)
    theirs, expected = asked.start("torch", "gather")
    assert torch.equal(chains.rows, expected.rows), "initial labels"
    read_one_form(case, chains, way)
    # In one call: a stay bound lives from one of its sweeps to the next.
    ours.run(chains, case.sweeps, beta=case.beta)
    theirs.run(expected, case.sweeps, beta=case.beta)
    assert torch.equal(chains.rows, expected.rows), f"{int((chains.rows != expected.rows).sum())} labels differ"
    assert torch.equal(chains.flips, expected.flips)
    assert int(expected.flips.sum()) > 0
    found = [torch.zeros((*state.plan.free.shape, case.labels), dtype=torch.float64) for state in (chains, expected)]
    energies = [
        sampler.conditionals(state, out, beta=case.beta)
        for sampler, state, out in zip((ours, theirs), (chains, expected), found, strict=True)
    ]
    assert torch.equal(*energies)
    assert torch.equal(*found)
    assert torch.equal(ours.pair_counts(chains), theirs.pair_counts(expected))
    built = energies_by_slot(expected, theirs.engine.field(expected.work, expected.rows))
    assert torch.equal(energies_by_slot(chains, ours.engine.field(chains.work, chains.rows)), built)
    if chains.field is not None:
        assert torch.equal(energies_by_slot(chains, chains.field), built)
    # Of a pair of samples: what stands now, and the first labels.
    _, before = asked.start("torch", "gather")
    for name in ("pair_errors", "gated_errors"):
        pairs = [getattr(sampler.engine, name)(expected.plan, before.rows, expected.rows) for sampler in (ours, theirs)]
        assert torch.equal(*pairs), name


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("launches")
def check_small_problems(case: Case, request: pytest.FixtureRequest) -> None:
    """Each case with both launches and both ways, in two of the four pairs; the slow checks have them all."""
    odd = CASES.index(case) % 2 == 1
    compare(case, "incremental" if odd != ("fused" in request.node.name) else "gather")


@pytest.mark.parametrize("way", ["gather", "incremental"])
@pytest.mark.parametrize("case", SEEING, ids=str)
@pytest.mark.usefixtures("launches")
def check_tables_that_see_the_image(case: Case, way: str) -> None:
    compare(case, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["gather", "incremental"])
@pytest.mark.parametrize("case", [*CASES, *SLOW], ids=str)
@pytest.mark.usefixtures("launches")
def check_all_pairs(case: Case, way: str) -> None:
    compare(case, way)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", ["gather", "incremental"])
@pytest.mark.parametrize("labels", [2, 20, 64])
def check_the_tables_own_shapes(labels: int, way: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritoncrf.kernels import shapes

    monkeypatch.setattr(shapes, "FUSED_PROGRAMS", 0 if fused else 1 << 30)
    compare(Case((21, 18), labels, FIVE, images=2, clamps=True), way)


@pytest.mark.slow
@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("way", ["gather", "incremental"])
def check_offsets_past_two_to_the_31(way: str) -> None:
    """A problem whose labels and energies lie beyond 2^31 elements; memory that is not touched is not there."""
    from tritoncrf.kernels import shapes
    from tritoncrf.kernels.edges import Edges
    from tritoncrf.kernels.gather import gather
    from tritoncrf.kernels.incremental import incremental

    case = Case((6, 7), 3, FIVE, images=2, replicas=3, kinds=2, gates=1, gates_on=(3, 1))
    asked = problem(case)
    sampler, chains = asked.start("triton", way)
    start, work, plan = chains.rows.clone(), cast(Any, chains.work), chains.plan
    engine = load("triton")
    assert not isinstance(engine, str)
    field = engine.field(work, chains.rows)
    sampler.run(chains, 1)
    # Two images of rows of 4, or six chains.
    shift, ahead = (1 << 31) - 1000, 1 << (28 if way == "gather" else 27)
    slots, volume = ahead + len(plan.positions), shift + plan.volume

    def far(small: Tensor, *shape: int) -> Tensor:
        """Uninitialised but for the last columns, which hold ``small``'s."""
        large = torch.UntypedStorage(math.prod(shape) * small.element_size())
        wide = torch.tensor([], dtype=small.dtype).set_(large).view(shape)
        axis = small.dim() - 1 if wide.dim() == small.dim() and shape[-1] != small.shape[-1] else small.dim() - 2
        wide.narrow(axis, shape[axis] - small.shape[axis], small.shape[axis]).copy_(small)
        return wide

    labels = far(start, 2, 3, volume)
    energies = far(field, 2, 3, slots, 4) if way == "incremental" else far(work.unary, 2, slots, 4)
    position, site = far(work.position + shift, 2, slots), far(work.site, 2, slots)
    bounds = [ahead + bound for bound in plan.phases]
    phases, flips = torch.tensor(bounds, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int64)
    rest = (work.counts, plan.index, asked.given["count"].contiguous(), flips, bounds, 1, contract.scale_of(1.0))
    key = tuple((word ^ 1 << 31) - (1 << 31) for word in contract.key_of(sampler.seed))
    launch = shapes.choose(3, way, 2, 3, 6)
    lists = (work.grid.displacements, phases, position, site)
    kinds, gates = far(work.kinds, 2, 10, slots), far(work.gates, 2, 2, 2, 1, slots)
    assert kinds.numel() > 1 << 31
    edges = Edges(kinds, gates, work.gated, work.grid.gating)
    if way == "gather":
        gather(labels, energies, work.rows, work.words, work.fits, *lists, *rest, key, 1, 3, launch, edges)
    else:
        lookup = far(torch.where(work.lookup[0] >= 0, work.lookup[0] + ahead, -1), 2, volume)
        incremental(labels, energies, work.rows, *lists, lookup, *rest, key, 1, 3, launch, edges)
    assert torch.equal(labels[:, :, shift:], chains.rows)
    assert torch.equal(flips, chains.flips)


@pytest.mark.parametrize("labels", [2, 5, 12, 20])
def check_packed_sums_at_their_largest(labels: int) -> None:
    """Every neighbour of 63 classes at one end of the range: sums of 63 * 2 * 8 energies, as large as rule 1 lets any be."""
    offsets = tuple((step,) for step in range(1, 64))
    engine = load("triton")
    assert not isinstance(engine, str)
    for entry in (-8.0, 8.0 - 2.0**-12):
        crf = GridCRF(labels, Neighborhood.from_offsets(offsets), torch.full((63, labels, labels), entry))
        sampler = Sampler(crf, "triton")
        chains = sampler.init(torch.zeros(1, labels, 131), labels=torch.zeros(1, 131, dtype=torch.int64))
        work: Any = chains.work
        assert work.fits.tolist() == [1]
        found = engine.field(work, chains.rows)
        # The layout may have room for more.
        there = work.slot[0] >= 0
        site = chains.plan.sites[0][work.slot[0][there].long()]
        neighbours = torch.minimum(site, torch.tensor(63)) + torch.minimum(130 - site, torch.tensor(63))
        assert int(neighbours.max()) == 126
        assert torch.equal(found[0, 0, there, :labels], (neighbours * entry).float()[:, None].expand(-1, labels))


def check_the_lists_of_doubtful_sites_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases longer than a look and a redraw: every site at first, few of them later."""
    from tritoncrf.kernels import shapes

    monkeypatch.setattr(shapes, "TABLE", {(64, way, True): 8 for way in ("gather", "incremental")})
    monkeypatch.setattr(shapes, "FUSED_PROGRAMS", 0)
    case = Case((75,), 3, ((1,), (2,)), images=2, ragged=True, clamps=True, sweeps=5)
    _, chains = problem(case).start("triton", "incremental")
    assert int(cast(Any, chains.work).counts.max()) > shapes.choose(3, "incremental", 2, 1, 25).scan == 2 * 8
    compare(case, "incremental")


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def check_the_order_of_a_batch_does_not_show(case: Case) -> None:
    asked = problem(case)
    backwards = list(range(case.images))[::-1]
    (ours, chains), (theirs, swapped) = asked.start("triton", "incremental"), asked.start("triton", "gather", backwards)
    ours.run(chains, 2)
    theirs.run(swapped, 2)
    assert torch.equal(chains.rows, swapped.rows.flip(0))


@pytest.mark.parametrize("case", [Case((6, 7), 5, FIVE), Case((6, 7), 5, FIVE, kinds=2, gates=1)], ids=str)
def check_temperature_tables_and_way_may_change(case: Case) -> None:
    """A stay bound of another temperature, or a field of other tables, would show."""
    asked = problem(case)
    (ours, chains), (theirs, expected) = asked.start("triton", "incremental"), asked.start("torch", "gather")
    changes = [(3.0, 1.0, "incremental"), (0.2, 1.0, "incremental"), (1.0, -0.5, "incremental"), (1.0, 1.0, "gather")]
    # Past what int16 holds and back: nothing but the tables is prepared anew.
    for beta, tables, way in [*changes, (1.0, 32.0, "gather"), (0.1, 1.0, "incremental"), (1.0, 1 / 32, "gather")]:
        with torch.no_grad():
            asked.crf.pairwise.mul_(tables)
            if asked.crf.gated is not None:
                asked.crf.gated.mul_(-1.0)
        ours.way = way
        for sampler, state in ((ours, chains), (theirs, expected)):
            sampler.run(state, 3, beta=beta)
        assert torch.equal(chains.rows, expected.rows)


def check_the_unary_error() -> None:
    from tritoncrf.kernels.operators import unary_errors

    for replicas in (1, 2, 3):
        case = Case((7, 9), 5, FIVE, images=2, replicas=replicas, ragged=True, holes=True, clamps=True)
        asked = problem(case)
        (sampler, data), (_, free) = asked.start("torch", "gather"), asked.start("torch", "gather")
        sampler.run(free, 2)
        factor = torch.tensor(0.3)
        found = unary_errors(free.labels, data.labels, factor, 5)
        both = (F.one_hot(state.labels.long(), 256)[..., :5].sum(1) for state in (free, data))
        surplus = next(both) - next(both)
        assert torch.equal(found, (surplus.float() * (1 / replicas)).movedim(-1, 1) * factor)
        assert torch.allclose(found, errors(sampler, data, free, asked.crf.tables)[0] * factor, atol=1e-7)
        still = asked.given["clamp"] | ~free.exists
        assert not found.movedim(1, -1)[still].any()
        assert found.movedim(1, -1)[~still].any()


class Listening(TorchDispatchMode):
    """Notes torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked.append(str(function))
        return function(*args, **(kwargs or {}))


def check_preparing_does_not_wait() -> None:
    """Once a layout is there, nothing asks for a number on the device, nor is a tensor made on the host and sent."""
    case = Case((5, 6), 3, FIVE, images=2, ragged=True, clamps=True, kinds=2, kinds_on=(0, 3), gates=2, gates_on=(1, 4))
    asked = problem(case)
    _, chains = asked.start("triton", "gather")
    engine = load("triton")
    assert not isinstance(engine, str)
    with Listening() as listening:
        work = engine.prepare(chains.plan, asked.logits, asked.crf.tables)
        engine.retable(work, asked.crf.tables)
        engine.pair_errors(chains.plan, chains.rows, chains.rows)
        engine.gated_errors(chains.plan, chains.rows, chains.rows)
    named = {name.split(".")[1] for name in listening.asked}
    assert {"unary_rows", "edge_bytes", "pair_counts", "gated_errors"} <= named
    waits = {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero", "_unique2", "bincount", "equal"}
    assert not named & waits


@pytest.mark.parametrize("case", [CASES[0], SEEING[2]], ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", ["gather", "incremental"])
def check_launches_can_be_captured(case: Case, way: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep makes no tensor on the host and reads none: a launch a phase, of numbers and of tensors from before."""
    from tritoncrf.kernels import gather, incremental, operators, shapes

    launched: list[tuple[Any, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: launched.append((*grid, *arguments, *options.values()))

    monkeypatch.setattr(shapes, "FUSED_PROGRAMS", 0 if fused else 1 << 30)
    _, chains = problem(case).start("triton", way)
    engine = load("triton")
    assert not isinstance(engine, str)
    field = engine.field(chains.work, chains.rows) if way == "incremental" else None
    # Called as they stand, for a mode does not see into an operator.
    for name, module in (("gather", gather), ("incremental", incremental)):
        monkeypatch.setattr(operators, f"{name}_sweeps", getattr(operators, f"{name}_sweeps")._init_fn)
        for kernel in (f"{name}_phase", f"{name}_fused"):
            monkeypatch.setattr(module, kernel, Recorder())
    with Listening() as listening:
        engine.sweep(chains.work, chains.rows, field, 3, 1.0, (1, 2), chains.count, 0)
    assert len(launched) == (1 if fused else 3 * (len(chains.plan.phases) - 1))
    assert {type(argument) for call in launched for argument in call} <= {Tensor, int, float, bool, type(None)}
    made = {"aten.zeros.default", "aten.empty.memory_format", "aten.fill_.Scalar", "aten.zeros_like.default"}
    assert set(listening.asked) <= made


def check_the_operators_are_what_they_say() -> None:
    """Their schemas name what they change, and their fake versions give the same shapes: a compiler relies on both."""
    from tritoncrf.kernels import operators

    case = Case((3, 4), 3, FIVE, images=2, replicas=2, kinds=2, kinds_on=(1, 0), gates=2, gates_on=(1,))
    asked = problem(case)
    _, chains = asked.start("triton", "gather")
    engine = load("triton")
    assert not isinstance(engine, str)
    work, plan, rows = cast(Any, chains.work), chains.plan, chains.rows
    field = engine.field(work, rows)
    shape, steps = (32, 1), work.grid.displacements
    lists, packed = (steps, work.grid.phases, work.position, work.site), (work.words, work.fits)
    flips, out = torch.zeros(2, 2, dtype=torch.int64), torch.zeros((*plan.free.shape, 3), dtype=torch.float64)
    counts = (work.counts, plan.index, asked.given["count"].contiguous(), flips)
    rest = (*counts, list(plan.phases), 1, contract.scale_of(1.0), 1, 2, 0, 3)
    marginals = (rows, work.unary, field, work.rows, *packed, steps, work.position, work.slot, out, 1.0, 3)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (operators.unary_rows, (asked.logits, plan.pixels, work.slot, *shape)),
        (operators.field, (rows, work.unary, work.rows, *packed, steps, work.position, 3, *shape)),
        (operators.gather_sweeps, (rows, work.unary, work.rows, *packed, *lists, *rest, *shape, False)),
        (operators.incremental_sweeps, (rows, field, work.rows, *lists, work.lookup[0], *rest, *shape, False)),
        (operators.add_conditionals, (*marginals, *shape)),
        (operators.pair_counts, (rows, steps, work.grid.tables, 3, plan.num_classes)),
        (operators.unary_errors, (chains.labels, chains.labels, torch.tensor(1.0), 3)),
    ]
    edges, grid = plan.edges, work.grid
    assert edges is not None
    assert edges.gates is not None
    seeing = {operators.field, operators.gather_sweeps, operators.incremental_sweeps, operators.add_conditionals}
    flat: Any = problem(replace(case, kinds=None, kinds_on=None, gates=0, gates_on=None)).start("triton", "gather")[1].work
    calls = [
        (operator, (*arguments, *work.edges) if operator in seeing else arguments) for operator, arguments in calls
    ]
    calls += [
        (operators.field, (rows, flat.unary, flat.rows, flat.words, flat.fits, steps, work.position, 3, *shape)),
        (operators.edge_bytes, (edges.kinds, *grid.kinded, edges.pixels, work.position)),
        (operators.pair_counts, (rows, steps, grid.tables, 3, plan.num_classes, 2, edges.kinds, edges.pixels, grid.kinded[0])),
        (operators.gated_errors, (rows, rows, steps, 3, 1, edges.gates, edges.pixels, grid.gating)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def check_philox_and_weights() -> None:
    """Random123's known answers, and the contract's polynomial at every argument of its vector."""
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    inputs = torch.tensor([[0] * 6, [2**32 - 1] * 6, pi, [7] * 6])
    out = torch.zeros(4, 4, dtype=torch.int64)
    philox_words[(1,)](inputs, out)
    expected = [enumeration.philox(row[:4], row[4:]) for row in inputs.tolist()]
    assert out.tolist() == [list(row) for row in expected]
    assert out[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    t = -(torch.arange(4096, dtype=torch.float64) * 100 / 4096).float()
    found = torch.empty(4096)
    powers_of_two[(1,)](t, found)
    assert torch.equal(found, contract.exp2(t))


def check_ties_and_the_last_resort() -> None:
    """Weights that are powers of two and a u of few bits, so that the walk meets equality; u near 1, so that none passes."""
    rng = np.random.default_rng(1)
    energies = torch.from_numpy(rng.choice([0.0, 1.0, 2.0, 150.0, 3071.0], (5, 1024))).float()
    current = torch.from_numpy(rng.integers(0, 5, 1024)).int()
    # No u of the contract is 1; with it the walk's sum can end at what is left, and the last label of weight is taken.
    u = torch.from_numpy(rng.choice([0.125, 0.25, 0.5, 0.75, 1 - 2.0**-24, 1.0], 1024)).float()
    out, bounds = torch.empty(1024, dtype=torch.int32), torch.empty(1024)
    draws[(1,)](energies, current, u, out, bounds)
    others = contract.weights(energies, 1.0).scatter(0, current.long()[None], 0.0).amax(0) > 0
    defined = (u < 1) | others
    assert torch.equal(out.long()[defined], contract.draw(energies, current.long(), u, 1.0)[defined])
    for below in (bounds * (1 - 2.0**-23), bounds * 0.5):
        open_ = bounds > 0
        kept = contract.draw(energies, out.long(), below, 1.0)
        assert torch.equal(kept[open_], out.long()[open_])
    assert 0 < int((bounds > 0).sum()) < 1024


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not VECTORS.is_file():
        pytest.skip("the contract's vectors are not here: they lie in the shared folder beside the checkout")
    small: dict[str, Any] = json.loads(VECTORS.read_text())["small"]
    return small


GOLDEN = [("line", "incremental"), ("plane", "incremental"), ("volume", "gather")]


@pytest.mark.parametrize(("name", "way"), GOLDEN)
def check_the_contracts_vectors(name: str, way: str, golden: dict[str, Any]) -> None:
    case = golden[name]
    sites, labels, classes = int(np.prod(case["shape"])), case["labels"], len(case["offsets"])
    words = [[enumeration.philox((s, k, 0, 0), (1, 0))[0] >> 16 for s in range(sites)] for k in range(labels)]
    entries = [[enumeration.philox((c, k, 1, 0), (1, 0))[0] >> 20 for k in range(labels**2)] for c in range(classes)]
    tables = (torch.tensor(entries).view(classes, labels, labels) - 2048) / 4096
    crf = GridCRF(labels, Neighborhood.from_offsets(case["offsets"]), tables.float())
    logits = (torch.tensor(words) / 4096).view(1, labels, *case["shape"])
    sampler = Sampler(crf, "triton", case["seed"], way=way)
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
