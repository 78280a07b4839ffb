"""Known answers of kinds and gates: the labels of an independent program (`tests.scalar_edges`), bit for bit.

Also where the entries of edges that do not exist hold nonsense, and whatever the update and the engine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import scalar_edges
from tritoncrf import GridCRF, Neighborhood, Sampler
from tritoncrf.engines import report

UPDATES = ("gather", "incremental", "auto")
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(state != "ready", reason=f"{name}: {state}"))
    for name, state in report(torch.device("cpu")).items()
]
ANSWERS: dict[str, Any] = json.loads(scalar_edges.ANSWERS.read_text())["cases"]


def sha(labels: Tensor) -> str:
    return hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()


def sampler(case: dict[str, Any], given: dict[str, Any], engine: str, update: str) -> Sampler:
    tables, extra = torch.from_numpy(given["tables"]), {}
    if given["kinds"] is None:
        tables = tables[:, 0]
    else:
        extra = {"kinds": case["kinds"], "kinds_on": Neighborhood.from_offsets(given["kinds_on"])}
    if given["gates"] is not None:
        extra |= {"gates": case["ranks"], "gates_on": Neighborhood.from_offsets(given["gates_on"])}
        extra |= {"gated": torch.from_numpy(given["gated"])}
    crf = GridCRF(case["labels"], Neighborhood.from_offsets(case["offsets"]), tables, **extra)
    return Sampler(crf, engine, seed=case["seed"], update=update)


def batch(case: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``init`` for a batch of this one image."""
    exists = torch.from_numpy(given["exists"])
    arguments = {"logits": torch.from_numpy(given["logits"]).movedim(-1, 0)}
    arguments |= {name: torch.from_numpy(given[name]) for name in ("kinds", "gates") if given[name] is not None}
    if case["holes"]:
        labels, clamp = torch.full(case["shape"], 255), torch.zeros(case["shape"], dtype=torch.bool)
        for place, label in given["held"].items():
            labels[place], clamp[place] = label, True
        labels[~exists] = 77
        arguments |= {"mask": exists, "clamp": clamp, "labels": labels}
    return {name: value[None] for name, value in arguments.items()}


def spoil_what_is_no_edge(given: dict[str, Any]) -> None:
    """Kind 255 and gate NaN wherever no edge begins."""
    exists = given["exists"]
    for site in itertools.product(*map(range, exists.shape)):
        for name, nonsense in (("kinds", 255), ("gates", np.nan)):
            for c, offset in enumerate(given[f"{name}_on"]):
                other = tuple(a + b for a, b in zip(site, offset, strict=True))
                inside = all(0 <= a < n for a, n in zip(other, exists.shape, strict=True))
                if not (inside and exists[site] and exists[other]):
                    given[name][(..., c, *site)] = nonsense


def assert_answers(case: dict[str, Any], given: dict[str, Any], engine: str, update: str) -> None:
    replica, index = case["replica"], torch.tensor([case["index"]])
    walker = sampler(case, given, engine, update)
    chains = walker.init(**batch(case, given), index=index, replicas=replica + 1, phase=case["phase"])
    assert sha(chains.labels[0, replica]) == case["initial"]
    done = 0
    for sweeps, (expected, changed) in case["after_sweeps"].items():
        walker.run(chains, int(sweeps) - done - 1, beta=case["beta"])
        walker.run(chains, 1, beta=case["beta"])
        done = int(sweeps)
        assert sha(chains.labels[0, replica]) == expected, f"after {sweeps} sweeps"
        assert f"changed {int(chains.flips[0, replica])}" == changed


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", list(ANSWERS))
def test_known_answers(name: str, engine: str, update: str) -> None:
    case = ANSWERS[name]
    assert_answers(case, scalar_edges.inputs(case), engine, update)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", list(ANSWERS))
def test_entries_of_edges_that_do_not_exist_are_not_looked_at(name: str, engine: str) -> None:
    case = ANSWERS[name]
    given = scalar_edges.inputs(case)
    spoil_what_is_no_edge(given)
    assert_answers(case, given, engine, "auto")


def test_the_answers_are_those_of_the_program() -> None:
    """The file holds every case as the module has it now, and the smallest case's labels."""
    plain = json.loads(json.dumps(scalar_edges.CASES))
    assert {name: {key: case[key] for key in plain[name]} for name, case in ANSWERS.items()} == plain
    assert ANSWERS["line_kinds"] == json.loads(json.dumps(scalar_edges.answer(scalar_edges.CASES["line_kinds"])))
