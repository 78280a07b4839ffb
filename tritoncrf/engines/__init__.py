"""Who computes? The few functions an engine is made of, the plan it works on, and the list of engines.

An engine is a module of this package, ``tritoncrf.engines.<name>``, with the functions of `Engine`; it sees tensors and ints
only, never a model, and imports no other engine. A new one adds a file and touches nothing above.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch

# By name: the engine module called torch takes that name in this package once it is imported.
from torch import Tensor, equal, float32, float64, int64, uint8

from tritoncrf import contract
from tritoncrf.engines.factors import Ends as Ends
from tritoncrf.engines.factors import Factors as Factors
from tritoncrf.engines.factors import starts_of as starts_of

NAMES = ("triton", "numba", "torch")
# What "auto" tries, in this order, on a GPU and elsewhere, where Triton would interpret.
AUTOMATIC = {"cuda": ("triton", "torch")}
ELSEWHERE = ("numba", "torch")
# The fewest labels there are: what to ask an engine about before a model is there.
FEWEST = 2


class Tables(NamedTuple):
    """The tables of all edge classes."""

    pairwise: Tensor
    """float [C, L, L], or [C, R, L, L] where an edge has one of R kinds; of graphs [entries], as `Factors` has them."""
    gated: Tensor | None = None
    """float [G, Cg, L, L]: what each of G gates weighs, of the Cg classes that have gates."""

    def equal(self, other: Tables) -> bool:
        """Whether all entries are the same."""
        pairs = zip(self, other, strict=True)
        return all(one is other or (one is not None and other is not None and _same(one, other)) for one, other in pairs)

    def copy(self) -> Tables:
        """The same entries, which no write into these changes."""
        return Tables(self.pairwise.detach().clone(), None if self.gated is None else self.gated.detach().clone())

    def where(self, bad: Tensor, other: Tables) -> Tables:
        """These tables if ``bad``, bool [], else the others; neither is looked at by the host."""
        gated = None if self.gated is None or other.gated is None else self.gated.where(bad, other.gated)
        return Tables(self.pairwise.where(bad, other.pairwise), gated)


def _same(one: Tensor, other: Tensor) -> bool:
    # Of many labels these are megabytes, which torch compares entry by entry: numpy takes less than half as long.
    if one.device.type == "cpu" and one.dtype == other.dtype == float32 and one.numel() > 1 << 15:
        return np.array_equal(one.detach().numpy(), other.detach().numpy())
    return equal(one, other)


@dataclass(frozen=True)
class EdgeData:
    """What a batch says of its edges, each at its first end i of (i, i + d_c)."""

    pixels: Tensor
    """int64 [volume]: the row-major index of each position in the batch's padded shape, 0 where it lies outside."""
    kinds: Tensor | None = None
    """uint8 [N, Ck, pixels], below R everywhere."""
    num_kinds: int = 1
    """R; 1 without kinds."""
    kinded: tuple[int, ...] = ()
    """Where among the Ck each displacement's kinds stand; -1: kind 0 everywhere."""
    gates: Tensor | None = None
    """uint8 [N, G, Cg, pixels]: in steps of 1 / 128."""
    gating: tuple[int, ...] = ()
    """Where among the Cg each displacement's gates stand; -1: none."""

    @property
    def gated(self) -> tuple[int, ...]:
        """The displacements that have gates."""
        return tuple(k for k, place in enumerate(self.gating) if place >= 0)

    def kinds_at(self, plan: Plan, image: Tensor, position: Tensor) -> Tensor:
        """uint8 [A, 2K]: kinds of the edges of sites at a position of an image (both int64 [A]), ahead and then behind."""
        found = self.pixels.new_zeros((len(image), 2 * len(self.kinded)), dtype=uint8)
        for k, place in enumerate(self.kinded):
            if place >= 0 and self.kinds is not None:
                for column, step in ((k, 0), (k + len(self.kinded), plan.displacements[k])):
                    found[:, column] = self.kinds[image, place, self.pixels[position - step]]
        return found

    def gates_at(self, plan: Plan, image: Tensor, position: Tensor) -> Tensor:
        """uint8 [A, 2, Kg, G]: as `kinds_at`, the gates of the displacements that have some."""
        ranks = 0 if self.gates is None else self.gates.shape[1]
        found = self.pixels.new_zeros((len(image), 2, len(self.gated), ranks), dtype=uint8)
        for j, k in enumerate(self.gated):
            for end, step in ((0, 0), (1, plan.displacements[k])):
                if self.gates is not None:
                    found[:, end, j] = self.gates[image, :, self.gating[k], self.pixels[position - step]]
        return found


