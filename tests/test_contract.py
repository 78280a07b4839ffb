"""Rules 1 to 3 of the bit contract: the reference functions give what the text says, bit for bit.

Against the published vectors where the `shared` folder lies beside the checkout, and always against the scalar
implementation of `enumeration`, which was written from the text alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import enumeration
from tritoncrf import contract

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "contract" / "vectors.json"
LARGEST_U = float(np.float32(1 - 2**-24))


def vectors() -> dict[str, Any]:
    if not VECTORS.is_file():
        pytest.skip("the contract's vectors are not here: they lie in the shared folder beside the checkout")
    found: dict[str, Any] = json.loads(VECTORS.read_text())
    return found


def words(a: int, b: int, c: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.tensor([a]), torch.tensor([b]), torch.tensor([c]), torch.tensor([d])


def test_philox_known_answers() -> None:
    for case in vectors()["philox4x32_10"]:
        counter, key, out = ([int(word, 16) for word in case[name]] for name in ("counter", "key", "out"))
        got = [int(word) for word in contract.philox4x32(words(*counter), (key[0], key[1]))]
        assert got == out == list(enumeration.philox(counter, key))


def test_weights_hash() -> None:
    t = torch.from_numpy(np.array([-(i * 100 / 4096) for i in range(4096)]).astype(np.float32))
    got = contract.exp2(t)
    assert hashlib.sha256(got.numpy().tobytes()).hexdigest() == vectors()["weights"]["sha256_of_float32_weights"]


def test_exp2_equals_the_text_and_its_stated_error() -> None:
    rng = np.random.default_rng(0)
    points = [rng.random(3000) * 100, np.arange(101.0), 2.0 ** -np.arange(1, 40)]
    t = -np.concatenate(points).astype(np.float32)
    got = contract.exp2(torch.from_numpy(t)).numpy()
    assert got.tobytes() == np.array([enumeration.weight(x) for x in t]).tobytes()
    assert np.abs(got / np.exp2(t.astype(np.float64)) - 1).max() <= 1.8e-7
    assert contract.exp2(torch.zeros(1)).item() == 1.0
    # Every float32 in [-1, -1/2] and around whole exponents, where two pieces of the polynomial meet.
    dense = -torch.arange(0x3F000000, 0x3F800001, dtype=torch.int32).view(torch.float32)
    assert bool((contract.exp2(dense).diff() <= 0).all())
    near = torch.from_numpy(-np.arange(1, 101, dtype=np.float32))
    assert bool((contract.exp2(torch.nextafter(near, torch.tensor(0.0))) >= contract.exp2(near)).all())
    assert bool((contract.exp2(torch.nextafter(near[:-1], torch.tensor(-200.0))) <= contract.exp2(near[:-1])).all())


def test_logits_round_as_the_text_says() -> None:
    half = 0.5 / 4096
    # Columns are labels; the lowest energy is 0 whatever constant was added.
    cases = {
        (0.0, -half, -3 * half): (0.0, 1 / 4096, 2 / 4096),
        (5.0, 5.0 - 0.25 / 4096, 4.0): (0.0, 0.0, 1.0),
        (0.0, -1022.9, -1023.0): (0.0, math.floor(float(np.float32(1022.9)) * 4096 + 0.5) / 4096, 1023.0),
        (0.0, -1023.1, -3e38): (0.0, 1023.0, 1023.0),
        (3e38, -3e38, -math.inf): (0.0, 1023.0, 3071.0),
        (-math.inf, -7.0, -math.inf): (3071.0, 0.0, 3071.0),
    }
    for given, expected in cases.items():
        assert contract.round_unary(torch.tensor([given])).tolist() == [list(expected)], given
        assert enumeration.round_logits(np.array(given, np.float32)).tolist() == list(expected), given


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_other_dtypes_are_converted_first(dtype: torch.dtype) -> None:
    logits = (torch.randn(50, 6, 7, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    logits[3, 2, 1] = -math.inf
    got = contract.round_unary(logits)
    assert got.dtype == torch.float32
    assert torch.equal(got, contract.round_unary(logits.float()))
    rows = logits.float().movedim(1, -1).reshape(-1, 6).numpy()
    expected = np.stack([enumeration.round_logits(row) for row in rows]).astype(np.float32)
    assert got.movedim(1, -1).reshape(-1, 6).numpy().tobytes() == expected.tobytes()


def test_tables_round_half_up_and_their_mass_is_named_per_class() -> None:
    half = 0.5 / 4096
    table = torch.tensor([[[half, -half], [3 * half, -3 * half]], [[1.0, -511.5], [511.0, 0.0]]])
    rounded = contract.round_pairwise(table)
    assert rounded[0].tolist() == [[1 / 4096, 0.0], [2 / 4096, -1 / 4096]]
    assert contract.table_mass(rounded).tolist() == [4 / 4096, 1023.0]
    assert torch.equal(contract.round_pairwise(table.double()), rounded)


def test_sums_of_rounded_energies_do_not_depend_on_their_order() -> None:
    gen = torch.Generator().manual_seed(3)
    rows = contract.round_pairwise(torch.randn(64, 500, generator=gen) * 4)
    unary = contract.round_unary(torch.randn(500, 9, generator=gen) * 400)[:, 0]
    forward = unary.clone()
    for row in rows:
        forward += row
    shuffled = torch.zeros(500)
    for row in rows[torch.randperm(64, generator=gen)]:
        shuffled += row
    assert torch.equal(forward, shuffled + unary)
    assert torch.equal(forward.double(), rows.double().sum(0) + unary.double())


def test_u_lies_strictly_inside_the_unit_interval() -> None:
    lowest, highest = contract.uniform(torch.tensor([0, 2**32 - 1])).tolist()
    assert (lowest, highest) == (2.0**-24, LARGEST_U)
    every = torch.arange(0, 2**32, 512)
    values = contract.uniform(every)
    assert bool((values > 0).all())
    assert bool((values < 1).all())
    assert bool((values.diff() > 0).all())
    assert torch.equal(contract.uniform(every + 511), values)


def test_draws_of_u_equal_the_scalar_reference_over_the_full_widths() -> None:
    rng = np.random.default_rng(5)
    columns = [rng.integers(0, 2**bits, 300) for bits in (32, 34, 40, 16)]
    for column, bits in zip(columns, (32, 34, 40, 16), strict=True):
        column[:2] = 0, 2**bits - 1
    site, sweep, index, replica = map(torch.from_numpy, columns)
    for purpose in (0, 1, 2, 128, 129, 130):
        for seed in (0, -1, 2**64 - 12345, 99):
            got = contract.draw_uniform(site, sweep, index, replica, purpose, contract.key_of(seed))[::7]
            rows = np.stack(columns, -1)[::7].tolist()
            assert got.tolist() == [enumeration.uniform(s, t, i, r, purpose, seed) for s, t, i, r in rows]


def test_every_coordinate_of_the_counter_matters() -> None:
    def u(site: int = 5, sweep: int = 9, index: int = 7, replica: int = 3, purpose: int = 1, seed: int = 0) -> str:
        sites, key = torch.arange(site, site + 8), contract.key_of(seed)
        return str(contract.draw_uniform(sites, torch.tensor(sweep), torch.tensor(index), replica, purpose, key).tolist())

    others = [
        u(index=7 + 2**32), u(index=7 + 2**39), u(sweep=9 + 2**32), u(sweep=9 + 2**33), u(sweep=10), u(sweep=13),
        u(sweep=8), u(replica=3 + 2**15), u(purpose=0), u(purpose=2), u(purpose=129), u(seed=1), u(seed=2**32),
        u(site=5 + 2**31),
    ]  # fmt: skip
    assert len({u(), *others}) == len(others) + 1


def test_sweeps_share_a_block_by_fours() -> None:
    key = contract.key_of(11)
    for sweep in (0, 4, 2**34 - 4):
        block = contract.philox4x32(words(6, sweep >> 2, 2, 1 << 24 | 5 << 8), key)
        sweeps = torch.arange(sweep, sweep + 4)
        got = contract.draw_uniform(torch.tensor(6), sweeps, torch.tensor(2), 5, 1, key)
        assert got.tolist() == [float(contract.uniform(word)) for word in block]


def test_seeds_are_taken_modulo_two_to_the_64() -> None:
    assert contract.key_of(-1) == (2**32 - 1, 2**32 - 1)
    assert contract.key_of(-5) == contract.key_of(2**64 - 5) == contract.key_of(2**65 - 5)
    assert contract.key_of(3 << 32 | 9) == (9, 3)
    torch.manual_seed(0)
    assert len({contract.fresh_seed() for _ in range(50)}) == 50


def test_scale_is_the_float32_of_the_double_product() -> None:
    for beta in (0.0, 1e-3, 0.1, 0.5, 1.0, 3.7, 1e6):
        assert contract.scale_of(beta) == float(np.float32(beta * 1.4426950408889634))


def energies_for(rng: np.random.Generator, labels: int, sites: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rounded energies with forbidden labels, ties, far-off labels and a spread from near-uniform to frozen."""
    spread = rng.choice([0.01, 0.5, 3.0, 60.0, 700.0], sites)
    values = np.clip(rng.normal(0, 1, (labels, sites)) * spread, -1000, 1000)
    values[rng.random((labels, sites)) < 0.15] = 0.0
    values = np.floor(values * 4096 + 0.5) / 4096
    forbidden = rng.random((labels, sites)) < 0.15
    forbidden[rng.integers(0, labels, sites), np.arange(sites)] = False
    return np.where(forbidden, 3071.0, values).astype(np.float32)


