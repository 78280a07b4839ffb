"""Does the strong network take any image, and is its absence one sentence before anything is written?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.paper.__main__ import main
from bench.paper.networks import Padded, grouped, unet
from bench.paper.presets import PRESETS, UNET

DATA = Path(__file__).parents[2] / "shared" / "data"


class Strided(nn.Module):
    """Halves its images and doubles them again; sides that do not divide are refused, as a U-Net does."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm, self.up = nn.Conv2d(1, 32, 2, 2), nn.BatchNorm2d(32), nn.ConvTranspose2d(32, 3, 2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[-2] % 2 or image.shape[-1] % 2:
            raise ValueError("sides that do not divide")
        logits: torch.Tensor = self.up(self.norm(self.down(image)))
        return logits


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (1, 1)])
def test_images_of_any_size_get_logits_of_that_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network, image = Padded(grouped(Strided()), 2), torch.randn(2, 1, *size)
    logits = network(image)
    assert logits.shape == (2, 3, *size)
    # What stands below and to the right is zeros, whoever puts them there.
    wide = torch.zeros(2, 1, *(side + side % 2 for side in size))
    wide[..., : size[0], : size[1]] = image
    assert torch.equal(network.network(wide)[..., : size[0], : size[1]], logits)


def test_an_image_gets_the_logits_of_its_own_whatever_is_beside_it_and_in_training_too() -> None:
    torch.manual_seed(0)
    network, images = grouped(Strided()), torch.randn(3, 1, 8, 8)
    norm = network.get_submodule("norm")
    assert isinstance(norm, nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (2, 32)
    alone = network.eval()(images[:1])
    torch.testing.assert_close(network.train()(images)[:1], alone)


def test_without_the_library_it_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ImportError, match=r"^network: expected segmentation_models_pytorch \(pip install segm"):
        unet(3, 12)
    (tmp_path / "cmp_facade.npz").write_bytes(b"not looked at")
    out = tmp_path / "out"
    assert main(["--preset", "facades_unet", "--data", str(tmp_path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench.paper: network: expected segmentation_models_pytorch")
    assert said.count("\n") == 1
    assert not out.exists()


def test_the_presets_of_the_strong_network_differ_from_the_small_ones_in_the_network_and_its_learning() -> None:
    for name in ("facades", "half"):
        strong, small = PRESETS[f"{name}_unet"], PRESETS[name]
        assert strong.network == UNET
        same = ("file", "neighborhood", "table_rate", "separate_rate", "visit_sweeps", "burn_in", "sweeps", "edges")
        assert all(getattr(strong, field) == getattr(small, field) for field in same)


def test_the_unet_is_resnet18s() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    network = unet(1, 20)
    assert sum(part.numel() for part in network.parameters()) == 14_324_692
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    assert network(torch.randn(1, 1, 37, 90)).shape == (1, 20, 37, 90)
