"""What a user does around tables that see the image: buffers used again, recipes that do not fit, files of other times."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import checkpoint as files
from tritoncrf import monitor
from tritoncrf.checkpoint import CheckpointError, Tree
from tritoncrf.datasets import Figures, collate
from tritoncrf.edges import Edges, parse

NEAR = tc.Neighborhood.nearest(8)
ENGINES = ("torch", "numba")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(1, 20, 3, padding=1)


def loader(count: int = 4) -> DataLoader[object]:
    return DataLoader(tc.Indexed(Figures(count, seed=1, size=(24, 16))), 2, collate_fn=collate)


def state(trainer: tc.Trainer) -> list[Tensor]:
    return [value.clone() for part in (trainer.network, trainer.crf) for value in part.state_dict().values()]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_buffer_that_is_used_again_reaches_no_chain(engine: str) -> None:
    crf = tc.GridCRF(3, NEAR, torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)), kinds=2)
    kinds, logits = torch.zeros(1, 4, 9, 8, dtype=torch.uint8), torch.zeros(1, 3, 9, 8)
    sampler = tc.Sampler(crf, engine, seed=0)
    chains, twin = sampler.init(logits, kinds=kinds), sampler.init(logits, kinds=kinds.clone())
    before = sampler.pair_counts(chains).clone()
    kinds.fill_(255)
    assert torch.equal(sampler.pair_counts(chains), before)
    sampler.run(chains, 5, logits=logits + 0.5)
    sampler.run(twin, 5, logits=logits + 0.5)
    assert torch.equal(chains.labels, twin.labels)


@pytest.mark.parametrize(
    ("edges", "kinds", "sentence"),
    [
        (parse("steps:0.2", tc.Neighborhood.nearest(4)), 3, "expected 3 kinds and no gates over Neighborhood.4 classes"),
        (parse("contrast:0.2", NEAR), 5, "expected 5 kinds and no gates .* got 2 and no over"),
        (parse("gaussian:0.2", NEAR), 3, "got no and 1 over"),
        (nn.Conv2d(1, 4, 1), 3, "got a module with parameters, which would get no gradient"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_at_once(edges: Any, kinds: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"edges: .*{sentence}"):
        tc.Trainer(network(), tc.GridCRF(20, NEAR, kinds=kinds), edges=edges)


@pytest.mark.parametrize("edges", [None, lambda image: Edges(torch.zeros(len(image), 3, 24, 16, dtype=torch.uint8))])
def test_edges_are_looked_at_before_the_network_learns(edges: Any) -> None:
    net = nn.Conv2d(1, 20, 3, padding=1)
    trainer = tc.Trainer(net, tc.GridCRF(20, NEAR, kinds=3), edges=edges, quiet=True)
    before = net.weight.detach().clone()
    with pytest.raises(ValueError, match="kinds: expected"):
        trainer.pretrain(loader(), 1)
    assert torch.equal(net.weight, before)


def test_a_model_of_another_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    tc.Trainer(network(), tc.GridCRF(20, NEAR, kinds=3), edges=parse("steps:0.2", NEAR)).save(path)
    other = tc.Trainer(network(1), tc.GridCRF(20, NEAR, kinds=3), edges=parse("steps:5", NEAR))
    before = state(other)
    with pytest.raises(CheckpointError, match=r"expected a model whose tables see steps:5, got one of steps:0\.2"):
        other.load(path)
    assert all(map(torch.equal, state(other), before))
    tc.Trainer(network(), tc.GridCRF(20, NEAR, kinds=3), edges=parse("steps:0.2", NEAR)).load(path)


@pytest.mark.parametrize("part", ["pretrained", "loop", "extra", "loss", "history"])
def test_a_file_that_does_not_fit_changes_nothing(part: str, tmp_path: Path) -> None:
    path, data = tmp_path / "run.safetensors", loader()
    trainer = tc.Trainer(network(), tc.GridCRF(20, NEAR), quiet=True)
    trainer.pretrain(data, 1)
    trainer.fit(data, "joint", epochs=1)
    trainer.save(path)
    tree = files.read(path, kind="training")
    wrong: dict[str, Tree] = {"loss": {"strange": torch.zeros(2)}, "pretrained": {"strange": torch.zeros(2)}, "history": "none"}
    tree[part] = wrong.get(part, 7)
    files.write(path, tree, kind="training")
    crf = tc.GridCRF(20, NEAR)
    other = tc.Trainer(network(1), crf, loss=tc.CRFLoss(crf, method="cd", seed=0), quiet=True)
    before = state(other)
    with pytest.raises(CheckpointError):
        other.load(path)
    assert all(map(torch.equal, state(other), before))


def test_a_store_of_other_images_is_refused_at_every_call(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    trainer = tc.Trainer(network(), tc.GridCRF(20, NEAR), quiet=True)
    trainer.fit(loader(), "joint", epochs=1)
    trainer.save(path)
    other = tc.Trainer(network(), tc.GridCRF(20, NEAR), quiet=True)
    other.load(path, resume=False)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="chains: expected"):
            other.fit(loader(6), "joint", epochs=1)


def older(path: Path) -> None:
    """Makes a training file what it was before tables could see the image."""
    tree = files.read(path, kind="training")
    for name in ("crf", "kinds", "kinds_on", "gates", "gates_on", "edges"):
        tree.pop(name)
    if isinstance(tree["loss"], dict):
        tree["loss"].pop("crf._extra_state")
    files.write(path, tree, kind="training")


def test_files_from_before_load_and_not_into_parametrized_tables(tmp_path: Path) -> None:
    path, data = tmp_path / "run.safetensors", loader()
    trainer = tc.Trainer(network(), tc.GridCRF(20, NEAR), quiet=True)
    trainer.fit(data, "joint", epochs=1)
    trainer.save(path)
    older(path)
    again = tc.Trainer(network(1), tc.GridCRF(20, NEAR), quiet=True)
    again.load(path)
    assert torch.equal(again.crf.pairwise, trainer.crf.pairwise)

    class Symmetric(nn.Module):
        def forward(self, table: Tensor) -> Tensor:
            return table + table.transpose(-1, -2)

    crf = tc.GridCRF(20, NEAR)
    nn.utils.parametrize.register_parametrization(crf, "pairwise", Symmetric())
    other = tc.Trainer(network(1), crf, loss=tc.CRFLoss(crf, method="cd", seed=0), quiet=True)
    before = state(other)
    with pytest.raises(CheckpointError, match="expected tables parametrized as this CRF's are, got others"):
        other.load(path)
    assert all(map(torch.equal, state(other), before))


def test_a_crf_pickled_before_knows_that_it_sees_nothing() -> None:
    crf = tc.GridCRF(3, NEAR)
    kept = crf.__dict__.copy()
    del crf.__dict__["form"]
    del crf._parameters["gated"]
    again = pickle.loads(pickle.dumps(crf))
    assert again.form == kept["form"]
    assert again.gated is None
    assert tc.Sampler(again).init(torch.zeros(1, 3, 4, 4)).labels.shape == (1, 1, 4, 4)


def test_computed_tables_have_no_version_whatever_the_mode() -> None:
    crf = tc.GridCRF(3, NEAR)
    plain = crf.version
    assert plain is not None
    nn.utils.parametrize.register_parametrization(crf, "pairwise", nn.Tanh())
    with torch.no_grad():
        assert crf.version is None
    crf.requires_grad_(False)
    assert crf.version is None


def test_forgotten_gated_tables_are_noticed_and_gates_of_zero_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "PATIENCE", 6)
    for weight, warned in ((0.7, True), (0.0, False)):
        crf = tc.GridCRF(3, NEAR, gates=1)
        loss, gates = tc.CRFLoss(crf, method="cd", seed=0, engine="torch"), torch.full((1, 1, 4, 5, 6), weight)
        optimizer = torch.optim.SGD([crf.pairwise], 0.1)
        logits, target = torch.zeros(1, 3, 5, 6), torch.arange(30).view(1, 5, 6) % 3
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(12):
                loss(logits, target, gates=gates).backward()
                optimizer.step()
        assert any("crf.gated had gradients" in str(warning.message) for warning in caught) == warned


def test_a_model_in_double_precision_has_a_pseudolikelihood() -> None:
    crf = tc.GridCRF(3, NEAR, gates=2, gated=0.3 * torch.ones(2, 4, 3, 3)).double()
    found = crf.log_pseudolikelihood(
        torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.long), gates=torch.full((1, 2, 4, 4, 5), 0.5)
    )
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("given", [torch.zeros(0, dtype=torch.int64), torch.tensor(3), {"a": 1}, torch.tensor([3, 0, 0, 2, 9])])
def test_a_state_that_says_nothing_known_is_one_sentence(given: Any) -> None:
    with pytest.raises(ValueError, match=r"state: expected tables of 3 labels, .* those of a state that says nothing known"):
        tc.GridCRF(3, NEAR).load_state_dict({"pairwise": torch.zeros(4, 3, 3), "_extra_state": given})
