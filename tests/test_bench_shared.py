"""What the benchmarks share: rows of a file, ratios of turns, softened networks, and few images learned by the paper's rows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench import learning, step
from bench.paper.presets import Preset, far
from bench.paper.problem import prepare
from bench.paper.run import add_rows, program, rows_of
from bench.turns import arguments, ratios, spread, take_turns
from tritoncrf import checkpoint
from tritoncrf.batches import Batch
from tritoncrf.datasets import Figures


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made-up figures, four to learn from."""
    figures, path = Figures(6, size=(24, 20)), tmp_path_factory.mktemp("data") / "few.npz"
    labels = np.stack([figures[i][1].numpy() for i in range(6)]).astype(np.uint8)
    images = (labels[..., None] * np.array([12, 5, 2])).astype(np.uint8)
    np.savez(
        path, images=images, labels=labels, sizes=np.full((6, 2), labels.shape[1:], np.int16),
        class_names=np.array(figures.class_names), split=np.array(["train"] * 4 + ["test"] * 2),
    )  # fmt: skip
    return path


def test_rows_replace_those_alike_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rows.json"
    add_rows(file, [{"name": "a", "seed": 0, "v": 1}])
    add_rows(file, [{"name": "a", "seed": 1, "v": 2}, {"name": "b", "seed": 0, "v": 3}], same=("name", "seed"))
    add_rows(file, [{"name": "a", "seed": 0, "v": 4}], same=("name", "seed"))
    assert [(row["name"], row["seed"], row["v"]) for row in rows_of(file)] == [("a", 1, 2), ("b", 0, 3), ("a", 0, 4)]
    # Without a word of what makes rows alike all stay.
    add_rows(file, [{"name": "b", "seed": 0, "v": 5}])
    assert len(rows_of(file)) == 4
    assert [path.name for path in file.parent.iterdir()] == ["rows.json"]
    file.write_text("{}")
    with pytest.raises(ValueError, match="expected a list of rows in"):
        add_rows(file, [{"name": "c"}])
    assert file.read_text() == "{}"


def test_bad_input_ends_a_program_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    @program
    def main(arguments: list[str] | None = None) -> None:
        if arguments:
            raise ValueError("rows: expected none, got some")

    assert main([]) == 0
    assert main(["some"]) == 2
    assert capsys.readouterr().err == "bench.paper.test_bench_shared: rows: expected none, got some\n"


def test_ratios_are_of_a_turn() -> None:
    above, below = [(2.0, 5), (9.0, 5), (4.0, 5)], [(1.0, 0), (3.0, 0), (4.0, 0)]
    assert ratios(above, below) == [2.0, 3.0, 1.0]
    assert ratios(above, below, 0.5) == [1.0, 1.5, 0.5]
    assert spread(ratios(above, below), "ratio") == {"ratio": 2.0, "least": 1.0, "most": 3.0}


def test_turns_are_timed_by_the_clock_that_is_asked_for() -> None:
    """Sleep takes no processor time."""
    calls = {"sleeps": lambda: time.sleep(0.02), "counts": lambda: 7}
    spent, passed = take_turns(calls, 2, clock=time.process_time), take_turns(calls, 2)
    assert all(0 <= seconds < 0.01 for seconds, _ in spent["sleeps"])
    assert all(seconds >= 0.02 for seconds, _ in passed["sleeps"])
    assert [value for _, value in passed["counts"]] == [7, 7]


def test_arguments_are_those_asked_for() -> None:
    found = vars(arguments("What?\n\nMore.", threads=3, write=True).parse_args(["--write"]))
    assert found == {"threads": 3, "write": True}
    assert arguments("What?", turns=4).parse_args([]).turns == 4


def test_a_softened_network_halves_its_logits_and_leaves_the_other(archive: Path, tmp_path: Path) -> None:
    preset = Preset("few", archive.name, ("split",), 4, 2, "small", 1, 1, far(1, 1))
    problem = prepare(preset, "split", 0, archive.parent, tmp_path, torch.device("cpu"))
    batch = Batch.of(next(iter(problem.tests())), problem.device)
    with torch.no_grad():
        before, halved = problem.network()(batch.image), problem.softened(0.5).network()(batch.image)
        assert torch.equal(problem.network()(batch.image), before)
    assert torch.allclose(halved, before / 2, atol=1e-6)
    assert not torch.allclose(halved, before)


def test_scores_are_those_of_the_answers(archive: Path, tmp_path: Path) -> None:
    preset = Preset("few", archive.name, ("split",), 4, 2, "small", 1, 1, far(1, 1))
    problem = prepare(preset, "split", 0, archive.parent, tmp_path, torch.device("cpu"))

    def predict(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        truth = nn.functional.one_hot(batch.target.long(), problem.test.num_labels).movedim(-1, 1).float()
        return truth.flip(1), truth

    alone, whole = problem.scores(predict)
    assert whole.accuracy == 1.0
    assert alone.accuracy < 0.5
    assert len(list(problem.answers(predict))) == 2


def test_few_images_are_learned_by_rows_of_the_paper(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["learning", "--data", str(archive), "--split", "split", "--train", "4", "--test", "2", "--pretrain", "2"]
    words += ["--epochs", "1", "--threads", "1", "--out", str(tmp_path), "--rows"]
    rows = ["network", "separate_pcd_soft", "joint_cd1"]
    monkeypatch.setattr("sys.argv", [*words, *rows])
    learning.main()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == json.loads((tmp_path / "rows_small_4_0.json").read_text())
    assert [row["name"] for row in told] == rows
    assert [row["visits"] for row in told] == [0, 4, 4]
    assert all((row["images"], row["test_images"], row["split"]) == (4, 2, "split") for row in told)
    # Separate learning leaves the network as it was, and halved logits have the same largest one.
    assert told[1]["network_accuracy"] == told[0]["accuracy"]
    assert (tmp_path / "picture_small_4_0.png").is_file()
    folder = tmp_path / "few_split_small_4_0_2_1"
    learned, soft = (
        checkpoint.tensors(checkpoint.read(folder / name, kind="training"), "network")
        for name in ("pretrain.safetensors", "separate_pcd_soft/model.safetensors")
    )
    *_, last = learned
    assert [name for name in learned if not torch.equal(soft[name], learned[name])] == [
        name for name in learned if name.split(".")[0] == last.split(".")[0]
    ]  # fmt: skip
    assert torch.equal(soft[last], learned[last] / 2)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(rows)


def test_learners_take_the_steps_that_are_timed() -> None:
    """Both move what they learn; the parts of a step are told one by one."""
    data = step.bodies(None, 3, (24, 20))
    batches = step.batches_of(data, 1, 1, 2)
    assert [int(batch.index[0]) for batch in batches] == [1]
    with pytest.raises(ValueError, match="images: expected at least a batch of 4, got 3"):
        step.batches_of(data, 4)
    torch.manual_seed(0)
    network = nn.Conv2d(data.channels, data.num_labels, 3, padding=1)
    before = network.weight.detach().clone()
    assert step.Plain(network).step(batches[0]) >= 0
    assert not torch.equal(network.weight, before)
    learner, before = step.Learner(network, data, far(1, 1), sweeps=1), network.weight.detach().clone()
    assert np.isnan(learner.flip_rate)
    parts = learner.step(batches[0])
    assert len(parts) == len(step.PARTS)
    assert 0 < learner.flip_rate <= 1
    assert not torch.equal(network.weight, before)
    assert learner.loss.crf.tables[0].any()
