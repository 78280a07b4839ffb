"""Sweeps at test time: answers equal the rows' own, agreement chooses, bad input is one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.paper import inference, report_rows
from bench.paper.__main__ import main as learn_rows
from bench.paper.figures import Work, open_work
from bench.paper.methods import learn
from bench.paper.presets import PRESETS
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper") / "toy"
    assert learn_rows(["--preset", "toy", "--out", str(out), "--rows", "cnn", "joint_pcd"]) == 0
    return out


@pytest.fixture
def work(folder: Path) -> Work:
    return open_work(folder, None, None, 0)


def test_the_rows_own_budget_gives_the_rows_own_answer(work: Work) -> None:
    preset = work.problem.preset
    budget = preset.burn_in + preset.sweeps
    assert inference.burn_in(budget) == preset.burn_in
    predict = learn("joint_pcd", work.problem, work.folder / "joint_pcd")
    model = inference.Model.of(work, "joint_pcd")
    apart = 0
    for i in range(3):
        batch = Batch.of(collate([work.problem.test[i]]), torch.device("cpu"))
        found, energies = model.answers(batch, "pretrained", (3, budget, 30), 1)
        assert torch.equal(found[budget].long(), predict(batch)[1][0].argmax(0))
        assert energies.shape == (1, 30)
        apart += int((found[3] != model.answers(batch, "random", (3,), 1)[0][3]).sum())
    assert apart > 0


def test_what_it_writes_is_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--work", str(folder), "--rows", "joint_pcd", "--images", "2", "--out", str(tmp_path)]
    assert inference.main(words) == 0
    found = report_rows.read(tmp_path).inference
    assert found is not None
    assert [(curve.row, curve.start) for curve in found.curves] == [("joint_pcd", start) for start in inference.STARTS]
    assert found.burn_in + found.sweeps in inference.BUDGETS
    assert all(0.5 < value <= 1 for curve in found.curves for value in curve.accuracy[-2:])
    assert "R-hat median" in capsys.readouterr().out


def test_agreement_and_accuracy_choose_the_least_budget() -> None:
    good, bad = torch.full((10,), 1.01), torch.full((10,), 1.3)
    mostly = torch.cat([good[:-1], bad[:1]])
    flat = {6: 0.9, 15: 0.9, 30: 0.9}
    assert inference.choose({6: bad, 15: mostly, 30: good}, flat)[0] == 30
    assert inference.choose({6: bad, 15: good, 30: good}, flat)[0] == 15
    assert inference.choose({6: bad, 15: good, 30: good}, {**flat, 15: 0.8985})[0] == 30
    # Chains in modes apart: more sweeps do not help.
    budget, largest, how = inference.choose({6: bad, 15: mostly, 30: mostly}, flat)
    assert (budget, round(largest, 2)) == (15, 1.3)
    assert "(90% are, 90% then)" in how


def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path, work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--work", str(tmp_path)], "work: expected a folder that bench.paper wrote"),
        (["--work", str(folder), "--rows", "cnn"], "rows: expected some of joint_pcd, got 'cnn'"),
        (["--work", str(folder), "--images", "0"], "images: expected at least 1, got 0"),
    ):
        assert inference.main([*arguments, "--out", str(tmp_path / "out")]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    whole = replace(work.problem, preset=PRESETS["whole"])
    with pytest.raises(ValueError, match="data: expected the folder"):
        inference.held_out(whole, "split_by_clip", None, 3)
    with pytest.raises(ValueError, match="expected a preset that leaves training images out, got 'whole'"):
        inference.held_out(whole, "split_by_clip", tmp_path, 3)
