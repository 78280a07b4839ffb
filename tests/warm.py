"""A program in a process of its own, without the seconds that its imports take.

One process imports what every program of this project imports (torch with its optimizers, tritoncrf, NumPy), then forks for
each program, which begins as ``python ..`` would: its own ``__main__``, arguments, folder, environment, output, exit. Nothing
that a program does is seen by the next. What an environment changes while modules are imported (`EARLY`) needs a real start and
gets one; so does everything where processes cannot fork, or ought not to (macOS).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parent.parent
KEY = pytest.StashKey["Warm"]()
# Read by modules as they are imported, or by the interpreter as it starts.
EARLY = ("PYTHON", "TRITON", "NUMBA", "OMP_", "MKL_", "TORCH", "KMP_")
# But not these: `_become` reads the first as a start does; the others are read as they are used, and torch.compile sets them.
LATE = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
FORKS = hasattr(os, "fork") and sys.platform != "darwin"


class Start(NamedTuple):
    """What a forked process becomes."""

    words: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    output: str
    errors: str


class Program:
    """A program under way; `wait` for it once."""

    def __init__(self, warm: Warm, start: Start, pid: int) -> None:
        self._warm, self._start, self._pid, self._waited = warm, start, pid, False

    def running(self) -> bool:
        return not self._waited and bool(self._warm.ask(("running", self._pid)))

    def kill(self) -> None:
        if not self._waited:
            os.kill(self._pid, signal.SIGKILL)

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with ``text=True``; past ``timeout`` seconds the program is killed, and that an error."""
        if self._waited:
            raise ValueError("wait: expected to be called once")
        code = self._warm.ask(("wait", self._pid, timeout))
        self._waited = True
        said = [Path(name).read_text() for name in (self._start.output, self._start.errors)]
        if code is None:
            raise subprocess.TimeoutExpired(self._start.words, timeout, *said)
        return subprocess.CompletedProcess(self._start.words, code, *said)


class Started:
    """The same of a real process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        try:
            said = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # Not for its output: what it started may hold that.
            self._process.wait()
            raise
        return subprocess.CompletedProcess(self._process.args, self._process.returncode, *said)


class Warm:
    """The process that has imported, started when it is first asked."""

    def __init__(self, imports: bool = True) -> None:
        """imports: whether it imports anything, which most tests of this class itself do not need."""
        self._imports = imports
        self._server: subprocess.Popen[bytes] | None = None
        self._wire: Connection | None = None
        # What the process begins with, whichever test asks first.
        self._environment = dict(os.environ)
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        # CPU seconds of the process and of the programs that it has waited for.
        self.spent = 0.0

    def start(
        self, words: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT, real: bool = False
    ) -> Program | Started:
        """``python *words``: a script's path, ``-m`` a module or ``-c`` code, then its arguments; ``-W ignore`` before them.

        real: whether it must have a real start.
        """
        environment = dict(os.environ if env is None else env)
        begun = self._environment
        changed = {name for name in {*environment, *begun} if environment.get(name) != begun.get(name)}
        early = any(name.startswith(EARLY) and name not in LATE for name in changed)
        if real or early or not FORKS:
            pipe, command = subprocess.PIPE, [sys.executable, *words]
            return Started(subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=pipe, stderr=pipe))
        self._count += 1
        output, errors = (f"{self._folder.name}/{self._count}.{name}" for name in ("out", "err"))
        for name in (output, errors):
            Path(name).touch()
        start = Start(tuple(words), environment, str(cwd), output, errors)
        pid = self.ask(("start", start))
        assert pid is not None
        return Program(self, start, pid)

    def run(
        self, words: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT, timeout: float = 300,
        real: bool = False,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        return self.start(words, env=env, cwd=cwd, real=real).wait(timeout)

    def ask(self, question: tuple[object, ...]) -> int | None:
        if self._wire is None:
            self._wire, other = Pipe()
            number = other.fileno()
            command = [sys.executable, "-m", "tests.warm", str(number), *["imports"] * self._imports]
            self._server = subprocess.Popen(command, cwd=ROOT, env=self._environment, pass_fds=[number])
            other.close()
        answer: int | None
        try:
            self._wire.send(question)
            answer, self.spent = self._wire.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process that forks programs ended with {self._end()}; the next one is new") from error
        return answer

    def _end(self) -> int | None:
        if self._wire is None or self._server is None:
            return None
        with contextlib.suppress(OSError):
            # Its end of the wire may live on in a fork of this process.
            self._wire.send(("end",))
        self._wire.close()
        code, self._wire, self._server = self._server.wait(), None, None
        # From here on the system counts them as seconds of a child that was waited for.
        self.spent = 0.0
        return code

    def close(self) -> None:
        self._end()
        self._folder.cleanup()


def serve(wire: Connection) -> Start:
    """Answers until its asker goes, and ends what is under way then; returns in a process that shall become a program."""
    under_way = set[int]()
    while True:
        answer: int | None
        try:
            question = wire.recv()
        except (EOFError, OSError):
            question = ("end",)
        if question[0] == "end":
            for pid in under_way:
                os.kill(pid, signal.SIGKILL)
            sys.exit()
        if question[0] == "start":
            start: Start = question[1]
            answer = os.fork()
            if answer == 0:
                wire.close()
                return start
            under_way.add(answer)
        elif question[0] == "running":
            answer = os.waitid(os.P_PID, question[1], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        else:
            answer = _wait(wire, *question[1:])
            under_way.discard(question[1])
        # Else it has gone, which the next question tells.
        with contextlib.suppress(OSError):
            wire.send((answer, sum(os.times()[:4])))


def _wait(wire: Connection, pid: int, timeout: float) -> int | None:
    """A process's exit code (-n where signal n ended it), None where it had to be killed, for time or because nobody waits."""
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        # Who waits says nothing meanwhile but that it goes.
        if time.monotonic() > end or wire.poll(0.01):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None


def _places() -> list[str]:
    return [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]


def _become(start: Start) -> None:
    for number, name in ((1, start.output), (2, start.errors)):
        opened = os.open(name, os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    own = _places()
    os.environ.clear()
    os.environ.update(start.environment)
    os.chdir(start.folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    words = list(start.words)
    while words[:1] == ["-W"]:
        warnings.simplefilter(words[1])  # type: ignore[arg-type]
        words = words[2:]
    places = _places()
    sys.path[:] = [*places, *(place for place in sys.path[1:] if place not in {*own, *places})]
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, start.folder)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = program = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(program))
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _import() -> None:
    import torch

    import tritoncrf as tritoncrf

    # The first step imports half of torch.
    part = torch.nn.Parameter(torch.zeros(1))
    part.grad = torch.ones(1)
    torch.optim.SGD([part], 0.1).step()


def _seed() -> None:
    """Draws of its own."""
    import numpy as np
    import torch

    torch.seed()
    np.random.seed()  # noqa: NPY002


def main(number: int, imports: bool) -> NoReturn:
    if imports:
        _import()
    # Else a child's collections write to, and so copy, every page of what was imported.
    gc.collect()
    gc.freeze()
    start, code, interrupted = serve(Connection(number)), 1, False
    try:
        if imports:
            _seed()
        _become(start)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        sys.excepthook(*sys.exc_info())
    # What an interpreter's end does, but for taking apart every module: a second a program.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), "imports" in sys.argv)
