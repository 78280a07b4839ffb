"""Which problems are put to the compiled code? Those of the interpreter's tests, and the standard one; here they are compared.

Labels, flips, conditionals, energies, pair counts, pair and gated errors of a problem must be the torch engine's, bit for bit;
unary errors too, by their own kernel.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from tests import on_device
from tests.compiled.launch import Emulator, emulated
from tests.test_kernels_interpret import CASES, FIVE, SEEING, SLOW, Case
from tritoncrf import Sampler
from tritoncrf.engines import Engine, load

PLACE = on_device.Place(torch.device("cpu"), False)
# Every kernel, both ways by one program and by a team, kinds and gates, one replica and several, in some seconds of compilation.
SMALL = [
    Case((4, 9), 3, FIVE, images=2, replicas=2, ragged=True, holes=True, clamps=True, kinds=2, kinds_on=(2, 0), gates=1,
         gates_on=(4, 1), entries="above"),
    Case((9, 11), 5, FIVE),
]  # fmt: skip
FULL = [*CASES, *SEEING, replace(CASES[3], dtype=torch.bfloat16), *SLOW[::5]]
WAYS = ("gather", "incremental")
# Programs of a team, of which there are several only where they meet.
TEAMS = (1, 3)


@contextlib.contextmanager
def shape(team: int, table: str = "small") -> Iterator[None]:
    """Teams of so many programs, by the launch table itself or by one of ``small`` programs, which compile fast."""
    from tritoncrf.kernels import shapes

    kept = shapes.TEAM, shapes.TABLE
    few = {
        (most, lazy): (shapes.Launch(64, 2, 2 if lazy else 1, scan=128), shapes.Launch(64, 2, 4, scan=128))
        for most, lazy in shapes.TABLE
    }
    try:
        shapes.TEAM, shapes.TABLE = team, few if table == "small" else shapes.TABLE
        yield
    finally:
        shapes.TEAM, shapes.TABLE = kept


def compare(emulator: Emulator, case: Case, way: str, team: int, table: str = "small") -> int:
    """Site updates compared; AssertionError where something differs."""
    with emulated(emulator), shape(team, table):
        updates = on_device.equal_to_torch(PLACE, case, way)
        unary_errors(case)
    return updates


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


def standard(emulator: Emulator, way: str, team: int, sweeps: int) -> tuple[int, int]:
    """The standard problem, calm: labels that differ from torch's after ``sweeps`` sweeps of 130 x 330 sites, and updates."""
    from bench.problem import standard as made

    asked = made("calm")
    with emulated(emulator), shape(team, "own"):
        ours, theirs = (Sampler(asked.crf, name, seed=1, way=way) for name in ("triton", "torch"))
        chains, expected = ours.init(asked.logits), theirs.init(asked.logits)
        ours.run(chains, sweeps)
        theirs.run(expected, sweeps)
    return int((chains.rows != expected.rows).sum()), int(expected.plan.free.sum()) * sweeps
