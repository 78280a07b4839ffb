"""What happens at a visit? A batch's two phases and the error they leave, as one operator that a compiler does not open.

The data phase gives the labelled pixels' completion y, the free phase the sample y' (Kirillov et al. 2016, Algorithm 1). What a
visit changes, chains and counts, it changes in place, in tensors that the operator names, so that neither a compiled nor a
captured step loses or repeats it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.chains import ChainState, ChainStore
from tritoncrf.eager import Unopened, uncompiled, unopened
from tritoncrf.edge_inputs import Edges
from tritoncrf.engines import Tables
from tritoncrf.gradient import errors, unary_gap
from tritoncrf.intake import Batch
from tritoncrf.layout import pack
from tritoncrf.monitor import TableWatch
from tritoncrf.sampler import Sampler

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Visit(metaclass=Unopened):
    """A loss's sampler, chains and options (all as of `CRFLoss`); called, it samples both phases of a batch.

    follows: whether the seed is that of the chains.
    """

    def __init__(
        self, sampler: Sampler, chains: ChainStore | None, method: str, sweeps: int, ignore_index: int, reduction: str,
        follows: bool,
    ) -> None:  # fmt: skip
        self.sampler, self.chains, self.method, self.sweeps = sampler, chains, method, sweeps
        self.ignore_index, self.reduction, self.follows = ignore_index, reduction, follows
        self._watches: dict[str, TableWatch] = {}

    @uncompiled
    def __call__(
        self, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        flow: bool, visits: Tensor, labels: Tensor | None, sweeps: Tensor | None,
    ) -> Found:  # fmt: skip
        """Value, the fields of `Errors`, whether the call was bad, then the fields of `Statistics`.

        pairwise, gated: the tables; flow: whether the gates want an error; visits,
        labels, sweeps: the loss's running number and the store's tensors, written in place. The rest as in `CRFLoss.forward`.
        """
        store = None if self.chains is None or labels is None or sweeps is None else self.chains.over(labels, sweeps)
        if self.chains is None and self.method == "pcd":
            raise ValueError("chains: expected a ChainStore in loss.chains, got None, as a deep copy of a loss has it")
        self._look_fresh()
        if self.follows and store is not None:
            self.sampler.seed = store.seed
        with self.sampler.guard.call(self.sampler.crf.device):
            tables, edges = Tables(pairwise, gated), Edges(kinds, gates)
            return self._sample(logits, tables, target, index, sizes, mask, clamp, edges, flow, visits, store)

    def _sample(
        self, logits: Tensor, tables: Tables, target: Tensor, index: Tensor | None, sizes: Tensor | None,
        mask: Tensor | None, clamp: Tensor | None, edges: Edges, flow: bool, visits: Tensor,
        store: ChainStore | None,
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
            count = store.sweeps[index]
            places = store.places(index, shape) if self.method == "pcd" or store.latent else None
        else:
            index = visits + batch.plan.index
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
        bad = sampler.guard.flag(present.device)
        samples = data.labels, free.labels
        if store is not None:
            self._keep(store, index, places, samples, ~bad)
        else:
            visits += torch.where(bad, 0, len(logits))
        for name, parameter in sampler.crf.named_parameters():
            told = name.removeprefix("parametrizations.").split(".")[0]
            self._watches.setdefault(name, TableWatch(f"crf.{told}")).look(parameter)
        counted = labelled if clamp is None else labelled & ~clamp
        return self._found(batch, tables, known, counted, data, free, samples, bad, flow)

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
        self, store: ChainStore, index: Tensor, places: Tensor | None, samples: tuple[Tensor, Tensor], good: Tensor
    ) -> None:
        # An image that stands twice in a batch was drawn twice with the same random numbers: the first one's chain stays.
        order = torch.arange(len(index), device=index.device)
        again = ((index[:, None] == index) & (order[:, None] > order)).any(1)
        keep = good & ~again
        if places is not None and self.method == "pcd":
            store.put(places, samples[1], keep)
        if places is not None and store.latent:
            store.put(places, samples[0], keep, data=True)
        store.advance(index, self.sweeps, keep)

    def _found(
        self, batch: Batch, tables: Tables, known: Tensor, counted: Tensor, data: ChainState, free: ChainState,
        samples: tuple[Tensor, Tensor], bad: Tensor, flow: bool,
    ) -> Found:  # fmt: skip
        y, drawn = samples
        found = errors(self.sampler, data, free, tables, samples, flow)
        labelled = counted.sum()
        factor = 1.0 / labelled.clamp(min=1) if self.reduction == "mean" else found.logits.new_ones(())
        factor = torch.where(labelled > 0, factor, 0.0)
        gap = unary_gap(batch.logits, y, drawn) + (found.pairwise * tables.pairwise.detach()).sum(dtype=torch.float64)
        if tables.gated is not None:
            gap = gap + (found.gated * tables.gated.detach()).sum(dtype=torch.float64)
        value = torch.where(bad, torch.nan, gap * factor).float()
        updates = free.plan.free.sum()
        right = ((drawn == known) & counted[:, None]).sum()
        factor = torch.where(bad, 0.0, factor)
        return (
            value,
            found.logits.mul_(factor),
            found.pairwise * factor,
            found.gated * factor,
            found.gates * factor,
            bad,
            free.flips.sum() / (updates * free.replicas * self.sweeps).clamp(min=1),
            (gap / labelled.clamp(min=1)).float(),
            right / (labelled * free.replicas).clamp(min=1),
            labelled,
        )


OPERATOR = unopened(Visit)
"""Whether this torch's compilers can carry a visit: else a compiled step breaks its graph at the loss."""

if OPERATOR:

    @torch.library.custom_op("tritoncrf::visit", mutates_args=("visits", "labels", "sweeps"))
    def visit(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        flow: bool, visits: Tensor, labels: Tensor | None, sweeps: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """A visit of a compiled step."""
        given = (target, index, sizes, mask, clamp, kinds, gates, flow, visits, labels, sweeps)
        # An operator may not return what shares memory with another of its results.
        value, unary, tables, weighed, flowing, *told = loss(logits, pairwise, gated, *given)
        return value, unary, tables, weighed, flowing.clone(), *told  # type: ignore[return-value]

    @visit.register_fake
    def _(
        loss: Visit, logits: Tensor, pairwise: Tensor, gated: Tensor | None, target: Tensor, index: Tensor | None,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, kinds: Tensor | None, gates: Tensor | None,
        flow: bool, visits: Tensor, labels: Tensor | None, sweeps: Tensor | None,
    ) -> Found:  # fmt: skip
        dtypes = (torch.float32, torch.bool, torch.float32, torch.float32, torch.float32, torch.int64)
        value, bad, *told = (logits.new_empty((), dtype=dtype) for dtype in dtypes)
        shapes = [logits.shape, pairwise.shape, (0,) if gated is None else gated.shape]
        shapes.append((0,) if gated is None or gates is None or not flow else gates.shape)
        unary, tables, weighed, flowing = (logits.new_empty(shape, dtype=torch.float32) for shape in shapes)
        flips, gap, accuracy, labelled = told
        return value, unary, tables, weighed, flowing, bad, flips, gap, accuracy, labelled
