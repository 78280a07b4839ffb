"""The rows whose tables see the image: recipes, gates, stopped runs that go on, what is drawn and reported of them."""

from __future__ import annotations

import itertools
import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from bench.paper import lag, tuning
from bench.paper import run as running
from bench.paper.edges import crf_of, kind_names, maker, text_of
from bench.paper.figures import Work
from bench.paper.gates import Gated
from bench.paper.methods import METHODS, edges_of, learn, meanfield, sampling
from bench.paper.presets import DENSE, PRESETS, far
from bench.paper.settings import parse
from tests.test_paper_methods import problem
from tritoncrf import checkpoint, networks
from tritoncrf.batches import Batch
from tritoncrf.edge_trees import EdgeTree
from tritoncrf.edges import gaussian, steps


def test_texts_make_recipes_and_crfs() -> None:
    around = far()
    near, rest = maker("steps:0.2 on near", around), maker("steps:0.2 on far", around)
    assert len(near.neighborhood) == DENSE
    assert near.neighborhood.reach == (2, 2)
    assert min(max(map(abs, offset)) for offset in rest.neighborhood.offsets) == 6
    assert rest.neighborhood.offsets + near.neighborhood.offsets == around.offsets
    crf = crf_of(4, around, near)
    assert crf.pairwise.shape == (48, 3, 4, 4)
    assert crf.form.kinds_on == near.neighborhood
    assert crf_of(4, around, maker("steps:0.1,0.3", around)).form.kinds == 5
    weighed = crf_of(4, around, maker("gaussian:0.1", around))
    assert weighed.gated is not None
    assert (weighed.gated.shape, weighed.form.kinds) == ((1, 48, 4, 4), None)
    assert crf_of(4, around, None).pairwise.shape == (48, 4, 4)
    for preset in PRESETS.values():
        assert maker(preset.edges, preset.neighborhood).kinds == (3 if preset.edges.startswith("contrast") else 5)
        assert preset.edges.startswith("contrast") == (preset.file in ("cmp_facade.npz", "fasseg_frontal02.npz"))
    words = {name: text_of(word, PRESETS["half"]) for name in METHODS if (word := edges_of(name)) is not None}
    assert words == {
        "separate_kinds": "steps:0.1,0.3", "joint_kinds": "steps:0.1,0.3", "joint_kinds_ce": "steps:0.1,0.3",
        "joint_kinds_quick": "steps:0.1,0.3", "joint_gates": "network", "joint_gaussian": "gaussian:0.1",
        "meanfield5_kinds": "steps:0.1,0.3",
    }  # fmt: skip
    for text in ("steps:0.2 on top", "steps:0.2 on ", "stairs:0.2", "steps:"):
        with pytest.raises(ValueError, match="expected"):
            maker(text, around)


def test_kinds_have_names_in_their_order() -> None:
    around = tc.Neighborhood.nearest(2, ndim=1)
    image = torch.tensor([[[0.0, 0.4, 0.6, 0.6, 0.4, 0.0]]])
    told = maker("steps:0.1,0.3", around)
    names = kind_names(told)
    assert told.kinds == len(names)
    assert [names[kind] for kind in steps(image, around, told.numbers)[0, 0, :5].tolist()] == [
        "step up > 0.3", "0.1 < step up ≤ 0.3", "|step| ≤ 0.1", "0.1 < step down ≤ 0.3", "step down > 0.3",
    ]  # fmt: skip
    assert kind_names(maker("contrast:0.5,2", around)) == ["distance ≤ 0.5", "0.5 < distance ≤ 2", "distance > 2"]


def test_older_folders_go_on_and_other_recipes_do_not(tmp_path: Path) -> None:
    facades = PRESETS["facades"]
    running.claim(tmp_path / "a", facades, False)
    told = {name: value for name, value in asdict(facades).items() if name not in ("edges", "bandwidth")}
    (tmp_path / "a" / "run.json").write_text(json.dumps(told))
    running.claim(tmp_path / "a", facades, True)
    for change in ({"edges": "steps:0.2"}, {"bandwidth": 0.1}):
        with pytest.raises(FileExistsError, match="of another run"):
            running.claim(tmp_path / "a", replace(facades, **change), True)


