"""What is told of edges and is wrong raises one sentence, and nothing moves; values that cannot be waited for void the call."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import diagnostics
from tritoncrf.checkpoint import CheckpointError
from tritoncrf.datasets import Figures, collate
from tritoncrf.edge_inputs import Edges

LABELS, SHAPE, IMAGES = 3, (4, 5), 2
HOOD = tc.Neighborhood.from_offsets([(0, 1), (1, 0), (1, -1)])
SOME = tc.Neighborhood.from_offsets([(1, -1), (0, 1)])
LOGITS, TARGET = torch.zeros(IMAGES, LABELS, *SHAPE), torch.zeros(IMAGES, *SHAPE, dtype=torch.long)


def model(sees: str = "both", **more: Any) -> tc.GridCRF:
    extra: dict[str, Any] = {}
    if sees in ("kinds", "both"):
        extra |= {"kinds": 4, "kinds_on": SOME}
    if sees in ("gates", "both"):
        extra |= {"gates": 2, "gates_on": SOME}
    return tc.GridCRF(LABELS, HOOD, **(extra | more))


def edges(sees: str = "both") -> dict[str, Any]:
    given = {"kinds": torch.ones(IMAGES, 2, *SHAPE, dtype=torch.uint8), "gates": torch.full((IMAGES, 2, 2, *SHAPE), 0.5)}
    return {name: value for name, value in given.items() if sees in (name, "both")}


def changed(name: str, value: float, *place: int) -> dict[str, Any]:
    given = edges()
    given[name][place] = value
    return given


def calls(crf: tc.GridCRF) -> dict[str, tuple[Callable[..., object], Callable[[], list[Tensor]]]]:
    """Everything that takes kinds and gates, and what it may not have moved when it raises."""
    store = tc.ChainStore([SHAPE] * IMAGES, seed=0)
    store.labels[0, :-1] = 1
    pcd, cd = tc.CRFLoss(crf, chains=store, sweeps=1), tc.CRFLoss(crf, method="cd", sweeps=1, seed=0)
    sampler, index = tc.Sampler(crf), torch.arange(IMAGES)

    def kept() -> list[Tensor]:
        return [store.labels.clone(), store.sweeps.clone(), cd.visits.clone(), crf.pairwise.detach().clone()]

    found: dict[str, Callable[..., object]] = {
        "init": lambda **given: sampler.init(LOGITS, **given),
        "pcd": lambda **given: pcd(LOGITS, TARGET, index, **given),
        "cd": lambda **given: cd(LOGITS, TARGET, **given),
        "marginals": lambda **given: tc.marginals(crf, LOGITS, sweeps=1, burn_in=1, **given),
        "max_marginal": lambda **given: tc.max_marginal(crf, LOGITS, sweeps=1, burn_in=1, **given),
        "anneal": lambda **given: tc.anneal(crf, LOGITS, sweeps=1, **given),
        "energy": lambda **given: crf.energy(LOGITS, TARGET, **given),
        "log_pseudolikelihood": lambda **given: crf.log_pseudolikelihood(LOGITS, TARGET, **given),
        "lag": lambda **given: diagnostics.lag(crf, store, LOGITS, index, sweeps=1, **given),
    }
    return {name: (call, kept) for name, call in found.items()}


CALLS = tuple(calls(model()))
Case = tuple[str, dict[str, Any], type[Exception], str]
KIND_SHAPE, GATE_SHAPE = f"[{IMAGES}, 2, 4, 5]", f"[{IMAGES}, 2, 2, 4, 5]"
CASES: list[Case] = [
    ("both", {"kinds": None}, ValueError,
     "kinds: expected a tensor for a model of 4 kinds on 2 classes, 2 gates on 2 classes, got None"),
    ("both", {"gates": None}, ValueError,
     "gates: expected a tensor for a model of 4 kinds on 2 classes, 2 gates on 2 classes, got None"),
    ("none", {"kinds": edges()["kinds"]}, ValueError,
     f"kinds: expected None for a model without kinds, got a tensor of shape {KIND_SHAPE}"),
    ("kinds", {"gates": edges()["gates"]}, ValueError,
     f"gates: expected None for a model without gates, got a tensor of shape {GATE_SHAPE}"),
    ("gates", {"kinds": edges()["kinds"]}, ValueError, "kinds: expected None for a model without kinds"),
    ("both", {"kinds": edges()["kinds"][:, :1]}, ValueError, f"kinds: expected shape {KIND_SHAPE}, got [2, 1, 4, 5]"),
    ("both", {"kinds": edges()["kinds"][:, :, 1:]}, ValueError, f"kinds: expected shape {KIND_SHAPE}, got [2, 2, 3, 5]"),
    ("both", {"kinds": edges()["kinds"][:1]}, ValueError, f"kinds: expected shape {KIND_SHAPE}, got [1, 2, 4, 5]"),
    ("both", {"gates": edges()["gates"][:, :1]}, ValueError, f"gates: expected shape {GATE_SHAPE}, got [2, 1, 2, 4, 5]"),
    ("both", {"gates": edges()["gates"][:, 0]}, ValueError, f"gates: expected shape {GATE_SHAPE}, got [2, 2, 4, 5]"),
    ("both", {"kinds": edges()["kinds"].long()}, TypeError, "kinds: expected torch.uint8, got torch.int64"),
    ("both", {"kinds": edges()["kinds"].bool()}, TypeError, "kinds: expected torch.uint8, got torch.bool"),
    ("both", {"gates": edges()["gates"].long()}, TypeError, "gates: expected a floating-point dtype, got torch.int64"),
    ("both", {"kinds": edges()["kinds"].to("meta")}, ValueError,
     "kinds: expected device cpu (that of the CRF's tables), got meta"),
    ("both", {"gates": edges()["gates"].to("meta")}, ValueError,
     "gates: expected device cpu (that of the CRF's tables), got meta"),
    ("both", {"kinds": [[1]]}, TypeError, "kinds: expected a torch tensor, got list"),
    ("both", {"gates": 0.5}, TypeError, "gates: expected a torch tensor, got float"),
    ("both", changed("kinds", 4, 1, 0, 2, 3), ValueError,
     "got 4 at pixel (2, 3) of image 1, of the edge to (1, -1) further on"),
    ("both", changed("kinds", 255, 0, 1, 3, 0), ValueError,
     "got 255 at pixel (3, 0) of image 0, of the edge to (0, 1) further on"),
    ("both", changed("gates", float("nan"), 1, 1, 1, 0, 2), ValueError,
     "gates: expected numbers from 0 to 1 where an edge is, got nan at pixel (0, 2) of image 1, of the edge to (0, 1)"),
    ("both", changed("gates", 1.5, 0, 0, 0, 1, 1), ValueError,
     "got 1.5 at pixel (1, 1) of image 0, of the edge to (1, -1) further on"),
    ("both", changed("gates", -0.1, 1, 0, 1, 3, 3), ValueError,
     "got -0.1 at pixel (3, 3) of image 1, of the edge to (0, 1) further on"),
    ("both", changed("gates", float("inf"), 1, 0, 1, 3, 3), ValueError, "got inf at pixel (3, 3) of image 1"),
]  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("sees", "wrong", "kind", "message"), CASES, ids=[case[3][:60] for case in CASES])
def test_bad_edges_raise_one_sentence_and_move_nothing(
    sees: str, wrong: dict[str, Any], kind: type[Exception], message: str, name: str
) -> None:
    crf = model(sees)
    call, kept = calls(crf)[name]
    before = kept()
    with pytest.raises(kind, match=re.escape(message)) as caught:
        call(**(edges(sees) | wrong))
    assert "\n" not in str(caught.value)
    assert all(map(torch.equal, before, kept()))
    # The call after it is none the worse.
    call(**edges(sees))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "given",
    [changed("kinds", 255, 0, 0, 3, 2), changed("kinds", 9, 1, 0, 1, 0), changed("kinds", 77, 0, 1, 2, 4),
     changed("gates", float("nan"), 0, 1, 0, 3, 2), changed("gates", -3.0, 1, 0, 1, 0, 4)],
)  # fmt: skip
def test_nothing_is_said_of_what_is_no_edge(given: dict[str, Tensor], name: str) -> None:
    """The last row has no edge to (1, -1), nor has the first column; the last column has none to (0, 1)."""
    calls(model())[name][0](**given)


@pytest.mark.parametrize(
    ("extent", "noticed"),
    [({"mask": torch.ones(IMAGES, *SHAPE, dtype=torch.bool)}, True), ({"sizes": torch.tensor([[4, 5], [4, 5]])}, True),
     ({"sizes": torch.tensor([[4, 5], [2, 5]])}, False), ({"sizes": torch.tensor([[4, 5], [4, 3]])}, False)],
)  # fmt: skip
def test_padding_has_no_edges(extent: dict[str, Any], noticed: bool) -> None:
    sampler, given = tc.Sampler(model()), changed("kinds", 4, 1, 1, 2, 2)
    if noticed:
        with pytest.raises(ValueError, match=r"kinds: .* got 4 at pixel \(2, 2\) of image 1, of the edge to \(0, 1\)"):
            sampler.init(LOGITS, **extent, **given)
    else:
        sampler.init(LOGITS, **extent, **given)
    for hole in ((2, 2), (2, 3)):
        mask = torch.ones(IMAGES, *SHAPE, dtype=torch.bool)
        mask[(1, *hole)] = False
        sampler.init(LOGITS, mask=mask, **given)


def test_gates_do_not_matter_to_pair_counts_but_kinds_do() -> None:
    crf = model()
    assert crf.pair_counts(TARGET, kinds=edges()["kinds"]).shape == (IMAGES, 3, 4, LABELS, LABELS)
    with pytest.raises(ValueError, match="kinds: expected a tensor for a model of 4 kinds on 2 classes, got None"):
        crf.pair_counts(TARGET)


FORMS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: model(kinds=0), ValueError, "kinds: expected an integer from 1 to 255, got 0"),
    (lambda: model(kinds=256), ValueError, "kinds: expected an integer from 1 to 255, got 256"),
    (lambda: model(kinds=2.0), TypeError, "kinds: expected an integer, got 2.0"),
    (lambda: model(gates=-1), ValueError, "gates: expected an integer from 0 to 255, got -1"),
    (lambda: model("kinds", gates_on=SOME), ValueError, "gates_on: expected None for a model without gates"),
    (lambda: model("gates", kinds_on=SOME), ValueError, "kinds_on: expected None for a model without kinds"),
    (lambda: model(kinds_on=[(0, 1)]), TypeError, "kinds_on: expected a Neighborhood, got list"),
    (lambda: model(kinds_on=tc.Neighborhood.from_offsets([(0, 2)])), ValueError,
     "kinds_on: expected offsets of the model's own neighbourhood, got (0, 2), not among them"),
    (lambda: model(gates_on=tc.Neighborhood.from_offsets([(1, 0), (0, -1)])), ValueError,
     "gates_on: expected offsets of the model's own neighbourhood, got (0, -1), its opposite is one: the same edges"),
    (lambda: model(pairwise=torch.zeros(3, 3, 3)), ValueError,
     "pairwise: expected shape [3, 4, 3, 3] (classes, kinds, labels, labels), got [3, 3, 3]"),
    (lambda: model("gates", pairwise=torch.zeros(3, 1, 3, 3)), ValueError,
     "pairwise: expected shape [3, 3, 3] (classes, labels, labels), got [3, 1, 3, 3]"),
    (lambda: model(gated=torch.zeros(2, 3, 3, 3)), ValueError,
     "gated: expected shape [2, 2, 3, 3] (gates, classes, labels, labels), got [2, 3, 3, 3]"),
    (lambda: model(gated=torch.zeros(2, 2, 3, 3).long()), TypeError, "gated: expected a floating-point dtype, got torch.int64"),
    (lambda: model("kinds", gated=torch.zeros(2, 2, 3, 3)), ValueError,
     "gated: expected None for a model without gates, got Tensor"),
    (lambda: model(gated=torch.full((2, 2, 3, 3), 16.01)), ValueError,
     "gated: expected entries of at most 16 in size, got 16.01"),
    (lambda: model(gated=torch.full((2, 2, 3, 3), torch.nan)), ValueError,
     "gated: expected entries of at most 16 in size, got nan"),
    (lambda: model(pairwise=torch.zeros(3, 4, 3, 3) + torch.tensor([0, 0, 0, torch.inf]).view(4, 1, 1)), ValueError,
     "pairwise: expected finite table entries, got NaN or infinity in class 0"),
    (lambda: model(pairwise=torch.full((3, 4, 3, 3), 170.0), gated=torch.full((2, 2, 3, 3), 1.0)), ValueError,
     "largest |entry|, gates' included, of at most 1023, got 1028, most of it in class 0 (344.0)"),
    (lambda: model("kinds", pairwise=torch.full((3, 4, 3, 3), 171.0)), ValueError,
     "pairwise: expected 2 * sum of each class's largest |entry| of at most 1023, got 1026"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), FORMS, ids=[f"{n}-{form[2][:40]}" for n, form in enumerate(FORMS)])
def test_models_that_cannot_be(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_bound_with_gates_is_reached() -> None:
    """2 * (3 * 169.5 + 2 * (1 + 0.5)) = 1023 is allowed."""
    gated = torch.tensor([1.0, -0.5]).view(2, 1, 1, 1).expand(2, 2, 3, 3)
    model(pairwise=torch.full((3, 4, 3, 3), 169.5), gated=gated)
    crf = model(pairwise=torch.full((3, 4, 3, 3), 169.5), gated=gated)
    sampler = tc.Sampler(crf)
    chains = sampler.init(LOGITS, **edges())
    rows = chains.rows.clone()
    assert crf.gated is not None
    with torch.no_grad():
        crf.gated[0, 0, 1, 1] = -1.01
    with pytest.raises(ValueError, match=r"gates' included, of at most 1023, got 1023\.02, most of it in class 2"):
        sampler.run(chains, 1)
    assert torch.equal(chains.rows, rows)
    assert chains.sweeps.tolist() == [0, 0]


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("both", {"kinds": 3}), ("both", {"kinds_on": None}), ("both", {"gates": 1}), ("both", {"gates_on": None}), ("none", {}),
    ("both", {"kinds_on": tc.Neighborhood.from_offsets([(0, 1), (1, -1)])}), ("kinds", {}), ("gates", {}),
]  # fmt: skip


@pytest.mark.parametrize(("sees", "more"), OTHERS)
@pytest.mark.parametrize("call", ["run", "conditionals", "pair_counts"])
def test_chains_of_another_model_are_refused(sees: str, more: dict[str, Any], call: str) -> None:
    mine, other = tc.Sampler(model()), tc.Sampler(model(sees, **more))
    chains = mine.run(mine.init(LOGITS, **edges()), 1)
    before, count = chains.rows.clone(), chains.count.clone()
    out = torch.zeros((*chains.plan.free.shape, LABELS), dtype=torch.float64)
    given = {"run": (chains, 1), "conditionals": (chains, out), "pair_counts": (chains,)}[call]
    with pytest.raises(ValueError, match=r"^chains: expected ") as caught:
        getattr(other, call)(*given)
    assert "\n" not in str(caught.value)
    assert torch.equal(chains.rows, before)
    assert torch.equal(chains.count, count)
    twin = mine.run(mine.init(LOGITS, **edges()), 3)
    assert torch.equal(mine.run(chains, 2).rows, twin.rows)


@pytest.mark.parametrize(("sees", "more"), OTHERS)
def test_a_checkpoint_of_other_edges_is_refused_and_changes_nothing(sees: str, more: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"

    def trainer(crf: tc.GridCRF) -> tc.Trainer:
        return tc.Trainer(nn.Conv2d(1, LABELS, 1), crf, quiet=True)

    saved = trainer(model(pairwise=torch.randn(3, 4, 3, 3)))
    saved.save(path)
    other = trainer(model(sees, **more))
    before = [parameter.detach().clone() for parameter in [*other.crf.parameters(), *other.network.parameters()]]
    sentence = f"{path}: expected a CRF of {other.crf.extra_repr()}, got one of "
    with pytest.raises(CheckpointError, match=re.escape(sentence)) as caught:
        other.load(path)
    assert str(caught.value).endswith(", 4 kinds on 2 classes, 2 gates on 2 classes")
    after = [*other.crf.parameters(), *other.network.parameters()]
    assert all(map(torch.equal, before, after))
    same = trainer(model())
    same.load(path)
    assert all(map(torch.equal, same.crf.parameters(), saved.crf.parameters()))


class Gating(nn.Module):
    """A network of as many outputs as told."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.layer = nn.Conv2d(1, 20, 1)

    def forward(self, image: Tensor) -> object:
        logits = self.layer(image)
        gates = torch.full((len(image), 2, 2, *image.shape[2:]), 0.5)
        return [logits, gates, gates][: self.outputs] if self.outputs else {"logits": logits}


