"""The same labels everywhere: golden hashes, and labels that depend on nothing but what rule 2 counts.

Neither way, engine, batch, padding, threads nor the cut of a run into calls shows in a chain; clamped and absent pixels,
new logits and new tables do what they say; bad input raises a sentence and moves no chain.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import enumeration
from tritoncrf import GridCRF, Neighborhood, Sampler, engines
from tritoncrf.chains import ChainState
from tritoncrf.engines import report

SHARED = Path(__file__).resolve().parents[2] / "shared"
UPDATES = ("gather", "incremental", "auto")
STATES = report(torch.device("cpu"))
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(state != "ready", reason=f"{name}: {state}")) for name, state in STATES.items()
]
PURPOSES = {"free": 0, "data": 1, "inference": 2}
HOOD = Neighborhood.from_offsets([(0, 1), (1, 0), (1, -1), (-2, 3), (0, 6)])
LABELS = 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, shape)).float()


def model(scale: float = 0.6) -> GridCRF:
    return GridCRF(LABELS, HOOD, noise(len(HOOD), LABELS, LABELS) * scale)


def sha(labels: Tensor) -> str:
    return hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()


def vectors() -> dict[str, Any]:
    path = SHARED / "contract" / "vectors.json"
    if not path.is_file():
        pytest.skip("the contract's vectors are not here: they lie in the shared folder beside the checkout")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def assert_golden(sampler: Sampler, case: dict[str, Any], logits: Tensor, **arguments: Any) -> None:
    """Hashes and last sweeps' changes of a chain given in the vectors; logits ``[L, *shape]``."""
    replica = case["replica"]
    batch = {name: value[None] for name, value in arguments.items()}
    index = torch.tensor([case["index"]])
    chains = sampler.init(logits[None], index=index, replicas=replica + 1, phase=case["phase"], **batch)
    assert sha(chains.labels[0, replica]) == case["initial"]
    done = 0
    for sweeps, (expected, changed) in case["after_sweeps"].items():
        sampler.run(chains, int(sweeps) - done - 1, beta=case["beta"])
        sampler.run(chains, 1, beta=case["beta"])
        done = int(sweeps)
        assert sha(chains.labels[0, replica]) == expected
        assert f"changed {int(chains.flips[0, replica])}" == changed
        assert chains.sweeps.tolist() == [done]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["line", "plane", "volume"])
def test_golden_small(name: str, engine: str, update: str) -> None:
    case = vectors()["small"][name]
    sites, labels, classes = int(np.prod(case["shape"])), case["labels"], len(case["offsets"])
    words = [[enumeration.philox((s, k, 0, 0), (1, 0))[0] >> 16 for s in range(sites)] for k in range(labels)]
    entries = [[enumeration.philox((c, k, 1, 0), (1, 0))[0] >> 20 for k in range(labels**2)] for c in range(classes)]
    tables = (torch.tensor(entries).view(classes, labels, labels) - 2048) / 4096
    crf = GridCRF(labels, Neighborhood.from_offsets(case["offsets"]), tables.float())
    logits = (torch.tensor(words) / 4096).view(labels, *case["shape"])
    assert_golden(Sampler(crf, engine, case["seed"], update=update), case, logits)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("engine", ENGINES)
