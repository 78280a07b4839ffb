"""A model of graphs learns, answers and is saved as one of lattices is: the same functions, against listing every labelling."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tests import enumeration
from tests.graph_cases import FORMS, case, factor_graph, logits, model
from tests.test_exactness_graphs import engines
from tritoncrf import ChainStore, CRFLoss, FactorCRF, FactorGraph, GridCRF, Neighborhood, Sampler, checkpoint, diagnostics
from tritoncrf.checkpoint import tensors

CASES = [(engine, name) for name in FORMS for engine in engines(name)]
ENGINE = "torch"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, shape)).float()


def pairs(nodes: int, edges: int, seed: int = 0) -> Tensor:
    """Random edges ``[F, 2]``, no node to itself."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, nodes, edges)
    return torch.from_numpy(np.stack([first, (first + rng.integers(1, nodes, edges)) % nodes], 1))


def ragged() -> tuple[FactorCRF, list[FactorGraph], list[Tensor], list[Tensor]]:
    """A model, graphs of 7, 4 and 9 nodes, their logits and targets."""
    crf = FactorCRF(3, (2, 3), (2, 1), [noise(2, 3, 3) * 0.5, noise(1, 3, 3, 3, seed=1) * 0.5])
    graphs, fields, targets = [], [], []
    for n, nodes in enumerate((7, 4, 9)):
        members = [pairs(nodes, 2 * nodes, n), torch.tensor([[0, 2, 3], [3, 1, 2]])]
        kind = [torch.from_numpy(np.random.default_rng(n).integers(0, 2, 2 * nodes)).to(torch.uint8), None]
        graphs.append(FactorGraph(nodes, members, kind, [torch.rand(2 * nodes), None] if n else None))
        fields.append(noise(nodes, 3, seed=n))
        targets.append(torch.from_numpy(np.random.default_rng(n).integers(0, 3, nodes)))
    return crf, graphs, fields, targets


def exact_gradient(name: str, target: Tensor, free: Tensor) -> tuple[list[Tensor], Tensor]:
    """Autograd through ``E(y) + log Z`` of every labelling listed; free: bool ``[V]``, others are held at the target."""
    graph, crf = case(name), model(case(name))
    listed, _ = graph.law()
    allowed = np.isfinite(graph.energies(listed)) & (listed == target.numpy())[:, ~free.numpy()].all(1)
    given = logits(graph).requires_grad_()
    energy = crf.energy(given, torch.from_numpy(listed[allowed]), factor_graph(graph))[0]
    field, *tables = torch.autograd.grad(
        crf.energy(given, target, factor_graph(graph))[0] + (-energy).logsumexp(0), [given, *crf.factors]
    )
    return tables, field


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize(("engine", "name"), CASES)
def test_gradients_against_an_enumerated_log_partition(engine: str, name: str, clamped: bool) -> None:
    """Within 5.5 standard errors, which the enumerated law gives, of the mean of 20000 chains."""
    graph, replicas = case(name), 20000
    listed, law = graph.law()
    target = torch.from_numpy(listed[int(law.argmax())])
    free = torch.ones(graph.nodes, dtype=torch.bool)
    free[0] = not clamped
    law = enumeration.joint(enumeration.given(graph.energies(listed), listed, {} if not clamped else {0: int(target[0])}))
    wanted, field = exact_gradient(name, target, free)
    crf = model(graph)
    chains = ChainStore([(graph.nodes,)], replicas=replicas, seed=5)
    loss = CRFLoss(crf, chains=chains, sweeps=12, reduction="sum", engine=engine)
    given = logits(graph).requires_grad_()
    loss(given, target, torch.tensor([0]), graph=factor_graph(graph), clamp=~free).backward()
    assert given.grad is not None
    possible = law > 0
    seen = np.stack([listed[possible] == label for label in range(graph.labels)], -1)
    spread = np.sqrt(np.maximum(law[possible] @ seen.reshape(len(seen), -1) ** 2, 1e-9)).reshape(graph.nodes, -1)
    assert ((given.grad - field).numpy() <= 5.5 * spread / np.sqrt(replicas) + 1e-4).all()
    assert ((field - given.grad).numpy() <= 5.5 * spread / np.sqrt(replicas) + 1e-4).all()
    for c, (own, exact) in enumerate(zip(crf.factors, wanted, strict=True)):
        assert own.grad is not None
        counts = np.zeros((int(possible.sum()), exact.numel()))
        for factor in graph.factors:
            if factor.c == c:
                labels = listed[possible][:, factor.nodes].T
                at = np.ravel_multi_index((np.full(len(counts), factor.kind), *labels), tuple(exact.shape))
                np.add.at(counts, (np.arange(len(counts)), at), factor.steps / 128)
        deviation = np.sqrt(law[possible] @ counts**2 - (law[possible] @ counts) ** 2 + 1e-9).reshape(exact.shape)
        worst = ((own.grad - exact).abs().numpy() / (5.5 * deviation / np.sqrt(replicas) + 2e-4)).max()
        assert worst <= 1, f"class {c}: {worst:.2f} of 5.5 standard errors"
    assert max(float(table.abs().max()) for table in wanted) > 0.1


