"""The energy is the sum that eq. (15) writes, its gradient the log-likelihood's, and its conditionals those of eq. (16).

Against loops over all sites and edges and against enumeration, in one, two and three dimensions, with ragged batches and
holes; and through autograd against an enumerated log Z.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import enumeration
from tritoncrf import GridCRF, Neighborhood, Sampler
from tritoncrf.engines import report

CASES: list[tuple[list[tuple[int, ...]], tuple[int, ...]]] = [
    ([(1,), (-3,), (20,)], (17,)),
    ([(0, 1), (1, 0), (1, -1), (-2, 3), (0, 9), (9, -1)], (6, 7)),
    ([(0, 0, 1), (1, -1, 2), (-1, 0, 0), (2, 2, -2), (0, 5, 0)], (3, 4, 5)),
]
LABELS = 4
EXTENTS = ["whole", "sizes", "mask", "both"]


def batch(case: int, extent: str) -> tuple[GridCRF, Tensor, Tensor, dict[str, Tensor], list[np.ndarray[Any, Any]]]:
    """(model, logits, labels, sizes and mask as asked for, which pixels exist per image); rubbish where none exist."""
    offsets, shape = CASES[case]
    rng = np.random.default_rng(case)
    crf = GridCRF(LABELS, Neighborhood.from_offsets(offsets), torch.from_numpy(rng.normal(0, 1, (len(offsets), 4, 4))).float())
    logits = rng.normal(0, 1, (3, LABELS, *shape))
    labels = rng.integers(0, LABELS, (3, *shape))
    sizes = np.stack([rng.integers(1, np.array(shape) + 1) for _ in range(3)])
    mask = rng.random((3, *shape)) < 0.7
    exists = np.ones((3, *shape), dtype=bool)
    given: dict[str, Tensor] = {}
    if extent in ("sizes", "both"):
        given["sizes"] = torch.from_numpy(sizes)
        for n, size in enumerate(sizes):
            exists[n] &= (np.moveaxis(np.indices(shape), 0, -1) < size).all(-1)
    if extent in ("mask", "both"):
        given["mask"] = torch.from_numpy(mask)
        exists &= mask
    logits[np.broadcast_to(~exists[:, None], logits.shape)] = np.nan
    labels[~exists] = 200
    return crf, torch.from_numpy(logits).float(), torch.from_numpy(labels), given, list(exists)


def site_energies(
    logits: np.ndarray[Any, Any], tables: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], exists: np.ndarray[Any, Any],
    offsets: list[tuple[int, ...]], site: tuple[int, ...],
) -> np.ndarray[Any, Any]:  # fmt: skip
    """Eq. (16) read aloud: the energy of each label of one site given all others."""
    energy: np.ndarray[Any, Any] = -np.moveaxis(logits, 0, -1)[site].astype(np.float64)
    for (c, offset), sign in itertools.product(enumerate(offsets), (1, -1)):
        other = tuple(a + sign * b for a, b in zip(site, offset, strict=True))
        if all(0 <= a < n for a, n in zip(other, labels.shape, strict=True)) and exists[other]:
            energy = energy + (tables[c, :, labels[other]] if sign > 0 else tables[c, labels[other], :])
    return energy


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_energy_and_pair_counts_against_loops(case: int, extent: str) -> None:
    crf, logits, labels, given, exists = batch(case, extent)
    offsets, shape = CASES[case]
    tables = crf.pairwise.detach().double().numpy()
    counts = crf.pair_counts(labels, **given)
    energy = crf.energy(logits, labels, **given)
    assert counts.dtype == torch.int64
    assert energy.dtype == torch.float32
    for n in range(3):
        y, unary = labels[n].numpy(), -np.moveaxis(logits[n].double().numpy(), 0, -1).reshape(-1, LABELS)
        expected = np.zeros((len(offsets), LABELS, LABELS), np.int64)
        for c, i, j in enumeration.edges(shape, offsets, exists[n]):
            expected[c, y.flat[i], y.flat[j]] += 1
        assert np.array_equal(counts[n].numpy(), expected)
        exact = enumeration.energies(y.reshape(1, -1), unary, tables, shape, offsets, exists[n])[0]
        assert float(energy[n].detach()) == pytest.approx(exact, abs=1e-4)
        assert float((tables * expected).sum()) == pytest.approx(exact - unary[exists[n].ravel(), y[exists[n]]].sum())


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_log_pseudolikelihood_against_loops(case: int, extent: str) -> None:
    crf, logits, labels, given, exists = batch(case, extent)
    offsets, _ = CASES[case]
    tables = crf.pairwise.detach().double().numpy()
    got = crf.log_pseudolikelihood(logits, labels, **given)
    for n in range(3):
        total = 0.0
        for site in zip(*np.nonzero(exists[n]), strict=True):
            energy = site_energies(logits[n].numpy(), tables, labels[n].numpy(), exists[n], offsets, site)
            total += -energy[labels[n][site]] - np.log(np.exp(-energy).sum())
        assert float(got[n].detach()) == pytest.approx(total, abs=1e-4)


def small(seed: int = 0) -> tuple[GridCRF, Tensor, tuple[int, int], list[tuple[int, int]]]:
    rng = np.random.default_rng(seed)
    offsets = [(0, 1), (1, 0), (1, -1), (0, -2)]
    crf = GridCRF(3, Neighborhood.from_offsets(offsets), torch.from_numpy(rng.normal(0, 1, (4, 3, 3))).float())
    return crf, torch.from_numpy(rng.normal(0, 1, (1, 3, 2, 3))).float(), (2, 3), offsets


def test_gradient_of_the_enumerated_log_likelihood() -> None:
    """autograd through log Z of the model's own energies gives marginals and expected pair counts, with these signs."""
    crf, logits, shape, offsets = small()
    listed = enumeration.labellings(6, 3)
    labellings = torch.from_numpy(listed).view(-1, *shape)
    logits.requires_grad_()
    energies = crf.energy(logits.expand(len(listed), -1, -1, -1), labellings)
    unary, tables = -logits.detach()[0].movedim(0, -1).reshape(6, 3).double().numpy(), crf.pairwise.detach().double().numpy()
    exact = enumeration.energies(listed, unary, tables, shape, offsets)
    assert np.allclose(energies.detach().numpy(), exact, atol=1e-5)
    log_z = (-energies.double()).logsumexp(0)
    assert float(log_z.detach()) == pytest.approx(enumeration.log_partition(exact), abs=1e-6)
    (energies[77].double() + log_z).backward()  # type: ignore[no-untyped-call]
    p, y = enumeration.joint(exact), listed[77]
    on_logits = enumeration.marginals(p, listed, 3) - np.eye(3)[y]
    assert logits.grad is not None
    assert np.allclose(logits.grad[0].movedim(0, -1).reshape(6, 3).numpy(), on_logits, atol=1e-6)
    expected = enumeration.expected_pair_counts(p, listed, 3, shape, offsets)
    counts = crf.pair_counts(labellings[77:78])[0].numpy()
    assert crf.pairwise.grad is not None
    assert np.allclose(crf.pairwise.grad.numpy(), counts - expected, atol=1e-5)


