"""The benchmarks run, and their standard problem is the one that other programs are measured on."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from bench import graph_peers, graphs, limits, scaling, startup, step, traps
from bench.memory import held
from bench.peers import Chains, Task
from bench.peers.__main__ import compare, energy_per_site
from bench.peers.library import Ours, settled
from bench.problem import KINDS, Standard, standard
from bench.turns import save, table
from tests.warm import Warm
from tritoncrf.graph_builders import grid

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


def test_the_last_line_is_json_with_the_flip_rate(warm: Warm) -> None:
    command = "-m bench.standard --engine torch --update gather --kind calm --threads 1 --burn-in 1 --sweeps 1 --repeats 2"
    done = warm.run(command.split())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["updates_per_second_min"] <= found["updates_per_second_median"] <= found["updates_per_second_max"]
    assert 0 < found["flip_rate"] < 0.05
    assert (found["engine"], found["update"], found["kind"], found["threads"]) == ("torch", "gather", "calm", 1)


CHAINS, ROUNDS, APART = 12, 40, 3


@pytest.fixture(scope="module")
def toy() -> Standard:
    """18 x 22 pixels, 5 labels, 8 neighbours; tables of a size and asymmetry that a wrong one shows."""
    generator = torch.Generator().manual_seed(5)
    tables = 0.5 * torch.randn(4, 5, 5, generator=generator)
    logits = torch.randn(1, 5, 18, 22, generator=generator)
    return Standard(logits, tc.GridCRF(5, tc.Neighborhood.nearest(8), tables))


def traces(problem: Standard, chains: Chains) -> tuple[Tensor, Tensor]:
    """Mean energy per site of each chain ``[CHAINS]``, and the flip rate of each round ``[ROUNDS]``, after a burn-in."""
    chains.run(30)
    energies, rates = torch.zeros(CHAINS, dtype=torch.float64), torch.zeros(ROUNDS, dtype=torch.float64)
    for turn in range(ROUNDS):
        flips = chains.run(APART)
        y = torch.from_numpy(chains.labels().astype("int64"))
        with torch.no_grad():
            energies += problem.crf.energy(problem.logits.expand(CHAINS, -1, -1, -1), y) / (y[0].numel() * ROUNDS)
        rates[turn] = flips / (APART * y.numel())
    return energies, rates


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two sets of draws have equal means, within 6 standard errors of their difference."""
    error = (a.var() / len(a) + b.var() / len(b)).sqrt()
    print(f"means {a.mean():.5f}, {b.mean():.5f}, apart by {(a.mean() - b.mean()) / error:.1f} standard errors")
    return bool((a.mean() - b.mean()).abs() < 6 * error)


def argmax_task(problem: Standard) -> Task:
    start = problem.logits[0].argmax(0).to(torch.uint8).expand(CHAINS, -1, -1).numpy()
    return Task.of(problem, start)


@pytest.fixture(scope="module")
def expected(toy: Standard) -> tuple[Tensor, Tensor]:
    return traces(toy, Ours(toy, argmax_task(toy).start, "torch", "gather"))


