"""A run that is killed and resumed gives the bits of one that was not; the stages learn; errors lose nothing."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from tests.warm import Program, Started, Warm
from tritoncrf import checkpoint as files
from tritoncrf import networks
from tritoncrf.checkpoint import CheckpointError
from tritoncrf.datasets import Figures, collate

NEAR = tc.Neighborhood.grid(8, 4) | tc.Neighborhood.grid(1)


class Noisy(torch.utils.data.Dataset[tuple[object, ...]]):
    """Figures whose images depend on torch's, numpy's and Python's generators, as augmentation does."""

    def __init__(self, count: int) -> None:
        self.figures = tc.Indexed(Figures(count, seed=1, size=(32, 24), ragged=True))
        self.sizes = self.figures.sizes
        self.background = self.figures.background

    def __len__(self) -> int:
        return len(self.figures)

    def __getitem__(self, index: int) -> tuple[object, ...]:
        image, *rest = self.figures[index]
        noise = torch.randn(()) + np.random.normal() + random.random()  # noqa: NPY002
        return (image + 0.01 * noise, *rest)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 20, 3, padding=1))


def make(folder: Path, *, method: str = "pcd") -> tuple[tc.Trainer, DataLoader[object]]:
    data = Noisy(10)
    loader: DataLoader[object] = DataLoader(data, 2, shuffle=True, collate_fn=collate)
    net = network()
    crf = tc.GridCRF(20, NEAR)
    loss = tc.CRFLoss(crf, chains=tc.ChainStore(data.sizes, seed=3), method=method, sweeps=2)
    torch.manual_seed(1), np.random.seed(2), random.seed(3)  # noqa: NPY002
    return tc.Trainer(net, crf, loss=loss, quiet=True, log=folder / "log.jsonl"), loader


def run(folder: Path, method: str = "pcd", epochs: int = 2) -> tc.Trainer:
    """The script a user would run, and run again after a kill."""
    torch.set_num_threads(1)
    trainer, loader = make(folder, method=method)
    path = folder / "run.safetensors"
    if path.exists():
        trainer.load(path)
    trainer.pretrain(loader, epochs, checkpoint=path, every=1)
    trainer.fit(loader, "joint", epochs=epochs, checkpoint=path, every=2)
    return trainer


def state(folder: Path) -> dict[str, Tensor]:
    """Everything that learning changed, as it lies on the disk."""
    tree = files.read(folder / "run.safetensors", kind="training")
    found = {"pairwise": files.tensor(tree, "pairwise")}
    history = tree["history"]
    assert isinstance(history, list)
    found["losses"] = torch.tensor([line["loss"] for line in history], dtype=torch.float64)
    for part in ("network", "chains", "loss"):
        found |= {f"{part}.{name}": value for name, value in files.tensors(tree, part).items()}
    return found


