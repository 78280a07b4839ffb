"""What is a sample? Chromatic Gibbs sweeps over a batch of images, on whichever engine runs.

One sweep visits every free site once, colour by colour, and redraws its label from the local conditional (Kirillov et al.
2016, eq. 13 and 16, Algorithm 2). Labels follow the bit contract: they depend on logits, tables, seed, image index, replica
and count of sweeps alone, not on engine, update, batch, padding or threads.
"""

from __future__ import annotations

import time
from typing import Generic

import torch
from torch import Tensor

from tritoncrf import contract, engines, validation
from tritoncrf.chains import ChainState
from tritoncrf.compiling import uncompiled
from tritoncrf.edge_inputs import Edges, Given
from tritoncrf.engines import Tables
from tritoncrf.graphs import FactorGraph
from tritoncrf.inputs import Batch, check_batch, check_logits, starting_labels
from tritoncrf.interrupts import unbroken
from tritoncrf.layout import pack, with_clamps
from tritoncrf.model_kinds import Model
from tritoncrf.model_protocol import CRF
from tritoncrf.validation import Guard

UPDATES = ("auto", "gather", "incremental")
# Sweeps between looks at the flip rate, on a CPU where a look costs nothing: first, and once the update has settled.
STRIDE, LONGEST = 4, 64
# Seconds that a piece may take, and a Ctrl-C wait.
PATIENCE = 0.25


