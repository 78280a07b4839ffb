"""State lies where frameworks look for it: chains in `state_dict` and `.to`, no buffers, and a validation call moves none."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tritoncrf as tc

SIZES = [(6, 7)] * 6
TARGETS = torch.randint(0, 3, (6, 6, 7), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(6, 2, 6, 7, generator=torch.Generator().manual_seed(2))


class Model(nn.Module):
    """As a LightningModule or a user's wrapper holds them."""

    def __init__(self, seed: int = 0, persistent: bool = True, method: str = "pcd") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Conv2d(2, 3, 3, padding=1)
        crf = tc.GridCRF(3, tc.Neighborhood.nearest(8))
        chains = tc.ChainStore(SIZES, seed=seed, persistent=persistent)
        self.loss = tc.CRFLoss(crf, chains=chains if method == "pcd" else None, method=method, sweeps=3, seed=None)

    def forward(self, index: Tensor) -> Tensor:
        found: Tensor = self.loss(self.network(IMAGES[index]), TARGETS[index], index)
        return found

    @property
    def chains(self) -> tc.ChainStore:
        assert self.loss.chains is not None
        return self.loss.chains


def learn(model: Model, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(torch.tensor([step % 6, (step + 2) % 6])).backward()
        optimizer.step()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-2)


def test_chains_stand_in_the_state_and_move_with_the_loss() -> None:
    model = Model()
    names = {f"loss.chains.{name}" for name in ("labels", "sweeps", "sizes", "meta")}
    assert names <= set(model.state_dict())
    assert model.to("meta").chains.labels.device.type == "meta"
    assert model.chains.device.type == "meta"
    assert not any("chains" in name for name in Model(persistent=False).state_dict())


def test_chains_are_no_buffers_that_a_wrapper_sends_to_all_ranks_or_averages() -> None:
    assert [name for name, _ in Model().named_buffers()] == ["loss.visits"]
    # Behind all else, so that whoever pairs the states of a model and its copy entry by entry pairs them right.
    names = list(Model().state_dict())
    assert names[-4:] == [f"loss.chains.{name}" for name in ("labels", "sweeps", "sizes", "meta")]


