"""Do the paper's figures show the numbers they claim to? On toy arrays, and on a folder that a toy run wrote."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from bench.paper import figures, figures_ambiguity, figures_canvas, figures_curves, figures_labels, figures_weights
from bench.paper.__main__ import main as run
from bench.paper.figures_ambiguity import Panel
from bench.paper.figures_labels import Example
from bench.paper.presets import PRESETS
from bench.paper.report_rows import Curve

NAMES = ["head", "foot", "background"]


def is_picture(path: Path, least: int = 200) -> bool:
    with Image.open(path) as file:
        return file.width > least and file.height > least and len(set(file.convert("L").tobytes())) > 20


def panel(rows: list[list[list[float]]]) -> Panel:
    """Marginals from [H, W, L]."""
    return Panel("panel", np.moveaxis(np.array(rows, dtype=np.float32), 2, 0))


def test_accuracy_counts_labelled_body_pixels() -> None:
    truth = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)
    said = np.array([[0, 1, 1], [2, 0, 0]], np.uint8)
    assert figures_labels.accuracy(said, truth, 2) == 0.5
    assert figures_labels.accuracy(said, truth, None) == 0.6
    assert np.isnan(figures_labels.accuracy(truth, np.full_like(truth, 2), 2))
    with pytest.raises(ValueError, match=re.escape("labels: expected [2, 3] like the truth, got [3, 2]")):
        figures_labels.accuracy(said.T, truth, 2)


def test_depth_is_near_dark_and_background_white() -> None:
    truth = np.array([[0, 1, 2]], np.uint8)
    found = figures_labels.picture(np.array([[[-1.0, 1.0, 3.0]]], np.float32), truth, 2)
    assert found.tolist() == [[[0] * 3, [200] * 3, [255] * 3]]
    colours = figures_labels.picture(np.array([[[-2.0]], [[0.0]], [[2.0]]], np.float32), truth[:, :1], None)
    assert colours.tolist() == [[[0, 128, 255]]]


def test_labels_side_by_side(tmp_path: Path) -> None:
    truth = np.array([[0, 1], [2, 1]], np.uint8)
    example = Example(np.zeros((1, 2, 2), np.float32), truth, {"CNN": truth, "ours": truth})
    figures_labels.side_by_side([example] * 2, 3, 2, tmp_path / "f.png")
    assert is_picture(tmp_path / "f.png")
    with pytest.raises(ValueError, match="examples: expected answers of CNN, ours, got CNN"):
        figures_labels.side_by_side([example, Example(example.image, truth, {"CNN": truth})], 3, 2, tmp_path / "f.png")
    with pytest.raises(ValueError, match="examples: expected at least one, got none"):
        figures_labels.side_by_side([], 3, 2, tmp_path / "f.png")


def test_weights_show_the_transposed_entry_at_the_opposite_shift(tmp_path: Path) -> None:
    pairwise = torch.arange(18, dtype=torch.float32).reshape(2, 3, 3)
    parts = np.array([[0, 1], [2, 2]], np.uint8)
    pairs = (("head", "foot"), ("foot", "head"))
    one, other = figures_weights.insight(pairwise, [(0, 6), (24, -6)], parts, NAMES, 2, tmp_path / "f.png", pairs)
    # shifts -24, 0, 24 down and -6, 0, 6 across: foot around head at +d is [c, 0, 1], at -d [c, 1, 0]
    expected = np.full((3, 3), np.nan)
    expected[1, 2], expected[1, 0], expected[2, 0], expected[0, 2] = 1, 3, 10, 12
    np.testing.assert_array_equal(one, expected)
    # and seen from the foot, everything stands on the other side
    np.testing.assert_array_equal(other, expected[::-1, ::-1])
    assert is_picture(tmp_path / "f.png")
    with pytest.raises(ValueError, match="pairs: expected names among head, foot, background, got 'leg2L'"):
        figures_weights.insight(pairwise, [(0, 6), (24, -6)], parts, NAMES, 2, tmp_path / "f.png")


def test_compressed_shifts_keep_antipodes_and_order() -> None:
    offsets = [(0, 1), (8, -2), (24, 24), (-8, 1)]
    steps, (down, across) = figures_weights.compress(offsets)
    assert (down, across) == ([-24, -8, 0, 8, 24], [-24, -2, -1, 0, 1, 2, 24])
    back, _ = figures_weights.compress([(-dy, -dx) for dy, dx in offsets])
    assert back == [(-dy, -dx) for dy, dx in steps]
    for (dy, dx), (j, i) in zip(offsets, steps, strict=True):
        assert (down[j + len(down) // 2], across[i + len(across) // 2]) == (dy, dx)


def test_the_neighbourhood_is_shown_on_both_sides() -> None:
    ax = figures_canvas.figure(3, 3).subplots()
    figures_weights.show_neighbours(ax, [(0, 1), (5, 10)])
    shown = np.asarray(ax.collections[0].get_offsets())
    assert {tuple(point) for point in shown.tolist()} == {(1, 0), (-1, 0), (10, 5), (-10, -5)}
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # y grows downwards, as in images


def test_the_pixel_is_one_that_joint_learning_puts_right() -> None:
    truth = np.array([[0, 0, 0, 1]], np.uint8)
    sure, torn, right = [0.05, 0.9, 0.05], [0.3, 0.4, 0.3], [0.8, 0.1, 0.1]
    before = panel([[sure, sure, right, sure]])
    after = panel([[sure, torn, torn, torn]])
    joint = panel([[right, right, right, right]])
    # pixel 1 is won and grew ambiguous; 0 is won but as sure as before, 2 was right all along, 3 stays wrong
    assert figures_ambiguity.choose_pixel(truth, before, before, after, joint) == (0, 1)
    assert figures_ambiguity.choose_pixel(truth, joint, joint, after, joint)[1] in (1, 2)
    with pytest.raises(ValueError, match="expected a pixel that the joint CRF has right, got none"):
        figures_ambiguity.choose_pixel(np.array([[2, 2, 2, 2]], np.uint8), before, before, after, joint)


def test_entropy_and_bars() -> None:
    found = figures_ambiguity.entropy(panel([[[1, 0, 0], [0.5, 0.5, 0]]]).marginals)
    assert found == pytest.approx(np.array([[0, np.log(2)]]), abs=1e-6)
    one, two = np.array([0.0, 0.9, 0.02, 0.08], np.float32), np.array([0.01, 0.2, 0.02, 0.77], np.float32)
    assert figures_ambiguity.bars_of([one, two], true=0) == [1, 3, 0]
    assert figures_ambiguity.bars_of([one, two], true=0, most=2) == [1, 0]


def test_ambiguity_writes_a_picture(tmp_path: Path) -> None:
    truth = np.array([[0, 1], [2, 1]], np.uint8)
    four = [panel([[[0.6, 0.3, 0.1]] * 2] * 2)] * 4
    figures_ambiguity.ambiguity(four, truth, (0, 1), NAMES, 2, tmp_path / "f.png")
    assert is_picture(tmp_path / "f.png")
    with pytest.raises(ValueError, match=re.escape("pixel: expected (y, x) within [2, 2], got (2, 0)")):
        figures_ambiguity.ambiguity(four, truth, (2, 0), NAMES, 2, tmp_path / "f.png")
    with pytest.raises(ValueError, match=re.escape("panels: expected [3, 3, 2], got [3, 2, 2]")):
        figures_ambiguity.ambiguity(four, np.zeros((3, 2), np.uint8), (0, 0), NAMES, 2, tmp_path / "f.png")


def test_journals_keep_the_last_of_what_was_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    notes = [
        {"stage": "joint", "step": 50, "flip_rate": 0.3},
        {"stage": "joint", "step": 100, "flip_rate": 0.9},
        {"stage": "joint", "step": 100, "flip_rate": 0.2},
        {"stage": "joint", "epoch": 1, "flip_rate": 0.2, "accuracy": 0.8},
        {"stage": "pretrain", "step": 150, "flip_rate": 0.5},
        {"stage": "joint", "step": 150, "flip_rate": None},
    ]
    path.write_text("".join(json.dumps(note) + "\n" for note in notes))
    found = figures_curves.journal(path)
    x, y = figures_curves.series(found, "flip_rate")
    assert (x.tolist(), y.tolist()) == ([50, 100], [0.3, 0.2])
    assert [part.tolist() for part in figures_curves.series(found, "accuracy")] == [[1], [0.8]]
    path.write_text('{"stage": "joint", "step": 5}\n{"stage": "jo')
    with pytest.raises(ValueError, match=r"log\.jsonl: expected a trainer's log, got something else in line 2"):
        figures_curves.journal(path)


def test_running_means_by_hand() -> None:
    values = np.array([0.0, 3.0, 6.0, 3.0])
    assert figures_curves.smooth(values, 3).tolist() == [1.5, 3.0, 4.0, 4.5]
    assert figures_curves.smooth(values, 1).tolist() == values.tolist()


def test_curves_write_pictures(tmp_path: Path) -> None:
    notes = [{"stage": "joint", "step": 50 * k, "flip_rate": 1 / k, "energy_gap": -1 / k} for k in range(1, 60)]
    figures_curves.learning({"one": notes, "two": notes[:3]}, tmp_path / "learning.png")
    assert is_picture(tmp_path / "learning.png")
    with pytest.raises(ValueError, match="runs: expected notes of a separate or joint stage, got none"):
        figures_curves.learning({"one": []}, tmp_path / "learning.png")
    curves = [Curve("joint_pcd", start, (1, 10, 100), (0.5, 0.7, 0.8)) for start in ("pretrained", "random")]
    figures_curves.inference(curves, tmp_path / "inference.png")
    assert is_picture(tmp_path / "inference.png")
    with pytest.raises(FileNotFoundError, match="path: expected a file in an existing folder"):
        figures_curves.inference(curves, tmp_path / "none" / "inference.png")


def test_a_finished_toy_run_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "figures"
    small = dataclasses.replace(PRESETS["toy"], train=12, test=16, pretrain=1)
    monkeypatch.setitem(PRESETS, "toy", small)
    assert run(["--preset", "toy", "--out", str(work), "--rows", "cnn", "separate_pcd", "joint_pcd"]) == 0
    models = {path: path.read_bytes() for path in work.rglob("*.safetensors")}
    capsys.readouterr()
    assert figures.main(["--work", str(work), "--out", str(out), "--images", "2", "--search", "3"]) == 0
    said = capsys.readouterr().out
    assert "figure1.png: test images [4, 12]; without crfrnn_joint, not learned here" in said
    assert "of 3 searched" in said
    assert all(is_picture(out / f"figure{k}.png") for k in (1, 2, 3))
    assert {path: path.read_bytes() for path in work.rglob("*.safetensors")} == models, "drawing must not learn"
    # without the separate row there is no figure 3, and the others stand
    rows = [row for row in json.loads((work / "toy_figures_0.json").read_text()) if row["name"] != "separate_pcd"]
    (work / "toy_figures_0.json").write_text(json.dumps(rows))
    assert figures.main(["--work", str(work), "--out", str(tmp_path / "less"), "--images", "1"]) == 0
    assert "figure3.png: left out, expected finished rows of separate_pcd, joint_pcd, got none of separate_pcd" in (
        capsys.readouterr().out
    )
    assert sorted(path.name for path in (tmp_path / "less").glob("figure*")) == ["figure1.png", "figure2.png"]


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--work", str(tmp_path)], "work: expected a folder that bench.paper wrote"),
        (["--work", str(tmp_path), "--images", "0"], "images: expected at least 1, got 0"),
    ):
        assert figures.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"bench.paper.figures: {sentence}")
        assert said.count("\n") == 1
    (tmp_path / "run.json").write_text('{"name": "huge"}')
    assert figures.main(["--work", str(tmp_path)]) == 2
    assert "work: expected a run of toy, half" in capsys.readouterr().err
    (tmp_path / "run.json").write_text('{"name": "toy"}')
    assert figures.main(["--work", str(tmp_path)]) == 2
    assert "work: expected a pre-trained network in" in capsys.readouterr().err
