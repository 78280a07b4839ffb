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
from tritoncrf.chains import ChainState
from tritoncrf.eager import Unopened, uncompiled, unopened
from tritoncrf.edge_inputs import Edges
from tritoncrf.engines import Tables
from tritoncrf.intake import Batch
from tritoncrf.interrupts import unbroken
from tritoncrf.layout import pack
from tritoncrf.monitor import TableWatch
from tritoncrf.outcome import Found, Terms, outcome
from tritoncrf.ranks import Meeting, Ranks, fingerprint
from tritoncrf.sampler import Sampler
from tritoncrf.store import ChainStore

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
        self.ignore_index, self.reduction, self.follows, self.drawn, self.group = ignore_index, reduction, follows, drawn, group
        self._watches: dict[str, TableWatch] = {}
        self._rates: dict[str, float | None] = {}
        self._met = 1

    @uncompiled
    def __call__(
        self, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None, sweeps: Tensor | None,
    ) -> Found:  # fmt: skip
        """Value, the fields of `Errors`, whether the call was bad, then the fields of `Statistics`.

        pairwise, gated: the tables; weight: of labels, float ``[L]``; flow: whether the gates want an error; each: a value for
        each image; visits, labels, sweeps: the loss's running number and the store's tensors, written in place. The rest as in
        `CRFLoss.forward`.
        """
        if self.chains is None and self.method == "pcd":
            raise ValueError("chains: expected a ChainStore in loss.chains, got None, as a deep copy of a loss has it")
        self._look_fresh()
        ranks = Ranks.of(self.group)
        if each and ranks.size > 1:
            raise ValueError(f"reduction: expected 'mean' or 'sum' on {ranks.size} ranks, got 'none'")
        if ranks.size != self._met:
            self._greet(ranks, pairwise, gated)
        store = None if self.chains is None or labels is None or sweeps is None else self.chains.over(labels, sweeps)
        if self.follows and store is not None:
            self.sampler.seed = store.seed
        with self.sampler.guard.call(self.sampler.crf.device):
            tables, edges = Tables(pairwise, gated), Edges(kinds, gates)
            terms = Terms(self.sampler, self.reduction, self.sweeps, weight, flow)
            return self._sample(terms, logits, tables, target, index, sizes, mask, clamp, edges, visits, store, ranks)

    def _sample(
        self, terms: Terms, logits: Tensor, tables: Tables, target: Tensor, index: Tensor | None, sizes: Tensor | None,
        mask: Tensor | None, clamp: Tensor | None, edges: Edges, visits: Tensor, store: ChainStore | None, ranks: Ranks,
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
            index = self._chains_of(store, index, shape, sizes)
            meeting = ranks.meet(index)
            kept, store = store, store.stage(meeting)
            count = store.sweeps[index]
            places = store.places(index, shape) if self.method == "pcd" or store.latent else None
        else:
            meeting = ranks.meet(batch.plan.index)
            index = visits + meeting.places
        batch = batch.at(index, count)
        drawn = torch.full_like(known, contract.VOID)[:, None].expand(-1, replicas, *shape)
        known = known[:, None].expand_as(drawn)
        start = drawn
        if places is not None and store is not None and self.method == "pcd":
            start = self._kept(store.fetch(places), present)
        if clamp is not None:
            start = torch.where(clamp[:, None], known, start)
        first = drawn
        if places is not None and store is not None and store.latent:
            first = self._kept(store.fetch(places, data=True), present)
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
        found = outcome(terms, batch, tables, known, counted, data, free, bad, ranks)
        good = ~found[5]
        with unbroken():
            if store is not None:
                self._keep(store, meeting, places, (data.labels, free.labels), good)
                if places is not None:
                    kept.settle(store, meeting)
            else:
                visits += torch.where(good, len(meeting.index), 0)
        for name, parameter in sampler.crf.named_parameters():
            told = name.removeprefix("parametrizations.").split(".")[0]
            self._watches.setdefault(name, TableWatch(f"crf.{told}")).look(parameter)
        return found

    def _greet(self, ranks: Ranks, pairwise: Tensor, gated: Tensor | None) -> None:
        """At the first visit: all ranks' losses, stores and tables must be alike; a seed that was drawn becomes the first's."""
        chains = self.chains
        seed = chains.seed if self.follows and chains is not None else self.sampler.seed
        sizes = torch.zeros(1, dtype=torch.int64, device="cpu") if chains is None else chains.sizes
        tables = pairwise if gated is None else torch.cat([pairwise.flatten(), gated.flatten()])
        told = {
            "sweeps": self.sweeps, "method and reduction": METHODS.index(self.method) + 2 * REDUCTIONS.index(self.reduction),
            "chains' sizes": fingerprint(sizes), "tables": fingerprint(tables.detach().float().view(torch.int32)),
            "seed": 0 if self.drawn else seed - (seed >> 63 << 64),
        }  # fmt: skip
        first, low = contract.key_of(seed)
        numbers = torch.tensor([*told.values(), first, low], dtype=torch.int64, device=pairwise.device)
        everyone = [part.tolist() for part in ranks.gather(numbers)]
        for place, name in enumerate(told):
            odd = next((rank for rank, part in enumerate(everyone) if part[place] != everyone[0][place]), None)
            if odd is not None:
                raise ValueError(f"{name}: expected the same on every rank, got other ones on rank {odd} than on rank 0")
        if self.drawn:
            self.sampler.seed = int(everyone[0][-2]) | int(everyone[0][-1]) << 32
            if self.follows and chains is not None:
                chains.seed = self.sampler.seed
        self._met = ranks.size

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
        chains.rate = self._rates.get(phase)
        self.sampler.advance(chains, self.sweeps)
        self._rates[phase] = chains.rate
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

    def _chains_of(self, store: ChainStore, index: Tensor | None, shape: tuple[int, ...], sizes: Tensor | None) -> Tensor:
        """The positions in the store of a batch's images, int64 ``[N]``."""
        guard, device = self.sampler.guard, self.sampler.crf.device
        if store.device != device:
            raise ValueError(f"chains: expected a ChainStore on {device} (that of the CRF's tables), got {store.device}")
        validation.writable("chains", store.labels)
        if index is None:
            raise ValueError("index: expected integers [N], each image's position in the data set, got None")
        given = index
        unknown = (given < 0) | (given >= len(store))
        guard.require(~unknown, f"index: expected positions from 0 to {len(store) - 1}", lambda: f"{int(given[unknown][0])}")
        index = given.clamp(0, len(store) - 1)
        kept = store.sizes[index]
        now: tuple[int | Tensor, ...] = shape if sizes is None else sizes.unbind(1)
        moved = torch.stack([own.ne(n) for own, n in zip(kept.unbind(1), now, strict=True)]).any(0)
        guard.require(
            ~moved,
            "sizes: expected each image at the size its chain has",
            lambda: f"{list(shape) if sizes is None else sizes[moved][0].tolist()} for image {int(given[moved][0])} "
            f"of {kept[moved][0].tolist()}",
        )
        return index

    def _kept(self, labels: Tensor, present: Tensor) -> Tensor:
        """Labels that a store held, looked at."""
        most = self.sampler.crf.num_labels
        foreign = (labels >= most) & (labels != contract.VOID)
        self.sampler.guard.require(
            ~(foreign & present[:, None]), f"chains: expected a store of chains of {most} labels",
            lambda: f"label {int(labels[foreign][0])} in it at {validation.first(foreign)} of the batch",
        )  # fmt: skip
        return labels.masked_fill(foreign, contract.VOID)

    def _keep(
        self, store: ChainStore, meeting: Meeting, places: Tensor | None, samples: tuple[Tensor, Tensor], good: Tensor
    ) -> None:
        keep = good & ~meeting.again
        mine = meeting.own(keep)
        if places is not None and self.method == "pcd":
            store.put(places, samples[1], mine)
        if places is not None and store.latent:
            store.put(places, samples[0], mine, data=True)
        store.advance(meeting.index, self.sweeps, keep)


OPERATOR = unopened(Visit)
"""Whether this torch's compilers can carry a visit: else a compiled step breaks its graph at the loss."""

if OPERATOR:

    @torch.library.custom_op("tritoncrf::visit", mutates_args=("visits", "labels", "sweeps"))
    def visit(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None, sweeps: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """A visit of a compiled step."""
        given = (target, index, sizes, mask, clamp, kinds, gates, weight, flow, each, visits, labels, sweeps)
        # An operator may not return what shares memory with another of its results.
        value, unary, tables, weighed, flowing, *told = loss(logits, pairwise, gated, *given)
        return value, unary, tables, weighed, flowing.clone(), *told  # type: ignore[return-value]

    @visit.register_fake
    def _(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        weight: Tensor | None, flow: bool, each: bool, visits: Tensor, labels: Tensor | None, sweeps: Tensor | None,
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