def test_conditionals_are_those_of_the_joint() -> None:
    """The pseudolikelihood's factors are p(y_i | rest) of the enumerated joint, and their gradients agree."""
    crf, logits, shape, offsets = small(5)
    listed = enumeration.labellings(6, 3)
    unary = -logits[0].movedim(0, -1).reshape(6, 3).double().numpy()
    energy = enumeration.energies(listed, unary, crf.pairwise.detach().double().numpy(), shape, offsets)
    y = listed[400]
    expected = 0.0
    for site in range(6):
        rest = {other: int(y[other]) for other in range(6) if other != site}
        conditional = enumeration.joint(enumeration.given(energy, listed, rest))
        expected += float(np.log(enumeration.marginals(conditional, listed, 3)[site, y[site]]))
    labels = torch.from_numpy(y).view(1, *shape)
    logits.requires_grad_()
    got = crf.log_pseudolikelihood(logits, labels)
    assert float(got.detach()) == pytest.approx(expected, abs=1e-5)
    got.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert crf.pairwise.grad is not None
    step = 1e-2
    for parameter, place in (
        (logits, (0, 1, 1, 2)),
        (logits, (0, 0, 0, 0)),
        (crf.pairwise, (2, 1, 0)),
        (crf.pairwise, (3, 2, 2)),
    ):
        with torch.no_grad():
            parameter[place] += step
            above = float(crf.log_pseudolikelihood(logits, labels))
            parameter[place] -= 2 * step
            below = float(crf.log_pseudolikelihood(logits, labels))
            parameter[place] += step
        assert parameter.grad is not None
        assert float(parameter.grad[place]) == pytest.approx((above - below) / (2 * step), abs=2e-3)


