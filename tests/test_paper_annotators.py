"""Pictures that stand twice are found, by their pixels alone, and their annotations compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.paper import annotators
from bench.paper.problem import distinct, repeated
from tritoncrf.datasets import NpzDataset

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Five pictures of 2 x 2: 0, 2 and 3 are one; 1 and 4 differ in one pixel's blue."""
    images = np.random.default_rng(0).integers(0, 255, (5, 2, 2, 3), dtype=np.uint8)
    images[2] = images[3] = images[0]
    images[4] = images[1]
    images[4, 1, 1, 2] ^= 1
    labels = np.array([[0, 0, 1, 1], [0] * 4, [0, 1, 1, 1], [0, 0, 1, 255], [1] * 4], np.uint8).reshape(5, 2, 2)
    path = tmp_path / "fasseg_frontal02.npz"
    sizes = np.full((5, 2), 2, np.int16)
    np.savez(path, images=images, labels=labels, sizes=sizes, class_names=np.array(["a", "b"]))
    return path


def test_a_picture_is_known_by_its_pixels(archive: Path) -> None:
    dataset = NpzDataset(archive, split=None)
    assert repeated(dataset) == [[0, 2, 3], [1], [4]]
    assert distinct(dataset).pixel_indices == [0, 1, 4]


def test_annotations_are_scored_by_each_other(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert annotators.main(["--data", str(archive.parent)]) == 0
    # Pixels (0, 0), (0, 1), (1, 1), (1, 1), then (0, 0), (0, 0), (1, 1): six of seven alike; IoU 3 of 4 and 3 of 4.
    assert json.loads(capsys.readouterr().out) == {"pairs": 2, "accuracy": round(6 / 7, 5), "mean_iou": 0.75}


def test_without_the_archive_it_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert annotators.main(["--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench.paper.annotators: data: expected a folder that holds fasseg_frontal02.npz, got ")
    assert said.count("\n") == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
def test_faces_have_six_photographs_twice_with_other_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert annotators.main(["--data", str(DATA)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 6
    assert 0.9 < found["accuracy"] < 1
