"""What happens at a visit? A batch's two phases and the error they leave, as one operator that a compiler does not open.

The data phase gives the labelled pixels' completion y, the free phase the sample y' (Kirillov et al. 2016, Algorithm 1). What a
visit changes, chains and counts, it changes in place, in tensors that the operator names, so that neither a compiled nor a
captured step loses or repeats it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.agreement import agree
from tritoncrf.chains import ChainState
from tritoncrf.eager import Unopened, uncompiled, unopened
from tritoncrf.edge_inputs import Edges
from tritoncrf.engines import Tables
from tritoncrf.intake import Batch
from tritoncrf.interrupts import unbroken
from tritoncrf.layout import pack
from tritoncrf.lookup import find, looked_at
from tritoncrf.monitor import TableWatch
from tritoncrf.outcome import Found, Terms, outcome
from tritoncrf.ranks import Ranks, fingerprint
from tritoncrf.rates import Rate
from tritoncrf.sampler import Sampler
from tritoncrf.store import ChainStore
from tritoncrf.targets import TargetWatch

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
        self, sampler: Sampler, chains: ChainStore | None, method: str, sweeps: int, ignore_index: int, reduction: str,
        follows: bool, drawn: bool, group: ProcessGroup | None,
    ) -> None:  # fmt: skip
        self.sampler, self.chains, self.method, self.sweeps = sampler, chains, method, sweeps
        self.ignore_index, self.reduction, self.follows, self.drawn = ignore_index, reduction, follows, drawn
        # In `Ranks`, which knows how to be copied and pickled with a group.
        self._group = Ranks(group)
        self._watches: dict[str, TableWatch] = {}
        self._targets = TargetWatch()
        self._rates: dict[str, Rate] = {}
        # What was seen alike on all ranks: how many they were, which store, and how often it was loaded.
        self._met: tuple[int, int, int] | None = None

    @uncompiled
    def __call__(
        self, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, view: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None,
        sweeps: Tensor | None,
    ) -> Found:  # fmt: skip
        """Value, the fields of `Errors`, whether the call was bad, then the fields of `Statistics`.

        pairwise, gated: the tables; weight: of labels, float ``[L]``; view: of chains, int64 ``[N, 2, d]``; flow: whether the
        gates want an error; each: a value for each image; visits, labels, sweeps: the loss's running number and the store's
        tensors, written in place. The rest as in `CRFLoss.forward`.
        """
        if self.chains is None and self.method == "pcd":
            raise ValueError("chains: expected a ChainStore in loss.chains, got None, as a deep copy of a loss has it")
        self._look_fresh()
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
        with self.sampler.guard.call(self.sampler.crf.device):
            tables, edges = Tables(pairwise, gated), Edges(kinds, gates)
            terms = Terms(self.sampler, self.reduction, self.sweeps, weight, flow)
            return self._sample(terms, logits, tables, target, index, sizes, mask, clamp, edges, view, visits, store, ranks)

    def _sample(
        self, terms: Terms, logits: Tensor, tables: Tables, target: Tensor, index: Tensor | None, sizes: Tensor | None,
        mask: Tensor | None, clamp: Tensor | None, edges: Edges, view: Tensor | None, visits: Tensor, store: ChainStore | None,
        ranks: Ranks,
    ) -> Found:  # fmt: skip
        sampler, replicas = self.sampler, 1 if store is None else store.replicas
        batch = sampler.lay_out(
            logits, None, sizes=sizes, mask=mask, replicas=replicas, count=None, edges=edges, tables=tables
        )
        present, shape = batch.present, tuple(batch.present.shape[1:])
        if clamp is not None:
            clamp = validation.shaped("clamp", clamp, [tuple(present.shape)], [torch.bool], present.device)
        labelled, known = self.targets(batch, target, clamp)
        index, count, places = self._positions(index, batch), None, None
        if store is not None:
            index, view = find(sampler.guard, store, sampler.crf.device, index, shape, sizes, view)
            meeting = ranks.meet(index, self._met != self._state(ranks))
            kept, store = store, store.stage(meeting)
            count = store.sweeps[index]
            places = store.places(index, shape, view, sizes) if self.method == "pcd" or store.latent else None
        else:
            meeting = ranks.meet(batch.plan.index, self._met != self._state(ranks))
            index = visits + meeting.places
        batch = batch.at(index, count)
        drawn = torch.full_like(known, contract.VOID)[:, None].expand(-1, replicas, *shape)
        known = known[:, None].expand_as(drawn)
        start = drawn
        if places is not None and store is not None and self.method == "pcd":
            start = looked_at(sampler.guard, store.fetch(places), present, sampler.crf.num_labels)
        if clamp is not None:
            start = torch.where(clamp[:, None], known, start)
        first = drawn
        if places is not None and store is not None and store.latent:
            first = looked_at(sampler.guard, store.fetch(places, data=True), present, sampler.crf.num_labels)
        first = torch.where(labelled[:, None], known, first)
        held = labelled if clamp is None else labelled | (clamp & present)
        free = None
        # Whether a GPU's images have latent pixels is not asked: that would stall its stream.
        if present.device.type == "cpu" and not bool((present & ~held).any()):
            free = self._phase(batch, first if self.method == "cd" else start, "free", clamp)
            data = replace(free, rows=pack(free.plan, free.layout, known, present))
        else:
            data = self._phase(batch, first, "data", held)
        if free is None:
            free = self._phase(batch, data.labels if self.method == "cd" else start, "free", clamp)
        counted = labelled if clamp is None else labelled & ~clamp
        bad = sampler.guard.flag(present.device)
        if ranks.size > 1 and meeting.changed:
            # Heard of only now, but before anything is written.
            self._meet(ranks, *tables, terms.weight, visits)
        samples, parcel = (data.labels, free.labels), None
        if store is not None and places is not None and kept is not store:
            # On a stage nothing is lost: whether all is well on every rank the sums will tell.
            self._put(store, places, samples, meeting.own(~meeting.again))
            parcel = kept.parcel(store, meeting)
        found, parcels = outcome(terms, batch, tables, known, counted, data, free, bad, ranks, parcel)
        good = ~found[5]
        with unbroken():
            if store is None:
                visits += torch.where(good, len(meeting.index), 0)
            else:
                keep = good & ~meeting.again
                if places is not None and kept is store:
                    self._put(store, places, samples, keep)
                elif places is not None:
                    kept.settle(store, meeting, parcels, good)
                kept.advance(meeting.index, self.sweeps, keep)
                # On a GPU neither is looked at: that would stall its stream.
                if self.method == "pcd" and view is None and target.device.type == "cpu" and bool(good):
                    self._targets.look(target, index, sizes)
        for name, parameter in sampler.crf.named_parameters():
            told = name.removeprefix("parametrizations.").split(".")[0]
            self._watches.setdefault(name, TableWatch(f"crf.{told}")).look(parameter)
        return found

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
        told = {
            "sweeps": self.sweeps, "method and reduction": METHODS.index(self.method) + 2 * REDUCTIONS.index(self.reduction),
            "chains' sizes": 0 if chains is None else fingerprint(chains.sizes),
            "chains' replicas, latent and shared": 0 if chains is None
            else 4 * chains.replicas + 2 * chains.latent + (chains.share is not None),
            "chains' sweeps": 0 if chains is None else fingerprint(chains.sweeps),
            "chains": 0 if chains is None or chains.share is not None else fingerprint(chains.labels),
            "visits": int(visits), "ignore_index": self.ignore_index,
            "weight": 0 if weight is None else fingerprint(weight), "tables": fingerprint(tables.detach().float()),
            "seed": 0 if self.drawn else seed - (seed >> 63 << 64),
        }  # fmt: skip
        first = agree(ranks, told, seed, pairwise.device)
        if self.drawn:
            self.sampler.seed = first
            if self.follows and chains is not None:
                chains.seed = first
        self._met = self._state(ranks)

    def _look_fresh(self) -> None:
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

    def _phase(self, batch: Batch, start: Tensor, phase: str, clamp: Tensor | None) -> ChainState:
        chains = self.sampler.begin(batch, start, phase, clamp)
        # As many labels change as at the last visit, most likely: the way need not be found out anew.
        chains.rate = self._rates.setdefault(phase, chains.rate)
        self.sampler.advance(chains, self.sweeps)
        return chains

    def targets(self, batch: Batch, target: Tensor, clamp: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which pixels are labelled (bool), and their labels (uint8, 255 elsewhere), both ``[N, *shape]``."""
        guard, present, labels = self.sampler.guard, batch.present, batch.plan.labels
        target = validation.shaped("target", target, [tuple(present.shape)], validation.INTEGERS, present.device).long()
        validation.label_values(guard, "target", target, labels, present, also=self.ignore_index)
        labelled = present & (target != self.ignore_index) & (target >= 0) & (target < labels)
        known = torch.where(labelled, target, contract.VOID).to(torch.uint8)
        chosen = batch.logits.gather(1, torch.where(labelled, target, 0)[:, None])[:, 0]
        forbidden = labelled & torch.isneginf(chosen)
        guard.require(~forbidden, "target: expected labels that the logits allow",
                      lambda: f"{int(target[forbidden][0])} with logit -inf at {validation.first(forbidden)}")  # fmt: skip
        if clamp is not None:
            lost = clamp & present & ~labelled
            guard.require(~lost, "clamp: expected a label in target at every clamped pixel",
                          lambda: f"ignore_index at {validation.first(lost)}")  # fmt: skip
        return labelled, known

    def _positions(self, index: Tensor | None, batch: Batch) -> Tensor | None:
        if index is None:
            return None
        index = validation.tensor("index", index).to(batch.count.device, non_blocking=True)
        return validation.shaped("index", index, [tuple(batch.count.shape)], validation.INTEGERS, index.device).long()

    def _put(self, store: ChainStore, places: Tensor, samples: tuple[Tensor, Tensor], keep: Tensor) -> None:
        if self.method == "pcd":
            store.put(places, samples[1], keep)
        if store.latent:
            store.put(places, samples[0], keep, data=True)


