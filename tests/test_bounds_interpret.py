"""Are the bounds of odds bounds? Of the incremental update in Triton's interpreter, against odds of the torch engine's energies.

A bound too low leaves a label where it is that should have moved, rarely enough to be missed by comparing labels. So bounds are
compared with the odds themselves after every call, in float64; and faults are planted into the kernels, which must show.
The process that interprets, and what is watched in it, are those of `tests/test_kernels_interpret.py`.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch

from tests import test_kernels_interpret
from tests.test_kernels_interpret import (
    FIVE,
    LAUNCHES,
    NO_TRITON,
    Case,
    assert_bounds,
    interpret,
    launched,
    parts_of,
    problem,
)
from tritoncrf import contract
from tritoncrf.chains import ChainState

poison, watch = test_kernels_interpret.poison, test_kernels_interpret.watch
PLAIN = Case((6, 7), 5, FIVE, images=2, clamps=True, forbidden=True)
EVERYTHING = Case(
    (5, 6), 3, FIVE, images=2, replicas=2, ragged=True, holes=True, kinds=2, kinds_on=(0, 3), gates=2, gates_on=(1, 4)
)


@NO_TRITON
def test_the_bounds_pass_in_the_interpreter() -> None:
    interpret(file=Path(__file__))


def followed(
    case: Case, betas: list[float], sweeps: int, look: Callable[[ChainState], object] | None = None, flat: bool = False
) -> int:
    """Runs both engines call by call, looking at bounds, labels and flips; how many odds were below 1, all calls together.

    flat: all but the last kind say nothing.
    """
    asked, sure = problem(case), 0
    if flat:
        with torch.no_grad():
            asked.crf.pairwise[:, :-1] = 0.0
    (ours, chains), (theirs, expected) = asked.start("triton", "incremental"), asked.start("torch", "gather")
    for beta in betas:
        ours.run(chains, sweeps, beta=beta)
        theirs.run(expected, sweeps, beta=beta)
        sure += assert_bounds(chains, asked.crf, beta)
        assert torch.equal(chains.rows, expected.rows)
        assert torch.equal(chains.flips, expected.flips)
        if look is not None:
            look(chains)
    return sure


@pytest.mark.parametrize("beta", [0.3, 1.0, 40.0])
@pytest.mark.parametrize("case", [PLAIN, EVERYTHING], ids=str)
def check_bounds_lie_above_the_odds(case: Case, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep by sweep: of sites just drawn, and of those that flips of their neighbours were added to."""
    launched(monkeypatch, *LAUNCHES[3])
    assert followed(case, [beta] * 3, 1) > 0


