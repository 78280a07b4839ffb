"""Is a forked program one that began anew? Arguments, folder, environment, output and end; and nothing of one before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import Started, Warm

TELL = """
import json, os, sys
file = __file__ if "__file__" in vars() else ""
print(json.dumps([__name__, sys.argv, os.getcwd(), os.environ.get("A_WORD"), sys.path[0], file]))
"""


@pytest.mark.parametrize("way", ["script", "module", "code"])
def test_a_program_begins_as_python_begins_it(warm: Warm, tmp_path: Path, way: str) -> None:
    (tmp_path / "told.py").write_text(TELL)
    words = {"script": [str(tmp_path / "told.py")], "module": ["-m", "told"], "code": ["-c", TELL]}[way] + ["--some", "words"]
    environment = {**os.environ, "A_WORD": "yes"}
    real = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = warm.run(words, env=environment, cwd=tmp_path)
    assert found.stderr == ""
    assert json.loads(found.stdout) == json.loads(real.stdout)


@pytest.mark.parametrize(("end", "code", "last"), [("0", 0, ""), ("3", 3, ""), ("", 0, ""), ("'why'", 1, "why\n")])
def test_ends_are_told(warm: Warm, end: str, code: int, last: str) -> None:
    found = warm.run(["-c", f"import sys; print('out'); print('err', file=sys.stderr); sys.exit({end})"])
    assert (found.returncode, found.stdout, found.stderr) == (code, "out\n", f"err\n{last}")


def test_an_error_a_signal_and_a_long_wait_are_told(warm: Warm) -> None:
    found = warm.run(["-c", "import atexit; atexit.register(print, 'at the end'); 1 / 0"])
    assert (found.returncode, found.stdout) == (1, "at the end\n")
    assert found.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert warm.run(["-c", "import os; os.kill(os.getpid(), 9)"]).returncode == -9
    killed = warm.start(["-c", "import time; time.sleep(60)"])
    assert killed.running()
    killed.kill()
    while killed.running():
        pass
    assert killed.wait().returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["-c", "import time; time.sleep(60)"], timeout=0.1)


def test_a_program_knows_nothing_of_another(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    first = (
        "import mine, os, sys, torch, tritoncrf; torch.manual_seed(5); tritoncrf.seen = os.environ['SEEN'] = sys.seen = 'yes'"
    )
    assert warm.run(["-c", first], cwd=tmp_path).returncode == 0
    second = "import os, sys, torch, tritoncrf; print([hasattr(tritoncrf, 'seen'), 'SEEN' in os.environ, hasattr(sys, 'seen')])"
    assert warm.run(["-c", f"{second}; print('mine' in sys.modules)"]).stdout == "[False, False, False]\nFalse\n"
    drawn = {warm.run(["-c", "import random, torch; print(torch.rand(1), random.random())"]).stdout for _ in range(3)}
    assert len(drawn) == 3


def test_programs_run_side_by_side(warm: Warm, tmp_path: Path) -> None:
    wait = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
"""
    pair = [warm.start(["-c", wait, *names], cwd=tmp_path) for names in (("a", "b"), ("b", "a"))]
    assert [program.wait(30).returncode for program in pair] == [0, 0]


@pytest.mark.parametrize("name", ["TRITON_INTERPRET", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"])
def test_what_an_import_reads_gets_a_real_start(warm: Warm, name: str) -> None:
    other = "3" if os.environ.get(name) != "3" else "2"
    job = warm.start(["-c", f"import os; print(os.environ['{name}'])"], env={**os.environ, name: other})
    assert isinstance(job, Started)
    assert job.wait().stdout == f"{other}\n"


def test_a_real_start_can_be_asked_for(warm: Warm) -> None:
    assert isinstance(warm.start(["-c", ""], real=True), Started)
    code = "import sys; print('torch' in sys.modules)"
    assert [warm.run(["-c", code], real=real).stdout for real in (True, False)] == ["False\n", "True\n"]


def test_what_programs_cost_is_counted(warm: Warm) -> None:
    warm.run(["-c", ""])
    before = warm.spent
    warm.run(["-c", "import time\nwhile time.process_time() < 0.5: pass"])
    assert 0.4 < warm.spent - before < 5
