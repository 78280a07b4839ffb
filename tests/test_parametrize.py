"""Tables may be made of fewer numbers: `torch.nn.utils.parametrize` before ``pairwise`` or ``gated``, with kinds or not."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import checkpoint as files
from tritoncrf import monitor
from tritoncrf.checkpoint import CheckpointError
from tritoncrf.datasets import Figures, collate
from tritoncrf.edge_inputs import Edges

LABELS, SHAPE, IMAGES, KINDS, RANKS = 4, (5, 6), 2, 3, 2
HOOD = tc.Neighborhood.from_offsets([(0, 1), (1, 0), (1, -1)])
SOME = tc.Neighborhood.from_offsets([(1, -1), (0, 1)])


class Potts(nn.Module):
    """A weight per table against its labels being alike."""

    def __init__(self, labels: int = LABELS) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, weight: Tensor) -> Tensor:
        return weight[..., None, None] * torch.eye(self.labels, device=weight.device)

    def right_inverse(self, tables: Tensor) -> Tensor:
        return tables.diagonal(dim1=-2, dim2=-1).mean(-1)


class Symmetric(nn.Module):
    def forward(self, tables: Tensor) -> Tensor:
        return (tables + tables.transpose(-2, -1)) / 2


class LowRank(nn.Module):
    """Factors ``[..., L, 2]`` and ``[..., 2, L]``."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, tables: Tensor) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(tables)
        return u[..., :2] * s[..., None, :2], v[..., :2, :]


class NonNegative(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return F.softplus(raw)

    def right_inverse(self, tables: Tensor) -> Tensor:
        return tables.clamp(min=1e-3).expm1().log()


class Made(nn.Module):
    """A small network that makes a table of a code of 3 numbers."""

    def __init__(self, labels: int = LABELS) -> None:
        super().__init__()
        self.labels = labels
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, labels * labels))

    def forward(self, code: Tensor) -> Tensor:
        made: Tensor = self.net(code).unflatten(-1, (self.labels, self.labels))
        return made

    def right_inverse(self, tables: Tensor) -> Tensor:
        return tables[..., 0, :3].contiguous()


FORMS: dict[str, Callable[[], nn.Module]] = {
    "potts": Potts, "symmetric": Symmetric, "low rank": LowRank, "softplus": NonNegative, "network": Made
}  # fmt: skip
Where = str


def model(form: str, sees: str, where: Where = "pairwise", seed: int = 0) -> tc.GridCRF:
    torch.manual_seed(seed)
    extra: dict[str, Any] = {}
    if sees in ("kinds", "both"):
        extra |= {"kinds": KINDS, "kinds_on": SOME}
    if sees in ("gates", "both"):
        extra |= {"gates": RANKS, "gates_on": SOME, "gated": 0.4 * torch.randn(RANKS, 2, LABELS, LABELS)}
    tables = 0.3 * torch.randn(3, *([KINDS] if "kinds" in extra else []), LABELS, LABELS)
    crf = tc.GridCRF(LABELS, HOOD, tables, **extra)
    if form != "plain":
        for name in where.split("+"):
            parametrize.register_parametrization(crf, name, FORMS[form](), unsafe=True)
    return crf


