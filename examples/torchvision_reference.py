"""How does torchvision's reference loop for segmentation learn a CRF? Its criterion becomes a `CRFHead`, aux head and all.

The loop is that of torchvision's references/segmentation/train.py: SGD, the rate falling as a polynomial, and the auxiliary
head's cross-entropy, weighed by 0.5, which ``auxiliary`` adds.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.segmentation import fcn_resnet50

import tritoncrf as tc
from tritoncrf.datasets import Figures, collate
from tritoncrf.plots import colorize, label_grid


class Colour(Figures):
    """Figures as images of three channels, without what is known of their background."""

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, target, *_ = super().__getitem__(i)
        return image.expand(3, -1, -1), target


def aux_term(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return 0.5 * F.cross_entropy(output["aux"], target, ignore_index=255)


def main(steps: int, picture: str | None = None) -> None:
    torch.manual_seed(0)
    data = tc.Indexed(Colour(8, size=(48, 32)))
    loader = DataLoader(data, batch_size=2, shuffle=True, collate_fn=collate, drop_last=True)
    model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=20, aux_loss=True)
    crf = tc.GridCRF(20, tc.Neighborhood.grid(8, 4) | tc.Neighborhood.grid(1))
    # The network's "out" is found by itself.
    head = tc.CRFHead(model, crf, chains=tc.ChainStore(data.sizes, seed=0), auxiliary=aux_term)

    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    aux = [p for p in model.aux_classifier.parameters() if p.requires_grad]
    groups = [
        {"params": backbone},
        {"params": list(model.classifier.parameters())},
        {"params": aux, "lr": 0.01 * 10},
        {"params": list(crf.parameters()), "lr": 1e-3},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)

    step = 0
    while step < steps:
        head.train()
        for image, target, index in loader:
            loss = head(image, target, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == steps:
                break
    head.eval()
    image, target, _ = data[0]
    labels = head.predict(image[None], sweeps=10, burn_in=5)[0]
    print(f"{step} steps, {(labels == target).float().mean():.1%} of an image's pixels right")
    if picture is not None:
        shown = [image[0], *(colorize(part, 20, background=19) for part in (target, labels))]
        label_grid([shown], ["depth", "truth", "FCN and CRF"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