def test_absent_pixels_get_no_gradient_even_where_logits_are_nan() -> None:
    for case, extent in itertools.product(range(len(CASES)), EXTENTS[1:]):
        crf, logits, labels, given, exists = batch(case, extent)
        logits.requires_grad_()
        for value in (crf.energy(logits, labels, **given), crf.log_pseudolikelihood(logits, labels, **given)):
            logits.grad, crf.pairwise.grad = None, None
            value.sum().backward()  # type: ignore[no-untyped-call]
            assert logits.grad is not None
            assert crf.pairwise.grad is not None
            absent = torch.from_numpy(~np.stack(exists))[:, None].expand_as(logits)
            assert bool((logits.grad[absent] == 0).all())
            assert bool(logits.grad.isfinite().all())
            assert bool(crf.pairwise.grad.isfinite().all())


def test_forbidden_labels_have_infinite_energy_and_probability_zero() -> None:
    crf, logits, shape, _ = small()
    logits[0, 1, 0, 2] = -torch.inf
    labels = torch.zeros(1, *shape, dtype=torch.long)
    assert bool(crf.energy(logits, labels).isfinite())
    assert bool(crf.log_pseudolikelihood(logits, labels).isfinite())
    labels[0, 0, 2] = 1
    assert float(crf.energy(logits, labels).detach()) == float("inf")
    assert float(crf.log_pseudolikelihood(logits, labels).detach()) == float("-inf")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_labels(dtype: torch.dtype) -> None:
    crf, logits, labels, _, _ = batch(1, "whole")
    assert torch.equal(crf.energy(logits, labels.to(dtype)), crf.energy(logits, labels))
    assert torch.equal(crf.pair_counts(labels.to(dtype)), crf.pair_counts(labels))


def test_an_engines_pair_counts_are_the_models() -> None:
    crf, logits, labels, given, _ = batch(1, "both")
    sizes, mask = given["sizes"], given["mask"]
    for name, state in report(torch.device("cpu")).items():
        if state == "ready":
            sampler = Sampler(crf, name, 0)
            chains = sampler.run(sampler.init(logits, labels, sizes=sizes, mask=mask, replicas=2), 2)
            counts = sampler.pair_counts(chains)
            for replica in range(2):
                assert torch.equal(counts[:, replica], crf.pair_counts(chains.labels[:, replica], **given))


