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
# Every kernel, each pair of way and launch shape, kinds and gates, one replica and several, in a few seconds of compilation.
SMALL = [
    Case((4, 9), 3, FIVE, images=2, replicas=2, ragged=True, holes=True, clamps=True, kinds=2, kinds_on=(2, 0), gates=1,
         gates_on=(4, 1), entries="above"),
    Case((9, 11), 20, FIVE),
]  # fmt: skip
FULL = [*CASES, *SEEING, replace(CASES[3], dtype=torch.bfloat16), *SLOW[::5]]
WAYS = ("gather", "incremental")


@contextlib.contextmanager
def shape(fused: bool) -> Iterator[None]:
    """One program for all phases of some chains, or a launch a phase."""
    from tritoncrf.kernels import shapes

    kept = shapes.FUSED_PROGRAMS
    try:
        shapes.FUSED_PROGRAMS = 0 if fused else 1 << 30
        yield
    finally:
        shapes.FUSED_PROGRAMS = kept


def compare(emulator: Emulator, case: Case, way: str, fused: bool) -> int:
    """Site updates compared; AssertionError where something differs."""
    with emulated(emulator), shape(fused):
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


def standard(emulator: Emulator, way: str, fused: bool, sweeps: int) -> tuple[int, int]:
    """The standard problem, calm: labels that differ from torch's after ``sweeps`` sweeps of 130 x 330 sites, and updates."""
    from bench.problem import standard as made

    asked = made("calm")
    with emulated(emulator), shape(fused):
        ours, theirs = (Sampler(asked.crf, name, seed=1, way=way) for name in ("triton", "torch"))
        chains, expected = ours.init(asked.logits), theirs.init(asked.logits)
        ours.run(chains, sweeps)
        theirs.run(expected, sweeps)
    return int((chains.rows != expected.rows).sum()), int(expected.plan.free.sum()) * sweeps
