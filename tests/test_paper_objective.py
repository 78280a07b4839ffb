"""Objectives in the reproduction: a row that learns by one, both answers of a model, curves, and what the page says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.paper import exchange, likelihood, report, report_rows
from bench.paper.__main__ import main as learn_rows
from bench.paper.figures import open_work
from bench.paper.inference import Model
from bench.paper.settings import parse
from tests.test_paper_report import put, put_rows, row, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper") / "toy"
    rows = ["joint_kinds", "joint_kinds_ce", "meanfield5_kinds", "joint_kinds_quick", "control_quick"]
    assert learn_rows(["--preset", "toy", "--out", str(out), "--rows", *rows]) == 0
    return out


def test_the_row_learns_by_both(folder: Path) -> None:
    """From the same chains' counts, to other tables."""
    work = open_work(folder, None, None, 0)
    plain, both = (Model.of(work, name) for name in ("joint_kinds", "joint_kinds_ce"))
    assert both.crf.pairwise.shape == plain.crf.pairwise.shape
    apart = (both.crf.pairwise - plain.crf.pairwise).abs().max()
    assert float(apart.detach()) > 1e-3


def test_models_are_answered_both_ways_and_shown(folder: Path, tmp_path: Path) -> None:
    assert exchange.main(["--work", str(folder), "--out", str(tmp_path)]) == 0
    # The same again takes the place of what stood there.
    assert exchange.main(["--work", str(folder), "--out", str(tmp_path), "--rows", "joint_kinds"]) == 0
    told = json.loads((tmp_path / "exchange.json").read_text())
    assert [(part["row"], part["answer"]) for part in told] == [
        ("meanfield5_kinds", "Gibbs sampling"), ("meanfield5_kinds", "mean field"), ("joint_kinds", "Gibbs sampling"),
        ("joint_kinds", "mean field"),
    ]  # fmt: skip
    made = {part["name"]: part["accuracy"] for part in json.loads((folder / "toy_figures_0.json").read_text())}
    # Each model's own answer is that of its row.
    assert told[1]["accuracy"] == pytest.approx(made["meanfield5_kinds"], abs=1e-5)
    assert told[2]["accuracy"] == pytest.approx(made["joint_kinds"], abs=0.01)
    text = report.page(report_rows.read(tmp_path), tmp_path, "figures")
    shown = f"| {100 * told[2]['accuracy']:.2f} | {100 * told[3]['accuracy']:.2f} | {told[2]['cross_entropy']:.3f} |"
    assert f"| ours, joint PCD, tables by kind of edge | 0 {shown}" in text
    assert exchange.main(["--work", str(folder), "--out", str(tmp_path), "--rows", "cnn"]) == 2


def test_a_curve_begins_at_the_networks_own_cross_entropy(folder: Path, tmp_path: Path) -> None:
    """Without tables a labelling's log-likelihood is the sum of its pixels'."""
    problem = replace(open_work(folder, None, None, 0).problem)
    problem = replace(problem, preset=replace(problem.preset, epochs=1))
    likelihood.STEPS, steps = 4, likelihood.STEPS
    try:
        found = likelihood.curve(problem, parse("joint, cross-entropy of 4 averaged x 1"), tmp_path, 2)
    finally:
        likelihood.STEPS = steps
    assert len(found) == 2
    assert found[0]["log_likelihood"] == pytest.approx(-found[0]["cross_entropy"], abs=1e-3)
    assert found[0]["variance"] == pytest.approx(0.0, abs=1e-6)
    assert found[1]["log_likelihood"] > found[0]["log_likelihood"]
    put(tmp_path / "results", "likelihood.json", [{"what": "joint", "seed": 3, "curve": found}])
    text = written(tmp_path / "results", tmp_path)
    assert f"| joint | 3 | 1 | {found[1]['log_likelihood']:.3f} | {-found[1]['cross_entropy']:.3f} |" in text


def test_trials_of_objectives_have_a_table_of_their_own(tmp_path: Path) -> None:
    base: dict[str, object] = {"preset": "half", "images": 300, "K": 10, "edges": "steps:0.1,0.3"}
    name, objective = "joint, edges steps:0.1,0.3", {"objective": "likelihood 1, cross-entropy 1, contexts 4, margin 0"}
    trials = [
        {"what": name + more, "seed": seed, "setting": base | extra, "validation_accuracy": value, "network_accuracy": 0.7}
        for more, extra, values in (("", {}, (0.8, 0.81)), (", cross-entropy of 4 averaged x 1", objective, (0.803, 0.812)))
        for seed, value in enumerate(values)
    ]
    put(tmp_path / "results", "tuning.json", trials)
    put_rows(tmp_path / "results", [row("joint_kinds_ce", [80] * 3), row("joint_kinds", [70] * 3)])
    text = written(tmp_path / "results", tmp_path)
    own = text[text.index("## What is learned by") : text.index("## Half scale")]
    assert f"| cross-entropy of 4 averaged x 1 | {name} | half | 300 | 10 | 80.75 ± 0.64 (2) | +0.25 | +0.30, +0.20 |" in own
    assert "cross-entropy beside the likelihood is above ours, joint PCD, tables by kind of edge (+10.00 points" in own
    seen = text[text.index("## Tables that see the image") : text.index("## What is learned by")]
    assert "of 4 averaged" not in seen
    assert "of 4 averaged" not in text[text.index("## What the paper leaves open") : text.index("## What was tried")]


def test_trials_on_photographs_stand_beside_their_control(tmp_path: Path) -> None:
    values: dict[str, tuple[tuple[float, float], ...]] = {
        "control": ((0.60, 0.2), (0.61, 0.25)), "joint, K = 10": ((0.62, 0.26), (0.64, 0.30)), "joint, fast 0.3": ((0.59, 0.3),)
    }  # fmt: skip
    trials = [
        {
            "what": name, "seed": seed, "setting": {"preset": "facades", "K": 10}, "validation_accuracy": accuracy,
            "validation_iou": iou, "network_accuracy": 0.5,
        }
        for name, seeds in values.items() for seed, (accuracy, iou) in enumerate(seeds)
    ]  # fmt: skip
    put(tmp_path / "results", "tuning.json", trials)
    text = written(tmp_path / "results", tmp_path)
    own = text[text.index("## Learning on photographs") : text.index("## Half scale")]
    assert "| joint, fast 0.3 | 10 | 59.00 | 30.00 | -1.00 | +10.00 |\n| control |" in own
    assert "| joint, K = 10 | 10 | 63.00 ± 1.41 (2) | 28.00 ± 2.83 (2) | +2.00, +3.00 | +6.00, +5.00 |" in own
    assert "fast 0.3" not in text[text.index("## What was tried") :]
    # Gains are told seed by seed, whichever was run first.
    put(tmp_path / "results", "tuning.json", trials[::-1])
    assert "| +2.00, +3.00 | +6.00, +5.00 |" in written(tmp_path / "results", tmp_path)
