"""Which samples does a visit compare? The data phase's y, the labelled pixels' completion, and the free phase's y'.

Kirillov et al. 2016, Algorithm 1. Both begin on one batch, laid out once; what sets them apart is which sites are free.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tritoncrf.chains import ChainState
from tritoncrf.flip_rate import Rate
from tritoncrf.inputs import Batch
from tritoncrf.layout import pack
from tritoncrf.model_protocol import CRF
from tritoncrf.objective import PLAIN, Objective
from tritoncrf.sampler import Sampler


class Sample(NamedTuple):
    """Of a phase."""

    chains: ChainState
    labels: Tensor
    """uint8 [N, R, *shape], 255 where no pixel exists."""
    contexts: list[Tensor] = []  # noqa: RUF012
    """Of the free phase, rows as in the chains, after those of the sweeps that were asked for."""


def sample_phases(
    sampler: Sampler[CRF], batch: Batch, chains: list[Tensor | None], labelled: Tensor, known: Tensor, clamp: Tensor | None,
    sweeps: int, rates: dict[str, Rate], objective: Objective = PLAIN, counted: bool = False,
) -> tuple[Sample, Sample]:  # fmt: skip
    """Samples of the data phase and of the free one.

    chains: where the free phase and the data phase begin, uint8 ``[N, R, *shape]``, None for at the data; labelled, known: as
    `inputs.check_target` gave them; clamp: bool ``[N, *shape]``; rates: of flips, by phase, of earlier visits; objective:
    says what the free phase samples by, and which contexts it keeps; counted: whether it is known that so many sweeps are left.
    """
    favoured, contexts = objective.favoured(batch.logits, known, labelled), list[Tensor]()
    own = batch if favoured is None else replace(batch, logits=favoured)

    def phase(start: Tensor, name: str, held: Tensor | None, like: ChainState | None = None) -> ChainState:
        found = sampler.begin(own if name == "free" else batch, start, name, held, like)
        # As many labels change as at the last visit, most likely: the update need not be found out anew.
        found.rate = rates.setdefault(name, found.rate)
        if not counted:
            sampler.check_sweep_limit(found, sweeps)
        stops = objective.stops(sweeps) if name == "free" else []
        if not stops:
            sampler.advance(found, sweeps)
            return found
        flips = torch.zeros_like(found.flips)
        for before, stop in itertools.pairwise([0, *stops]):
            sampler.advance(found, stop - before)
            flips += found.flips
            # The last one's rows nobody writes into any more.
            contexts.append(found.rows if stop == sweeps else found.rows.clone())
        found.flips = flips
        return found

    known = known[:, None].expand(-1, batch.plan.replicas, *known.shape[1:])
    start, first = chains
    if start is not None and clamp is not None:
        start = torch.where(clamp[:, None], known, start)
    first = known if first is None else torch.where(labelled[:, None], known, first)
    # Whether a GPU's images have latent pixels is not asked: that would stall its stream. A clamped pixel has a label.
    if batch.present.device.type == "cpu" and not bool(batch.present.gt(labelled).any()):
        free = phase(first if start is None else start, "free", clamp)
        data = replace(free, rows=pack(free.plan, free.layout, known))
        return Sample(data, known), _sample_of(batch, free, clamp, contexts)
    # A clamped pixel without a label is a fault that may be heard of later: it is no pixel's label in both phases.
    held = labelled if clamp is None else labelled | clamp
    completed = _sample_of(batch, phase(first, "data", held), clamp)
    like = completed.chains if favoured is None else None
    free = phase(completed.labels if start is None else start, "free", clamp, like)
    return completed, _sample_of(batch, free, clamp, contexts)


def _sample_of(batch: Batch, chains: ChainState, clamp: Tensor | None, contexts: list[Tensor] | None = None) -> Sample:
    # Where all pixels exist and are free each has a label after a sweep; nobody writes into a phase's rows any more.
    whole = batch.whole and clamp is None
    labels = chains.layout.crop(chains.rows, chains.shape) if whole else chains.images
    return Sample(chains, labels, contexts or [])
