"""The loss in a step that is compiled whole, and in one that may neither wait for its device nor copy from the host."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tritoncrf as tc
from tritoncrf import gradient, guard, reduction, validation
from tritoncrf.engines import triton as engine

SIZES = [(6, 7), (5, 4), (8, 6)]
# Tensors without data: whatever reads one on the host raises, and their engine runs as shapes only.
DEVICE = torch.device("meta")
NO_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")


class Placements(TorchFunctionMode):
    """Tensors made of the host's numbers, which leave no trace among the operations where a device has no data."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        listed = func is Tensor.__getitem__ and any(isinstance(key, list) for key in (args[1], *tree_leaves([args[1]])))
        # A number is filled in where there are axes, but copied from the host into a place that has none.
        lone = func is Tensor.__setitem__ and not isinstance(args[2], Tensor) and not args[0][args[1]].dim()
        if func in self.MAKERS or listed or lone:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Stalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What would make the host wait for a GPU, or copy to it, of all operations that run under it."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "repeat_interleave.Tensor", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        name = str(func).removeprefix("aten.")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = tree_leaves(args[1]) if name.startswith("index") and len(args) > 1 else []
        masks = any(isinstance(place, Tensor) and place.dtype in (torch.bool, torch.uint8) for place in places)
        if masks or name.removesuffix(".default").startswith(self.READS) or any(leaf.device.type == "cpu" for leaf in given):
            self.found.append(name)
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(out)):
            self.found.append(name)
        return out


class Unheard(guard.Deferred):
    """On its way for ever."""

    copied = False

    def __init__(self, sentences: tuple[str, ...], good: Tensor, spare: list[guard.FlagBuffer]) -> None:
        self.sentences = sentences


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(engine, "missing", lambda device, labels: None)
    monkeypatch.setattr(guard, "Deferred", Unheard)


def stalls(method: str = "pcd", latent: bool = False, replicas: int = 1, learning: bool = True) -> Stalls:
    """Of the second step of network, loss and backward; the first makes what a layout keeps on its device."""
    net = nn.Conv2d(1, 4, 3, padding=1, device=DEVICE)
    store = tc.ChainStore(SIZES, seed=1, device=DEVICE, latent=latent, replicas=replicas) if method == "pcd" else None
    crf = tc.GridCRF(4, tc.Neighborhood.nearest(8))
    loss = tc.CRFLoss(crf, chains=store, method=method, sweeps=2, engine="torch").to(DEVICE)
    loss.sampler.requested = "triton"
    loss.train(learning)
    area = torch.zeros(3, 8, 7, dtype=torch.bool, device=DEVICE)
    image, target, index = area[:, None].float(), area.long(), torch.arange(3, device=DEVICE)
    sizes = torch.ones(3, 2, dtype=torch.long, device=DEVICE)
    for _ in range(2):
        with (mode := Stalls()), Placements(mode.found):
            value = loss(net(image), target, index, sizes=sizes, mask=~area, clamp=area)
            if learning:
                value.backward()
    assert loss.sampler.engine_name == "triton"
    return mode


@NO_TRITON
@pytest.mark.parametrize("learning", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("method", "latent", "replicas"), [("pcd", False, 1), ("pcd", True, 2), ("cd", False, 1)])
@pytest.mark.usefixtures("device")
def test_a_step_neither_waits_for_its_device_nor_copies_to_it(method: str, latent: bool, replicas: int, learning: bool) -> None:
    mode = stalls(method, latent, replicas, learning)
    assert mode.found == []
    assert mode.seen > (100 if learning else 50)


def read(chains: Any) -> None:
    chains.flips.sum().item()


def ask(chains: Any) -> None:
    bool(chains.flips.any())


def place(chains: Any) -> None:
    chains.flips + torch.tensor([[1]], device=chains.flips.device)


def carry(chains: Any) -> None:
    torch.ones(3).to(chains.flips.device)


def pick(chains: Any) -> None:
    chains.flips[chains.flips > 0]


