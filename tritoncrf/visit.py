"""What happens at a visit? A batch's two phases and the error they leave.

The data phase gives the labelled pixels' completion y, the free phase the sample y' (Kirillov et al. 2016, Algorithm 1). What a
visit changes, chains and counts, it changes in place (`visit_operator` says how compiled and captured steps keep that).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.agreement import agree
from tritoncrf.chain_lookup import check_index_and_view, check_labels, positions, write_chains
from tritoncrf.compiling import Unopened, uncompiled
from tritoncrf.course import Course
from tritoncrf.edge_inputs import Edges
from tritoncrf.engines import Tables
from tritoncrf.flip_rate import Rate
from tritoncrf.graphs import FactorGraph
from tritoncrf.inputs import LossInputs, check_target
from tritoncrf.interrupts import unbroken
from tritoncrf.model_protocol import CRF
from tritoncrf.monitor import TableWatch
from tritoncrf.objective import Objective
from tritoncrf.phases import sample_phases
from tritoncrf.ranks import Ranks, fingerprint
from tritoncrf.reduction import Outputs, Terms, reduced
from tritoncrf.sampler import Sampler
from tritoncrf.short_visit import applies, short_visit
from tritoncrf.statistics import Tally
from tritoncrf.store import ChainStore
from tritoncrf.target_watch import TargetWatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

METHODS = ("pcd", "cd")
REDUCTIONS = ("mean", "sum", "none")


class Visit(metaclass=Unopened):
    """A loss's sampler, chains and options (all as of `CRFLoss`); called, it samples both phases of a batch.

    follows: whether the seed is that of the chains; drawn: whether nobody named it; group: of the ranks, None: the initialised
    one.
    """

    def __init__(
        self, sampler: Sampler[CRF], chains: ChainStore | None, method: str, sweeps: int, ignore_index: int, reduction: str,
        follows: bool, drawn: bool, group: ProcessGroup | None, objective: Objective,
    ) -> None:  # fmt: skip
        self.objective = objective
        self.sampler, self.chains, self.method, self.sweeps = sampler, chains, method, sweeps
        self.ignore_index, self.reduction, self.follows, self.drawn = ignore_index, reduction, follows, drawn
        # In `Ranks`, which knows how to be copied and pickled with a group.
        self._group = Ranks(group)
        self._watches: dict[str, TableWatch] = {}
        self._targets = TargetWatch()
        # Of the labels that this visit wrote last.
        self._written: tuple[int, int] | None = None
        self._rates: dict[str, Rate] = {}
        self.course = Course()
        # What was seen alike on all ranks: how many they were, which store, and how often it was loaded.
        self._met: tuple[int, int, int] | None = None

    @uncompiled
    def __call__(
        self, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, view: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None,
        sweeps: Tensor | None, graph: FactorGraph | None = None, course: Course | None = None,
    ) -> tuple[Outputs, Tally]:  # fmt: skip
        """What autograd is told, and the tally.

        pairwise, gated: the tables; weight: of labels, float ``[L]``; view: of chains, int64 ``[N, 2, d]``; flow: whether the
        gates want an error; each: a value for each image; visits, labels, sweeps: the loss's running number and the store's
        tensors, written in place, as are those of the course. The rest as in `CRFLoss.forward`, of which a graph's gates are
        `CRF.flows`.
        """
        crf = self.sampler.crf
        # A graph's nodes pass for the pixels of a row: from here on there are images alone.
        fold = None if graph is None else crf.fold(graph, sizes=sizes, kinds=kinds, view=view)
        if fold is not None:
            logits, target, mask, clamp = fold.inputs(crf.num_labels, crf.device, logits, target, mask, clamp)
            sizes = fold.sizes
        if self.chains is None and self.method == "pcd":
            raise ValueError("chains: expected a ChainStore in loss.chains, got None, as a deep copy of a loss has it")
        self._check_fresh()
        self.course = course or Course()
        self.sweeps = self.course.sweeps(self.sweeps)
        ranks = Ranks.of(self.group)
        if self.chains is not None and self.chains.share is not None:
            theirs = self.chains.share.ranks
            if (theirs.rank, theirs.size) != (ranks.rank, ranks.size):
                raise ValueError(
                    f"process_group: expected that of the shared chains, rank {theirs.rank} of {theirs.size}, got rank "
                    f"{ranks.rank} of {ranks.size}"
                )
        if each and ranks.size > 1:
            raise ValueError(f"reduction: expected 'mean' or 'sum' on {ranks.size} ranks, got 'none'")
        if ranks.size > 1 and self._met is None:
            self._meet(ranks, pairwise, gated, weight, visits)
        store = None if self.chains is None or labels is None or sweeps is None else self.chains.over(labels, sweeps)
        if self.follows and store is not None:
            self.sampler.seed = store.seed
        written, self._written = self._written, None
        with self.sampler.guard.call(crf.device):
            # Kept from here on: had the guard raised, kept labels would be checked again.
            self._written = written
            tables, edges = Tables(pairwise, gated), (Edges(kinds, gates) if graph is None else graph)
            terms = Terms(self.sampler, self.reduction, self.sweeps, weight, flow, clamp is not None, self.objective)
            given = LossInputs(logits, target, index, sizes, mask, clamp, edges, view)
            outputs, tally = self._sample(terms, given, tables, visits, store, ranks)
        return outputs if fold is None else outputs._replace(logits=fold.back(outputs.logits)), tally

    def _sample(
        self, terms: Terms, given: LossInputs, tables: Tables, visits: Tensor, store: ChainStore | None, ranks: Ranks
    ) -> tuple[Outputs, Tally]:
        logits, target, index, edges = given.logits, given.target, given.index, given.edges
        sizes, mask, clamp, view = given.sizes, given.mask, given.clamp, given.view
        sampler, replicas = self.sampler, 1 if store is None else store.replicas
        plain = isinstance(edges, Edges) and all(part is None for part in (sizes, mask, clamp, view, *edges))
        if plain and ranks.size == 1 and not self.course and applies(terms, logits, store):
            goes_on = self.method == "pcd"
            short = short_visit(terms, given, tables, self.ignore_index, goes_on, visits, store, self._rates)
            self._written = _version(store.labels) if goes_on and store is not None else self._written
            return self._watched(short)
        batch = sampler.lay_out(
            logits, None, sizes=sizes, mask=mask, replicas=replicas, count=None, edges=edges, tables=tables
        )
        batch = replace(batch, whole=sizes is None and mask is None)
        guard, present, shape = sampler.guard, batch.present, tuple(batch.present.shape[1:])
        # What is not looked at at once is seen from the energies then, where each labelled pixel's is asked.
        known = check_target(guard, batch, target, clamp, self.ignore_index, later=not guard.waits(present.device))
        index, count, indices = positions(index, len(batch.count), present.device), None, None
        if store is not None:
            limits = batch.layout.frame(shape).limits
            index, view = check_index_and_view(guard, store, sampler.crf.device, index, limits, shape, sizes, view)
            meeting = ranks.meet(index, self._met != self._state(ranks))
            kept, store = store, store.stage(meeting)
            count = store.sweeps[index]
            if self.method == "pcd" or store.latent:
                lines = view is None and store.uniform == shape and store.images() is not None
                indices = index if lines else store.pixel_indices(index, shape, view, sizes)
        else:
            meeting = ranks.meet(batch.plan.index, self._met != self._state(ranks))
            # The numbers of one rank's images are at hand.
            index = visits + (batch.plan.index if ranks.size == 1 else meeting.offsets)
        batch = batch.at(index, count)
        chains: list[Tensor | None] = [None, None]
        if indices is not None and store is not None:
            chains = [
                store.fetch(indices, data=second) if there else None
                for second, there in ((False, self.method == "pcd"), (True, store.latent))
            ]
            self._check_kept(kept.labels, [part for part in chains if part is not None], ranks)
        begun = chains
        if not batch.whole and indices is not None:
            # In a mask's holes, and where sizes are not the chains' own, which raises later, labels may be kept.
            beyond = ~present[:, None]
            begun = [None if part is None else part.masked_fill(beyond, contract.VOID) for part in chains]
        data, free = sample_phases(
            sampler, batch, begun, known, self.sweeps, self._rates, objective=self.objective,
            halves=self.course.pace is not None, fast=self.course.tables(sampler, tables, batch.plan),
        )  # fmt: skip
        if ranks.size > 1 and meeting.changed:
            # Known only now, but before anything is written.
            self._meet(ranks, *tables, terms.weight, visits)
        samples = free.labels, data.labels

        def parcel() -> Tensor | None:
            if store is None or indices is None or kept is store:
                return None
            # On a stage nothing is lost: whether all is well on every rank the sums will tell.
            for second, part in enumerate(chains):
                if part is not None:
                    store.put(indices, samples[second], meeting.own(~meeting.again), data=bool(second))
            return kept.parcel(store, meeting)

        outputs, tally, parcels = reduced(terms, batch, tables, known, data, free, ranks, parcel)
        good = ~outputs.bad
        with unbroken():
            self.course.move(outputs.pairwise, tally, good)
            if store is None:
                visits.add_(good, alpha=len(meeting.index))
            elif kept is not store:
                if indices is not None:
                    kept.settle(store, meeting, parcels, good)
                kept.advance(meeting.index, self.sweeps, good & ~meeting.again)
            else:
                if indices is not None:
                    write_chains(store, indices, samples, chains, index, good, moved=view is not None)
                    self._written = _version(kept.labels)
                # Of an image that stands twice both write the same.
                store.sweeps.index_copy_(0, index, batch.count.add(good, alpha=self.sweeps))
            # On a GPU neither is looked at: that would stall its stream.
            kept_alike = store is not None and self.method == "pcd" and view is None
            if kept_alike and target.device.type == "cpu" and bool(good):
                self._targets.observe(target, index, sizes)
        return self._watched((outputs, tally))

    def _watched(self, found: tuple[Outputs, Tally]) -> tuple[Outputs, Tally]:
        for name, parameter in self.sampler.crf.named_parameters():
            attribute = name.removeprefix("parametrizations.").split(".")[0]
            self._watches.setdefault(name, TableWatch(f"crf.{attribute}")).observe(parameter)
        return found

    def _check_kept(self, labels: Tensor | None, chains: list[Tensor], ranks: Ranks) -> None:
        """Looks at kept labels, on a GPU where somebody else may have written them since the last visit."""
        guard = self.sampler.guard
        ours = labels is not None and ranks.size == 1 and self._written is not None and self._written == _version(labels)
        for part in chains:
            if guard.waits(part.device) or not ours:
                check_labels(guard, part, self.sampler.crf.num_labels)

    @property
    def group(self) -> ProcessGroup | None:
        return self._group.group

    def _state(self, ranks: Ranks) -> tuple[int, int, int]:
        chains = self.chains
        return ranks.size, 0 if chains is None else id(chains), 0 if chains is None else chains.loads

    def _meet(
        self, ranks: Ranks, pairwise: Tensor, gated: Tensor | None, weight: Tensor | None, visits: Tensor
    ) -> None:
        """Looks once whether all ranks' losses, stores and tables are alike; a seed that was drawn becomes the first's."""
        chains = self.chains
        seed = chains.seed if self.follows and chains is not None else self.sampler.seed
        tables = pairwise if gated is None else torch.cat([pairwise.flatten(), gated.flatten()])
        settings = {
            "sweeps": self.sweeps, "method and reduction": METHODS.index(self.method) + 2 * REDUCTIONS.index(self.reduction),
            "chains' sizes": 0 if chains is None else fingerprint(chains.sizes),
            "chains' replicas, latent and shared": 0 if chains is None
            else 4 * chains.replicas + 2 * chains.latent + (chains.share is not None),
            "chains' sweeps": 0 if chains is None else fingerprint(chains.sweeps),
            "chains": 0 if chains is None or chains.share is not None else fingerprint(chains.labels),
            "visits": int(visits), "ignore_index": self.ignore_index,
            "weight": 0 if weight is None else fingerprint(weight), "objective": fingerprint(self.objective.numbers),
            "fast": 0 if self.course.fast is None else fingerprint(self.course.fast[1]),
            "tables": fingerprint(tables.detach().float()),
            "seed": 0 if self.drawn else seed - (seed >> 63 << 64),
        }  # fmt: skip
        first = agree(ranks, settings, seed, pairwise.device)
        if self.drawn:
            self.sampler.seed = first
            if self.follows and chains is not None:
                chains.seed = first
        self._met = self._state(ranks)

    def _check_fresh(self) -> None:
        """Warns once of chains that start anew under tables that were loaded."""
        if self.chains is None or self.method != "pcd":
            return
        if self.chains.fresh and self.sampler.crf.loaded:
            warnings.warn(
                "chains: expected those that the loaded tables were learned with (they are in loss.state_dict()), got fresh "
                "ones, which lag behind the model at first",
                stacklevel=5,
            )
        self.chains.fresh = False


def _version(labels: Tensor | None) -> tuple[int, int] | None:
    """What changes when a torch operation writes into a tensor."""
    return None if labels is None or labels.is_inference() else (labels.data_ptr(), labels._version)