@pytest.mark.parametrize("entries", ["inside", "edge"])
def check_bounds_at_all_temperatures(entries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each marks its own bounds; one so high that none holds marks none, and one so low cuts off all labels but the best."""
    launched(monkeypatch, *LAUNCHES[1])
    case, tags = replace(EVERYTHING, entries=entries, shape=(4, 5), images=1), list[int]()
    far, near = 0.05, [1.0, 1e6]

    def look(chains: ChainState) -> None:
        odds, marks = parts_of(chains)
        assert len(set(marks.flatten().tolist())) == 1
        tags.append(int(marks[0, 0]))
        # Nothing overflows, however steep a row and however often it is pushed.
        assert int(odds[chains.plan.free[:, None].expand_as(odds)].abs().max()) < 1 << 26

    followed(case, near, 2, look)
    assert len(set(tags)) == 2
    assert 0 not in tags
    asked = problem(case)
    (ours, chains), (theirs, expected) = asked.start("triton", "incremental"), asked.start("torch", "gather")
    for beta in (1.0, far, 1.0):
        for sampler, state in ((ours, chains), (theirs, expected)):
            sampler.run(state, 2, beta=beta)
        assert torch.equal(chains.rows, expected.rows)
        assert bool(parts_of(chains)[1].any()) == (beta != far)


def check_bounds_spare_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """At low temperatures most sites are passed over from the second sweep on; none where the call knows nothing of them."""
    from tritoncrf.kernels import sweeps

    launched(monkeypatch, *LAUNCHES[0])
    redraw, redrawn = sweeps.redraw, [0]

    def counted(*arguments: Any) -> Any:
        given = dict(zip(inspect.signature(redraw.fn).parameters, arguments, strict=True))
        lanes = int(given["LANES"]) // int(given["SPLIT"])
        redrawn[0] += min(lanes, int((given["end"] - given["start"]).handle.data.item()))
        return redraw(*arguments)

    monkeypatch.setattr(sweeps, "redraw", counted)
    sampler, chains = problem(PLAIN).start("triton", "incremental")
    free, found = int(chains.plan.free.sum()), list[int]()
    for beta, logits in ((20.0, None), (20.0, None), (20.0, None), (21.0, None), (21.0, chains.logits)):
        redrawn[0] = 0
        sampler.run(chains, 1, beta=beta, logits=logits)
        found.append(redrawn[0])
    assert [found[0], found[3], found[4]] == [free] * 3
    assert found[2] < found[1] < free
    assert found[2] < free // 2


def planted(module: Any, old: str, new: str, folder: Path) -> ModuleType:
    """A copy of one of the kernels' files with a fault in it."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, old
    path = folder / f"{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(f"faulty_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@dataclass(frozen=True)
class Fault:
    """What is changed, and into what, in a file and the function of it that sweeps call."""

    old: str
    new: str
    file: str = "odds"
    function: str = "push"
    beta: float = 1.0


FAULTS = {
    "of the label that came alone": Fault("tl.load(spreads + table + ((word >> 8) & 0xFF), mask=live, other=0.0)", "0.0"),
    "of the label that went alone": Fault("tl.load(spreads + table + (word & 0xFF), mask=live, other=0.0)", "scale * 0.0"),
    "of the other end": Fault("tl.where(behind, 0, 1), LABELS", "tl.where(behind, 1, 0), LABELS"),
    "of kind 0": Fault("table = base + tl.load(kind", "table = base + 0 * tl.load(kind"),
    "of the other edge's kind": Fault("2 * own_class + tl.where(behind, 1, 0)", "2 * own_class + tl.where(behind, 0, 1)"),
    "of no gate": Fault("            rise += rise_of_gates(", "            rise += 0.0 * rise_of_gates("),
    "to the first replica": Fault("((word >> 16) & 0xFFFF)", "0"),
    "to neighbours ahead alone": Fault("        inside = k < 2 * classes\n", "        inside = (k < 2 * classes) & ~behind\n"),
    "of the label that stood": Fault("tl.log2(tl.where(stays, own, taken))", "tl.log2(own)", "draw", "draw"),
    "without a difference's loss": Fault("total - taken + total * (LABELS * LOST)", "total - taken", "draw", "draw", 10.0),
}


@pytest.mark.parametrize("name", FAULTS)
def check_a_bound_too_low_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tritoncrf.kernels import draw, odds, sweeps

    launched(monkeypatch, *LAUNCHES[3])
    fault = FAULTS[name]
    module = planted({"draw": draw, "odds": odds}[fault.file], fault.old, fault.new, tmp_path)
    monkeypatch.setattr(sweeps, fault.function, getattr(module, fault.function))
    with pytest.raises(AssertionError, match=r"bounds too low"):
        followed(EVERYTHING, [fault.beta] * 3, 1, flat="kind" in name)


def check_a_field_of_another_scale_is_of_no_use() -> None:
    """Tags that are kept although the temperature changed would show as labels that differ."""
    case = replace(PLAIN, beta=1.0)
    asked = problem(case)
    (ours, chains), (theirs, expected) = asked.start("triton", "incremental"), asked.start("torch", "gather")
    ours.run(chains, 2, beta=5.0)
    theirs.run(expected, 2, beta=5.0)
    work = cast(Any, chains.work)
    assert work is not None
    assert chains.field is not None
    # As if they were of the next temperature.
    tags = len(chains.plan.index) * chains.plan.replicas
    chains.field[-tags:] = torch.tensor(contract.scale_of(0.5), dtype=torch.float32).view(torch.int32)
    for sampler, state in ((ours, chains), (theirs, expected)):
        sampler.run(state, 1, beta=0.5)
    assert not torch.equal(chains.rows, expected.rows)
