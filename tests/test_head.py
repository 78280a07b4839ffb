"""Does one object with network and CRF learn, look and answer as its parts do, whatever the network returns?"""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritoncrf as tc
from tritoncrf.edges import parse
from tritoncrf.networks import small
from tritoncrf.target_watch import TargetWatch
from tritoncrf.tiles import windows

SHAPE = (9, 11)
INDEX = torch.tensor([1, 0])


class Returns(nn.Module):
    """A convolution whose logits come back in some wrapping."""

    def __init__(self, wrap: Callable[[Tensor], object] = torch.positive, stride: int = 1, labels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wrap, self.body = wrap, nn.Conv2d(1, labels, 3, padding=1, stride=stride)

    def forward(self, image: Tensor) -> object:
        return self.wrap(self.body(image))


def data(shape: tuple[int, ...] = SHAPE, labels: int = 3) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, *shape, generator=make), torch.randint(0, labels, (2, *shape), generator=make)


def tables(labels: int = 3, ndim: int = 2) -> tc.GridCRF:
    near = tc.Neighborhood.nearest(8) if ndim == 2 else tc.Neighborhood.nearest(6, ndim=ndim)
    make = torch.Generator().manual_seed(2)
    return tc.GridCRF(labels, near, 0.3 * torch.randn(len(near), labels, labels, generator=make))


def head(network: nn.Module | None = None, shape: tuple[int, ...] = SHAPE, **options: object) -> tc.CRFHead:
    crf = tables(ndim=len(shape))
    store = tc.ChainStore([shape] * 2, seed=3)
    return tc.CRFHead(network or Returns(), crf, chains=store, **options)  # type: ignore[arg-type]


def test_the_loss_and_its_gradients_are_those_of_the_parts() -> None:
    image, target = data()
    whole, network = head(), Returns()
    loss = tc.CRFLoss(tables(), chains=tc.ChainStore([SHAPE] * 2, seed=3))
    value, expected = whole(image, target, INDEX), loss(network(image), target, INDEX)
    assert torch.equal(value, expected)
    value.backward()
    expected.backward()
    parts = [*network.parameters(), *loss.parameters()]
    assert [p.shape for p in whole.parameters()] == [p.shape for p in parts]
    for mine, theirs in zip(whole.parameters(), parts, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
        assert mine.grad.any()


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda x: {"out": x, "aux": 0 * x}, None),
        (lambda x: {"logits": x, "loss": 0.0}, None),
        (lambda x: SimpleNamespace(logits=x), None),
        (lambda x: {"out": 0 * x, "logits": x}, lambda given: given["logits"]),
        (lambda x: (x, 0 * x, 1), lambda given: given[0]),
    ],
)
def test_logits_are_found_in_what_a_network_returns(
    wrap: Callable[[Tensor], object], pick: Callable[[object], object] | None
) -> None:
    image, target = data()
    whole = head(Returns(wrap), logits=pick)
    assert torch.equal(whole(image), Returns()(image))
    assert torch.equal(whole(image, target, INDEX), head()(image, target, INDEX))


@pytest.mark.parametrize("keys", [dict, lambda given: SimpleNamespace(**given), lambda given: tuple(given.values())])
def test_gates_beside_the_logits_get_their_gradient(keys: Callable[[dict[str, Tensor]], object]) -> None:
    near = tc.Neighborhood.nearest(4)
    gates = torch.full((2, 1, 2, *SHAPE), 0.5, requires_grad=True)
    crf = tc.GridCRF(3, near, torch.randn(2, 3, 3), gates=1, gated=torch.randn(1, 2, 3, 3))
    image, target = data()
    whole = tc.CRFHead(Returns(lambda x: keys({"logits": x, "gates": gates})), crf)
    whole(image, target).backward()
    assert gates.grad is not None
    assert gates.grad.any()


