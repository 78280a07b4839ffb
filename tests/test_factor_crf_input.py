"""Bad input of a model of graphs: one sentence that names the argument, what was expected and what was got; nothing moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import tritoncrf as tc
from tests.test_factor_crf import ENGINE, ragged
from tritoncrf import ChainStore, CRFLoss, FactorCRF, FactorGraph, GridCRF, Neighborhood, Sampler
from tritoncrf.engines import Plan
from tritoncrf.validation import Guard


def bad_calls() -> dict[str, tuple[Callable[[], object], str]]:
    crf, graphs, fields, targets = ragged()
    graph, field, target = graphs[0], fields[0], targets[0]
    grid = GridCRF(3, Neighborhood.nearest(4))
    sampler, loss = Sampler(crf, ENGINE), CRFLoss(crf, method="cd", engine=ENGINE)
    kinds = graph.having(kind=[torch.full((14,), 2, dtype=torch.uint8), None])
    image, square = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    hub = FactorGraph(70, [torch.stack([torch.zeros(69, dtype=torch.long), torch.arange(1, 70)], 1)])
    heavy = FactorCRF(3, (2,), factors=[torch.full((1, 3, 3), 8.0)])
    gated = FactorGraph(2, [torch.tensor([[0, 1]])], gate=[torch.tensor([0.5])])
    steep = FactorCRF(3, (2,), factors=[torch.full((1, 3, 3), 17.0)])
    two = FactorGraph.batch([hub, hub])
    infinite = field.clone()
    infinite[3, 1] = torch.nan
    return {
        "a graph for a lattice": (
            lambda: Sampler(grid, ENGINE).init(image, graph=graph),
            "graph: expected None for a GridCRF, whose neighbours are offsets, got FactorGraph",
        ),
        "a graph for a lattice's loss": (
            lambda: CRFLoss(grid, method="cd", engine=ENGINE)(image, square, graph=graph),
            "graph: expected None for a GridCRF",
        ),
        "no graph": (lambda: sampler.init(field), "graph: expected a FactorGraph for a FactorCRF, got NoneType"),
        "no graph, loss": (lambda: loss(field, target), "graph: expected a FactorGraph for a FactorCRF, got NoneType"),
        "no graph, answers": (lambda: tc.anneal(crf, field, engine=ENGINE), "graph: expected a FactorGraph"),
        "edges for a graph": (
            lambda: sampler.init(field, graph=graph.members[0]),  # type: ignore[arg-type]
            "graph: expected a FactorGraph .*, got Tensor",
        ),
        "other classes": (
            lambda: sampler.init(field, graph=gated),
            r"graph: expected factors of \(2, 3\) nodes, class by class, got \(2,\)",
        ),
        "sizes": (lambda: sampler.init(field, graph=graph, sizes=torch.tensor([[7]])), "sizes: expected None beside a graph"),
        "kinds": (lambda: loss(field, target, graph=graph, kinds=torch.zeros(1)), "kinds: expected None beside a graph"),
        "view": (lambda: loss(field, target, graph=graph, view=torch.zeros(1)), "view: expected None beside a graph"),
        "kind": (lambda: sampler.init(field, graph=kinds), r"kind\[0\]: expected kinds from 0 to 1, got 2 for factor 0"),
        "logits": (
            lambda: sampler.init(field[:6], graph=graph),
            r"logits: expected shape \[7, 3\], a row a node of the graph, got \[6, 3\]",
        ),
        "image logits": (lambda: loss(field.T[None], target, graph=graph), r"logits: expected shape \[7, 3\]"),
        "whole logits": (lambda: sampler.init(field.long(), graph=graph), "logits: expected a floating-point dtype"),
        "NaN": (
            lambda: sampler.init(infinite, graph=graph),
            r"logits: expected finite numbers .* got NaN in image 0 at pixel \(3,\)",
        ),
        "labels": (
            lambda: sampler.init(field, torch.zeros(2, 6), graph=graph),
            r"labels: expected shape \[7\] or \[R, 7\], one a node, got \[2, 6\]",
        ),
        "replicas": (
            lambda: sampler.init(field, torch.zeros(2, 7, dtype=torch.long), graph=graph, replicas=3),
            "labels: expected shape",
        ),
        "target": (lambda: loss(field, target[:5], graph=graph), r"target: expected shape \[7\], one a node, got \[5\]"),
        "target's values": (lambda: loss(field, target + 3, graph=graph), "target: expected labels from 0 to 2"),
        "mask": (lambda: sampler.init(field, graph=graph, mask=torch.ones(7)), "mask: expected torch.bool"),
        "clamp": (
            lambda: sampler.init(field, graph=graph, clamp=torch.ones(3, dtype=torch.bool)),
            r"clamp: expected shape \[7\]",
        ),
        "index": (lambda: sampler.init(field, graph=graph, index=torch.arange(7)), r"index: expected shape \[1\], got \[7\]"),
        "store's axes": (
            lambda: CRFLoss(crf, chains=ChainStore([(3, 4)]), engine=ENGINE),
            "chains: expected one axis, a graph's nodes, got 2",
        ),
        "store's sizes": (
            lambda: CRFLoss(crf, chains=ChainStore([(6,)]), engine=ENGINE)(field, target, torch.tensor([0]), graph=graph),
            "sizes: expected each image at the size its chain has",
        ),
        "a hub": (
            lambda: Sampler(heavy, ENGINE).init(torch.zeros(70, 3), graph=hub),
            "factors: expected 2 .* of a node's factors of at most 1023, got 1104 at node 0$",
        ),
        "a hub of a batch": (lambda: heavy.rounded(Guard(), heavy.tables, _plan(heavy, two)), "got 1104 at node 0 of graph 0"),
        "steep and gated": (
            lambda: Sampler(steep, ENGINE).init(torch.zeros(2, 3), graph=gated),
            "factors: expected entries of at most 16 in size where a gate weighs them, got 17",
        ),
        "infinite tables": (lambda: FactorCRF(2, (2,), factors=[torch.full((1, 2, 2), torch.inf)]), "factors: expected finite"),
        "arity": (lambda: FactorCRF(2, (5,)), r"arities\[0\]: expected an integer from 2 to 4, got 5"),
        "no classes": (lambda: FactorCRF(2, ()), "arities: expected a sequence of integers"),
        "kinds of classes": (lambda: FactorCRF(2, (2, 2), (1,)), "kinds: expected a number of tables for each of 2 classes"),
        "entries": (
            lambda: FactorCRF(255, (4,)),
            "arities: expected fewer than 2.31 entries of all tables together, got 4228250625",
        ),
        "tables": (
            lambda: FactorCRF(2, (2,), factors=[torch.zeros(2, 2)]),
            r"factors\[0\]: expected shape \[1, 2, 2\] \(kinds, then labels of each member\), got \[2, 2\]",
        ),
        "number of tables": (
            lambda: FactorCRF(2, (2,), factors=[]),
            "factors: expected a list with a table or None for each of 1",
        ),
        "whole tables": (
            lambda: FactorCRF(2, (2,), factors=[torch.zeros(1, 2, 2).long()]),
            r"factors\[0\]: expected a floating",
        ),
        "chains of another": (
            lambda: Sampler(heavy, ENGINE).run(sampler.init(field, graph=graph), 1),
            "chains: expected chains of 3 labels, factors of 1 kind of 2, got those of 3 labels, factors of 2 kinds",
        ),
        "chains of a lattice": (
            lambda: sampler.run(Sampler(grid, ENGINE).init(image), 1),
            "got those of 3 labels on a lattice",
        ),
        "chains of a graph": (
            lambda: Sampler(grid, ENGINE).run(sampler.init(field, graph=graph), 1),
            "chains: expected chains of 3 labels, Neighborhood",
        ),
        "gates one by one": (
            lambda: CRFLoss(crf, method="cd", reduction="none", engine=ENGINE)(
                field.clone().requires_grad_(), target, graph=graph.having(gate=[torch.rand(14, requires_grad=True), None])
            ),
            "reduction: expected 'mean' or 'sum' where a graph's gates want a gradient",
        ),
    }


def _plan(crf: FactorCRF, graph: FactorGraph) -> Plan:
    layout = crf.layouts.get(graph)
    return layout.plan(crf.num_labels, layout.shape, torch.arange(2), 1, None, None, None)


@pytest.mark.parametrize("what", bad_calls())
def test_bad_input_raises_one_sentence(what: str) -> None:
    call, message = bad_calls()[what]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_tables_move_no_chain() -> None:
    crf, graphs, fields, targets = ragged()
    store = ChainStore([(7,)], seed=0)
    loss = CRFLoss(crf, chains=store, engine=ENGINE)
    loss(fields[0].requires_grad_(), targets[0], torch.tensor([0]), graph=graphs[0]).backward()
    kept, sweeps = store.labels.clone(), store.sweeps.clone()
    with torch.no_grad():
        crf.factors[0] += 400
    with pytest.raises(ValueError, match="factors: expected 2"):
        loss(fields[0], targets[0], torch.tensor([0]), graph=graphs[0])
    assert torch.equal(kept, store.labels)
    assert torch.equal(sweeps, store.sweeps)
