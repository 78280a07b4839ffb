"""How are images and label masks read from two folders?

A mask belongs to the image of the same stem, or to the one that a list names (see `listing`). Photographs are scaled as
`(x / 255 - 0.5) * 4`; one-channel 16-bit files are depth in millimetres and scaled by `DepthScale`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tritoncrf.datasets.base import VOID, Sample, check_index
from tritoncrf.datasets.depth import DepthScale, known_background, scale_bytes
from tritoncrf.datasets.headers import Header, header, is_deep, opened, pixels, turned
from tritoncrf.datasets.listing import IMAGE_ENDINGS, MASK_ENDINGS, Files, Folder, pairs
from tritoncrf.datasets.masks import LabelMap, Palette, Reader


class FolderDataset(Dataset[Sample]):
    """Images and masks in two folders, matched by stem, decoded when asked for.

    Items are `(image [C, H, W], target [H, W])`, and `(.., .., {"known": [H, W]})` for 16-bit depth images if
    `background` is given. An EXIF orientation is applied unless the masks were drawn on the stored pixels, as their sizes
    tell; `notes` says so.

    Args:
        images: the folder of images (PNG, JPEG, BMP, TIFF, WebP). Names that begin with a dot are passed over.
        masks: the folder of masks (PNG, BMP, TIFF, GIF); None for prediction: every target is 255.
        files: what to use, in this order: a text file with one a line, or a sequence; each a stem, an image's name, or an
            image and its mask as paths below the two folders (in a text `image mask`, in a sequence a tuple). None for all
            images, and then every mask needs an image too.
        num_labels: labels are 0 .. num_labels - 1.
        void: the value or values in index masks that mean "no label"; they become 255.
        palette: label (or 255) of every colour for masks that show labels as colours; None for index masks
            (8-bit grey or palette PNG).
        channels: 3 for colour; 1 for grey and for 16-bit depth; None for 3 if any image is in colour, else 1.
        background: the label left out of the foreground accuracy; known where a depth image is 0.
        class_names: one name per label; None for "label 0", "label 1", ..
        depth: how millimetres become network input.
        label_map: label (or 255) of values in index masks, before `void` is looked at. A value that is not in it keeps its
            label only if the map gives that label to no other.
        recursive: also images in folders below; a stem then holds the path.
        image_suffix: what follows the stem in every image's name, such as "_leftImg8bit"; other files are passed over.
        mask_suffix: the same of masks.
        limit: only the first so many images.
        exif: False leaves all images as stored.

    Attributes:
        stems: the stem of every item. sizes: (H, W) of every item, from the file headers.
        paths: the image file of every item. modes: pillow's mode of every image.
        notes: sentences on what was decided: images of several modes, images turned upright.
        num_labels, class_names, channels, background: as in `LabeledSamples`.

    Raises:
        FileNotFoundError: if a folder, the list, an image or a mask is missing.
        ValueError: if an argument is out of range, a stem is met twice, a mask is a JPEG, or a header cannot be read or image
            and mask differ in size; and from an item, if a file cannot be decoded, has the wrong kind of pixels, or a label is
            out of range. The sentence names the file.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        masks: str | os.PathLike[str] | None,
        *,
        files: Files | None = None,
        num_labels: int,
        void: int | Sequence[int] = VOID,
        palette: Palette | None = None,
        channels: int | None = 3,
        background: int | None = None,
        class_names: Sequence[str] | None = None,
        depth: DepthScale | None = None,
        label_map: LabelMap | None = None,
        recursive: bool = False,
        image_suffix: str = "",
        mask_suffix: str = "",
        limit: int | None = None,
        exif: bool = True,
    ) -> None:
        self.class_names = check_labels(num_labels, background, class_names, limit)
        if channels not in (1, 3, None):
            raise ValueError(f"channels: expected 1 or 3, got {channels}")
        self.num_labels, self.void, self.background = num_labels, void, background
        self.depth = depth or DepthScale()
        self._reader = Reader(num_labels, void, palette, label_map)

        where = Folder("images", Path(images), IMAGE_ENDINGS, image_suffix, recursive)
        masked = None if masks is None else Folder("masks", Path(masks), MASK_ENDINGS, mask_suffix, recursive)
        found = pairs(where, masked, files, limit)
        self.stems: list[str] = [pair.stem for pair in found]
        self.paths = [pair.image for pair in found]
        self._masks = None if masks is None else [pair.mask for pair in found if pair.mask is not None]
        headers = [header(path) for path in self.paths]
        self.modes = [image.mode for image in headers]
        mask_headers = None if self._masks is None else [_mask_header(path) for path in self._masks]
        seen = headers if exif else [Header(h.path, h.size, h.mode, h.format, 1) for h in headers]
        self._turned, notes = turned(seen, mask_headers)
        self.sizes = [h.upright if turn else h.size for h, turn in zip(headers, self._turned, strict=True)]
        self.channels = _channels(headers) if channels is None else channels
        self.notes: tuple[str, ...] = (*_mixed(headers, self.channels), *notes)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, i: int) -> Sample:
        i = check_index(i, len(self))
        path = self.paths[i]
        label = self._label(i)
        target = torch.from_numpy(label.astype(np.int64))
        with opened(path) as file:
            if file.mode == "F":
                raise ValueError(f"images: expected 8 bits a channel or 16-bit depth, got floating-point numbers in {path}")
            if not is_deep(file.mode):
                wanted = "L" if self.channels == 1 else "RGB"
                image = pixels(file, path, wanted, self._turned[i]).astype(np.uint8, copy=False)
                return scale_bytes(image), target
            if self.channels != 1:
                raise ValueError(f"channels: expected 1 for the 16-bit image {path}, got {self.channels}")
            values = pixels(file, path, turned=self._turned[i])
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
        with opened(path) as file:
            return self._reader.read(file, path)