@pytest.mark.parametrize("update", ["gather", "incremental"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_an_engines_conditionals_are_the_models(case: int, update: str) -> None:
    crf, logits, labels, given, exists = batch(case, "both")
    offsets, _ = CASES[case]
    tables, beta = crf.pairwise.detach().double().numpy(), 0.7
    clamp = torch.from_numpy(np.random.default_rng(3).random(labels.shape) < 0.3)
    start = labels.clamp(max=LABELS - 1)
    for name, state in report(torch.device("cpu")).items():
        if state == "ready":
            sampler = Sampler(crf, name, 0, update=update)
            sizes, mask = given["sizes"], given["mask"]
            chains = sampler.init(logits, start, sizes=sizes, mask=mask, clamp=clamp, replicas=2)
            sampler.run(chains, 3)
            out = torch.zeros(3, len(chains.plan.positions), LABELS, dtype=torch.float64)
            own = sampler.conditionals(chains, out, beta=beta)
            expected, energies = np.zeros(out.shape), np.zeros((3, 2))
            for n, (slot, place) in itertools.product(range(3), enumerate(chains.layout.coordinates.tolist())):
                site = tuple(place)
                inside = all(a < b for a, b in zip(site, labels.shape[1:], strict=True))
                if not inside or not exists[n][site] or clamp[n][site]:
                    continue
                for replica in range(2):
                    y = chains.labels[n, replica].numpy()
                    energy = site_energies(logits[n].numpy(), tables, y, exists[n], offsets, site)
                    weight = np.exp(-beta * (energy - energy.min()))
                    expected[n, slot] += weight / weight.sum() / 2
                    # Rule 1 moves a site's unaries so that the lowest is 0.
                    energies[n, replica] += energy[y[site]] + logits[n][(slice(None), *site)].max()
            assert np.allclose(out.numpy(), expected, atol=2e-3)
            assert np.allclose(own.numpy(), energies, atol=0.2)


HOOD = Neighborhood.nearest(4)
LOGITS, ZEROS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
FAULTS: list[tuple[Any, type[Exception], str]] = [
    (lambda: GridCRF(1, HOOD), ValueError, "num_labels: expected an integer from 2 to 255, got 1"),
    (lambda: GridCRF(256, HOOD), ValueError, "num_labels: expected an integer from 2 to 255, got 256"),
    (lambda: GridCRF(2.0, HOOD), TypeError, "num_labels: expected an integer, got 2.0"),  # type: ignore[arg-type]
    (lambda: GridCRF(3, [(0, 1)]), TypeError, "neighborhood: expected a Neighborhood, got list"),  # type: ignore[arg-type]
    (lambda: GridCRF(3, HOOD, torch.zeros(2, 3)), ValueError, "pairwise: expected shape [2, 3, 3] (classes, labels, labels)"),
    (lambda: GridCRF(3, HOOD, torch.zeros(2, 3, 3).long()), TypeError, "pairwise: expected a floating-point dtype"),
    (lambda: GridCRF(3, HOOD, torch.full((2, 3, 3), 256.0)), ValueError, "of at most 1023, got 1024, most of it in class 0"),
    (lambda: GridCRF(3, HOOD).energy(LOGITS, ZEROS[:, :3]), ValueError, "labels: expected shape [2, 4, 5], got [2, 3, 5]"),
    (lambda: GridCRF(3, HOOD).energy(LOGITS[0], ZEROS), ValueError, "logits: expected shape [N, 3, H, W], got [3, 4, 5]"),
    (lambda: GridCRF(4, HOOD).energy(LOGITS, ZEROS), ValueError, "logits: expected shape [N, 4, H, W], got [2, 3, 4, 5]"),
    (lambda: GridCRF(3, HOOD).energy(LOGITS, ZEROS.float()), TypeError, "labels: expected an integer dtype, got torch.float32"),
    (lambda: GridCRF(3, HOOD).energy(LOGITS, ZEROS + 3), ValueError, "labels from 0 to 2, got 3 at index [0, 0, 0]"),
    (lambda: GridCRF(3, HOOD).pair_counts(ZEROS - 1), ValueError, "labels: expected labels from 0 to 2, got -1"),
    (lambda: GridCRF(3, HOOD).pair_counts(ZEROS + 255), ValueError, "labels: expected labels from 0 to 2, got 255"),
    (lambda: GridCRF(3, HOOD).pair_counts(ZEROS[0]), ValueError,
     "labels: expected shape [N, 2 sizes] or [N, M, 2 sizes], none 0, got [4, 5]"),
    (lambda: GridCRF(3, HOOD).pair_counts(ZEROS[:0]), ValueError,
     "labels: expected shape [N, 2 sizes] or [N, M, 2 sizes], none 0, got [0, 4, 5]"),
    (lambda: GridCRF(3, HOOD).pair_counts(ZEROS, sizes=ZEROS[0]), ValueError, "sizes: expected shape [2, 2], got [4, 5]"),
    (lambda: GridCRF(3, HOOD).pair_counts(ZEROS, mask=ZEROS), TypeError, "mask: expected torch.bool, got torch.int64"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), FAULTS, ids=[message[:50] for _, _, message in FAULTS])
def test_bad_input(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_tables_of_other_offsets_labels_or_kinds_are_not_taken_for_ones_own() -> None:
    crf = GridCRF(3, HOOD, torch.ones(2, 3, 3))
    state = crf.state_dict()
    other = GridCRF(3, Neighborhood.from_offsets([(0, 1), (2, 0)]))
    kinds = GridCRF(3, HOOD, kinds=2), GridCRF(3, HOOD, kinds=2, kinds_on=Neighborhood.from_offsets([HOOD.offsets[0]]))
    for mine, given, what in (
        (other, state, "got those of 3 labels, Neighborhood"), (kinds[0], kinds[1].state_dict(), "2 kinds on 1 class"),
        (torch.nn.Sequential(other), {f"0.{name}": value for name, value in state.items()}, r"\(1, 0\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"state: expected tables of .*{what}"):
            mine.load_state_dict(given)
    assert not bool(other.pairwise.any())
    same = GridCRF(3, HOOD)
    same.load_state_dict(state)
    assert torch.equal(same.pairwise, crf.pairwise)
    # States from before this was kept: no extra state.
    older = GridCRF(3, HOOD)
    older.load_state_dict({"pairwise": torch.ones(2, 3, 3)})
    assert torch.equal(older.pairwise, crf.pairwise)
