"""Lightning and Accelerate resume to the same bits without a line about chains; both are optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf.datasets import Figures, collate


def parts() -> tuple[tc.CRFHead, DataLoader[Any]]:
    torch.manual_seed(0)
    data = tc.Indexed(Figures(8, size=(20, 16)))
    head = tc.CRFHead(
        nn.Conv2d(1, 20, 3, padding=1), tc.GridCRF(20, tc.Neighborhood.nearest(8)), chains=tc.ChainStore(data.sizes, seed=0)
    )
    return head, DataLoader(data, 2, collate_fn=collate)


def same(one: nn.Module, other: nn.Module) -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    assert [name for (name, a), b in pairs if not torch.equal(a, b)] == []


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_to_the_same_bits(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="pip install '.[examples]'")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.head, self.loader = parts()

        def training_step(self, batch: tuple[Tensor, ...], place: int) -> Tensor:
            return self.head(*batch)  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    def fit(epochs: int, path: Path | None = None) -> tuple[Any, Any]:
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, module.loader, ckpt_path=path)
        return trainer, module

    _, whole = fit(3)
    trainer, _ = fit(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    _, resumed = fit(3, tmp_path / "one.ckpt")
    same(whole, resumed)
    assert resumed.head.loss.chains.sweeps.tolist() == [30] * 8


def test_accelerate_resumes_to_the_same_bits_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="pip install '.[examples]'")

    def learn(stop: int | None, resume: bool) -> Any:
        accelerator = accelerate.Accelerator(cpu=True)
        head, loader = parts()
        optimizer = torch.optim.Adam(head.parameters(), 1e-2)
        head, optimizer, loader = accelerator.prepare(head, optimizer, loader)
        if resume:
            accelerator.load_state(tmp_path / "state")
            loader = accelerator.skip_first_batches(loader, 3)
        for step, batch in enumerate(loader):
            if step == stop:
                accelerator.save_state(tmp_path / "state")
                break
            optimizer.zero_grad()
            accelerator.backward(head(*batch))
            optimizer.step()
        return head

    whole = learn(None, False)
    learn(3, False)
    same(whole, learn(None, True))
