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
from tritoncrf.inputs import Batch
from tritoncrf.layout import pack
from tritoncrf.model_protocol import CRF
from tritoncrf.sampler import Sampler


class Sample(NamedTuple):
    """Of a phase."""

    chains: ChainState
    labels: Tensor
    """uint8 [N, R, *shape], 255 where no pixel exists."""
    path: Path | None = None
    """Of a phase that was swept."""


def both(
    sampler: Sampler[CRF], batch: Batch, chains: list[Tensor | None], labelled: Tensor, known: Tensor, clamp: Tensor | None,
    sweeps: int, rates: dict[str, Rate], halves: bool = False, fast: Tables | None = None,
) -> tuple[Sample, Sample]:  # fmt: skip
    """Samples of the data phase and of the free one.

    chains: where the free phase and the data phase begin, uint8 ``[N, R, *shape]``, None for at the data; labelled, known: as
    `inputs.targets` gave them; clamp: bool ``[N, *shape]``; rates: of flips, by phase, of earlier visits;
    halves: whether the free phase's path is marked in its middle too; fast: rounded tables that the free phase moves under in
    place of the batch's.
    """

    def phase(start: Tensor, name: str, held: Tensor | None, like: ChainState | None = None) -> tuple[ChainState, Path]:
        own = batch if fast is None or name != "free" else replace(batch, tables=fast, version=None)
        # What was prepared for other tables is no help.
        found = sampler.begin(own, start, name, held, like if own is batch else None)
        # As many labels change as at the last visit, most likely: the update need not be found out anew.
        found.rate = rates.setdefault(name, found.rate)
        marks, flips = list[Tensor](), torch.zeros_like(found.flips)
        for part in (sweeps // 2, sweeps - sweeps // 2) if halves and name == "free" else (sweeps,):
            marks.append(found.rows.clone())
            sampler.advance(found, part)
            flips = found.flips if len(marks) == 1 else flips + found.flips
        found.flips = flips
        return found, Path(sampler.engine, found, tuple(marks))

    known = known[:, None].expand(-1, batch.plan.replicas, *known.shape[1:])
    start, first = chains
    if start is not None and clamp is not None:
        start = torch.where(clamp[:, None], known, start)
    first = known if first is None else torch.where(labelled[:, None], known, first)
    # Whether a GPU's images have latent pixels is not asked: that would stall its stream. A clamped pixel has a label.
    if batch.present.device.type == "cpu" and not bool(batch.present.gt(labelled).any()):
        free, path = phase(first if start is None else start, "free", clamp)
        data = replace(free, rows=pack(free.plan, free.layout, known))
        return Sample(data, known), _sample_of(batch, free, clamp, path)
    # A clamped pixel without a label is a fault that may be heard of later: it is no pixel's label in both phases.
    held = labelled if clamp is None else labelled | clamp
    completed = _sample_of(batch, phase(first, "data", held)[0], clamp)
    free, path = phase(completed.labels if start is None else start, "free", clamp, completed.chains)
    return completed, _sample_of(batch, free, clamp, path)


def _sample_of(batch: Batch, chains: ChainState, clamp: Tensor | None, path: Path | None = None) -> Sample:
    # Where all pixels exist and are free each has a label after a sweep; nobody writes into a phase's rows any more.
    whole = batch.whole and clamp is None
    labels = chains.layout.crop(chains.rows, chains.shape) if whole else chains.images
    return Sample(chains, labels, path)
