"""How does a SegFormer under Accelerate learn a CRF? Its quarter-size logits come to the images' size in the `CRFHead`."""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import tritoncrf as tc
from tritoncrf.datasets import Figures, collate
from tritoncrf.plots import colorize, label_grid


def main(steps: int, picture: str | None = None) -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    data = tc.Indexed(Figures(16, size=(64, 64)))
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)
    # A small one with random weights, so that nothing is downloaded.
    config = SegformerConfig(
        num_channels=1, num_labels=20, depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 96], num_attention_heads=[1, 1, 2, 4],
        decoder_hidden_size=64,
    )  # fmt: skip
    crf = tc.GridCRF(20, tc.Neighborhood.grid(8, 4) | tc.Neighborhood.grid(1))
    chains = tc.ChainStore(data.sizes, device=accelerator.device, seed=0)
    # ``.logits`` of what the model returns are found by themselves.
    head = tc.CRFHead(SegformerForSemanticSegmentation(config), crf, chains=chains)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)
    head, optimizer, loader = accelerator.prepare(head, optimizer, loader)

    step = 0
    while step < steps:
        for batch in loader:
            loss = head(*batch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step == steps:
                break
    plain = accelerator.unwrap_model(head)
    labels = plain.predict(data[0][0][None].to(accelerator.device), sweeps=10, burn_in=5)
    accelerator.print(f"{step} steps, labels of {list(labels.shape)}, {int(chains.sweeps.sum())} sweeps")
    if picture is not None:
        image, target, *_ = data[0]
        shown = [image[0], *(colorize(part, 20, background=19) for part in (target, labels[0].cpu()))]
        label_grid([shown], ["depth", "truth", "SegFormer and CRF"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
