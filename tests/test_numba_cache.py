"""A cache that cannot be read or written costs a compilation and one warning; an engine that may not compile says so."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("numba")
from numba import config

from tritoncrf.engines import numba_cache
from tritoncrf.engines.numba_cache import entry_point

ROOT = Path(__file__).parent.parent


def more(x: int) -> int:
    return x + 1


@pytest.mark.parametrize(
    ("pattern", "content"), [("*.nbi", b""), ("*.nbi", b"\x80\x05garbage"), ("*.nbc", b""), ("*.nbc", b"\x80\x04].")]
)
def test_a_damaged_cache_is_made_anew(
    pattern: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba_cache, "_warned", False)
    assert entry_point(more)(1) == 2
    files = list(tmp_path.rglob(pattern))
    assert files
    for file in files:
        file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"numba engine's cache in .* cannot be used \(.*compiled in this process") as warned:
        assert entry_point(more)(1) == 2
    assert len(warned) == 1
    again = entry_point(more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again(1) == 2
    assert again.stats.cache_hits  # type: ignore[attr-defined]


FULL = """
import resource, sys, warnings
from tritoncrf.engines.numba_cache import entry
from tests.test_numba_cache import more
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
one, other = entry(more), entry(more)
print(one(1), other(1.5))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system limits no file's size")
def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    """No file may grow, as on a full disk: the first of two functions warns, both run."""
    found = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["2", "2.5"]
    assert found.stderr.count("cannot be used") == 1


PLAIN = """
import sys, torch, tritoncrf as tc
sampler = tc.Sampler(tc.GridCRF(3, tc.Neighborhood.nearest(4)), engine=sys.argv[1])
print(sampler.engine_name, sampler.run(sampler.init(torch.zeros(1, 3, 4, 4)), 2).labels.shape)
"""


@pytest.mark.parametrize("engine", ["auto", "numba"])
def test_without_compilation_auto_is_torch_and_a_named_engine_says_why(engine: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PLAIN, engine], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert "unset NUMBA_DISABLE_JIT" in found.stderr
    if engine == "auto":
        assert found.stdout.startswith("torch torch.Size([1, 1, 4, 4])")
    else:
        assert "RuntimeError: engine: expected 'numba' to run on cpu" in found.stderr
