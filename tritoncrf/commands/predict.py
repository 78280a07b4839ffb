"""Which labels has a new image? `tritoncrf predict`: palette PNGs or volumes, and marginals and entropies if wanted."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tritoncrf import plots, validation
from tritoncrf.batches import Batch
from tritoncrf.commands import census, data, models
from tritoncrf.commands.data import Source
from tritoncrf.commands.models import Run
from tritoncrf.datasets import FolderDataset, LabeledSamples, VolumeDataset, volumefiles


def run(arguments: argparse.Namespace) -> int:
    """Writes the labels of every image to ``--out``."""
    for option, least in (("sweeps", 1), ("burn_in", 0), ("replicas", 1)):
        # Before the folder is made: what cannot be drawn leaves nothing behind.
        validation.whole(option, getattr(arguments, option), least)
    saved = models.read(arguments.model)
    images = data.read(_source(arguments, saved), arguments.split, saved.kind)
    out = models.new_folder(arguments.out)
    files = [_files(out, name, ending, arguments) for name, ending in _names(images)]
    _check_files(files)
    trainer = models.trainer(saved, named=arguments.network, device=arguments.device, engine=arguments.engine)
    census.take(images)
    out.mkdir(parents=True, exist_ok=True)
    for place, (own, item) in enumerate(zip(files, data.loader(images), strict=True)):
        batch = Batch.of(item, trainer.device)
        _, marginals = trainer.marginals(
            batch, sweeps=arguments.sweeps, burn_in=arguments.burn_in, replicas=arguments.replicas, seed=arguments.seed
        )
        own["labels"].parent.mkdir(parents=True, exist_ok=True)
        like = images.paths[place] if isinstance(images, VolumeDataset) else None
        _write(own["labels"], marginals[0].argmax(0).byte().cpu().numpy(), "labels", like)
        if "marginals" in own:
            np.savez_compressed(own["marginals"], marginals=marginals[0].half().cpu().numpy())
        if "entropy" in own:
            _write(own["entropy"], _entropy(marginals[0]), "entropy", like)
    print(f"labels of {len(images)} images are in {out}")
    return 0


def _source(given: argparse.Namespace, saved: Run) -> Source:
    """An archive, a folder, or one image or volume alone."""
    path = Path(given.input)
    alone = path.is_file()
    if path.suffix.lower() == ".npz" and (saved.kind.ndim == 2 or (alone and volumefiles.has(path, "volumes"))):
        return Source(npz=given.input, split_key=given.split_key or saved.settings.split_key, limit=given.limit)
    if alone and given.files is not None:
        raise ValueError(f"files: expected it with a folder, got it with the file {path}")
    return Source(
        images=str(path.parent) if alone else given.input, files=(path.name,) if alone else given.files, limit=given.limit,
        recursive=bool(given.recursive), image_suffix=given.image_suffix or "",
    )  # fmt: skip


def _names(images: LabeledSamples) -> list[tuple[str, str]]:
    """What every image's labels are called, without and with what the ending is."""
    if isinstance(images, FolderDataset):
        return [(stem, ".png") for stem in images.stems]
    if isinstance(images, VolumeDataset):
        endings = [".nii.gz" if volumefiles.is_nifti(path) else ".npz" for path in images.paths]
        return list(zip(images.stems, endings, strict=True))
    places: Tensor | NDArray[np.int64] = getattr(images, "indices", np.arange(len(images)))
    ending = ".npz" if data.axes(images) == 3 else ".png"
    return [(f"{int(place):06d}", ending) for place in places]


def _files(out: Path, name: str, ending: str, arguments: argparse.Namespace) -> dict[str, Path]:
    """Everything that is written of one image."""
    found = {"labels": out / f"{name}{ending}"}
    if arguments.marginals:
        found["marginals"] = out / (f"{name}.npz" if ending == ".png" else f"{name}.marginals.npz")
    if arguments.entropy:
        found["entropy"] = out / f"{name}.entropy{ending}"
    return found


def _check_files(files: list[dict[str, Path]]) -> None:
    """Raises ValueError if two things would be written to one file: the entropy of ``a`` and the labels of ``a.entropy``."""
    seen: dict[Path, str] = {}
    for own in files:
        for what, path in own.items():
            if path in seen:
                raise ValueError(f"out: expected names of their own, got {path} for both {seen[path]} and {what} of two images")
            seen[path] = what


def _write(path: Path, values: NDArray[np.uint8], name: str, like: Path | None) -> None:
    if path.suffix != ".png":
        volumefiles.write(path, {name: values}, like)
    elif name == "labels":
        plots.save_label_png(path, values)
    else:
        Image.fromarray(values).save(path)


def _entropy(marginals: Tensor) -> NDArray[np.uint8]:
    """Grey levels of marginals ``[L, *shape]``: 0 where one label is certain, 255 where all are as likely."""
    nats = -torch.xlogy(marginals, marginals).sum(0)
    share = (nats / math.log(len(marginals))).clamp(0, 1)
    grey: NDArray[np.uint8] = (share * 255).round().byte().cpu().numpy()
    return grey
