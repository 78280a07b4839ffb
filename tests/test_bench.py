"""The benchmarks run, and their standard problem is the one that other programs are measured on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.problem import KINDS, standard

ROOT = Path(__file__).parent.parent
YARDSTICK = ROOT.parent / "shared" / "yardstick" / "problem.py"


@pytest.mark.skipif(not YARDSTICK.exists(), reason="../shared/yardstick/problem.py is not here")
@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_problem_is_the_yardsticks(kind: str) -> None:
    spec = importlib.util.spec_from_file_location("yardstick_problem", YARDSTICK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs, ours = module.make(kind), standard(kind)
    assert np.array_equal(theirs["unary"], -ours.logits[0].movedim(0, -1).numpy())
    assert np.array_equal(theirs["pairwise"], ours.crf.pairwise.detach().numpy())
    assert theirs["offsets"].tolist() == [list(offset) for offset in ours.crf.neighborhood.offsets]


def test_the_last_line_is_json_with_the_flip_rate() -> None:
    command = "-m bench.standard --engine torch --way gather --kind calm --threads 1 --burn-in 1 --sweeps 1 --repeats 2"
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["updates_per_second_min"] <= found["updates_per_second_median"] <= found["updates_per_second_max"]
    assert 0 < found["flip_rate"] < 0.05
    assert (found["engine"], found["way"], found["kind"], found["threads"]) == ("torch", "gather", "calm", 1)
