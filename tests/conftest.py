"""Why was a test skipped, and what would run it? Reasons in groups, at the end of a run."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
import torch

from tests import quick_interpreter
from tests.warm import KEY, Warm

# What a reason says, the group it belongs to, and what to do about it; the first that fits.
GROUPS = (
    (r"as with kinds|the interpreter's own checks|each problem and each update once", "checked elsewhere in this run",
     "nothing"),
    (r"starts that process|runs in a process of its own|this is that process", "runs in a process that another test starts",
     "nothing"),
    (r"GPU|the device's memory|compute-sanitizer", "needs an NVIDIA GPU with Triton",
     "run there, `pytest tests/test_gpu.py`"),
    (r"shared|beside th|yardstick|no data beside", "needs data that is not part of the project",
     "nothing, unless that folder lies beside the checkout"),
    (r"(?:is not installed|cannot install|could not import)", "needs a package", "as each reason says: `pytest -rs`"),
    (r"numpy (?:draws|computes)|no committed figures", "compares with figures kept from other releases",
     "nothing, or the releases that `pytest -rs` names"),
    (r"every engine runs here", "says what a missing engine says, and none is missing", "nothing"),
    (r"system|forked|real starts|/dev/full|file locks", "needs another operating system", "nothing"),
    (r"torch", "needs another release of torch", "`pip install -U torch`"),
)  # fmt: skip


def grouped(reasons: Iterable[str]) -> list[str]:
    """Lines of a table: how many, why, what to do; a reason that no group has stands for itself."""
    found: Counter[tuple[str, str]] = Counter()
    for reason in reasons:
        reason = reason.removeprefix("Skipped: ")
        known = next(((why, do) for pattern, why, do in GROUPS if re.search(pattern, reason)), (reason, ""))
        found[known] += 1
    return [f"{count:5}  {why}" + (f": {do}" if do else "") for (why, do), count in found.most_common()]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        # pytest-xdist would keep files of few tests for the end, the longest among them, and one core would wait for the other.
        config.option.loadscopereorder = False
    # A shell's background jobs begin with Ctrl-C ignored, which tests of it press.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers have a core each, and so have the processes that they start.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
    if "TRITON_INTERPRET" in os.environ and importlib.util.find_spec("triton") is not None:
        quick_interpreter.install()


@pytest.fixture(scope="session")
def warm(pytestconfig: pytest.Config) -> Iterator[Warm]:
    """Starts programs in processes of their own."""
    pytestconfig.stash[KEY] = found = Warm()
    yield found
    found.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    if reasons:
        terminalreporter.section("skipped")
        for line in grouped(reasons):
            terminalreporter.line(line)
