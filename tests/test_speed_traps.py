"""What once took too long or too much: the same answers by the fast way, and bounds with room to spare."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tritoncrf import graph_recipes as recipes
from tritoncrf.coloring import sublattice_coloring
from tritoncrf.engines import Tables
from tritoncrf.ranks import Meeting, Ranks
from tritoncrf.sublattices import free_bases


def by_trial(offsets: tuple[tuple[int, ...], ...], diagonal: tuple[int, ...]) -> list[list[list[int]]]:
    """All forms one after the other, each asked whether it contains an offset."""
    axes, found = len(diagonal), []
    places = [(i, j) for i in range(axes) for j in range(i + 1, axes)]
    for entries in itertools.product(*(range(diagonal[j]) for _, j in places)):
        basis = np.diag(diagonal)
        for place, entry in zip(places, entries, strict=True):
            basis[place] = entry
        inside = False
        for offset in offsets:
            rest = np.array(offset)
            for axis in range(axes):
                rest = rest - rest[axis] // basis[axis, axis] * basis[axis]
            inside |= not rest.any()
        if not inside:
            found.append(basis.tolist())
    return found


def test_forms_that_miss_offsets_are_those_found_by_trial() -> None:
    chance, some = random.Random(0), 0
    for _ in range(60):
        axes = chance.choice((1, 2, 3, 3))
        diagonal = tuple(chance.randint(1, 4) for _ in range(axes))
        drawn = (tuple(chance.randint(-5, 5) for _ in range(axes)) for _ in range(chance.randint(1, 6)))
        offsets = tuple(offset for offset in drawn if any(offset))
        found = free_bases(offsets, diagonal).tolist()
        assert found == by_trial(offsets, diagonal)
        some += bool(found)
    assert some > 20


@pytest.mark.parametrize(
    ("hood", "colors"), [(tc.Neighborhood.grid(3, ndim=3), 64), (tc.Neighborhood.nearest(200, 4), 29)], ids=["3-D", "4-D"]
)
def test_large_neighbourhoods_keep_their_colours(hood: tc.Neighborhood, colors: int) -> None:
    sublattice_coloring.cache_clear()
    free_bases.cache_clear()
    assert sublattice_coloring(hood).colors == colors


def test_many_images_in_a_batch_take_memory_by_their_number() -> None:
    index = torch.arange(20000) % 15000
    meeting = Meeting(Ranks(), index, lambda: [])
    seen: set[int] = set()
    expected = [image in seen or bool(seen.add(image)) for image in index.tolist()]  # type: ignore[func-returns-value]
    assert meeting.again.tolist() == expected
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        _ = meeting.again
    assert max(event.cpu_memory_usage for event in told.key_averages()) < 1 << 23


def test_tables_are_rounded_anew_only_where_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    crf = tc.GridCRF(9, tc.Neighborhood.nearest(8), 0.1 * noise(4, 9, 9))
    sampler = tc.Sampler(crf)
    chains, calls = sampler.init(noise(1, 9, 10, 8)), 0
    rounded = tc.GridCRF.rounded

    def counted(self: tc.GridCRF, *given: object) -> object:
        nonlocal calls
        calls += 1
        return rounded(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(tc.GridCRF, "rounded", counted)
    for _ in range(20):
        sampler.run(chains, 1)
    assert calls == 1
    # Neither of these writes moves a version counter.
    crf.pairwise.data[0, 0, 0] += 1
    sampler.run(chains, 1)
    crf.pairwise.detach().numpy()[1] = 0.5
    sampler.run(chains, 1)
    assert calls == 3
    assert torch.equal(chains.tables.pairwise, rounded(crf, sampler.guard, crf.tables).pairwise)


def test_a_visit_remembers_how_many_labels_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """On calm images every visit but the first takes the incremental update from its first sweep on."""
    crf = tc.GridCRF(5, tc.Neighborhood.nearest(8))
    store = tc.ChainStore([(16, 12)] * 2, seed=0)
    loss = tc.CRFLoss(crf, chains=store, sweeps=10)
    ways: list[bool] = []
    sweep = loss.sampler.engine.sweep

    def told(work: object, labels: Tensor, field: Tensor | None, *given: object) -> Tensor:
        ways.append(field is not None)
        return sweep(work, labels, field, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(loss.sampler.engine, "sweep", told)
    target = torch.zeros(2, 16, 12, dtype=torch.long)
    logits = torch.nn.functional.one_hot(target, 5).movedim(-1, 1).float() * 9
    for _ in range(3):
        loss(logits, target, torch.arange(2))
    assert ways == [False, True, True, True]


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 1, shape)).float()


def test_pseudolikelihoods_keep_no_neighbours_for_their_gradient() -> None:
    crf = tc.GridCRF(9, tc.Neighborhood.nearest(64))
    logits, labels = noise(2, 9, 150, 140).requires_grad_(), torch.arange(42000).view(2, 150, 140) % 9
    kept = 0

    def pack(part: Tensor) -> Tensor:
        nonlocal kept
        kept += part.nbytes
        return part

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda part: part):
        value = crf.log_pseudolikelihood(logits, labels).sum()
    # All neighbours' labels would be 14 times as many bytes as the logits.
    assert kept < 8 * logits.nbytes
    value.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(logits.grad.any())


def test_a_pseudolikelihood_without_gradient_checkpoints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checkpoint imports torch's compiler, which takes thrice as long as a million pixels do."""
    crf = tc.GridCRF(5, tc.Neighborhood.nearest(8), noise(4, 5, 5))
    logits, labels = noise(1, 5, 30, 40), torch.arange(1200).view(1, 30, 40) % 5
    monkeypatch.setattr("tritoncrf.grid_crf.SITES", 500)
    expected, calls = crf.log_pseudolikelihood(logits, labels), 0

    def counted(part: Callable[..., Tensor], *given: Tensor, **_: bool) -> Tensor:
        nonlocal calls
        calls += 1
        return part(*given)

    monkeypatch.setattr("tritoncrf.model_protocol.checkpoint", counted)
    with torch.no_grad():
        assert torch.equal(crf.log_pseudolikelihood(logits, labels), expected)
    assert calls == 0
    assert torch.equal(crf.log_pseudolikelihood(logits, labels), expected)
    assert calls == 3
    graph, chain = tc.FactorCRF(3, [2], factors=[noise(1, 3, 3)]), recipes.chain(900)
    given = noise(900, 3), torch.arange(900) % 3, chain
    with torch.no_grad():
        expected = graph.log_pseudolikelihood(*given)
    assert calls == 3
    assert torch.equal(graph.log_pseudolikelihood(*given), expected)
    assert calls == 4


def test_large_tables_are_compared_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every single sweep compares the tables with those that it knows: torch does that entry by entry."""

    def refused(one: Tensor, other: Tensor) -> bool:
        raise AssertionError("torch.equal of large tables")

    monkeypatch.setattr("tritoncrf.engines.equal", refused)
    tables = Tables(noise(4, 100, 100))
    assert tables.equal(tables.copy())
    for change in (1e-6, float("nan")):
        other = tables.copy()
        other.pairwise[-1, -1, -1] += change
        assert not tables.equal(other)
        assert not other.equal(tables)
    assert not tables.equal(Tables(noise(4, 100, 101)))
    assert not tables.equal(Tables(tables.pairwise, noise(1, 4, 100, 100)))
    with pytest.raises(AssertionError, match="large"):
        tables.equal(Tables(tables.pairwise.double()))