OPERATOR = unopened(Visit)
"""Whether this torch's compilers can carry a visit: else a compiled step breaks its graph at the loss."""

if OPERATOR:

    @torch.library.custom_op("tritoncrf::visit", mutates_args=("visits", "labels", "sweeps"))
    def visit(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, view: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None,
        sweeps: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """A visit of a compiled step."""
        given = (target, index, sizes, mask, clamp, kinds, gates, weight, view, flow, each, visits, labels, sweeps)
        # An operator may not return what shares memory with another of its results.
        value, unary, tables, weighed, flowing, *told = loss(logits, pairwise, gated, *given)
        return value, unary, tables, weighed, flowing.clone(), *told  # type: ignore[return-value]

    @visit.register_fake
    def _(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, view: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None,
        sweeps: Tensor | None,
    ) -> Found:  # fmt: skip
        dtypes = (torch.bool, torch.float32, torch.float32, torch.float32, torch.int64)
        bad, *told = (logits.new_empty((), dtype=dtype) for dtype in dtypes)
        images = [len(logits)] if each else []
        value = logits.new_empty(images, dtype=torch.float32)
        shapes = [logits.shape, (*images, *pairwise.shape), (*images, *((0,) if gated is None else gated.shape))]
        shapes.append((0,) if gated is None or gates is None or not flow else gates.shape)
        unary, tables, weighed, flowing = (logits.new_empty(shape, dtype=torch.float32) for shape in shapes)
        flips, gap, accuracy, labelled = told
        return value, unary, tables, weighed, flowing, bad, flips, gap, accuracy, labelled
