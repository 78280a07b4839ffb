"""Which settings are tried? What each changes of the preset, said in a text of parts with ", " between them.

The first part is "control" (cross-entropy alone), "separate" or "joint"; the others, in any order, each at most once:

- edges: "edges steps:0.1,0.3", a text of `bench.paper.edges`: what is told of the edges;
- objective: "cross-entropy of 4 averaged x 1" or "cross-entropy of 4 averaged alone", both also with " every 4" behind them,
  "margin 0.3" (`tritoncrf.Objective`); behind "then " it is learned by from half of the epochs on;
- "fast 0.3": fast tables of that rate (`tritoncrf.fast`); "field beside", "nudges beside": a gradient of `methods.beside`;
- the preset's fields: "K = 10", "12 epochs", "table rate 0.003", "network rate 0.0003", "100 + 200 sweeps" (burn-in and
  averaged), "20 classes to 16" (a sparse grid to 16 pixels beside the dense blocks), "32 classes log-polar to 40";
- "cross-entropy x 0.05": of the network alone; "start x 0.5": a factor on its last layer; "centred tables": takes from them
  after each step what a label's bias in the unaries says as well; "piecewise tables x 0.3": those of (14), not sampled.

What won became a preset's, or an option of `tritoncrf.CRFLoss`; what lost stands, with its figure, in docs/paper.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import tritoncrf as tc
from bench.paper.methods.beside import WAYS
from bench.paper.presets import DENSE, far
from tritoncrf.fast import FastWeights
from tritoncrf.lattice import Neighborhood
from tritoncrf.objective import PLAIN, Objective

NONE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Setting:
    """What a row changes; the rest is the preset's."""

    joint: bool = True
    learns: bool = True
    """False: the control, cross-entropy alone."""
    auxiliary: float = 0.0
    """Weight of a cross-entropy of the network alone beside the sampled likelihood."""
    soften: float = 1.0
    """Factor on the pre-trained network's last layer: a start that is less sure of itself."""
    centred: bool = False
    """Takes from the tables after each step what a label's bias in the unaries says as well."""
    piecewise: float | None = None
    """Not sampled: the tables of piecewise training (14) beside the fixed network, times this."""
    edges: str | None = None
    """What is told of the edges, a text of `bench.paper.edges`; None: one table a class."""
    objective: Objective = PLAIN
    """What is learned by."""
    second: Objective | None = None
    """What from half of the epochs on; None: the same."""
    beside: str | None = None
    """A gradient of `methods.beside` with weight 1 beside it."""
    fast: FastWeights | None = None
    """Fast tables that the chains move under too."""
    changes: Mapping[str, object] = field(default_factory=lambda: NONE)
    """Fields of the preset."""


def parse(text: str) -> Setting:
    """The setting of a text. Raises ValueError that quotes the part which is none.

    >>> parse("joint, K = 30, fast 0.3").changes["visit_sweeps"]
    30
    """
    first, *parts = text.split(", ")
    if first not in ("control", "separate", "joint"):
        raise ValueError(f"setting: expected control, separate or joint first, got {text!r}")
    found = Setting(joint=first != "separate", learns=first != "control")
    kinds = set[str]()
    for part in parts:
        kind, found = _with(found, part)
        if kind in kinds:
            raise ValueError(f"setting: expected each kind of part once, got {part!r} behind another in {text!r}")
        kinds.add(kind)
    # What a row would be named after and yet not do.
    alone = replace(found, changes=NONE, soften=1.0, piecewise=None)
    if not found.learns and (alone != Setting(learns=False) or found.piecewise is not None):
        raise ValueError(f"setting: expected a control without parts that say how a CRF learns, got {text!r}")
    if found.piecewise is not None and alone != Setting(joint=False):
        raise ValueError(f"setting: expected piecewise tables behind separate, without parts on sampling, got {text!r}")
    return found


def _with(setting: Setting, part: str) -> tuple[str, Setting]:
    """The pattern that names the part, and the setting with it."""
    for pattern, change in _PARTS.items():
        if said := re.fullmatch(pattern.replace("#", r"([0-9.e+-]+)"), part):
            try:
                return pattern, change(setting, *said.groups())
            except ValueError as error:
                raise ValueError(f"setting: expected numbers that fit, got {part!r}: {error}") from None
    raise ValueError(f"setting: expected a part that bench.paper.settings names, got {part!r}")


def _objective(before: Objective, contexts: str, weight: str | None, alone: str | None, every: str | None) -> Objective:
    """What was said before, which is a margin at most, with a cross-entropy."""
    likelihood, cross_entropy = (0.0, 1.0) if alone else (1.0, float(weight or 1))
    return replace(
        before, likelihood=likelihood, cross_entropy=cross_entropy, contexts=int(contexts), every=int(every or 1)
    )


def _count(text: str) -> int:
    if (found := int(text)) < 1:
        raise ValueError(f"expected at least 1, got {found}")
    return found


def _positive(text: str) -> float:
    if not 0 < (found := float(text)) < math.inf:
        raise ValueError(f"expected a finite number above 0, got {found}")
    return found


def _changed(**how: Callable[..., object]) -> Callable[..., Setting]:
    """Fields of the preset, each made of the texts of the part's numbers."""

    def change(setting: Setting, *said: str) -> Setting:
        return replace(setting, changes={**setting.changes, **{name: make(*said) for name, make in how.items()}})

    return change


def _grid(classes: str, reach: str) -> Neighborhood:
    """The grid to ``reach`` in even steps that has so many classes with the dense blocks."""
    for step in range(1, int(reach) + 1):
        if int(reach) % step == 0 and len(found := far(int(reach), step)) == int(classes):
            return found
    raise ValueError(f"no even grid to {reach} has {classes} classes, {DENSE} of them dense")


_CROSS = "cross-entropy of # averaged (?:x #|(alone))(?: every #)?"
# Pattern -> what its numbers change; # stands for a number.
_PARTS: dict[str, Callable[..., Setting]] = {
    r"edges (\S+(?: on (?:far|near))?)": lambda setting, text: replace(setting, edges=text),
    _CROSS: lambda setting, *said: replace(setting, objective=_objective(setting.objective, *said)),
    f"then {_CROSS}": lambda setting, *said: replace(setting, second=_objective(PLAIN, *said)),
    "margin #": lambda setting, a: replace(setting, objective=replace(setting.objective, margin=float(a))),
    "fast #": lambda setting, rate: replace(setting, fast=FastWeights(float(rate))),
    f"({'|'.join(WAYS)}) beside": lambda setting, name: replace(setting, beside=name),
    "K = #": _changed(visit_sweeps=_count),
    "# epochs": _changed(epochs=_count),
    "table rate #": _changed(table_rate=_positive, separate_rate=_positive),
    "network rate #": _changed(network_rate=_positive),
    r"# \+ # sweeps": _changed(burn_in=lambda first, _: int(first), sweeps=lambda _, second: _count(second)),
    "# classes to #": _changed(neighborhood=_grid),
    "32 classes log-polar to #": _changed(neighborhood=lambda reach: tc.Neighborhood.log_polar(int(reach))),
    "cross-entropy x #": lambda setting, weight: replace(setting, auxiliary=float(weight)),
    "start x #": lambda setting, factor: replace(setting, soften=float(factor)),
    "centred tables": lambda setting: replace(setting, centred=True),
    "piecewise tables x #": lambda setting, weight: replace(setting, piecewise=float(weight)),
}
