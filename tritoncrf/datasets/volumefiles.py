"""What is in a volume's file? NIfTI through nibabel, or numpy's .npz: its shape, its numbers, and where it lies in space.

A .npz file holds one array, or the one of several that is called ``image`` or ``label``. Axes stay in the file's order; a
fourth axis of a NIfTI file are its channels, and the first of four in a .npz file. An affine takes voxels to millimetres.
"""

from __future__ import annotations

import importlib
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tritoncrf.datasets import room

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

AFFINE: Final = "affine"


def shape_of(path: Path, key: str) -> tuple[int, ...]:
    """[C, D, H, W] of a volume, or [D, H, W], without reading its numbers. Raises ValueError naming the file.

    key: "image" or "label", the array to look at in a .npz file of several.
    """
    if is_nifti(path):
        return _channels_first(tuple(int(n) for n in _nifti(path).shape))
    try:
        with zipfile.ZipFile(path) as archive:
            name = _chosen(path, [entry.removesuffix(".npy") for entry in archive.namelist()], key)
            with archive.open(f"{name}.npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                return tuple(read(file)[0])
    except room.FAILURES as error:
        raise _unreadable(path, error) from error


def read(path: Path, key: str) -> NDArray[np.generic]:
    """The numbers of a volume in the shape of `shape_of`. Raises ValueError naming the file."""
    try:
        if is_nifti(path):
            volume = _nifti(path)
            room.check("its numbers", math.prod(map(int, volume.shape)) * volume.get_data_dtype().itemsize)
            values = np.asanyarray(volume.dataobj)
            return np.moveaxis(values, 3, 0) if values.ndim == 4 else values
        with np.load(path, allow_pickle=False) as archive:
            name = _chosen(path, archive.files, key)
            room.check_member(archive.zip, "its numbers", name)
            found: NDArray[np.generic] = archive[name]
            return found
    except room.FAILURES as error:
        raise _unreadable(path, error) from error


def affine(path: Path) -> NDArray[np.float64] | None:
    """float [4, 4]: where voxels lie; None for a .npz file without an array "affine"."""
    if is_nifti(path):
        given = _nifti(path).affine
        return None if given is None else np.asarray(given, dtype=np.float64)
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive[AFFINE], dtype=np.float64) if AFFINE in archive.files else None


def write(path: Path, values: Mapping[str, NDArray[np.generic]], like: Path | None) -> None:
    """Writes volumes as .npz under their names, or the only one as NIfTI; where voxels lie is taken from the file ``like``."""
    place = None if like is None else affine(like)
    if like is None or not is_nifti(path):
        # Spelled out, for numpy's stub takes its own option among the arrays.
        arrays = dict(values) if place is None else {**values, AFFINE: place}
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        return
    nibabel = require()
    (only,) = values.values()
    image = nibabel.Nifti1Image(np.ascontiguousarray(only), place)
    # By name: nibabel's types know nothing of it, and are not there without nibabel.
    units = getattr(_nifti(like).header, "get_xyzt_units")  # noqa: B009
    image.header.set_xyzt_units(*units())
    nibabel.save(image, os.fspath(path))


def has(path: Path, key: str) -> bool:
    """Whether a .npz file has an array of that name."""
    if is_nifti(path):
        return False
    with np.load(path, allow_pickle=False) as archive:
        return key in archive.files


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def require() -> ModuleType:
    """nibabel. Raises ImportError that says how to get it."""
    try:
        return importlib.import_module("nibabel")
    except ImportError:
        raise ImportError('nibabel: expected it to be installed for .nii files: pip install "tritoncrf[volumes]"') from None


def _nifti(path: Path) -> SpatialImage:
    nibabel = require()
    try:
        found: SpatialImage = nibabel.load(os.fspath(path))
    except (*room.FAILURES, nibabel.filebasedimages.ImageFileError) as error:
        raise _unreadable(path, error) from error
    return found


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], *shape[:3]) if len(shape) == 4 else shape


def _chosen(path: Path, names: list[str], key: str) -> str:
    arrays = [name for name in names if name != AFFINE]
    if key in arrays:
        return key
    if len(arrays) != 1:
        raise ValueError(f"expected one array, or one called {key!r}, got {', '.join(sorted(arrays)) or 'none'}")
    return arrays[0]


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"file {path}: expected a volume, got one that cannot be read: {error}")
