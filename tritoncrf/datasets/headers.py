"""What does an image file say before it is decoded? Size, kind of pixels, and which way up it is to be seen.

Cameras store pixels as the sensor lies and an EXIF orientation beside them. Viewers and tools to draw masks turn the image
upright, libraries that read pixels often do not, so both kinds of masks are about. Whether a mask was drawn on the turned or
on the stored image is seen where turning changes the size. Where it does not (square images, half turns), the rest of the
folder tells; where nothing does, images are turned.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

_FAILURES: Final = (OSError, SyntaxError, ValueError, EOFError, MemoryError)
_GREY: Final = ("1", "L", "LA", "La")


@dataclass(frozen=True)
class Header:
    """What a file's first bytes say. size: (H, W) as stored; turn: its EXIF orientation, 1 where there is nothing to turn."""

    path: Path
    size: tuple[int, int]
    mode: str
    format: str
    turn: int

    @property
    def deep(self) -> bool:
        """One channel of more than 8 bits."""
        return is_deep(self.mode)

    @property
    def grey(self) -> bool:
        return self.mode in _GREY

    @property
    def upright(self) -> tuple[int, int]:
        """(H, W) once turned."""
        return (self.size[1], self.size[0]) if self.turn >= 5 else self.size


def is_deep(mode: str) -> bool:
    """Whether pixels of pillow's mode are one channel of more than 8 bits."""
    return mode == "I" or mode.startswith("I;16")


def header(path: Path) -> Header:
    """Reads a file's header. Raises ValueError naming the file if it is no image, or too large a one."""
    with opened(path) as file:
        return Header(path, (file.height, file.width), file.mode, file.format or "", _turn(file))


def opened(path: Path) -> Image.Image:
    """The file, not decoded yet. Raises ValueError naming it if it is no image, or one that pillow takes for an attack."""
    try:
        with warnings.catch_warnings():
            # Up to twice pillow's limit it warns without a name; such an image is large, but it is the user's own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"file {path}: expected at most {most / 1e6:.0f} megapixels, got more, which pillow refuses as a decompression "
            "bomb: cut the image into tiles, or make it smaller"
        ) from None
    except _FAILURES as error:
        raise _unreadable(path, error) from error


def pixels(file: Image.Image, path: Path, mode: str | None = None, turned: bool = False) -> NDArray[np.generic]:
    """Decodes an open file, as another mode or turned upright if wanted. Raises ValueError naming it if that fails."""
    try:
        seen = ImageOps.exif_transpose(file) if turned else file
        return np.array(seen if mode is None else seen.convert(mode))
    except _FAILURES as error:
        raise _unreadable(path, error) from error


def turned(images: Sequence[Header], masks: Sequence[Header] | None) -> tuple[list[bool], list[str]]:
    """Which images are to be turned upright, and what there is to say of it.

    Raises ValueError for a mask that fits an image neither way, or both updates while others disagree.
    """
    found = [image.turn > 1 for image in images]
    if masks is None:
        return found, _notes(images, found, "; so are their labels", [])
    stands: list[Header] = []
    lies: list[Header] = []
    open_places = []
    for place, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if mask.size not in (image.size, image.upright):
            (h, w), (mask_h, mask_w) = image.upright, mask.size
            also = "" if image.turn < 5 else f" (or {w} x {h}, without its EXIF orientation)"
            raise ValueError(
                f"masks: expected {h} x {w} pixels as {image.path} has{also}, got {mask_h} x {mask_w} in {mask.path}"
            )
        if mask.turn > 1:
            raise ValueError(f"masks: expected a mask stored upright, got EXIF orientation {mask.turn} in {mask.path}")
        if image.turn == 1:
            continue
        if image.size == image.upright:
            open_places.append(place)
        else:
            found[place] = mask.size == image.upright
            (stands if found[place] else lies).append(image)
    if open_places and stands and lies:
        unclear = images[open_places[0]]
        raise ValueError(
            f"images: expected masks that were all drawn upright, or all on stored pixels, got that of "
            f"{stands[0].path} upright and that of {lies[0].path} as stored, which leaves open whether EXIF orientation "
            f"{unclear.turn} holds for {unclear.path}, whose mask fits both ways"
        )
    for place in open_places:
        found[place] = not lies
    return found, _notes(images, found, ", as their masks are", [images[place] for place in open_places])


def _notes(images: Sequence[Header], found: Sequence[bool], why: str, unclear: Sequence[Header]) -> list[str]:
    """Sentences, each with the number of images and the first of them."""
    of = f"of {len(images)}"
    up = [image for image, yes in zip(images, found, strict=True) if yes]
    kept = [image for image, yes in zip(images, found, strict=True) if image.turn > 1 and not yes]
    lines = []
    if up:
        lines.append(f"images: {len(up)} {of} turned upright by EXIF orientation{why} (first {up[0].path})")
    if kept:
        lines.append(f"images: {len(kept)} {of} left as stored, not turned by EXIF orientation{why} (first {kept[0].path})")
    if unclear:
        how = "turned" if unclear[0] in up else "left as stored, as those whose masks tell"
        lines.append(f"images: the masks of {len(unclear)} {of} fit turned and as stored (first {unclear[0].path}): {how}")
    return lines


def _turn(file: Image.Image) -> int:
    # Pillow turns TIFF itself; of a PNG it would decode all pixels to look behind them.
    if file.format == "TIFF" or (file.format == "PNG" and "exif" not in file.info):
        return 1
    try:
        value = file.getexif().get(ExifTags.Base.Orientation, 1)
    except (*_FAILURES, struct.error, KeyError, TypeError):
        return 1
    return value if value in range(2, 9) else 1


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"file {path}: expected an image, got one that cannot be read: {error}")