@pytest.mark.parametrize(("kills", "epochs"), [(3, 8), pytest.param(20, 40, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_on_the_same_bits(warm: Warm, tmp_path: Path, kills: int, epochs: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(whole, epochs=epochs)
    expected = state(whole)
    code = f"import tests.test_training as t, pathlib; t.run(pathlib.Path({str(broken)!r}), epochs={epochs})"
    chance = random.Random(5)
    for _ in range(kills):
        process = warm.start(["-c", code])
        _wait_for_steps(process, broken, chance.uniform(0.0, 0.2))
        assert process.running(), "finished before it could be killed"
        process.kill()
        process.wait()
    # Nothing may hang on hashes of strings, which forks share.
    assert warm.run(["-c", code], real=True).returncode == 0
    found = state(broken)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    print(f"{kills} kills, {len(expected)} tensors equal")


def _wait_for_steps(process: Program | Started, folder: Path, more: float) -> None:
    """Until the process has started writing, and a random while longer, so that kills fall between and inside steps."""
    path = folder / "run.safetensors"
    before = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.monotonic() + 60
    while process.running() and time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime_ns != before:
            break
        time.sleep(0.005)
    time.sleep(more)


@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_every_stop_between_two_steps_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, method)
    expected = state(whole)
    for stop in (1, 4, 5, 7, 9):
        broken = tmp_path / f"broken{stop}"
        broken.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(tc.Trainer, "save", stops_after(stop))
            with pytest.raises(RuntimeError, match="stopped"):
                run(broken, method)
        run(broken, method)
        found = state(broken)
        for name, value in expected.items():
            assert torch.equal(value, found[name]), (stop, name)


def stops_after(stop: int) -> Callable[[tc.Trainer, str | os.PathLike[str]], None]:
    """A save that breaks off the run once it has saved for the ``stop``-th time."""
    original, saves = tc.Trainer.save, itertools.count(1)

    def save(self: tc.Trainer, path: str | os.PathLike[str]) -> None:
        original(self, path)
        if next(saves) == stop:
            raise RuntimeError("stopped")

    return save


def bare(folder: Path) -> tuple[tc.Trainer, DataLoader[object]]:
    """A trainer with nothing given: its seed comes from torch's generator when learning starts."""
    data = tc.Indexed(Figures(6, seed=1, size=(24, 16)))
    loader: DataLoader[object] = DataLoader(data, 2, shuffle=True, collate_fn=collate)
    torch.manual_seed(0)
    net = nn.Conv2d(1, 20, 3, padding=1)
    torch.manual_seed(1)
    return tc.Trainer(net, tc.GridCRF(20, NEAR), quiet=True), loader


def chain_of_stages(folder: Path) -> None:
    """Three stages, two of them of one name, with the defaults of the README."""
    trainer, loader = bare(folder)
    path = folder / "run.safetensors"
    if path.exists():
        trainer.load(path)
    trainer.pretrain(loader, 1, checkpoint=path, every=1)
    trainer.fit(loader, "joint", epochs=1, checkpoint=path, every=1)
    trainer.fit(loader, "joint", epochs=2, checkpoint=path, every=1)


def test_stages_of_one_name_resume_wherever_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    chain_of_stages(whole)
    expected = state(whole)
    for stop in range(1, 16):
        broken = tmp_path / f"broken{stop}"
        broken.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(tc.Trainer, "save", stops_after(stop))
            with pytest.raises(RuntimeError, match="stopped"):
                chain_of_stages(broken)
        chain_of_stages(broken)
        found = state(broken)
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), stop


def test_a_finished_run_is_not_run_again_and_another_one_is_refused(tmp_path: Path) -> None:
    chain_of_stages(tmp_path)
    before = state(tmp_path)
    chain_of_stages(tmp_path)
    assert all(torch.equal(value, state(tmp_path)[name]) for name, value in before.items())
    trainer, loader = bare(tmp_path)
    trainer.load(tmp_path / "run.safetensors")
    with pytest.raises(CheckpointError, match="expected to go on as saved with 'pretrain', 1 epochs of 3 batches, got 'joint'"):
        trainer.fit(loader, "joint", epochs=5)
    trainer, loader = bare(tmp_path)
    trainer.load(tmp_path / "run.safetensors", resume=False)
    assert torch.equal(trainer.crf.pairwise, before["pairwise"])
    trainer.fit(loader, "joint", epochs=1)
    assert not torch.equal(trainer.crf.pairwise, before["pairwise"])


def test_a_load_that_fails_changes_nothing(tmp_path: Path) -> None:
    chain_of_stages(tmp_path)
    other = tc.Trainer(
        nn.Conv2d(1, 20, 3, padding=1), tc.GridCRF(20, NEAR), chains=tc.ChainStore([(24, 16)] * 7, seed=0), quiet=True
    )
    weight = other.network.weight.clone()  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="chains: expected 'labels' of shape"):
        other.load(tmp_path / "run.safetensors")
    assert torch.equal(weight, other.network.weight)  # type: ignore[arg-type]
    assert not bool(other.crf.pairwise.any())


def test_known_labels_are_scored_against_the_truth(tmp_path: Path) -> None:
    trainer, _ = bare(tmp_path)
    image, target = torch.zeros(1, 1, 4, 4), torch.full((1, 4, 4), 3)
    known = torch.full((1, 4, 4), 5, dtype=torch.uint8)
    items = [(image, target, torch.zeros(1).long(), {"known": known})]
    loader: DataLoader[object] = DataLoader(items, batch_size=None)  # type: ignore[arg-type]
    assert trainer.evaluate(loader, sweeps=1, burn_in=0).crf.accuracy == 0


def test_bad_targets_and_images_stop_every_stage(tmp_path: Path) -> None:
    trainer, _ = bare(tmp_path)
    good, label, index = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4).long(), torch.zeros(1).long()

    def loader(image: Tensor, target: Tensor) -> DataLoader[object]:
        return DataLoader([(image, target, index)], batch_size=None)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="target: expected labels from 0 to 19"):
        trainer.pretrain(loader(good, label + 37), 1)
    with pytest.raises(ValueError, match="target: expected labels from 0 to 19"):
        trainer.evaluate(loader(good, label + 37))
    with pytest.raises(ValueError, match=r"logits: .* got NaN"):
        trainer.pretrain(loader(good * torch.nan, label), 1)
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.network.parameters())