@pytest.mark.parametrize(
    ("peer", "update"),
    [
        ("user_loop", "gather"), ("torch_programs", "naive"), ("torch_programs", "embedding_bag"), ("jax_by_hand", "gather"),
        ("thrml_blocks", "gather"), pytest.param("torch_programs", "compile", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_peer_samples_the_same_model(peer: str, update: str, toy: Standard, expected: tuple[Tensor, Tensor]) -> None:
    found = importlib.import_module(f"bench.peers.{peer}").start(argmax_task(toy))
    if isinstance(found, str) or update not in found:
        pytest.skip(found if isinstance(found, str) else f"no {update} here")
    torch.manual_seed(1)
    for ours, theirs in zip(expected, traces(toy, found[update]), strict=True):
        assert agree(ours, theirs)


def test_the_yardstick_samples_the_standard_problem() -> None:
    problem = standard("busy")
    task = Task.of(problem, settled(problem, 1, 40), "busy")
    found = importlib.import_module("bench.peers.yardstick").start(task)
    if isinstance(found, str):
        pytest.skip(found)
    start = energy_per_site(problem, task.start)
    for chains in found.values():
        rate = chains.run(60) / (60 * task.color.size)
        # 42,900 sites: the energy per site of single labellings has a standard deviation of about 0.002.
        assert abs(energy_per_site(problem, chains.labels()) - start) < 0.02
        assert 0.021 < rate < 0.024


def test_peers_take_turns_and_carry_flip_rates(toy: Standard, capsys: pytest.CaptureFixture[str]) -> None:
    rows, goals = compare(toy, "", 2, ["yardstick", "user_loop", "numba"], turns=2, seconds=0.002, burn_in=10)
    assert [(row["program"], row["update"]) for row in rows] == [
        ("user_loop", "gather"), ("numba", "gather"), ("numba", "incremental"), ("numba", "auto"),
    ]  # fmt: skip
    for row in rows:
        assert 0.3 < float(str(row["flip_rate"])) < 0.8
        assert float(str(row["least"])) <= float(str(row["median"])) <= float(str(row["most"]))
        assert row["to_yardstick"] is None
    assert goals[0]["figure"] == "incremental / user_loop gather"
    assert len(goals) == 2
    assert str(goals[1]["figure"]).startswith("auto / the better update, ")
    assert "yardstick: left out, it knows the standard problem only" in capsys.readouterr().err


def test_an_uninstalled_peer_says_so(toy: Standard, monkeypatch: pytest.MonkeyPatch) -> None:
    for peer, package in (("jax_by_hand", "jax"), ("thrml_blocks", "thrml")):
        module = importlib.import_module(f"bench.peers.{peer}")
        monkeypatch.setitem(sys.modules, package, None)
        getattr(module, {"jax": "_compiled", "thrml": "types"}[package]).cache_clear()
        assert module.start(argmax_task(toy)) == f"{package} is not installed: pip install {package}"


@pytest.mark.parametrize(("axis", "value"), [("sites", 300), ("labels", 3), ("neighbours", 6), ("set", "far"), ("chains", 3),
                                             ("replicas", 2)])  # fmt: skip
def test_scaling_measures_a_point(axis: str, value: int | str) -> None:
    rows = scaling.measure(axis, value, engine="torch", turns=1, seconds=0.02, settle=0.0, sites=300, paired=False)
    assert [row["update"] for row in rows] == ["gather", "incremental"]
    for row in rows:
        assert 0 <= float(str(row["flip_rate"])) < 1
        assert float(str(row["ns"])) > 0
        assert 280 < int(str(row["sites"])) < 320
        labels, chains = int(str(row["labels"])), int(str(row["images"])) * int(str(row["replicas"]))
        assert float(str(row["megabytes"])) * 1e6 > 300 * (4 * labels * int(str(row["images"])) + chains)
        assert float(str(row["peak_megabytes"])) > float(str(row["megabytes"]))
    place = {"labels": "labels", "chains": "images", "replicas": "replicas"}.get(axis)
    assert place is None or rows[0][place] == value
    assert axis != "neighbours" or rows[0]["classes"] == 3


def test_a_point_runs_in_a_process_of_its_own() -> None:
    rows = scaling.apart(["--engine", "torch", "--point", "sites", "500", "--turns", "1", "--seconds", "0.0001"])
    assert isinstance(rows, list)
    assert {row["axis"] for row in rows} == {"sites"}
    assert all(float(str(row["to_standard"])) > 0 for row in rows)
    assert "unknown" in str(scaling.apart(["--point", "set", "unknown"]))


def test_shared_memory_counts_once() -> None:
    kept = torch.zeros(1000)
    assert held([kept, kept[10:20], kept.numpy()[::2], {"other": np.zeros(5, np.int16)}, (kept.expand(3, -1),)]) == 4010


def test_a_training_step_is_timed_by_parts() -> None:
    row = step.measure("small", step.bodies(None, 2, (40, 24)), warm=1, steps=2, sweeps=1)
    assert 0 < float(str(row["share_least"])) <= float(str(row["share"])) <= float(str(row["share_most"])) < 1
    assert 0 < float(str(row["flip_rate"])) <= 1
    assert 0 < int(str(row["free"])) < 40 * 24
    assert all(float(str(row[part])) > 0 for part in step.PARTS)


def test_startup_is_timed_in_fresh_processes() -> None:
    rows = startup.measure(turns=1, cold=0, engine="torch", update="gather")
    figures = {str(row["figure"]): float(str(row["median"])) for row in rows}
    assert figures["import tritoncrf beyond torch"] > 0
    parts = ("make the sampler", "start the chain", "sweep once")
    assert figures["first sweep, warm cache"] == pytest.approx(sum(figures[f"{part}, warm cache"] for part in parts))
    assert all(row["flip_rate"] == pytest.approx(0.9, abs=0.1) for row in rows if "sweep" in str(row["figure"]))


def test_results_are_saved_with_the_machine(tmp_path: Path) -> None:
    lines = table([{"a": 0.12345, "b": None}, {"a": 12345.6, "b": "x"}], {"a": "A", "b": "B"})
    assert lines == ["| A | B |", "|---|---|", "| 0.1235 | - |", "| 12346 | x |"]
    save(tmp_path / "deep" / "name", "a command", {"rows": [1]}, lines)
    kept = json.loads((tmp_path / "deep" / "name.json").read_text())
    assert (kept["command"], kept["rows"], kept["torch"]) == ("a command", [1], torch.__version__)
    assert lines[-1] in (tmp_path / "deep" / "name.md").read_text()


def test_numba_benchmarks_are_grouped_and_carry_flip_rates(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    out = tmp_path / "found.json"
    chosen = "test_sweeps and busy and incremental and not torch"
    command = ["-m", "pytest", "bench/bench_sampler.py", "-q", "-k", chosen, f"--benchmark-json={out}"]
    # Benchmarks are switched off in a worker of pytest-xdist, which a child must not be taken for.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_XDIST", "OMP_"))}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    found = {row["group"]: row["extra_info"] for row in json.loads(out.read_text())["benchmarks"]}
    assert set(found) == {"numba sweeps, busy, 1 threads", "numba sweeps, busy, 2 threads"}
    for group, extra in found.items():
        assert (extra["update"], extra["kind"]) == ("incremental", "busy")
        assert f"{extra['threads']} threads" in group
        assert 0.02 < extra["flip_rate"] < 0.025
        assert extra["updates_per_second"] > 0


def test_limits_measures_every_piece() -> None:
    found = limits.measure("busy", 1)
    assert set(limits.PIECES) <= set(found)
    assert all(float(str(found[name])) > 0 for name in (*limits.PIECES, "sweep"))
    assert 0.015 < float(str(found["flips"])) < 0.03


@pytest.mark.slow
def test_the_sweep_is_vector_code_without_contraction() -> None:
    limits.measure("calm", 1)
    code = limits.registers()
    assert code["vfmadd"] == 0
    assert code["zmm"] + code["ymm"] > 0


def test_traps_are_measured_in_turns() -> None:
    """Rows of two calls each, of small cases; a ratio is of pairs, not of medians."""
    rows = [*traps.visits("0.006", 2, sweeps=2), traps.single_sweeps(20, 4, 2), traps.pseudolikelihoods(40, 2)]
    assert [(found["call"], found["of"]) for found in rows[1:]] == [
        ("gather", "incremental"), ("200 calls of a sweep", "one of 200"), ("without gradient", "with gradient")
    ]  # fmt: skip
    assert rows[0]["call"] == "auto"
    assert all(set(found) == set(traps.COLUMNS) for found in rows)
    found = traps.row({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, "", scale=0.5)
    assert (found["ms"], found["of_ms"], found["ratio"]) == (2.0, 1.5, 2.0)


@pytest.mark.parametrize(("labels", "arity"), [(3, 2), (2, 2), (3, 3)])
def test_programs_on_a_graph_agree(labels: int, arity: int) -> None:
    graph = graphs.random_graph(4000, 6) if arity == 2 else grid((63, 63), [((0, 0), (0, 1), (1, 0))])
    every = "torch, every label of every factor"
    peers = [name for name in graph_peers.PEERS if arity == 2 or name == every]
    rows = graphs.compare("toy", graph, labels, 1.0, peers, turns=3, seconds=0.05, pull=0.6)
    names = [row["program"] for row in rows]
    assert {"tritoncrf gather", every} <= set(names)
    energies, flips = ([row[key] for row in rows if row[key] is not None] for key in ("energy", "flip_rate"))
    # 4000 nodes: a mean's own error is about 0.02.
    assert np.ptp(np.array(energies, float)) < 0.15
    assert np.ptp(np.array(flips, float)) < 0.05


def test_a_build_is_measured() -> None:
    built = graphs.build(1_000_000)
    assert 16 <= float(str(built["kept"])) < float(str(built["most"])) < 60
    assert int(str(built["colors"])) > 2