def test_a_gated_network_keeps_its_logits_and_its_tables_move_first() -> None:
    torch.manual_seed(0)
    network, image = networks.small(1, 20, 6), torch.randn(2, 1, 12, 9)
    expected = network(image)
    gated = Gated(network, far(8, 4))
    assert gated.neighborhood.offsets == tuple(sorted(gated.neighborhood.offsets, key=lambda d: sum(s * s for s in d)))
    assert set(gated.neighborhood.offsets) == set(tc.Neighborhood.nearest(8).offsets)
    logits, gates = gated(image)
    assert torch.equal(logits, expected)
    assert gates.shape == (2, 1, 4, 12, 9)
    assert bool((gates - 0.5).abs().max() < 0.1)
    crf = crf_of(20, far(8, 4), gated)
    target = torch.randint(20, (2, 12, 9), generator=torch.Generator().manual_seed(1))
    loss = tc.CRFLoss(crf, method="cd", seed=0)
    loss(logits, target, gates=gates).backward()
    assert crf.gated is not None
    assert crf.gated.grad is not None
    assert bool(crf.gated.grad.any())
    assert gated.gate.weight.grad is not None
    assert not bool(gated.gate.weight.grad.any())
    with torch.no_grad():
        crf.gated.sub_(crf.gated.grad)
    logits, gates = gated(image)
    loss(logits, target, gates=gates).backward()
    assert bool(gated.gate.weight.grad.any())
    with pytest.raises(TypeError, match="network: expected a Sequential that ends in a convolution, got Linear"):
        Gated(torch.nn.Linear(2, 2), far())


def test_gaussian_tables_have_nothing_beside_the_kernel(tmp_path: Path) -> None:
    given = problem(epochs=1, images=3)
    learn("joint_gaussian", given, tmp_path)
    saved = checkpoint.tensors(checkpoint.read(tmp_path / "model.safetensors", kind="training"), "crf")
    assert not bool(saved["pairwise"].any())
    assert bool(saved["gated"].any())
    batch = Batch.of(next(iter(given.tests())), given.device)
    told = sampling.parts(given, "gaussian").edge_maker
    assert told is not None
    gates = told(batch.image).gates
    assert gates is not None
    assert torch.equal(gates, gaussian(batch.image, given.preset.neighborhood, 0.1))
    with pytest.raises(ValueError, match="edges: expected None or one of kinds, network, gaussian, got 'kind'"):
        sampling.parts(given, "kind")
    with pytest.raises(ValueError, match="edges: expected None or 'kinds', got 'network'"):
        meanfield.learn(given, tmp_path, iterations=1, edges="network")


def tables_of(folder: Path) -> dict[str, Tensor]:
    tree = checkpoint.read(folder / "model.safetensors", kind="training")
    return {**checkpoint.tensors(tree, "crf"), **checkpoint.tensors(tree, "network"), **checkpoint.tensors(tree, "pretrained")}