def test_golden_holes_clamps_and_forbidden_labels(engine: str, update: str) -> None:
    case = vectors()["small_with_holes"]
    rng = np.random.default_rng(42)
    logits = rng.normal(0, 2, (24, 17, 5)).astype(np.float32)
    forbid = rng.random((24, 17, 5)) < 0.2
    forbid[..., 2] = False
    logits[forbid] = -np.inf
    hole, clamp = rng.random((24, 17)) < 0.1, rng.random((24, 17)) < 0.15
    tables = rng.normal(0, 0.5, (4, 5, 5)).astype(np.float32)
    if hashlib.sha256(logits.tobytes()).hexdigest()[:16] != "4ae849f2956e7df8":
        pytest.skip("this machine's numpy draws other normal numbers")
    assert hashlib.sha256(tables.tobytes()).hexdigest()[:16] == "1f70cbea124d37a1"
    crf = GridCRF(5, Neighborhood.from_offsets([(0, 1), (1, 0), (1, -1), (2, 3)]), torch.from_numpy(tables))
    held = torch.from_numpy(clamp & ~hole)
    labels = torch.where(held, 2, 255)
    given = {"labels": labels, "mask": torch.from_numpy(~hole), "clamp": torch.from_numpy(clamp)}
    labels[torch.from_numpy(hole)] = 77
    assert_golden(Sampler(crf, engine, case["seed"], update=update), case, torch.from_numpy(logits).movedim(-1, 0), **given)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("engine", [param for param in ENGINES if param.values != ("triton",)])
