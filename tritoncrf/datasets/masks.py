"""Which label has a mask's pixel? That of its number, or of its colour.

A number goes through the label map first, then it may be void (no label), and else it is the label itself. A number that is
not in the map keeps its label only where the map gives that label to no other: with ``7=0`` what is 0 itself is an error, and
not of the same label without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tritoncrf.datasets.base import VOID
from tritoncrf.datasets.headers import pixels

Palette: TypeAlias = Mapping[tuple[int, int, int], int]
LabelMap: TypeAlias = Mapping[int, int]

_SPREAD: Final[Mapping[object, int]] = {"L;2": 85, "L;4": 17}


class Reader:
    """Reads masks as uint8 labels, 255 where there is none.

    void: the numbers that mean "no label"; palette: label (or 255) of every colour; label_map: label (or 255) of numbers, which
    goes before void. Raises ValueError naming the argument.
    """

    def __init__(
        self, num_labels: int, void: int | Sequence[int] = VOID, palette: Palette | None = None,
        label_map: LabelMap | None = None,
    ) -> None:  # fmt: skip
        self.num_labels = num_labels
        self.void = (void,) if isinstance(void, int) else tuple(void)
        for value in self.void:
            if not 0 <= value <= VOID:
                raise ValueError(f"void: expected 0 to {VOID}, got {value}")
        if palette is not None and label_map is not None:
            raise ValueError("label_map: expected it for masks of label numbers, got it with a palette of colours")
        for number, label in (label_map or {}).items():
            if number < 0 or (not 0 <= label < num_labels and label != VOID):
                raise ValueError(
                    f"label_map: expected numbers of at least 0 with labels below {num_labels} or {VOID}, got {number}={label}"
                )
        self.label_map = dict(label_map or {})
        self._colours = None if palette is None else _Colours(palette, num_labels)
        self._table = np.array([self._label(number) for number in range(VOID + 1)], dtype=np.int16)

    def read(self, file: Image.Image, path: Path) -> NDArray[np.uint8]:
        """The labels [H, W] of an open mask. Raises ValueError naming the file."""
        if self._colours is not None:
            return self._colours.labels(pixels(file, path, "RGB").astype(np.uint8, copy=False), path)
        if file.mode not in ("1", "L", "P"):
            raise ValueError(
                f"masks: expected 8-bit label numbers (mode L or P), or a palette for colours, got mode {file.mode} in {path}"
            )
        # Pillow spreads grey levels of 2 and 4 bits over 0 to 255.
        tiles: Sequence[tuple[object, ...]] = getattr(file, "tile", ())
        spread = _SPREAD.get(tiles[0][3], 1) if file.mode == "L" and tiles else 1
        return self.labels(pixels(file, path).astype(np.uint8, copy=False) // np.uint8(spread), path)

    def labels(self, numbers: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
        """The labels of whole numbers, in their shape. Raises ValueError naming the file."""
        if numbers.dtype == np.uint8:
            found = self._table[numbers]
        else:
            own, places = np.unique(numbers, return_inverse=True)
            found = np.array([self._label(int(number)) for number in own], dtype=np.int16)[places].reshape(numbers.shape)
        bad = found < 0
        if bad.any():
            raise ValueError(f"masks: {self._fault(int(numbers[bad][0]))} in {path}")
        result: NDArray[np.uint8] = found.astype(np.uint8)
        return result

    def _label(self, number: int) -> int:
        """-1 for a number that means nothing."""
        if number in self.label_map:
            return self.label_map[number]
        if number in self.void:
            return VOID
        return number if 0 <= number < self.num_labels and number not in self.label_map.values() else -1

    def _fault(self, number: int) -> str:
        void = ", ".join(map(str, self.void)) or "none"
        other = next((key for key, label in self.label_map.items() if label == number), None)
        if other is not None:
            return f"expected {number} in the label map or void, as label {number} is what {other} means, got it in neither,"
        mapped = ", a number of the label map," if self.label_map else ""
        return f"expected labels 0 to {self.num_labels - 1}{mapped} or void {void}, got {number}"


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
