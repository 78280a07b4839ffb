"""How well do two people agree? ``python -m bench.paper.annotators --data FOLDER`` asks photographs that stand twice in a set.

Where an archive has a picture twice, bit for bit, each time with labels of its own, one annotation is scored by the other as a
model would be: the share of pixels with the same label, and mean IoU, pooled over the pairs; both are symmetric. No model that
learned from such annotations can be told to be better than that.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.paper.presets import FOLDS, PRESETS
from bench.paper.problem import repeated
from bench.paper.run import program
from tritoncrf.datasets import NpzDataset
from tritoncrf.datasets.base import LabeledSamples
from tritoncrf.metrics import Score

PHOTOGRAPHS = sorted({preset.name for preset in PRESETS.values() if preset.splits == FOLDS})


@dataclass(frozen=True)
class Agreement:
    """Of the pictures that stand more than once."""

    pairs: int
    accuracy: float
    mean_iou: float
    """NaN, both, without pairs."""


def agreement(dataset: LabeledSamples) -> Agreement:
    """A picture's first annotation beside each later one."""
    score, pairs = Score.empty(dataset.num_labels), 0
    for first, *others in repeated(dataset):
        for other in others:
            one, two = dataset[first][1], dataset[other][1]
            # A pixel that either leaves out says nothing.
            both = (one != 255) & (two != 255)
            score, pairs = score.plus(one[both], two[both]), pairs + 1
    return Agreement(pairs, score.accuracy, score.mean_iou)


@program
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper.annotators", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the archives")
    parser.add_argument("--preset", choices=PHOTOGRAPHS, default="faces")
    options = parser.parse_args(arguments)
    file = PRESETS[options.preset].file
    if file is None or not (options.data / file).is_file():
        raise FileNotFoundError(f"data: expected a folder that holds {file}, got {options.data}")
    found = agreement(NpzDataset(options.data / file, split=None))
    print(json.dumps({"pairs": found.pairs, "accuracy": round(found.accuracy, 5), "mean_iou": round(found.mean_iou, 5)}))


if __name__ == "__main__":
    sys.exit(main())