@dataclass(frozen=True)
class Plan:
    """A batch of N images, or graphs, with R chains each, laid out for an engine.

    A chain's labels are a flat uint8 row of ``volume`` positions; a position where no site exists holds ``void`` (the number
    of labels). Slots are the sites of the padded bucket colour by colour, so a colour is a range of slots. The neighbour of
    position p in table ``classes[k]`` is p + ``displacements[k]`` (and p - it, seen from the other end). Of graphs, ``factors``
    says instead who a slot's neighbours are and which colour is its own.
    """

    num_labels: int
    volume: int
    positions: Tensor
    """int64 [S]: position of each slot."""
    color_bounds: tuple[int, ...]
    """Slot bounds of the color_bounds, K + 1 of them."""
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
    edges: EdgeData | None = None
    """What the images say of their edges; None for a model whose tables do not see the image."""
    factors: Factors | None = None
    """Neighbours and colours of graphs; None for a lattice."""

    @property
    def unit(self) -> int:
        """What a factor counts in `Engine.pair_counts`: 1, or the steps of a gate where there are some."""
        return contract.GATE_STEPS if self.factors is not None and self.factors.gated else 1

    @property
    def void(self) -> int:
        return self.num_labels

    @property
    def chains(self) -> int:
        return len(self.index) * self.replicas

    @property
    def num_kinds(self) -> int:
        """R, 1 for a model without kinds."""
        return 1 if self.edges is None else self.edges.num_kinds

    @property
    def form(self) -> tuple[int | None, int, tuple[int, ...], tuple[int, ...]]:
        """R or None, G, and where the displacements' kinds and gates stand: what sets models with the same classes apart."""
        edges = self.edges
        if edges is None:
            return None, 0, (), ()
        kinds = None if edges.kinds is None else edges.num_kinds
        gates = 0 if edges.gates is None else edges.gates.shape[1]
        return kinds, gates, edges.kinded if kinds else (), edges.gating if gates else ()

    @property
    def kinded(self) -> bool:
        """Whether tables have an axis of kinds."""
        return self.edges is not None and self.edges.kinds is not None


class Work(Protocol):
    """What an engine prepared: rounded energies and tables in a layout of its own."""