def check_labels(
    num_labels: int, background: int | None, class_names: Sequence[str] | None, limit: int | None
) -> tuple[str, ...]:
    """The names of the labels. Raises ValueError for what no data set of files takes."""
    if not 1 <= num_labels <= VOID:
        raise ValueError(f"num_labels: expected 1 to {VOID}, got {num_labels}")
    if background is not None and not 0 <= background < num_labels:
        raise ValueError(f"background: expected a label below {num_labels} or None, got {background}")
    if class_names is not None and len(class_names) != num_labels:
        raise ValueError(f"class_names: expected {num_labels} names, got {len(class_names)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected a number of images of at least 1, or None, got {limit}")
    return tuple(class_names) if class_names is not None else tuple(f"label {label}" for label in range(num_labels))


def _mask_header(path: Path) -> Header:
    found = header(path)
    if found.format in ("JPEG", "MPO", "WEBP"):
        raise ValueError(
            f"masks: expected a format that keeps the numbers of labels, such as PNG, got {found.format} in {path}"
        )
    return found


def _channels(headers: Sequence[Header]) -> int:
    """1 if all are grey or all are depth, 3 if one is in colour. Raises ValueError for depth among others."""
    deep = headers[0].deep
    other = next((image for image in headers if image.deep != deep), None)
    if other is not None:
        wanted = "16-bit depth" if deep else "8-bit brightness or colour"
        raise ValueError(
            f"images: expected {wanted} as in {headers[0].path}, got mode {other.mode} in {other.path}"
        )
    return 1 if deep or all(image.grey for image in headers) else 3


def _mixed(headers: Sequence[Header], channels: int) -> list[str]:
    grey = [image for image in headers if image.grey]
    colour = [image for image in headers if not image.grey and not image.deep]
    if channels == 3 and grey and colour:
        return [f"images: {len(grey)} of {len(headers)} are grey (first {grey[0].path}); all are read as colour"]
    if channels == 1 and colour:
        return [f"images: {len(colour)} of {len(headers)} are in colour (first {colour[0].path}); all are read as grey"]
    return []