@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_plain_saving_resumes_in_the_middle_on_the_same_bits(method: str) -> None:
    whole = Model(method=method)
    optimizer = adam(whole)
    learn(whole, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    learn(whole, optimizer, range(4, 9))
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = Model(seed=7, method=method)
    again = adam(resumed)
    resumed.load_state_dict(kept["model"])
    again.load_state_dict(kept["optimizer"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(resumed, again, range(4, 9))
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_fresh_store_under_loaded_tables_warns_once() -> None:
    model = Model()
    learn(model, adam(model), range(3))
    fresh = Model(persistent=False)
    state = {name: part for name, part in model.state_dict().items() if ".chains." not in name}
    fresh.load_state_dict(state)
    with pytest.warns(UserWarning, match="chains: expected those that the loaded tables were learned with"):
        learn(fresh, adam(fresh), range(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(fresh, adam(fresh), range(1, 3))
        # Neither do tables that nothing was learned into, nor chains that came with them.
        for other, given in ((Model(persistent=False), Model(persistent=False).state_dict()), (Model(), model.state_dict())):
            other.load_state_dict(given)
            learn(other, adam(other), range(1))


def test_a_state_of_other_images_changes_no_table() -> None:
    model, other = Model(), Model()
    other.loss.chains = tc.ChainStore([(6, 7)] * 5, seed=0)
    learn(model, adam(model), range(2))
    before = other.loss.crf.pairwise.detach().clone()
    with pytest.raises(tc.checkpoint.CheckpointError, match="chains: expected 'labels' of shape"):
        other.load_state_dict(model.state_dict())
    assert torch.equal(before, other.loss.crf.pairwise)


def test_a_deep_copy_has_no_chains_and_says_so() -> None:
    model = Model()
    learn(model, adam(model), range(2))
    copied = copy.deepcopy(model)
    assert copied.loss.chains is None
    assert copied.loss.crf is copied.loss.sampler.crf
    assert copied.loss.crf is not model.loss.crf
    assert torch.equal(copied.loss.crf.pairwise, model.loss.crf.pairwise)
    with pytest.raises(ValueError, match=r"chains: expected a ChainStore in loss.chains, got None"):
        copied(torch.tensor([0]))
    copied.eval()
    assert torch.isfinite(copied(torch.tensor([0])))
    copied.train().loss.chains = copy.deepcopy(model.chains)
    learn(copied, adam(copied), range(1))
    assert copied.chains.sweeps.tolist()[0] == model.chains.sweeps.tolist()[0] + 3
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    before = model.chains.labels.clone()
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    assert torch.equal(before, model.chains.labels)


def test_chains_may_be_set_and_are_looked_at() -> None:
    model = Model()
    store = tc.ChainStore(SIZES, seed=5)
    model.loss.chains = store
    model(torch.tensor([3]))
    assert store.sweeps.tolist() == [0, 0, 0, 3, 0, 0]
    assert model.loss.seed == 5
    for wrong, sentence in ((tc.ChainStore([(4,)]), "chains: expected images of 2 axes"), (3, "chains: expected a ChainStore"),
                            (None, "chains: expected a ChainStore over the training images' sizes")):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=sentence):
            model.loss.chains = wrong  # type: ignore[assignment]
    assert model.loss.chains is store


def neglected(model: Model, target: Tensor, clamp: Tensor, logits: Tensor) -> float:
    """-log p(y_i | labelled neighbours), a mean, by loops of its own."""
    crf, total, count = model.loss.crf, 0.0, 0
    tables = crf.pairwise.detach().double()
    for y, x in itertools.product(range(6), range(7)):
        if int(target[y, x]) == 255 or bool(clamp[y, x]):
            continue
        scores = logits[:, y, x].double().clone()
        for c, (dy, dx) in enumerate(crf.neighborhood.offsets):
            for sign in (1, -1):
                v, w = y + sign * dy, x + sign * dx
                if 0 <= v < 6 and 0 <= w < 7 and int(target[v, w]) != 255:
                    other = int(target[v, w])
                    scores -= tables[c, :, other] if sign == 1 else tables[c, other, :]
        total -= float(scores.log_softmax(0)[int(target[y, x])])
        count += 1
    return total / count


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_in_eval_mode_the_value_is_the_pseudolikelihood_of_what_is_labelled(engine: str) -> None:
    model = Model()
    model.loss = tc.CRFLoss(model.loss.crf, chains=model.chains, engine=engine)
    nn.init.normal_(model.loss.crf.pairwise, generator=torch.Generator().manual_seed(3))
    logits, target = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(4)), TARGETS[0].clone()
    target[1, 2] = target[4, :] = 255
    clamp = torch.zeros(6, 7, dtype=torch.bool)
    clamp[0, :3] = clamp[5, 5] = True
    found = model.loss.eval()(logits[None], target[None], clamp=clamp[None])
    assert float(found) == pytest.approx(neglected(model, target, clamp, logits), abs=2e-3)
    labelled = model.loss(logits[None], TARGETS[:1])
    whole = -model.loss.crf.log_pseudolikelihood(logits[None], TARGETS[:1]) / 42
    assert float(labelled) == pytest.approx(whole.item(), abs=2e-3)
    model.loss.train()
    with torch.no_grad():
        assert float(model.loss(logits[None], TARGETS[:1])) == float(labelled)


def test_the_value_in_eval_mode_falls_as_the_model_gets_better() -> None:
    """The sampled gap of a model that knows nothing is as near to 0 as a perfect one's."""
    model, target = Model(), torch.zeros(2, 6, 7, dtype=torch.long)
    target[:, :, 4:] = 1
    one_hot = nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    values = [float(model.loss.eval()(strength * one_hot, target)) for strength in (-2.0, 0.0, 1.0, 4.0, 40.0)]
    assert values == sorted(values, reverse=True)
    assert values[1] == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-3)
    assert values[-1] < 1e-6
    assert float(model.loss(-200 * one_hot, target)) == pytest.approx(87.3, abs=0.1)


@pytest.mark.parametrize("how", ["eval", "network.eval and no_grad", "inference_mode"])
def test_a_validation_call_moves_no_chain(how: str) -> None:
    model = Model()
    learn(model, adam(model), range(3))
    kept = {name: part.clone() for name, part in model.state_dict().items()}
    if how == "eval":
        model.eval()
        model(torch.tensor([0, 1]))
    elif how == "inference_mode":
        with torch.inference_mode():
            model(torch.tensor([0, 1]))
    else:
        model.network.eval()
        with torch.no_grad():
            model(torch.tensor([0, 1]))
    assert all(torch.equal(part, kept[name]) for name, part in model.state_dict().items())


def test_the_value_in_eval_mode_is_compiled_whole() -> None:
    from tritoncrf.visit_operator import OPERATOR

    if not OPERATOR:
        pytest.skip("this torch cannot carry a visit through a compiler")
    model = Model()
    nn.init.normal_(model.loss.crf.pairwise)
    model.eval()
    step = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(step(torch.tensor([1, 2])), model(torch.tensor([1, 2])))


def test_nothing_labelled_is_0_and_a_forbidden_label_is_an_error() -> None:
    model = Model()
    model.loss.eval()
    assert float(model.loss(torch.zeros(1, 3, 6, 7), torch.full((1, 6, 7), 255))) == 0.0
    logits = torch.zeros(1, 3, 6, 7)
    logits[0, 1] = -torch.inf
    with pytest.raises(ValueError, match="target: expected labels that the logits allow"):
        model.loss(logits, torch.ones(1, 6, 7, dtype=torch.long))


def test_a_store_from_a_device_without_memory_is_as_new() -> None:
    store = tc.ChainStore([(4, 5), (3, 2)], seed=3, replicas=2)
    fresh = {name: part.clone() for name, part in store.state_dict().items()}
    store.to("meta").to_empty(device="cpu")
    assert all(torch.equal(part, fresh[name]) for name, part in store.state_dict().items())
    assert store.offsets.tolist() == [0, 40]


def test_a_trainer_keeps_chains_that_a_state_leaves_out(tmp_path: Path) -> None:
    model = Model(persistent=False)
    learn(model, adam(model), range(2))
    trainer = tc.Trainer(model.network, model.loss.crf, loss=model.loss, quiet=True)
    trainer.save(tmp_path / "run")
    other = Model(seed=4, persistent=False)
    tc.Trainer(other.network, other.loss.crf, loss=other.loss, quiet=True).load(tmp_path / "run", resume=False)
    assert torch.equal(other.chains.labels, model.chains.labels)
    assert not any(".chains." in name for name in model.state_dict())


def test_what_speaks_to_other_ranks_is_copied_and_pickled() -> None:
    from tritoncrf.ranks import Ranks

    group = Ranks(object(), 1, 3)  # type: ignore[arg-type]
    assert copy.deepcopy(group) is group
    assert pickle.loads(pickle.dumps(group)) == Ranks(None, 1, 3)
