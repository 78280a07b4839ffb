"""What does it learn from? Folders of images or volumes and masks, .npz archives, made-up figures, and paired transforms."""

from tritoncrf.datasets.base import (
    VOID,
    Batch,
    Extras,
    Foreign,
    Indexed,
    IndexedSample,
    LabeledSamples,
    Sample,
    Samples,
    collate,
    concat,
)
from tritoncrf.datasets.depth import DepthScale
from tritoncrf.datasets.figures import Figures
from tritoncrf.datasets.folders import FolderDataset
from tritoncrf.datasets.npz import NpzDataset
from tritoncrf.datasets.transforms import (
    Flipped,
    HorizontalFlip,
    RandomCrop,
    RandomView,
    Transform,
    Transformed,
    left_right_pairs,
)
from tritoncrf.datasets.volumes import VolumeDataset

__all__ = [
    "VOID",
    "Batch",
    "DepthScale",
    "Extras",
    "Figures",
    "Flipped",
    "FolderDataset",
    "Foreign",
    "HorizontalFlip",
    "Indexed",
    "IndexedSample",
    "LabeledSamples",
    "NpzDataset",
    "RandomCrop",
    "RandomView",
    "Sample",
    "Samples",
    "Transform",
    "Transformed",
    "VolumeDataset",
    "collate",
    "concat",
    "left_right_pairs",
]
