"""Which samples does a visit compare? The data phase's y, the labelled pixels' completion, and the free phase's y'.

Kirillov et al. 2016, Algorithm 1. Both begin on one batch, laid out once; what sets them apart is which sites are free.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tritoncrf.chains import ChainState
from tritoncrf.energies import Path
from tritoncrf.engines import Tables
from tritoncrf.flip_rate import Rate
from tritoncrf.inputs import Batch, Known
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
    path: Path | None = None
    """Of a phase that was swept."""


def sample_phases(
    sampler: Sampler[CRF], batch: Batch, chains: list[Tensor | None], known: Known, sweeps: int, rates: dict[str, Rate], *,
    objective: Objective = PLAIN, counted: bool = False, halves: bool = False, fast: Tables | None = None,
) -> tuple[Sample, Sample]:  # fmt: skip
    """Samples of the data phase and of the free one.

    chains: where the free phase and the data phase begin, uint8 ``[N, R, *shape]``, None for at the data; rates: of
    flips, by phase, of earlier visits; objective: says what the free phase samples by, and which contexts it keeps; counted:
    whether it is known that so many sweeps are left; halves: whether the free phase's path is marked in its middle too; fast:
    rounded tables that the free phase moves under in place of the batch's.
    """
    favoured, contexts = objective.favoured(batch.logits, known), list[Tensor]()
    labelled, clamp = known.labelled, known.clamp
    free_batch = batch if favoured is None else replace(batch, logits=favoured)
    if fast is not None:
        free_batch = replace(free_batch, tables=fast, version=None)

    def phase(start: Tensor, name: str, held: Tensor | None, like: ChainState | None = None) -> tuple[ChainState, Path]:
        free = name == "free"
        # What was prepared for other logits or tables is no help.
        given = free_batch if free else batch
        found = sampler.begin(given, start, name, held, like if given is batch else None)
        # As many labels change as at the last visit, most likely: the update need not be found out anew.
        found.rate = rates.setdefault(name, found.rate)
        if not counted:
            sampler.check_sweep_limit(found, sweeps)
        stops, middle = (objective.stops(sweeps), [sweeps // 2] if halves else []) if free else ([], [])
        # Where the free phase begins, its fall of energy is counted from.
        marks, flips, done = [found.rows.clone()] if free else [], found.flips, 0
        for stop in sorted({*stops, *middle, sweeps} - {0}):
            sampler.advance(found, stop - done)
            flips, done = flips + found.flips if done else found.flips, stop
            if stop in stops:
                # The last one's rows nobody writes into any more.
                contexts.append(found.rows if stop == sweeps else found.rows.clone())
            if stop in middle:
                marks.append(found.rows.clone())
        found.flips = flips
        return found, Path(sampler.engine, found, tuple(marks))

    labels = known.labels[:, None].expand(-1, batch.plan.replicas, *labelled.shape[1:])
    start, first = chains
    if start is not None and clamp is not None:
        start = torch.where(clamp[:, None], labels, start)
    first = labels if first is None else torch.where(labelled[:, None], labels, first)
    # Whether a GPU's images have latent pixels is not asked: that would stall its stream. A clamped pixel has a label.
    if batch.present.device.type == "cpu" and not bool(batch.present.gt(labelled).any()):
        free, path = phase(first if start is None else start, "free", clamp)
        data = replace(free, rows=pack(free.plan, free.layout, labels))
        return Sample(data, labels), _sample_of(batch, free, clamp, path, contexts)
    # A clamped pixel without a label is a fault that may raise later: it is no pixel's label in both phases.
    held = labelled if clamp is None else labelled | clamp
    completed = _sample_of(batch, phase(first, "data", held)[0], clamp)
    free, path = phase(completed.labels if start is None else start, "free", clamp, completed.chains)
    return completed, _sample_of(batch, free, clamp, path, contexts)


def _sample_of(
    batch: Batch, chains: ChainState, clamp: Tensor | None, path: Path | None = None, contexts: list[Tensor] | None = None
) -> Sample:
    # Where all pixels exist and are free each has a label after a sweep; nobody writes into a phase's rows any more.
    whole = batch.whole and clamp is None
    labels = chains.layout.crop(chains.rows, chains.shape) if whole else chains.images
    return Sample(chains, labels, contexts or [], path)