def test_golden_standard_problem(engine: str, update: str) -> None:
    case = vectors()["standard_calm"]
    spec = importlib.util.spec_from_file_location("yardstick", SHARED / "yardstick" / "problem.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    problem = module.make("calm", seed=0)
    if hashlib.sha256(problem["unary"].tobytes()).hexdigest()[:16] != "6c1359b7a0ab6bc5":
        pytest.skip("this machine's numpy computes other energies from the same recipe")
    crf = GridCRF(module.L, Neighborhood.nearest(64), torch.from_numpy(problem["pairwise"]))
    assert_golden(Sampler(crf, engine, case["seed"], update=update), case, torch.from_numpy(-problem["unary"]).movedim(-1, 0))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("engine", ENGINES)
def test_labels_equal_the_scalar_reference(engine: str, update: str) -> None:
    """Large tables, few sites: every offset reaches past some border, and a beta and a replica that are not 1 and 0."""
    crf, logits = model(2.0), noise(LABELS, 5, 4) * 2
    chains = Sampler(crf, engine, -3, update=update).init(logits[None], index=torch.tensor([2**40 - 1]), replicas=3, phase="data")
    sampler = Sampler(crf, engine, 2**64 - 3, update=update)
    sampler.run(chains, 9, beta=0.4)
    pixels, tables = logits.movedim(0, -1).numpy(), crf.pairwise.detach().numpy()
    for replica in range(3):
        _, expected, _ = enumeration.chain(
            pixels, tables, HOOD.offsets, 9, seed=-3, index=2**40 - 1, replica=replica, purpose=1, beta=0.4
        )
        assert np.array_equal(chains.labels[0, replica].numpy(), expected)


@pytest.fixture
def one_thread() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


IMAGES, SHAPE, SWEEPS = 4, (19, 23), 6
SIZES = torch.tensor([[19, 23], [7, 23], [12, 9], [1, 3]])
INDEX = torch.tensor([8, 2, 2**33 + 1, 0])


def reference(update: str = "gather", count: Tensor | None = None, replicas: int = 2) -> ChainState:
    sampler = Sampler(model(), "torch", seed=4, update=update)
    chains = sampler.init(noise(IMAGES, LABELS, *SHAPE), None, INDEX, sizes=SIZES, replicas=replicas, count=count)
    return sampler.run(chains, SWEEPS)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("engine", ENGINES)
def test_batch_order_size_padding_and_replicas_do_not_show(engine: str, update: str) -> None:
    expected = reference().labels
    sampler = Sampler(model(), engine, seed=4, update=update)
    logits = noise(IMAGES, LABELS, *SHAPE)

    def sample(rows: list[int], pad: int, replicas: int) -> Tensor:
        padded = torch.full((len(rows), LABELS, SHAPE[0] + pad, SHAPE[1] + 2 * pad), torch.nan)
        padded[:, :, : SHAPE[0], : SHAPE[1]] = logits[rows]
        chains = sampler.init(padded, None, INDEX[rows], sizes=SIZES[rows].int(), replicas=replicas)
        return sampler.run(chains, SWEEPS).labels

    for rows, pad, replicas in (([3, 1, 0, 2], 0, 2), ([2, 1], 5, 1), ([0], 1, 2), ([1, 3], 20, 2)):
        got = sample(rows, pad, replicas)
        assert torch.equal(got[:, :, : SHAPE[0], : SHAPE[1]], expected[rows, :replicas])
        assert bool((got[:, :, SHAPE[0] :] == 255).all())
        assert bool((got[:, :, :, SHAPE[1] :] == 255).all())
    for n, (height, width) in enumerate(SIZES.tolist()):
        alone = sampler.init(logits[n : n + 1, :, :height, :width], None, INDEX[n : n + 1], replicas=2)
        assert torch.equal(sampler.run(alone, SWEEPS).labels[0], expected[n, :, :height, :width])
        assert bool((expected[n, :, height:] == 255).all())


@pytest.mark.parametrize("update", UPDATES)
def test_threads_do_not_show(update: str, one_thread: Callable[[int], None]) -> None:
    found = []
    for threads in (1, 2):
        one_thread(threads)
        found.append(reference(update))
    assert torch.equal(found[0].rows, found[1].rows)
    assert torch.equal(found[0].flips, found[1].flips)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_may_be_cut_anywhere_and_change_its_way(engine: str) -> None:
    logits, sweeps = noise(2, LABELS, 6, 7), 100
    whole = Sampler(model(), engine, seed=1, update="gather")
    expected = whole.run(whole.init(logits), sweeps)
    sampler = Sampler(model(), engine, seed=1)
    chains = sampler.run(sampler.run(sampler.init(logits), 60), 40)
    assert torch.equal(chains.labels, expected.labels)
    assert chains.sweeps.tolist() == [sweeps] * 2
    rng = np.random.default_rng(0)
    chains, flips = sampler.init(logits), torch.zeros(2, 1, dtype=torch.int64)
    while int(chains.sweeps[0]) < sweeps:
        sampler.update = str(rng.choice(UPDATES))
        sampler.run(chains, min(int(rng.integers(0, 9)), sweeps - int(chains.sweeps[0])))
        flips += chains.flips
    assert torch.equal(chains.labels, expected.labels)
    assert torch.equal(flips, expected.flips)
    again = sampler.init(logits, chains.labels, count=chains.sweeps)
    assert torch.equal(sampler.run(again, 3).labels, whole.run(expected, 3).labels)


def test_counts_continue_and_wide_numbers_matter() -> None:
    base = reference().labels
    for count in (1, 4, 2**32, 2**34 - SWEEPS):
        assert not torch.equal(reference(count=torch.full((IMAGES,), count)).labels, base)
    sampler, logits = Sampler(model(), seed=4), noise(1, LABELS, *SHAPE)
    images = [sampler.init(logits, index=torch.tensor([n])).labels for n in (1, 2**32 + 1, 2**39 + 1)]
    phases = [sampler.init(logits, phase=phase).labels for phase in PURPOSES]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(images[first], images[second])
        assert not torch.equal(phases[first], phases[second])


@pytest.mark.parametrize("engine", ENGINES)
def test_clamped_sites_keep_their_label_and_are_neighbours(engine: str) -> None:
    torch.manual_seed(0)
    logits, clamp = noise(2, LABELS, 9, 8), torch.rand(2, 9, 8) < 0.4
    held = torch.randint(0, LABELS, (2, 9, 8))
    sampler = Sampler(model(), engine, seed=3)
    start = torch.where(clamp, held, 255).to(torch.uint8)
    chains = sampler.init(logits, start, clamp=clamp, replicas=2)
    sampler.run(chains, 5)
    assert bool((chains.labels == held[:, None])[clamp[:, None].expand(-1, 2, -1, -1)].all())
    for n in range(2):
        fixed = {(int(y), int(x)): int(held[n, y, x]) for y, x in clamp[n].nonzero()}
        pixels, tables = logits[n].movedim(0, -1).numpy(), sampler.crf.pairwise.detach().numpy()
        arguments: dict[str, Any] = {"seed": 3, "index": n, "purpose": 2, "held": fixed}
        _, expected, _ = enumeration.chain(pixels, tables, HOOD.offsets, 5, **arguments)
        assert np.array_equal(chains.labels[n, 0].numpy(), expected)
    # Clamped pixels' logits are in no draw, whatever they hold.
    logits.masked_fill_(clamp[:, None], -50.0)
    assert torch.equal(sampler.run(sampler.init(logits, start, clamp=clamp, replicas=2), 5).labels, chains.labels)


@pytest.mark.parametrize("engine", ENGINES)
def test_labels_given_start_the_chain_and_255_is_drawn(engine: str) -> None:
    sampler, logits = Sampler(model(), engine, seed=3), noise(2, LABELS, 9, 8)
    drawn = sampler.init(logits, replicas=2).labels
    given = torch.randint(0, LABELS, (2, 2, 9, 8), generator=torch.Generator().manual_seed(1))
    open_sites = torch.rand(2, 2, 9, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    mixed = torch.where(open_sites, 255, given)
    for dtype in (torch.uint8, torch.int16, torch.int64):
        chains = sampler.init(logits, mixed.to(dtype), replicas=2)
        assert torch.equal(chains.labels.long(), torch.where(open_sites, drawn.long(), given))
    shared = sampler.init(logits, given[:, 0], replicas=2).labels.long()
    assert torch.equal(shared, given[:, :1].expand(-1, 2, -1, -1))
    assert given.max() < LABELS
    assert sampler.run(sampler.init(logits, given[:, 0]), 0).flips.tolist() == [[0], [0]]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("engine", ENGINES)
def test_new_logits_and_new_tables_are_noticed(engine: str, update: str) -> None:
    logits = noise(2, LABELS, 9, 8), noise(2, LABELS, 9, 8, seed=1)
    crf = model()
    sampler = Sampler(crf, engine, seed=6, update=update)
    chains = sampler.run(sampler.init(logits[0]), 40)

    def fresh(values: Tensor) -> Tensor:
        start = Sampler(crf, engine, seed=6, update="gather")
        return start.run(start.init(values, chains.labels, count=chains.sweeps), 5).labels

    expected = fresh(logits[1])
    assert torch.equal(sampler.run(chains, 5, logits=logits[1]).labels, expected)
    with torch.no_grad():
        crf.pairwise.mul_(-0.7)
    expected = fresh(logits[1])
    assert torch.equal(sampler.run(chains, 5).labels, expected)
    crf.load_state_dict({"pairwise": noise(len(HOOD), LABELS, LABELS, seed=9)})
    expected = fresh(logits[0])
    assert torch.equal(sampler.run(chains, 5, logits=logits[0]).labels, expected)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 1, 1)])
