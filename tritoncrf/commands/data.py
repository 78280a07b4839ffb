"""Which images do the flags name, and do they fit the model?

Three sources: an archive (``--npz``), two folders (``--images``, ``--masks``), or made-up figures (``--generated``).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader

from tritoncrf.checkpoint import CheckpointError, Tree, group
from tritoncrf.datasets import VOID, DepthScale, Figures, FolderDataset, Indexed, LabeledSamples, NpzDataset, Sample, collate
from tritoncrf.datasets.base import Forwarding, unpack


@dataclass(frozen=True)
class Source:
    """Where images come from, as the flags of the same names say."""

    npz: str | None = None
    split_key: str = "split"
    images: str | None = None
    masks: str | None = None
    files: str | None = None
    palette: str | None = None
    void: int = VOID
    generated: int | None = None
    generated_size: str = "96x64"
    limit: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("npz", "images", "generated") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"data: expected just one of --npz, --images and --generated, got {' and '.join(given) or 'none'}")


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

    @classmethod
    def of(cls, dataset: LabeledSamples) -> Kind:
        """That of an archive or of made-up figures, whose one-channel images are depth."""
        names = tuple(dataset.class_names)
        return cls(dataset.num_labels, dataset.channels, dataset.background, names, dataset.channels == 1)

    def tree(self) -> dict[str, Tree]:
        """As a checkpoint holds it."""
        return {
            "num_labels": self.num_labels, "channels": self.channels, "background": self.background,
            "class_names": list(self.class_names), "deep": self.deep, "unit_mm": self.depth.unit_mm,
            "depth_background": self.depth.background,
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
            return cls(labels, channels, background, tuple(map(str, names)), bool(kept["deep"]), depth)
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
        folder = _folder(source, source.files, kind)
        found = folder if source.limit is None else _folder(source, folder.stems[: source.limit], kind)
        _check_depth(Path(source.images or ""), set(folder.stems), kind.deep)
    for name in ("num_labels", "channels"):
        if getattr(found, name) != getattr(kind, name):
            raise ValueError(f"data: expected {name} {getattr(kind, name)} as the model has, got {getattr(found, name)}")
    return found


def figures(source: Source, split: str | None) -> LabeledSamples:
    """Made-up figures: those of split "train", and others for any other name."""
    height, cross, width = source.generated_size.partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise ValueError(f"generated_size: expected HEIGHTxWIDTH such as 96x64, got {source.generated_size!r}")
    count = min(source.generated or 0, source.limit or source.generated or 0)
    return Kept(Figures(count, 0 if split == "train" else 1, (int(height), int(width))))


def _folder(source: Source, files: str | list[str] | None, kind: Kind) -> FolderDataset:
    return FolderDataset(
        source.images or "", source.masks, files=files, num_labels=kind.num_labels, void=source.void,
        palette=None if source.palette is None else read_palette(source.palette), channels=kind.channels,
        background=kind.background, class_names=kind.class_names, depth=kind.depth,
    )  # fmt: skip


def first_image(folder: str) -> tuple[int, bool]:
    """Channels of the folder's first image (3 in colour, else 1), and whether it is 16-bit depth."""
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"images: expected a folder, got {root}, which is none")
    for path in sorted(root.iterdir()):
        mode = _mode(path)
        if mode is not None:
            return 1 if mode in ("1", "L") or _is_deep(mode) else 3, _is_deep(mode)
    raise ValueError(f"images: expected at least one image in {root}, got none")


def _check_depth(folder: Path, stems: set[str], deep: bool) -> None:
    # Read as the other kind, an image would be on another scale, and its labels nonsense without a word.
    for path in sorted(folder.iterdir()):
        mode = _mode(path) if path.stem in stems else None
        if mode is not None and _is_deep(mode) != deep:
            wanted = "16-bit depth" if deep else "8-bit brightness or colour"
            raise ValueError(f"images: expected {wanted} as in training's first image, got mode {mode} in {path}")


def _is_deep(mode: str) -> bool:
    return mode == "I" or mode.startswith("I;16")


def _mode(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, SyntaxError, ValueError):
        return None


def read_palette(path: str) -> Mapping[tuple[int, int, int], int]:
    """Colours and labels from a JSON or TOML file of ``"#rrggbb" = label``."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"palette: expected a JSON or TOML file, got {path}, which does not exist")
    text = Path(path).read_text(encoding="utf-8")
    try:
        table: object = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"palette: expected JSON or TOML, got {path}, which is neither: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"palette: expected '#rrggbb' = label in {path}, got {type(table).__name__}")
    found = {}
    for colour, label in table.items():
        try:
            red, green, blue = bytes.fromhex(str(colour).removeprefix("#"))
        except ValueError:
            raise ValueError(f"palette: expected colours as '#rrggbb' in {path}, got {colour!r}") from None
        if isinstance(label, bool) or not isinstance(label, int):
            raise ValueError(f"palette: expected a whole number for {colour!r} in {path}, got {label!r}")
        found[red, green, blue] = label
    return found


def loader(dataset: LabeledSamples, batch_size: int = 1, shuffle_seed: int | None = None) -> DataLoader[object]:
    """Batches of indexed items, in an order of their own if a seed for it is given.

    A batch of one by default: next to a larger image a network sees padding where its own border would be.
    """
    generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
    return DataLoader(
        Indexed(dataset), batch_size, shuffle=shuffle_seed is not None, collate_fn=collate, generator=generator
    )  # fmt: skip


def check(dataset: LabeledSamples) -> bool:
    """Decodes every item, so that a bad file is found before hours of work. True if a pixel has no label."""
    void = False
    for i in range(len(dataset)):
        _, target, extras = unpack(dataset[i])
        missing = target == VOID
        if "known" in extras:
            missing &= extras["known"] == VOID
        void = void or bool(missing.any())
    return void
