"""A cut or turned image continues its own part of the chain, and no other pixel's."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf.datasets import Figures, RandomView, collate
from tritoncrf.datasets.base import unpack
from tritoncrf.store import ChainStore

SIZE = (5, 7)


def places_by_hand(corner: tuple[int, int], turned: tuple[int, int], cut: tuple[int, int]) -> list[list[int]]:
    """Row-major index in the whole image of each pixel of the cut."""
    rows = [corner[0] + (cut[0] - 1 - y if turned[0] else y) for y in range(cut[0])]
    columns = [corner[1] + (cut[1] - 1 - x if turned[1] else x) for x in range(cut[1])]
    return [[y * SIZE[1] + x for x in columns] for y in rows]


@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_places_are_those_of_the_cut(turned: tuple[int, int]) -> None:
    store = tc.ChainStore([SIZE, SIZE], seed=0)
    view = torch.tensor([[[1, 2], turned], [[0, 0], turned]])
    cut = torch.tensor([[3, 4], [2, 5]])
    found = store.pixel_indices(torch.tensor([1, 0]), (3, 5), view, cut)
    assert (found[0, 0, :, :4] - 35).tolist() == places_by_hand((1, 2), turned, (3, 4))
    assert found[1, 0, :2].tolist() == places_by_hand((0, 0), turned, (2, 5))
    assert bool((found[0, 0, :, 4:] == 70).all())
    assert bool((found[1, 0, 2:] == 70).all())


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_visit_moves_the_cut_alone_and_reads_what_stood_there(replicas: int) -> None:
    crf = tc.GridCRF(6, tc.Neighborhood.nearest(4))
    store = tc.ChainStore([SIZE], seed=0, replicas=replicas)
    loss = tc.CRFLoss(crf, chains=store, sweeps=1)
    before = torch.arange(35, dtype=torch.uint8) % 6
    store.labels[0, :-1] = before.repeat(replicas)
    view = torch.tensor([[[1, 2], [0, 1]]])
    inside = torch.tensor(places_by_hand((1, 2), (0, 1), (3, 4)))
    # Logits that forbid all but what the chain holds there: a chain that reads it right stays.
    logits = torch.full((1, 6, 3, 4), -torch.inf)
    logits.scatter_(1, before[inside][None, None].long(), 0.0)
    target = before[inside][None].long()
    loss(logits.requires_grad_(), target, torch.tensor([0]), view=view).backward()
    assert loss.statistics is not None
    assert float(loss.statistics.flip_rate) == 0.0
    assert torch.equal(store.labels[0, :-1], before.repeat(replicas))
    # And logits that force label 5: the cut alone becomes 5, in every replica.
    forced = torch.full((1, 6, 3, 4), -torch.inf)
    forced[:, 5] = 0.0
    loss(forced.requires_grad_(), torch.full((1, 3, 4), 5), torch.tensor([0]), view=view).backward()
    after = store.labels[0, :-1].view(replicas, 35)
    assert bool((after[:, inside.flatten()] == 5).all())
    outside = torch.ones(35, dtype=torch.bool)
    outside[inside.flatten()] = False
    assert torch.equal(after[:, outside], before[outside].expand(replicas, -1))


def test_a_view_of_the_whole_is_no_view() -> None:
    found = []
    for view in (None, torch.zeros(2, 2, 2, dtype=torch.int64)):
        store = tc.ChainStore([SIZE, (3, 4)], seed=0)
        loss = tc.CRFLoss(tc.GridCRF(3, tc.Neighborhood.nearest(8)), chains=store)
        logits, target = torch.zeros(2, 3, *SIZE, requires_grad=True), torch.zeros(2, *SIZE, dtype=torch.long)
        loss(logits, target, torch.tensor([0, 1]), sizes=torch.tensor([SIZE, (3, 4)]), view=view).backward()
        found.append(store.labels)
    assert torch.equal(*found)


def test_random_views_learn_without_a_warning_and_a_bare_crop_warns() -> None:
    data = tc.Indexed(RandomView(Figures(6, size=(20, 16)), (9, 8), flip=(1,), generator=torch.Generator().manual_seed(1)))
    assert data.sizes == [(20, 16)] * 6
    store = tc.ChainStore(data.sizes, seed=0)
    loss = tc.CRFLoss(tc.GridCRF(20, tc.Neighborhood.nearest(8)), chains=store, sweeps=2)
    views = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for image, target, index, extras in DataLoader(data, 3, collate_fn=collate):
                logits = torch.zeros(len(image), 20, 9, 8, requires_grad=True)
                loss(logits, target, index, clamp=extras["known"] != 255, view=extras["view"]).backward()
                views.append(extras["view"])
    assert store.sweeps.tolist() == [6] * 6
    seen = torch.cat(views)
    assert len({tuple(view.flatten().tolist()) for view in seen}) > 6
    assert bool(seen[:, 1, 1].any())
    # Without the view a crop of the image's own size is another image.
    other = tc.CRFLoss(loss.crf, chains=tc.ChainStore([(9, 8)] * 6, seed=0))
    logits, index = torch.zeros(1, 20, 9, 8, requires_grad=True), torch.tensor([0])
    other(logits, torch.full((1, 9, 8), 0), index)
    with pytest.warns(UserWarning, match="target: image 0 has another target than at its first visit"):
        other(logits, torch.full((1, 9, 8), 1), index)


def test_a_random_view_cuts_all_parts_alike() -> None:
    whole = Figures(2, size=(20, 16))
    cut = RandomView(whole, (9, 30), flip=(0, 1), generator=torch.Generator().manual_seed(0))
    for n in (0, 1):
        image, target, extras = unpack(cut[n])
        (top, left), turned = extras["view"].tolist()
        assert (tuple(target.shape), left) == ((9, 16), 0)
        axes = [axis - 2 for axis in (0, 1) if turned[axis]]
        own, labels, more = unpack(whole[n])
        for part, given in ((image, own), (target, labels), (extras["known"], more["known"])):
            assert torch.equal(part.flip(axes), given[..., top : top + 9, :])


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"view: expected shape \[1, 2, 2\], got \[1, 2, 3\]"),
        (torch.zeros(1, 2, 2), "view: expected an integer dtype, got torch.float32"),
        (torch.tensor([[[3, 0], [0, 0]]]), r"view: expected corners whose cut lies .*got \[3, 0\] and a cut of \[3, 4\] for"),
        (torch.tensor([[[0, -1], [0, 0]]]), "view: expected corners whose cut lies within"),
        (None, "sizes: expected each image at the size its chain has, or a view that says what was cut"),
    ],
)
def test_bad_views_raise_and_move_nothing(view: Tensor | None, sentence: str) -> None:
    store = tc.ChainStore([SIZE], seed=0)
    loss = tc.CRFLoss(tc.GridCRF(3, tc.Neighborhood.nearest(4)), chains=store)
    with pytest.raises((ValueError, TypeError), match=sentence):
        loss(torch.zeros(1, 3, 3, 4), torch.zeros(1, 3, 4, dtype=torch.long), torch.tensor([0]), view=view)
    assert bool((store.labels == 255).all())
    assert store.sweeps.tolist() == [0]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RandomView(Figures(1), (0, 4)), "size: expected at least 1 pixel an axis"),
        (lambda: RandomView(Figures(1), (4, 4), flip=(2,)), "flip: expected axes from 0 to 1"),
        (lambda: RandomView(Figures(1), (4,))[0], "size: expected 2 numbers as the images have axes"),
    ],
)
def test_bad_random_views(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("fault", ["corner", "turn", "stride"])
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ChainStore.pixel_indices

    def wrong(
        self: ChainStore, index: Tensor, shape: tuple[int, ...], view: Tensor | None = None, cut: Tensor | None = None
    ) -> Tensor:
        if view is None:
            return right(self, index, shape, view, cut)
        if fault == "stride":
            return right(self, index, shape, None, cut)
        view = view.clone()
        view[:, 0 if fault == "corner" else 1] = 0
        return right(self, index, shape, view, cut)

    monkeypatch.setattr(ChainStore, "pixel_indices", wrong)
    with pytest.raises(AssertionError):
        test_a_visit_moves_the_cut_alone_and_reads_what_stood_there(1)