class Sampler(Generic[Model]):
    """Gibbs sampling of the labels of a `GridCRF`, or a `FactorCRF`.

    engine: "auto" | "torch" | "numba" | "triton"; a named one that cannot run raises RuntimeError saying how to get it.
    seed: of the random numbers, taken modulo 2^64; None takes 64 bits from torch's generator.
    update: "gather" sums the neighbours' table rows at every site; "incremental" keeps every site's energies current and pays
    for flips only; "auto" switches on the flip rate of an earlier call. The labels are the same.
    validate: True checks values at once on a GPU too (it waits); None checks them at once on a CPU only.

    >>> sampler = Sampler(GridCRF(3, Neighborhood.nearest(8)), seed=0)
    >>> chains = sampler.init(torch.zeros(2, 3, 8, 9))
    >>> sampler.run(chains, sweeps=5).labels.shape
    torch.Size([2, 1, 8, 9])
    """

    def __init__(
        self, crf: Model, engine: str = "auto", seed: int | None = 0, *, update: str = "auto", validate: bool | None = None
    ) -> None:
        if not isinstance(crf, CRF):
            raise TypeError(f"crf: expected a GridCRF or a FactorCRF, got {type(crf).__name__}")
        self.crf: Model = crf
        self.seed, self.update = contract.seed_of(seed), validation.choice("update", update, UPDATES)
        self.requested = engine
        self.device = crf.device
        self.guard = Guard(True if validate else validate)
        self.engine_name, self.engine = engines.find(engine, crf.device, crf.num_labels, crf.arity)

    def __getstate__(self) -> dict[str, object]:
        # A module cannot be pickled; the copy finds its engine anew.
        return {name: value for name, value in vars(self).items() if name != "engine"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self.engine_name, self.engine = engines.find(self.requested, self.crf.device, self.crf.num_labels, self.crf.arity)

    def follow_device(self) -> torch.device:
        """The CRF's device, on which an engine is found anew where the CRF has moved."""
        if self.crf.device != self.device:
            self.engine_name, self.engine = engines.find(self.requested, self.crf.device, self.crf.num_labels, self.crf.arity)
            self.device = self.crf.device
        return self.device

    def __repr__(self) -> str:
        kept, nbytes = self.crf.caches
        return (
            f"Sampler({self.crf.extra_repr()}, engine={self.engine_name!r}, update={self.update!r}, seed={self.seed}, "
            f"{kept} layouts cached, {nbytes} bytes)"
        )

    @uncompiled
    def init(
        self, logits: Tensor, labels: Tensor | None = None, index: Tensor | None = None, *, sizes: Tensor | None = None,
        mask: Tensor | None = None, clamp: Tensor | None = None, replicas: int = 1, phase: str = "inference",
        count: Tensor | None = None, kinds: Tensor | None = None, gates: Tensor | None = None,
        graph: FactorGraph | None = None,
    ) -> ChainState:  # fmt: skip
        """Starts R chains on each of N images.

        logits: float ``[N, L, *shape]``, the negated unary energies; -inf forbids a label.
        labels: integers ``[N, *shape]`` or ``[N, R, *shape]`` to start from, 255 where a site is to be drawn; None draws all
        sites from softmax(logits).
        index: int64 ``[N]`` positions in the data set, which name the images' random numbers; None: the place in the batch.
        sizes: integers ``[N, d]``, the images' own sizes where the batch is padded; mask: bool ``[N, *shape]``, False where no
        pixel exists; clamp: bool ``[N, *shape]``, True where a site keeps its label.
        phase: "free", "data" or "inference": which of an image's streams of random numbers; count: int64 ``[N]`` sweeps the
        image's chain has already done, None for 0.
        kinds: uint8 ``[N, Ck, *shape]``, gates: float ``[N, G, Cg, *shape]`` in [0, 1], for a model that has them: of the edges
        of each class, at the edge's first end (`GridCRF`); `tritoncrf.edges` makes them from images.
        graph: for a `FactorCRF`, a batch of G graphs in the place of N images: then logits ``[V, L]``, labels ``[V]`` or ``[R,
        V]``, mask and clamp ``[V]``, index and count ``[G]``, and sizes, kinds and gates None.

        Raises ValueError or TypeError with name, expected and got, before anything is drawn.
        """
        with self.guard.call(self.crf.device):
            validation.choice("phase", phase, tuple(contract.PURPOSES))
            fold = self.crf.fold(graph, sizes=sizes, kinds=kinds, gates=gates)
            if fold is not None:
                logits, labels = fold.logits(logits, self.crf.num_labels, self.crf.device), fold.labels("labels", labels)
                sizes, mask, clamp = fold.sizes, fold.each("mask", mask), fold.each("clamp", clamp)
            edges = Edges(kinds, gates) if graph is None else graph
            batch = self.lay_out(logits, index, sizes=sizes, mask=mask, replicas=replicas, count=count, edges=edges)
            if clamp is not None:
                clamp = validation.shaped("clamp", clamp, [tuple(batch.present.shape)], [torch.bool], batch.logits.device)
                if labels is None:
                    raise ValueError("labels: expected the labels that clamped sites keep, got None")
            start = starting_labels(self.guard, labels, batch.present, clamp, batch.plan)
            return self.begin(batch, start, phase, clamp)

    def lay_out(
        self, logits: Tensor, index: Tensor | None, *, sizes: Tensor | None, mask: Tensor | None, replicas: int,
        count: Tensor | None, edges: Given, tables: Tables | None = None,
    ) -> Batch:  # fmt: skip
        """Looks at a batch and the tables once, whatever phases `begin` on them; arguments and errors as of `init`, graphs as
        rows of pixels.

        tables: where they are not to be read from the CRF.
        """
        self.follow_device()
        version = self.crf.version if tables is None else None
        plan, layout, present, count = check_batch(self.guard, self.crf, logits, index, sizes, mask, replicas, count, edges)
        rounded = self.crf.rounded(self.guard, self.crf.tables if tables is None else tables, plan)
        return Batch(logits.detach(), present, layout, plan, count, rounded, version)

    def begin(
        self, batch: Batch, start: Tensor, phase: str, clamp: Tensor | None, like: ChainState | None = None
    ) -> ChainState:
        """Chains of a laid out batch; start: uint8 ``[N, R, *shape]``, labels or 255; clamp: bool ``[N, *shape]`` or None;
        like: chains begun on it before."""
        plan, purpose = with_clamps(batch.plan, clamp), contract.PURPOSES[phase]
        work = self.engine.prepare(plan, batch.logits, batch.tables, None if like is None else like.work)
        rows = pack(plan, batch.layout, start)
        self.engine.initial(work, rows, contract.key_of(self.seed), batch.count, purpose)
        flips = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        cpu = rows.device.type == "cpu"
        sites = (int(plan.free.sum()) if cpu else len(plan.index) * start[0, 0].numel()) * plan.replicas
        return ChainState(
            plan, batch.layout, tuple(start.shape[2:]), batch.logits, work, batch.tables, rows, batch.count.clone(), flips,
            purpose, sites, version=batch.version,
        )  # fmt: skip

    @uncompiled
    def run(self, chains: ChainState, sweeps: int, *, beta: float = 1.0, logits: Tensor | None = None) -> ChainState:
        """Moves the chains ``sweeps`` sweeps on, in place, at inverse temperature ``beta`` (0 to 1e6); returns them.

        logits: new ones of the same shape, only when they changed; changed tables are noticed (on a GPU by their version
        counter, which neither a write through ``.data`` nor a replayed CUDA graph moves). ``chains.flips`` then tells how many
        labels changed. Raises ValueError or TypeError before any chain moves.
        """
        with self.guard.call(self.crf.device):
            scale = self._check_run(chains, sweeps, beta)
            with chains.alone():
                self._update_tables(chains, logits)
                self._sweep(chains, int(sweeps), scale, bad=self._deferred_fault())
            return chains

    def advance(self, chains: ChainState, sweeps: int) -> None:
        """As `run`, for chains begun in this very call: nothing is checked, and a deferred fault is the caller's."""
        self._sweep(chains, sweeps, contract.scale_of(1.0))

    def check_sweep_limit(self, chains: ChainState, sweeps: int) -> None:
        """Requires that so many sweeps are left."""
        expected = f"sweeps: expected at most 2^{contract.SWEEP_BITS} over an image's whole life"
        left = chains.count <= (1 << contract.SWEEP_BITS) - sweeps
        self.guard.require(left, expected, lambda: f"{sweeps} more after {int(chains.count.max())}")

    def _check_run(self, chains: ChainState, sweeps: int, beta: float) -> float:
        """Rule 3's factor, once chains, sweeps and beta are checked."""
        self._check_chains(chains)
        validation.whole("sweeps", sweeps, 0, 1 << contract.SWEEP_BITS)
        scale = contract.scale_of(validation.beta(beta))
        # Last: it may leave a check that raises later, which what raises at once must not.
        self.check_sweep_limit(chains, sweeps)
        return scale

    def _deferred_fault(self) -> Tensor | None:
        """Whether a check that is still on the device has failed: chains must not move then; None if all is checked."""
        return None if self.guard.waits(self.device) else self.guard.flag(self.device)

    def _sweep(
        self, chains: ChainState, sweeps: int, scale: float, out: Tensor | None = None, bad: Tensor | None = None
    ) -> list[Tensor]:  # fmt: skip
        """Sweeps in pieces, the update chosen before each; with ``out``, conditionals are added to it and energies returned."""
        energies, parts, done = list[Tensor](), list[Tensor](), 0
        # Every look costs a call of the engine: few, once the update is settled. Nor is a Ctrl-C heard before a piece is done.
        cpu, watch = chains.rows.device.type == "cpu", self.update == "auto"
        stride = STRIDE if chains.rate.value is None or not watch else LONGEST
        while done < sweeps:
            step = min(sweeps - done, stride) if cpu else sweeps - done
            started = time.monotonic()
            self._choose_update(chains)
            where, key = (chains.work, chains.rows, chains.field), contract.key_of(self.seed)
            with unbroken():
                if out is None:
                    moved = self.engine.sweep(*where, step, scale, key, chains.count, chains.purpose, bad)
                else:
                    moved, energy = self.engine.average(*where, step, scale, key, chains.count, chains.purpose, out, bad)
                    energies.append(energy)
                chains.count += step if bad is None else torch.where(bad, 0, step)
            parts.append(moved)
            done += step
            stride = min(2 * stride, LONGEST) if time.monotonic() - started < PATIENCE else max(stride // 2, 1)
            if watch:
                chains.rate.observe(moved, step * chains.sites)
        # On a GPU there is one part, and nothing to add up.
        flips = sum(parts[1:], start=parts[0]) if parts else torch.zeros_like(chains.flips)
        chains.flips = flips if bad is None else torch.where(bad, chains.flips, flips)
        return energies

    @uncompiled
    def conditionals(self, chains: ChainState, out: Tensor, *, beta: float = 1.0) -> Tensor:
        """Adds every free site's local conditional (eq. 16), averaged over replicas, to ``out`` float64 ``[N, S, L]``.

        S is ``chains.plan.positions``' length; returns the sum of the sites' own conditional energies, float64 ``[N, R]``.
        """
        self._check_chains(chains)
        validation.totals(out, (*chains.plan.free.shape, self.crf.num_labels), self.crf.device)
        scale = contract.scale_of(validation.beta(beta))
        with self.guard.call(self.crf.device), chains.alone():
            self._update_tables(chains, None)
            return self.engine.conditionals(chains.work, chains.rows, chains.field, scale, out)

    @uncompiled
    def average(self, chains: ChainState, sweeps: int, out: Tensor, *, beta: float = 1.0) -> Tensor:
        """`run`, with `conditionals` after every sweep added to ``out``: what they return, float64 ``[N, R, sweeps]``.

        The same numbers to rounding, in less time where few labels change. Raises as both do, before any chain moves.
        """
        self._check_chains(chains)
        validation.totals(out, (*chains.plan.free.shape, self.crf.num_labels), self.crf.device)
        with self.guard.call(self.crf.device):
            scale = self._check_run(chains, sweeps, beta)
            with chains.alone():
                self._update_tables(chains, None)
                energies = self._sweep(chains, int(sweeps), scale, out, self._deferred_fault())
            return torch.cat(energies, -1) if energies else out.new_zeros((*chains.flips.shape, 0))

    def pair_counts(self, chains: ChainState) -> Tensor:
        """How often each pair of labels stands on an edge of each class: int64 ``[N, R, C, L, L]``."""
        self._check_chains(chains)
        return self.engine.pair_counts(chains.plan, chains.rows)

    def _check_chains(self, chains: ChainState) -> None:
        if not isinstance(chains, ChainState):
            raise TypeError(f"chains: expected what Sampler.init returned, got {type(chains).__name__}")
        got = self.crf.foreign(chains.plan, chains.layout)
        if got is not None:
            raise ValueError(f"chains: expected chains of {self.crf.extra_repr()}, got {got}")
        validation.writable("chains", chains.count)

    def _choose_update(self, chains: ChainState) -> None:
        """Builds or drops the field: the update of the next sweeps."""
        low = chains.rate.value is not None and chains.rate.value < self.engine.break_even
        if self.update == "incremental" or (self.update == "auto" and low):
            if chains.field is None:
                chains.field = self.engine.field(chains.work, chains.rows)
        else:
            chains.field = None

    def _update_tables(self, chains: ChainState, logits: Tensor | None) -> None:
        version = self.crf.version
        # On a CPU a look at the values costs little and sees every change.
        same = self.device.type != "cpu" and version is not None and version == chains.version
        if same and logits is None and not validation.capturing(self.device):
            return
        given = self.crf.tables
        if logits is None and chains.seen is not None and given.equal(chains.seen):
            return
        tables = self.crf.rounded(self.guard, given, chains.plan)
        seen = given.copy() if self.device.type == "cpu" and self.guard.waits(self.device) else None
        if logits is not None:
            logits = check_logits(self.guard, self.crf, chains, logits)
        if not self.guard.waits(self.device):
            # A fault that the host does not know of yet must not get into what the engine prepared.
            bad = self.guard.flag(self.device)
            tables = chains.tables.where(bad, tables)
            logits = None if logits is None else torch.where(bad, chains.logits.to(logits.dtype), logits)
        if logits is not None:
            chains.work, chains.logits = self.engine.prepare(chains.plan, logits, tables), logits.detach()
        elif self.device.type != "cpu" or not tables.equal(chains.tables):
            # A GPU is not asked whether the tables changed: that would stall the stream.
            chains.work = self.engine.retable(chains.work, tables)
        else:
            tables = chains.tables
        chains.field = chains.field if tables is chains.tables and logits is None else None
        chains.tables, chains.seen, chains.version = tables, seen, version