def test_low_resolution_logits_come_to_the_targets_size() -> None:
    image, target = data()
    whole = head(Returns(stride=2))
    logits = F.interpolate(Returns(stride=2)(image), SHAPE, mode="bilinear", align_corners=False)
    assert torch.equal(whole(image), logits)
    assert torch.equal(whole(image, target, INDEX), tc.CRFLoss(whole.crf, chains=tc.ChainStore([SHAPE] * 2, seed=3))(
        logits, target, INDEX
    ))  # fmt: skip
    near = head(Returns(stride=2), resize="nearest")
    assert torch.equal(near(image), F.interpolate(Returns(stride=2)(image), SHAPE, mode="nearest"))
    strict = head(Returns(stride=2), resize=None)
    with pytest.raises(ValueError, match=re.escape("logits: expected a size of [9, 11], got [5, 6]")):
        strict(image, target, INDEX)
    volume = torch.randn(2, 1, 4, 5, 6)
    thick = head(nn.Conv3d(1, 3, 3, padding=1, stride=2), (4, 5, 6))
    assert thick(volume, torch.zeros(2, 1, 4, 5, 6).long(), INDEX).isfinite()
    assert thick.predict(volume, sweeps=2, burn_in=1).shape == (2, 4, 5, 6)


def test_targets_of_one_channel_and_of_bool_are_taken() -> None:
    image, target = data(labels=2)
    expected = head()(image, target, INDEX)
    assert torch.equal(head()(image, target[:, None], INDEX), expected)
    assert torch.equal(head()(image, target.bool(), INDEX), expected)
    assert torch.equal(head()(image, target[:, None].bool(), INDEX), expected)


def test_one_channel_is_the_logit_of_label_one() -> None:
    network = Returns(labels=1)
    whole = tc.CRFHead(network, tables(2))
    image, target = data(labels=2)
    assert torch.allclose(whole(image).softmax(1)[:, 1], network(image)[:, 0].sigmoid())
    whole(image, target > 0).backward()
    assert network.body.weight.grad is not None


@pytest.mark.parametrize("how", ["head", "network", "no_grad"])
def test_a_validation_call_moves_no_chain(how: str) -> None:
    image, target = data()
    whole = head(auxiliary=lambda given, target: given.sum())
    chains = whole.loss.chains
    assert chains is not None
    if how == "head":
        whole.eval()
    elif how == "network":
        whole.network.eval()
    with torch.set_grad_enabled(how != "no_grad"):
        value = whole(image, target, INDEX)
    assert value.isfinite()
    assert bool((chains.labels == 255).all())
    assert not chains.sweeps.any()
    assert whole.loss.training == (how != "head")
    whole.train()
    whole(image, target, INDEX)
    assert chains.sweeps.tolist() == [10, 10]


def test_a_fixed_network_in_eval_mode_leaves_the_tables_learning() -> None:
    network = nn.Sequential(Returns(), nn.BatchNorm2d(3)).requires_grad_(False)
    whole = head(network)
    image, target = data()
    whole.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    whole(image, target, INDEX).backward()
    assert whole.loss.chains is not None
    assert whole.loss.chains.sweeps.tolist() == [10, 10]
    assert whole.crf.pairwise.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_auxiliary_term_is_added_while_it_learns() -> None:
    image, target = data()
    plain = head()(image, target, INDEX)
    both = head(Returns(lambda x: {"out": x, "aux": 2 * x}), auxiliary=lambda given, y: F.cross_entropy(given["aux"], y))
    assert torch.equal(both(image, target, INDEX), plain + F.cross_entropy(2 * Returns()(image), target))
    wrong = head(auxiliary=lambda given, y: given)
    with pytest.raises(ValueError, match=re.escape("auxiliary: expected a function to a scalar tensor, got one to [2, 3, 9")):
        wrong(image, target, INDEX)