def test_edges_and_networks_that_return_something_else() -> None:
    data = tc.Indexed(Figures(2, seed=1, size=(24, 16)))
    loader: DataLoader[object] = DataLoader(data, 2, collate_fn=collate)

    def kinds(image: Tensor) -> Tensor:
        return torch.zeros(len(image), 2, *image.shape[2:], dtype=torch.uint8)

    def trainer(outputs: int, edges: Any, sees: str = "both") -> tc.Trainer:
        extra: dict[str, Any] = {"kinds": 4, "kinds_on": SOME} if sees != "gates" else {}
        extra |= {"gates": 2, "gates_on": SOME} if sees != "kinds" else {}
        return tc.Trainer(Gating(outputs), tc.GridCRF(20, HOOD, **extra), edges=edges, quiet=True)

    faults: list[tuple[tc.Trainer, type[Exception], str]] = [
        (trainer(2, kinds), TypeError, "edges: expected a function from images to Edges(kinds, gates), got one to Tensor"),
        (trainer(2, lambda image: (kinds(image), None)), TypeError, "got one to tuple"),
        (trainer(3, None, "gates"), TypeError, "network: expected logits, logits and gates, or one of 'out'"),
        (trainer(0, None, "gates"), ValueError, "gates: expected a tensor for a model of 2 gates on 2 classes, got None"),
        (trainer(2, lambda image: Edges(kinds(image), torch.zeros(len(image), 2, 2, *image.shape[2:]))), ValueError,
         "edges: expected gates of the network or of `edges`, got both"),
        (trainer(2, None), ValueError, "kinds: expected a tensor for a model of 4 kinds on 2 classes"),
        (trainer(1, lambda image: Edges(kinds(image))), TypeError, "network: expected logits, logits and gates, or one of"),
    ]  # fmt: skip
    for made, kind, message in faults:
        before = [parameter.detach().clone() for parameter in made.crf.parameters()]
        for call in (lambda: made.fit(loader, epochs=1), lambda: made.evaluate(loader, sweeps=1, burn_in=1)):  # noqa: B023
            with pytest.raises(kind, match=re.escape(message)):
                call()
        assert all(map(torch.equal, before, made.crf.parameters()))
    right = trainer(2, lambda image: Edges(kinds(image)))
    right.fit(loader, epochs=1)
    assert 0 <= right.evaluate(loader, sweeps=2, burn_in=1).crf.accuracy <= 1


