"""Well-formed files that somebody else filled: each is one `CheckpointError`, before anything of it is taken over."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import checkpoint as files
from tritoncrf.checkpoint import CheckpointError
from tritoncrf.datasets import Figures, collate

Key = str | int
Node = dict[str, object]


def make() -> tuple[tc.Trainer, DataLoader[object]]:
    data = tc.Indexed(Figures(4, seed=1, size=(16, 16)))
    torch.manual_seed(0)
    network, crf = nn.Conv2d(1, 20, 3, padding=1), tc.GridCRF(20, tc.Neighborhood.nearest(4))
    optimizer = torch.optim.Adam([crf.pairwise, *network.parameters()])
    loss = tc.CRFLoss(crf, chains=tc.ChainStore(data.sizes, seed=3), sweeps=1)
    trainer = tc.Trainer(network, crf, loss=loss, optimizer=optimizer, quiet=True)
    return trainer, DataLoader(data, 2, shuffle=True, collate_fn=collate)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A run's checkpoint in the middle of its second stage's first epoch."""
    path = tmp_path_factory.mktemp("whole") / "run.safetensors"
    trainer, loader = make()
    trainer.fit(loader, "separate", epochs=1)
    saves = iter(range(9))
    original = trainer.save
    trainer.save = lambda to, **_: (original(to), 1 / (next(saves) - 0))[0]  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer.fit(loader, "joint", epochs=2, checkpoint=path, every=1)
    return dict(files.read(path, kind="training"))


def changed(tree: Node, place: tuple[Key, ...], value: object) -> Node:
    found = copy.deepcopy(tree)
    at: object = found
    for key in place[:-1]:
        at = at[key]  # type: ignore[index]
    at[place[-1]] = value(at[place[-1]]) if callable(value) else value  # type: ignore[index]
    return found


def load(tree: Node, path: Path) -> tc.Trainer:
    files.write(path, tree, kind="training")  # type: ignore[arg-type]
    trainer, _ = make()
    before = {name: part.clone() for name, part in trainer.network.state_dict().items()}
    state = torch.get_rng_state()
    try:
        trainer.load(path)
    except CheckpointError:
        assert all(torch.equal(part, before[name]) for name, part in trainer.network.state_dict().items())
        assert torch.equal(state, torch.get_rng_state())
        raise
    return trainer


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def fill(part: torch.Tensor) -> torch.Tensor:
        part = part.clone()
        part.flatten()[0] = value
        return part

    return fill


FAULTS: list[tuple[tuple[Key, ...], object, str]] = [
    (("crf", "pairwise"), filled(torch.nan), "crf.pairwise: expected finite numbers, got NaN"),
    (("network", "bias"), filled(torch.inf), "network.bias: expected finite numbers, got infinity"),
    (("pretrained", "bias"), filled(torch.nan), "network.bias: expected finite numbers, got NaN"),
    (("chains", "sweeps"), filled(-1), "expected counts of at least 0 in chains.sweeps, got -1"),
    (("chains", "sweeps"), filled(1 << 40), r"expected from 0 to 2\^34 sweeps"),
    (("chains", "labels"), filled(20), "expected chains of labels from 0 to 19, or 255, got 20"),
    (("chains", "meta"), torch.tensor([1, 1, 0, -1, 0]), "expected a seed's halves of 32 bits"),
    (("loss", "_extra_state"), torch.zeros(2), r"expected _extra_state int64 \[3\]"),
    (("offsets",), torch.tensor(3), "got a truncated or foreign one"),
    (("loop", "progress", "lengths"), [], "expected progress through stages"),
    (("loop", "progress", "position"), 7, "expected progress through stages"),
    (("loop", "progress", "epoch"), "1", "expected progress in whole numbers, got '1'"),
    (("loop", "progress"), {}, "expected progress in whole numbers, got None"),
    (("loop", "optimizer", "state", 0, "exp_avg"), filled(torch.nan), "exp_avg: expected finite numbers, got NaN"),
    (("loop", "now", "numpy", "pos"), 1 << 40, "generators: expected the states"),
    (("loop", "now", "python", "words"), [1, 2], "generators: expected the states"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), FAULTS, ids=lambda part: "fill" if callable(part) else f"{part}"[:60])
