"""What a step costs and what a network knows are measured on a model that stands still, and bad input is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tritoncrf as tc
from bench.paper import known, share
from bench.paper.__main__ import main as learn_rows
from bench.paper.figures import Work, open_work
from bench.paper.lag import Kept
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper") / "toy"
    assert learn_rows(["--preset", "toy", "--out", str(out), "--rows", "separate_pcd", "joint_pcd", "joint_gates"]) == 0
    return out


@pytest.fixture
def work(folder: Path) -> Work:
    return open_work(folder, None, None, 0)


def batch_of(images: tc.Indexed, place: int) -> Batch:
    return Batch.of(collate([images[place]]), torch.device("cpu"))


def test_steps_leave_network_and_tables_and_move_chains_by_two_visits(work: Work) -> None:
    kept = Kept.of(work, "joint_pcd")
    before = {name: part.clone() for name, part in kept.model.network.state_dict().items()}
    tables, done = kept.model.crf.pairwise.detach().clone(), kept.chains.sweeps.clone()
    batches = [batch_of(work.problem.train, place) for place in (1, 4)]
    found = share.measure(kept, "joint_pcd", batches, 3, "toy", "figures")
    assert all(torch.equal(part, before[name]) for name, part in kept.model.network.state_dict().items())
    assert torch.equal(kept.model.crf.pairwise, tables)
    # Once to warm up, once timed, three sweeps each; other images' chains stay.
    assert (kept.chains.sweeps - done).tolist() == [6 if place in (1, 4) else 0 for place in range(len(work.problem.train))]
    assert 0 < found.loss_ms < found.joint_ms
    assert found.control_ms > 0
    assert found.ratio == found.joint_ms / found.control_ms
    assert found.share == found.loss_ms / found.joint_ms
    assert 0 < found.flip_rate < 1


def test_what_a_network_knows_is_what_it_says_of_images(
    work: Work, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert known.main(["--work", str(folder)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["part"], row["images"]) for row in rows] == [("training", 48), ("test", 16)]
    network, right, nats = work.problem.network().eval(), list[float](), list[float]()
    for place in range(16):
        batch = batch_of(work.problem.test, place)
        counted = (batch.target != 255) & (batch.target != work.problem.test.background)
        if batch.clamp is not None:
            counted &= ~batch.clamp
        logits = network(batch.image).movedim(1, -1)[counted].detach()
        right += (logits.argmax(1) == batch.target[counted]).tolist()
        nats += (-logits.log_softmax(1).gather(1, batch.target[counted].long()[:, None])).flatten().tolist()
    assert rows[1]["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-4)
    assert rows[1]["nats"] == pytest.approx(sum(nats) / len(nats), abs=1e-3)
    assert rows[0]["nats"] != rows[1]["nats"]
    assert known.main(["--work", str(folder / "none")]) == 2
    assert capsys.readouterr().err.startswith("bench.paper.known: work: expected a folder that bench.paper wrote")


def test_rows_are_printed_and_files_stay(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("model.safetensors")}
    assert share.main(["--work", str(folder), "--rows", "joint_pcd", "joint_gates", "--images", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["row"], row["K"], row["images"]) for row in rows] == [("joint_pcd", 10, 2), ("joint_gates", 10, 2)]
    assert {path: path.read_bytes() for path in folder.rglob("model.safetensors")} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rows", "separate_pcd"], "rows: expected some of joint_pcd1, joint_pcd, joint_kinds"),
        (["--rows", "joint_kinds"], "rows: expected some of separate_pcd, joint_pcd"),
        (["--images", "0"], "images: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert share.main(["--work", str(folder), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench.paper.share: " + sentence)
    assert said.count("\n") == 1
