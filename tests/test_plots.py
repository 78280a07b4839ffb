"""Do the pictures hold the numbers they claim to show?"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tritoncrf import plots

LABELS = np.array([[0, 1, 2], [19, 255, 3]], dtype=np.uint8)


def says(text: str) -> str:
    return re.escape(text)


def test_palette_is_fixed_and_distinct() -> None:
    colours = plots.palette(255)
    assert colours.shape == (255, 3)
    assert colours.dtype == np.uint8
    assert np.array_equal(plots.palette(20), colours[:20])
    assert len({tuple(colour) for colour in colours.tolist()}) == 255
    assert colours.max(1).min() > 60
    near = [np.abs(a.astype(int) - b).sum() for i, a in enumerate(colours[:20]) for b in colours[:i].astype(int)]
    assert min(near) > 90
    with pytest.raises(ValueError, match=says("num_labels: expected 1 to 255, got 256")):
        plots.palette(256)


def test_colorize_paints_void_black() -> None:
    picture = plots.colorize(torch.from_numpy(LABELS), 20)
    assert picture.shape == (2, 3, 3)
    assert picture.dtype == np.uint8
    assert picture[1, 1].tolist() == [0, 0, 0]
    assert np.array_equal(picture[1, 0], plots.palette(20)[19])
    assert np.array_equal(plots.colorize(LABELS.astype(np.int64), 20), picture)
    assert plots.colorize(LABELS, 20, background=19)[1, 0].tolist() == [230, 230, 230]
    with pytest.raises(ValueError, match=says("background: expected a label below 20 or None, got 20")):
        plots.colorize(LABELS, 20, background=20)


@pytest.mark.parametrize(
    ("labels", "error", "sentence"),
    [
        (np.zeros((2, 2)), TypeError, "labels: expected integers, got float64"),
        (np.zeros(4, np.uint8), ValueError, "labels: expected [H, W], got [4]"),
        (np.full((2, 2), 20), ValueError, "labels: expected 0 to 19 or 255 for void, got 20"),
        (np.full((2, 2), -1), ValueError, "labels: expected 0 to 19 or 255 for void, got -1"),
        (np.full((2, 2), 256), ValueError, "labels: expected 0 to 19 or 255 for void, got 256"),
    ],
)
def test_colorize_says_what_is_wrong(labels: NDArray[np.integer], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=says(sentence)):
        plots.colorize(labels, 20)


def test_label_png_keeps_the_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    plots.save_label_png(path, torch.from_numpy(LABELS).long())
    with Image.open(path) as file:
        assert file.mode == "P"
        assert np.array_equal(np.array(file), LABELS)
        assert np.array_equal(np.array(file.convert("RGB")), plots.colorize(LABELS, 20))
    with pytest.raises(FileNotFoundError, match=r"path: expected a file in an existing folder, got .*nowhere"):
        plots.save_label_png(tmp_path / "nowhere" / "labels.png", LABELS)
    with pytest.raises(ValueError, match=says("labels: expected 0 to 254 or 255 for void, got 300")):
        plots.save_label_png(path, np.full((2, 2), 300))


def test_label_grid_writes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, grey = plots.colorize(LABELS, 20), np.ones((4, 4))
    path = tmp_path / "grid.png"
    plots.label_grid([[picture, grey], [picture]], [["true", "depth"], ["guess"]], path)
    with Image.open(path) as file:
        assert file.width > 200
        assert file.height > file.width
    plots.label_grid([[picture, grey]] * 2, ["true", "depth"], path)
    with pytest.raises(ValueError, match=says("rows: expected at least one picture in every row, got []")):
        plots.label_grid([], [], path)
    with pytest.raises(ValueError, match=says("rows: expected at least one picture in every row, got [1, 0]")):
        plots.label_grid([[picture], []], ["true"], path)
    with pytest.raises(ValueError, match=says("titles: expected [2] captions by row, got [1]")):
        plots.label_grid([[picture, grey]], ["true"], path)
    with pytest.raises(FileNotFoundError, match="path: expected a file in an existing folder"):
        plots.label_grid([[picture]], ["true"], tmp_path / "nowhere" / "grid.png")


def test_weight_map_reads_both_ends_of_an_edge(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pairwise = torch.arange(18, dtype=torch.float32).reshape(2, 3, 3).requires_grad_()
    grid = plots.weight_map(pairwise, torch.tensor([[0, 1], [2, -1]]), 0, 2, tmp_path / "map.png")
    expected = np.full((5, 3), np.nan)
    expected[2, 2], expected[2, 0] = 2, 6  # (0, 1) and (0, -1): pairwise[0, 0, 2] and pairwise[0, 2, 0]
    expected[4, 0], expected[0, 2] = 11, 15  # (2, -1) and (-2, 1)
    np.testing.assert_array_equal(grid, expected)
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_weight_map_is_red_where_energy_is_positive(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    pairwise = torch.tensor([[[0.0, 0.5], [-2.0, 0.0]]])
    plots.weight_map(pairwise, [(0, 1)], 0, 1, ax=ax, class_names=("head", "foot"))
    image = ax.images[0]
    assert image.get_clim() == (-2.0, 2.0)
    red, blue = (image.to_rgba(np.array([value]))[0] for value in (2.0, -2.0))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert tuple(image.get_extent()) == (-1.5, 1.5, 0.5, -0.5)
    assert ax.get_title() == "foot around head"
    # tables that are still zero are white, not an error
    plots.weight_map(torch.zeros(1, 2, 2), [(0, 1)], 0, 1, tmp_path / "zero.png")


@pytest.mark.parametrize(
    ("shape", "offsets", "labels", "sentence"),
    [
        ((2, 3, 4), [(0, 1), (1, 0)], (0, 1), "pairwise: expected [C, L, L], got [2, 3, 4]"),
        ((2, 3, 3), [(0, 1)], (0, 1), "offsets: expected whole numbers [2, 2], got [1, 2]"),
        ((1, 3, 3), [(0, 0)], (0, 1), "offsets: expected no zero offset, got (0, 0)"),
        ((1, 3, 3), [(0, 1)], (3, 1), "label_a: expected a label below 3, got 3"),
        ((1, 3, 3), [(0, 1)], (0, -1), "label_b: expected a label below 3, got -1"),
    ],
)
def test_weight_map_says_what_is_wrong(
    tmp_path: Path, shape: tuple[int, ...], offsets: list[tuple[int, int]], labels: tuple[int, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=says(sentence)):
        plots.weight_map(torch.zeros(shape), offsets, *labels, tmp_path / "map.png")
    with pytest.raises(ValueError, match=says("path: expected just one of path and ax, got none")):
        plots.weight_map(torch.zeros(1, 2, 2), [(0, 1)], 0, 1)


def test_traces_writes_a_panel_per_series(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    plots.traces({"flip rate": [0.3, 0.2, 0.1]}, one)
    plots.traces({"flip rate": torch.tensor([0.3, 0.2]), "energy": np.array([1.0])}, two)
    with Image.open(one) as small, Image.open(two) as large:
        assert large.height == 2 * small.height
    with pytest.raises(ValueError, match=says("series: expected at least one series, got none")):
        plots.traces({}, one)
    with pytest.raises(ValueError, match=says("with n of at least 1, got [0] for 'energy'")):
        plots.traces({"energy": []}, one)


def test_figures_without_matplotlib_say_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=says('pip install "tritoncrf[plot]"')):
        plots.traces({"flip rate": [0.1]}, tmp_path / "trace.png")
    plots.save_label_png(tmp_path / "labels.png", LABELS)