@pytest.mark.parametrize("update", UPDATES)
def test_images_smaller_than_every_offset(shape: tuple[int, ...], update: str) -> None:
    """No class has an edge: every sweep is a draw from the unaries."""
    crf = GridCRF(3, Neighborhood.from_offsets([(5,) * len(shape), (*(0,) * (len(shape) - 1), 2)]))
    sampler = Sampler(crf, "torch", seed=1, update=update)
    chains = sampler.run(sampler.init(noise(1, 3, *shape), replicas=2), 3)
    assert chains.labels.shape == (1, 2, *shape)
    assert int(chains.labels.max()) < 3
    assert int(sampler.pair_counts(chains).sum()) == 0


def test_the_largest_label_set() -> None:
    crf = GridCRF(255, Neighborhood.nearest(4))
    sampler = Sampler(crf, "torch", seed=1)
    chains = sampler.run(sampler.init(noise(1, 255, 8, 8)), 2)
    assert int(chains.labels.max()) <= 254
    assert chains.labels.float().std() > 20


def test_seed_none_takes_torchs_generator() -> None:
    torch.manual_seed(0)
    first, second = (Sampler(model(), "torch", None).seed for _ in range(2))
    torch.manual_seed(0)
    assert Sampler(model(), "torch", None).seed == first != second
    assert 0 <= first < 2**64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_does_not_show(dtype: torch.dtype) -> None:
    crf, logits = model(), noise(1, LABELS, 6, 7)
    expected = [sampler.run(sampler.init(logits), 5).labels for sampler in (Sampler(crf, "torch", 0, update=update) for update in UPDATES)]
    torch.set_default_dtype(dtype)
    try:
        got = [sampler.run(sampler.init(logits), 5).labels for sampler in (Sampler(crf, "torch", 0, update=update) for update in UPDATES)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, got, expected))


