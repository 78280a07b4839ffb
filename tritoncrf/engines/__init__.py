"""Who computes? The few functions an engine is made of, the plan it works on, and the list of engines.

An engine is a module of this package, ``tritoncrf.engines.<name>``, with the functions of `Engine`; it sees tensors and ints
only, never a model, and imports no other engine. A new one adds a file and touches nothing above.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch

# By name: the engine module called torch takes that name in this package once it is imported.
from torch import Tensor, float64, int64

NAMES = ("triton", "numba", "torch")
# What "auto" tries, in this order. The Triton engine joins once its checks have passed on a GPU, which none has yet run.
AUTOMATIC = ("numba", "torch")
# The fewest labels there are: what to ask an engine about before a model is there.
FEWEST = 2


@dataclass(frozen=True)
class Plan:
    """A batch of N images with R chains each, laid out for an engine.

    A chain's labels are a flat uint8 row of ``volume`` positions; a position where no site exists holds ``void`` (the number
    of labels). Slots are the sites of the padded bucket colour by colour, so a phase is a range of slots. The neighbour of
    position p in table ``classes[k]`` is p + ``displacements[k]`` (and p - it, seen from the other end).
    """

    labels: int
    volume: int
    positions: Tensor
    """int64 [S]: position of each slot."""
    phases: tuple[int, ...]
    """Slot bounds of the phases, K + 1 of them."""
    displacements: tuple[int, ...]
    classes: tuple[int, ...]
    """Which table each displacement reads: classes without an edge in the bucket are left out."""
    num_classes: int
    pixels: Tensor
    """int64 [S]: row-major index of each slot in the batch's padded shape, 0 where it lies outside."""
    exists: Tensor
    """bool [N, S]."""
    free: Tensor
    """bool [N, S]: exists and is not clamped."""
    sites: Tensor
    """int64 [N, S]: row-major index in the image's own size (rule 2)."""
    index: Tensor
    """int64 [N]: the image's position in the data set (rule 2)."""
    replicas: int

    @property
    def void(self) -> int:
        return self.labels

    @property
    def chains(self) -> int:
        return len(self.index) * self.replicas


class Work(Protocol):
    """What an engine prepared: rounded energies and tables in a layout of its own."""


class Engine(Protocol):
    """The functions of an engine module. ``labels`` is uint8 ``[N, R, volume]``, ``count`` int64 ``[N]`` sweeps done,
    ``key`` the Philox key words, ``purpose`` rule 2's number, ``scale`` rule 3's factor."""

    break_even: float
    """Flips per site update below which the incremental way is the faster one."""

    def missing(self, device: torch.device, labels: int = FEWEST) -> str | None:
        """Why the engine cannot run on this device with so many labels, with the way to get it; None if it can."""

    def prepare(self, plan: Plan, logits: Tensor, pairwise: Tensor) -> Work:
        """Rounds logits ``[N, L, *shape]`` and tables ``[C, L, L]`` (rule 1)."""

    def retable(self, work: Work, pairwise: Tensor) -> Work:
        """The same work with other tables."""

    def initial(self, work: Work, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
        """Draws every free site that holds void from its unaries alone, in place."""

    def field(self, work: Work, labels: Tensor) -> Tensor:
        """What the incremental way keeps current: the energies of all free sites given their neighbours, or bounds on them."""

    def sweep(
        self, work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
        key: tuple[int, int], count: Tensor, purpose: int,
    ) -> Tensor:  # fmt: skip
        """Runs sweeps in place: by gather, or incrementally where a field is given. Flips, int64 ``[N, R]``."""

    def conditionals(self, work: Work, labels: Tensor, field: Tensor | None, scale: float, out: Tensor) -> Tensor:
        """Adds each free site's local conditional, averaged over replicas, to ``out`` float64 ``[N, S, L]``; returns the
        sum over free sites of the energy of their own label given the rest, float64 ``[N, R]``."""

    def average(
        self, work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
        key: tuple[int, int], count: Tensor, purpose: int, out: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `sweep`, with `conditionals` after every sweep: flips, int64 ``[N, R]``, and what `conditionals` returned after
        each, float64 ``[N, R, sweeps]``. A site whose conditional stands need not be visited for it."""

    def pair_counts(self, plan: Plan, labels: Tensor) -> Tensor:
        """How often each pair of labels stands on an edge of each class: int64 ``[N, R, C, L, L]``."""

    def pair_errors(self, plan: Plan, data: Tensor, free: Tensor) -> Tensor:
        """`pair_counts` of ``data`` minus those of ``free``, summed over all chains: int64 ``[C, L, L]``."""

    def unary_errors(self, data: Tensor, free: Tensor, labels: int) -> Tensor:
        """How many replicas have each label in ``free`` less how many in ``data``, over R: float32 ``[N, L, *shape]``, of
        uint8 ``[N, R, *shape]`` with 255 in both where no pixel exists."""


def averaging(sweep: Callable[..., Tensor], conditionals: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`Engine.average` of an engine that visits every site anyway: its own `sweep` and `conditionals` in turns."""

    def average(
        work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
        key: tuple[int, int], count: Tensor, purpose: int, out: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        flips = labels.new_zeros(labels.shape[:2], dtype=int64)
        energies = labels.new_zeros((*labels.shape[:2], sweeps), dtype=float64)
        for done in range(sweeps):
            flips += sweep(work, labels, field, 1, scale, key, count + done, purpose)
            energies[..., done] = conditionals(work, labels, field, scale, out)
        return flips, energies

    return average


def load(name: str) -> Engine | str:
    """The engine module of that name, or the reason why there is none."""
    try:
        return cast(Engine, importlib.import_module(f"tritoncrf.engines.{name}"))
    except ModuleNotFoundError as error:
        if error.name == f"tritoncrf.engines.{name}":
            return f"this version of tritoncrf has no {name} engine yet; use engine='torch'"
        return f"its package {error.name!r} is not installed: pip install {error.name}"


def find(name: str, device: torch.device, labels: int = FEWEST) -> tuple[str, Engine]:
    """The engine called ``name``, or for "auto" the first of `AUTOMATIC` that runs on ``device`` with so many labels.

    Raises ValueError for an unknown name and RuntimeError, saying how to get it, for a named engine that cannot run.
    """
    if name != "auto" and name not in NAMES:
        raise ValueError(f"engine: expected 'auto', {', '.join(map(repr, NAMES))}, got {name!r}")
    for candidate in AUTOMATIC if name == "auto" else (name,):
        engine = load(candidate)
        reason = engine if isinstance(engine, str) else engine.missing(device, labels)
        if reason is None and not isinstance(engine, str):
            return candidate, engine
        if name == "auto" and candidate == "numba" and device.type == "cpu":
            warnings.warn(f"engine: the torch engine runs in place of the much faster numba one: {reason}", stacklevel=4)
        if name != "auto":
            raise RuntimeError(f"engine: expected {name!r} to run on {device}, got: {reason}")
    raise RuntimeError(f"engine: expected one that runs on {device}, got none")


def report(device: torch.device) -> dict[str, str]:
    """Each engine's name with "ready" or the reason why it cannot run on ``device``."""
    found: dict[str, str] = {}
    for name in NAMES:
        engine = load(name)
        found[name] = engine if isinstance(engine, str) else engine.missing(device) or "ready"
    return found