def test_a_turned_sign_or_an_unweighed_count_fails_that_test(monkeypatch: pytest.MonkeyPatch) -> None:
    from tritoncrf.engines import torch_counts, torch_factors

    counts = torch_factors.factor_counts
    faults: list[Callable[[Tensor], Tensor]] = [lambda found: -found, lambda found: (found > 0).long() * 128]
    for fault in faults:
        monkeypatch.setattr(torch_counts, "factor_counts", lambda *given, fault=fault: fault(counts(*given)))
        with pytest.raises(AssertionError, match="standard errors"):
            test_gradients_against_an_enumerated_log_partition("torch", "clique", False)


def test_latent_nodes_are_completed() -> None:
    """The gradient of ``-log p(labelled)``: both phases sampled, the data phase held at the labelled nodes."""
    graph, replicas = case("cycle"), 20000
    listed, _ = graph.law()
    target = torch.tensor([1, 255, 0, 255, 2])
    energy = graph.energies(listed)
    phases = [enumeration.joint(energy), enumeration.joint(enumeration.given(energy, listed, {0: 1, 2: 0, 4: 2}))]
    free, data = (graph.expected_counts(p, listed)[0] for p in phases)
    crf = model(graph)
    chains = ChainStore([(5,)], replicas=replicas, seed=1, latent=True)
    loss = CRFLoss(crf, chains=chains, sweeps=12, reduction="sum", engine=ENGINE)
    loss(logits(graph).requires_grad_(), target, torch.tensor([0]), graph=factor_graph(graph)).backward()
    assert crf.factors[0].grad is not None
    assert np.abs(crf.factors[0].grad.numpy() - (data - free)).max() < 5.5 * 5 / np.sqrt(replicas) / 2


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_marginals_against_listing(engine: str, name: str) -> None:
    graph = case(name)
    listed, law = graph.law()
    wanted = enumeration.marginals(law, listed, graph.labels)
    given = FactorGraph.batch([factor_graph(graph)] * 2)
    field = logits(graph).repeat(2, 1)
    found = tc.estimate(model(graph), field, sweeps=40, burn_in=10, replicas=500, graph=given, engine=engine)
    assert found.marginals.shape == (2 * graph.nodes, graph.labels)
    assert found.traces.shape == (2, 500, 40)
    assert np.abs(found.marginals.numpy() - np.tile(wanted, (2, 1))).max() < 0.01
    # Nodes whose best label is no close call.
    top = np.sort(wanted, 1)
    sure = np.tile(top[:, -1] - top[:, -2] > 0.03, 2)
    assert np.array_equal(found.labels.numpy()[sure], np.tile(wanted.argmax(1), 2)[sure])
    best = listed[int(np.argmin(graph.energies(listed)))]
    annealed = tc.anneal(model(graph), logits(graph), replicas=8, graph=factor_graph(graph), engine=engine, sweeps=60)
    assert np.array_equal(annealed.numpy(), best)
    for answer in (tc.marginals, tc.max_marginal):
        told = answer(model(graph), logits(graph), sweeps=3, burn_in=1, graph=factor_graph(graph), engine=engine)
        assert len(told) == graph.nodes