def test_loaders_batches_go_in_as_they_are() -> None:
    data_set = tc.Indexed(tc.datasets.Figures(2, size=(24, 16), ragged=True))
    batch = tc.datasets.collate([data_set[0], data_set[1]])
    crf = tc.GridCRF(20, tc.Neighborhood.nearest(4))
    whole = tc.CRFHead(nn.Conv2d(1, 20, 3, padding=1), crf, chains=tc.ChainStore(data_set.sizes, seed=0))
    value = whole(*batch)
    loss = tc.CRFLoss(crf, chains=tc.ChainStore(data_set.sizes, seed=0))
    image, target, index, extras = batch  # type: ignore[misc]
    clamp = extras["known"] != 255
    learned = torch.where(clamp, extras["known"].long(), target)
    assert torch.equal(value, loss(whole(image), learned, index, sizes=extras.get("sizes"), clamp=clamp))


def test_edges_are_told_at_every_call() -> None:
    near = tc.Neighborhood.nearest(4)
    recipe = parse("steps:0.2", near)
    crf = tc.GridCRF(3, near, torch.randn(2, 3, 3, 3), kinds=recipe.kinds)
    whole = tc.CRFHead(Returns(), crf, edges=recipe)
    assert whole.crf is crf
    image, target = data()
    assert whole(image, target).isfinite()
    expected = tc.max_marginal(crf, whole(image), sweeps=3, burn_in=1, kinds=recipe(image).kinds)
    assert torch.equal(whole.predict(image, sweeps=3, burn_in=1), expected)
    with pytest.raises(ValueError, match="kinds: expected a tensor"):
        tc.CRFHead(Returns(), crf)(image, target)


def test_prediction_passes_its_options_on_and_leaves_modes() -> None:
    image, target = data()
    whole = head(nn.Sequential(Returns(), nn.Dropout(0.5)))
    clamp = torch.zeros(2, *SHAPE, dtype=torch.bool)
    clamp[:, :3] = True
    long = {"sweeps": 4, "burn_in": 2, "labels": target, "clamp": clamp, "seed": 5, "index": INDEX, "beta": 0.5}
    given = whole.predict(image, **long)  # type: ignore[arg-type]
    assert torch.equal(given[clamp], target[clamp].to(torch.uint8))
    assert torch.equal(given, tc.max_marginal(whole.crf, Returns()(image), **long))  # type: ignore[arg-type]
    assert not torch.equal(given, tc.max_marginal(whole.crf, Returns()(image), **long | {"beta": 1.0}))  # type: ignore[arg-type]
    assert all(module.training for module in whole.modules())


@pytest.mark.parametrize(("shape", "tile", "overlap"), [((20, 33), (12, 16), 4), ((20, 33), 9, 4), ((7, 9, 12), 7, (1, 2, 3))])
def test_every_pixel_is_answered_once_and_far_from_inner_sides(
    shape: tuple[int, ...], tile: int | tuple[int, ...], overlap: int | tuple[int, ...]
) -> None:
    count = torch.zeros(shape)
    halos = (overlap,) * len(shape) if isinstance(overlap, int) else overlap
    for window in windows(shape, tile, overlap):
        count[window.answered] += 1
        for seen, answered, core, length, halo in zip(
            window.seen, window.answered, window.core, shape, halos, strict=True
        ):
            assert (seen.start + core.start, seen.start + core.stop) == (answered.start, answered.stop)
            assert seen.start == 0 or core.start >= halo
            assert seen.stop == length or seen.stop - answered.stop >= halo
    assert (count == 1).all()


def test_tiles_give_the_whole_images_logits_within_a_finite_view() -> None:
    torch.manual_seed(0)
    network = small(1, 3, width=4, dilations=(1, 2))
    whole = tc.CRFHead(network, tables())
    image = torch.randn(1, 1, 30, 41)
    expected = whole(image)

    def gap(overlap: int) -> float:
        found = []
        for window in windows((30, 41), 16, overlap):
            every: tuple[slice, ...] = (slice(None), slice(None))
            part = whole(image[every + window.seen])[every + window.core]
            found.append(float((part - expected[every + window.answered]).detach().abs().max()))
        return max(found)

    assert gap(3) < 1e-6
    assert gap(2) > 1e-3