def test_the_first_sample_is_the_pretrained_networks(tmp_path: Path) -> None:
    """Strong tables hold whatever the first draw gave, so the answer tells which network drew it."""
    trainer, _ = bare(tmp_path)
    with torch.no_grad():
        trainer.crf.pairwise.copy_(-8 * torch.eye(20).expand_as(trainer.crf.pairwise))
    first = {name: torch.zeros_like(value) for name, value in trainer.network.state_dict().items()}
    first["bias"][7] = 50.0
    trainer.pretrained = first
    from tritoncrf.batches import Batch

    batch = Batch(torch.randn(1, 1, 12, 10), torch.zeros(1, 12, 10).long(), torch.zeros(1).long())
    assert bool((trainer.marginals(batch, 2, 1)[1].argmax(1) == 7).all())


def test_rates_frozen_parts_and_modes_are_the_users(tmp_path: Path) -> None:
    trainer, loader = bare(tmp_path)
    trainer.network = nn.Sequential(nn.BatchNorm2d(1), trainer.network)
    trainer.network[0].eval()
    assert trainer.chains is None
    trainer.optimizer = torch.optim.SGD([*trainer.network.parameters(), trainer.crf.pairwise], lr=0.1)
    seen: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    trainer.fit(loader, "joint", epochs=1)
    trainer.evaluate(loader, sweeps=1, burn_in=0)
    assert not trainer.network[0].training
    assert trainer.optimizer.param_groups[0]["lr"] == 0.1
    trainer.optimizer.param_groups[0]["lr"] = 0.01
    trainer.fit(loader, "joint", epochs=1)
    assert seen == pytest.approx([0.1, 0.2 / 3, 0.1 / 3, 0.01, 0.02 / 3, 0.01 / 3])


def test_a_fault_in_resuming_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the generators are not restored, so the data order after a resume is another one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run(whole)
    trainer, loader = make(broken)
    trainer.pretrain(loader, 2, checkpoint=broken / "run.safetensors", every=1)
    monkeypatch.setattr("tritoncrf.generators.restore", lambda *given: None)
    run(broken)
    assert any(not torch.equal(value, state(broken)[name]) for name, value in state(whole).items())


