"""How many operations of torch a training step costs on a GPU beside its engine's: each is a launch that the host makes.

Counted on meta tensors, on which the Triton engine launches no kernel. Views launch nothing, nor does memory that is only asked
for. What the engine and the sampler around it do is counted apart. Also here: that figures nobody asked for, and
checks that a look at the host's own numbers answers, cost nothing, and that what is shared or left out changes no value.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import pickle
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tritoncrf as tc
from tests.test_step import Unheard
from tritoncrf import guard, layout, monitor
from tritoncrf.engines import triton as engine

DEVICE = torch.device("meta")
PACKAGE = Path(tc.__file__).parent
THEIRS = ("sampler.py", "chains.py")
NO_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (Linux only)")


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations by the function of this package that is innermost when they run: ours, and those of engine and sampler."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ours: Counter[str] = Counter()
        self.theirs: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        """Launches, by kernel."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if not (func.is_view or "empty" in name or "lift_fresh" in name or "_unsafe_view" in name):
            self._note()
        return func(*args, **(kwargs or {}))

    def _note(self) -> None:
        frame, innermost, engines = sys._getframe(2), "", False
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if PACKAGE in path.parents:
                # Of a condition counts who states it.
                innermost = innermost or ("" if path.name == "guard.py" else f"{path.name}:{frame.f_code.co_name}")
                engines = engines or "engines" in path.parts or "kernels" in path.parts
            frame = frame.f_back  # type: ignore[assignment]
        own = not engines and not innermost.startswith(THEIRS)
        (self.ours if own else self.theirs)[innermost or "torch"] += 1


def count(images: int = 1, method: str = "pcd", sizes: bool = False, extra: bool = False) -> Launches:
    """Of the third of as many steps; their logits are leaves."""
    shape, labels = (178, 85), 20
    store = tc.ChainStore([shape] * images, seed=1, device=DEVICE) if method == "pcd" else None
    loss = tc.CRFLoss(tc.GridCRF(labels, tc.Neighborhood.nearest(8)), chains=store, method=method, engine="torch").to(DEVICE)
    loss.sampler.requested = "triton"
    target = torch.zeros(images, *shape, dtype=torch.long, device=DEVICE)
    index = torch.zeros(images, dtype=torch.long, device=DEVICE)
    given = {"sizes": torch.ones(images, 2, dtype=torch.long, device=DEVICE)} if sizes else {}
    if extra:
        given["mask"] = given["clamp"] = torch.ones(images, *shape, dtype=torch.bool, device=DEVICE)
    logits = torch.zeros(images, labels, *shape, device=DEVICE, requires_grad=True)
    for _ in range(3):
        logits.grad = None
        loss.zero_grad()
        with (mode := Launches()), noted(mode.kernels):
            loss(logits, target, index, **given).backward()
    return mode


@contextlib.contextmanager
def noted(kernels: Counter[str]) -> Iterator[None]:
    """Every launch that a launcher asks for inside is counted: on meta tensors it is not made."""
    package = importlib.import_module("tritoncrf.kernels")
    names = [part.name for part in pkgutil.iter_modules(package.__path__)]
    modules = [importlib.import_module(f"tritoncrf.kernels.{name}") for name in names if name != "device"]

    def note(kernel: Any, programs: int, *given: object, **options: object) -> None:
        kernels[kernel.fn.__name__] += bool(programs)

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            if hasattr(module, "launch"):
                patch.setattr(module, "launch", note)
        yield


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 12), "sixteen images": ({"images": 16}, 12), "sizes": ({"sizes": True}, 90),
    "mask and clamp": ({"extra": True}, 92), "all": ({"images": 3, "sizes": True, "extra": True}, 109),
    "cd": ({"method": "cd"}, 12),
}  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(engine, "missing", lambda device, labels: None)
    monkeypatch.setattr(guard, "Deferred", Unheard)


@NO_TRITON
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("device")
def test_a_step_costs_few_operations(name: str) -> None:
    given, most = CASES[name]
    found = count(**given)
    kernels = sum(found.kernels.values())
    print(f"{name}: {found.ours.total()} ours, {found.theirs.total()} of engine and sampler, {kernels} launches of kernels")
    for place, times in found.ours.most_common():
        print(f"{times:6} {place}")
    assert found.ours.total() <= most
    # Something was counted.
    assert found.theirs.total() > 10
    assert found.kernels["sweep_chains"] == 2
    # All that a plain step costs the host.
    if name in ("plain", "sixteen images", "cd"):
        assert found.ours.total() + found.theirs.total() + kernels <= 40