def test_tiled_labels_are_the_whole_images_where_tables_are_zero_and_nearly_where_not() -> None:
    torch.manual_seed(0)
    network = small(1, 3, width=4, dilations=(1,))
    image = torch.randn(2, 1, 30, 41)
    free = tc.CRFHead(network, tc.GridCRF(3, tc.Neighborhood.nearest(8)))
    assert torch.equal(free.predict_tiled(image, 12, 2, sweeps=1, burn_in=0), free(image).argmax(1).to(torch.uint8))
    joined = tc.CRFHead(network, tables())
    within = joined.predict_tiled(image, 41, 0, sweeps=4, burn_in=1)
    assert torch.equal(within, joined.predict(image, sweeps=4, burn_in=1, index=torch.arange(2)))
    potts = 0.25 * (1 - torch.eye(3)).expand(4, 3, 3)
    smooth = tc.CRFHead(nn.Conv2d(1, 3, 1), tc.GridCRF(3, tc.Neighborhood.nearest(8), potts))
    with torch.no_grad():
        smooth.network.weight.copy_(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1))  # type: ignore[operator]
        smooth.network.bias.zero_()  # type: ignore[operator]

    def apart(first: Tensor, second: Tensor) -> float:
        return float((first != second).float().mean())

    plain, again = (smooth.predict(image, sweeps=100, burn_in=20, seed=seed) for seed in (0, 1))
    wide, narrow = (smooth.predict_tiled(image, *cut, sweeps=100, burn_in=20) for cut in ((20, 6), (5, 0)))
    assert apart(wide, plain) < apart(plain, again) + 0.008
    assert apart(narrow, plain) > apart(plain, again) + 0.012
    volume = tc.CRFHead(nn.Conv3d(1, 3, 3, padding=1), tc.GridCRF(3, tc.Neighborhood.nearest(6, ndim=3)))
    cube = torch.randn(1, 1, 9, 10, 11)
    assert torch.equal(volume.predict_tiled(cube, 6, 1, sweeps=1, burn_in=0), volume(cube).argmax(1).to(torch.uint8))


def test_tiles_keep_known_labels_and_leave_out_missing_pixels() -> None:
    image, target = data((12, 14))
    whole = tc.CRFHead(Returns(), tables())
    clamp, mask = torch.zeros(2, 12, 14, dtype=torch.bool), torch.ones(2, 12, 14, dtype=torch.bool)
    clamp[:, 2:9, 3:8] = True
    mask[:, 6:, 8:] = False
    given = whole.predict_tiled(image, 6, 1, sweeps=3, burn_in=1, labels=target, mask=mask, clamp=clamp)
    assert torch.equal(given[clamp & mask], target[clamp & mask].to(torch.uint8))
    assert torch.equal(given == 255, ~mask)
    with pytest.raises(ValueError, match=re.escape("mask: expected shape [2, 12, 14], got [2, 12, 13]")):
        whole.predict_tiled(image, 6, 1, mask=mask[..., 1:])


