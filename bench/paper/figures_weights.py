"""What has the CRF learned of the body? Parts, neighbourhood and energies of one part around another, as in the paper's Fig. 2.

The energy of label b at offset d from label a is ``pairwise[c, a, b]`` at +d_c and ``pairwise[c, b, a]`` at -d_c: red where
positive (discouraged), blue where negative. Far neighbourhoods are sparse, so the maps show the shifts that occur, in their
order, with the shifts themselves on the axes; the neighbourhood stands beside them in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.paper import figures_canvas
from tritoncrf import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Centre and neighbour, as in the paper: head and foot, left and right torso, chest and upper arm.
PAIRS = (("head", "leg2L"), ("torso1L", "torso1R"), ("torso0R", "arm0R"))
Offsets = Sequence[Sequence[int]]


def insight(
    pairwise: Tensor, offsets: Offsets, parts: NDArray[np.uint8], class_names: Sequence[str], background: int | None,
    path: str | os.PathLike[str], pairs: Sequence[tuple[str, str]] = PAIRS,
) -> list[NDArray[np.float64]]:  # fmt: skip
    """Writes the figure: parts, neighbourhood, and a map per pair (centre, neighbour).

    pairwise: [C, L, L]; offsets: [C, 2] as (dy, dx); parts: labels [H, W] of an image; class_names: one a label.
    Returns the maps over compressed shifts (see `compress`), float64 [2 * ny + 1, 2 * nx + 1], NaN where there is no neighbour.
    Raises ValueError for an unknown class name, or if shapes do not fit.
    """
    places = {name: label for label, name in enumerate(class_names)}
    for name in (name for pair in pairs for name in pair):
        if name not in places:
            raise ValueError(f"pairs: expected names among {', '.join(class_names)}, got {name!r}")
    columns = 1 + max(1, (len(pairs) + 2) // 2)
    drawn = figures_canvas.figure(0.6 + 3.7 * columns, 7.0)
    grid = drawn.add_gridspec(2, columns, width_ratios=[0.9] + [1.0] * (columns - 1))
    show_parts(drawn.add_subplot(grid[:, 0]), parts, class_names, background)
    show_neighbours(drawn.add_subplot(grid[0, 1]), offsets)
    steps, shifts = compress(offsets)
    maps = []
    for place, (centre, other) in enumerate(pairs, start=1):
        ax = drawn.add_subplot(grid[place // (columns - 1), 1 + place % (columns - 1)])
        maps.append(plots.weight_map(pairwise, steps, places[centre], places[other], ax=ax, class_names=class_names))
        for axis, along in ((ax.yaxis, shifts[0]), (ax.xaxis, shifts[1])):
            axis.set_ticks(range(-(len(along) // 2), len(along) // 2 + 1), [str(shift) for shift in along], fontsize=7)
        ax.tick_params(axis="x", rotation=90)
    figures_canvas.save(drawn, path)
    return maps


def by_kind(
    tables: Tensor, offset: Sequence[int], kinds: Sequence[str], class_names: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Writes the tables ``[R, L, L]`` of one offset (dy, dx) side by side on one scale, a name for each kind above it.

    Rows are labels at an edge's first end, columns at its second. Raises ValueError if names and tables do not fit.
    """
    expected = [len(kinds), len(class_names), len(class_names)]
    if list(tables.shape) != expected:
        raise ValueError(f"tables: expected shape {expected} as there are names, got {list(tables.shape)}")
    shown = tables.detach().double().cpu().numpy()
    bound = float(np.abs(shown).max()) or 1.0
    drawn = figures_canvas.figure(1.2 + 3.6 * len(kinds), 4.4)
    axes = drawn.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    places = range(len(class_names))
    for ax, table, kind in zip(axes, shown, kinds, strict=True):
        picture = ax.imshow(table, cmap="bwr", vmin=-bound, vmax=bound, interpolation="nearest")
        ax.set_xticks(places, class_names, rotation=90, fontsize=6.5)
        ax.set_yticks(places, class_names, fontsize=6.5)
        ax.set_title(kind, fontsize=10)
    axes[0].set_ylabel("first end")
    drawn.supxlabel(f"second end, (dy, dx) = ({', '.join(str(int(step)) for step in offset)}) further on", fontsize=9)
    drawn.colorbar(picture, ax=list(axes), label="energy")
    figures_canvas.save(drawn, path)


def compress(offsets: Offsets) -> tuple[list[tuple[int, int]], tuple[list[int], list[int]]]:
    """Offsets in steps of the shifts that occur along each axis, and those shifts (with their opposites and 0), by axis.

    The step of -d is minus the step of d, so antipodes stay antipodes.

    >>> compress([(0, 1), (24, -6)])
    ([(0, 1), (1, -2)], ([-24, 0, 24], [-6, -1, 0, 1, 6]))
    """
    shifts = []
    for axis in (0, 1):
        sizes = sorted({abs(int(offset[axis])) for offset in offsets} | {0})
        shifts.append([-size for size in sizes[:0:-1]] + sizes)
    down, right = ({shift: place - len(along) // 2 for place, shift in enumerate(along)} for along in shifts)
    return [(down[int(dy)], right[int(dx)]) for dy, dx in offsets], (shifts[0], shifts[1])


def show_parts(ax: Axes, parts: NDArray[np.uint8], class_names: Sequence[str], background: int | None) -> None:
    """The labels of one image with the name of each on its largest stretch."""
    from matplotlib.patheffects import withStroke

    ax.imshow(plots.colorize(parts, len(class_names), background=background), interpolation="nearest")
    ax.set_axis_off()
    for label, name in enumerate(class_names):
        ys, xs = np.nonzero(parts == label)
        if label != background and len(ys):
            # the part's pixel nearest to its middle, so that the name stands on the part
            near = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
            outline = [withStroke(linewidth=1.5, foreground="white")]
            ax.text(xs[near], ys[near], name, fontsize=6.5, ha="center", va="center", path_effects=outline)


def show_neighbours(ax: Axes, offsets: Offsets) -> None:
    """The site in red, its neighbours in green, in pixels."""
    steps = np.array([[int(part) for part in offset] for offset in offsets])
    both = np.concatenate([steps, -steps])
    ax.scatter(both[:, 1], both[:, 0], marker="s", s=9, color="tab:green")
    ax.scatter([0], [0], marker="s", s=9, color="red")
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_xlabel("x-shift")
    ax.set_ylabel("y-shift")
    ax.set_title(f"{len(both)} neighbours", fontsize=10)
