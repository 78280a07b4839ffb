"""How does a U-Net of segmentation_models_pytorch learn Dice and a CRF at once? Dice is what ``auxiliary`` adds."""

from __future__ import annotations

import argparse

import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf.datasets import Figures, collate
from tritoncrf.plots import colorize, label_grid


def main(steps: int, picture: str | None = None) -> None:
    torch.manual_seed(0)
    data = tc.Indexed(Figures(16, size=(64, 64)))
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=20)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)

    def dice_term(logits: Tensor, target: Tensor) -> Tensor:
        return dice(logits, target)

    crf = tc.GridCRF(20, tc.Neighborhood.grid(8, 4) | tc.Neighborhood.grid(1))
    head = tc.CRFHead(network, crf, chains=tc.ChainStore(data.sizes, seed=0), auxiliary=dice_term)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3)
    step = 0
    while step < steps:
        for batch in loader:
            loss = head(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break

    head.eval()
    image, target, *_ = next(iter(loader))
    labels = head.predict(image, sweeps=10, burn_in=5).long()
    counts = smp.metrics.get_stats(labels, target, mode="multiclass", num_classes=20)
    print(f"{step} steps, micro IoU {smp.metrics.iou_score(*counts, reduction='micro'):.1%}")
    if picture is not None:
        rows = [[image[n, 0], *(colorize(part[n], 20, background=19) for part in (target, labels))] for n in range(3)]
        label_grid(rows, ["depth", "truth", "U-Net and CRF"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
