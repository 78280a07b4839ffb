"""What comes in of the edges? Kinds and gates of a batch, each at its edge's first end, looked at once.

Class c joins pixel i and i + d_c (mod n along an axis that wraps); what is given of that edge stands at i. Entries of edges
that do not exist, because an end lies beyond the image, is padding or is masked out, are not looked at: whatever they
hold is made harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.engines import EdgeData, Plan
from tritoncrf.graphs import FactorGraph
from tritoncrf.lattice import Neighborhood
from tritoncrf.layout import Layout
from tritoncrf.periodic import Wrap
from tritoncrf.validation import Guard


class Edges(NamedTuple):
    """What N images say of their edges, each at its first end; None where they choose no table, or weigh none."""

    kinds: Tensor | None = None
    """uint8 [N, Ck, *shape]: which table of its class an edge reads."""
    gates: Tensor | None = None
    """float [N, G, Cg, *shape] in [0, 1]: how much of each gated table."""


Given: TypeAlias = Edges | FactorGraph
"""What a batch says of who touches whom: nothing beyond its shape but kinds and gates, or on graphs all of it."""


@dataclass(frozen=True)
class EdgeForm:
    """What a model asks to be told of its edges."""

    neighborhood: Neighborhood
    kinds: int | None
    """R; None: no kinds."""
    kinds_on: Neighborhood
    """The classes that have kinds, in the argument's order."""
    gates: int
    """G; 0: none."""
    gates_on: Neighborhood
    wrap: Wrap = ()
    """Which axes are rings; () for none."""

    @classmethod
    def of(
        cls, neighborhood: Neighborhood, kinds: int | None, kinds_on: Neighborhood | None, gates: int,
        gates_on: Neighborhood | None, wrap: Wrap = (),
    ) -> EdgeForm:  # fmt: skip
        """Arguments as of `GridCRF`. Raises ValueError or TypeError naming them."""
        if kinds is not None:
            kinds = validation.whole("kinds", kinds, 1, contract.MAX_LABELS)
        gates = validation.whole("gates", gates, 0, contract.MAX_LABELS)
        for name, given, among in (("kinds_on", kinds_on, kinds), ("gates_on", gates_on, gates)):
            if given is not None and not among:
                raise ValueError(f"{name}: expected None for a model without {name[:5]}, got {given!r}")
            if given is not None:
                neighborhood.places(name, given)
        return cls(neighborhood, kinds, kinds_on or neighborhood, gates, gates_on or neighborhood, wrap)

    @cached_property
    def kinded(self) -> tuple[int, ...]:
        """Where each class's kinds stand in the argument, -1: nowhere."""
        return self.neighborhood.places("kinds_on", self.kinds_on)

    @cached_property
    def gating(self) -> tuple[int, ...]:
        """Where each class's gates stand in the argument, -1: nowhere."""
        return self.neighborhood.places("gates_on", self.gates_on) if self.gates else (-1,) * len(self.neighborhood)

    def asked(self, classes: tuple[int, ...]) -> tuple[int | None, int, tuple[int, ...], tuple[int, ...]]:
        """What a plan of these classes tells of its edges: R or None, G, and where their kinds and gates stand."""
        kinded, gating = (tuple(places[c] for c in classes) for places in (self.kinded, self.gating))
        return self.kinds, self.gates, kinded if self.kinds else (), gating if self.gates else ()

    def numbers(self, num_labels: int) -> Tensor:
        """int64: number of labels, kinds (0: none), gates, axes, and each neighbourhood's number of offsets and offsets;
        then, where an axis wraps, 1 for each that does."""
        found = [num_labels, self.kinds or 0, self.gates, self.neighborhood.ndim]
        for part in (self.neighborhood, self.kinds_on, self.gates_on):
            found += [len(part), *(step for offset in part.offsets for step in offset)]
        return torch.tensor(found + [int(ring) for ring in self.wrap], dtype=torch.int64, device="cpu")

    def without_gates(self) -> EdgeForm:
        """The form of the same model where gates do not matter."""
        return replace(self, gates=0, gates_on=self.neighborhood)

    def __str__(self) -> str:
        parts = []
        if self.kinds is not None:
            parts.append(f", {self.kinds} {'kind' if self.kinds == 1 else 'kinds'}{self._on(self.kinds_on)}")
        if self.gates:
            parts.append(f", {self.gates} {'gate' if self.gates == 1 else 'gates'}{self._on(self.gates_on)}")
        if self.wrap:
            parts.append(f", wrap {self.wrap}")
        return "".join(parts)

    def _on(self, part: Neighborhood) -> str:
        return "" if part == self.neighborhood else f" on {len(part)} {'class' if len(part) == 1 else 'classes'}"


def describe(numbers: object) -> str:
    """What `EdgeForm.numbers` say, in words."""
    try:
        return _describe(numbers.tolist())  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, LookupError):
        return "a state that says nothing known"


