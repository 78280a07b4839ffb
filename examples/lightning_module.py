"""How does a LightningModule learn a CRF, on several devices too, and go on after a stop?

It holds a `CRFHead`; chains travel in its checkpoint without a line, and are the same on any number of devices.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf.datasets import Figures, collate
from tritoncrf.networks import small
from tritoncrf.plots import colorize, label_grid


class Segmenter(lightning.LightningModule):
    def __init__(self, sizes: list[tuple[int, ...]]) -> None:
        super().__init__()
        crf = tc.GridCRF(20, tc.Neighborhood.grid(8, 4) | tc.Neighborhood.grid(1))
        self.head = tc.CRFHead(small(1, 20), crf, chains=tc.ChainStore(sizes, seed=0))

    def training_step(self, batch: tuple[Tensor, ...], place: int) -> Tensor:
        return self.head(*batch)

    def validation_step(self, batch: tuple[Tensor, ...], place: int) -> None:
        # Lightning has put the module in eval mode: no chain moves.
        image, target, _, extras = batch
        known = extras["known"]  # type: ignore[call-overload]
        labels = self.head.predict(image, sweeps=10, burn_in=5, labels=known, clamp=known != 255)
        self.log("accuracy", (labels == target)[known == 255].float().mean(), batch_size=len(image))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def trainer(steps: int, folder: Path, devices: int) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
        num_sanity_val_steps=0,
    )  # fmt: skip


def main(steps: int, devices: int, picture: str | None = None) -> None:
    lightning.seed_everything(0, verbose=False)
    data = tc.Indexed(Figures(16, size=(48, 32)))
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)
    held_out = DataLoader(tc.Indexed(Figures(4, seed=1, size=(48, 32))), batch_size=4, collate_fn=collate)
    half = max(steps // 2, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = Segmenter(data.sizes)
        fitter = trainer(half, folder, devices)
        fitter.fit(first, loader, held_out)
        # Every process has a folder of its own; the first one's is taken.
        path = fitter.strategy.broadcast(str(folder / "half.ckpt"))
        fitter.save_checkpoint(path)

        # Another process would begin here: weights, optimizer and chains come back.
        second = Segmenter(data.sizes)
        fitter = trainer(steps, folder, devices)
        fitter.fit(second, loader, held_out, ckpt_path=path, weights_only=True)
        (result,) = fitter.validate(second, held_out, verbose=False)
    chains = second.head.loss.chains
    assert chains is not None
    print(f"{fitter.global_step} steps, {int(chains.sweeps.sum())} sweeps, accuracy {result['accuracy']:.1%}")
    if picture is not None and fitter.is_global_zero:
        image, target, _, extras = next(iter(held_out))
        known = extras["known"]
        labels = second.head.predict(image, sweeps=10, burn_in=5, labels=known, clamp=known != 255)
        rows = [[image[n, 0], *(colorize(part[n], 20, background=19) for part in (target, labels))] for n in range(3)]
        label_grid(rows, ["depth", "truth", "network and CRF"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.devices, options.picture)
