"""The Triton engine on graphs, in Triton's interpreter: the torch engine's labels, counts, energies and gradients.

As `tests/test_kernels_interpret.py` has it for lattices: the checks run in a process of their own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.graph_cases import drawn, same, walk
from tests.test_kernels_interpret import NO_TRITON, interpret, poison, watch
from tritoncrf import ChainStore, CRFLoss, FactorCRF, FactorGraph, Sampler, engines
from tritoncrf.engines import triton_graphs

__all__ = ["poison", "watch"]


@NO_TRITON
def test_the_checks_pass_in_the_interpreter() -> None:
    interpret(file=Path(__file__))


def batch() -> tuple[FactorCRF, FactorGraph, Tensor]:
    """Three graphs of unlike sizes, one without factors; kinds, gates, all arities, labels that nodes must not have."""
    crf, one, first = drawn(17, {4: 4, 2: 12, 3: 6}, 3, kinds=2, gated=True)
    _, two, second = drawn(9, {4: 2, 2: 7, 3: 3}, 3, kinds=2, gated=True, seed=5)
    empty = [torch.empty((0, arity), dtype=torch.int64) for arity in (4, 2, 3, 4, 2, 3)]
    three = FactorGraph(4, empty, two.kind and [part[:0] for part in two.kind if part is not None])
    logits = torch.cat([first, second, torch.zeros(4, 3)])
    logits[torch.tensor([0, 5, 20]), torch.tensor([2, 0, 1])] = -torch.inf
    return crf, FactorGraph.batch([one, two, three]), logits


CASES: dict[str, dict[str, object]] = {
    "two labels, one chain": {"factors": {2: 30}, "labels": 2, "replicas": 1},
    "gates": {"factors": {2: 20}, "labels": 5, "kinds": 3, "gated": True, "scale": 15.0},
    "far from equal": {"factors": {2: 20}, "labels": 5, "scale": 60.0},
    "triples": {"factors": {3: 12}, "labels": 9, "kinds": 2},
    "fours": {"factors": {4: 6}, "labels": 3},
    "no factors": {"factors": {2: 0}, "labels": 3},
}


@pytest.mark.parametrize("name", CASES)
def check_a_graph_moves_as_by_torch(name: str) -> None:
    given = dict(CASES[name])
    replicas = int(given.pop("replicas", 2))  # type: ignore[call-overload]
    problem = drawn(25, **given)  # type: ignore[arg-type]
    same(*(walk(engine, "auto", *problem, replicas, 3) for engine in ("triton", "torch")))


@pytest.mark.parametrize("clamped", [False, True])
def check_a_batch_moves_as_by_torch(clamped: bool) -> None:
    given = {"labels": torch.arange(30) % 2, "clamp": torch.arange(30) % 3 == 0} if clamped else {}
    same(*(walk(engine, "gather", *batch(), 2, 2, **given) for engine in ("triton", "torch")))


def check_a_step_learns_as_by_torch() -> None:
    """PCD with a node that has no label: value, chains and every gradient; a second visit reads the chains that were kept."""
    crf, graph, logits = batch()
    target = torch.arange(30) % 2
    target[3] = 255
    found = []
    for engine in ("triton", "torch"):
        loss = CRFLoss(crf, chains=ChainStore([(17,), (9,), (4,)], latent=True), engine=engine, sweeps=2, seed=3)
        own = logits.clone().requires_grad_()
        for table in crf.factors:
            table.grad = None
        for _ in range(2):
            value = loss(own, target, index=torch.arange(3), graph=graph)
            value.backward()
        assert own.grad is not None
        grads = [table.grad for table in crf.factors if table.grad is not None]
        found.append([value.detach(), own.grad, *grads, loss.chains.labels])  # type: ignore[union-attr]
    assert len(found[0]) == len(found[1]) > 3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def check_nothing_happens_where_a_call_is_bad() -> None:
    crf, graph, logits = batch()
    sampler = Sampler(crf, "triton", seed=1)
    chains = sampler.init(logits, graph=graph)
    before, out = chains.rows.clone(), torch.zeros(*chains.plan.free.shape, 3, dtype=torch.float64)
    engine, bad = sampler.engine, torch.ones((), dtype=torch.bool)
    flips = engine.sweep(chains.work, chains.rows, None, 2, 1.4, (1, 2), chains.count, 1, bad)
    energies = engine.conditionals(chains.work, chains.rows, None, 1.4, out, bad)
    assert torch.equal(chains.rows, before)
    assert not flips.any()
    assert not energies.any()
    assert not out.any()


@pytest.mark.parametrize("fault", ["stride", "axis", "void", "colours"])
def check_planted_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others read in the wrong order, the wrong axis's rows, another node's factors, colours that share a factor."""
    kept, listed = triton_graphs._ends, triton_graphs._nodes

    def ends(factors: engines.Factors) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        pointer, base, others, gates = kept(factors)
        if fault == "stride":
            others = others.flip(0).contiguous()
        if fault == "axis":
            base = torch.where(base > 0, base - 1, base)
        if fault == "void":
            pointer = torch.cat([pointer[:1], pointer[:-1]])
        return pointer, base, others, gates

    def nodes(plan: engines.Plan, factors: engines.Factors) -> object:
        found = listed(plan, factors)
        return found._replace(starts=found.starts[:, [0, -1]].contiguous()) if fault == "colours" else found

    monkeypatch.setattr(triton_graphs, "_ends", ends)
    monkeypatch.setattr(triton_graphs, "_nodes", nodes)
    problem = drawn(25, {3: 30}, 3, kinds=2, scale=2.0)
    with pytest.raises(AssertionError):
        same(*(walk(engine, "gather", *problem, 2, 3) for engine in ("triton", "torch")))
