"""How are images and label masks read from two folders?

A mask belongs to the image of the same stem. Photographs are scaled as `(x / 255 - 0.5) * 4`; one-channel 16-bit files
are depth in millimetres and scaled by `DepthScale`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from tritoncrf.datasets.base import VOID, Sample, check_index
from tritoncrf.datasets.depth import DepthScale, known_background, scale_bytes

Palette: TypeAlias = Mapping[tuple[int, int, int], int]

_IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
# lossy formats blur label values, so they are no masks
_MASK_SUFFIXES: Final = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})
_DEEP_MODES: Final = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_FAILURES: Final = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class FolderDataset(Dataset[Sample]):
    """Images and masks in two folders, matched by stem, decoded when asked for.

    Items are `(image [C, H, W], target [H, W])`, and `(.., .., {"known": [H, W]})` for 16-bit depth images if
    `background` is given. An EXIF orientation is not applied, as masks are drawn on the stored pixels.

    Args:
        images: the folder of images (PNG, JPEG, BMP, TIFF, WebP).
        masks: the folder of masks (PNG, BMP, TIFF, GIF); None for prediction: every target is 255.
        files: the stems to use, in this order: a sequence, or a text file with one a line; None for all images, and
            then every mask needs an image too.
        num_labels: labels are 0 .. num_labels - 1.
        void: the value in index masks that means "no label"; it becomes 255.
        palette: label (or 255) of every colour for masks that show labels as colours; None for index masks
            (8-bit grey or palette PNG).
        channels: 3 for colour; 1 for grey and for 16-bit depth.
        background: the label left out of the foreground accuracy; known where a depth image is 0.
        class_names: one name per label; None for "label 0", "label 1", ..
        depth: how millimetres become network input.

    Attributes:
        stems: the stem of every item. sizes: (H, W) of every item, from the file headers.
        num_labels, class_names, channels, background: as in `LabeledSamples`.

    Raises:
        FileNotFoundError: if a folder, the list, an image or a mask is missing.
        ValueError: if an argument is out of range, a stem is met twice, or a header cannot be read or image and mask
            differ in size; and from an item, if a file cannot be decoded, has the wrong kind of pixels, or a label is
            out of range. The sentence names the file.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        masks: str | os.PathLike[str] | None,
        *,
        files: str | os.PathLike[str] | Sequence[str] | None = None,
        num_labels: int,
        void: int = VOID,
        palette: Palette | None = None,
        channels: int = 3,
        background: int | None = None,
        class_names: Sequence[str] | None = None,
        depth: DepthScale | None = None,
    ) -> None:
        if not 1 <= num_labels <= VOID:
            raise ValueError(f"num_labels: expected 1 to {VOID}, got {num_labels}")
        if not 0 <= void <= VOID:
            raise ValueError(f"void: expected 0 to {VOID}, got {void}")
        if channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {channels}")
        if background is not None and not 0 <= background < num_labels:
            raise ValueError(f"background: expected a label below {num_labels} or None, got {background}")
        if class_names is not None and len(class_names) != num_labels:
            raise ValueError(f"class_names: expected {num_labels} names, got {len(class_names)}")
        self.num_labels, self.void, self.channels, self.background = num_labels, void, channels, background
        self.class_names = tuple(class_names) if class_names is not None else _numbered(num_labels)
        self.depth = depth or DepthScale()
        self._colours = None if palette is None else _Colours(palette, num_labels)

        image_files = _list(images, "images", _IMAGE_SUFFIXES)
        mask_files = None if masks is None else _list(masks, "masks", _MASK_SUFFIXES)
        self.stems: list[str] = sorted(image_files) if files is None else _stems(files)
        if not self.stems:
            raise ValueError(f"images: expected at least one image in {images}, got none")
        _require(self.stems, image_files, "images", images)
        self._images = [image_files[stem] for stem in self.stems]
        self._masks: list[Path] | None = None
        if mask_files is not None and masks is not None:
            _require(self.stems, mask_files, "masks", masks)
            if files is None:
                _require(sorted(mask_files), image_files, "images", images)
            self._masks = [mask_files[stem] for stem in self.stems]
        self.sizes = [_size(path) for path in self._images]
        for i, path in enumerate(self._masks or []):
            if _size(path) != self.sizes[i]:
                (h, w), (mask_h, mask_w) = self.sizes[i], _size(path)
                raise ValueError(
                    f"masks: expected {h} x {w} pixels as {self._images[i]} has, got {mask_h} x {mask_w} in {path}"
                )

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, i: int) -> Sample:
        i = check_index(i, len(self))
        path = self._images[i]
        label = self._label(i)
        target = torch.from_numpy(label.astype(np.int64))
        with _open(path) as file:
            if file.mode == "F":
                raise ValueError(f"images: expected 8 bits a channel or 16-bit depth, got floating-point numbers in {path}")
            if file.mode not in _DEEP_MODES:
                wanted = "L" if self.channels == 1 else "RGB"
                return scale_bytes(_pixels(file, path, wanted).astype(np.uint8, copy=False)), target
            if self.channels != 1:
                raise ValueError(f"channels: expected 1 for the 16-bit image {path}, got {self.channels}")
            values = _pixels(file, path)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"images: expected depth of 0 to 65535 mm, got {values.min()} to {values.max()} in {path}")
        depth = values.astype(np.uint16)
        if self.background is None:
            return self.depth(depth), target
        return self.depth(depth), target, {"known": known_background(depth, label, self.background)}

    def _label(self, i: int) -> NDArray[np.uint8]:
        if self._masks is None:
            return np.full(self.sizes[i], VOID, dtype=np.uint8)
        path = self._masks[i]
        with _open(path) as file:
            if self._colours is not None:
                return self._colours.labels(_pixels(file, path, "RGB").astype(np.uint8, copy=False), path)
            if file.mode not in ("L", "P"):
                raise ValueError(
                    f"masks: expected 8-bit label numbers (mode L or P), or a palette for colours, "
                    f"got mode {file.mode} in {path}"
                )
            values = _pixels(file, path).astype(np.uint8, copy=False)
        bad = (values >= self.num_labels) & (values != self.void)
        if bad.any():
            raise ValueError(
                f"masks: expected labels 0 to {self.num_labels - 1} or void {self.void}, got {int(values[bad][0])} in {path}"
            )
        return np.where(values == self.void, np.uint8(VOID), values)


