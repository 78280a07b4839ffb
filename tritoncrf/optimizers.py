"""What does an optimizer carry from stage to stage? Its moments, and the options that steps changed; never its rates.

A caller's own optimizer may serve several stages, in any order, beside others. A resumed run makes it anew and changes its
options between stages as the first one did, so those options are right already: what is put back are the moments of each
parameter and such options as steps themselves change (some optimizers count in their groups). Rates are the stages' own: a
stage begins with those that the caller set and puts them back at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from tritoncrf.checkpoint import CheckpointError, Tree, group
from tritoncrf.finite import check_moments

# Never an optimizer's own to change.
_CALLERS = ("params", "lr", "initial_lr")


class Optimizers:
    """The callers' optimizers in the order in which they first came, and the one under way."""

    def __init__(self) -> None:
        self._kept: list[Optimizer] = []
        self._moved: list[list[str]] = []
        """Of each: the options that its steps changed."""
        self._now: Optimizer | None = None
        self._began: list[dict[str, object]] = []
        self._ended: Optimizer | None = None
        """That of the last stage which the saved run had finished."""
        self._saved: dict[str, Tree] | None = None

    def note(self, optimizer: Optimizer) -> None:
        """A caller's own: what a saved run had made of it is put back when it first comes."""
        if any(optimizer is known for known in self._kept):
            return
        place = len(self._kept)
        self._kept.append(optimizer)
        self._moved.append([])
        saved = _parts(self._saved, "kept")
        if place < len(saved):
            state = group({"kept": saved[place]}, "kept")
            if "state" not in state:
                # It was the one under way.
                state = {**group(self._saved or {}, "optimizer"), "moved": state.get("moved")}
            self._moved[place] = [str(name) for name in _parts(state, "moved")]
            _load(optimizer, state, self._moved[place])

    def pass_over(self, optimizer: Optimizer) -> None:
        """A stage with this optimizer that the saved run had finished."""
        self._ended = optimizer

    def begin(self, optimizer: Optimizer, goes_on: bool) -> None:
        """A stage with this optimizer; goes_on: it is the saved run's half-done one."""
        saved = self._saved
        if saved is not None and "kept" not in saved and "optimizer" in saved and not goes_on and optimizer is self._ended:
            # A file from before there was a list has the last stage's optimizer alone.
            _load(optimizer, group(saved, "optimizer"), [])
        self._now, self._began = optimizer, _options(optimizer)
        for part, rate in zip(optimizer.param_groups, rates_of(optimizer), strict=True):
            # A schedule of an earlier stage would otherwise decide where this one starts.
            part["initial_lr"] = rate

    def put_back(self) -> None:
        """All of the half-done stage's optimizer, its rates too."""
        if self._now is not None and self._saved is not None:
            _load(self._now, group(self._saved, "optimizer"), None)
            self._began = _options(self._now)

    def end(self) -> None:
        """The stage is over: what options change from here on, the caller changes."""
        self._settle()
        self._began = []

    def check(self, path: object, named: Mapping[str, Tensor]) -> None:
        """Raises FloatingPointError unless all that `state` has is finite (`finite.check_tree`)."""
        for known in [] if self._now is None else [self._now, *(known for known in self._kept if known is not self._now)]:
            check_moments(path, known.state_dict(), known, named)

    def state(self) -> dict[str, Tree]:
        """All of them, to be saved."""
        self._settle()
        if self._now is None:
            return {}
        kept: list[Tree] = []
        for known, moved in zip(self._kept, self._moved, strict=True):
            state: dict[str, Tree] = {} if known is self._now else dict(known.state_dict())
            kept.append({**state, "moved": list(moved)})
        return {"optimizer": self._now.state_dict(), "kept": kept}

    def load(self, state: dict[str, Tree]) -> None:
        """Remembers a saved state until the same optimizers come again."""
        self._kept, self._moved, self._now, self._began, self._ended, self._saved = [], [], None, [], None, state

    def _settle(self) -> None:
        """Notes the options that steps have changed since the stage began."""
        for place, known in enumerate(self._kept):
            if known is self._now and self._began:
                changed = {
                    name
                    for before, now in zip(self._began, _options(known), strict=True)
                    for name in now
                    if not _same(before.get(name), now[name])
                }
                self._moved[place] = sorted({*self._moved[place], *changed})


def rates_of(optimizer: Optimizer) -> list[object]:
    """The rate of each group; copies, for a rate may be a tensor that a schedule writes into."""
    return [part["lr"].clone() if isinstance(part["lr"], Tensor) else part["lr"] for part in optimizer.param_groups]


def set_rates(optimizer: Optimizer, rates: Sequence[object]) -> None:
    """Puts rates back, in place where they are tensors."""
    for part, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(part["lr"], Tensor):
            part["lr"].fill_(cast("Tensor | float", rate))
        else:
            part["lr"] = rate


def _options(optimizer: Optimizer) -> list[dict[str, object]]:
    return [
        {name: value.clone() if isinstance(value, Tensor) else value for name, value in part.items() if name not in _CALLERS}
        for part in optimizer.param_groups
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def alike(one: object, other: object) -> bool:
    """Whether an option of a file may stand where the optimizer has ``one``."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, bool) or one is None:
        return isinstance(other, bool) or other is None or (one is None and isinstance(other, str | int | float))
    if isinstance(one, int | float):
        return isinstance(other, int | float) and not isinstance(other, bool)
    return type(one) is type(other)


def _load(optimizer: Optimizer, state: Mapping[str, Tree], moved: Sequence[str] | None) -> None:
    """Puts moments back and the options named; None: all options. Raises CheckpointError if they are another's."""
    live = [dict(part) for part in optimizer.param_groups]
    try:
        optimizer.load_state_dict({name: part for name, part in state.items() if name != "moved"})
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"optimizer: expected the one that was saved, got another ({error})") from None
    for part, own in zip(optimizer.param_groups, live, strict=True):
        names = [name for name in own if name not in ("params", "initial_lr")]
        odd = next((name for name in names if not alike(own[name], part.get(name))), None)
        if odd is not None:
            raise CheckpointError(f"optimizer: expected {odd!r} such as {own[odd]!r}, got {part.get(odd)!r:.80}")
    if moved is None:
        return
    for part, own in zip(optimizer.param_groups, live, strict=True):
        part.update({name: value for name, value in own.items() if name not in moved})


def _parts(tree: Mapping[str, Tree] | None, name: str) -> Sequence[Tree]:
    value = None if tree is None else tree.get(name)
    return value if isinstance(value, list) else []