def write(chains: Any) -> None:
    chains.flips.flatten()[-1] = 0


@NO_TRITON
@pytest.mark.parametrize("fault", [read, ask, place, carry, pick, write])
@pytest.mark.usefixtures("device")
def test_a_planted_stall_is_found(fault: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    right = gradient.errors

    def stalling(sampler: Any, data: Any, free: Any, *given: Any) -> gradient.Errors:
        fault(free)
        return right(sampler, data, free, *given)

    monkeypatch.setattr(reduction, "errors", stalling)
    try:
        found = stalls().found
    except (RuntimeError, NotImplementedError):
        return
    assert found


@NO_TRITON
@pytest.mark.usefixtures("device")
def test_tables_are_laid_out_anew_only_when_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    right = engine.retable

    def counted(*given: Any) -> Any:
        calls.append(0)
        return right(*given)

    monkeypatch.setattr(engine, "retable", counted)
    crf = tc.GridCRF(4, tc.Neighborhood.nearest(8)).to(DEVICE)
    sampler = tc.Sampler(crf, engine="triton")
    chains = sampler.run(sampler.init(torch.zeros(1, 4, 5, 6, device=DEVICE)), 1)
    assert not calls
    with torch.no_grad():
        crf.pairwise.add_(1)
    sampler.run(sampler.run(chains, 1), 1)
    assert len(calls) == 1


@NO_TRITON
@pytest.mark.usefixtures("device")
def test_a_captured_call_asks_nothing_and_leaves_earlier_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = tc.CRFLoss(tc.GridCRF(4, tc.Neighborhood.nearest(8)), method="cd", sweeps=1, engine="torch").to(DEVICE)
    loss.sampler.requested = "triton"
    given = torch.zeros(1, 4, 5, 6, device=DEVICE), torch.zeros(1, 5, 6, dtype=torch.long, device=DEVICE)
    loss(*given)
    watch = loss.sampler.guard
    waiting, counter = list(watch._pending), loss.visits
    assert len(waiting) == 1
    for module in (guard, validation):
        monkeypatch.setattr(module, "capturing", lambda device: True)
    loss(*given)
    assert not watch._open
    assert watch._pending == waiting
    assert loss.visits is counter
    assert loss.invalid is not None


def model() -> tc.GridCRF:
    make = torch.Generator().manual_seed(0)
    return tc.GridCRF(4, tc.Neighborhood.nearest(8), 0.3 * torch.randn(4, 4, 4, generator=make))


def batch(extra: bool, images: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    make = torch.Generator().manual_seed(1)
    image, target = torch.randn(3, 1, 8, 7, generator=make), torch.randint(0, 4, (3, 8, 7), generator=make)
    target[0, 2, 3] = 255
    given = {"index": torch.arange(3), "sizes": torch.tensor(SIZES)}
    if extra:
        mask, clamp = torch.ones(3, 8, 7, dtype=torch.bool), torch.zeros(3, 8, 7, dtype=torch.bool)
        mask[1, 0, 0], clamp[:, 1] = False, True
        given |= {"mask": mask, "clamp": clamp}
    return image[:images], target[:images], {name: value[:images] for name, value in given.items()}


def steps(
    compiler: str | None, method: str, latent: bool, extra: bool, engine: str, images: int = 3, backward: bool = False
) -> list[Tensor]:
    """Everything that two steps leave behind."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    store = tc.ChainStore(SIZES, seed=7, latent=latent, replicas=2) if method == "pcd" else None
    loss = tc.CRFLoss(model(), chains=store, method=method, sweeps=2, engine=engine, seed=3)
    image, target, given = batch(extra, images)

    def step(image: Tensor, target: Tensor, given: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        value = loss(net(image), target, **given)
        if backward:
            value.backward()
            value = value.detach()
        assert loss.statistics is not None
        return value, loss.invalid, loss.statistics.flip_rate

    run = step if compiler is None else torch.compile(step, backend=compiler, fullgraph=True)
    left: list[Tensor] = []
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1)
    for _ in range(2):
        value, *figures = run(image, target, given)
        assert value is not None
        if not backward:
            value.backward()  # type: ignore[no-untyped-call]
        left += [value.detach(), *(part for part in figures if part is not None)]
        left += [p.grad.clone() for p in [*net.parameters(), *loss.parameters()] if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    return [*left, loss.visits, *(() if store is None else (store.labels, store.sweeps))]


def same(compiler: str, *options: Any) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected, found = steps(None, *options), steps(compiler, *options)
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-6) if a.is_floating_point() else torch.equal(a, b)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize(("method", "latent", "extra"), [("pcd", True, False), ("pcd", False, True), ("cd", False, True)])
def test_a_step_compiled_whole_does_as_the_plain_one(method: str, latent: bool, extra: bool, engine: str) -> None:
    same("aot_eager", method, latent, extra, engine)


@pytest.mark.slow
def test_a_step_compiled_to_machine_code_does_as_the_plain_one() -> None:
    same("inductor", "pcd", False, True, "numba")


def test_a_step_compiled_with_its_backward_does_as_the_plain_one() -> None:
    import torch._dynamo

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        same("aot_eager", "pcd", False, True, "numba", 3, True)


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="runs in a process of its own")
def test_interpreted() -> None:
    same("aot_eager", "cd", False, True, "triton", 1)


@NO_TRITON
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="starts that process")
def test_the_triton_engine_in_a_step_compiled_whole() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_interpreted", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "1 passed" in done.stdout


def test_a_compiled_step_reports_bad_values_as_the_plain_one_does() -> None:
    store = tc.ChainStore(SIZES, seed=7)
    loss = tc.CRFLoss(model(), chains=store, sweeps=2)
    image, target, given = batch(False)
    run = torch.compile(lambda x, y, i, s: loss(x * 1.0, y, i, sizes=s), backend="aot_eager", fullgraph=True)
    logits, index, sizes = image.expand(-1, 4, -1, -1), given["index"], given["sizes"]
    run(logits, target, index, sizes)
    labels = store.labels.clone()
    with pytest.raises(ValueError, match=r"logits: expected finite .* got NaN in image 0"):
        run(logits * torch.nan, target, index, sizes)
    with pytest.raises(ValueError, match="index: expected positions from 0 to 2, got 3"):
        run(logits, target, index + 1, sizes)
    assert torch.equal(store.labels, labels)


@pytest.mark.parametrize(("latent", "phases"), [(False, 1), (True, 2)])
def test_only_images_with_latent_pixels_sample_a_data_phase(latent: bool, phases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = tc.CRFLoss(model(), method="cd", sweeps=1, seed=0)
    begun: list[int] = []
    right = loss.sampler.begin

    def counted(*given: Any) -> Any:
        begun.append(0)
        return right(*given)

    monkeypatch.setattr(loss.sampler, "begin", counted)
    loss(torch.zeros(1, 4, 5, 6), torch.full((1, 5, 6), 255) if latent else torch.zeros(1, 5, 6, dtype=torch.long))
    assert len(begun) == phases


def test_a_store_of_other_chains_is_named() -> None:
    store = tc.ChainStore([(5, 6)], seed=0)
    store.labels.fill_(7)
    loss = tc.CRFLoss(model(), chains=store)
    with pytest.raises(ValueError, match="chains: expected a store of chains of 4 labels, got label 7 in it"):
        loss(torch.zeros(1, 4, 5, 6), torch.zeros(1, 5, 6, dtype=torch.long), torch.tensor([0]))


def test_chains_of_inference_mode_stay_in_it() -> None:
    sampler = tc.Sampler(model())
    with torch.inference_mode():
        chains = sampler.run(sampler.init(torch.zeros(1, 4, 5, 6)), 1)
    with pytest.raises(ValueError, match=r"chains: expected chains made outside of torch\.inference_mode"):
        sampler.run(chains, 1)
    with torch.inference_mode():
        sampler.run(chains, 1)
