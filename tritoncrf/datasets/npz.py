"""How are images and labels read from one .npz archive?

Three layouts, told apart by the names of their arrays:

- depth: `depth` uint16 (millimetres, 0 = background) and `label` uint8, both flat, image i being
  `x[offset[i]:offset[i + 1]].reshape(size[i])`; `background` (optional) is the label of pixels without
  depth, known there at test time too.
- photographs: `images` uint8 [N, H, W, 3], `labels` uint8 [N, H, W] (255 = no label), and `sizes` [N, 2], the valid
  top left part of each.
- volumes: `volumes` of any real numbers [N, D, H, W] or [N, C, D, H, W], `labels` uint8 [N, D, H, W], and, optional, `sizes`
  [N, 3], the valid first part of each.

All hold `class_names` and one string per image under each split key (`split`, `split_by_clip`, ..).
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tritoncrf.datasets import room
from tritoncrf.datasets.base import VOID, Sample, check_index
from tritoncrf.datasets.depth import DepthScale, known_background, scale_bytes, scale_volume

_DEPTH_KEYS: Final = ("depth", "label", "size", "offset", "class_names")
_PHOTO_KEYS: Final = ("images", "labels", "sizes", "class_names")
_VOLUME_KEYS: Final = ("volumes", "labels", "class_names")


class NpzDataset(Dataset[Sample]):
    """Images and labels of one split of a .npz archive, decompressed once and kept as bytes in memory.

    Items of the depth layout are `(image [1, H, W], target [H, W], {"known": [H, W]})`, of photographs
    `(image [3, H, W], target [H, W])` and of volumes `(image [C, D, H, W], target [D, H, W])` with the padding cut off. Depth
    is scaled by `depth` (see `DepthScale`: metres about the body's own mean, in units of 0.3 m), photographs as
    `(x / 255 - 0.5) * 4`, volumes to mean 0 and standard deviation 1 in every channel.

    Args:
        path: the archive; nothing in it is unpickled.
        split: the split's name in the file, such as "train", or None for all images.
        split_key: the array that holds the splits.
        limit: keep only the first so many images of the split.
        depth: how millimetres become network input.

    Attributes:
        sizes: (H, W) per image, (D, H, W) per volume. ndim: 2, or 3 for volumes.
        num_labels, class_names, channels, background: as in `LabeledSamples`.
        indices: int64 [N], the place of each image in the archive.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no .npz archive of these layouts, its arrays do not fit together, a label is out of
            range, the split has no image, or limit is below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | None = "train",
        split_key: str = "split",
        limit: int | None = None,
        depth: DepthScale | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit: expected a number of images of at least 1, or None, got {limit}")
        self.path = Path(path)
        self.depth = depth or DepthScale()
        with _open(self.path) as archive:
            names = set(archive.files)
            self.ndim = 3 if names.issuperset(_VOLUME_KEYS) else 2
            if self.ndim == 3:
                size_key = "sizes"
                volumes, self.channels = self._read_volumes(archive)
            elif names.issuperset(_DEPTH_KEYS):
                size_key, self.channels = "size", 1
            elif names.issuperset(_PHOTO_KEYS):
                size_key, self.channels = "sizes", 3
            else:
                raise ValueError(
                    f"path: expected the arrays {', '.join(_DEPTH_KEYS)} or {', '.join(_PHOTO_KEYS)} "
                    f"or {', '.join(_VOLUME_KEYS)} "
                    f"in {self.path}, got {', '.join(sorted(names)) or 'none'}"
                )
            if self.ndim == 3 and size_key not in names:
                sizes = np.tile(np.array(volumes.shape[-3:], dtype=np.int64), (len(volumes), 1))
            else:
                sizes = self._read_sizes(archive, size_key)
            self.indices = self._choose(archive, split, split_key, len(sizes))[:limit]
            # Of volumes they are of three numbers.
            own: list[tuple[int, ...]] = [tuple(map(int, size)) for size in sizes[self.indices]]
            self.sizes = cast("list[tuple[int, int]]", own)
            self.class_names: tuple[str, ...] = tuple(str(name) for name in self._read(archive, "class_names"))
            self.num_labels = len(self.class_names)
            self.background: int | None = None
            if "background" in names:
                self.background = int(self._read(archive, "background"))
            if self.ndim == 3:
                self._images, self._labels = self._cut(volumes, self._read(archive, "labels"), "volumes")
            elif self.channels == 1:
                self._images, self._labels = self._read_flat(archive, sizes)
            else:
                self._images, self._labels = self._read_padded(archive)
        self._check_labels()

    def _read(self, archive: NpzFile, key: str) -> NDArray[np.generic]:
        what = f"path: array {key!r} of {self.path}"
        room.check_member(archive.zip, what, key)
        try:
            array: NDArray[np.generic] = archive[key]
        except room.FAILURES as error:
            raise ValueError(f"{what} cannot be read: {error}") from error
        return array

    def _read_sizes(self, archive: NpzFile, key: str) -> NDArray[np.int64]:
        found = self._read(archive, key)
        if found.ndim != 2 or found.shape[1] != self.ndim or found.dtype.kind not in "iu" or (found.astype(np.int64) < 1).any():
            raise ValueError(
                f"path: expected positive integers [N, {self.ndim}] as {key!r} in {self.path}, "
                f"got {found.dtype} {list(found.shape)}"
            )
        return found.astype(np.int64)

    def _choose(self, archive: NpzFile, split: str | None, split_key: str, count: int) -> NDArray[np.int64]:
        if split is None:
            return np.arange(count)
        if split_key not in archive.files:
            have = [name for name in archive.files if name.startswith("split")]
            raise ValueError(
                f"split_key: expected an array of {self.path}, such as {', '.join(have) or 'none'}, got {split_key!r}"
            )
        splits = self._read(archive, split_key)
        if splits.shape != (count,) or splits.dtype.kind != "U":
            raise ValueError(
                f"split_key: expected one string per image, {count} in all, got {splits.dtype} "
                f"{list(splits.shape)} in {split_key!r}"
            )
        chosen = np.flatnonzero(splits == split)
        if len(chosen) == 0:
            have = sorted(str(name) for name in np.unique(splits))
            raise ValueError(f"split: expected one of {', '.join(have)} or None, got {split!r}")
        return chosen

    def _read_flat(
        self, archive: NpzFile, sizes: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.generic]], list[NDArray[np.uint8]]]:
        offset = self._read(archive, "offset")
        ends = np.concatenate([[0], np.cumsum(sizes.prod(1))])
        if offset.shape != ends.shape or (offset != ends).any():
            raise ValueError(f"path: expected 'offset' to be the running sum of the areas in 'size' in {self.path}")
        found: list[list[NDArray[np.generic]]] = []
        for key, dtype in (("depth", np.uint16), ("label", np.uint8)):
            flat = self._read(archive, key)
            if flat.dtype != dtype or flat.shape != (ends[-1],):
                raise ValueError(
                    f"path: expected {np.dtype(dtype)} [{ends[-1]}] as {key!r} in {self.path}, "
                    f"got {flat.dtype} {list(flat.shape)}"
                )
            # copies, so that the pixels of other splits are freed
            found.append([flat[ends[i] : ends[i + 1]].reshape(sizes[i]).copy() for i in self.indices])
        if self.background is not None and not 0 <= self.background < self.num_labels:
            raise ValueError(f"path: expected 'background' below {self.num_labels} in {self.path}, got {self.background}")
        return found[0], [label.astype(np.uint8, copy=False) for label in found[1]]

    def _read_padded(self, archive: NpzFile) -> tuple[list[NDArray[np.generic]], list[NDArray[np.uint8]]]:
        images, labels = self._read(archive, "images"), self._read(archive, "labels")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"path: expected uint8 [N, H, W, 3] as 'images' in {self.path}, got {images.dtype} {list(images.shape)}"
            )
        return self._cut(images, labels, "images")

    def _read_volumes(self, archive: NpzFile) -> tuple[NDArray[np.generic], int]:
        """The volumes [N, C, D, H, W] of all splits, and C."""
        found = self._read(archive, "volumes")
        if found.ndim not in (4, 5) or found.dtype.kind not in "iuf":
            raise ValueError(
                f"path: expected numbers [N, D, H, W] or [N, C, D, H, W] as 'volumes' in {self.path}, "
                f"got {found.dtype} {list(found.shape)}"
            )
        return (found, found.shape[1]) if found.ndim == 5 else (found[:, None], 1)

    def _cut(
        self, images: NDArray[np.generic], labels: NDArray[np.generic], key: str
    ) -> tuple[list[NDArray[np.generic]], list[NDArray[np.uint8]]]:
        """The valid part of each image of the split, copied, so that what is not needed is freed."""
        area = images.shape[1:3] if key == "images" else images.shape[2:]
        if labels.dtype != np.uint8 or labels.shape != (len(images), *area):
            raise ValueError(
                f"path: expected uint8 {[len(images), *area]} as 'labels' in {self.path}, "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        found: tuple[list[NDArray[np.generic]], list[NDArray[np.uint8]]] = ([], [])
        for i, size in zip(self.indices, self.sizes, strict=True):
            if i >= len(images) or any(n > most for n, most in zip(size, area, strict=True)):
                raise ValueError(
                    f"path: expected sizes within {key!r} {list(images.shape)} in {self.path}, "
                    f"got {' x '.join(map(str, size))} for image {i}"
                )
            inside = tuple(slice(n) for n in size)
            found[0].append(images[(i, *([] if key == "images" else [slice(None)]), *inside)].copy())
            found[1].append(labels[(i, *inside)].astype(np.uint8))
        return found

    def _check_labels(self) -> None:
        for i, label in zip(self.indices, self._labels, strict=True):
            seen = np.bincount(label.ravel(), minlength=VOID + 1)
            bad = np.flatnonzero(seen[self.num_labels : VOID])
            if len(bad):
                raise ValueError(
                    f"path: expected labels 0 to {self.num_labels - 1} or {VOID} in {self.path}, "
                    f"got {self.num_labels + int(bad[0])} in image {i}"
                )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> Sample:
        i = check_index(i, len(self))
        label = self._labels[i]
        target: Tensor = torch.from_numpy(label.astype(np.int64))
        if self.ndim == 3:
            return scale_volume(self._images[i]), target
        if self.channels == 3:
            return scale_bytes(self._images[i].astype(np.uint8, copy=False)), target
        depth = self._images[i].astype(np.uint16, copy=False)
        known = {} if self.background is None else {"known": known_background(depth, label, self.background)}
        return self.depth(depth), target, known


def _open(path: Path) -> NpzFile:
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a .npz file, got {path}, which does not exist")
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: expected a .npz archive, got {path}, which numpy cannot read: {error}") from error
    if not isinstance(archive, NpzFile):
        raise ValueError(f"path: expected a .npz archive, got {path}, which holds a single array")
    return archive
