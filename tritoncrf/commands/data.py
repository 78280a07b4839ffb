"""Which images do the flags name, and do they fit the model?

Three sources: an archive (``--npz``), two folders (``--images``, ``--masks``) of pictures or of volumes, or made-up figures
(``--generated``).
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import DataLoader

from tritoncrf.checkpoint import CheckpointError, Tree, group
from tritoncrf.commands.meanings import read_map, read_palette
from tritoncrf.commands.options import Settings
from tritoncrf.datasets import (
    VOID,
    DepthScale,
    Figures,
    FolderDataset,
    Indexed,
    LabeledSamples,
    NpzDataset,
    Sample,
    collate,
    room,
)  # fmt: skip
from tritoncrf.datasets.base import Forwarding
from tritoncrf.datasets.headers import is_deep
from tritoncrf.datasets.volumes import VolumeDataset, has_volumes
from tritoncrf.index_sampler import DistributedIndexSampler


@dataclass(frozen=True)
class Source:
    """Where images come from, as the flags of the same names say."""

    npz: str | None = None
    split_key: str = "split"
    images: str | None = None
    masks: str | None = None
    files: str | tuple[str, ...] | None = None
    recursive: bool = False
    image_suffix: str = ""
    mask_suffix: str = ""
    palette: str | None = None
    map: str | None = None
    void: int | tuple[int, ...] = VOID
    generated: int | None = None
    generated_size: str = "96x64"
    limit: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("npz", "images", "generated") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"data: expected just one of --npz, --images and --generated, got {' and '.join(given) or 'none'}")


    @classmethod
    def of(cls, settings: Settings) -> Source:
        """What a training run was told."""
        return cls(**{spec.name: getattr(settings, spec.name) for spec in fields(cls)})


@dataclass(frozen=True)
class Kind:
    """What images and labels a model is for; kept in its checkpoint."""

    num_labels: int
    channels: int
    background: int | None
    class_names: tuple[str, ...]
    deep: bool
    """Images are depth in millimetres, not brightness."""
    depth: DepthScale = field(default_factory=DepthScale)
    exif: bool = True
    """Images are turned upright; runs from before that was done took them as stored."""
    ndim: int = 2
    """2 for pictures, 3 for volumes."""

    @classmethod
    def of(cls, dataset: LabeledSamples, known: Kind | None = None) -> Kind:
        """That of an archive or of made-up figures, whose one-channel images are depth."""
        names, exif = tuple(dataset.class_names), known is None or known.exif
        ndim = axes(dataset)
        deep = dataset.channels == 1 and ndim == 2
        return cls(dataset.num_labels, dataset.channels, dataset.background, names, deep, exif=exif, ndim=ndim)

    def tree(self) -> dict[str, Tree]:
        """As a checkpoint holds it."""
        return {
            "num_labels": self.num_labels, "channels": self.channels, "background": self.background,
            "class_names": list(self.class_names), "deep": self.deep, "unit_mm": self.depth.unit_mm,
            "depth_background": self.depth.background, "exif": self.exif, "ndim": self.ndim,
        }  # fmt: skip

    @classmethod
    def read(cls, extra: dict[str, Tree], path: Path) -> Kind:
        """As `tree` gave it. Raises CheckpointError for a run that `tritoncrf train` did not write."""
        try:
            kept = group(extra, "kind")
            names, background = kept["class_names"], kept["background"]
            if not isinstance(names, list) or not isinstance(background, int | None):
                raise TypeError("class_names")
            depth = DepthScale(float(kept["unit_mm"]), float(kept["depth_background"]))  # type: ignore[arg-type]
            labels, channels = int(kept["num_labels"]), int(kept["channels"])  # type: ignore[arg-type]
            exif, ndim = bool(kept.get("exif", False)), int(kept.get("ndim", 2))  # type: ignore[arg-type]
            return cls(labels, channels, background, tuple(map(str, names)), bool(kept["deep"]), depth, exif, ndim)
        except (CheckpointError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: expected a run of `tritoncrf train`, got one without its settings") from None


class Kept(Forwarding):
    """A data set whose items are made once and kept in memory."""

    def __init__(self, dataset: LabeledSamples) -> None:
        super().__init__(dataset)
        self._items: list[Sample] = [dataset[i] for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Sample:
        return self._items[i]


def read(source: Source, split: str | None, kind: Kind) -> LabeledSamples:
    """The images of one split as a model of ``kind`` sees them. Raises ValueError where they do not fit it."""
    if source.limit is not None and source.limit < 1:
        raise ValueError(f"limit: expected at least 1 image, got {source.limit}")
    if source.npz is not None:
        found: LabeledSamples = NpzDataset(source.npz, split, source.split_key, source.limit, kind.depth)
    elif source.generated is not None:
        found = figures(source, split)
    else:
        found = folder(source, kind)
        _check_depth(found, kind.deep)
    for name in ("num_labels", "channels"):
        if getattr(found, name) != getattr(kind, name):
            raise ValueError(f"data: expected {name} {getattr(kind, name)} as the model has, got {getattr(found, name)}")
    if axes(found) != kind.ndim:
        raise ValueError(f"data: expected images of {kind.ndim} axes as the model has, got {axes(found)}")
    return found


def figures(source: Source, split: str | None) -> LabeledSamples:
    """Made-up figures: those of split "train", and others for any other name."""
    height, cross, width = source.generated_size.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise ValueError(f"generated_size: expected HEIGHTxWIDTH such as 96x64, got {source.generated_size!r}")
    # Float32 depth and int64 labels of one figure.
    room.check(f"generated_size of {source.generated_size}", int(height) * int(width) * 12)
    count = min(source.generated or 0, source.limit or source.generated or 0)
    return Kept(Figures(count, 0 if split == "train" else 1, (int(height), int(width))))


def folder(source: Source, kind: Kind) -> LabeledSamples:
    """The pictures or volumes of a folder, of channels as found where ``kind`` has 0; notes on them go to stderr."""
    label_map = None if source.map is None else read_map(source.map)
    if kind.ndim == 3:
        if source.palette is not None:
            raise ValueError(f"palette: expected it for masks in colour, got {source.palette} with volumes")
        volumes = VolumeDataset(
            source.images or "", source.masks, files=source.files, num_labels=kind.num_labels, void=source.void,
            label_map=label_map, channels=kind.channels or None, background=kind.background, class_names=kind.class_names,
            recursive=source.recursive, image_suffix=source.image_suffix, mask_suffix=source.mask_suffix, limit=source.limit,
        )  # fmt: skip
        return cast("LabeledSamples", volumes)  # but for sizes of three numbers
    found = FolderDataset(
        source.images or "", source.masks, files=source.files, num_labels=kind.num_labels, void=source.void,
        palette=None if source.palette is None else read_palette(source.palette), label_map=label_map,
        channels=kind.channels or None, background=kind.background, class_names=kind.class_names, depth=kind.depth,
        recursive=source.recursive, image_suffix=source.image_suffix, mask_suffix=source.mask_suffix, limit=source.limit,
        exif=kind.exif,
    )  # fmt: skip
    for line in found.notes:
        note(line)
    return found


def folder_and_kind(source: Source, labels: int, channels: int | None, background: int | None) -> tuple[LabeledSamples, Kind]:
    """The images of a folder, and what they are: grey, colour, depth, or volumes."""
    names = tuple(f"label {label}" for label in range(labels))
    ndim = 3 if has_volumes(source.images or "", source.recursive) else 2
    kind = Kind(labels, channels or 0, background, names, False, ndim=ndim)
    found = folder(source, kind)
    deep = isinstance(found, FolderDataset) and is_deep(found.modes[0])
    _check_depth(found, deep)
    return found, dataclasses.replace(kind, channels=found.channels, deep=deep)


def axes(dataset: LabeledSamples) -> int:
    """2 for pictures, 3 for volumes."""
    found: int = getattr(dataset, "ndim", 2)
    return found


def note(line: str) -> None:
    """Tells what was decided, beside what a command prints."""
    print(f"tritoncrf: note: {line}", file=sys.stderr, flush=True)


def _check_depth(found: LabeledSamples, deep: bool) -> None:
    # Read as the other kind, an image would be on another scale, and its labels nonsense without a word.
    if not isinstance(found, FolderDataset):
        return
    for path, mode in zip(found.paths, found.modes, strict=True):
        if is_deep(mode) != deep:
            wanted = "16-bit depth" if deep else "8-bit brightness or colour"
            raise ValueError(f"images: expected {wanted} as in training, got mode {mode} in {path}")


def loader(
    dataset: LabeledSamples, batch_size: int = 1, shuffle_seed: int | None = None, order: DistributedIndexSampler | None = None
) -> DataLoader[object]:
    """Batches of indexed items, in an order of their own if a seed for it is given; order: this rank's part of that.

    A batch of one by default: next to a larger image a network sees padding where its own border would be.
    """
    generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
    return DataLoader(
        Indexed(dataset), batch_size, shuffle=shuffle_seed is not None and order is None, sampler=order,
        generator=generator if order is None else order.generator,
        collate_fn=collate,
    )  # fmt: skip