def test_labels_may_be_int8() -> None:
    held = torch.ones(2, 4, 6, dtype=torch.int8)
    assert bool((Sampler(model(), "torch").init(noise(2, LABELS, 4, 6), held).labels == 1).all())


def test_a_chain_has_two_to_the_34_sweeps() -> None:
    sampler = Sampler(model(), "torch")
    chains = sampler.init(noise(2, LABELS, 4, 6), count=torch.tensor([0, 2**34 - 2]))
    sampler.run(chains, 2)
    with pytest.raises(ValueError, match="sweeps: "):
        sampler.run(chains, 1)


@pytest.mark.parametrize("update", UPDATES)
def test_a_fault_told_late_leaves_the_chains_as_they_were(update: str) -> None:
    """What happens on a GPU, where values are not waited for: here a CPU told not to look."""
    sampler = Sampler(model(), "torch", seed=0, update=update, validate=False)
    chains, other = (sampler.run(sampler.init(**good()), 9) for _ in range(2))
    sampler.run(chains, 3, logits=spoiled(torch.nan))
    assert torch.equal(chains.rows, other.rows)
    assert chains.sweeps.tolist() == other.sweeps.tolist()
    with pytest.raises(ValueError, match="got otherwise in an earlier call"):
        sampler.run(chains, 1)
    assert torch.equal(sampler.run(chains, 4).labels, sampler.run(other, 4).labels)


def good() -> dict[str, Any]:
    return {"logits": noise(2, LABELS, 4, 6)}


def full(*shape: int, value: float = 0) -> Tensor:
    return torch.full(shape, value, dtype=torch.float32 if isinstance(value, float) else torch.int64)


def spoiled(value: float, *, everywhere: bool = False) -> Tensor:
    logits = noise(2, LABELS, 4, 6)
    logits[1, slice(None) if everywhere else 2, 3, 5] = value
    return logits