@pytest.mark.parametrize("row", ["joint_kinds", "joint_gates", "joint_gaussian"])
def test_a_stopped_row_goes_on_to_the_same_tables(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, forward = itertools.count(1), tc.CRFLoss.forward

    def stopped(self: tc.CRFLoss, logits: Tensor, target: Tensor, index: Tensor, **given: Any) -> Tensor:
        if next(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return forward(self, logits, target, index, **given)

    torch.manual_seed(1)
    learn(row, problem(), tmp_path / "through")
    with monkeypatch.context() as patch:
        patch.setattr(tc.CRFLoss, "forward", stopped)
        torch.manual_seed(1)
        with pytest.raises(KeyboardInterrupt):
            learn(row, problem(), tmp_path / "stopped")
    torch.manual_seed(2)
    learn(row, problem(), tmp_path / "stopped")
    parts, whole = tables_of(tmp_path / "stopped"), tables_of(tmp_path / "through")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert next(calls) == 8


def test_trees_are_grown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(epochs=1, images=3)
    batch = Batch.of(next(iter(given.tests())), given.device)
    first = learn("dtf", given, tmp_path)(batch)[1]
    monkeypatch.setattr(EdgeTree, "grow", lambda *_, **__: pytest.fail("grown again"))
    assert torch.equal(learn("dtf", given, tmp_path)(batch)[1], first)


@pytest.mark.parametrize("name", ["joint, edges steps:0.1,0.3", "separate, edges steps:0.2", "joint, edges contrast:0.8"])
def test_settings_with_edges_learn(name: str, tmp_path: Path) -> None:
    given, setting = problem(epochs=1, images=3), parse(name)
    found = tuning._row(given, setting, tmp_path / "work")
    assert 0 < float(str(found["validation_accuracy"])) <= 1


@pytest.mark.parametrize("row", ["joint_kinds", "joint_gates", "joint_gaussian"])
def test_finished_rows_answer_and_go_on_as_they_learned(row: str, tmp_path: Path) -> None:
    given = problem(epochs=1, images=3)
    given = replace(given, preset=replace(given.preset, burn_in=2, sweeps=4))
    torch.manual_seed(1)
    predict = learn(row, given, tmp_path / row)
    work = Work(given, tmp_path, (row,))
    kept = lag.Kept.of(work, row)
    for item in given.tests():
        batch = Batch.of(item, given.device)
        found, _ = kept.model.answers(batch, "pretrained", (6,), 1)
        assert torch.equal(found[6].long(), predict(batch)[1][0].argmax(0))
    batch = Batch.of(next(iter(given.loader(shuffle=False))), given.device)
    logits, _, (kinds, gates) = kept.model.asked(batch)
    crf, where = kept.model.crf, kept.chains.pixel_indices(batch.index.long(), tuple(batch.target.shape[1:]))

    def energy() -> float:
        return float(crf.energy(logits, kept.chains.fetch(where)[:, 0], kinds=kinds, gates=gates).detach())

    moved, before = kept.moved(batch, (7,))[0], energy()
    assert batch.clamp is not None
    tc.CRFLoss(crf, chains=kept.chains, sweeps=7)(
        logits.requires_grad_(), batch.labels, batch.index, clamp=batch.clamp, kinds=kinds, gates=gates
    )
    assert (energy() - before) / int((~batch.clamp).sum()) == pytest.approx(moved, abs=1e-5)


def test_figures_of_kinds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.paper import figures, figures_weights
    from tests.test_paper_figures import is_picture

    given = problem(epochs=1, images=3)
    learn("joint_kinds", given, tmp_path / "joint_kinds")
    said = figures.kinds(Work(given, tmp_path, ("joint_kinds",)), tmp_path / "kinds.png")
    assert said.startswith("tables of joint_kinds, steps:0.1,0.3, offset (")
    assert is_picture(tmp_path / "kinds.png")
    with pytest.raises(figures.NotThere, match="got none of joint_kinds"):
        figures.kinds(Work(given, tmp_path, ()), tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"tables: expected shape \[2, 3, 3\] as there are names, got \[3, 3, 3\]"):
        figures_weights.by_kind(torch.zeros(3, 3, 3), (0, 1), ["a", "b"], ["x", "y", "z"], tmp_path / "other.png")


def test_the_page_shows_rows_with_edges_and_what_was_tried(tmp_path: Path) -> None:
    from tests.test_paper_report import put, put_rows, row, written

    base = list(range(50, 90))
    gains = {"control": 0, "joint_pcd": 2, "meanfield5": 3, "joint_kinds": 4, "meanfield5_kinds": 5, "dtf": 1}
    folder = tmp_path / "results"
    put_rows(folder, [row(name, [part + gain for part in base]) for name, gain in gains.items()])
    put(folder, "tuning.json", [
        {"what": what, "setting": {"preset": "half", "images": 300, **more}, "seed": seed, "validation_accuracy": accuracy}
        for what, more, seed, accuracy in (
            ("joint", {}, 0, 0.87), ("joint", {}, 1, 0.88),
            ("joint, edges steps:0.2", {"edges": "steps:0.2"}, 0, 0.89),
            ("joint, edges steps:0.2", {"edges": "steps:0.2"}, 1, 0.89),
            ("joint, edges steps:0.1,0.3", {"edges": "steps:0.1,0.3"}, 0, 0.9),
        )
    ])  # fmt: skip
    text = written(folder, tmp_path)
    ours = "ours, joint PCD, tables by kind of edge"
    assert f"| {ours} | - | 73.50 | not measured |" in text
    section = text[text.index("## Tables that see the image") : text.index("## Half scale")]
    assert f"- **Holds**: {ours} is above control: the CNN with as many further visits (+4.00 points, +4.00 to" in section
    assert f"- **Holds**: {ours} is above ours, joint PCD, our K (+2.00 points, +2.00 to +2.00; no figure" in section
    assert f"- **Holds**: {ours} is above unrolled mean field, 5 iterations (+1.00 points" in section
    assert f"- **Differs from the claimed order**: {ours} is below unrolled mean field, 5 iterations, tables by kind" in section
    assert f"- Not measured: {ours} against ours, joint PCD, the network's own gates" in section
    assert "| steps:0.2 | joint | half | 300 | 89.00 ± 0.00 (2) | +1.50 |" in section
    assert "| steps:0.1,0.3 | joint | half | 300 | 90.00 | +3.00 |" in section
    assert f"| {ours} - ours, joint PCD, our K | - | +2.00 | +2.00 to +2.00 | above |  |" in text
    open_questions = text[text.index("## What the paper leaves open") : text.index("## What was tried")]
    assert "edges steps" not in open_questions
    put_rows(folder, [row("cnn", base)])
    (folder / "tuning.json").unlink()
    assert "## Tables that see the image" not in written(folder, tmp_path)