def _describe(numbers: list[int]) -> str:
    labels, kinds, gates, axes, *rest = numbers
    hoods = []
    for _ in range(3):
        count, rest = rest[0] * axes, rest[1:]
        hoods.append(Neighborhood.from_offsets([rest[k : k + axes] for k in range(0, count, axes)]))
        rest = rest[count:]
    form = EdgeForm(hoods[0], kinds or None, hoods[1], gates, hoods[2], tuple(map(bool, rest)))
    return f"{labels} labels, {hoods[0]!r} {hoods[0].offsets[:2]}...{form}"


def plan_with_edges(guard: Guard, form: EdgeForm, plan: Plan, layout: Layout, present: Tensor, given: Edges) -> Plan:
    """The plan with its batch's kinds and gates, looked at; present: bool ``[N, *shape]``, the pixels that exist.

    Raises ValueError or TypeError where one is missing, is not asked for, or is not what it should be.
    """
    for name, value, asked in (("kinds", given.kinds, form.kinds is not None), ("gates", given.gates, form.gates > 0)):
        if value is not None and not asked:
            raise ValueError(f"{name}: expected None for a model without {name}, got {_what(value)}")
        if value is None and asked:
            raise ValueError(f"{name}: expected a tensor for a model of {str(form)[2:]}, got None")
    if given.kinds is None and given.gates is None:
        return plan
    kinds = None if given.kinds is None else _kinds(guard, form, layout, present, given.kinds)
    gates = None if given.gates is None else _gates(guard, form, layout, present, given.gates)
    kinded, gating = ([places[c] for c in plan.classes] for places in (form.kinded, form.gating))
    return replace(plan, edges=EdgeData(
        layout.pixels(tuple(present.shape[1:])), kinds, form.kinds or 1, tuple(kinded), gates, tuple(gating)
    ))  # fmt: skip


def _kinds(guard: Guard, form: EdgeForm, layout: Layout, present: Tensor, kinds: Tensor) -> Tensor:
    count, shape = form.kinds or 1, present.shape
    validation.shaped("kinds", kinds, [(shape[0], len(form.kinds_on), *shape[1:])], [torch.uint8], present.device)
    if not guard.waits(present.device) or int(kinds.max()) >= count:
        bad = (kinds >= count, *_joined(layout, present, form.kinds_on))
        _require(guard, bad, f"kinds: expected kinds from 0 to {count - 1} where an edge is", kinds, form.kinds_on)
        kinds = kinds.clamp(max=count - 1)
    # A copy: what a caller writes into a tensor that was looked at once must reach no table.
    return kinds.flatten(2).clone(memory_format=torch.contiguous_format)


def _gates(guard: Guard, form: EdgeForm, layout: Layout, present: Tensor, gates: Tensor) -> Tensor:
    shape, floats = present.shape, (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    validation.tensor("gates", gates)
    if not gates.is_floating_point():
        raise TypeError(f"gates: expected a floating-point dtype, got {gates.dtype}")
    validation.shaped("gates", gates, [(shape[0], form.gates, len(form.gates_on), *shape[1:])], floats, present.device)
    values = gates.detach()
    wrong = ~((values >= 0) & (values <= 1))
    if not guard.waits(present.device) or bool(wrong.any()):
        for rank in range(form.gates):
            bad = (wrong[:, rank], *_joined(layout, present, form.gates_on))
            _require(guard, bad, "gates: expected numbers from 0 to 1 where an edge is", values[:, rank], form.gates_on)
    return contract.round_gates(values).flatten(3).contiguous()


def _joined(layout: Layout, present: Tensor, classes: Neighborhood) -> Iterator[Tensor]:
    """bool ``[N, *shape]`` of each class: whether an edge begins at a pixel."""
    shape = tuple(present.shape[1:])
    rows = torch.zeros((len(present), layout.volume), dtype=torch.bool, device=present.device)
    layout.crop(rows, shape).copy_(present)
    offsets = () if layout.neighborhood is None else layout.neighborhood.offsets
    for offset in classes.offsets:
        own, joined = offsets.index(offset), torch.zeros_like(present)
        for c, step in zip(layout.classes, layout.displacements, strict=True):
            if c == own:
                joined |= present & layout.ahead(rows, shape, step)
        yield joined


def _require(guard: Guard, bad: tuple[Tensor, ...], sentence: str, values: Tensor, classes: Neighborhood) -> None:
    """Requires that ``bad[0]`` ``[N, C, *shape]`` is false wherever an edge is, which the rest tells class by class."""
    wrong, *joined = bad
    for c, exists in enumerate(joined):
        fault = wrong[:, c] & exists

        def got(c: int = c, fault: Tensor = fault) -> str:
            image, *pixel = torch.nonzero(fault)[0].tolist()
            value = values[(image, c, *pixel)].item()
            return f"{value:g} at pixel {tuple(pixel)} of image {image}, of the edge to {classes.offsets[c]} further on"

        guard.require(~fault, sentence, got)


def _what(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
