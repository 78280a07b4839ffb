"""At which size? What a preset fixes for all rows: data, network, visits, neighbourhood, rates and sweeps."""

from __future__ import annotations

from dataclasses import dataclass

import tritoncrf as tc
from tritoncrf.training import NETWORK_RATE, SEPARATE_RATE, TABLE_RATE

CLIP, RANDOM = "split_by_clip", "split"
# The small network with the view that the paper's has of its images.
VIEW = "bench.paper.networks:half"
# A strong one that sees all of an image.
UNET = "bench.paper.networks:unet"


@dataclass(frozen=True)
class Preset:
    """One size of the experiment."""

    name: str
    file: str | None
    """The archive within the data folder; None: generated figures."""
    splits: tuple[str, ...]
    """Names of the archive's split arrays, or of folds; the headline first."""
    train: int | None
    """Training images; None: all of the split."""
    test: int | None
    network: str
    pretrain: int
    """Epochs of cross-entropy before any row starts."""
    epochs: int
    """Further visits of each training image, the same in every row."""
    neighborhood: tc.Neighborhood
    table_rate: float = TABLE_RATE
    separate_rate: float = SEPARATE_RATE
    """Of the tables where the network stands still."""
    network_rate: float = NETWORK_RATE
    pretrain_rate: float = 3e-3
    visit_sweeps: int = 10
    """K of the PCD rows that do not name their own."""
    momentum: float | None = None
    """SGD with this momentum, as the paper has it; None: Adam."""
    burn_in: int = 20
    """Sweeps before averaging at test time."""
    sweeps: int = 40
    """Sweeps averaged at test time."""
    edges: str = "steps:0.1,0.3"
    """What chooses the tables in the rows with kinds: a text of `bench.paper.edges`."""
    bandwidth: float = 0.1
    """Of the Gaussian gates, in the image's unit: the median difference along edges of `half`'s training images."""
    rows: tuple[str, ...] = ()
    """What it is for; nothing named: every method."""


# Classes of the two dense blocks of `far`, which stand last.
DENSE = 8


def far(reach: int = 24, step: int = 6, unit: int = 1) -> tc.Neighborhood:
    """A sparse grid that reaches about a seventh of a figure's height, and two dense blocks around the site."""
    grid = tc.Neighborhood.grid
    return grid(reach * unit, step * unit) | grid(unit, unit) | grid(2 * unit, 2 * unit)


# What the claims of the larger and of the foreign presets rest on.
MAIN = ("cnn", "control", "separate_pcd", "joint_cd10", "joint_pcd")
FOLDS = tuple(f"fold{k}" for k in range(5))
# What photographs and the strong network are asked.
PHOTOGRAPHS = ("cnn", "control", "separate_pcd", "joint_pcd", "joint_kinds")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("toy", None, ("figures",), 48, 16, "small", pretrain=2, epochs=1, neighborhood=far(8, 4), burn_in=4, sweeps=8),
        Preset("half", "bodyparts_depth.npz", (CLIP, RANDOM), 1200, None, VIEW, pretrain=10, epochs=3, neighborhood=far()),
        Preset(
            "whole", "bodyparts_depth.npz", (CLIP, RANDOM), None, None, VIEW, pretrain=10, epochs=6, neighborhood=far(),
            rows=MAIN,
        ),
        Preset(
            "full", "bodyparts_depth_full.npz", (CLIP, RANDOM), None, None, "table1", pretrain=10, epochs=3,
            neighborhood=far(unit=2), table_rate=1e-3, network_rate=1e-5, pretrain_rate=1e-4, momentum=0.99, rows=MAIN,
        ),
        # Facades' chains mix slowly: on held-out images K = 10 ended below the control, K = 100 above it (one seed each).
        Preset(
            "facades", "cmp_facade.npz", FOLDS, None, None, VIEW, pretrain=20, epochs=4, neighborhood=far(), visit_sweeps=100,
            # The quantiles 1/2 and 4/5 of the colours' differences along edges of fold 0's training images, and the median.
            edges="contrast:0.8,1.95", bandwidth=0.8, rows=("cnn", "control", "separate_pcd", "joint_pcd"),
        ),
        # Few images, so more visits of each; thresholds and bandwidth by the facades' quantiles, of these training images.
        Preset(
            "faces", "fasseg_frontal02.npz", FOLDS, None, None, VIEW, pretrain=40, epochs=20, neighborhood=far(),
            edges="contrast:0.61,1.94", bandwidth=0.61, rows=PHOTOGRAPHS,
        ),
        # A strong network; where it learns on, at a third of the rate it was pre-trained with, as the small one does.
        Preset(
            "facades_unet", "cmp_facade.npz", FOLDS, None, None, UNET, pretrain=10, epochs=4, neighborhood=far(),
            network_rate=3e-4, pretrain_rate=1e-3, visit_sweeps=100, edges="contrast:0.8,1.95", bandwidth=0.8, rows=PHOTOGRAPHS,
        ),
        Preset(
            "faces_unet", "fasseg_frontal02.npz", FOLDS, None, None, UNET, pretrain=20, epochs=6, neighborhood=far(),
            network_rate=3e-4, pretrain_rate=1e-3, edges="contrast:0.61,1.94", bandwidth=0.61, rows=PHOTOGRAPHS,
        ),
        Preset(
            "half_unet", "bodyparts_depth.npz", (CLIP,), 300, None, UNET, pretrain=10, epochs=4, neighborhood=far(),
            network_rate=3e-4, pretrain_rate=1e-3, rows=PHOTOGRAPHS,
        ),
    )
}  # fmt: skip