INIT_FAULTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"logits": np.zeros((2, LABELS, 4, 6))}, TypeError, "logits: expected a torch tensor, got ndarray"),
    ({"logits": noise(LABELS, 4, 6)}, ValueError, "logits: expected shape [N, 5, H, W], got [5, 4, 6]"),
    ({"logits": noise(2, 4, 4, 6)}, ValueError, "logits: expected shape [N, 5, H, W], got [2, 4, 4, 6]"),
    ({"logits": full(2, LABELS, 4, 6)}, TypeError, "logits: expected a floating-point dtype, got torch.int64"),
    ({"logits": noise(0, LABELS, 4, 6)}, ValueError, "logits: expected at least one image and one pixel, got shape [0, "),
    ({"logits": noise(2, LABELS, 0, 6)}, ValueError, "logits: expected at least one image and one pixel"),
    ({"logits": noise(2, LABELS, 4, 6).to("meta")}, ValueError, "logits: expected device cpu"),
    ({"logits": spoiled(torch.nan)}, ValueError, "got NaN in image 1 at pixel (3, 5)"),
    ({"logits": spoiled(torch.inf)}, ValueError, "got +inf in image 1 at pixel (3, 5)"),
    ({"logits": spoiled(-torch.inf, everywhere=True)}, ValueError, "got no allowed label in image 1 at pixel (3, 5)"),
    ({"labels": full(2, 4, 5)}, ValueError, "labels: expected shape [2, 4, 6] or [2, 1, 4, 6], got [2, 4, 5]"),
    ({"labels": full(2, 3, 4, 6), "replicas": 2}, ValueError, "labels: expected shape [2, 4, 6] or [2, 2, 4, 6]"),
    ({"labels": full(2, 4, 6, value=0.0)}, TypeError, "labels: expected an integer dtype, got torch.float32"),
    ({"labels": full(2, 4, 6, value=5)}, ValueError, "labels: expected labels from 0 to 4 (or 255), got 5 at index ["),
    ({"labels": full(2, 4, 6, value=-1)}, ValueError, "labels: expected labels from 0 to 4 (or 255), got -1"),
    ({"labels": full(2, 4, 6, value=256)}, ValueError, "labels: expected labels from 0 to 4 (or 255), got 256"),
    ({"index": full(3)}, ValueError, "index: expected shape [2], got [3]"),
    ({"index": full(2, value=1.0)}, TypeError, "index: expected an integer dtype, got torch.float32"),
    ({"index": torch.tensor([3, -1])}, ValueError, "index: expected integers from 0 to 2^40 - 1, got -1"),
    ({"index": torch.tensor([3, 2**40])}, ValueError, "index: expected integers from 0 to 2^40 - 1, got 1099511627776"),
    ({"count": torch.tensor([0, 2**34])}, ValueError, "count: expected integers from 0 to 2^34 - 1"),
    ({"sizes": full(2, 3, value=1)}, ValueError, "sizes: expected shape [2, 2], got [2, 3]"),
    ({"sizes": full(2, 2, value=1.0)}, TypeError, "sizes: expected an integer dtype"),
    ({"sizes": torch.tensor([[4, 6], [0, 6]])}, ValueError, "sizes: expected sizes from 1 to those of the padded batch"),
    ({"sizes": torch.tensor([[4, 6], [4, 7]])}, ValueError, "padded batch (4, 6), got [4, 7] at index [1]"),
    ({"mask": full(2, 4, 6)}, TypeError, "mask: expected torch.bool, got torch.int64"),
    ({"mask": full(2, 4) > 0}, ValueError, "mask: expected shape [2, 4, 6], got [2, 4]"),
    ({"clamp": full(2, 4, 6) > 0}, ValueError, "labels: expected the labels that clamped sites keep, got None"),
    ({"clamp": full(2, 4, 6), "labels": full(2, 4, 6)}, TypeError, "clamp: expected torch.bool"),
    (
        {"clamp": full(2, 4, 6) == 0, "labels": full(2, 4, 6, value=255)},
        ValueError, "labels: expected a label at every clamped site, got 255 at index [0, 0, 0, 0]",
    ),
    ({"replicas": 0}, ValueError, "replicas: expected an integer from 1 to 65536, got 0"),
    ({"replicas": 65537}, ValueError, "replicas: expected an integer from 1 to 65536, got 65537"),
    ({"replicas": 1.0}, TypeError, "replicas: expected an integer, got 1.0"),
    ({"phase": "test"}, ValueError, "phase: expected one of 'free', 'data', 'inference', got 'test'"),
]  # fmt: skip


@pytest.mark.parametrize(("huge", "message"), [(1e300, "got +inf in image"), (-1e300, "got no allowed label in image")])
def test_logits_that_float32_cannot_hold(huge: float, message: str) -> None:
    logits = noise(2, LABELS, 4, 6).double()
    logits[1, :, 3, 5] = huge
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampler(model(), "torch").init(logits)


