"""How does a plain torch loop learn network and CRF together? A network, a `CRFHead`, an optimizer."""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf.datasets import Figures, collate
from tritoncrf.networks import small
from tritoncrf.plots import colorize, label_grid


def main(steps: int, picture: str | None = None) -> None:
    torch.manual_seed(0)
    # Items are (image, target, extras); Indexed adds the number by which an image's chain is found.
    data = tc.Indexed(Figures(24, size=(48, 32)))
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)

    # Tables for 8 far offsets, 4 pixels apart, and for the 4 nearest neighbours.
    crf = tc.GridCRF(20, tc.Neighborhood.grid(8, 4) | tc.Neighborhood.grid(1))
    head = tc.CRFHead(small(1, 20), crf, chains=tc.ChainStore(data.sizes, seed=0))
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

    # The loss is a difference of energies: its value says little, these figures say more.
    told = head.loss.statistics
    assert told is not None
    print(f"flip rate {told.flip_rate:.3f}, chains right at {told.chain_accuracy:.1%} of the pixels")

    image, target, extras = Figures(1, seed=1, size=(48, 32))[0]  # type: ignore[misc]
    known = extras["known"][None]
    labels = head.predict(image[None], sweeps=20, burn_in=10, labels=known, clamp=known != 255)
    print(f"a new image: {(labels[0] == target).float().mean():.1%} of the pixels right")
    if picture is not None:
        with torch.no_grad():
            alone = head(image[None])[0].argmax(0).where(known[0] == 255, known[0])
        shown = [image[0], *(colorize(part, 20, background=19) for part in (target, alone, labels[0]))]
        label_grid([shown], ["depth", "truth", "network alone", "network and CRF"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
