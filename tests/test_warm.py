"""Is a forked program one that began anew? Arguments, folder, environment, output and end; and nothing of one before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import warm as warm_module
from tests.warm import Program, Started, Warm

TELL = """
import json, os, sys
file = __file__ if "__file__" in vars() else ""
print(json.dumps([__name__, sys.argv, os.getcwd(), os.environ.get("A_WORD"), sys.path[0], file]))
"""
FORKS = pytest.mark.skipif(not warm_module.FORKS, reason="programs get real starts here")


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
    for real, kind in ((True, Started), (False, Program if warm_module.FORKS else Started)):
        job = warm.start(["-c", ""], real=real)
        assert isinstance(job, kind)
        assert job.wait().returncode == 0
    code = "import sys; print('torch' in sys.modules)"
    assert [warm.run(["-c", code], real=real).stdout for real in (True, False)] == ["False\n", f"{warm_module.FORKS}\n"]


@FORKS
def test_what_programs_cost_is_counted(warm: Warm) -> None:
    warm.run(["-c", ""])
    before = warm.spent
    warm.run(["-c", "import time\nwhile time.process_time() < 0.5: pass"])
    assert 0.4 < warm.spent - before < 5


@pytest.fixture
def own() -> Iterator[Warm]:
    """One that a test may break."""
    found = Warm(imports=False)
    yield found
    found.close()


def ended(pid: int) -> bool:
    """Within ten seconds."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


@FORKS
def test_a_program_shares_no_draws_modules_and_files_with_another(warm: Warm, tmp_path: Path) -> None:
    assert len({warm.run(["-c", "import numpy; print(numpy.random.rand())"]).stdout for _ in range(3)}) == 3
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert "No module named 'tests'" in warm.run(["-c", "import tests.enumeration"], env=bare, cwd=tmp_path).stderr
    assert warm.run(["-c", "import os; os.fstat(3)"]).returncode == 1


def test_an_interrupt_and_a_closed_output_end_as_ever(warm: Warm) -> None:
    for code in ("raise KeyboardInterrupt", "import sys; sys.stdout.close()"):
        real = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert warm.run(["-c", code]).returncode == real.returncode


@FORKS
@pytest.mark.parametrize("asked", [True, False])
def test_an_environment_is_compared_with_the_sessions(own: Warm, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    """Also where the first to ask has another."""
    if asked:
        own.run(["-c", ""])
    with monkeypatch.context() as other:
        other.setenv("NUMBA_NUM_THREADS", "7")
        job = own.start(["-c", ""])
        assert isinstance(job, Started)
        job.wait()
    job = own.start(["-c", ""])
    assert isinstance(job, Program)
    job.wait()


@FORKS
def test_what_compiling_leaves_in_the_environment_costs_no_real_start(own: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    for name in names:
        monkeypatch.setenv(name, "here")
    job = own.start(["-c", f"import os; print(*(os.environ[name] for name in {names}))"])
    assert isinstance(job, Program)
    assert job.wait().stdout == "here here\n"


@FORKS
def test_a_dead_process_is_told_and_another_started(own: Warm) -> None:
    own.run(["-c", ""])
    assert own._server is not None
    own._server.kill()
    with pytest.raises(RuntimeError, match="ended with -9"):
        own.run(["-c", ""])
    done = own.start(["-c", "print(1)"])
    assert done.wait().stdout == "1\n"
    assert not done.running()
    if isinstance(done, Program):
        with pytest.raises(ValueError, match="once"):
            done.wait()
    assert own.run(["-c", "print(2)"]).stdout == "2\n"


@FORKS
@pytest.mark.parametrize("waits", [False, True])
def test_nothing_runs_on_after_who_started_it(waits: bool) -> None:
    code = """
import sys
from tests.warm import Warm
pair = [Warm.start(warm, ["-c", "import time; time.sleep(60)"]) for warm in [Warm(imports=False)] for _ in range(2)]
print(*(job._pid for job in pair), flush=True)
pair[0].wait() if "waits" in sys.argv else sys.stdin.read()
"""
    words = [sys.executable, "-c", code, *["waits"] * waits]
    with subprocess.Popen(words, cwd=warm_module.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        pids = [int(word) for word in asker.stdout.readline().split()]
        asker.kill()
    assert len(pids) == 2
    assert all(ended(pid) for pid in pids)


@FORKS
def test_closing_waits_for_no_fork_of_this_process(own: Warm) -> None:
    own.run(["-c", ""])
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(0)
    begun = time.monotonic()
    own.close()
    assert time.monotonic() - begun < 10
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_a_long_wait_does_not_wait_for_what_a_real_start_started(warm: Warm) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '8']); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["-c", code], env={**os.environ, "NUMBA_NUM_THREADS": "7"}, timeout=1)
    assert time.monotonic() - begun < 6


def test_macos_gets_real_starts() -> None:
    code = "import sys; sys.platform = 'darwin'; from tests import warm; print(warm.FORKS)"
    found = subprocess.run([sys.executable, "-c", code], cwd=warm_module.ROOT, capture_output=True, text=True)
    assert found.stdout == "False\n", found.stderr
