"""The standard problem: one image of 130 x 330 pixels, 20 labels, the 64 nearest neighbours; energies, lower is better.

"calm" is like a trained model (about 0.6 % of the sites change per sweep at equilibrium), "busy" changes about 2 %, "hot" most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import tritoncrf as tc

HEIGHT, WIDTH, LABELS = 130, 330, 20
KINDS = ("calm", "busy", "hot")


@dataclass(frozen=True)
class Standard:
    """logits float32 ``[1, L, H, W]`` (negated unary energies) and the CRF whose tables are the problem's."""

    logits: Tensor
    crf: tc.GridCRF


def standard(kind: str = "calm", seed: int = 0) -> Standard:
    """The standard problem of that kind, from numpy's generator: the same arrays on every machine with the same libm."""
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    neighborhood = tc.Neighborhood.nearest(64)
    random = np.random.default_rng(seed)
    size = (len(neighborhood), LABELS, LABELS)
    if kind == "hot":
        unary = random.normal(0, 1, (HEIGHT, WIDTH, LABELS)).astype(np.float32)
        pairwise = random.normal(0, 0.1, size).astype(np.float32)
    else:
        scale = {"calm": 1.0, "busy": 0.75}[kind]
        distance = np.hypot(*np.array(neighborhood.offsets).T)
        tables = random.normal(0, 0.03, size) - np.eye(LABELS) * (0.35 / distance)[:, None, None]
        scores = np.eye(LABELS)[_ellipses(random)] * 4.0 + random.normal(0, 1.3, (HEIGHT, WIDTH, LABELS))
        unary = ((np.log(np.exp(scores).sum(-1, keepdims=True)) - scores) * scale).astype(np.float32)
        pairwise = (tables * scale).astype(np.float32)
    logits = torch.from_numpy(-unary).movedim(-1, 0)[None].contiguous()
    return Standard(logits, tc.GridCRF(LABELS, neighborhood, torch.from_numpy(pairwise)))


def _ellipses(random: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH]
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label in range(1, LABELS):
        y, x = HEIGHT // 2 + random.integers(-40, 40), WIDTH // 2 + random.integers(-110, 110)
        height, width = random.integers(6, 16, 2)
        truth[((ys - y) / height) ** 2 + ((xs - x) / width) ** 2 < 1] = label
    return truth