def test_init_logits_draw_the_first_sample() -> None:
    crf, graphs, fields, _ = ragged()
    sure = torch.full((7, 3), -torch.inf)
    sure[:, 1] = 0.0
    sampler = Sampler(crf, ENGINE)
    chains = sampler.init(sure, graph=graphs[0])
    assert chains.labels.tolist() == [[1] * 7]
    sampler.run(chains, 3, logits=fields[0])
    again = sampler.run(sampler.init(fields[0], torch.ones(7, dtype=torch.long), graph=graphs[0]), 3)
    assert torch.equal(chains.labels, again.labels)


@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_a_graph_s_chain_does_not_depend_on_its_batch(method: str) -> None:
    crf, graphs, fields, targets = ragged()
    # A latent node in one of them.
    targets[1][2] = 255
    stores = []
    for batches in ([[0], [1], [2]], [[2, 0, 1]], [[1, 2], [0]]):
        store = ChainStore([(7,), (4,), (9,)], seed=3, replicas=2, latent=True)
        loss = CRFLoss(crf, chains=store, method=method, sweeps=4, engine=ENGINE)
        for _ in range(3):
            for some in batches:
                given = FactorGraph.batch([graphs[n] for n in some])
                field = torch.cat([fields[n] for n in some]).requires_grad_()
                loss(field, torch.cat([targets[n] for n in some]), torch.tensor(some), graph=given).backward()
        stores.append(store)
    for other in stores[1:]:
        assert torch.equal(stores[0].labels, other.labels)
        assert torch.equal(stores[0].sweeps, other.sweeps)