def test_faults_are_one_sentence() -> None:
    image, target = data()
    crf = tables()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: tc.CRFHead(3, crf), "network: expected a torch.nn.Module, got int"),  # type: ignore[arg-type]
        (lambda: tc.CRFHead(Returns(), 3), "crf: expected a GridCRF, got int"),  # type: ignore[arg-type]
        (lambda: tc.CRFHead(Returns(), crf, resize="cubic"), "resize: expected one of 'bilinear', 'nearest', got 'cubic'"),
        (lambda: tc.CRFHead(Returns(), crf, loss=tc.CRFLoss(tables(), method="cd")), "loss: expected a CRFLoss of"),
        (lambda: tc.CRFHead(Returns(), crf, logits="out"), "logits: expected a function of what"),  # type: ignore[arg-type]
        (lambda: head(Returns(lambda x: {"a": x}))(image), "network: expected logits, logits and gates, or one of 'out'"),
        (lambda: head(Returns(lambda x: {"out": x, "logits": x}))(image), "got keys ['logits', 'out']"),
        (lambda: head(Returns(labels=4))(image), "logits: expected shape [N, 3, H, W], got [2, 4, 9, 11]"),
        (lambda: head()(image, None, INDEX), "target: expected the images' labels beside index or extras, got None"),
        (lambda: head()(image, target), "index: expected integers [N]"),
        (lambda: head()(image, target[None, None]), "target: expected [N] or [N, 1] and 2 axes"),
        (lambda: head()(image, target.float(), INDEX), "target: expected an integer dtype, got torch.float32"),
        (lambda: head().predict_tiled(image, 8, 4), "tile: expected more than twice the overlap of 4, got 8"),
        (lambda: head().predict_tiled(image, (8, 8, 8), 1), "tile: expected one integer or 2, one an axis, got (8, 8, 8)"),
        (lambda: head().predict_tiled(image[0], 8, 1), "image: expected [N, C] and 2 axes"),
    ]
    for make, sentence in cases:
        with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
            make()


def test_a_state_holds_every_table_once_and_comes_back() -> None:
    image, target = data()
    whole, other = head(), head()
    names = [name for name in whole.state_dict() if "pairwise" in name]
    assert names == ["loss.crf.pairwise"]
    with torch.no_grad():
        whole.crf.pairwise.add_(1.0)
    other.load_state_dict(whole.state_dict())
    assert torch.equal(other.crf.pairwise, whole.crf.pairwise)
    assert torch.equal(other(image, target, INDEX), whole(image, target, INDEX))


@pytest.mark.parametrize(("change", "method"), [(True, "pcd"), (False, "pcd"), (True, "cd")])
def test_a_target_that_changes_under_its_chain_warns_once(change: bool, method: str) -> None:
    image, target = data()
    crf = tables()
    loss = tc.CRFLoss(crf, chains=tc.ChainStore([SHAPE] * 2, seed=3), method=method, sweeps=1)
    whole = tc.CRFHead(Returns(), crf, loss=loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            given = target.flip(-1) if change and step else target
            whole(image, given, INDEX)
    assert len(caught) == (1 if change and method == "pcd" else 0)
    assert all("target: image 1 has another target" in str(one.message) for one in caught)


def test_padding_is_no_change_of_a_target() -> None:
    target = torch.ones(1, 3, 4).long()
    padded = torch.full((1, 5, 6), 255)
    padded[:, :3, :4] = target
    watch = TargetWatch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.observe(target, torch.tensor([0]), None)
        watch.observe(padded, torch.tensor([0]), torch.tensor([[3, 4]]))


def test_wrapped_for_data_parallel_learning_it_is_the_same(tmp_path: Path) -> None:
    image, target = data()
    expected = head()
    expected(image, target, INDEX).backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(head())
        wrapped(image, target, INDEX).backward()
    finally:
        torch.distributed.destroy_process_group()
    for (name, mine), theirs in zip(wrapped.named_parameters(), expected.parameters(), strict=True):
        assert mine.grad is not None, name
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)


def test_a_copy_is_a_head_of_its_own() -> None:
    image, target = data()
    whole = head()
    other = copy.deepcopy(whole)
    assert other.loss.chains is None
    other.loss.chains = copy.deepcopy(whole.loss.chains)
    other = pickle.loads(pickle.dumps(other))
    assert torch.equal(other(image, target, INDEX), whole(image, target, INDEX))
    assert other.loss.chains is not whole.loss.chains
    assert other.loss.chains.sweeps.tolist() == [10, 10]


def test_half_precision_learns_and_answers() -> None:
    image, target = data()
    whole = head()
    with torch.autocast("cpu", torch.bfloat16):
        value = whole(image, target, INDEX)
        labels = whole.predict(image, sweeps=2, burn_in=1)
    value.backward()
    assert (value.dtype, labels.dtype) == (torch.float32, torch.uint8)
    assert next(whole.network.parameters()).grad is not None
