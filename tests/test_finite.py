"""No number that is none gets into a weight, a table, an optimizer's state or a file, and the sentence names where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import checkpoint as files
from tritoncrf.datasets import Figures, collate
from tritoncrf.finite import GradientWatch, names_of


class Masked(nn.Module):
    """A network with a mask of infinities among its buffers, as attention has one."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 20, 3, padding=1)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.convolution(image)
        return result


def make(**given: Optimizer) -> tuple[tc.Trainer, DataLoader[object], Masked]:
    data = tc.Indexed(Figures(6, seed=1, size=(16, 16)))
    torch.manual_seed(0)
    network, crf = Masked(), tc.GridCRF(20, tc.Neighborhood.nearest(4))
    loss = tc.CRFLoss(crf, chains=tc.ChainStore(data.sizes, seed=3), sweeps=1)
    trainer = tc.Trainer(network, crf, loss=loss, quiet=True, optimizer=given.get("optimizer"))
    return trainer, DataLoader(data, 2, collate_fn=collate), network


def spoiled(parameter: Tensor | None, step: int, value: float) -> None:
    """One entry of a gradient becomes ``value`` at a step."""
    calls = iter(range(1, 100))

    def hook(grad: Tensor) -> Tensor:
        if next(calls) == step:
            grad = grad.clone()
            grad.flatten()[3] = value
        return grad

    assert parameter is not None
    parameter.register_hook(hook)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", ["network.convolution.bias", "crf.pairwise"])
def test_a_gradient_that_is_none_is_refused_before_the_step(which: str, value: float, tmp_path: Path) -> None:
    trainer, loader, network = make()
    spoiled(network.convolution.bias if which.startswith("network") else trainer.crf.pairwise, 5, value)
    path = tmp_path / "run.safetensors"
    with pytest.raises(FloatingPointError, match=rf"{which}: expected a finite gradient, .* at step 5 of 'joint'"):
        trainer.fit(loader, "joint", epochs=2, checkpoint=path, every=1)
    progress = files.group(files.group(files.read(path, kind="training"), "loop"), "progress")
    assert (progress["epoch"], progress["position"]) == (1, 1)
    assert all(bool(part.isfinite().all()) for part in (*network.parameters(), trainer.crf.pairwise))


def test_the_last_step_is_no_exception() -> None:
    trainer, loader, network = make()
    spoiled(network.convolution.weight, 3, torch.nan)
    with pytest.raises(FloatingPointError, match=r"network.convolution.weight: .* at step 3 of 'pretrain'"):
        trainer.pretrain(loader, 1)
    assert bool(network.convolution.weight.isfinite().all())


def test_a_weight_that_a_step_itself_spoils_never_reaches_the_file(tmp_path: Path) -> None:
    trainer, loader, network = make()
    path = tmp_path / "run.safetensors"
    trainer.pretrain(loader, 1, checkpoint=path)
    before = path.read_bytes()
    # Its third step is one of infinite length.
    rates = iter([0.1, 0.1, torch.inf] * 2)
    trainer.optimizer = torch.optim.SGD([trainer.crf.pairwise, *network.parameters()], lr=0.1)
    trainer.optimizer.register_step_pre_hook(lambda known, *_: known.param_groups[0].update(lr=next(rates)))
    for save in (None, path):
        with pytest.raises(FloatingPointError, match=r"(crf|network).*: expected finite numbers, got .* after step 3 of"):
            trainer.fit(loader, "joint", epochs=1, checkpoint=save)
        with torch.no_grad():
            for part in (*network.parameters(), trainer.crf.pairwise):
                part.zero_()
    assert path.read_bytes() == before


def test_a_moment_that_is_none_is_refused_and_a_mask_is_not(tmp_path: Path) -> None:
    trainer, loader, network = make()
    trainer.optimizer = torch.optim.Adam([trainer.crf.pairwise, *network.parameters()])
    path = tmp_path / "run.safetensors"
    trainer.fit(loader, "joint", epochs=1, checkpoint=path)
    trainer.save(path)
    before = path.read_bytes()
    assert network.convolution.bias is not None
    trainer.optimizer.state[network.convolution.bias]["exp_avg_sq"][0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"state of network.convolution.bias.exp_avg_sq: .* infinity; "):
        trainer.save(path)
    trainer.optimizer.state[network.convolution.bias]["exp_avg_sq"][0] = 0
    network.mask[0] = torch.nan  # type: ignore[operator]
    with pytest.raises(FloatingPointError, match=r"network.mask: expected finite numbers, got NaN; .* was not written"):
        trainer.save(path)
    assert path.read_bytes() == before


def test_where_the_host_does_not_look_a_fused_optimizer_leaves_the_step_out() -> None:
    """What happens on a GPU: the step is left out on the device, and the host hears of the first one when it asks."""
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    watch = GradientWatch("joint", optimizer, names_of(network=layer), 10)
    watch.immediate = False
    before = [part.detach().clone() for part in layer.parameters()]
    for value in (torch.nan, torch.inf):
        optimizer.zero_grad()
        layer(torch.full((1, 3), value)).sum().backward()
        flag = watch.observe(None)
        assert flag is not None
        assert bool(flag)
        optimizer.found_inf, optimizer.grad_scale = flag.float(), None  # type: ignore[attr-defined]
        optimizer.step()
    assert all(torch.equal(part, kept) for part, kept in zip(layer.parameters(), before, strict=True))
    with pytest.raises(FloatingPointError, match=r"network.weight: expected a finite gradient, .* at step 11 of 'joint'"):
        watch.settle()
    # Where the loss itself was void the fault is told elsewhere.
    watch = GradientWatch("joint", optimizer, names_of(network=layer), 0)
    assert watch.observe(torch.ones((), dtype=torch.bool)) is not None
    watch.settle()