@pytest.mark.parametrize(("fault", "kind", "message"), INIT_FAULTS, ids=[message[:40] for _, _, message in INIT_FAULTS])
def test_bad_input_to_init(fault: dict[str, Any], kind: type[Exception], message: str) -> None:
    sampler = Sampler(model(), "torch", seed=0)
    with pytest.raises(kind, match=re.escape(message)):
        sampler.init(**(good() | fault))
    assert sampler.init(**good()).labels.shape == (2, 1, 4, 6)


RUN_FAULTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"sweeps": -1}, ValueError, "sweeps: expected an integer from 0 to 17179869184, got -1"),
    ({"sweeps": 2.0}, TypeError, "sweeps: expected an integer, got 2.0"),
    ({"beta": -0.1}, ValueError, "beta: expected an inverse temperature from 0 to 1e+06, got -0.1"),
    ({"beta": 1.1e6}, ValueError, "beta: expected an inverse temperature"),
    ({"beta": float("nan")}, ValueError, "beta: expected an inverse temperature from 0 to 1e+06, got nan"),
    ({"beta": "1"}, ValueError, "beta: expected an inverse temperature from 0 to 1e+06, got '1'"),
    ({"logits": noise(2, LABELS, 4, 5)}, ValueError, "logits: expected the chains' shape [2, 5, 4, 6], got [2, 5, 4, 5]"),
    ({"logits": noise(2, 4, 4, 6)}, ValueError, "logits: expected shape [N, 5, H, W]"),
    ({"logits": noise(2, LABELS, 4, 6).long()}, TypeError, "logits: expected a floating-point dtype"),
    ({"logits": spoiled(torch.nan)}, ValueError, "got NaN in image 1 at pixel (3, 5)"),
    ({"logits": spoiled(torch.inf)}, ValueError, "got +inf in image 1 at pixel (3, 5)"),
    ({"logits": spoiled(-torch.inf, everywhere=True)}, ValueError, "got no allowed label in image 1 at pixel (3, 5)"),
]
TABLE_FAULTS = {
    float("nan"): "pairwise: expected finite table entries, got NaN or infinity in class 3",
    float("inf"): "pairwise: expected finite table entries, got NaN or infinity in class 3",
    -600.0: "pairwise: expected 2 * sum of each class's largest |entry| of at most 1023, got 12",
}


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("fault", "kind", "message"), RUN_FAULTS, ids=[message[:40] for _, _, message in RUN_FAULTS])
def test_bad_input_to_run_moves_no_chain(fault: dict[str, Any], kind: type[Exception], message: str, update: str) -> None:
    sampler = Sampler(model(), "torch", seed=0, update=update)
    chains, other = (sampler.run(sampler.init(**good()), 9) for _ in range(2))
    before, count, flips = chains.rows.clone(), chains.sweeps.clone(), chains.flips.clone()
    with pytest.raises(kind, match=re.escape(message)):
        sampler.run(chains, **({"sweeps": 3} | fault))
    assert torch.equal(chains.rows, before)
    assert torch.equal(chains.sweeps, count)
    assert torch.equal(chains.flips, flips)
    assert torch.equal(sampler.run(chains, 4).labels, sampler.run(other, 4).labels)


@pytest.mark.parametrize(("entry", "message"), TABLE_FAULTS.items())
def test_bad_tables(entry: float, message: str) -> None:
    crf = model()
    sampler = Sampler(crf, "torch", seed=0, update="incremental")
    chains = sampler.run(sampler.init(**good()), 3)
    before, healthy = chains.rows.clone(), crf.pairwise.detach().clone()
    with torch.no_grad():
        crf.pairwise[3, 1, 2] = entry
    calls: list[Callable[[], object]] = [lambda: sampler.run(chains, 2), lambda: sampler.init(**good())]
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    with pytest.raises(ValueError, match=re.escape(message)):
        GridCRF(LABELS, HOOD, crf.pairwise)
    assert torch.equal(chains.rows, before)
    with torch.no_grad():
        crf.pairwise.copy_(healthy)
    assert sampler.run(chains, 2).sweeps.tolist() == [5, 5]