@NO_TRITON
@pytest.mark.usefixtures("device")
def test_reading_figures_is_what_costs() -> None:
    loss = tc.CRFLoss(tc.GridCRF(4, tc.Neighborhood.nearest(8)), method="cd", engine="torch").to(DEVICE)
    loss.sampler.requested = "triton"
    loss(torch.zeros(1, 4, 5, 6, device=DEVICE), torch.zeros(1, 5, 6, dtype=torch.long, device=DEVICE))
    with (mode := Launches()):
        assert loss.statistics is not None
    assert mode.ours["statistics.py:statistics"] > 5


def learned() -> tuple[tc.CRFLoss, Callable[[], Tensor]]:
    store = tc.ChainStore([(5, 6)] * 3, seed=0)
    loss = tc.CRFLoss(tc.GridCRF(4, tc.Neighborhood.nearest(8)), chains=store, sweeps=2, validate=False)
    make = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 6, generator=make), torch.randint(0, 4, (2, 5, 6), generator=make)
    return loss, lambda: loss(logits.clone().requires_grad_(), target, torch.tensor([2, 0]))


def test_figures_are_those_of_their_call_whatever_happens_after() -> None:
    loss, step = learned()
    step()
    counted, first = loss._statistics, loss.statistics
    assert first is not None
    for _ in range(3):
        step()
    assert counted is not None
    assert not isinstance(counted, monitor.Statistics)
    assert monitor.numbers(counted.statistics()) == monitor.numbers(first)
    assert loss.statistics is not None
    assert monitor.numbers(loss.statistics) != monitor.numbers(first)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert isinstance(other._statistics, monitor.Statistics)
        assert monitor.numbers(other._statistics) == monitor.numbers(loss.statistics)
    loss.statistics = None
    assert loss.statistics is None


def test_a_value_may_be_written_into() -> None:
    _, step = learned()
    value = step()
    value += 1
    value.backward()  # type: ignore[no-untyped-call]


def test_labels_that_others_wrote_are_looked_at_again() -> None:
    loss, step = learned()
    step()
    assert loss.chains is not None
    step()
    assert not bool(loss.invalid)
    loss.chains.labels[0, 7] = 77
    step()
    assert bool(loss.invalid)
    with pytest.raises(ValueError, match="chains: expected a store of chains of 4 labels"):
        step()
    # Nobody has mended them.
    step()
    assert bool(loss.invalid)


def test_an_image_that_stands_twice_keeps_its_first_chain() -> None:
    def run(index: list[int], images: int) -> Tensor:
        store = tc.ChainStore([(5, 6)] * 3, seed=0)
        loss = tc.CRFLoss(tc.GridCRF(4, tc.Neighborhood.nearest(8)), chains=store, sweeps=2)
        make = torch.Generator().manual_seed(0)
        logits, target = torch.randn(3, 4, 5, 6, generator=make), torch.randint(0, 4, (3, 5, 6), generator=make)
        target[2] = target[0]
        loss(logits[:images].requires_grad_(), target[:images], torch.tensor(index))
        assert store.sweeps.tolist() == [2 if image in index else 0 for image in range(3)]
        return store.labels

    assert torch.equal(run([2, 0, 2], 3), run([2, 0], 2))


def test_frames_are_shared_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layout.Layout.build(tc.Neighborhood.nearest(8), (36, 18), torch.device("cpu"))
    assert made.frame((33, 17)) is made.frame((33, 17))
    assert made.nbytes > made.coordinates.nbytes + made.positions.nbytes
    monkeypatch.setattr(layout, "SHARED", 0)
    made.frame((34, 17))
    assert list(made.shared) == [(34, 17)]
    # A graph's own frames are not kept for others, and one that it reads is never let go.
    monkeypatch.setattr(layout, "capturing", lambda device: True)
    assert made.frame((35, 17)) is not made.frame((35, 17))
    held = made.frame((34, 17))
    monkeypatch.setattr(layout, "capturing", lambda device: False)
    made.frame((36, 17))
    assert (34, 17) not in made.shared
    assert made.frame((34, 17)) is held