def test_ctrl_c_finishes_the_step_saves_and_stops(tmp_path: Path) -> None:
    trainer, loader = make(tmp_path)
    path = tmp_path / "run.safetensors"
    handled = signal.getsignal(signal.SIGINT)
    steps = 0

    class Pressing(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            nonlocal steps
            steps += 1
            if steps == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return image

    trainer.network.insert(0, Pressing())  # type: ignore[operator]
    with pytest.raises(KeyboardInterrupt):
        trainer.pretrain(loader, 2, checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is handled
    assert files.group(files.group(files.read(path, kind="training"), "loop"), "progress")["position"] == 3


def test_the_stages_learn_and_the_history_tells(tmp_path: Path) -> None:
    data = tc.Indexed(Figures(24, seed=1, size=(32, 24)))
    loader: DataLoader[object] = DataLoader(data, 4, shuffle=True, collate_fn=collate)
    torch.manual_seed(0)
    trainer = tc.Trainer(networks.small(1, 20, width=8), tc.GridCRF(20, NEAR), quiet=True, log=tmp_path / "log.jsonl")
    before = trainer.evaluate(loader, sweeps=2, burn_in=0).network.accuracy
    trainer.pretrain(loader, 10)
    after = trainer.evaluate(loader, sweeps=2, burn_in=0).network.accuracy
    assert after > before + 0.1
    frozen = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.fit(loader, "separate", epochs=2, validation=loader)
    assert all(torch.equal(value, frozen[name]) for name, value in trainer.network.state_dict().items())
    assert bool(trainer.crf.pairwise.any())
    trainer.fit(loader, "joint", epochs=1)
    assert any(not torch.equal(value, frozen[name]) for name, value in trainer.network.state_dict().items())
    assert [line["stage"] for line in trainer.history] == ["pretrain"] * 10 + ["separate"] * 2 + ["joint"]
    assert 0 < float(str(trainer.history[-2]["accuracy"])) < 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= 13
    assert trainer.chains is not None
    assert trainer.chains.sweeps.tolist() == [30] * 24


def test_a_falling_validation_accuracy_warns(tmp_path: Path) -> None:
    trainer, loader = make(tmp_path)
    trainer.history.append({"stage": "joint", "accuracy": 0.99})
    with pytest.warns(UserWarning, match=r"fell to .* from 0.990: the network runs ahead of the chains"):
        trainer.fit(loader, "joint", epochs=1, validation=loader)


def test_a_void_step_leaves_a_fused_optimizer_alone() -> None:
    """What happens on a GPU where values are not waited for: parameters and moments stay as they were."""
    net, crf = nn.Conv2d(1, 4, 1), tc.GridCRF(4, tc.Neighborhood.nearest(4))
    loss = tc.CRFLoss(crf, method="cd", sweeps=1, seed=0, validate=False)
    optimizer = torch.optim.Adam([*net.parameters(), crf.pairwise], lr=0.1, fused=True)
    trainer = tc.Trainer(net, crf, loss=loss, optimizer=optimizer, quiet=True)
    good = (torch.ones(1, 1, 4, 4), torch.ones(1, 4, 4).long(), torch.zeros(1).long())
    bad = (torch.full((1, 1, 4, 4), torch.nan), *good[1:])
    loader: DataLoader[object] = DataLoader([good, bad], batch_size=None)  # type: ignore[arg-type]
    after_good: list[Tensor] = []
    optimizer.register_step_post_hook(lambda *_: after_good.append(crf.pairwise.detach().clone()))
    trainer.fit(loader, "joint", epochs=1)
    assert torch.equal(after_good[0], after_good[1])
    assert bool(after_good[0].any())
    assert all(bool(parameter.isfinite().all()) for parameter in net.parameters())
    with pytest.raises(ValueError, match=r"logits: .* in an earlier call"):
        trainer.save("unused")


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path)
    path = tmp_path / "run.safetensors"
    trainer.save(path, extra={"note": "mine"})
    assert make(tmp_path)[0].load(path) == {"note": "mine"}
    with pytest.raises(CheckpointError, match="expected a CRF of 20 labels, Neighborhood"):
        tc.Trainer(network(), tc.GridCRF(20, tc.Neighborhood.nearest(4))).load(path)
    with pytest.raises(CheckpointError, match="expected the weights of this network, got those of another"):
        tc.Trainer(nn.Conv2d(1, 20, 3), tc.GridCRF(20, NEAR)).load(path)
    with pytest.raises(FileNotFoundError, match="expected a tritoncrf training file, got no file"):
        trainer.load(tmp_path / "none.safetensors")


def test_another_length_of_a_half_done_stage_is_refused(tmp_path: Path) -> None:
    trainer, loader = make(tmp_path)
    path = tmp_path / "run.safetensors"
    trainer.network.insert(0, _Stops(4))  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.pretrain(loader, 2, checkpoint=path, every=1)
    again, loader = make(tmp_path)
    again.network.insert(0, _Stops(-1))  # type: ignore[operator]
    again.load(path)
    with pytest.raises(CheckpointError, match="go on as saved with 'pretrain', 2 epochs of 5 batches, got 'pretrain', 3 of 5"):
        again.pretrain(loader, 3)


class _Stops(nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def forward(self, image: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("stopped")
        return image


@pytest.mark.parametrize(
    ("item", "error", "sentence"),
    [
        ((torch.zeros(1), torch.zeros(1)), TypeError, r"loader: expected batches \(image, target, index\) .* got a tuple of 2"),
        ((*(torch.zeros(1),) * 3, {"size": torch.zeros(1)}), ValueError, "loader: expected extras of 'sizes', 'mask', 'known'"),
        (
            (torch.zeros(1), torch.zeros(1), 3),
            TypeError,
            "loader: expected tensors image, target, index first, got Tensor, Tensor, int",
        ),
    ],
)
def test_foreign_batches_raise(item: tuple[object, ...], error: type[Exception], sentence: str) -> None:
    from tritoncrf.batches import Batch

    with pytest.raises(error, match=sentence):
        Batch.of(item, torch.device("cpu"))


def test_wrong_options_raise(tmp_path: Path) -> None:
    trainer, loader = make(tmp_path)
    with pytest.raises(ValueError, match="mode: expected 'separate' or 'joint', got 'both'"):
        trainer.fit(loader, "both", epochs=1)
    with pytest.raises(ValueError, match="loss: expected a loss of the trainer's own crf"):
        tc.Trainer(network(), tc.GridCRF(20, NEAR), loss=trainer.loss)
    bare: DataLoader[object] = DataLoader([torch.zeros(1)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"chains: expected a ChainStore, or a loader whose dataset has \.sizes"):
        tc.Trainer(network(), tc.GridCRF(20, NEAR)).fit(bare, epochs=1)
