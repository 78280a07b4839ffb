"""What does it look like? Label maps, tables of pictures, weight maps as in the paper's Fig. 2, traces.

Label maps need numpy and pillow only; the figures need matplotlib: `pip install "tritoncrf[plot]"`.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Labels: TypeAlias = Tensor | NDArray[np.integer]
_PathLike: TypeAlias = str | os.PathLike[str]

_VOID = 255


def palette(num_labels: int) -> NDArray[np.uint8]:
    """A fixed colour per label: uint8 [num_labels, 3]; label l has the same colour whatever num_labels is.

    No colour is black, which is left to void.

    Raises:
        ValueError: if num_labels is not 1 to 255.
    """
    if not 1 <= num_labels <= _VOID:
        raise ValueError(f"num_labels: expected 1 to {_VOID}, got {num_labels}")
    golden = 0.618033988749895  # successive hues stay far apart, however many there are
    tones = ((0.9, 0.6), (0.9, 0.95), (0.45, 1.0))  # saturation and value
    colours = [colorsys.hsv_to_rgb((label * golden) % 1, *tones[label % len(tones)]) for label in range(num_labels)]
    return (np.array(colours) * 255).round().astype(np.uint8)


def colorize(labels: Labels, num_labels: int, *, background: int | None = None) -> NDArray[np.uint8]:
    """Turns labels [H, W] (integers; 255 = void) into a picture uint8 [H, W, 3], void black, `background` light grey.

    Raises:
        ValueError: if labels are not two-dimensional, one is neither below num_labels nor 255, or background is none.
        TypeError: if labels are not integers.
    """
    table = np.zeros((_VOID + 1, 3), dtype=np.uint8)
    table[:num_labels] = palette(num_labels)
    if background is not None:
        if not 0 <= background < num_labels:
            raise ValueError(f"background: expected a label below {num_labels} or None, got {background}")
        table[background] = 230
    picture: NDArray[np.uint8] = table[_bytes(labels, num_labels)]
    return picture


def save_label_png(path: _PathLike, labels: Labels) -> None:
    """Writes labels [H, W] (0 to 254, 255 = void) as a palette PNG: the labels stay, the colours are `palette`'s.

    Raises:
        ValueError: if labels are not two-dimensional or not within 0 to 255. TypeError: if they are not integers.
        FileNotFoundError: if the folder does not exist.
    """
    picture = Image.fromarray(_bytes(labels, _VOID))
    picture.putpalette(np.append(palette(_VOID).ravel(), [0, 0, 0]).astype(np.uint8).tobytes())
    picture.save(_writable(path), format="PNG")


def label_grid(rows: Sequence[Sequence[ArrayLike]], titles: Sequence[Sequence[str]] | Sequence[str], path: _PathLike) -> None:
    """Writes a figure with rows of pictures ([H, W] grey, or [H, W, 3] as `colorize` gives), a caption under each.

    Args:
        rows: pictures by row; rows may differ in length.
        titles: a caption for every picture, by row; or one for every column, put under each row.

    Raises:
        ValueError: if there is no picture, or captions and pictures differ in number. FileNotFoundError: if the folder
            does not exist. ImportError: without matplotlib.
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError(f"rows: expected at least one picture in every row, got {[len(row) for row in rows]}")
    by_row: list[list[str]] = (
        [list(map(str, titles)) for _ in rows]
        if all(isinstance(title, str) for title in titles)
        else [list(row) for row in titles]
    )
    counts, wanted = [len(row) for row in by_row], [len(row) for row in rows]
    if counts != wanted:
        raise ValueError(f"titles: expected {wanted} captions by row, got {counts}")
    columns = max(wanted)
    figure = _figure(2.0 * columns, 2.4 * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, pictures, captions in zip(axes, rows, by_row, strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, picture, caption in zip(line, pictures, captions, strict=False):
            ax.imshow(np.asarray(picture), cmap="gray", interpolation="nearest")
            ax.text(0.5, -0.04, caption, transform=ax.transAxes, ha="center", va="top", fontsize=9)
    _save(figure, path)


def weight_map(
    pairwise: Tensor,
    offsets: Tensor | Sequence[Sequence[int]],
    label_a: int,
    label_b: int,
    path: _PathLike | None = None,
    *,
    ax: Axes | None = None,
    class_names: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Draws the energies of label b at every offset around label a, as in Fig. 2 of the paper.

    At +d_c stands `pairwise[c, a, b]`, at -d_c `pairwise[c, b, a]`. Red is discouraged (positive energy), blue
    encouraged, on a symmetric scale; places that are no neighbour stay blank.

    Args:
        pairwise: [C, L, L]. offsets: [C, 2], as (dy, dx) in pixels, none of them zero.
        label_a: the label at the centre. label_b: the label around it.
        path: file to write, or `ax`: axes to draw on; just one of them.
        class_names: a name per label, for the title.

    Returns:
        the map, float64 [2 * reach_y + 1, 2 * reach_x + 1], a at its centre, NaN where there is no neighbour.

    Raises:
        ValueError: if shapes, offsets or labels do not fit, or not just one of path and ax is given.
        FileNotFoundError: if the folder does not exist. ImportError: without matplotlib.
    """
    if (path is None) == (ax is None):
        raise ValueError(f"path: expected just one of path and ax, got {'none' if path is None else 'both'}")
    grid = _weights(pairwise, offsets, label_a, label_b)
    figure = None
    if ax is None:
        figure = _figure(4.0, 3.6)
        ax = figure.add_subplot()
    bound = float(np.nanmax(np.abs(grid))) or 1.0
    reach_y, reach_x = grid.shape[0] // 2, grid.shape[1] // 2
    picture = ax.imshow(
        grid,
        cmap="bwr",
        vmin=-bound,
        vmax=bound,
        interpolation="nearest",
        extent=(-reach_x - 0.5, reach_x + 0.5, reach_y + 0.5, -reach_y - 0.5),
    )
    ax.set_facecolor("0.85")
    ax.plot([0], [0], marker="x", color="black")
    ax.set_xlabel("x-shift")
    ax.set_ylabel("y-shift")
    a, b = (class_names[label] if class_names else f"label {label}" for label in (label_a, label_b))
    ax.set_title(f"{b} around {a}", fontsize=10)
    ax.figure.colorbar(picture, ax=ax, label="energy")
    if figure is not None and path is not None:
        _save(figure, path)
    return grid


def traces(series: Mapping[str, Sequence[float] | NDArray[np.floating] | Tensor], path: _PathLike) -> None:
    """Writes a figure with one panel per named series of numbers, over its steps.

    Raises:
        ValueError: if there is no series, or one is empty or not one-dimensional. FileNotFoundError: if the folder
            does not exist. ImportError: without matplotlib.
    """
    if not series:
        raise ValueError("series: expected at least one series, got none")
    lines = {name: _numbers(values) for name, values in series.items()}
    for name, line in lines.items():
        if line.ndim != 1 or line.size == 0:
            raise ValueError(f"series: expected numbers [n] with n of at least 1, got {list(line.shape)} for {name!r}")
    figure = _figure(6.0, 1.8 * len(lines))
    axes = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for ax, (name, line) in zip(axes, lines.items(), strict=True):
        ax.plot(np.arange(len(line)), line, linewidth=1, marker="." if len(line) < 2 else None)
        ax.set_ylabel(name)
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    _save(figure, path)


def _numbers(values: Sequence[float] | NDArray[np.floating] | Tensor) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def _bytes(labels: Labels, num_labels: int) -> NDArray[np.uint8]:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {array.dtype}")
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"labels: expected [H, W], got {list(array.shape)}")
    bad = ((array < 0) | (array >= num_labels)) & (array != _VOID)
    if bad.any():
        raise ValueError(f"labels: expected 0 to {num_labels - 1} or {_VOID} for void, got {int(array[bad][0])}")
    return array.astype(np.uint8)


def _weights(pairwise: Tensor, offsets: Tensor | Sequence[Sequence[int]], label_a: int, label_b: int) -> NDArray[np.float64]:
    if pairwise.dim() != 3 or pairwise.shape[1] != pairwise.shape[2] or pairwise.shape[0] == 0:
        raise ValueError(f"pairwise: expected [C, L, L], got {list(pairwise.shape)}")
    steps = np.array(offsets.tolist() if isinstance(offsets, Tensor) else [list(step) for step in offsets])
    if steps.shape != (pairwise.shape[0], 2) or steps.dtype.kind != "i":
        raise ValueError(f"offsets: expected whole numbers [{pairwise.shape[0]}, 2], got {list(steps.shape)}")
    if not steps.any(1).all():
        raise ValueError("offsets: expected no zero offset, got (0, 0)")
    for name, label in (("label_a", label_a), ("label_b", label_b)):
        if not 0 <= label < pairwise.shape[1]:
            raise ValueError(f"{name}: expected a label below {pairwise.shape[1]}, got {label}")
    tables = pairwise.detach().to("cpu", torch.float64).numpy()
    reach_y, reach_x = (int(reach) for reach in np.abs(steps).max(0))
    grid = np.full((2 * reach_y + 1, 2 * reach_x + 1), np.nan)
    for table, (dy, dx) in zip(tables, steps, strict=True):
        grid[reach_y + dy, reach_x + dx] = table[label_a, label_b]
        grid[reach_y - dy, reach_x - dx] = table[label_b, label_a]
    return grid


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib: expected it to be installed for figures: pip install "tritoncrf[plot]"') from error
    # a Figure of its own, unlike pyplot's, leaves no global state and needs no display
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: _PathLike) -> None:
    figure.savefig(_writable(path), dpi=150)


def _writable(path: _PathLike) -> str:
    if not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {os.fspath(path)}")
    return os.fspath(path)