def batch(sees: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    make = torch.Generator().manual_seed(3)
    logits = torch.randn(IMAGES, LABELS, *SHAPE, generator=make)
    target = torch.randint(0, LABELS, (IMAGES, *SHAPE), generator=make)
    given: dict[str, Any] = {}
    if sees in ("kinds", "both"):
        given["kinds"] = torch.randint(0, KINDS, (IMAGES, 2, *SHAPE), generator=make).to(torch.uint8)
    if sees in ("gates", "both"):
        given["gates"] = torch.rand(IMAGES, RANKS, 2, *SHAPE, generator=make)
    return logits, target, given


def frozen(crf: tc.GridCRF) -> tc.GridCRF:
    """A CRF of the same tables as plain parameters."""
    form, gated = crf.form, crf.gated
    extra: dict[str, Any] = {}
    if form.kinds is not None:
        extra |= {"kinds": form.kinds, "kinds_on": form.kinds_on}
    if form.gates:
        assert gated is not None
        extra |= {"gates": form.gates, "gates_on": form.gates_on, "gated": gated.detach()}
    return tc.GridCRF(crf.num_labels, crf.neighborhood, crf.pairwise.detach(), **extra)


CASES = [*itertools.product(FORMS, ["none", "kinds"], ["pairwise"]), *itertools.product(FORMS, ["both"], ["gated"]),
         ("symmetric", "both", "pairwise+gated"), ("network", "both", "pairwise+gated")]  # fmt: skip


@pytest.mark.parametrize(("form", "sees", "where"), CASES)
@pytest.mark.parametrize("what", ["pcd", "energy"])
def test_gradients_are_those_of_the_tables_by_the_chain_rule(form: str, sees: str, where: Where, what: str) -> None:
    crf = model(form, sees, where)
    plain, (logits, target, given) = frozen(crf), batch(sees)

    def value(model: tc.GridCRF) -> Tensor:
        if what == "energy":
            return model.energy(logits, target, **given).sum()
        store = tc.ChainStore([SHAPE] * IMAGES, seed=2, replicas=3)
        loss: Tensor = tc.CRFLoss(model, chains=store, sweeps=3)(logits, target, torch.arange(IMAGES), **given)
        return loss

    first, second = value(crf), value(plain)
    assert torch.equal(first, second)
    first.backward()  # type: ignore[no-untyped-call]
    second.backward()  # type: ignore[no-untyped-call]
    mine = dict(crf.named_parameters())
    assert len(mine) > len([name for name in mine if "parametrizations" not in name])
    # The tables once more, with the plain model's gradient as what flows back.
    targets = [getattr(crf, name) for name in ("pairwise", "gated") if getattr(plain, name) is not None]
    flows = [getattr(plain, name).grad for name in ("pairwise", "gated") if getattr(plain, name) is not None]
    expected = torch.autograd.grad(targets, list(mine.values()), flows)
    for (name, parameter), grad in zip(mine.items(), expected, strict=True):
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, grad, atol=1e-6), name
        # Symmetry and softplus pass something on everywhere; a factor or a code may not.
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize(("form", "sees", "where"), CASES)
def test_tables_keep_their_form_and_learn(form: str, sees: str, where: Where) -> None:
    crf = model(form, sees, where)
    logits, target, given = batch(sees)
    target = (torch.arange(6) // 2 % LABELS).expand(IMAGES, *SHAPE)
    loss = tc.CRFLoss(crf, chains=tc.ChainStore([SHAPE] * IMAGES, seed=2, replicas=8), sweeps=3)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.03)

    def fit() -> float:
        with torch.no_grad():
            return float(crf.log_pseudolikelihood(logits, target, **given).mean())

    before, tables = fit(), {name: getattr(crf, name).detach().clone() for name in where.split("+")}
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, target, torch.arange(IMAGES), **given).backward()
        optimizer.step()
    assert fit() > before + 0.5
    for name, table in tables.items():
        now = getattr(crf, name).detach()
        assert not torch.equal(now, table)
        if form in ("potts", "symmetric"):
            assert torch.equal(now, now.transpose(-2, -1))
        if form == "low rank":
            assert int(torch.linalg.matrix_rank(now.double(), atol=1e-5).max()) <= 2
        if form == "softplus":
            assert float(now.min()) > 0


@pytest.mark.parametrize("update", ["gather", "incremental", "auto"])
@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize(
    ("form", "sees", "where"),
    [("potts", "none", "pairwise"), ("network", "both", "gated"), ("symmetric", "kinds", "pairwise")],
)
def test_a_sampler_notices_changed_tables(form: str, sees: str, where: Where, engine: str, update: str) -> None:
    crf = model(form, sees, where)
    logits, _, given = batch(sees)
    assert crf.version is None
    sampler = tc.Sampler(crf, engine, seed=6, update=update)
    chains = sampler.run(sampler.init(logits, replicas=2, **given), 5)
    for turn in range(3):
        with torch.no_grad():
            for parameter in crf.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn)))
        plain = tc.Sampler(frozen(crf), "torch", seed=6, update="gather")
        twin = plain.init(logits, chains.labels, replicas=2, count=chains.sweeps, **given)
        start = chains.labels
        assert torch.equal(sampler.run(chains, 3).labels, plain.run(twin, 3).labels)
        assert not torch.equal(chains.labels, start)