def test_bad_samplers() -> None:
    with pytest.raises(ValueError, match="engine: expected 'auto', 'triton', 'numba', 'torch', got 'cuda'"):
        Sampler(model(), "cuda")
    for name, state in STATES.items():
        if state == "ready":
            assert Sampler(model(), name).engine_name == name
        else:
            with pytest.raises(RuntimeError, match=f"engine: expected '{name}' to run on cpu, got: {re.escape(state)}"):
                Sampler(model(), name)
    with pytest.raises(ValueError, match="way: expected one of 'auto', 'gather', 'incremental', got 'fast'"):
        Sampler(model(), update="fast")
    with pytest.raises(TypeError, match=r"seed: expected an integer or None, got 1\.5"):
        Sampler(model(), seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="crf: expected a GridCRF or a FactorCRF, got Linear"):
        Sampler(torch.nn.Linear(2, 2))  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"chains: expected what Sampler\.init returned, got Tensor"):
        Sampler(model()).run(torch.zeros(3), 1)  # type: ignore[arg-type]


def test_chains_of_another_crf_are_refused() -> None:
    one, other = (GridCRF(3, Neighborhood.from_offsets([step])) for step in ((0, 1), (1, 0)))
    chains = Sampler(one, "torch").init(noise(1, 3, 5, 6))
    for call in (lambda: Sampler(other, "torch").run(chains, 1), lambda: Sampler(other, "torch").pair_counts(chains)):
        with pytest.raises(ValueError, match="chains: expected chains of 3 labels, Neighborhood"):
            call()
    with pytest.raises(TypeError, match=r"chains: expected what Sampler.init returned, got NoneType"):
        Sampler(one, "torch").run(None, 1)  # type: ignore[arg-type]


def test_a_sampler_can_be_copied_and_pickled() -> None:
    sampler, logits = Sampler(model(), "torch", seed=5), noise(2, LABELS, 4, 6)
    expected = sampler.run(sampler.init(logits), 3).labels
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert torch.equal(twin.run(twin.init(logits), 3).labels, expected)


def test_auto_says_when_it_takes_the_slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    known = engines.load
    monkeypatch.setattr(engines, "load", lambda name: "it is not here" if name == "numba" else known(name))
    with pytest.warns(UserWarning, match="the torch engine runs in place of the much faster numba one: it is not here"):
        assert Sampler(model()).engine_name == "torch"
    with pytest.raises(RuntimeError, match="engine: expected 'numba' to run on cpu, got: it is not here"):
        Sampler(model(), "numba")


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_go_into_a_tensor_by_place_or_nowhere(engine: str) -> None:
    sampler = Sampler(GridCRF(3, Neighborhood.nearest(4)), engine, 0)
    chains = sampler.init(torch.zeros(2, 3, 4, 5))
    before = chains.labels.clone()
    shape = (*chains.plan.free.shape, 3)
    turned = torch.zeros(shape[1], shape[0], 3, dtype=torch.float64).transpose(0, 1)
    for out in (turned, torch.zeros(shape, dtype=torch.float64, requires_grad=True)):
        with pytest.raises(ValueError, match="out: expected a contiguous tensor that needs no gradient"):
            sampler.average(chains, 2, out)
        with pytest.raises(ValueError, match="out: expected a contiguous tensor that needs no gradient"):
            sampler.conditionals(chains, out)
    assert torch.equal(chains.labels, before)
    assert chains.sweeps.tolist() == [0, 0]


def test_what_raises_at_once_leaves_no_check_behind() -> None:
    sampler = Sampler(GridCRF(3, Neighborhood.nearest(8)), "torch", 0, validate=False)
    chains = sampler.init(torch.zeros(1, 3, 4, 5), count=torch.tensor([(1 << 34) - 1]))
    with pytest.raises(ValueError, match="beta"):
        sampler.run(chains, 2, beta=-1)
    sampler.guard.settle()