@pytest.mark.parametrize("labels", [2, 3, 7, 20])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 1e6])
def test_draw_equals_the_scalar_reference(labels: int, beta: float) -> None:
    rng = np.random.default_rng(labels)
    sites = 400
    energy = energies_for(rng, labels, sites)
    current = rng.integers(0, labels, sites)
    u = ((rng.integers(0, 2**23, sites) + 0.5) * 2.0**-23).astype(np.float32)
    u[:20], u[20:40] = 2.0**-24, LARGEST_U
    with np.errstate(over="ignore"):
        expected = [enumeration.draw(list(energy[:, k]), int(current[k]), u[k], beta)[0] for k in range(sites)]
    scale = contract.scale_of(beta)
    got = contract.draw(torch.from_numpy(energy), torch.from_numpy(current), torch.from_numpy(u), scale)
    assert got.tolist() == expected
    moved = got.numpy() != current
    assert bool(moved.any())
    assert bool((energy[got.numpy(), np.arange(sites)][moved] < 3071).all())


def test_a_label_stays_only_strictly_below_its_weight() -> None:
    # Two labels of weight 1: x = 2u. u = 1/2 never comes from rule 2, but the comparison must be strict all the same.
    energy, current = torch.zeros(2, 3), torch.tensor([0, 1, 1])
    u = torch.tensor([0.5, 0.5, 0.5 - 2**-24])
    assert contract.draw(energy, current, u, contract.scale_of(1.0)).tolist() == [1, 0, 1]
    # And so must the walk over the others be: r = 1 is not below the first one's weight 1.
    assert contract.draw(torch.zeros(4, 1), torch.tensor([2]), torch.tensor([0.5]), 1.0).tolist() == [1]


