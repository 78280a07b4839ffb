"""Data that are damaged, or claim more than memory, are one sentence of the command line that names the file and the cause."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tritoncrf.cli import main
from tritoncrf.datasets import room
from tritoncrf.datasets.npz import NpzDataset


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["train", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("tritoncrf: error: ")
    return said[0]


def archive(path: Path) -> Path:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (4, 20, 16, 3), dtype=np.uint8), rng.integers(0, 3, (4, 20, 16), dtype=np.uint8)
    more = {"sizes": np.array([[20, 16]] * 4), "class_names": np.array(list("abc")), "split": np.array(["train"] * 4)}
    np.savez_compressed(path, images=images, labels=labels, **more)  # type: ignore[arg-type]
    return path


def test_a_damaged_compressed_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = archive(tmp_path / "data.npz").read_bytes()
    causes = set()
    for member in ("images", "labels", "sizes", "class_names"):
        with zipfile.ZipFile(io.BytesIO(whole)) as held:
            header = held.getinfo(f"{member}.npy").header_offset
        start = header + 30 + sum(struct.unpack_from("<HH", whole, header + 26))
        for place in (0, 7, 30):
            changed = bytearray(whole)
            changed[start + place] ^= 0xFF
            path = tmp_path / "damaged.npz"
            path.write_bytes(changed)
            said = refused(capsys, "--npz", str(path), "--out", str(tmp_path / "out"))
            assert str(path) in said
            assert "cannot be read" in said or "expected" in said
            causes |= {"zlib"} if "decompressing" in said else set()
    assert causes == {"zlib"}
    assert not (tmp_path / "out").exists()


def claiming(path: Path, shape: tuple[int, ...]) -> Path:
    """An archive whose images' header claims a shape over the bytes of four."""
    archive(path)
    with zipfile.ZipFile(path) as held:
        parts = {name: held.read(name) for name in held.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    parts["images.npy"] = header.getvalue() + b"\0" * 3840
    with zipfile.ZipFile(path, "w") as held:
        for name, content in parts.items():
            held.writestr(name, content)
    return path


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20, 1 << 8, 3), (1 << 60,), (1 << 31, 4, 4, 3)])
def test_a_header_that_claims_more_than_there_is(
    shape: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = claiming(tmp_path / "claims.npz", shape)
    said = refused(capsys, "--npz", str(path), "--out", str(tmp_path / "out"))
    assert f"array 'images' of {path}" in said


def test_an_array_that_unpacks_to_more_than_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "data.npz")
    monkeypatch.setattr(room, "memory", lambda: 3000)
    said = refused(capsys, "--npz", str(path), "--out", str(tmp_path / "out"))
    assert f"array 'images' of {path}: expected at most" in said
    monkeypatch.undo()
    assert len(NpzDataset(path)) == 4


def test_figures_larger_than_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--generated", "2", "--generated-size", "1000000x1000000", "--out", str(tmp_path / "out"))
    assert "generated_size of 1000000x1000000: expected at most" in said
    assert "got 1.12e+04 GiB" in said


def test_a_decompression_bomb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    where = [str(tmp_path / folder) for folder in ("images", "masks")]
    said = refused(capsys, "--images", where[0], "--masks", where[1], "--labels", "3", "--out", str(tmp_path / "out"))
    assert "a.png" in said
    assert "decompression bomb" in said
