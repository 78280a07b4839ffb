"""A run with the user's own optimizers over several stages, stopped at any save, resumes bit for bit, its lines too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import tritoncrf as tc
from tests.test_training import stops_after
from tritoncrf import checkpoint as files
from tritoncrf.checkpoint import Tree
from tritoncrf.datasets import Figures, collate

NEAR = tc.Neighborhood.nearest(4)


class Counting(Optimizer):
    """Keeps a count and a running factor in its groups, as some published optimizers do."""

    def __init__(self, params: object, lr: float) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "factor": 1.0, "decay": 0.0})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            group["factor"] *= 0.9
            for part in group["params"]:
                if part.grad is not None:
                    part -= group["lr"] * group["factor"] * (part.grad + group["decay"] * part)


MAKERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda parts: torch.optim.SGD(parts, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda parts: torch.optim.Adam(parts, lr=0.1, amsgrad=True),
    "adamw, a tensor as rate": lambda parts: torch.optim.AdamW(parts, lr=torch.tensor(0.1), foreach=False),
    "nadam": lambda parts: torch.optim.NAdam(parts, lr=0.1),
    "adagrad": lambda parts: torch.optim.Adagrad(parts, lr=0.1),
    "counting": lambda parts: Counting(parts, lr=0.1),
}
DECAY = {"counting": "decay"}
STAGES = {
    "separate, joint": ("separate", "joint"),
    "separate, joint, joint with another decay": ("separate", "joint", "decay", "joint"),
    "separate, more of the network alone, joint": ("separate", "pretrain", "joint"),
    "alone by the same optimizer, joint": ("pretrain by it", "joint"),
}


class Run:
    """The script a user would run, and run again after a stop; ``rates``: those that its steps were taken with."""

    def __init__(self, folder: Path, optimizer: str, stages: tuple[str, ...]) -> None:
        self.rates: list[float] = []
        folder.mkdir(exist_ok=True)
        data = tc.Indexed(Figures(4, seed=1, size=(16, 16)))
        loader: DataLoader[object] = DataLoader(data, 2, shuffle=True, collate_fn=collate)
        torch.manual_seed(0)
        network, crf = nn.Conv2d(1, 20, 3, padding=1), tc.GridCRF(20, NEAR)
        torch.manual_seed(1)
        parts = [crf.pairwise, *network.parameters()]
        made = MAKERS[optimizer](parts)
        made.register_step_pre_hook(lambda known, *_: self.rates.append(float(known.param_groups[0]["lr"])))
        loss = tc.CRFLoss(crf, chains=tc.ChainStore(data.sizes, seed=3), sweeps=1)
        self.trainer = tc.Trainer(network, crf, loss=loss, optimizer=made, quiet=True, log=folder / "log.jsonl")
        path = folder / "run.safetensors"
        if path.exists():
            self.trainer.load(path)
        for stage in stages:
            if stage == "decay":
                made.param_groups[0][DECAY.get(optimizer, "weight_decay")] = 0.2
            elif stage.startswith("pretrain"):
                own = made if stage == "pretrain by it" else None
                self.trainer.pretrain(loader, 1, stage=stage, checkpoint=path, every=1, optimizer=own)
            else:
                self.trainer.fit(loader, stage, epochs=2, checkpoint=path, every=1)


def tensors(tree: Tree, name: str = "") -> Iterator[tuple[str, object]]:
    """All leaves of a tree but times."""
    if isinstance(tree, dict):
        for key, part in tree.items():
            if key != "seconds":
                yield from tensors(part, f"{name}.{key}")
    elif isinstance(tree, list | tuple):
        for place, part in enumerate(tree):
            yield from tensors(part, f"{name}[{place}]")
    else:
        yield name, tree


def lines(folder: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


QUICK = [("sgd", 0), ("sgd", 2), ("counting", 1), ("adamw, a tensor as rate", 3)]
CASES = [
    pytest.param(optimizer, stages, id=f"{optimizer}: {name}", marks=() if (optimizer, k) in QUICK else pytest.mark.slow)
    for optimizer in MAKERS
    for k, (name, stages) in enumerate(STAGES.items())
]


@pytest.mark.parametrize(("optimizer", "stages"), CASES)
def test_any_optimizer_any_stages_any_stop(
    optimizer: str, stages: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tritoncrf.monitor.LOG_STEPS", 1)
    whole = Run(tmp_path / "whole", optimizer, stages)
    expected = dict(tensors(files.read(tmp_path / "whole" / "run.safetensors", kind="training")))
    wanted = lines(tmp_path / "whole")
    epochs = sum(1 if stage.startswith("pretrain") else 2 for stage in stages if stage != "decay")
    for stop in range(1, 3 * epochs + 1):
        folder = tmp_path / f"stop{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(tc.Trainer, "save", stops_after(stop))
            with pytest.raises(RuntimeError, match="stopped"):
                Run(folder, optimizer, stages)
        again = Run(folder, optimizer, stages)
        assert not again.rates or again.rates == whole.rates[-len(again.rates) :], stop
        found = dict(tensors(files.read(folder / "run.safetensors", kind="training")))
        assert found.keys() == expected.keys(), stop
        for name, value in expected.items():
            same = torch.equal(value, found[name]) if isinstance(value, Tensor) else value == found[name]  # type: ignore[arg-type]
            assert same, (stop, name, value, found[name])
        assert lines(folder) == wanted, stop


def test_a_second_stage_starts_at_the_callers_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by the save that ends the first stage, which holds a rate of 0."""
    with monkeypatch.context() as patch:
        patch.setattr(tc.Trainer, "save", stops_after(6))
        with pytest.raises(RuntimeError, match="stopped"):
            Run(tmp_path, "sgd", ("separate", "joint"))
    assert Run(tmp_path, "sgd", ("separate", "joint")).rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_a_save_between_load_and_the_next_stage_keeps_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tc.Trainer, "save", stops_after(4))
        with pytest.raises(RuntimeError, match="stopped"):
            Run(tmp_path, "adam", ("separate", "joint"))
    path = tmp_path / "run.safetensors"
    before = dict(tensors(files.read(path, kind="training")))
    trainer = Run(tmp_path / "other", "adam", ()).trainer
    trainer.load(path)
    trainer.save(path)
    found = dict(tensors(files.read(path, kind="training")))
    assert found.keys() == before.keys()
    assert all(torch.equal(value, found[name]) for name, value in before.items() if isinstance(value, Tensor))  # type: ignore[arg-type]
