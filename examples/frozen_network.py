"""How is a network that is done improved by a CRF? Its weights stay, the tables alone learn beside it."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf.datasets import Figures, Indexed, collate
from tritoncrf.networks import small
from tritoncrf.plots import colorize, label_grid


def trained(data: Indexed, steps: int) -> nn.Module:
    """Stands for the network you have: cross-entropy, without any CRF."""
    network = small(1, 20, dilations=(1, 2, 1))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        image, target, *_ = next(iter(DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)))
        optimizer.zero_grad()
        F.cross_entropy(network(image), target).backward()
        optimizer.step()
    return network


def main(steps: int, picture: str | None = None) -> None:
    torch.manual_seed(0)
    data = tc.Indexed(Figures(24, size=(48, 32)))
    network = trained(data, steps)

    network.requires_grad_(False)  # and head.train() leaves it in eval mode
    crf = tc.GridCRF(20, tc.Neighborhood.grid(8, 4) | tc.Neighborhood.grid(1))
    head = tc.CRFHead(network, crf, chains=tc.ChainStore(data.sizes, seed=0))
    optimizer = torch.optim.Adam(crf.parameters(), 3e-3)
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)
    head.train()
    for _ in range(-(-steps // len(loader))):
        for batch in loader:
            optimizer.zero_grad()
            head(*batch).backward()
            optimizer.step()

    test = [Figures(8, seed=1, size=(48, 32))[i] for i in range(8)]
    image, target, known = (torch.stack(part) for part in zip(*((x, y, e["known"]) for x, y, e in test), strict=True))  # type: ignore[misc]
    there = known == 255
    alone = head(image).argmax(1).where(there, known)
    whole = head.predict(image, sweeps=20, burn_in=10, labels=known, clamp=~there)
    for name, labels in (("network alone", alone), ("with the CRF", whole)):
        print(f"{name}: {(labels == target)[there].float().mean():.1%} of the body pixels right")
    if picture is not None:
        rows = [[image[n, 0], *(colorize(part[n], 20, background=19) for part in (target, alone, whole))] for n in range(3)]
        label_grid(rows, ["depth", "truth", "network alone", "with the CRF"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