@pytest.mark.parametrize("where", ["pairwise", "gated"])
def test_one_plain_parameter_and_one_that_is_made(where: Where) -> None:
    """A change of either is noticed, also of the one that counts its versions."""
    crf = model("symmetric", "both", where)
    logits, _, given = batch("both")
    sampler = tc.Sampler(crf, "numba", seed=1)
    chains = sampler.run(sampler.init(logits, **given), 4)
    for name, parameter in crf.named_parameters():
        with torch.no_grad():
            parameter.mul_(-1.5)
        plain = tc.Sampler(frozen(crf), "torch", seed=1, update="gather")
        twin = plain.init(logits, chains.labels, count=chains.sweeps, **given)
        assert torch.equal(sampler.run(chains, 2).rows, plain.run(twin, 2).rows), name


def trainer(form: str, sees: str, where: Where, chains: bool = True) -> tuple[tc.Trainer, DataLoader[object]]:
    data = tc.Indexed(Figures(6, seed=1, size=(24, 16), ragged=True))
    loader: DataLoader[object] = DataLoader(data, 2, shuffle=True, collate_fn=collate)
    torch.manual_seed(0)
    extra: dict[str, Any] = {"kinds": KINDS, "kinds_on": SOME} if sees in ("kinds", "both") else {}
    if sees in ("gates", "both"):
        extra |= {"gates": RANKS, "gates_on": SOME, "gated": 0.4 * torch.randn(RANKS, 2, 20, 20)}
    crf = tc.GridCRF(20, HOOD, 0.1 * torch.randn(3, *([KINDS] if "kinds" in extra else []), 20, 20), **extra)
    for name in where.split("+") if form != "plain" else ():
        made = Potts(20) if form == "potts" else Made(20) if form == "network" else FORMS[form]()
        parametrize.register_parametrization(crf, name, made, unsafe=True)
    net = nn.Conv2d(1, 20, 3, padding=1)

    def edges(image: Tensor) -> Edges:
        level = (image[:, :1] * 7).long()
        kinds = torch.cat([level, level + 1], 1).remainder(KINDS).to(torch.uint8) if "kinds" in extra else None
        gates = image[:, None].sigmoid().expand(-1, RANKS, 2, -1, -1) if "gates" in extra else None
        return Edges(kinds, gates)

    store = tc.ChainStore(data.sizes, seed=3) if chains else None
    loss = tc.CRFLoss(crf, chains=store, sweeps=2) if store is not None else None
    torch.manual_seed(1)
    return tc.Trainer(net, crf, loss=loss, quiet=True, edges=edges if extra else None), loader


def learn(folder: Path, form: str, sees: str, where: Where) -> tc.Trainer:
    """The script a user would run, and run again after it broke off."""
    made, loader = trainer(form, sees, where)
    path = folder / "run.safetensors"
    if path.exists():
        made.load(path)
    made.pretrain(loader, 1, checkpoint=path, every=1)
    made.fit(loader, "joint", epochs=2, checkpoint=path, every=1)
    return made


RUNS = [("plain", "both", "pairwise"), ("potts", "none", "pairwise"), ("low rank", "kinds", "pairwise"),
        ("network", "both", "pairwise+gated"), ("softplus", "gates", "gated")]  # fmt: skip


@pytest.mark.parametrize(("form", "sees", "where"), RUNS)
def test_a_run_resumes_bit_for_bit(form: str, sees: str, where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    done = learn(whole, form, sees, where)

    def state(made: tc.Trainer) -> dict[str, Tensor]:
        assert made.chains is not None
        return {**made.crf.state_dict(), **made.network.state_dict(), **made.chains.state_dict()}

    expected = state(done)
    original = tc.Trainer.save
    for stop in (2, 5, 8):
        folder, saves = tmp_path / str(stop), itertools.count(1)
        folder.mkdir()

        def save(self: tc.Trainer, path: Any, saves: Any = saves, stop: int = stop, **more: Any) -> None:
            original(self, path, **more)
            if next(saves) == stop:
                raise RuntimeError("stopped")

        with monkeypatch.context() as patch:
            patch.setattr(tc.Trainer, "save", save)
            with pytest.raises(RuntimeError, match="stopped"):
                learn(folder, form, sees, where)
        found = state(learn(folder, form, sees, where))
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), (stop, name)
    tree = files.read(whole / "run.safetensors", kind="training")
    assert torch.equal(files.tensor(tree, "pairwise"), done.crf.pairwise)


