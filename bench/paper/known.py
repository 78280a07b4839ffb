"""How well does a network know its own training images? ``python -m bench.paper.known --work runs/faces --data FOLDER``

A network that is nearly right, and sure, on the images it learned from leaves tables beside it little to learn there, and not
what other images need. The pre-trained network of a run answers for its training and its test images: accuracy, mean IoU, and
the cross-entropy in nats a labelled pixel whose label is not known anyway. Far apart, it has learned its images by heart.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import torch

import tritoncrf as tc
from bench.paper.figures import opened
from bench.paper.methods.descent import cross_entropy, free_pixels
from bench.paper.run import finished, program
from tritoncrf import contract
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate
from tritoncrf.metrics import Score


@dataclass(frozen=True)
class Known:
    """Of some images, pooled over their pixels."""

    part: str
    images: int
    accuracy: float
    mean_iou: float
    nats: float
    """Cross-entropy a pixel."""


@torch.no_grad()
def known(network: torch.nn.Module, images: tc.Indexed, part: str, device: torch.device) -> Known:
    """What the network alone says of the images."""
    score, nats, pixels = Score.empty(images.num_labels, images.background), 0.0, 0
    network.eval()
    for place in range(len(images)):
        batch = Batch.of(collate([images[place]]), device)
        logits = network(batch.image).float()
        counted = free_pixels(batch) & (batch.target != contract.VOID)
        score = score.plus(batch.target.masked_fill(~counted, contract.VOID), logits.argmax(1))
        nats += float(cross_entropy(logits, batch)) * int(counted.sum())
        pixels += int(counted.sum())
    return Known(part, len(images), score.accuracy, score.mean_iou, nats / max(1, pixels))


@program
def main(arguments: list[str] | None = None) -> None:
    problem = opened(finished("known", __doc__ or "").parse_args(arguments)).problem
    for part, images in (("training", problem.train), ("test", problem.test)):
        found = asdict(known(problem.network(), images, part, problem.device))
        print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}))


if __name__ == "__main__":
    sys.exit(main())
