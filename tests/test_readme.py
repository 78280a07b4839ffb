"""The README is true: its Python blocks run in order, and its commands are those that continuous integration runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tritoncrf.chains import ChainState

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 2
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    labels, chains = names["labels"], names["chains"]
    assert isinstance(labels, torch.Tensor)
    assert labels.shape == (4, 48, 32)
    assert labels.dtype == torch.uint8
    assert isinstance(chains, ChainState)
    assert chains.labels.shape == (2, 3, 40, 60)


def test_it_fits_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 100


def test_the_commands_are_there() -> None:
    commands = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    assert commands == [
        'pip install -e ".[plot]" && tritoncrf demo\n', 'pip install -e ".[test]" && pytest -n auto --dist loadfile\n',
    ]  # fmt: skip


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / name).exists(), name


def test_no_placeholder_was_left() -> None:
    assert not re.search(r"^[A-Z]{4,}$", README, re.MULTILINE)
