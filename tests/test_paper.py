"""The paper's experiment: rows at toy size, runs that are stopped and go on, and what bad input says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from bench.paper import run as running
from bench.paper import statistics
from bench.paper.__main__ import main
from bench.paper.methods import METHODS
from bench.paper.presets import CLIP, FOLDS, PRESETS
from bench.paper.problem import read
from bench.paper.tuning import held_out

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"


def _rows(out: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((out / "toy_figures_0.json").read_text())
    return found


def _learned(row: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key not in ("seconds", "seconds_test", "peak_mb", "commit")}


def test_a_stopped_run_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    rows = ["--rows", "cnn", "control", "joint_pcd"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["--preset", "toy", "--out", str(whole), *rows]) == 0
    stops = 0
    code = main(["--preset", "toy", "--out", str(parts), "--minutes", "0.01", *rows])
    while code == 130 and stops < 40:
        stops += 1
        code = main(["--preset", "toy", "--out", str(parts), "--minutes", str(0.01 * (stops + 1)), "--resume", *rows])
    assert code == 0
    assert stops >= 2
    assert [_learned(row) for row in _rows(parts)] == [_learned(row) for row in _rows(whole)]
    for row in _rows(whole):
        correct, counted = (sum(pair[k] for pair in row["per_image"]) for k in (0, 1))  # type: ignore[attr-defined]
        assert row["accuracy"] == correct / counted
        assert row["visits"] == (0 if row["name"] == "cnn" else 48)
    assert main(["--preset", "toy", "--out", str(whole), "--resume", *rows]) == 0
    assert len(_rows(whole)) == 3


def test_the_seconds_of_a_killed_run_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "seconds"
    script = "import sys, time; from pathlib import Path; from bench.paper.run import stopwatch\n"
    script += "with stopwatch(Path(sys.argv[1]), every=0.05): print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script, str(file)], cwd=ROOT, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.5)
        child.send_signal(signal.SIGKILL)
    spent = float(file.read_text())
    assert 0.2 < spent < 60
    with running.stopwatch(file):
        pass
    assert spent < float(file.read_text()) < spent + 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "tiny"], "preset: expected one of toy, half"),
        (["--preset", "toy", "--rows", "cnn", "dnn"], "rows: expected some of cnn, control"),
        (["--preset", "toy", "--splits", "fold0"], "splits: expected some of figures for preset 'toy', got 'fold0'"),
        (["--preset", "half"], "data: expected the folder that holds bodyparts_depth.npz"),
        (["--preset", "half", "--data", "."], "data: expected a folder that holds bodyparts_depth.npz, got ."),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench.paper: " + sentence)
    assert said.count("\n") == 1


def test_a_foreign_archive_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bodyparts_depth.npz").write_bytes(b"not an archive")
    assert main(["--preset", "half", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "expected a .npz archive" in capsys.readouterr().err


def test_folders_of_other_runs_are_left_alone(tmp_path: Path) -> None:
    running.claim(tmp_path / "a", PRESETS["toy"], False)
    # A run of before a field was there, as it is by default, and of other rows, is this one.
    told = {name: value for name, value in asdict(PRESETS["toy"]).items() if name not in ("visit_sweeps", "rows")}
    (tmp_path / "a" / "run.json").write_text(json.dumps(told))
    running.claim(tmp_path / "a", replace(PRESETS["toy"], rows=("cnn",)), True)
    with pytest.raises(FileExistsError, match="of another run"):
        running.claim(tmp_path / "a", replace(PRESETS["toy"], visit_sweeps=20), True)
    running.claim(tmp_path / "a", PRESETS["toy"], True)
    with pytest.raises(FileExistsError, match="or --resume to go on"):
        running.claim(tmp_path / "a", PRESETS["toy"], False)
    with pytest.raises(FileExistsError, match="of another run"):
        running.claim(tmp_path / "a", PRESETS["half"], True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        running.claim(tmp_path / "b", PRESETS["toy"], True)
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a list of rows"):
        running.rows_of(tmp_path / "rows.json")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
def test_folds_and_splits_share_no_image() -> None:
    seen: list[int] = []
    for fold in FOLDS:
        train, test = (part.dataset for part in read(PRESETS["facades"], fold, DATA))
        assert not set(train.pixel_indices) & set(test.pixel_indices)  # type: ignore[attr-defined]
        assert len(test.sizes) == len(test)  # type: ignore[attr-defined]
        seen += test.pixel_indices  # type: ignore[attr-defined]
    assert sorted(seen) == list(range(378))
    # The archive of faces has six photographs twice, on both sides of its own split.
    faces = [
        [{part[i][0].numpy().tobytes() for i in range(len(part))} for part in read(PRESETS["faces"], fold, DATA)]
        for fold in FOLDS
    ]
    assert not any(train & test for train, test in faces)
    assert [(len(train), len(test)) for train, test in faces] == [(51, 13)] * 4 + [(52, 12)]
    assert [len(part) for part in read(PRESETS["half"], CLIP, DATA)] == [1200, 429]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
def test_rows_of_photographs_count_each_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(PRESETS["faces"], pretrain=1, epochs=1, visit_sweeps=1, burn_in=1, sweeps=2)
    monkeypatch.setitem(PRESETS, "faces", small)
    rows = ["control", "joint_kinds"]
    assert main(["--preset", "faces", "--data", str(DATA), "--out", str(tmp_path / "out"), "--rows", *rows]) == 0
    content = json.loads((tmp_path / "out" / "faces_fold0_0.json").read_text())
    assert [row["name"] for row in content] == rows
    for row in content:
        labels, images = statistics.labels(row["per_label"]), statistics.scores(row["per_image"])
        assert labels.shape == (13, 6, 3)
        assert statistics.mean_iou(labels) == pytest.approx(row["mean_iou"], abs=1e-6)
        # Every label counts, so the images' counts are the labels' sums.
        assert np.array_equal(labels[..., :2].sum(1), images)
        assert np.array_equal(labels[..., 1].sum(1), labels[..., 2].sum(1))
    assert content[1]["edges"] == "contrast:0.61,1.94"
    first, second = (statistics.labels(row["per_label"])[..., 2] for row in content)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("name", "few"), [("half", 60), ("facades", 60), ("faces", 22)])
def test_what_settings_are_chosen_on_is_not_learned_from_and_not_test_data(name: str, few: int) -> None:
    preset = replace(PRESETS[name], train=few)
    if not (DATA / str(preset.file)).exists():
        pytest.skip("no data beside the project")
    learned, asked = held_out(DATA, preset)
    whole, tested = read(replace(preset, train=None), preset.splits[0], DATA)
    assert (len(learned), len(asked)) == (few, few // 2)

    def pictures(data: object, count: int) -> set[bytes]:
        return {np.asarray(data[i][0]).tobytes() for i in range(count)}  # type: ignore[index]

    parts = pictures(learned, few), pictures(asked, few // 2), pictures(tested, len(tested))
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    assert parts[0] | parts[1] <= pictures(whole, len(whole))


def test_every_row_of_the_table_is_there() -> None:
    assert list(METHODS) == [
        "cnn", "control", "forest", "crfrnn_separate", "crfrnn_joint", "separate_pcd", "joint_cd1", "joint_cd2", "joint_cd5",
        "joint_cd10", "joint_pcd1", "joint_pcd", "piecewise", "pseudolikelihood", "meanfield2", "meanfield5", "meanfield10",
        "separate_kinds", "joint_kinds", "joint_kinds_ce", "control_quick", "joint_kinds_quick", "joint_gates",
        "joint_gaussian", "meanfield5_kinds", "dtf",
    ]  # fmt: skip
