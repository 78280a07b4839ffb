"""The loss in somebody's training step: chains, batches, precision, compilation, and everything that may go wrong there."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tritoncrf as tc

SIZES = [(6, 7), (5, 4), (8, 6)]


def model(seed: int = 0) -> tc.GridCRF:
    make = torch.Generator().manual_seed(seed)
    return tc.GridCRF(4, tc.Neighborhood.nearest(8), 0.3 * torch.randn(4, 4, 4, generator=make))


def batch(images: int = 3, shape: tuple[int, int] = (8, 7)) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    return torch.randn(images, 4, *shape, generator=make), torch.randint(0, 4, (images, *shape), generator=make)


def ragged(crf: tc.GridCRF, **options: object) -> tuple[tc.CRFLoss, tc.ChainStore]:
    store = tc.ChainStore(SIZES, seed=7)
    return tc.CRFLoss(crf, chains=store, sweeps=3, **options), store  # type: ignore[arg-type]


def grads(loss: tc.CRFLoss, logits: Tensor, target: Tensor, *given: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss.crf.pairwise.grad = None
    loss(logits, target, *given, **more).backward()
    assert logits.grad is not None
    assert loss.crf.pairwise.grad is not None
    return logits.grad, loss.crf.pairwise.grad.clone()


def test_padding_batching_and_order_change_no_bit() -> None:
    logits, target = batch()
    index, sizes = torch.arange(3), torch.tensor(SIZES)
    loss, store = ragged(model(), reduction="sum")
    together, tables = grads(loss, logits, target, index, sizes=sizes)
    for n, (h, w) in enumerate(SIZES):
        assert not together[n, :, h:].any()
        assert not together[n, :, :, w:].any()
    alone, other = ragged(model(), reduction="sum")
    summed = torch.zeros_like(tables)
    for n in (2, 0, 1):
        h, w = SIZES[n]
        one, part = grads(alone, logits[n : n + 1, :, :h, :w], target[n : n + 1, :h, :w], index[n : n + 1])
        assert torch.equal(one[0], together[n, :, :h, :w])
        summed += part
    assert torch.equal(summed, tables)
    assert torch.equal(store.labels, other.labels)
    assert torch.equal(store.sweeps, torch.full((3,), 3))


def test_chains_persist_and_go_on_where_they_were() -> None:
    crf = model()
    logits, target = batch(1, SIZES[0])
    loss, store = ragged(crf)
    for _ in range(2):
        grads(loss, logits, target, torch.tensor([0]))
    sampler = tc.Sampler(crf, seed=7)
    chains = sampler.run(sampler.init(logits, phase="free"), 6)
    assert torch.equal(store.fetch(store.pixel_indices(torch.tensor([0]), SIZES[0]))[0], chains.labels[0])
    assert store.sweeps.tolist() == [6, 0, 0]


def test_an_index_twice_in_a_batch_keeps_the_first_chain() -> None:
    logits, target = batch(2, SIZES[0])
    loss, store = ragged(model())
    grads(loss, logits, target, torch.tensor([0, 0]))
    only, other = ragged(model())
    grads(only, logits[:1], target[:1], torch.tensor([0]))
    assert torch.equal(store.labels, other.labels)
    assert store.sweeps.tolist() == [3, 0, 0]


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_looking_moves_no_chain(how: str) -> None:
    logits, target = batch(1, SIZES[0])
    loss, store = ragged(model())
    loss.train(how != "eval")
    with torch.set_grad_enabled(how == "eval"):
        value = loss(logits, target, torch.tensor([0]))
        assert torch.equal(value, loss(logits, target, torch.tensor([0])))
    assert value.isfinite()
    assert bool((store.labels == 255).all())
    assert not store.sweeps.any()


def test_cd_draws_are_never_used_twice_and_its_number_is_kept() -> None:
    loss = tc.CRFLoss(model(), method="cd", sweeps=1, seed=0)
    logits, target = batch(2, SIZES[0])
    first, second = grads(loss, logits, target)[0], grads(loss, logits, target)[0]
    assert not torch.equal(first, second)
    assert int(loss.visits) == 4
    again = tc.CRFLoss(model(), method="cd", sweeps=1, seed=99)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(grads(again, logits, target)[0], grads(loss, logits, target)[0])


def test_cd_over_chains_counts_their_sweeps_and_leaves_their_labels() -> None:
    store = tc.ChainStore(SIZES, seed=7)
    loss = tc.CRFLoss(model(), chains=store, method="cd", sweeps=2)
    logits, target = batch(1, SIZES[0])
    one, two = (grads(loss, logits, target, torch.tensor([0]))[0] for _ in range(2))
    assert not torch.equal(one, two)
    assert store.sweeps.tolist() == [4, 0, 0]
    assert bool((store.labels == 255).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_float_type_get_gradients_of_their_own(dtype: torch.dtype) -> None:
    logits, target = batch()
    loss = tc.CRFLoss(model(), method="cd", sweeps=2, seed=0)
    grad, _ = grads(loss, logits.to(dtype), target)
    assert grad.dtype == dtype
    same, _ = grads(tc.CRFLoss(model(), method="cd", sweeps=2, seed=0), logits.to(dtype).float(), target)
    assert torch.equal(grad, same.to(dtype))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))


def step(forward: Callable[[Tensor], Tensor], net: nn.Module, scale: float = 1.0) -> list[Tensor]:
    image, target = torch.linspace(-1, 1, 2 * 56).view(2, 1, 8, 7), batch(2)[1]
    loss = tc.CRFLoss(model(), method="cd", sweeps=2, seed=0)
    (loss(forward(image), target) * scale).backward()
    return [parameter.grad / scale for parameter in net.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_learns_as_the_plain_one(backend: str) -> None:
    plain, net = network(), network()
    expected = step(plain, plain)
    found = step(torch.compile(net, backend=backend), net)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, found, strict=True))


def test_a_compiled_step_around_the_loss_gives_the_same_labels() -> None:
    logits, target = batch(2)
    plain, wrapped = (tc.CRFLoss(model(), method="cd", sweeps=2, seed=0) for _ in range(2))
    compiled = torch.compile(lambda x: wrapped(x * 1.0, target), backend="aot_eager")
    assert torch.equal(compiled(logits), plain(logits, target))


def test_a_checkpointed_network_learns_as_the_plain_one() -> None:
    plain, net = network(), network()
    expected = step(plain, plain)
    found = step(lambda image: checkpoint(net, image, use_reentrant=False), net)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_accumulated_parts_of_a_batch_sum_to_the_whole() -> None:
    logits, target = batch()
    index, sizes = torch.arange(3), torch.tensor(SIZES)
    whole, tables = grads(ragged(model(), reduction="sum")[0], logits, target, index, sizes=sizes)
    loss, _ = ragged(model(), reduction="sum")
    leaf = logits.clone().requires_grad_()
    for part in ([0, 1], [2]):
        loss(leaf[part], target[part], index[part], sizes=sizes[part]).backward()
    assert torch.equal(leaf.grad, whole)  # type: ignore[arg-type]
    assert torch.equal(loss.crf.pairwise.grad, tables)  # type: ignore[arg-type]


def test_autocast_and_a_gradient_scaler_work() -> None:
    net, crf = network(), model()
    loss = tc.CRFLoss(crf, method="cd", sweeps=2, seed=0)
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = crf.pairwise.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(net(torch.ones(2, 1, 8, 7)), batch(2)[1])
    scaler.scale(value).backward()
    scaler.step(optimizer)
    scaler.update()
    assert value.dtype == torch.float32
    assert not torch.equal(before, crf.pairwise)


def test_forgotten_tables_warn_once() -> None:
    crf = model()
    loss = tc.CRFLoss(crf, method="cd", sweeps=1, seed=0)
    assert list(loss.parameters()) == [crf.pairwise]
    logits, target = batch(1, (3, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(300):
            loss(logits.clone().requires_grad_(), target).backward()
    assert len(caught) == 1
    assert "loss.parameters() in the optimizer?" in str(caught[0].message)


def test_tables_that_learn_do_not_warn() -> None:
    crf = model()
    loss = tc.CRFLoss(crf, method="cd", sweeps=1, seed=0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    logits, target = batch(1, (3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            loss(logits, target).backward()
            optimizer.step()


def test_statistics_are_tensors_of_what_happened() -> None:
    loss = tc.CRFLoss(model(), method="cd", sweeps=2, seed=0)
    logits, target = batch()
    loss(logits, target)
    found = loss.statistics
    assert found is not None
    assert 0 < float(found.flip_rate) < 1
    assert 0 < float(found.chain_accuracy) < 1
    assert int(found.labelled) == target.numel()


FAULTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]], str]] = {
    "nan": (lambda x, y, i: {"logits": x.masked_fill(x > 2, torch.nan)}, "logits: expected finite .* got NaN"),
    "inf": (lambda x, y, i: {"logits": x.masked_fill(x > 2, torch.inf)}, r"logits: .* got \+inf in image"),
    "none allowed": (
        lambda x, y, i: {"logits": torch.full_like(x, -torch.inf), "target": torch.full_like(y, 255)},
        "logits: .* got no allowed label",
    ),
    "label": (lambda x, y, i: {"target": y + 3}, r"target: expected labels from 0 to 3 \(or 255\), got"),
    "forbidden": (
        lambda x, y, i: {"logits": x.masked_fill(x > 1, -torch.inf)},
        "target: expected labels that the logits allow",
    ),
    "index": (lambda x, y, i: {"index": i + 1}, "index: expected positions from 0 to 2, got 3"),
    "negative": (lambda x, y, i: {"index": i - 1}, "index: expected positions from 0 to 2, got -1"),
    "size": (
        lambda x, y, i: {"sizes": torch.tensor([[6, 7], [5, 5], [8, 6]])},
        r"sizes: .* got \[5, 5\] for image 1 of \[5, 4\]",
    ),
    "too large": (lambda x, y, i: {"sizes": torch.tensor([[6, 7], [9, 5], [8, 6]])}, "sizes: expected sizes from 1 to those"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_values_raise_at_once_and_move_no_chain(fault: str) -> None:
    logits, target = batch()
    given = {"logits": logits, "target": target, "index": torch.arange(3), "sizes": torch.tensor(SIZES)}
    loss, store = ragged(model())
    loss(**given)
    labels, sweeps = store.labels.clone(), store.sweeps.clone()
    change, sentence = FAULTS[fault]
    with pytest.raises(ValueError, match=sentence):
        loss(**{**given, **change(logits, target, given["index"])})
    assert torch.equal(labels, store.labels)
    assert torch.equal(sweeps, store.sweeps)
    loss(**given)


@pytest.mark.parametrize("fault", FAULTS)
def test_where_values_may_not_be_waited_for_a_fault_voids_the_call(fault: str) -> None:
    logits, target = batch()
    given = {"logits": logits, "target": target, "index": torch.arange(3), "sizes": torch.tensor(SIZES)}
    loss, store = ragged(model(), validate=False)
    loss(**given)
    labels, sweeps = store.labels.clone(), store.sweeps.clone()
    change, sentence = FAULTS[fault]
    changed = {**given, **change(logits, target, given["index"])}
    changed["logits"] = changed["logits"].clone().requires_grad_()
    value = loss(**changed)
    value.backward()
    assert value.isnan()
    assert loss.invalid is not None
    assert bool(loss.invalid)
    assert changed["logits"].grad is not None
    assert not changed["logits"].grad.any()
    assert loss.crf.pairwise.grad is not None
    assert not loss.crf.pairwise.grad.any()
    assert torch.equal(labels, store.labels)
    assert torch.equal(sweeps, store.sweeps)
    with pytest.raises(ValueError, match=sentence.split(":")[0] + ": .* in an earlier call"):
        loss(**given)
    assert loss(**given).isfinite()
    assert not bool(loss.invalid)


SHAPES: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"logits": torch.zeros(3, 5, 8, 7)}, ValueError, r"logits: expected shape \[N, 4, H, W\], got \[3, 5, 8, 7\]"),
    ({"logits": torch.zeros(3, 4, 8)}, ValueError, r"logits: expected shape \[N, 4, H, W\], got \[3, 4, 8\]"),
    ({"logits": torch.zeros(3, 4, 8, 7).int()}, TypeError, "logits: expected a floating-point dtype, got torch.int32"),
    ({"logits": torch.zeros(0, 4, 8, 7)}, ValueError, "logits: expected at least one image and one pixel"),
    ({"logits": torch.zeros(3, 4, 0, 7)}, ValueError, "logits: expected at least one image and one pixel"),
    ({"target": torch.zeros(3, 8, 6).long()}, ValueError, r"target: expected shape \[3, 8, 7\], got \[3, 8, 6\]"),
    ({"target": torch.zeros(3, 8, 7)}, TypeError, "target: expected an integer dtype, got torch.float32"),
    ({"index": None}, ValueError, r"index: expected integers \[N\], each image's position in the data set, got None"),
    ({"index": torch.zeros(2).long()}, ValueError, r"index: expected shape \[3\], got \[2\]"),
    ({"index": torch.zeros(3)}, TypeError, "index: expected an integer dtype"),
    ({"mask": torch.zeros(3, 8, 7)}, TypeError, "mask: expected torch.bool, got torch.float32"),
    ({"clamp": torch.zeros(3, 8, dtype=torch.bool)}, ValueError, r"clamp: expected shape \[3, 8, 7\]"),
    ({"sizes": torch.tensor([[8, 7]])}, ValueError, r"sizes: expected shape \[3, 2\], got \[1, 2\]"),
    ({"target": torch.zeros(3, 8, 7, device="meta").long()}, ValueError, "target: expected device cpu"),
]


@pytest.mark.parametrize(("wrong", "error", "sentence"), SHAPES)
def test_wrong_shapes_types_and_devices_raise(wrong: dict[str, object], error: type[Exception], sentence: str) -> None:
    logits, target = batch()
    loss, store = ragged(model(), validate=False)
    given = {"logits": logits, "target": target, "index": torch.arange(3), "sizes": torch.tensor(SIZES), **wrong}
    with pytest.raises(error, match=sentence):
        loss(**given)
    assert bool((store.labels == 255).all())


def test_a_clamped_pixel_needs_a_label() -> None:
    logits, target = batch()
    target[1, 2, 3] = 255
    loss = tc.CRFLoss(model(), method="cd", seed=0)
    with pytest.raises(ValueError, match=r"clamp: expected a label in target .* got ignore_index at index \[1, 2, 3\]"):
        loss(logits, target, clamp=torch.ones_like(target, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "chains: expected a ChainStore over the training images' sizes for method='pcd', got None"),
        ({"method": "sgd"}, "method: expected one of 'pcd', 'cd', got 'sgd'"),
        ({"method": "cd", "sweeps": 0}, "sweeps: expected an integer of at least 1, got 0"),
        ({"method": "cd", "ignore_index": 3}, "ignore_index: expected none of the 4 labels, got 3"),
        ({"method": "cd", "reduction": "max"}, "reduction: expected one of 'mean', 'sum', 'none', got 'max'"),
        ({"method": "cd", "weight": torch.ones(3)}, r"weight: expected 4 finite numbers of at least 0, one a label, got \[3\]"),
        ({"method": "cd", "weight": torch.tensor([1.0, 1, 1, -1])}, "weight: expected 4 finite numbers of at least 0"),
        ({"chains": tc.ChainStore([(4, 4, 4)])}, "chains: expected images of 2 axes"),
    ],
)
def test_wrong_options_raise(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tc.CRFLoss(model(), **options)  # type: ignore[arg-type]


def test_options_that_can_change_do_and_the_others_say_so() -> None:
    """K may follow a schedule, and the chains may be others."""
    loss = tc.CRFLoss(tc.GridCRF(3, tc.Neighborhood.nearest(4)), chains=tc.ChainStore([(4, 5)] * 2, seed=0), sweeps=2)
    logits, target = torch.zeros(1, 3, 4, 5, requires_grad=True), torch.zeros(1, 4, 5, dtype=torch.long)
    loss(logits, target, torch.tensor([0]))
    loss.sweeps = 5
    loss(logits, target, torch.tensor([0]))
    assert loss.chains is not None
    assert loss.chains.sweeps.tolist() == [7, 0]
    with pytest.raises(ValueError, match="sweeps: expected an integer of at least 1"):
        loss.sweeps = 0
    for name in ("method", "reduction", "ignore_index"):
        with pytest.raises(AttributeError):
            setattr(loss, name, getattr(loss, name))