def test_errors_add_up_over_a_batch_and_stand_apart_without_a_reduction() -> None:
    crf, graphs, fields, targets = ragged()
    given = FactorGraph.batch(graphs)
    field, target = torch.cat(fields), torch.cat(targets)
    parts: dict[str, list[Tensor]] = {}
    for reduction in ("sum", "none"):
        crf.zero_grad()
        loss = CRFLoss(crf, method="cd", sweeps=3, reduction=reduction, engine=ENGINE, seed=9)
        own = field.clone().requires_grad_()
        value = loss(own, target, graph=given)
        assert value.shape == (torch.Size([3]) if reduction == "none" else torch.Size([]))
        value.sum().backward()
        assert own.grad is not None
        parts[reduction] = [own.grad, value.sum().detach(), *(t.grad.clone() for t in crf.factors if t.grad is not None)]
    for one, other in zip(parts["sum"], parts["none"], strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert torch.equal(parts["sum"][0].sum(1), torch.zeros(20))


def test_learned_gates_get_the_energy_s_difference() -> None:
    crf, graphs, fields, targets = ragged()
    learned = torch.rand(14, requires_grad=True)
    loss = CRFLoss(crf, chains=ChainStore([(7,)], seed=0), reduction="sum", engine=ENGINE)
    given = graphs[0].having(gate=[learned, None])
    loss(fields[0].requires_grad_(), targets[0], torch.tensor([0]), graph=given).backward()
    drawn = loss.chains.labels[0, :-1].long() if loss.chains is not None else targets[0]
    table, (members, _), kind = crf.factors[0].detach(), given.members, given.kind[0]
    assert kind is not None
    wanted = table[kind.long(), targets[0][members[:, 0]], targets[0][members[:, 1]]]
    wanted = wanted - table[kind.long(), drawn[members[:, 0]], drawn[members[:, 1]]]
    assert learned.grad is not None
    assert torch.allclose(learned.grad, wanted)
    assert bool(learned.grad.any())
    by_energy = torch.autograd.grad(crf.energy(fields[0], targets[0], given).sum(), learned)[0]
    assert torch.allclose(by_energy, table[kind.long(), targets[0][members[:, 0]], targets[0][members[:, 1]]])


def test_the_value_in_eval_mode_is_the_pseudolikelihood() -> None:
    crf, graphs, fields, targets = ragged()
    given, field, target = FactorGraph.batch(graphs), torch.cat(fields), torch.cat(targets)
    loss = CRFLoss(crf, method="cd", engine=ENGINE, reduction="none").eval()
    wanted = -crf.log_pseudolikelihood(field, target, given)
    assert torch.allclose(loss(field, target, graph=given), wanted, atol=2e-2)
    # Unlabelled nodes are left out as if they did not exist.
    target[3] = 255
    there = target != 255
    wanted = -crf.log_pseudolikelihood(field, target.masked_fill(~there, 0), given, mask=there)
    assert torch.allclose(loss(field, target, graph=given), wanted, atol=2e-2)


def test_pseudolikelihood_against_the_energies() -> None:
    crf, graphs, fields, targets = ragged()
    for graph, field, target in zip(graphs, fields, targets, strict=True):
        total = 0.0
        for node in range(graph.num_nodes):
            others = target.repeat(3, 1)
            others[:, node] = torch.arange(3)
            total += float((-crf.energy(field, others, graph)[0]).log_softmax(0)[target[node]].detach())
        found = crf.log_pseudolikelihood(field, torch.stack([target, target]), graph)
        assert found.shape == (1, 2)
        assert abs(float(found[0, 1]) - total) < 1e-3
    assert all(bool(grad.any()) for grad in torch.autograd.grad(found.sum(), list(crf.factors)))


def test_counts_are_the_energy_s_derivative() -> None:
    crf, graphs, fields, targets = ragged()
    given, field, target = FactorGraph.batch(graphs), torch.cat(fields), torch.cat(targets)
    grads = torch.autograd.grad(crf.energy(field, target, given).sum(), list(crf.factors))
    for grad, counts in zip(grads, crf.factor_counts(target, given), strict=True):
        assert counts.shape == (3, *grad.shape)
        assert torch.allclose(counts.sum(0).float(), grad)
    chains = Sampler(crf, ENGINE).init(field, target, graph=given)
    seen = crf.split(Sampler(crf, ENGINE).pair_counts(chains)[:, 0])
    for one, other in zip(seen, crf.factor_counts(target, given), strict=True):
        assert torch.equal(one / 128, other)


@pytest.mark.parametrize("update", ["gather", "incremental"])
def test_a_lattice_as_a_graph_has_the_lattice_s_energies_and_law(update: str) -> None:
    hood, shape = Neighborhood.from_offsets([(0, 1), (1, 0), (1, -1)]), (3, 2)
    table = torch.from_numpy(enumeration.on_grid(np.random.default_rng(0).normal(0, 0.7, (3, 2, 2)))).float()
    lattice, crf = GridCRF(2, hood, table), FactorCRF(2, (2, 2, 2), factors=[part[None] for part in table])
    joined = enumeration.edges(shape, hood.offsets)
    graph = FactorGraph(6, [torch.tensor([[i, j] for c, i, j in joined if c == own]) for own in range(3)])
    field = torch.from_numpy(enumeration.on_grid(noise(6, 2, seed=4).numpy())).float()
    image = field.T.reshape(1, 2, *shape)
    listed = torch.from_numpy(enumeration.labellings(6, 2))
    energies = crf.energy(field, listed, graph)
    assert torch.equal(energies, lattice.energy(image, listed.view(1, -1, *shape)))
    law = (-energies[0]).softmax(0).detach().numpy()
    for engine in ("torch", "numba"):
        sampler = Sampler(crf, engine, seed=1, update=update)
        drawn = sampler.run(sampler.init(field, graph=graph, replicas=50000), 10).labels
        counts = np.bincount(drawn.numpy().astype(np.int64) @ 2 ** np.arange(6)[::-1], minlength=64)
        assert ((counts - 50000 * law) ** 2 / (50000 * law)).sum() < 63 + 6 * np.sqrt(126)


def test_lag_looks_at_kept_chains() -> None:
    crf, graphs, fields, targets = ragged()
    store = ChainStore([(7,), (4,), (9,)], seed=0, replicas=2)
    loss = CRFLoss(crf, chains=store, engine=ENGINE)
    given, field, index = FactorGraph.batch(graphs), torch.cat(fields), torch.arange(3)
    with pytest.raises(ValueError, match="chains that PCD has visited"):
        diagnostics.lag(crf, store, field, index, graph=given, engine=ENGINE)
    loss(field.requires_grad_(), torch.cat(targets), index, graph=given).backward()
    kept = store.labels.clone()
    still = diagnostics.lag(crf, store, field.detach(), index, graph=given, engine=ENGINE)
    assert still.shape == (3, 2)
    with torch.no_grad():
        crf.factors[0] += 3 * torch.eye(3)
    moved = diagnostics.lag(crf, store, field.detach(), index, graph=given, engine=ENGINE)
    assert float(moved.mean()) < float(still.mean()) - 0.1
    assert torch.equal(kept, store.labels)


def test_chain_learning_finds_the_tables(record_property: Callable[[str, object], None]) -> None:
    """PCD on labels drawn from a model ends near it: the whole loop, ragged batches and all."""
    torch.manual_seed(0)
    true, graphs = FactorCRF(2, (2, 3), factors=[torch.tensor([[[0.0, 0.8], [0.4, 0.0]]]), noise(1, 2, 2, 2) * 0.6]), []
    for n in range(30):
        nodes = 20 + n
        triples = torch.stack([torch.randperm(nodes)[:3] for _ in range(nodes)])
        graphs.append(FactorGraph(nodes, [pairs(nodes, 2 * nodes, n), triples]))
    given, index = FactorGraph.batch(graphs), torch.arange(30)
    field = noise(given.num_nodes, 2) * 0.5
    sampler = Sampler(true, ENGINE, 0)
    target = sampler.run(sampler.init(field, graph=given), 60).labels[0].long()
    crf = FactorCRF(2, (2, 3))
    loss = CRFLoss(crf, chains=ChainStore([(g.num_nodes,) for g in graphs], seed=1), sweeps=3, engine=ENGINE)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    start = float(loss.eval()(field, target, graph=given))
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 60)
        optimizer.zero_grad()
        loss.train()(field, target, index, graph=given).backward()
        optimizer.step()
    end, best = (float(CRFLoss(m, method="cd", engine=ENGINE).eval()(field, target, graph=given)) for m in (crf, true))
    record_property("figures", f"{start:.4f} at zero tables, {end:.4f} learned, {best:.4f} the true ones")
    assert end < start - 0.8 * (start - best)


