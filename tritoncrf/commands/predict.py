"""Which labels has a new image? `tritoncrf predict`: palette PNGs, and marginals and entropies if wanted."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tritoncrf import plots, validation
from tritoncrf.batches import Batch
from tritoncrf.commands import data, models
from tritoncrf.commands.data import Source
from tritoncrf.datasets import FolderDataset, LabeledSamples


def run(arguments: argparse.Namespace) -> int:
    """Writes the labels of every image to ``--out``."""
    for option, least in (("sweeps", 1), ("burn_in", 0), ("replicas", 1)):
        # Before the folder is made: what cannot be drawn leaves nothing behind.
        validation.whole(option, getattr(arguments, option), least)
    saved = models.read(arguments.model)
    is_npz = Path(arguments.input).suffix.lower() == ".npz"
    source = Source(
        npz=arguments.input if is_npz else None, images=None if is_npz else arguments.input,
        files=arguments.files, split_key=arguments.split_key or saved.settings.split_key, limit=arguments.limit,
    )  # fmt: skip
    images = data.read(source, arguments.split, saved.kind)
    out = models.new_folder(arguments.out)
    trainer = models.trainer(saved, named=arguments.network, device=arguments.device, engine=arguments.engine)
    data.check(images)
    names = _names(images)
    out.mkdir(parents=True, exist_ok=True)
    for name, item in zip(names, data.loader(images), strict=True):
        batch = Batch.of(item, trainer.device)
        _, marginals = trainer.answer(
            batch, sweeps=arguments.sweeps, burn_in=arguments.burn_in, replicas=arguments.replicas, seed=arguments.seed
        )
        plots.save_label_png(out / f"{name}.png", marginals[0].argmax(0))
        if arguments.marginals:
            np.savez_compressed(out / f"{name}.npz", marginals=marginals[0].half().cpu().numpy())
        if arguments.entropy:
            Image.fromarray(_entropy(marginals[0])).save(out / f"{name}.entropy.png")
    print(f"labels of {len(images)} images are in {out}")
    return 0


def _names(images: LabeledSamples) -> list[str]:
    if isinstance(images, FolderDataset):
        return images.stems
    places: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.int64]] = getattr(images, "indices", np.arange(len(images)))
    return [f"{int(place):06d}" for place in places]


def _entropy(marginals: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Grey levels of marginals ``[L, H, W]``: 0 where one label is certain, 255 where all are as likely."""
    nats = -torch.xlogy(marginals, marginals).sum(0)
    share = (nats / math.log(len(marginals))).clamp(0, 1)
    grey: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = (share * 255).round().byte().cpu().numpy()
    return grey
