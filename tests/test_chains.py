"""Chains on the disk and off it: what is kept, how many bytes, and files that are whole or refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tritoncrf import checkpoint
from tritoncrf.checkpoint import CheckpointError


def filled() -> tc.ChainStore:
    store = tc.ChainStore([(4, 6), (3, 5)], replicas=2, seed=-5)
    index = torch.tensor([1])
    labels = torch.arange(30, dtype=torch.uint8).view(1, 2, 3, 5)
    store.put(store.pixel_indices(index, tuple(labels.shape[2:])), labels, torch.tensor([True]))
    store.advance(index, 7, torch.tensor([True]))
    return store


def test_a_byte_a_pixel_and_replica_and_32_more_an_image() -> None:
    store = tc.ChainStore([(100, 50)] * 40, replicas=3, seed=0)
    assert store.nbytes == 40 * (100 * 50 * 3) + 1 + 40 * 32
    assert repr(store).startswith("ChainStore(40 images, 3 replicas, 600001 bytes of labels + 1280 bytes of counts")


def test_a_store_stands_where_its_tensors_do() -> None:
    # As "cuda" and "cuda:0" are one place, so are "cpu" and "cpu:0": names of a place differ, tensors' devices do not.
    assert torch.device("cpu:0") != torch.device("cpu")
    store, crf = tc.ChainStore([(4, 5)], seed=0, device="cpu:0"), tc.GridCRF(3, tc.Neighborhood.nearest(4))
    loss = tc.CRFLoss(crf, chains=store, engine="torch")
    logits = torch.zeros(1, 3, 4, 5, requires_grad=True)
    loss(logits, torch.zeros(1, 4, 5, dtype=torch.long), torch.tensor([0])).backward()
    assert store.sweeps.tolist() == [10]


def test_what_is_put_is_fetched_whatever_the_padding() -> None:
    store, index = filled(), torch.tensor([1, 0])
    wide = store.fetch(store.pixel_indices(index, (4, 8)))
    assert torch.equal(wide[0, :, :3, :5].flatten(), torch.arange(30, dtype=torch.uint8))
    assert bool((wide[0, :, 3:] == 255).all())
    assert bool((wide[0, :, :, 5:] == 255).all())
    assert bool((wide[1] == 255).all())
    before = store.labels.clone()
    store.put(store.pixel_indices(index, (4, 8)), torch.full((2, 2, 4, 8), 9, dtype=torch.uint8), torch.tensor([False, False]))
    assert torch.equal(before, store.labels)


def test_saved_and_loaded_alike(tmp_path: Path) -> None:
    store, path = filled(), tmp_path / "chains.safetensors"
    store.save(path)
    again = tc.ChainStore.load(path)
    for name, value in store.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert (again.seed, again.replicas) == ((1 << 64) - 5, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["chains.safetensors"]


def test_a_full_disk_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = filled(), tmp_path / "chains.safetensors"
    store.save(path)
    before = path.read_bytes()
    store.labels.zero_()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["chains.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_takes_nothing_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("in the way")
    with pytest.raises(OSError, match="file"):
        filled().save(folder / "chains.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "chains.safetensors"
    filled().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="expected a whole tritoncrf chains file, got a truncated or foreign one"):
        tc.ChainStore.load(path)


def test_a_foreign_a_newer_and_a_missing_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "chains.safetensors"
    save_file({"labels": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="got a safetensors file that tritoncrf did not write"):
        tc.ChainStore.load(path)
    checkpoint.write(path, {"a": 1}, kind="training")
    with pytest.raises(CheckpointError, match="expected a tritoncrf chains file, got training"):
        tc.ChainStore.load(path)
    for name, what, now in (("FORMAT", "format", 2), ("contract.VERSION", "contract", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(f"tritoncrf.checkpoint.{name}", now + 1)
            filled().save(path)
        with pytest.raises(CheckpointError, match=f"expected {what} version {now}, got {now + 1}"):
            tc.ChainStore.load(path)
    with pytest.raises(FileNotFoundError, match="expected a tritoncrf chains file, got no file"):
        tc.ChainStore.load(tmp_path / "none")


def test_chains_of_other_images_are_refused() -> None:
    state = filled().state_dict()
    with pytest.raises(CheckpointError, match="chains: expected 'labels' of shape"):
        tc.ChainStore([(4, 6)], replicas=2).load_state_dict(state)
    with pytest.raises(CheckpointError, match="got other sizes"):
        tc.ChainStore([(6, 4), (3, 5)], replicas=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ([], "sizes: expected a size of as many axes for every image, at least one image"),
        ([(3, 4), (3,)], "sizes: expected a size of as many axes"),
        ([(3, 4), (0, 4)], r"sizes\[1\]: expected whole numbers of at least 1, got \(0, 4\)"),
        ([(1 << 20, 1 << 20)], r"sizes\[0\]: expected fewer than 2\^32 pixels"),
    ],
)
def test_bad_sizes_raise(sizes: list[tuple[int, ...]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tc.ChainStore(sizes)


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tree: dict[str, checkpoint.Tree] = {
        "tensor": torch.arange(4.0).t(), "empty": torch.zeros(0, 3), "scalar": torch.tensor(5, dtype=torch.int64),
        "list": [1, 2.5, None, True, "x", {"deep": torch.ones(2, dtype=torch.uint8)}], "pair": (0.9, 1e-300),
        "by number": {0: "zero", 7: torch.zeros(1)}, "nothing": {}, "inf": float("inf"),
    }  # fmt: skip
    checkpoint.write(tmp_path / "t", tree, kind="test")
    found = checkpoint.read(tmp_path / "t", kind="test")
    assert repr(found) == repr(tree)
    with pytest.raises(TypeError, match="bad: expected tensors, strings, numbers"):
        checkpoint.write(tmp_path / "u", {"bad": object()}, kind="test")  # type: ignore[dict-item]
    assert not (tmp_path / "u").exists()


def test_shared_memory_is_written_once_per_name(tmp_path: Path) -> None:
    shared: Tensor = torch.ones(3)
    checkpoint.write(tmp_path / "t", {"a": shared, "b": shared[:2]}, kind="test")
    assert torch.equal(checkpoint.tensor(checkpoint.read(tmp_path / "t", kind="test"), "b"), torch.ones(2))
