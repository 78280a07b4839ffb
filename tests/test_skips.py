"""Does a run say why it left tests out?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import GROUPS, grouped

ROOT = Path(__file__).parent.parent


def test_reasons_are_told_in_groups() -> None:
    reasons = ["Skipped: no GPU here", "Skipped: no GPU here: a CPU's times would mean nothing", "Skipped: the moon is full"]
    lines = grouped(reasons)
    assert lines[0].split(maxsplit=1) == ["2", "needs an NVIDIA GPU with Triton: run there, `pytest tests/test_gpu.py`"]
    assert lines[1].split(maxsplit=1) == ["1", "the moon is full"]


def test_every_reason_has_a_group() -> None:
    """Those that stand in the tests, as a pattern of a group finds them."""
    written = [
        match[1]
        for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/**/*.py")]
        for match in re.finditer(r'(?:pytest\.skip\(|skipif\([^"\n]*reason=)f?"([^"\n]+)"', path.read_text())
    ]
    assert len(written) > 20
    assert not [reason for reason in written if not any(re.search(pattern, reason) for pattern, _, _ in GROUPS)]


def test_a_run_ends_with_the_table(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text('import pytest\n\n\ndef test_one():\n    pytest.skip("no GPU here")\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.search(r"skipped =+\n +1  needs an NVIDIA GPU with Triton: run there", done.stdout), done.stdout
