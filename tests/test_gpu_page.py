"""What stands on a page of what was measured: the kept runs as they are, what failed as such, and no dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_page, marked
from bench.compiled import RESULTS, newest, table

SPEED = {
    "engine": "triton", "update": "gather", "images": 128, "kind": "calm", "rows": "int16", "flip_rate": 0.005852,
    "updates_per_ns": 4.321, "call_of_10_ms": 12.7, "call_of_30_ms": 33.1, "sweep_us": 1019.4,
    "settled_updates_per_ns": 5.386, "host_us_a_call": 87.6, "first_ms": 17.81, "first_flip_rate": 0.06,
}  # fmt: skip
TRAINING = {
    "step_ms": 5.251, "step_host_ms": 4.9, "cross_entropy_ms": 3.04, "cross_entropy_host_ms": 1.0, "loss_forward_ms": 2.2,
    "loss_forward_host_ms": 2.0, "share": 0.421, "step_graph_ms": 3.9, "step_graph_host_ms": 0.1,
    "cross_entropy_graph_ms": 3.0, "cross_entropy_graph_host_ms": 0.1, "graph_share": 0.231,
}  # fmt: skip
RUN: dict[str, Any] = {
    "dry_run": False,
    "environment": {"torch": "2.11.0", "triton": "3.6.0", "name": "NVIDIA H200", "driver_version": "580.1", "seconds": 1.0},
    "speed": {
        "jobs": {
            "gather, batch 128, calm": SPEED,
            "incremental, batch 1, busy": {"failed": "TimeoutError: 60 s"},
            "torch beside": SPEED | {"images": 16, "updates_per_ns": 0.0712, "incremental_times_faster": 55.4,
                                     "gather_times_faster": 31.2},
        },
        "failed": "1 of 3 jobs",
    },
    "training": {"jobs": {"batch 1": TRAINING}, "seconds": 3.0},
}  # fmt: skip
PAGE = "before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n"


def kept(folder: Path, run: object, name: str = "gpu_check_one.json") -> Path:
    (folder / name).write_text(json.dumps(run))
    return folder / name


def test_a_run_is_put_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path, RUN)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr("sys.argv", ["gpu_page", "--results", str(tmp_path), "--page", str(page)])
    gpu_page.main()
    gpu_page.main()
    text = page.read_text()
    assert text.startswith("before\n<!-- measured: begin -->\n\n**NVIDIA H200**, measured: torch 2.11.0, triton 3.6.0")
    assert text.endswith("<!-- measured: end -->\nafter\n")
    assert "old" not in text
    assert text.count("| gather | 128 | calm | int16 | 0.00585 | 5.39 | 1019 | 4.32 | 17.8 | 87.6 |") == 1
    assert "At batch 16, calm, the torch engine makes 0.071 updates a nanosecond on this card: this one is 55.4 times" in text
    assert "| batch 1 | 5.25 | 3.04 | 42% | 2.2 | 4.9 | 3.9 | 3 | 23% |" in text
    assert "`speed`, incremental, batch 1, busy: failed (TimeoutError: 60 s)." in text


def test_several_runs_and_none(tmp_path: Path) -> None:
    assert gpu_page.page(tmp_path) == ["No run of `python -m bench.gpu_check` is kept in `bench/results/`."]
    kept(tmp_path, RUN)
    other = {name: RUN[name] for name in ("dry_run", "environment")} | {"training": {"failed": "not run: the 600 s were over"}}
    kept(tmp_path, other, "gpu_check_two.json")
    lines = gpu_page.page(tmp_path)
    assert sum("NVIDIA H200" in line for line in lines) == 2
    assert lines[-2:] == ["`speed` was not run.", "`training`: failed (not run: the 600 s were over)."]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (RUN | {"dry_run": True}, "gpu_check_one.json: expected a run on a card, got a dry run"),
        ([], "gpu_check_one.json: expected what bench.gpu_check wrote, got no environment"),
        (RUN | {"training": {"jobs": {"batch 1": {"step_ms": 1.0}}}}, "expected cross_entropy_ms of 'batch 1', got None"),
        (RUN | {"speed": {"jobs": {"one": SPEED | {"sweep_us": "x"}}}}, "expected sweep_us of 'one', got 'x'"),
    ],
)  # fmt: skip
def test_what_is_no_run_is_refused(tmp_path: Path, run: object, said: str, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    kept(tmp_path, run)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr("sys.argv", ["gpu_page", "--results", str(tmp_path), "--page", str(page)])
    with pytest.raises(SystemExit):
        gpu_page.main()
    assert said in capsys.readouterr().err
    assert page.read_text() == PAGE


def test_what_is_no_json_and_no_marks(tmp_path: Path) -> None:
    (tmp_path / "gpu_check_one.json").write_text("{")
    with pytest.raises(ValueError, match=r"gpu_check_one.json: expected JSON, got otherwise"):
        gpu_page.page(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: begin -->\n")
    with pytest.raises(ValueError, match=r"page.md: expected <!-- measured: begin --> and <!-- measured: end -->"):
        marked.write(page, "measured", ["x"])
    assert page.read_text() == "<!-- measured: begin -->\n"


def test_the_page_is_what_the_committed_figures_give() -> None:
    assert marked.read(marked.GPU, gpu_page.NAME) == gpu_page.page(), "python -m bench.gpu_page"
    kept = json.loads(RESULTS.read_text())
    assert marked.read(marked.GPU, "compiled") == table(newest(kept)), "python -m bench.compiled --write"
    assert newest({"3.9.0": {}, "3.10.1": {"k": {}}, "3.6.0": {}}) == {"k": {}}