class _Colours:
    """Labels by colour, looked up by bisection over the colours as numbers."""

    def __init__(self, palette: Palette, num_labels: int) -> None:
        if not palette:
            raise ValueError("palette: expected at least one colour, got none")
        for colour, label in palette.items():
            if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
                raise ValueError(f"palette: expected colours (r, g, b) of 0 to 255, got {colour}")
            if not 0 <= label < num_labels and label != VOID:
                raise ValueError(f"palette: expected labels below {num_labels} or {VOID}, got {label} for {colour}")
        numbers = np.array([(r << 16) | (g << 8) | b for r, g, b in palette], dtype=np.int64)
        order = np.argsort(numbers)
        self._numbers = numbers[order]
        self._labels = np.array(list(palette.values()), dtype=np.uint8)[order]

    def labels(self, pixels: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        wide = pixels.astype(np.int64)
        numbers = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
        place = np.searchsorted(self._numbers, numbers).clip(max=len(self._numbers) - 1)
        unknown = self._numbers[place] != numbers
        if unknown.any():
            colour = tuple(int(value) for value in pixels[unknown][0])
            raise ValueError(f"masks: expected only colours of the palette, got {colour} in {path}")
        found: NDArray[np.uint8] = self._labels[place]
        return found


def _numbered(num_labels: int) -> tuple[str, ...]:
    return tuple(f"label {label}" for label in range(num_labels))


def _list(folder: str | os.PathLike[str], name: str, suffixes: frozenset[str]) -> dict[str, Path]:
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: expected a folder, got {root}, which is none")
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in suffixes and path.is_file():
            if path.stem in found:
                raise ValueError(f"{name}: expected one file per stem, got {found[path.stem]} and {path.name}")
            found[path.stem] = path
    return found


def _stems(files: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    if isinstance(files, (str, os.PathLike)):
        path = Path(files)
        if not path.is_file():
            raise FileNotFoundError(f"files: expected a text file with one stem a line, got {path}, which is none")
        lines = path.read_text(encoding="utf-8").splitlines()
        stems = [line.strip() for line in lines if line.strip()]
    else:
        stems = list(files)
    if not stems:
        raise ValueError("files: expected at least one stem, got none")
    if len(set(stems)) < len(stems):
        twice = next(stem for n, stem in enumerate(stems) if stem in stems[:n])
        raise ValueError(f"files: expected every stem once, got {twice!r} twice")
    return stems


def _require(stems: Sequence[str], found: Mapping[str, Path], name: str, folder: str | os.PathLike[str]) -> None:
    missing = [stem for stem in stems if stem not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{name}: expected a file for the stem {missing[0]!r}{more} in {folder}, got none")


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except _FAILURES as error:
        raise ValueError(f"file {path}: expected an image, got one that cannot be read: {error}") from error


def _size(path: Path) -> tuple[int, int]:
    with _open(path) as file:
        return file.height, file.width


def _pixels(file: Image.Image, path: Path, mode: str | None = None) -> NDArray[np.generic]:
    try:
        return np.array(file if mode is None else file.convert(mode))
    except _FAILURES as error:
        raise ValueError(f"file {path}: expected an image, got one that cannot be read: {error}") from error