DEFERRED: dict[str, tuple[dict[str, Tensor], str]] = {
    "kind": (changed("kinds", 4, 1, 0, 2, 3), "kinds"),
    "nan gate": (changed("gates", float("nan"), 1, 1, 1, 0, 2), "gates"),
    "large gate": (changed("gates", 1.01, 0, 0, 0, 1, 1), "gates"),
    "negative gate": (changed("gates", -0.01, 0, 0, 0, 1, 1), "gates"),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("fault", [*DEFERRED, "gated", "mass"])
@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_what_cannot_be_waited_for_voids_the_call(method: str, fault: str, engine: str) -> None:
    """As on a GPU: a NaN loss, gradients of 0, chains as they were, an error at the next call; then all goes on."""
    crf = model(pairwise=torch.full((3, 4, 3, 3), 0.25))
    store = tc.ChainStore([SHAPE] * IMAGES, seed=0) if method == "pcd" else None
    loss = tc.CRFLoss(crf, chains=store, method=method, sweeps=1, engine=engine, seed=1, validate=False)
    index = torch.arange(IMAGES)

    def call(given: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        logits = LOGITS.clone().requires_grad_()
        gates = given["gates"].clone().requires_grad_()
        crf.zero_grad()
        value: Tensor = loss(logits, TARGET, index, kinds=given["kinds"], gates=gates)
        value.backward()  # type: ignore[no-untyped-call]
        assert crf.gated is not None
        grads = [logits.grad, gates.grad, crf.pairwise.grad, crf.gated.grad]
        return value.detach(), [grad for grad in grads if grad is not None]

    def kept() -> list[Tensor]:
        return [loss.visits.clone(), *([] if store is None else [store.labels.clone(), store.sweeps.clone()])]

    value, grads = call(edges())
    assert bool(value.isfinite())
    assert bool(grads[0].any())
    before = kept()
    given, name = DEFERRED.get(fault, (edges(), fault))
    tables = [parameter.detach().clone() for parameter in crf.parameters()]
    assert crf.gated is not None
    with torch.no_grad():
        if fault == "gated":
            crf.gated[1, 0, 2, 2] = 17
        if fault == "mass":
            crf.pairwise.fill_(170.4)
            crf.gated.fill_(-1)
            name = "pairwise"
    value, grads = call(given)
    assert bool(value.isnan())
    assert loss.invalid is not None
    assert bool(loss.invalid)
    assert len(grads) == 4
    assert not any(bool(grad.any()) for grad in grads)
    assert all(map(torch.equal, before, kept()))
    with torch.no_grad():
        for parameter, table in zip(crf.parameters(), tables, strict=True):
            parameter.copy_(table)
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got otherwise in an earlier call"):
        call(edges())
    assert bool(call(edges())[0].isfinite())
    assert not torch.equal(kept()[-1], before[-1])


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_chains_told_nonsense_that_cannot_be_waited_for_say_so_later(engine: str) -> None:
    sampler = tc.Sampler(model(), engine, validate=False)
    sampler.init(LOGITS, **changed("kinds", 200, 1, 0, 2, 3))
    with pytest.raises(ValueError, match=r"^kinds: expected .*, got otherwise in an earlier call"):
        sampler.init(LOGITS, **edges())
    twin = tc.Sampler(model(), engine)
    chains, expected = sampler.init(LOGITS, **edges()), twin.init(LOGITS, **edges())
    assert torch.equal(sampler.run(chains, 2).rows, twin.run(expected, 2).rows)