@pytest.mark.parametrize(
    ("saved", "into"),
    [
        (("plain", "none", "pairwise"), ("potts", "none", "pairwise")),
        (("potts", "none", "pairwise"), ("plain", "none", "pairwise")),
        (("potts", "kinds", "pairwise"), ("low rank", "kinds", "pairwise")),
        (("network", "both", "gated"), ("potts", "both", "gated")),
        (("symmetric", "both", "gated"), ("symmetric", "both", "pairwise")),
        (("potts", "none", "pairwise"), ("network", "none", "pairwise")),
    ],
)  # fmt: skip
def test_tables_parametrized_otherwise_are_refused(
    saved: tuple[str, str, str], into: tuple[str, str, str], tmp_path: Path
) -> None:
    path, first = tmp_path / "run.safetensors", trainer(*saved)[0]
    with torch.no_grad():
        for parameter in first.crf.parameters():
            parameter.add_(0.1)
    first.save(path)
    other = trainer(*into)[0]
    before = [value.clone() for value in (*other.crf.state_dict().values(), *other.network.state_dict().values())]
    with pytest.raises(CheckpointError, match=r"expected tables parametrized as this CRF's are, got others") as caught:
        other.load(path)
    assert "\n" not in str(caught.value)
    after = [*other.crf.state_dict().values(), *other.network.state_dict().values()]
    assert all(map(torch.equal, before, after))
    same = trainer(*saved)[0]
    same.load(path)
    kept = files.tensors(files.read(path, kind="training"), "crf")
    assert all(torch.equal(value, kept[name]) for name, value in same.crf.state_dict().items())


@pytest.mark.parametrize(("form", "sees", "where"), [("potts", "none", "pairwise"), ("network", "both", "pairwise+gated")])
def test_a_step_compiled_whole_does_as_the_plain_one(form: str, sees: str, where: Where) -> None:
    import torch._dynamo

    logits, target, given = batch(sees)
    found = []
    for compiler in (None, "aot_eager"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        crf = model(form, sees, where)
        store = tc.ChainStore([SHAPE] * IMAGES, seed=2)
        loss = tc.CRFLoss(crf, chains=store, sweeps=2)
        optimizer, index = torch.optim.SGD(loss.parameters(), lr=0.3), torch.arange(IMAGES)

        def step(x: Tensor, loss: tc.CRFLoss = loss, index: Tensor = index) -> Tensor:
            value: Tensor = loss(x * 1.0, target, index, **given)
            return value

        run = step if compiler is None else torch.compile(step, backend=compiler, fullgraph=True)
        left = []
        for _ in range(3):
            optimizer.zero_grad()
            value = run(logits)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            left += [value.detach(), *(parameter.detach().clone() for parameter in crf.parameters())]
        found.append([*left, store.labels, store.sweeps])
    # The tables themselves are computed in the graph, whose compiler may round them otherwise.
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6) if a.is_floating_point() else torch.equal(a, b)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_table_watch_sees_what_the_tables_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "PATIENCE", 5)
    logits, target, given = batch("none")
    index = torch.arange(IMAGES)
    for forgotten in (True, False):
        crf = model("potts", "none")
        loss = tc.CRFLoss(crf, chains=tc.ChainStore([SHAPE] * IMAGES, seed=2), sweeps=1)
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.0 if forgotten else 0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(12):
                loss(logits, target, index, **given).backward()
                if not forgotten:
                    optimizer.step()
        assert [str(one.message).startswith("crf.pairwise had gradients in 5 calls") for one in caught] == [True] * forgotten


@pytest.mark.parametrize("fault", ["out of bounds", "nan"])
def test_tables_that_cannot_be_raise_where_they_are_used(fault: str) -> None:
    crf = model("network", "both", "gated")
    logits, _, given = batch("both")
    sampler = tc.Sampler(crf)
    chains = sampler.init(logits, **given)
    with torch.no_grad():
        for parameter in crf.parametrizations.gated.parameters():  # type: ignore[union-attr]
            parameter.mul_(100 if fault == "out of bounds" else torch.nan)
    rows = chains.rows.clone()
    with pytest.raises(ValueError, match=r"^gated: expected entries of at most 16 in size, got"):
        sampler.run(chains, 1)
    assert torch.equal(chains.rows, rows)


def test_tables_move_with_the_module() -> None:
    crf = model("low rank", "both", "pairwise")
    assert crf.device == torch.device("cpu")
    assert crf.to("meta").device == torch.device("meta")