def test_states_files_copies_and_pickles(tmp_path: Path) -> None:
    crf, graphs, fields, targets = ragged()
    store = ChainStore([(7,), (4,), (9,)], seed=0)
    loss = CRFLoss(crf, chains=store, engine=ENGINE)
    given, index = FactorGraph.batch(graphs), torch.arange(3)

    def step(one: CRFLoss[FactorCRF]) -> list[Tensor]:
        one.zero_grad()
        one(torch.cat(fields).requires_grad_(), torch.cat(targets), index, graph=given).backward()
        return [table.grad.clone() for table in one.crf.factors if table.grad is not None]

    step(loss)
    checkpoint.write(tmp_path / "loss", {"loss": dict(loss.state_dict())}, kind="graphs")
    again = CRFLoss(FactorCRF(3, (2, 3), (2, 1)), chains=ChainStore([(7,), (4,), (9,)], seed=7), engine=ENGINE)
    again.load_state_dict(tensors(checkpoint.read(tmp_path / "loss", kind="graphs"), "loss"))
    pickled = pickle.loads(pickle.dumps(loss))
    copied = copy.deepcopy(loss)
    copied.chains = copy.deepcopy(loss.chains)
    wanted = step(loss)
    for other in (again, pickled, copied):
        assert all(torch.equal(a, b) for a, b in zip(wanted, step(other), strict=True))
        assert isinstance(other.chains, ChainStore)
        assert torch.equal(store.labels, other.chains.labels)
    told = "3 labels, factors of 2 kinds of 2, 1 kind of 2, got those of 3 labels, factors of 2 kinds of 2, 1 kind of 3"
    with pytest.raises(ValueError, match=re.escape(f"state: expected tables of {told}")):
        FactorCRF(3, (2, 2), (2, 1)).load_state_dict(crf.state_dict())
    assert repr(crf).startswith("FactorCRF(\n  3 labels, factors of 2 kinds of 2, 1 kind of 3")
    assert crf.double().factors[0].dtype == torch.float64
    assert len(pickle.loads(pickle.dumps(crf)).layouts) == 0


