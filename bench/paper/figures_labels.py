"""What does each method answer? Depth, truth and labels side by side, as in the paper's Fig. 1.

Rows are test images, columns the depth, the truth, and one column a method with the per cent of body pixels right under it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tritoncrf import plots
from tritoncrf.datasets import VOID


@dataclass(frozen=True)
class Example:
    """An image and what was said of it."""

    image: NDArray[np.float32]
    """[1, H, W] depth, or [3, H, W] colours, as a network gets it."""
    truth: NDArray[np.uint8]
    """[H, W], 255 where there is no label."""
    answers: Mapping[str, NDArray[np.uint8]]
    """Labels [H, W] by the method's title."""


def accuracy(labels: NDArray[np.uint8], truth: NDArray[np.uint8], background: int | None) -> float:
    """Share of right pixels among those with a true label that is not background; NaN without any.

    Raises ValueError if the shapes differ.
    """
    if labels.shape != truth.shape:
        raise ValueError(f"labels: expected {list(truth.shape)} like the truth, got {list(labels.shape)}")
    counted = (truth != VOID) & (truth != (VOID if background is None else background))
    return float((labels == truth)[counted].mean()) if counted.any() else float("nan")


def picture(image: NDArray[np.float32], truth: NDArray[np.uint8], background: int | None) -> NDArray[np.uint8]:
    """A network's input as one sees it, uint8 [H, W, 3]: near is dark, what is background white; colours as they were."""
    if len(image) == 3:
        # datasets scale bytes as (x / 255 - 0.5) * 4
        return (np.clip(np.moveaxis(image, 0, 2) / 4 + 0.5, 0, 1) * 255).round().astype(np.uint8)
    body = np.ones(truth.shape, bool) if background is None else truth != background
    depth = image[0].astype(np.float64)
    low, high = (depth[body].min(), depth[body].max()) if body.any() else (0.0, 1.0)
    grey = np.where(body, 200 * (depth - low) / max(high - low, 1e-6), 255)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def side_by_side(examples: Sequence[Example], num_labels: int, background: int | None, path: str | os.PathLike[str]) -> None:
    """Writes the figure. Raises ValueError without an example, or where examples hold unlike methods; as `plots.label_grid`."""
    if not examples:
        raise ValueError("examples: expected at least one, got none")
    titles = list(examples[0].answers)
    rows: list[list[ArrayLike]] = []
    captions: list[list[str]] = []
    for example in examples:
        if list(example.answers) != titles:
            raise ValueError(f"examples: expected answers of {', '.join(titles)}, got {', '.join(example.answers)}")
        labels = [example.truth, *example.answers.values()]
        rows.append([
            picture(example.image, example.truth, background),
            *(plots.colorize(part, num_labels, background=background) for part in labels),
        ])  # fmt: skip
        shares = {name: accuracy(part, example.truth, background) for name, part in example.answers.items()}
        captions.append([
            "depth" if len(example.image) == 1 else "image", "truth", *(f"{n}\n{100 * s:.1f} %" for n, s in shares.items())
        ])  # fmt: skip
    plots.label_grid(rows, captions, path)
