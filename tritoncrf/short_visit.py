"""How does a visit take few launches? On a GPU kernels look at a plain batch and tell what it leaves, in two launches each.

A plain batch is one whose pixels all exist and are free, of a lattice model whose tables do not see the image, on one rank, its
chains of the batch's own shape. What is sampled, required and written is what `Visit` does for any batch, with the same
sentences; only sums of float64 numbers, the value's and the energy gap's, are added in another order.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.autograd.graph import increment_version

from tritoncrf import contract, validation
from tritoncrf.chain_lookup import continued, positions
from tritoncrf.engines import Tables, triton_visit
from tritoncrf.flip_rate import Rate
from tritoncrf.inputs import ALLOWED, Batch, Known, LossInputs, check_batch
from tritoncrf.interrupts import unbroken
from tritoncrf.model_protocol import CRF
from tritoncrf.objective import PLAIN
from tritoncrf.phases import sample_phases
from tritoncrf.reduction import Outputs, Terms
from tritoncrf.sampler import Sampler
from tritoncrf.statistics import Tally
from tritoncrf.store import ChainStore


def applies(terms: Terms, logits: Tensor, store: ChainStore | None) -> bool:
    """Whether kernels can take over of a batch whose pixels all exist and are free, on one rank."""
    sampler = terms.sampler
    sampler.follow_device()
    # What raises at once is looked at by the host.
    if sampler.engine_name != "triton" or sampler.guard.waits(sampler.device):
        return False
    if terms.objective != PLAIN or terms.reduction == "none" or terms.weight is not None or not isinstance(logits, Tensor):
        return False
    return store is None or (not store.latent and store.uniform == logits.shape[2:] and store.images() is not None)


def short_visit(
    terms: Terms, given: LossInputs, tables: Tables, ignore_index: int, continues: bool, visits: Tensor,
    store: ChainStore | None, rates: dict[str, Rate],
) -> tuple[Outputs, Tally]:  # fmt: skip
    """A visit of a batch that `applies` named; arguments and errors as of `Visit`.

    continues: whether the free phase goes on where the store's chains are.
    """
    sampler, replicas, sweeps = terms.sampler, 1 if store is None else store.replicas, terms.sweeps
    plan, layout, present, none = check_batch(
        sampler.guard, sampler.crf, given.logits, None, None, None, replicas, None, given.edges, values=False
    )
    logits, frame = given.logits.detach(), layout.frame(tuple(present.shape[1:]))
    target = validation.shaped("target", given.target, [tuple(present.shape)], validation.INTEGERS, present.device)
    index = positions(given.index, len(logits), present.device)
    if store is None:
        index, kept, done = None, None, None
    else:
        index, done = continued(store, sampler.device, index), store.sweeps
        kept = store.images() if continues else None
    pairwise = tables.pairwise
    looked = triton_visit.look(logits, target, pairwise, index, visits, done, kept, sweeps, ignore_index)
    sampler.guard.take(sentences(sampler, store, ignore_index), looked.holds)
    # The engine rounds the tables.
    batch = Batch(logits, present, layout, plan, none, tables, None, whole=True).at(looked.index, looked.count)
    known = Known(looked.known, looked.labelled, None, looked.labelled)
    data, free = sample_phases(sampler, batch, [looked.kept, None], known, sweeps, rates, counted=True)
    pairs = sampler.engine.pair_errors(free.chains.plan, data.chains.rows, free.chains.rows)
    rows, mean = (data.chains.rows, free.chains.rows), terms.reduction == "mean"
    running = visits if store is None else None
    with unbroken():
        told = triton_visit.tell(
            looked, logits, *rows, frame.places, pairs, pairwise, kept, done, running, sweeps, mean
        )
        # What a kernel wrote torch has not seen.
        increment_version([part for part in (None if store is None else store.labels, done, running) if part is not None])
    empty = told.unary.new_empty(0)
    right = free.labels, looked.known, looked.labelled
    assert free.path is not None
    # Figures are made when somebody asks, and the optimizer writes into the tables themselves.
    path = replace(free.path, chains=replace(free.chains, tables=Tables(pairwise.detach().clone(), None)))
    flips = free.chains.flips
    tally = Tally(told.labelled, told.whole, right, free.chains.plan.free, flips, replicas, sweeps, path)
    return Outputs(told.value, told.unary, told.pairwise, empty, empty, told.factor, told.bad), tally


def sentences(sampler: Sampler[CRF], store: ChainStore | None, ignore_index: int) -> tuple[str, ...]:
    """What is required, in the order of `tritoncrf.kernels.looks`; what cannot fail stands there all the same."""
    labels, images = sampler.crf.num_labels, 0 if store is None else len(store)
    return (
        "logits: expected finite numbers or -inf for a forbidden label, one finite at least per pixel",
        "pairwise: expected finite table entries",
        f"pairwise: expected 2 * sum of each class's largest |entry| of at most {contract.TABLE_BOUND:g}",
        f"target: expected labels from 0 to {labels - 1} (or {ignore_index})",
        f"index: expected positions from 0 to {images - 1}",
        f"chains: expected a store of chains of {labels} labels",
        f"sweeps: expected at most 2^{contract.SWEEP_BITS} over an image's whole life",
        ALLOWED,
    )
