"""Which problems are put to the compiled code? Those of the interpreter's tests, and the standard one; here they are compared.

Labels, flips, conditionals, energies, pair counts, pair and gated errors of a problem must be the torch engine's, bit for bit;
unary errors too, by their own kernel. What is passed over must be covered: each site's bound lies above its odds against
staying, ``sum_(l != y) 2^((e_y - e_l) scale)``, here in float64 of the torch engine's energies.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tests import on_device
from tests.compiled.launch import Emulator, emulated
from tests.test_kernels_interpret import CASES, SEEING, SLOW, Case, problem
from tritoncrf import Sampler, contract
from tritoncrf.chains import ChainState
from tritoncrf.engines import Engine, load

PLACE = on_device.Place(torch.device("cpu"), False)
# Every kernel, both updates by one program and by a team, and hardly an instruction of them that is not run: kinds and gates, one
# replica and several, packed rows and float32, phases that end in sites shared by lanes. Compiled in some seconds.
THREE = ((0, 1), (1, 0), (1, -2))
SMALL = [
    Case((12, 37), 3, THREE, images=2, replicas=2, ragged=True, holes=True, clamps=True, kinds=2, kinds_on=(2, 0), gates=1,
         gates_on=(1, 2, 0), entries=entries, sweeps=1) for entries in ("above", "inside")
] + [Case((24, 37), 5, THREE, entries=entries, sweeps=1) for entries in ("above", "inside")]  # fmt: skip
FULL = [*CASES, *SEEING, replace(CASES[3], dtype=torch.bfloat16), *SLOW[::5]]
UPDATES = ("gather", "incremental")
# Programs of a team, of which there are several only where they meet.
TEAMS = (1, 3)


@contextlib.contextmanager
def shape(team: int, table: str = "small") -> Iterator[None]:
    """Teams of so many programs, by the launch table itself or by one of ``small`` programs, which compile fast."""
    from tritoncrf.kernels import shapes

    kept = shapes.TEAM, shapes.TABLE
    few = {
        (most, lazy): (shapes.Launch(64, 2, 2 if lazy else 1, scan=128), shapes.Launch(64, 2, 4, scan=64))
        for most, lazy in shapes.TABLE
    }
    try:
        shapes.TEAM, shapes.TABLE = team, few if table == "small" else shapes.TABLE
        yield
    finally:
        shapes.TEAM, shapes.TABLE = kept


def compare(emulator: Emulator, case: Case, update: str, team: int, table: str = "small") -> int:
    """Site updates compared; AssertionError where something differs. What knows nothing of teams is compared without them."""
    updates, sweeps = 0, case.sweeps + 2
    with emulated(emulator), shape(team, table):
        if team == 1:
            updates = on_device.equal_to_torch(PLACE, case, update)
            unary_errors(case)
        if team > 1 or update == "incremental":
            assert not (said := swept(case, update, sweeps)), said
            updates += math.prod(case.shape) * case.replicas * sweeps
    return updates


def swept(case: Case, update: str, sweeps: int) -> str:
    """What labels, flips and bounds show to be wrong after some sweeps by the emulator that is there; "" if nothing."""
    asked = problem(case)
    (ours, chains), (theirs, expected) = asked.start("triton", update), asked.start("torch", "gather")
    ours.run(chains, sweeps, beta=case.beta)
    theirs.run(expected, sweeps, beta=case.beta)
    if labels := int((chains.rows != expected.rows).sum()):
        return f"{labels} labels differ"
    if not torch.equal(chains.flips, expected.flips) or not int(expected.flips.sum()):
        return "flips differ"
    energies: Any = theirs.engine
    below = uncovered(chains, expected, energies.field(expected.work, expected.rows)[:-1], contract.scale_of(case.beta))
    return f"{below} bounds are below the odds" if below else ""


def uncovered(chains: ChainState, expected: ChainState, energies: Tensor, scale: float) -> int:
    """Sites of chains with bounds that lie below the odds; energies: of the torch engine's list of free sites."""
    from tritoncrf.kernels.draw import far
    from tritoncrf.kernels.odds import UNKNOWN

    if chains.field is None or far(scale):
        return 0
    work, theirs = cast(Any, chains.work), cast(Any, expected.work)
    images, replicas, _ = chains.rows.shape
    bounds, tags = chains.field[: -images * replicas], chains.field[-images * replicas :]
    lists = theirs.image if len(work.listing.lookup) > 1 else torch.zeros_like(theirs.image)
    rank = work.listing.lookup[lists, chains.plan.positions[theirs.slot]].long()
    bound = bounds.view(images, replicas, -1)[theirs.image, theirs.replica, rank]
    known = tags.view(images, replicas)[theirs.image, theirs.replica] == torch.tensor(scale).view(torch.int32)
    own = expected.rows[theirs.image, theirs.replica, chains.plan.positions[theirs.slot]].long()[:, None]
    energies = energies.double()
    weights = torch.exp2((energies.gather(1, own) - energies) * scale).scatter(1, own, 0.0)
    # From here on no u is covered by a bound.
    odds = (1024 * weights.sum(1).log2()).clamp(max=2.0**17)
    assert bool(known.all()), "bounds are said to be of another scale"
    assert not bool((bound >= UNKNOWN).any()), "a site was never drawn"
    return int((bound < odds - 1e-3).sum())


def unary_errors(case: Case) -> None:
    generator = torch.Generator().manual_seed(1)
    size = (case.images, case.replicas, *case.shape)
    free, data = (torch.randint(0, case.labels + 1, size, generator=generator).to(torch.uint8) for _ in range(2))
    free[free == case.labels] = data[data == case.labels] = 255
    ours, theirs = (_engine(name).unary_errors(data, free, case.labels) for name in ("triton", "torch"))
    assert torch.equal(ours, theirs), "unary errors"


def _engine(name: str) -> Engine:
    engine = load(name)
    assert not isinstance(engine, str)
    return engine


def standard(emulator: Emulator, update: str, team: int, sweeps: int) -> tuple[int, int]:
    """The standard problem, calm: labels that differ from torch's after ``sweeps`` sweeps of 130 x 330 sites, and updates."""
    from bench.problem import standard as made

    asked = made("calm")
    with emulated(emulator), shape(team, "own"):
        ours, theirs = (Sampler(asked.crf, name, seed=1, update=update) for name in ("triton", "torch"))
        chains, expected = ours.init(asked.logits), theirs.init(asked.logits)
        ours.run(chains, sweeps)
        theirs.run(expected, sweeps)
    return int((chains.rows != expected.rows).sum()), int(expected.plan.free.sum()) * sweeps