class Engine(Protocol):
    """The functions of an engine module. ``labels`` is uint8 ``[N, R, volume]``, ``count`` int64 ``[N]`` sweeps done,
    ``key`` the Philox key words, ``purpose`` rule 2's number, ``scale`` rule 3's factor."""

    break_even: float
    """Flips per site update below which the incremental update is the faster one."""

    def missing(self, device: torch.device, labels: int = FEWEST, arity: int = 0) -> str | None:
        """Why the engine cannot run on this device with so many labels, with the way to get it; None if it can.

        arity: of a graph's largest factor; 0 for a lattice."""

    def prepare(self, plan: Plan, logits: Tensor, tables: Tables, like: Work | None = None) -> Work:
        """Rounds logits ``[N, L, *shape]`` and tables (rule 1); like: work of the same ones where other sites are free."""

    def retable(self, work: Work, tables: Tables) -> Work:
        """The same work with other tables."""

    def initial(self, work: Work, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
        """Draws every free site that holds void from its unaries alone, in place."""

    def field(self, work: Work, labels: Tensor) -> Tensor:
        """What the incremental update keeps current: the energies of all free sites given their neighbours, or bounds on them.

        An empty one where the engine has no incremental update for a graph's factors: what is given it gathers."""

    def sweep(
        self, work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
        key: tuple[int, int], count: Tensor, purpose: int, bad: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Runs sweeps in place: by gather, or incrementally where a field is given. Flips, int64 ``[N, R]``.

        bad: bool ``[]``, true where nothing may be done, here and below; None: it is false."""

    def conditionals(
        self, work: Work, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Adds each free site's local conditional, averaged over replicas, to ``out`` float64 ``[N, S, L]``; returns the
        sum over free sites of the energy of their own label given the rest, float64 ``[N, R]``."""

    def average(
        self, work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
        key: tuple[int, int], count: Tensor, purpose: int, out: Tensor, bad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `sweep`, with `conditionals` after every sweep: flips, int64 ``[N, R]``, and what `conditionals` returned after
        each, float64 ``[N, R, sweeps]``. A site whose conditional stands need not be visited for it."""

    def pair_counts(self, plan: Plan, labels: Tensor) -> Tensor:
        """How often each pair of labels stands on an edge of each class, with kinds of each kind: int64, as the tables behind
        ``[N, R]``. Of graphs, how often each entry of the flat tables is read, a factor counting its gate's steps where
        `Plan.unit` is not 1."""

    def pair_errors(self, plan: Plan, data: Tensor, free: Tensor) -> Tensor:
        """`pair_counts` of ``data`` minus those of ``free``, summed over all chains: int64, as the tables."""

    def gated_errors(self, plan: Plan, data: Tensor, free: Tensor) -> Tensor:
        """As `pair_errors`, an edge counting its gate in steps of 1 / 128: int64 ``[G, Cg, L, L]``."""

    def soft_counts(self, plan: Plan, labels: Tensor, sites: Tensor, weights: Tensor) -> Tensor:
        """`engines.soft.soft_counts`."""

    def unary_errors(self, data: Tensor, free: Tensor, labels: int) -> Tensor:
        """How many replicas have each label in ``free`` less how many in ``data``, over R: float32 ``[N, L, *shape]``, of
        uint8 ``[N, R, *shape]`` with 255 in both where no pixel exists."""


def averaging(sweep: Callable[..., Tensor], conditionals: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`Engine.average` of an engine that visits every site anyway: its own `sweep` and `conditionals` in turns."""

    def average(
        work: Work, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
        key: tuple[int, int], count: Tensor, purpose: int, out: Tensor, bad: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        flips = labels.new_zeros(labels.shape[:2], dtype=int64)
        energies = labels.new_zeros((*labels.shape[:2], sweeps), dtype=float64)
        for done in range(sweeps):
            flips += sweep(work, labels, field, 1, scale, key, count + done, purpose, bad)
            energies[..., done] = conditionals(work, labels, field, scale, out, bad)
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


def find(name: str, device: torch.device, labels: int = FEWEST, arity: int = 0) -> tuple[str, Engine]:
    """The engine called ``name``, or for "auto" the first of `AUTOMATIC` that runs on ``device`` with so many labels.

    arity: of a graph's largest factor; 0 for a lattice. Raises ValueError for an unknown name and RuntimeError, saying how to
    get it, for a named engine that cannot run.
    """
    if name != "auto" and name not in NAMES:
        raise ValueError(f"engine: expected 'auto', {', '.join(map(repr, NAMES))}, got {name!r}")
    for candidate in AUTOMATIC.get(device.type, ELSEWHERE) if name == "auto" else (name,):
        engine = load(candidate)
        asked = (device, labels, arity) if arity else (device, labels)
        reason = engine if isinstance(engine, str) else engine.missing(*asked)
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