def test_a_compiled_step_breaks_its_graph_and_keeps_its_numbers() -> None:
    crf, graphs, fields, targets = ragged()
    values = []
    for compiled in (False, True):
        loss = CRFLoss(crf, method="cd", engine=ENGINE, seed=4)

        def step(field: Tensor, loss: CRFLoss[FactorCRF] = loss) -> Tensor:
            value: Tensor = loss(field * 2, targets[0], graph=graphs[0])
            return value

        run = torch.compile(step, backend="eager") if compiled else step
        values.append(run(fields[0].clone().requires_grad_()))
    assert torch.equal(*values)


@pytest.mark.parametrize("arities", [(2,), (2, 3, 2), (4, 2)])
def test_engines_agree_on_larger_graphs(arities: tuple[int, ...]) -> None:
    """Labels, flips, counts and a loss's errors bit for bit, both updates; sums of conditionals to rounding."""
    rng = np.random.default_rng(len(arities))
    graphs = []
    for nodes in (150, 60, 211):
        members = [torch.from_numpy(np.stack([rng.permutation(nodes)[:k] for _ in range(2 * nodes)])) for k in arities]
        kind = [torch.from_numpy(rng.integers(0, 3, 2 * nodes)).to(torch.uint8) for _ in arities]
        gate = [torch.from_numpy(rng.random(2 * nodes)), *[None] * (len(arities) - 1)]
        graphs.append(FactorGraph(nodes, members, kind, gate))
    given = FactorGraph.batch(graphs)
    crf = FactorCRF(4, arities, [3] * len(arities), [noise(3, *[4] * k, seed=k) * 0.4 for k in arities])
    field, clamp = noise(given.num_nodes, 4), torch.from_numpy(rng.random(given.num_nodes) < 0.2)
    start = torch.where(clamp, torch.from_numpy(rng.integers(0, 4, given.num_nodes)), 255)
    seen: list[tuple[Tensor, ...]] = []
    for engine in engines("cycle" if max(arities) == 2 else "clique"):
        for update in ("gather", "incremental"):
            sampler = Sampler(crf, engine, 3, update=update)
            chains = sampler.init(field, start.expand(2, -1), graph=given, clamp=clamp, replicas=2)
            labels = sampler.run(chains, 9).labels
            out = torch.zeros((*chains.plan.free.shape, 4), dtype=torch.float64)
            energies = sampler.average(chains, 3, out)
            loss = CRFLoss(crf, chains=ChainStore([(g.num_nodes,) for g in graphs], seed=2), sweeps=3, engine=engine)
            own = field.clone().requires_grad_()
            crf.zero_grad()
            loss(own, labels[0].long(), torch.arange(3), graph=given).backward()
            assert own.grad is not None
            grads = [table.grad.clone() for table in crf.factors if table.grad is not None]
            told = (labels, chains.labels, chains.flips, sampler.pair_counts(chains), own.grad, *grads)
            seen.append((*told, out, energies))
    assert len(seen) >= 2
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0][:-2], other[:-2], strict=True))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(seen[0][-2:], other[-2:], strict=True))
