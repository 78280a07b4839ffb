"""How are volumes and their label masks read from two folders?

As pictures are (see `folders`): a mask belongs to the volume of the same stem, or to the one that a list names. Numbers of any
unit become mean 0 and standard deviation 1 in every volume and channel. Axes stay in the file's order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tritoncrf.datasets import volumefiles
from tritoncrf.datasets.base import VOID, Sample, check_index
from tritoncrf.datasets.depth import scale_volume
from tritoncrf.datasets.folders import check_labels
from tritoncrf.datasets.listing import IMAGE_ENDINGS, VOLUME_ENDINGS, Files, Folder, pairs
from tritoncrf.datasets.masks import LabelMap, Reader


class VolumeDataset(Dataset[Sample]):
    """Volumes and masks in two folders (.npz, .nii, .nii.gz), matched by stem, read when asked for.

    Items are `(image [C, D, H, W], target [D, H, W])`. NIfTI files need nibabel: `pip install "tritoncrf[volumes]"`.
    Arguments that are not listed are as in `FolderDataset`; values of masks may be beyond 255 where the map says so.

    Args:
        images: the folder of volumes.
        masks: the folder of masks, the same one for .npz files that hold both `image` and `label`; None for prediction: every
            target is 255.
        channels: of every volume; None for as many as the first has.

    Attributes:
        ndim: 3. stems, sizes, num_labels, class_names, channels, background: as in `FolderDataset`, sizes being (D, H, W).
        paths: the file of every volume.

    Raises:
        FileNotFoundError: if a folder, the list, a volume or a mask is missing. ImportError: without nibabel for NIfTI.
        ValueError: if an argument is out of range, or a file cannot be read, has the wrong shape, or lies elsewhere in space
            than its volume; and from an item, if a label is out of range or a number is not finite. It names the file.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        masks: str | os.PathLike[str] | None,
        *,
        files: Files | None = None,
        num_labels: int,
        void: int | Sequence[int] = VOID,
        label_map: LabelMap | None = None,
        channels: int | None = None,
        background: int | None = None,
        class_names: Sequence[str] | None = None,
        recursive: bool = False,
        image_suffix: str = "",
        mask_suffix: str = "",
        limit: int | None = None,
    ) -> None:
        self.ndim = 3
        self.class_names = check_labels(num_labels, background, class_names, limit)
        self.num_labels, self.void, self.background = num_labels, void, background
        self._reader = Reader(num_labels, void, None, label_map)
        where = Folder("images", Path(images), VOLUME_ENDINGS, image_suffix, recursive)
        masked = None if masks is None else Folder("masks", Path(masks), VOLUME_ENDINGS, mask_suffix, recursive)
        found = pairs(where, masked, files, limit)
        self.stems = [pair.stem for pair in found]
        self.paths = [pair.image for pair in found]
        self._masks = None if masks is None else [pair.mask for pair in found if pair.mask is not None]
        shapes = [_shape(path) for path in self.paths]
        self.channels = shapes[0][0] if channels is None else channels
        for path, shape in zip(self.paths, shapes, strict=True):
            if shape[0] != self.channels:
                raise ValueError(f"channels: expected {self.channels} in every volume, got {shape[0]} in {path}")
        self.sizes = [shape[1:] for shape in shapes]
        for path, mask, size in zip(self.paths, self._masks or [], self.sizes, strict=False):
            _check_mask(path, mask, size)

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, i: int) -> Sample:
        i = check_index(i, len(self))
        values = volumefiles.read(self.paths[i], "image")
        if values.dtype.kind not in "biuf":
            raise ValueError(f"images: expected real numbers, got {values.dtype} in {self.paths[i]}")
        if values.dtype.kind == "f" and not np.isfinite(values.astype(np.float64)).all():
            raise ValueError(f"images: expected finite numbers, got others in {self.paths[i]}")
        image = scale_volume(values if values.ndim == 4 else values[None])
        return image, torch.from_numpy(self._label(i).astype(np.int64))

    def _label(self, i: int) -> NDArray[np.uint8]:
        if self._masks is None:
            return np.full(self.sizes[i], VOID, dtype=np.uint8)
        path = self._masks[i]
        values = volumefiles.read(path, "label")
        if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and (values.astype(np.float64) % 1 != 0).any()):
            raise ValueError(f"masks: expected whole numbers, got {values.dtype} with others in {path}")
        return self._reader.labels(values.astype(np.uint8 if values.dtype.kind == "b" else np.int64), path)


def has_volumes(images: str | os.PathLike[str], recursive: bool = False) -> bool:
    """Whether a folder holds volumes, and no pictures. Raises FileNotFoundError if there is none."""
    root = Path(images)
    pictures = Folder("images", root, IMAGE_ENDINGS, recursive=recursive).files()
    return not pictures and bool(Folder("images", root, VOLUME_ENDINGS, recursive=recursive).files())


def _shape(path: Path) -> tuple[int, ...]:
    shape = volumefiles.shape_of(path, "image")
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(f"images: expected a volume of 3 axes, or of 4 with channels, got {list(shape)} in {path}")
    return shape if len(shape) == 4 else (1, *shape)


def _check_mask(path: Path, mask: Path, size: tuple[int, ...]) -> None:
    if path.samefile(mask) and not volumefiles.has(mask, "label"):
        raise ValueError(f"masks: expected an array 'label' beside the volume's own, got none in {mask}")
    shape = volumefiles.shape_of(mask, "label")
    if shape != size:
        raise ValueError(f"masks: expected {_by(size)} voxels as {path} has, got {_by(shape)} in {mask}")
    place, own = volumefiles.affine(path), volumefiles.affine(mask)
    if place is None or own is None:
        return
    corners = np.array([[*((n - 1) * bit for n, bit in zip(size, bits, strict=True)), 1] for bits in np.ndindex(2, 2, 2)])
    apart = float(np.abs(corners @ (place - own).T).max())
    if apart > 0.5 * float(np.linalg.norm(place[:3, :3], axis=0).min()):
        raise ValueError(
            f"masks: expected voxels where {path} has them, got them up to {apart:.3g} mm apart in {mask}: resample the mask"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
