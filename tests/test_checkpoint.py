"""A file that changed since it was written is refused in one sentence; saves leave neither half files nor other people's."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tritoncrf import checkpoint
from tritoncrf.checkpoint import CheckpointError, Tree
from tritoncrf.store import ChainStore

TREE: dict[str, Tree] = {
    "weights": {"a": torch.arange(3000.0), "b": torch.ones(7, 5, dtype=torch.uint8)}, "none": None, "pair": (1, "two"),
    "lines": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}], "by number": {0: torch.zeros(2), 1: True},
}  # fmt: skip


def written(folder: Path, tree: dict[str, Tree] | None = None) -> Path:
    path = folder / "file.safetensors"
    checkpoint.write(path, TREE if tree is None else tree, kind="test")
    return path


def refused(path: Path, content: bytes) -> str:
    """The sentence that a file of this content is refused with; warnings are errors."""
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            checkpoint.read(path, kind="test")
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "expected" in sentence
    return sentence


def test_a_tree_comes_back(tmp_path: Path) -> None:
    found = checkpoint.read(written(tmp_path), kind="test")
    weights = checkpoint.tensors(found, "weights")
    assert torch.equal(weights["a"], torch.arange(3000.0))
    assert weights["b"].dtype == torch.uint8
    assert found["pair"] == (1, "two")
    assert found["none"] is None
    assert list(found["by number"]) == [0, 1]  # type: ignore[arg-type]


def test_no_changed_byte_is_accepted(tmp_path: Path) -> None:
    path, rng = written(tmp_path), np.random.default_rng(0)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    # The header is a tenth of the file and can lie in more ways: half of the bytes are changed there.
    places = np.concatenate([rng.integers(0, header, 700), rng.integers(0, len(whole), 700)])
    for place in places.tolist():
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        refused(path, bytes(changed))


@pytest.mark.parametrize("what", ["zeroed", "truncated", "lengthened", "swapped"])
def test_no_other_damage_is_accepted(what: str, tmp_path: Path) -> None:
    path, rng = written(tmp_path), np.random.default_rng(1)
    whole = path.read_bytes()
    for _ in range(150):
        place = int(rng.integers(0, len(whole) - 1))
        changed = {
            "zeroed": whole[:place] + bytes(min(512, len(whole) - place)) + whole[place + 512 :],
            "truncated": whole[:place],
            "lengthened": whole + rng.bytes(int(rng.integers(1, 600))),
            "swapped": whole[:place] + whole[place + 1 : place + 2] + whole[place : place + 1] + whole[place + 2 :],
        }[what]
        if changed != whole:
            refused(path, changed)


def test_a_digest_cannot_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    found = re.search(rb'"digest":"([0-9a-f]{64})"', whole)
    assert found is not None
    assert "changed since" in refused(path, whole.replace(found[1], b"0" * 64))
    assert "changed since" in refused(path, whole.replace(b'"digest":', b'"digesT":'))
    assert "changed since" in refused(path, whole.replace(b'"format":"2"', b'"format":"1"'))


def test_files_from_before_digests_load_with_a_word(tmp_path: Path) -> None:
    path, tensors = tmp_path / "old.safetensors", dict[str, torch.Tensor]()
    skeleton = checkpoint._flatten({"a": torch.arange(4)}, "", tensors)
    about = {"tritoncrf": "test", "format": "1", "contract": "1", "skeleton": json.dumps(skeleton)}
    save_file(tensors, path, about)
    with pytest.warns(UserWarning, match="from before files had digests"):
        found = checkpoint.read(path, kind="test")
    assert torch.equal(checkpoint.tensor(found, "a"), torch.arange(4))


SKELETONS = ["[", "null", "7", '["d", 3]', '["t", "nowhere"]', '["l", {"a": 1}]', "[" * 5000, '["x", 1]']


@pytest.mark.parametrize("skeleton", SKELETONS)
@pytest.mark.filterwarnings("ignore:.*from before files had digests")
def test_crafted_headers_are_one_sentence(skeleton: str, tmp_path: Path) -> None:
    path = tmp_path / "crafted.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"tritoncrf": "test", "format": "1", "contract": "1", "skeleton": skeleton})
    with pytest.raises(CheckpointError, match="expected"):
        checkpoint.read(path, kind="test")


def _save_and_die(path: str) -> None:
    def dies(*_: object) -> None:
        os._exit(9)

    os.replace = dies  # type: ignore[assignment]
    checkpoint.write(path, TREE, kind="test")


def _save_and_wait(path: str, begun: str, go: str) -> None:
    whole = os.replace

    def waits(source: str, target: str) -> None:
        Path(begun).touch()
        while not Path(go).exists():
            pass
        whole(source, target)

    os.replace = waits  # type: ignore[assignment]
    checkpoint.write(path, {"late": 1}, kind="test")


@pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="this system has no file locks")
def test_leftovers_of_killed_saves_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    path, context = tmp_path / "run[1].safetensors", multiprocessing.get_context("spawn")
    other = tmp_path / "run1.safetensors.00000000.part"
    other.touch()
    killed = context.Process(target=_save_and_die, args=(str(path),))
    killed.start()
    killed.join()
    assert killed.exitcode == 9
    assert len(list(tmp_path.glob("*.part"))) == 2
    begun, go = tmp_path / "begun", tmp_path / "go"
    late = context.Process(target=_save_and_wait, args=(str(path), str(begun), str(go)))
    late.start()
    while not begun.exists():
        assert late.is_alive()
    # Its own start removed what the killed one left; this save must leave its file alone.
    checkpoint.write(path, TREE, kind="test")
    parts = list(tmp_path.glob("*.part"))
    assert len(parts) == 2
    assert other in parts
    go.touch()
    late.join()
    assert late.exitcode == 0
    # The later one won, whole.
    assert checkpoint.read(path, kind="test") == {"late": 1}
    assert list(tmp_path.glob("*.part")) == [other]


def test_links_are_followed_and_special_files_left_alone(tmp_path: Path) -> None:
    path, link, pipe = written(tmp_path), tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(path)
    checkpoint.write(link, {"new": 1}, kind="test")
    assert link.is_symlink()
    assert checkpoint.read(path, kind="test") == {"new": 1}
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        with pytest.raises(FileExistsError, match="expected a new or a plain file"):
            checkpoint.write(pipe, TREE, kind="test")
        assert pipe.is_fifo()


def test_a_loop_of_links_and_a_pipe_named_as_a_leftover(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to(other)
    other.symlink_to(one)
    with pytest.raises(FileExistsError, match="got a link that leads back to itself"):
        checkpoint.write(one, TREE, kind="test")
    assert one.is_symlink()
    if hasattr(os, "mkfifo"):
        left = tmp_path / "file.safetensors.01234567.part"
        os.mkfifo(left)
        written(tmp_path)
        assert left.is_fifo()


def test_a_file_that_is_written_anew_meanwhile_is_read_whole(tmp_path: Path) -> None:
    path, ended = written(tmp_path, {"n": 0, "a": torch.zeros(20000)}), threading.Event()

    def write() -> None:
        n = 0
        while not ended.is_set():
            n += 1
            checkpoint.write(path, {"n": n, "a": torch.full((20000,), float(n))}, kind="test")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            found = checkpoint.read(path, kind="test")
            assert set(checkpoint.tensor(found, "a").tolist()) == {found["n"]}
    finally:
        ended.set()
        writer.join()


def test_a_store_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chains.safetensors"
    ChainStore([(9, 8)] * 3, seed=0).save(path)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed since"):
        ChainStore.load(path)
