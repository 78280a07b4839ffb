"""Torch's default device and dtype change nothing: every tensor names its own, so that bits and files stay what they are."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import diagnostics, engines

HOOD = tc.Neighborhood.nearest(8)
ENGINES = [name for name, state in engines.report(torch.device("cpu")).items() if state == "ready"]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


class Unnamed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where a tensor of the default device or dtype comes up though none went in."""

    def __init__(self, odd: Callable[[Tensor], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.odd, self.pixel_indices = odd, set[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        if not any(map(self.odd, given)) and any(isinstance(part, Tensor) and self.odd(part) for part in tree_leaves(found)):
            frames = [frame for frame in traceback.extract_stack() if "/tritoncrf/" in frame.filename]
            self.pixel_indices |= {f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in frames[-1:]}
        return found


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu", dtype=torch.float32)


def adam_follows() -> bool:
    """Whether this torch's Adam counts its steps on the default device, as 2.11's does."""
    part = nn.Parameter(torch.zeros(1, device="cpu"))
    part.grad = torch.zeros_like(part)
    optimizer = torch.optim.Adam([part])
    with torch.device("meta"), contextlib.suppress(RuntimeError):
        optimizer.step()
    return any(kept.is_meta for kept in optimizer.state[part].values())


def work(engine: str, folder: Path, training: bool = True) -> list[Tensor]:
    """Numbers of nearly everything that a user calls on CPU tensors."""
    cpu, found = torch.device("cpu"), list[Tensor]()
    tables, gated = 0.3 * noise(4, 2, 5, 5), 0.2 * noise(1, 4, 5, 5, seed=1)
    crf = tc.GridCRF(5, HOOD, tables, kinds=2, gates=1, gated=gated)
    logits = noise(3, 5, 9, 8, seed=2).requires_grad_()
    target = torch.arange(216, device=cpu).view(3, 9, 8) % 5
    sizes = torch.tensor([[9, 8], [7, 8], [9, 5]], device=cpu)
    more: dict[str, Any] = {"sizes": sizes, "kinds": (target[:, None] % 2).expand(-1, 4, -1, -1).to(torch.uint8)}
    more["gates"] = noise(3, 1, 4, 9, 8, seed=3).sigmoid()
    index = torch.tensor([0, 2, 1], device=cpu)
    for reduction in ("mean", "none"):
        chains = tc.ChainStore([(9, 8), (9, 5), (7, 8)], seed=3, latent=True)
        weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0], device=cpu)
        loss = tc.CRFLoss(crf, chains=chains, sweeps=2, engine=engine, weight=weight, reduction=reduction)
        value = loss(logits, target.masked_fill(target == 3, 255), index, **more)
        value.sum().backward()
        assert logits.grad is not None
        assert crf.pairwise.grad is not None
        found += [value.detach(), logits.grad.clone(), crf.pairwise.grad.clone(), chains.labels]
        found += [part.double() for part in vars(loss.statistics).values()]
        loss.load_state_dict(loss.state_dict())
        with torch.no_grad():
            found.append(loss(logits, target, index, **more))
    chains.save(folder / "chains.safetensors")
    found.append(tc.ChainStore.load(folder / "chains.safetensors").labels)
    given = logits.detach()
    answer = tc.estimate(crf, given, sweeps=4, burn_in=2, replicas=2, engine=engine, **more)
    found += [answer.marginals, answer.labels, answer.traces, answer.flip_rate, answer.rhat, answer.ess]
    found += [tc.anneal(crf, given, sweeps=3, replicas=2, engine=engine, **more), crf.energy(given, target, **more)]
    found += [crf.log_pseudolikelihood(given, target, **more)]
    found += [crf.pair_counts(target, sizes=sizes, kinds=more["kinds"])]
    found += [diagnostics.lag(crf, chains, given, index, sweeps=2, engine=engine, **more)]
    if training:
        found += trained(folder)
    return [part.detach().clone() for part in found]


class Plain(DataLoader[object]):
    """Torch's own draws a seed on the default device."""

    def __iter__(self) -> Iterator[object]:  # type: ignore[override]
        return iter(self.dataset)


def trained(folder: Path) -> list[Tensor]:
    labels = torch.arange(60, device="cpu").view(2, 6, 5) % 4
    batches = [(noise(2, 1, 6, 5, seed=k), labels, torch.tensor([2 * k, 2 * k + 1], device="cpu")) for k in (0, 1)]
    loader = Plain(batches, batch_size=None)  # type: ignore[arg-type]
    network = nn.Conv2d(1, 4, 3, padding=1, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        network.weight.copy_(noise(4, 1, 3, 3, seed=5))
        network.bias.zero_()  # type: ignore[union-attr]
    crf = tc.GridCRF(4, HOOD, torch.zeros(4, 4, 4, device="cpu", dtype=torch.float32))
    trainer = tc.Trainer(network, crf, chains=tc.ChainStore([(6, 5)] * 4, seed=1), quiet=True)
    path = folder / "run.safetensors"
    path.unlink(missing_ok=True)
    trainer.pretrain(loader, 1, checkpoint=path)
    trainer.fit(loader, "joint", epochs=1, checkpoint=path, every=1, validation=loader)
    trainer.load(path)
    scores = trainer.evaluate(loader, sweeps=2, burn_in=1)
    return [network.weight, trainer.crf.pairwise, scores.crf.confusion]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", ["device", "dtype", "a wide dtype"])
def test_defaults_change_nothing(engine: str, what: str, tmp_path: Path) -> None:
    training = what != "device" or not adam_follows()
    expected = work(engine, tmp_path, training)
    if what == "device":
        torch.set_default_device("meta")
        watch = Unnamed(lambda part: part.is_meta)
    else:
        kind = torch.bfloat16 if what == "dtype" else torch.float64
        torch.set_default_dtype(kind)
        # Some float64 is wanted: of that the results tell.
        watch = Unnamed(lambda part: part.dtype == torch.bfloat16)
    with watch:
        found = work(engine, tmp_path, training)
    # What safetensors makes of a file's bytes before it is a tensor is its own, and so is torch 2.11's empty one a checkpoint.
    assert not [place for place in watch.pixel_indices if "file.get_tensor" not in place and "torch.cat([checkpoint(" not in place]
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
