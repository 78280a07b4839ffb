"""Does the page say what the JSON says, and nothing else?"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bench.paper import report, report_claims, report_open, report_rows, report_tables
from bench.paper.methods import METHODS
from bench.paper.presets import PRESETS
from bench.paper.report_rows import Trial

Fields = dict[str, object]
HEADLINE, ROWS = "split_by_clip", "half_split_by_clip_0.json"


def row(name: str, correct: list[int], *, preset: str = "half", split: str = HEADLINE, seed: int = 0) -> Fields:
    """A row over test images of 100 counted pixels each."""
    return {
        "name": name, "preset": preset, "split": split, "seed": seed, "accuracy": sum(correct) / (100 * len(correct)),
        "network_accuracy": 0.8, "mean_iou": 0.7, "network_mean_iou": 0.6, "images": 1200, "test_images": len(correct),
        "visits": 3600, "seconds": 120.4, "seconds_test": 9.6, "peak_mb": 512, "burn_in": 20, "sweeps": 40, "commit": "abc1234",
        "machine": "x86_64, 1 threads", "per_image": [[part, 100] for part in correct],
    }  # fmt: skip


def put(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def put_rows(folder: Path, rows: list[Fields]) -> None:
    for place in {(part["preset"], part["split"], part["seed"]) for part in rows}:
        mine = [part for part in rows if (part["preset"], part["split"], part["seed"]) == place]
        put(folder, "{}_{}_{}.json".format(*place), mine)


def written(folder: Path, tmp_path: Path) -> str:
    page = tmp_path / "paper.md"
    assert report.main(["--results", str(folder), "--out", str(page)]) == 0
    return page.read_text(encoding="utf-8")


def test_the_page_is_made_from_the_committed_results(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    if (report.PAGE.parent / "figures").is_dir():
        shutil.copytree(report.PAGE.parent / "figures", docs / "figures")
    assert report.main(["--out", str(docs / "paper.md")]) == 0
    hint = "docs/paper.md is stale: python -m bench.paper.report"
    assert (docs / "paper.md").read_text(encoding="utf-8") == report.PAGE.read_text(encoding="utf-8"), hint


def test_rows_and_presets_are_those_that_run() -> None:
    assert list(report_claims.METHODS) == list(METHODS)
    assert set(report.FOLDERS) == set(report.TITLES) == set(PRESETS)


def test_margins_are_the_papers() -> None:
    assert report_claims.margin("joint_pcd", "joint_cd5") == pytest.approx(0.78)
    assert report_claims.margin("joint_cd1", "separate_pcd") == pytest.approx(0.55)
    assert report_claims.margin("cnn", "forest") == pytest.approx(5.47)
    assert report_claims.margin("joint_pcd", "control") is None
    assert report_claims.margin("joint_pcd", "joint_pcd1") is None  # one row of the paper stands for both


def test_means_deviations_and_intervals_reach_the_page(tmp_path: Path) -> None:
    base = list(range(50, 90))
    rows = [row("separate_pcd", base, seed=seed) for seed in (0, 1, 2)]
    rows += [row("joint_cd1", [part + 1 + seed for part in base], seed=seed) for seed in (0, 1, 2)]
    rows += [row("joint_pcd", [part + 1 for part in base])]
    rows += [row("joint_cd5", [part + (2 if place % 2 else -2) for place, part in enumerate(base)])]
    rows += [row("crfrnn_joint", [part + 2 for part in base]), row("cnn", base[::2], split="split")]
    put_rows(tmp_path / "results", rows)
    text = written(tmp_path / "results", tmp_path)
    # accuracies 70.5, 71.5, 72.5 have mean 71.5 and deviation 1
    assert "| ours, joint CD-1 | 88.17 | 71.50 ± 1.00 (3) | not measured |" in text
    assert "| CNN | 84.47 | not measured | 69.00 |" in text
    # each image gains 1, 2, 3 pixels of 100 in seeds 0, 1, 2, so no resample differs
    assert "| ours, joint CD-1 - ours, separate PCD | +0.55 | +2.00 | +2.00 to +2.00 | above | +1.00, +2.00, +3.00 |" in text
    holds = "- **Holds**: ours, joint CD-1 is above ours, separate PCD (+2.00 points, +2.00 to +2.00; the paper: +0.55; ab"
    assert holds in text
    assert "- **Differs from the paper's order**: ours, joint PCD, our K is below CRF-as-RNN, joint (-1.00 points" in text
    assert "- **Open**: ours, joint CD-5 and ours, separate PCD are not told apart, the interval holds zero (+0.00 po" in text
    assert "- Not measured: ours, joint PCD, our K against ours, joint CD-2 (the paper: +0.86)." in text
    # seed 0 alone is shared with joint PCD
    assert "| ours, joint PCD, our K - ours, joint CD-1 | +0.84 | +0.00 | +0.00 to +0.00 | open |  |" in text
    assert "| ours, joint PCD, our K | 1 | 3600 | 120 | 10 | 512 |" in text
    assert "1200 training images, 40 / 20 test images; sampled rows answer with a burn-in of 20 and 40 averaged sweeps" in text
    assert "Costs (x86_64, 1 threads; commits abc1234):" in text
    missing = re.findall(r"bench\.paper --preset half --data FOLDER --out runs/half --splits split --rows (.*)`", text)
    assert missing == [" ".join(name for name in METHODS if name != "cnn")]
    assert "python -m bench.paper --preset full --data FOLDER --out runs/full --device cuda" in text


def test_a_row_without_images_gets_no_interval(tmp_path: Path) -> None:
    rows = [row("joint_pcd", [80] * 4), row("separate_pcd", [70] * 4)]
    del rows[0]["per_image"]
    put_rows(tmp_path / "results", rows)
    text = written(tmp_path / "results", tmp_path)
    assert "- No interval: ours, joint PCD, our K less ours, separate PCD is +10.00 (the paper: +1.39), without figures" in text


def test_folds_are_all_shown_and_pooled(tmp_path: Path) -> None:
    rows = [row(name, [60 + fold + gain] * (5 + fold), preset="facades", split=f"fold{fold}")
            for name, gain in (("control", 0), ("joint_pcd", 2)) for fold in range(5)]  # fmt: skip
    put_rows(tmp_path / "results", rows)
    text = written(tmp_path / "results", tmp_path)
    assert "| ours, joint PCD, our K | 62.00 | 63.00 | 64.00 | 65.00 | 66.00 | 64.00 ± 1.58 (5) |" in text
    pair = "| ours, joint PCD, our K - control: the CNN with as many further visits | - | +2.00 | +2.00 to +2.00 | above |"
    assert pair in text
    assert text.count("all folds") == 1
    # the rows that the preset is for, and no others
    facades = text[text.index("## Facades") : text.index("## Toy")]
    assert facades.count("| ours, separate PCD | not measured |") == 3
    assert "random forest" not in facades
    assert facades.count("--rows cnn separate_pcd`") == 5


def test_mean_iou_has_an_interval_where_each_label_is_counted(tmp_path: Path) -> None:
    rows = []
    for name, right in (("control", 60), ("joint_pcd", 70)):
        # two labels of 50 pixels an image, as many of each right; so IoU is right / (200 - right)
        fields = {**row(name, [right] * 4, preset="faces", split="fold0"), "mean_iou": right / (200 - right)}
        fields["per_label"] = [[[right // 2, 50, 50]] * 2] * 4
        rows.append(fields)
    put_rows(tmp_path / "results", rows)
    text = written(tmp_path / "results", tmp_path)
    gain = f"{100 * (70 / 130 - 60 / 140):+.2f}"
    assert f"| - | +10.00 | +10.00 to +10.00 | above |  | {gain} | {gain} to {gain} |" in text
    del rows[1]["per_label"]
    put_rows(tmp_path / "results", rows)
    assert f"| - | +10.00 | +10.00 to +10.00 | above |  | {gain} |\n" in written(tmp_path / "results", tmp_path)
    rows[0]["mean_iou"] = 0.5
    put_rows(tmp_path / "results", rows)
    with pytest.raises(ValueError, match=r"faces_fold0_0\.json: expected the mean IoU of its labels, 0\.42857, in row 0, got"):
        report_rows.read(tmp_path / "results")
    rows[0]["per_label"] = [3]
    put_rows(tmp_path / "results", rows)
    with pytest.raises(ValueError, match=r"faces_fold0_0\.json: per_label: expected triples .* in row 0"):
        report_rows.read(tmp_path / "results")


def test_machines_are_not_averaged() -> None:
    rows = []
    for machine, seconds in (("CPU", 100.0), ("GPU", 3.0)):
        content = {**row("cnn", [1]), "machine": machine, "seconds": seconds}
        rows.append(report_rows._row(report_rows.Fields(Path("x.json"), "row 0", content)))
    lines = report_tables.costs_table(rows)
    assert "| CNN | CPU | 1 | 3600 | 100 | 10 | 512 |" in lines
    assert "| CNN | GPU | 1 | 3600 | 3 | 10 | 512 |" in lines


def test_tuning_storage_and_inference(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    trials = [
        {"what": "neighbourhood", "setting": {"classes": classes, "reach": 24}, "seed": seed, "validation_accuracy": value,
         "network_accuracy": 0.75, "seconds": 200, "note": "far"}
        for classes, seed, value in ((32, 0, 0.87), (48, 0, 0.88), (48, 1, 0.90))
    ]  # fmt: skip
    put(folder, "tuning.json", trials)
    put(folder, "storage.json", [
        {"what": "dual variables", "bytes_per_image": 2.0e8, "bytes_total": 4.0e11, "how": "factors"},
        {"what": "labels", "bytes_per_image": 39000, "bytes_total": 78.4e6, "how": "a | b"},
    ])  # fmt: skip
    curves = [
        {"row": "joint_pcd", "start": "pretrained", "sweeps": [1, 10, 60], "accuracy": [0.80, 0.8695, 0.87]},
        {"row": "joint_pcd", "start": "random", "sweeps": [1, 60, 600], "accuracy": [0.1, 0.5, 0.8691]},
    ]
    chosen = {"burn_in": 20, "sweeps": 40, "rhat": 1.04, "images": 60, "how": "The least with R-hat below 1.1."}
    put(folder, "inference.json", {**chosen, "curves": curves})
    text = written(folder, tmp_path)
    assert "| neighbourhood | classes 48, reach 24 | 89.00 ± 1.41 (2) | 75.00 ± 0.00 (2) | 200 | far |" in text
    tried = "Tried, per cent on validation images: neighbourhood (classes 32, reach 24) 87.00; neighbourhood (classes 48,"
    assert tried in text
    assert "| dual variables | 200 MB | 400 GB | factors |" in text
    assert "| labels | 39 kB | 78.4 MB | a \\| b |" in text
    words = "Chosen once on 60 validation images: burn-in 20, then 40 sweeps averaged, where the largest split R-hat was 1.040."
    assert words in text
    assert "| ours, joint PCD, our K, start random | 10.00 | - | 50.00 | 86.91 |" in text
    assert "marginals after 10 sweeps, from a random start after 600." in text


def test_figures_are_shown_where_they_are(tmp_path: Path) -> None:
    put(tmp_path / "results", "tuning.json", [])
    assert "None drawn yet: `python -m bench.paper.figures" in written(tmp_path / "results", tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "figure2.png").write_bytes(b"")
    text = written(tmp_path / "results", tmp_path)
    assert "](figures/figure2.png)" in text
    assert "figure1.png" not in text


def test_words_find_their_trials() -> None:
    trial = Trial("sweeps per visit", (("K", "20"),), 0, 0.9, None, None, "")
    by_name = {choice.question: choice for choice in report_open.choices()}
    assert report_open._belongs(trial, by_name["Sweeps per visit (K)"].words)
    assert not report_open._belongs(trial, by_name["Input and start of the network"].words)
    softer = Trial("joint, start x 0.5", (("images", "300"),), 0, 0.9, None, None, "")
    other = Trial("joint", (("images", "300"),), 0, 0.89, None, None, "")
    assert report_open._belongs(softer, by_name["Input and start of the network"].words)
    assert not report_open._belongs(other, by_name["Input and start of the network"].words)
    assert report_open._tried([softer], [softer, other]) == "joint, start x 0.5 (images 300) 90.00, +1.00 over joint"
    # "network rate" names the rate, not the network: the base is of the same network.
    rates = (("network", "b"), ("network_rate", "0.0003"))
    slower = Trial("joint, network rate 3e-4", rates, 0, 0.9, None, None, "")
    bases = [Trial("joint", (("network", name), ("network_rate", "0.001")), 0, value, None, None, "")
             for name, value in (("a", 0.8), ("b", 0.89))]  # fmt: skip
    assert report_open._tried([slower], [slower, *bases]).endswith("90.00, +1.00 over joint")
    assert "K = 1 as the paper has it, and K = 10" in by_name["Sweeps per visit (K)"].ours
    assert "48 classes, 96 neighbours, reach 24 pixels" in by_name["The 64 neighbours"].ours


def changed(**fields: object) -> list[Fields]:
    return [{**row("cnn", [50, 60]), **fields}]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (ROWS, "{", "half_split_by_clip_0.json: expected JSON, got something else"),
        (ROWS, {"rows": []}, "half_split_by_clip_0.json: expected a list of rows, got dict"),
        (ROWS, [3], "half_split_by_clip_0.json: expected a JSON object in row 0, got int"),
        (ROWS, changed(name=None), "expected name as text in row 0, got nothing"),
        (ROWS, changed(accuracy=84.5), "expected accuracy as a number within 0 and 1 in row 0, got 84.5"),
        (ROWS, changed(accuracy=float("nan")), "expected accuracy as a number within 0 and 1 in row 0, got nan"),
        (ROWS, changed(accuracy=0.56), "expected the accuracy of its images, 0.55000, in row 0, got 0.56000"),
        (ROWS, changed(images=1.5), "expected images as a whole number in row 0, got 1.5"),
        (ROWS, changed(per_image=[[3, 2]]), "expected 0 <= correct <= total, got [3, 2] for image 0, in row 0"),
        (ROWS, changed(seed=1), "expected rows of its own preset, split and seed in row 0, got one of half"),
        (ROWS, changed() * 2, "expected each row once in row 1, got 'cnn' again"),
        (ROWS, changed(name="network"), "results: expected rows of cnn, control, forest"),
        ("big_split_by_clip_0.json", changed(preset="big"), "results: expected rows of presets toy, half, "),
        ("tuning.json", [{"what": "rate", "setting": 3}], "tuning.json: expected setting as a JSON object in row 0, got 3"),
        ("inference.json", [], "inference.json: expected a JSON object in the file, got list"),
        (
            "inference.json",
            {"burn_in": 1, "sweeps": 2, "curves": [{"row": "a", "start": "random", "sweeps": [1], "accuracy": []}]},
            "inference.json: expected as many accuracies as sweeps, at least one, in curve 0, got 0 for 1",
        ),
    ],
)  # fmt: skip
def test_foreign_json_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: object, sentence: str
) -> None:
    put(tmp_path / "results", name, content)
    assert report.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "paper.md")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "paper.md").exists()


def test_other_test_images_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_rows(tmp_path / "results", [row("joint_pcd", [50, 60]), row("separate_pcd", [50, 60, 70])])
    assert report.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "paper.md")]) == 2
    said = capsys.readouterr().err
    assert "results: joint_pcd and separate_pcd of half cannot be paired: second: expected the test images of first" in said


def test_missing_folders_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--results", str(tmp_path / "none"), "--out", str(tmp_path / "paper.md")]) == 2
    assert "results: expected a folder of JSON files, got" in capsys.readouterr().err
    assert report.main(["--out", str(tmp_path / "none" / "paper.md")]) == 2
    assert "out: expected a file in an existing folder, got" in capsys.readouterr().err


def test_gains_are_over_the_same_without_the_change() -> None:
    def trial(what: str, accuracy: float, seed: int = 0, **setting: str) -> Trial:
        given = {"network": "small", "images": "300", "epochs": "3", "classes": "48", "table_rate": "0.001", **setting}
        return Trial(what, tuple(given.items()), seed, accuracy, None, None, "")

    base = [trial("joint", 0.87), trial("joint", 0.90, epochs="12"), trial("joint", 0.5, seed=1)]
    base += [trial("joint, table rate 3e-3", 0.87, table_rate="0.003")]
    for changed, gain in (
        (trial("joint, table rate 3e-3", 0.88, table_rate="0.003"), 0.01),
        (trial("joint, table rate 3e-3", 0.88, table_rate="0.003", epochs="12"), -0.02),
        (trial("joint, 12 epochs", 0.90, epochs="12"), 0.03),
        (trial("joint, 64 classes log-polar to 40", 0.89, classes="64"), 0.02),
        (trial("joint, table rate 3e-3, 12 epochs", 0.93, table_rate="0.003", epochs="12"), 0.06),
        (trial("joint, start x 0.5", 0.89, table_rate="0.003"), None),
        (trial("separate, start x 0.5", 0.89), None),
        (trial("joint", 0.89), None),
    ):
        assert report_open.gain(changed, base) == (None if gain is None else pytest.approx(gain))


def test_views_pair_seeds_and_keep_settings_apart() -> None:
    trials = [
        Trial(what, (("network", "small"), ("images", "300"), ("classes", classes)), seed, accuracy, None, None, "")
        for what, classes, seed, accuracy in (
            ("control", "48", 0, 0.80), ("control", "48", 1, 0.82), ("joint", "48", 1, 0.85), ("control", "32", 0, 0.7),
            ("joint, start x 0.5", "48", 0, 0.9),
        )
    ]  # fmt: skip
    lines = report_tables.views_table(trials)
    assert len(lines) == 4
    assert "| 81.00 ± 1.41 (2) | not measured | 85.00 | not measured | +3.00 |" in lines[2]
    assert "| 70.00 | not measured | not measured | not measured | not measured |" in lines[3]
