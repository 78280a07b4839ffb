"""How do MONAI's volumes get a CRF? Dict items of arrays, a 3-D U-Net, and sliding windows over what does not fit whole."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from monai.data import Dataset
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureChannelFirstd, ScaleIntensityd
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf.datasets import collate
from tritoncrf.plots import colorize, label_grid


def volumes(count: int, shape: tuple[int, int, int], seed: int) -> list[dict[str, np.ndarray]]:
    """Balls of label 1 in noise."""
    make = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        centre = [make.uniform(0.3, 0.7) * n for n in shape]
        where = np.indices(shape)
        ball = sum((axis - middle) ** 2 for axis, middle in zip(where, centre, strict=True)) < (min(shape) / 4) ** 2
        image = ball + make.normal(0, 0.7, shape)
        found.append({"image": image.astype(np.float32), "label": ball.astype(np.uint8)})
    return found


def main(steps: int, picture: str | None = None) -> None:
    torch.manual_seed(0)
    shape = (16, 16, 16)
    make = Compose([EnsureChannelFirstd(["image", "label"], channel_dim="no_channel"), ScaleIntensityd("image")])
    # Of a mapping, image and target are told by their keys.
    data = tc.Indexed(Dataset(volumes(8, shape, 0), make), image="image", target="label")
    loader = DataLoader(data, batch_size=2, shuffle=True, collate_fn=collate)
    network = UNet(3, 1, 2, channels=(8, 16), strides=(2,), norm="batch")
    crf = tc.GridCRF(2, tc.Neighborhood.nearest(6, ndim=3))
    head = tc.CRFHead(network, crf, chains=tc.ChainStore(data.sizes, seed=0))
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    step = 0
    while step < steps:
        for image, target, index in loader:
            loss = head(image, target, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == steps:
                break

    head.eval()
    test = tc.Indexed(Dataset(volumes(1, (24, 32, 40), 1), make), image="image", target="label")
    image, target, _ = test[0]
    # Either MONAI's windows, averaged, give the logits of the whole volume to one CRF ..
    with torch.no_grad():
        logits = sliding_window_inference(image[None], shape, 4, head, overlap=0.5)
    whole = tc.max_marginal(crf, logits, sweeps=20, burn_in=10)
    # .. or network and CRF run a window at a time.
    tiled = head.predict_tiled(image[None], tile=16, overlap=4, sweeps=20, burn_in=10)
    for name, labels in (("MONAI's windows", whole), ("tiles", tiled)):
        print(f"{name}: {(labels[0] == target).float().mean():.1%} of the voxels right")
    if picture is not None:
        middle = target.shape[0] // 2
        given = [part[middle] for part in (target, logits[0].argmax(0), whole[0])]
        shown = [image[0, middle], *(colorize(torch.as_tensor(part).long(), 2) for part in given)]
        label_grid([shown], ["middle slice", "truth", "U-Net alone", "U-Net and CRF"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