def test_a_label_alone_stays_and_one_far_above_goes() -> None:
    scale = contract.scale_of(1.0)
    top = torch.tensor([LARGEST_U])
    for low in (-511.0, 0.0, 1023.0):
        alone = torch.tensor([[3071.0], [low], [low + 1024.0]])
        assert contract.draw(alone, torch.tensor([1]), top, scale).tolist() == [1]
        assert contract.draw(alone, torch.tensor([0]), torch.tensor([2.0**-24]), 0.0).tolist() == [1]
    # beta 0 levels all labels less than 1024 above the lowest, and no others.
    level = contract.weights(torch.tensor([[0.0], [1024 - 2**-12], [1024.0], [3071.0]]), 0.0)
    assert level[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0]
    edge = contract.weights(torch.tensor([[0.0], [100.0], [100 + 2**-12]]), 1.0)
    assert edge[:, 0].tolist() == [1.0, 2.0**-100, 0.0]


def test_the_last_resort_is_the_last_other_label_with_positive_weight() -> None:
    rng = np.random.default_rng(8)
    labels, sites = 60, 300
    energy = (np.floor(rng.random((labels, sites)) * 4096) / 4096).astype(np.float32)
    energy[-3:], energy[-5] = 3071.0, 3071.0
    current = rng.integers(0, labels - 5, sites)
    u = np.full(sites, LARGEST_U, np.float32)
    expected = [enumeration.draw(list(energy[:, k]), int(current[k]), u[k], 1.0) for k in range(sites)]
    assert sum(last for _, last in expected) > 10, "the test must reach the last resort"
    scale = contract.scale_of(1.0)
    got = contract.draw(torch.from_numpy(energy), torch.from_numpy(current), torch.from_numpy(u), scale)
    assert got.tolist() == [label for label, _ in expected]
    assert {label for label, last in expected if last} == {labels - 4}
