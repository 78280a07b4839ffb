"""Why does joint learning help? The network before and after it, one pixel's marginals, and what both CRFs answer: Fig. 3.

The paper's observation: learned jointly, the network alone looks worse, for its marginals grow ambiguous, which leaves the CRF
the power to choose.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.paper import figures_canvas
from bench.paper.figures_labels import accuracy
from tritoncrf import plots

Marginals = NDArray[np.float32]


@dataclass(frozen=True)
class Panel:
    """One answer: a title and marginals [L, H, W]."""

    title: str
    marginals: Marginals

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The most probable label of each pixel."""
        best: NDArray[np.uint8] = self.marginals.argmax(0).astype(np.uint8)
        return best


def entropy(marginals: Marginals) -> NDArray[np.float64]:
    """Entropy in nats of each pixel's marginal, [H, W]."""
    p = marginals.astype(np.float64)
    found: NDArray[np.float64] = -(p * np.log(np.maximum(p, 1e-30))).sum(0)
    return found


def choose_pixel(truth: NDArray[np.uint8], before: Panel, separate: Panel, after: Panel, joint: Panel) -> tuple[int, int]:
    """The pixel (y, x) to circle: of those that joint learning puts right, the one whose marginal grew most ambiguous.

    Pixels that the network before and the separate CRF have wrong and the joint CRF right; failing those, any that the joint
    CRF has right. Raises ValueError if there is none of them either.
    """
    right = joint.labels == truth
    won = right & (before.labels != truth) & (separate.labels != truth)
    wanted = won if won.any() else right
    if not wanted.any():
        raise ValueError("truth: expected a pixel that the joint CRF has right, got none")
    grown = np.where(wanted, entropy(after.marginals) - entropy(before.marginals), -np.inf)
    y, x = np.unravel_index(int(grown.argmax()), truth.shape)
    return int(y), int(x)


def ambiguity(
    panels: Sequence[Panel], truth: NDArray[np.uint8], pixel: tuple[int, int], class_names: Sequence[str],
    background: int | None, path: str | os.PathLike[str],
) -> None:  # fmt: skip
    """Writes the figure: labels of each panel with the pixel circled, its marginal as bars beneath; then the truth.

    truth: [H, W]; pixel: (y, x). Raises ValueError if a panel's shape is not that of the truth, or the pixel is outside.
    """
    y, x = pixel
    if not (0 <= y < truth.shape[0] and 0 <= x < truth.shape[1]):
        raise ValueError(f"pixel: expected (y, x) within {list(truth.shape)}, got {pixel}")
    for panel in panels:
        if panel.marginals.shape != (len(class_names), *truth.shape):
            raise ValueError(f"panels: expected {[len(class_names), *truth.shape]}, got {list(panel.marginals.shape)}")
    drawn = figures_canvas.figure(2.9 * (len(panels) + 1), 7.0)
    axes = drawn.subplots(2, len(panels) + 1, squeeze=False, height_ratios=[2.4, 1.0])
    shown = bars_of([panel.marginals[:, y, x] for panel in panels], int(truth[y, x]))
    colours = plots.palette(len(class_names)) / 255.0
    titles = [f"{panel.title}\n{100 * accuracy(panel.labels, truth, background):.1f} %" for panel in panels]
    for top, labels, title in zip(axes[0], [*(panel.labels for panel in panels), truth], [*titles, "truth"], strict=True):
        top.imshow(plots.colorize(labels, len(class_names), background=background), interpolation="nearest")
        for width, colour in ((3.5, "white"), (1.5, "black")):
            top.plot([x], [y], marker="o", markersize=13, markerfacecolor="none", markeredgewidth=width, color=colour)
        top.set_title(title, fontsize=10)
        top.set_axis_off()
    for bottom, panel in zip(axes[1], panels, strict=False):
        bottom.barh(range(len(shown)), panel.marginals[shown, y, x], color=colours[shown], edgecolor="black", linewidth=0.5)
        names = [f"{class_names[label]} (true)" if label == truth[y, x] else class_names[label] for label in shown]
        bottom.set_yticks(range(len(shown)), names, fontsize=8)
        bottom.set_xlim(0, 1)
        bottom.invert_yaxis()
        bottom.set_xlabel("marginal of the circled pixel", fontsize=8)
    axes[1, -1].set_axis_off()
    figures_canvas.save(drawn, path)


def bars_of(marginals: Sequence[NDArray[np.float32]], true: int, least: float = 0.03, most: int = 8) -> list[int]:
    """The labels worth a bar: the true one, and those that reach ``least`` in some panel, likeliest first, ``most`` at most."""
    peak = np.max(np.stack(marginals), 0)
    order = [int(label) for label in np.argsort(-peak, kind="stable") if peak[label] >= least and label != true]
    return sorted([true, *order[: most - 1]], key=lambda label: (-float(peak[label]), label))
