"""The Triton engine on a GPU: the torch engine's bits, exact samples, streams, capture, no waiting, bad input voided.

Marked ``gpu`` and skipped where there is none. One test starts this file in Triton's interpreter instead, at toy size, so
that the bodies (`tests/on_device.py`) have run before a GPU sees them; there streams, capture and the watch for waits are
plain calls, and `compute-sanitizer` is left out. That no step copies from the host or asks the device is also tested here on
meta tensors, which have no values to ask for.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests import on_device, test_exactness, test_kernels_interpret
from tests.on_device import FAULTS, Place
from tests.test_kernels_interpret import CASES, SEEING, SLOW, Case
from tritoncrf import ChainStore, CRFLoss, GridCRF, Neighborhood, validation
from tritoncrf.engines import load

ROOT = Path(__file__).parent.parent
# Set for the process in which Triton interprets.
TOY = "TRITONCRF_TOY" in os.environ
HERE = TOY or torch.cuda.is_available()
UPDATES = ("gather", "incremental")
NO_TRITON = importlib.util.find_spec("triton") is None
Record = Callable[[str, object], None]

launches, poison, watch = test_kernels_interpret.launches, test_kernels_interpret.poison, test_kernels_interpret.watch


def gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Runs on a GPU, and at toy size in the interpreter."""
    marked: Callable[..., None] = pytest.mark.gpu(pytest.mark.skipif(not HERE, reason="no GPU here")(test))
    return marked


@pytest.fixture
def place() -> Place:
    return Place(torch.device("cpu" if TOY else "cuda"), TOY)


@pytest.fixture
def shape(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Forces teams of so many programs, of the table's own sizes; of one in the interpreter, where more would wait for ever."""
    from tritoncrf.kernels import shapes

    return lambda team: monkeypatch.setattr(shapes, "TEAM", 1 if place.toy else team)


@gpu
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("case", [CASES[0], SEEING[0]] if TOY else [*CASES, *SLOW, *SEEING], ids=str)
@pytest.mark.usefixtures("launches")
def test_labels_are_those_of_torch(place: Place, case: Case, update: str, record_property: Record) -> None:
    if TOY and (case, update) not in zip((CASES[0], SEEING[0]), UPDATES, strict=True):
        pytest.skip("the interpreter's own checks have it")
    record_property("sites", on_device.equal_to_torch(place, case, update))


@gpu
@pytest.mark.parametrize("team", [1] if TOY else [1, 2, 5, 0])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("labels", [2] if TOY else [2, 20, 64])
def test_the_tables_own_shapes(
    place: Place, labels: int, update: str, team: int, shape: Callable[[int], None], record_property: Record
) -> None:
    shape(team)
    case = Case((5, 6) if TOY else (130, 110), labels, test_kernels_interpret.FIVE, images=2, clamps=True, holes=True)
    record_property("sites", on_device.equal_to_torch(place, case, update))


@gpu
@pytest.mark.skipif(TOY, reason="the interpreter's own checks have it (tests/test_graphs_interpret.py)")
@pytest.mark.parametrize("team", [1, 5, 0])
@pytest.mark.parametrize("labels", [2, 20, 64])
def test_graphs_are_those_of_torch(
    place: Place, labels: int, team: int, shape: Callable[[int], None], record_property: Record
) -> None:
    shape(team)
    record_property("sites", on_device.graphs_are_those_of_torch(place, labels))


@gpu
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", ["line", "plane", "volume"])
def test_the_contracts_vectors(place: Place, name: str, update: str) -> None:
    if TOY and name != "line":
        pytest.skip("the interpreter's own checks have it")
    on_device.contract_vectors(place, name, update)


@gpu
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", test_exactness.PROBLEMS)
def test_samples_are_exact(
    place: Place, name: str, update: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    if TOY:
        if (name, update) not in zip(test_exactness.PROBLEMS, UPDATES, strict=True):
            pytest.skip("each problem and each update once")
        monkeypatch.setattr(test_exactness, "IMAGES", 1)
        monkeypatch.setattr(test_exactness, "REPLICAS", 200)
    on_device.exact(place, name, update, record_property)


@gpu
@pytest.mark.parametrize("update", UPDATES)
def test_a_billion_updates_by_two_launch_shapes(
    place: Place, update: str, shape: Callable[[int], None], record_property: Record
) -> None:
    done = on_device.launches_agree(place, update, shape)
    record_property("sites", done)
    assert TOY or done > 10**9


@gpu
@pytest.mark.parametrize("team", [1] if TOY else [1, 4])
def test_bounds_are_bounds(place: Place, team: int, shape: Callable[[int], None]) -> None:
    shape(team)
    on_device.bounds_hold(place)


@gpu
def test_the_update_is_chosen(place: Place) -> None:
    on_device.update_is_chosen(place)


@gpu
@pytest.mark.skipif(TOY, reason="the interpreter's own checks have it")
@pytest.mark.parametrize("update", UPDATES)
def test_nothing_happens_where_a_call_is_bad(place: Place, update: str) -> None:
    test_kernels_interpret.unmoved("triton", update, place.device)


@gpu
@pytest.mark.parametrize("update", UPDATES)
def test_two_streams_at_once(place: Place, update: str) -> None:
    on_device.streams_agree(place, update)


@gpu
@pytest.mark.parametrize("update", UPDATES)
def test_energies_past_two_to_the_31(place: Place, update: str, record_property: Record) -> None:
    if not TOY and torch.cuda.mem_get_info(place.device)[0] < 48 << 30:
        pytest.skip("it takes some 40 GiB of the device's memory")
    record_property("energies", on_device.far_images_agree(place, update))


@gpu
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_batch_is_voided(place: Place, fault: str) -> None:
    on_device.loss_is_voided(place, fault)


@gpu
@pytest.mark.parametrize("update", UPDATES)
def test_bad_logits_move_no_chain(place: Place, update: str) -> None:
    on_device.chains_are_voided(place, update)


@gpu
@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_a_training_step_never_waits(place: Place, method: str) -> None:
    on_device.steps_never_wait(place, method)


@gpu
@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_a_captured_step_is_the_eager_one(place: Place, method: str) -> None:
    on_device.captured_steps_agree(place, method)


@gpu
@pytest.mark.parametrize("update", [*UPDATES, "auto"])
def test_captured_sweeps_are_the_eager_ones(place: Place, update: str) -> None:
    on_device.captured_sweeps_agree(place, update)


@gpu
@pytest.mark.skipif(TOY, reason="the sanitizer watches a GPU")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_the_sanitizer_is_content(tool: str) -> None:
    found = shutil.which("compute-sanitizer")
    if found is None:
        pytest.skip("compute-sanitizer is not on the path: it comes with the CUDA toolkit")
    command = [found, "--tool", tool, "--error-exitcode", "86", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Blocks of torch's own allocator would hide what lies past a tensor's end.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*command, str(Path(__file__)), "-m", "gpu", "-k", "own_shapes and 20"], cwd=ROOT, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.skipif(NO_TRITON, reason="Triton is not installed (Linux only)")
@pytest.mark.skipif(TOY, reason="this is that process")
def test_the_bodies_run_in_the_interpreter() -> None:
    extra = {"TRITON_INTERPRET": "1", test_kernels_interpret.INTERPRETED: "1", "TRITONCRF_TOY": "1"}
    extra |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "gpu", str(Path(__file__))]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | extra, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout.strip().splitlines()[-1])