def test_values_that_no_run_has(place: tuple[Key, ...], value: object, sentence: str, whole: Node, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        load(changed(whole, place, value), tmp_path / "foreign.safetensors")


def places(tree: object, at: tuple[Key, ...] = ()) -> Iterator[tuple[Key, ...]]:
    if at:
        yield at
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from places(part, (*at, key))
    elif isinstance(tree, list) and len(tree) < 20:
        for k, part in enumerate(tree):
            yield from places(part, (*at, k))


ODD = torch.zeros(0), torch.tensor(-(2**62)), torch.full((3, 2), torch.nan)
VALUES: tuple[object, ...] = (None, -1, 1 << 70, "x", [], {}, [None], {"a": 1}, *ODD)


@pytest.mark.parametrize("share", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_any_entry_replaced_is_taken_or_one_sentence(share: int, whole: Node, tmp_path: Path) -> None:
    """Whatever stands in the place of an entry: loading and going on work, or end in a `CheckpointError`."""
    cases = [(place, value) for place in places(whole) for value in VALUES]
    taken = refused = 0
    for place, value in cases[share // 2 :: share]:
        try:
            tree = changed(whole, place, value)
            trainer = load(tree, tmp_path / "foreign.safetensors")
            loader = make()[1]
            for mode, epochs in (("separate", 1), ("joint", 2)):
                trainer.fit(loader, mode, epochs=epochs)
            taken += 1
        except (CheckpointError, FloatingPointError):
            refused += 1
        except Exception as error:
            # A rate of 1e21 is a number, and where it leads is said in a sentence of its own.
            if str(error).startswith("pairwise: expected"):
                continue
            raise AssertionError(f"{place} as {value!r}: {type(error).__name__}: {error}") from error
    print(f"{taken} taken, {refused} refused")
    assert taken
    assert refused > taken


def skeleton(path: Path, text: str) -> None:
    about = {"tritoncrf": "test", "format": "1", "contract": "1", "skeleton": text}
    save_file({"a": torch.zeros(1)}, path, about)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('["d", {"a": ["v", 1], "a": ["v", 2]}]', "some twice among"),
        ('["i", {"1": ["v", 1], "01": ["v", 2]}]', "keys that are integers"),
        ('["i", {"1": ["v", 1], " 1": ["v", 2]}]', "keys that are integers"),
        ('["d", {"a": ["t", "a"], "b": ["t", "a"]}]', "KeyError"),
        ('["d", {"a": ["v", {"b": 1}]}]', "known nodes"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*from before files had digests")
def test_keys_that_collide(text: str, sentence: str, tmp_path: Path) -> None:
    skeleton(tmp_path / "file", text)
    with pytest.raises(CheckpointError, match=sentence):
        files.read(tmp_path / "file", kind="test")


def test_names_that_collide_when_written_stay_apart(tmp_path: Path) -> None:
    inner: dict[str, files.Tree] = {"b": torch.tensor(2), "b~1": torch.tensor(4)}
    tree: dict[str, files.Tree] = {"a.b": torch.tensor(1), "a": inner, "a.b~1": torch.tensor(3)}
    files.write(tmp_path / "file", tree, kind="test")
    assert str(files.read(tmp_path / "file", kind="test")) == str(tree)


def test_sizes_are_looked_at_before_memory_is_taken(tmp_path: Path) -> None:
    """A file of some hundred bytes that claims chains of 4.3 GB."""
    store = tc.ChainStore([(4, 4)], seed=0)
    state: dict[str, files.Tree] = {**store.saved, "sizes": torch.tensor([[65535, 65536]])}
    path = tmp_path / "chains.safetensors"
    files.write(path, state, kind="chains")
    assert path.stat().st_size < 1500
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"expected labels of shape \[1, 4294901761\] for its sizes, got \[1, 17\]"):
        tc.ChainStore.load(path)
    for name, part in (("meta", torch.tensor([1])), ("meta", torch.tensor([1, -1, 0, 0, 0])), ("sizes", torch.zeros(2, 0))):
        files.write(path, {**store.saved, name: part}, kind="chains")
        with pytest.raises(CheckpointError, match="expected"):
            tc.ChainStore.load(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    assert np.isfinite(tc.ChainStore.load(_saved(store, path)).sweeps.numpy()).all()


def _saved(store: tc.ChainStore, path: Path) -> Path:
    store.save(path)
    return path
