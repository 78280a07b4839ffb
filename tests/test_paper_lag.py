"""Kept chains that go on: they go on as a visit would, chains far from the model fall, bad input is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tritoncrf as tc
from bench.paper import lag, report, report_rows
from bench.paper.__main__ import main as learn_rows
from bench.paper.figures import Work, open_work
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


def batch_of(work: Work, place: int) -> Batch:
    return Batch.of(collate([work.problem.train[place]]), torch.device("cpu"))


def test_chains_go_on_as_in_a_visit_of_a_model_that_stands_still(work: Work) -> None:
    kept = lag.Kept.of(work, "joint_pcd")
    crf, network = kept.model.crf, kept.model.network
    assert bool((kept.chains.sweeps == 10).all())
    for place in (0, 5):
        batch = batch_of(work, place)
        sizes = work.problem.train.sizes[place]
        where = kept.chains.pixel_indices(batch.index.long(), tuple(sizes))

        def energy(batch: Batch = batch, where: torch.Tensor = where) -> float:
            return float(crf.energy(network(batch.image), kept.chains.fetch(where)[:, 0]).detach())

        moved = kept.moved(batch, (7, 12))
        before = energy()
        loss = tc.CRFLoss(crf, chains=kept.chains, sweeps=7)
        assert batch.clamp is not None
        free = int((~batch.clamp).sum())
        for more, value in ((7, moved[0]), (5, moved[1])):
            loss.sweeps = more
            loss(network(batch.image), batch.labels, batch.index, clamp=batch.clamp)
            assert (energy() - before) / free == pytest.approx(value, abs=1e-5)


def test_chains_far_from_the_model_fall(work: Work) -> None:
    kept = lag.Kept.of(work, "joint_pcd")
    batch = batch_of(work, 3)
    near = kept.moved(batch, (40,))[0]
    labels = torch.randint(0, 20, (kept.chains.labels.shape[1] - 1,), generator=torch.Generator().manual_seed(0))
    kept.chains.labels[0, :-1] = labels.to(torch.uint8)
    assert kept.moved(batch, (40,))[0] < -1 < near


def test_what_it_writes_is_read_and_shown(folder: Path, tmp_path: Path) -> None:
    words = ["--work", str(folder), "--rows", "joint_pcd", "--out", str(tmp_path), "--images"]
    assert [lag.main([*words, images]) for images in ("2", "3")] == [0, 0]
    results = report_rows.read(tmp_path)
    (found,) = results.lags
    assert (found.row, found.preset, found.images, found.sweeps) == ("joint_pcd", "toy", 3, lag.MORE)
    text = report.page(results, tmp_path, "figures")
    assert found.error[0] is not None
    shown = f"{found.energy[0]:+.3f} ± {found.error[0]:.3f}"
    assert f"| ours, joint PCD, our K | toy, generated figures | 0 | 3 | {shown} |" in text
    twice = json.loads((tmp_path / "lag.json").read_text()) * 2
    (tmp_path / "lag.json").write_text(json.dumps(twice))
    with pytest.raises(ValueError, match=r"lag.json: expected each row once in row 1, got 'joint_pcd' again"):
        report_rows.read(tmp_path)


def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--work", str(tmp_path)], "work: expected a folder that bench.paper wrote"),
        (["--work", str(folder), "--rows", "cnn"], "rows: expected some of joint_pcd, got 'cnn'"),
        (["--work", str(folder), "--rows", "separate_pcd"], "rows: expected some of joint_pcd, got 'separate_pcd'"),
        (["--work", str(folder), "--rows", "joint_pcd", "--images", "0"], "images: expected at least 1, got 0"),
    ):
        assert lag.main([*arguments, "--out", str(tmp_path / "out")]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