class HostCopies(TorchFunctionMode):
    """Notes what copies from the host to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        made = func(*args, **(kwargs or {}))
        host = func in (torch.tensor, torch.as_tensor, torch.from_numpy) or any(
            isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dim() for value in args
        )
        if host and isinstance(made, torch.Tensor) and made.device.type != "cpu":
            self.found.append(f"{func.__name__} made {list(made.shape)}")
        # A number is filled in where there are axes, but copied from the host into a place that has none.
        if func is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor) and not args[0][args[1]].dim():
            self.found.append("a number into a lone place")
        return made


@pytest.mark.skipif(NO_TRITON, reason="Triton is not installed (Linux only)")
@pytest.mark.parametrize("extra", ["plain", "sizes", "mask and clamp"])
@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_a_step_asks_nothing_and_brings_nothing(method: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors, where reading a value is an error; copies from the host, which wait as well, are noted."""
    engine = load("triton")
    assert not isinstance(engine, str)
    monkeypatch.setattr(engine, "missing", lambda device, labels: None)
    device = torch.device("meta")
    store = ChainStore([(6, 7)] * 4, seed=0, device=device)
    loss = CRFLoss(GridCRF(5, Neighborhood.nearest(8)).to(device), chains=store, method=method, sweeps=2, engine="triton")
    # What a GPU tells a call later is never told here.
    monkeypatch.setattr(validation.Guard, "settle", lambda self, wait=True: self._pending.clear())
    given: dict[str, torch.Tensor] = {}
    if extra == "sizes":
        given["sizes"] = torch.ones(2, 2, dtype=torch.long, device=device)
    elif extra != "plain":
        given["mask"] = given["clamp"] = torch.ones(2, 6, 7, dtype=torch.bool, device=device)
    target, index = torch.zeros(2, 6, 7, dtype=torch.long, device=device), torch.zeros(2, dtype=torch.long, device=device)

    def step() -> None:
        loss(torch.zeros(2, 5, 6, 7, device=device, requires_grad=True), target, index, **given).backward()

    step()
    with HostCopies() as copies:
        step()
    assert not copies.found


def test_copies_from_the_host_are_noted() -> None:
    with HostCopies() as copies:
        torch.tensor([3], device="meta")
        torch.zeros(2).to("meta")
        torch.zeros((), device="meta") + 1
        torch.zeros(3, device="meta")[-1] = 1
        torch.zeros(3, device="meta")[-1:] = 1
    assert copies.found == ["tensor made [1]", "to made [2]", "a number into a lone place"]
