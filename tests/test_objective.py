"""The gradient of each objective is that of its definition, listed and differentiated by loops of this file's own.

The cross-entropy is exact given its contexts: autograd through conditionals that are the energies of all labels of one site.
The contexts are the chain's labels after the sweeps that they are said to be of. The margin's gradient is that of the
enumerated softmax-margin, within 5.5 standard errors.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tests import graph_cases as graphs
from tests import test_cli as cli
from tests import test_gradients_edges as seeing
from tests import test_loss_use as use
from tests import test_step as whole_step
from tests.test_loss import ALL, LABELS, SHAPE, Problem, energies, problem, sampled
from tritoncrf import contract, guard, reduction
from tritoncrf.cli import main
from tritoncrf.engines import triton
from tritoncrf.engines.soft import STEP
from tritoncrf.inputs import Known
from tritoncrf.objective import Objective, Soft

CONTEXTS = 3
# Triton's interpreter must be asked for before Triton is imported.
ENGINES = ["torch", "numba", *(["triton"] if "TRITON_INTERPRET" in os.environ else [])]


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What calls of the loss averaged over: labels [N, M * R, *shape], a call each."""
    found: list[Tensor] = []
    right = reduction.cross_entropy

    def listen(sampler: Any, batch: Any, free: Any, rows: list[Tensor], *rest: Any, **more: Any) -> Any:
        found.append(torch.cat([free.layout.crop(part, free.shape).clone() for part in rows], 1).long())
        return right(sampler, batch, free, rows, *rest, **more)

    monkeypatch.setattr("tritoncrf.reduction.cross_entropy", listen)
    return found


def answer(told: dict[str, Any], n: int, listed: Tensor, target: Tensor, counted: Tensor, exists: Tensor) -> Tensor:
    """``-sum_i log mean_k p(t_i | y'_k)`` of image n, site by site: contexts ``[M, H, W]``, the rest of all images."""
    total = torch.zeros((), dtype=torch.float64)
    for y, x in counted[n].nonzero().tolist():
        chances = []
        for context in listed:
            ways = context.clamp(max=LABELS - 1)[None].repeat(LABELS, 1, 1)
            ways[:, y, x] = torch.arange(LABELS)
            own = {name: None if told[name] is None else told[name][n] for name in ("kinds", "logits", "gates")}
            energy = seeing.energies(
                ways, exists[n], own["kinds"], own["logits"], told["pairwise"], told["gated"], own["gates"]  # type: ignore[arg-type]
            )
            chances.append((-energy).softmax(0)[target[n, y, x]])
        total = total - torch.stack(chances).mean().log()
    return total


def given(sees: str) -> tuple[tc.GridCRF, dict[str, Any], Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """(crf, what the oracle takes, target, counted, exists, arguments) of three images with all there is."""
    crf, logits, target, more, exists = seeing.batch(sees)
    # On rule 1's grid, so that oracle and sampler speak of the same energies.
    with torch.no_grad():
        for table in crf.parameters():
            table.copy_(torch.round(table * 4096) / 4096)
    logits = torch.round(logits * 4096) / 4096
    if "gates" in more:
        more["gates"] = more["gates"].nan_to_num(0.0)
        more["gates"] = torch.floor(more["gates"] * 128 + 0.5) / 128
    target = target.masked_fill(~exists, 0)
    clamp, labelled = torch.zeros_like(exists), exists.clone()
    clamp[0, 1] = clamp[2, :, 0] = True
    labelled[1, 0] = labelled[0, 3] = False
    target = target.masked_fill(~labelled & ~clamp, 255)
    told = {"logits": logits, "pairwise": crf.pairwise, "gated": crf.gated}
    told |= {name: more.get(name) for name in ("kinds", "gates")}
    return crf, told, target, labelled & ~clamp & exists, exists, more | {"clamp": clamp & exists}


def expected(
    told: dict[str, Any], listed: Tensor, target: Tensor, counted: Tensor, exists: Tensor, scale: Tensor
) -> list[Tensor | None]:
    """Value of each image, then gradients of ``scale`` times them by logits, pairwise, gated and gates."""
    names = ("logits", "pairwise", "gated", "gates")
    own = told | {
        name: None if told[name] is None else told[name].detach().nan_to_num(0.0).double().requires_grad_() for name in names
    }
    values = torch.stack([answer(own, n, listed[n], target, counted, exists) for n in range(len(listed))])
    (values * scale).sum().backward()  # type: ignore[no-untyped-call]
    return [values.detach(), *(None if own[name] is None else own[name].grad for name in names)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sees", ["nothing", "kinds", "gates", "both"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_cross_entropy_of_contexts_against_loops(sees: str, engine: str, replicas: int, contexts: list[Tensor]) -> None:
    if sees == "nothing" and replicas == 2:
        pytest.skip("as with kinds")
    crf, told, target, counted, exists, more = given(sees)
    store = tc.ChainStore(more["sizes"], seed=4, replicas=replicas, latent=True)
    loss = tc.CRFLoss(
        crf, chains=store, sweeps=5, engine=engine, reduction="none",
        objective=Objective(likelihood=0.0, cross_entropy=1.0, contexts=CONTEXTS),
    )  # fmt: skip
    logits = told["logits"].clone().requires_grad_()
    if "gates" in more:
        more["gates"] = more["gates"].clone().requires_grad_()
    scale = torch.tensor([1.0, -2.0, 0.5])
    values = loss(logits, target, torch.arange(3), **more)
    (values * scale).sum().backward()
    (listed,) = contexts
    assert listed.shape[1] == CONTEXTS * replicas
    value, *grads = expected(told, listed, target, counted, exists, scale.double())
    assert value is not None
    # What a gate makes of an entry the sampler puts on its grid once more.
    assert torch.allclose(values.detach().double(), value, atol=1e-4 if sees in ("nothing", "kinds") else 1e-3)
    seen = (logits, crf.pairwise, crf.gated, more.get("gates"))
    found = [None if part is None else part.grad for part in seen]
    for name, grad, wanted in zip(("logits", "pairwise", "gated", "gates"), found, grads, strict=True):
        assert (grad is None) == (wanted is None), name
        if grad is not None and wanted is not None:
            assert bool(wanted.any())
            assert torch.allclose(grad.double(), wanted, atol=2e-5 if sees in ("nothing", "kinds") else 5e-4), name


@pytest.mark.parametrize("engine", ENGINES)
def test_contexts_are_the_chain_after_those_of_its_sweeps(engine: str, contexts: list[Tensor]) -> None:
    """Which are those that a visit of so many sweeps ends with: chains depend on counts alone."""
    crf, told, target, _, _, more = given("kinds")
    ends = []
    for sweeps in (3, 5, 7):
        store = tc.ChainStore(more["sizes"], seed=4, latent=True)
        objective = Objective(cross_entropy=1.0, contexts=3) if sweeps == 7 else None
        loss = tc.CRFLoss(crf, chains=store, sweeps=sweeps, engine=engine, objective=objective)
        loss(told["logits"].clone().requires_grad_(), target, torch.arange(3), **more)
        ends.append(store.fetch(store.pixel_indices(torch.arange(3), (4, 5)))[:, 0].long())
    (listed,) = contexts
    assert listed.shape[1] == 3
    inside = ends[0] != 255
    for k, end in enumerate(ends):
        assert torch.equal(listed[:, k][inside], end[inside])
    assert not torch.equal(ends[0], ends[2])


def test_contexts_a_sweep_early_are_found(contexts: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "stops", lambda self, sweeps: [3, 4, 7] if self.cross_entropy else [])
    with pytest.raises(AssertionError):
        test_contexts_are_the_chain_after_those_of_its_sweeps("torch", contexts)


def test_the_default_is_the_likelihood_to_the_last_bit() -> None:
    plain, named = (errors_of({"objective": objective}) for objective in (None, Objective()))
    assert all(torch.equal(a, b) for a, b in zip(plain, named, strict=True))


def errors_of(options: dict[str, Any], images: slice = slice(None), sees: str = "both") -> list[Tensor]:
    """Value and gradients of the second visit, then the chains."""
    crf, told, target, _, _, more = given(sees)
    store = tc.ChainStore(more["sizes"], seed=4, replicas=2, latent=True)
    loss = tc.CRFLoss(crf, chains=store, sweeps=4, **options)
    for _ in range(2):
        logits = told["logits"].clone()[images].requires_grad_()
        crf.zero_grad()
        own = {name: part[images] for name, part in more.items()}
        loss(logits, target[images], torch.arange(3)[images], **own).sum().backward()
    assert crf.gated is not None
    found = [logits.grad, crf.pairwise.grad, crf.gated.grad]
    return [*(part for part in found if part is not None), store.labels, store.sweeps]


def test_weights_add_up_and_chains_stay_those_of_the_likelihood() -> None:
    """Sums of both alone, in any proportion; what is asked of a visit does not move its chains."""
    ways = Objective(), Objective(0.0, 1.0), Objective(0.5, 3.0)
    one, other, both = (errors_of({"reduction": "sum", "objective": update}) for update in ways)
    for a, b, c in zip(one[:3], other[:3], both[:3], strict=True):
        assert torch.allclose(0.5 * a + 3 * b, c, atol=1e-4)
    assert torch.equal(one[3], both[3])
    assert torch.equal(one[4], both[4])


@pytest.mark.parametrize("every", [1, 3])
def test_images_apart_or_together_change_no_bit(every: int) -> None:
    """A batch's sums are those of its images, in whatever order."""
    objective = Objective(likelihood=0.0, cross_entropy=1.0, contexts=2, every=every)
    options = {"reduction": "sum", "objective": objective}
    whole = errors_of(options)
    parts = [errors_of(options, slice(n, n + 1)) for n in range(3)]
    assert torch.equal(whole[0], torch.cat([part[0] for part in parts]))
    apart = errors_of(options | {"reduction": "none"})
    assert torch.allclose(apart[1], whole[1], atol=1e-6)
    for k in (1, 2):
        # The parts are float32 already.
        assert torch.allclose(whole[k], sum(part[k] for part in parts), atol=1e-6)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(errors_of(dict(options)), whole, strict=True))
    # Conditionals are each engine's own to the last bits, chains are not.
    for engine in ENGINES:
        *values, labels, sweeps = errors_of(options | {"engine": engine})
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values, whole[:-2], strict=True))
        assert torch.equal(labels, whole[-2])
        assert torch.equal(sweeps, whole[-1])


@pytest.mark.parametrize("shape", [(7, 10), (5,), (3, 4, 6)])
@pytest.mark.parametrize("every", [2, 3, 4, 7])
def test_each_pixel_is_asked_as_often(every: int, shape: tuple[int, ...]) -> None:
    """Remainders part the pixels, larger images begin alike, and each is drawn as often as the others."""
    # A stream that no phase and no swap of temperatures draws from.
    assert contract.ASKED not in {*contract.PURPOSES.values(), contract.SWAP, contract.INITIAL}
    objective, visits = Objective(cross_entropy=1.0, every=every), 4000
    index, count = torch.full((visits,), 5), 10 * torch.arange(visits)
    asked = objective.asked(shape, index, count, (1, 2))
    assert asked is not None
    kinds = torch.unique(asked.flatten(1), dim=0)
    assert bool((kinds.sum(0) == 1).all())
    assert len(kinds) == min(every, asked[0].numel()) + (every > asked[0].numel())
    # Within 5 standard deviations of a binomial.
    often = asked.float().mean(0)
    assert float((often - 1 / every).abs().max()) < 5 * (1 / every * (1 - 1 / every) / visits) ** 0.5
    larger = objective.asked(tuple(size + 3 for size in shape), index, count, (1, 2))
    assert larger is not None
    assert torch.equal(larger[(slice(None), *map(slice, shape))], asked)
    # No two neighbours along an axis, and another image draws for itself.
    assert all(not bool((asked.narrow(k + 1, 0, 2).sum(k + 1) > 1).any()) for k in range(len(shape)) if every > 3)
    other = objective.asked(shape, index + 1, count, (1, 2))
    assert other is not None
    assert not torch.equal(asked, other)
    assert Objective(cross_entropy=1.0).asked(shape, index, count, (1, 2)) is None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("moved", [False, True])
def test_asking_some_pixels_is_right_on_average(engine: str, moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over all remainders is what asking all pixels gives, value and gradients."""
    draw, every = contract.draw_uniform, 3
    margin = 0.2 if moved else 0.0
    options = {"engine": engine, "reduction": "sum", "objective": Objective(0.0, 1.0, 2, margin)}
    whole = errors_of(options)
    parts = []
    for remainder in range(every):
        def fixed(site: Tensor, count: Tensor, index: Tensor, replica: Any, purpose: int, key: Any) -> Tensor:
            found = draw(site, count, index, replica, purpose, key)
            return torch.full_like(found, (remainder + 0.5) / every) if purpose == contract.ASKED else found  # noqa: B023

        monkeypatch.setattr(contract, "draw_uniform", fixed)
        parts.append(errors_of(options | {"objective": Objective(0.0, 1.0, 2, margin, every)}))
        assert not torch.allclose(parts[-1][0], whole[0], atol=1e-3)
    for k, wanted in enumerate(whole):
        mean = torch.stack([part[k] for part in parts]).double().mean(0)
        assert torch.allclose(mean, wanted.double(), atol=1e-5), k


def softmax_margin(p: Problem, a: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of ``-log sum_{y fits} exp(-E) + log sum_y' exp(-E(y') + a |{labelled, free i: y'_i != t_i}|)``, and the
    variance of one sample's error, for logits and tables."""
    logits, pairwise = p.logits.clone().requires_grad_(), p.crf.pairwise.detach().clone().requires_grad_()
    energy = energies(logits, pairwise, p.mask)
    agrees = (ALL == p.target) | ~p.labelled
    data, free = agrees.flatten(1).all(1), (agrees | ~p.clamp).flatten(1).all(1)
    cost = a * (~agrees & ~p.clamp).flatten(1).sum(1)
    value = torch.logsumexp((cost - energy)[free], 0) - torch.logsumexp(-energy[data], 0)
    grads = torch.autograd.grad(value, [logits, pairwise])
    rows = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda x, tables: energies(x, tables, p.mask), (p.logits, p.crf.pairwise.detach()), vectorize=True
    )
    spread = []
    for row, grad in zip(rows, grads, strict=True):
        variance = torch.zeros_like(grad)
        for chosen, costs in ((free, cost), (data, torch.zeros_like(cost))):
            weight = torch.softmax((costs - energy.detach())[chosen], 0).view(-1, *[1] * grad.dim())
            variance += (weight * (row[chosen] - (weight * row[chosen]).sum(0)) ** 2).sum(0)
        spread.append(variance)
    return grads[0], grads[1], spread[0], spread[1]


def check_margin(case: dict[str, bool], a: float, images: int = 50, replicas: int = 1000) -> None:
    p = problem(**case)
    store = tc.ChainStore([SHAPE] * images, replicas=replicas, seed=1, latent=True)
    loss = tc.CRFLoss(p.crf, chains=store, sweeps=10, reduction="sum", objective=Objective(margin=a))
    found = sampled(p, loss, images, visits=2)
    grad, tables, *spread = softmax_margin(p, a)
    for mean, truth, variance in zip(found, (grad, tables), spread, strict=True):
        error = (mean - truth).abs()
        assert bool((error <= 5.5 * (variance / (images * replicas)).sqrt() + 1e-4).all()), float(error.max())
        assert float(error.max() / truth.abs().max()) <= 0.02


@pytest.mark.parametrize("case", [{}, {"latent": True, "clamp": True, "holes": True}], ids=["labelled", "all"])
def test_margin_has_the_gradient_of_the_enumerated_softmax_margin(case: dict[str, bool]) -> None:
    check_margin(case, 0.7)


@pytest.mark.parametrize("fault", ["sign", "none", "truth alone in the data phase"])
def test_a_wrong_margin_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Objective.favoured

    def wrong(self: Objective, logits: Tensor, known: Known) -> Tensor | None:
        if fault == "none":
            return None
        favoured = right(self, logits, known)
        assert favoured is not None
        return 2 * logits - favoured if fault == "sign" else 2 * favoured - logits

    monkeypatch.setattr(Objective, "favoured", wrong)
    with pytest.raises(AssertionError):
        check_margin({}, 0.7)


def test_contexts_of_a_margin_answer_without_it(contexts: list[Tensor]) -> None:
    """The chain is the cost's, the conditionals are the model's own."""
    crf, told, target, counted, exists, more = given("kinds")
    loss = tc.CRFLoss(
        crf, chains=tc.ChainStore(more["sizes"], seed=4, latent=True), sweeps=4, reduction="none",
        objective=Objective(likelihood=0.0, cross_entropy=1.0, contexts=2, margin=1.5),
    )  # fmt: skip
    values = loss(told["logits"].clone().requires_grad_(), target, torch.arange(3), **more)
    wanted, *_ = expected(told, contexts[0], target, counted, exists, torch.ones(3).double())
    assert wanted is not None
    assert torch.allclose(values.detach().double(), wanted, atol=1e-4)


@pytest.mark.parametrize("fault", ["even responsibilities", "transposed", "one end only", "sign"])
def test_planted_faults_of_the_cross_entropy_are_found(
    fault: str, contexts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reduction.cross_entropy

    def wrong(sampler: Any, batch: Any, free: Any, rows: list[Tensor], *rest: Any, **more: Any) -> Any:
        found = right(sampler, batch, free, rows, *rest, **more)
        if fault == "transposed":
            return found._replace(pairwise=found.pairwise.transpose(-1, -2))
        return found._replace(logits=-found.logits) if fault == "sign" else found

    monkeypatch.setattr("tritoncrf.reduction.cross_entropy", wrong)
    if fault == "even responsibilities":
        monkeypatch.setattr("tritoncrf.objective.LEAST", 1.0)
    if fault == "one end only":
        counts = tc.Sampler(tc.GridCRF(2, tc.Neighborhood.nearest(4)), "torch").engine.soft_counts
        monkeypatch.setattr("tritoncrf.engines.torch.soft_counts", lambda *given: 0.5 * counts(*given))
    contexts.clear()
    with pytest.raises(AssertionError):
        test_cross_entropy_of_contexts_against_loops("kinds", "torch", 1, contexts)


@pytest.mark.parametrize("name", graphs.FORMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_graphs_have_the_same_objective(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd through energies of all labels of one node, gates with theirs."""
    graph, crf = graphs.case(name), graphs.model(graphs.case(name))
    kept: list[Tensor] = []
    right = reduction.cross_entropy

    def listen(sampler: Any, batch: Any, free: Any, rows: list[Tensor], *rest: Any, **more: Any) -> Any:
        kept.extend(part[0, 0, :-1].long().clone() for part in rows)
        return right(sampler, batch, free, rows, *rest, **more)

    monkeypatch.setattr("tritoncrf.reduction.cross_entropy", listen)
    given = graphs.factor_graph(graph)
    gates = [None if gate is None else gate.clone().requires_grad_() for gate in given.gate]
    given = tc.FactorGraph(given.num_nodes, given.members, given.kind, gates)
    field, target = graphs.logits(graph).requires_grad_(), graphs.logits(graph).argmax(1)
    target[-1] = 255
    objective = Objective(likelihood=0.0, cross_entropy=1.0, contexts=3)
    loss = tc.CRFLoss(
        crf, chains=tc.ChainStore([(graph.nodes,)], seed=2, latent=True), sweeps=6, reduction="sum", engine=engine,
        objective=objective,
    )  # fmt: skip
    value = loss(field, target, torch.tensor([0]), graph=given)
    value.backward()
    found = [field.grad, *(table.grad for table in crf.factors), *(gate.grad for gate in gates if gate is not None)]
    parts = [field, *crf.factors, *(gate for gate in gates if gate is not None)]
    total = torch.zeros(())
    for v in range(graph.nodes - 1):
        ways = torch.stack(kept)[:, None].repeat(1, graph.labels, 1)
        ways[:, torch.arange(graph.labels), v] = torch.arange(graph.labels)
        energy = crf.energy(field.clamp(min=-300.0), ways.flatten(0, 1), given)[0].view(len(kept), graph.labels)
        total = total - (-energy).softmax(1)[:, target[v]].mean().log()
    assert float(value.detach()) == pytest.approx(float(total.detach()), abs=2e-3)
    for grad, wanted in zip(found, torch.autograd.grad(total, parts), strict=True):
        assert grad is not None
        assert torch.allclose(grad, wanted, atol=1e-3), float((grad - wanted).abs().max())
    assert len(kept) == 3


@pytest.mark.parametrize("name", graphs.FORMS)
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "triton"])
def test_asking_some_nodes_is_right_on_average(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, graph = contract.draw_uniform, graphs.case(name)
    given, target = graphs.factor_graph(graph), graphs.logits(graph).argmax(1)

    def errors(every: int, remainder: int = 0) -> list[Tensor]:
        def fixed(site: Tensor, count: Tensor, index: Tensor, replica: Any, purpose: int, key: Any) -> Tensor:
            found = draw(site, count, index, replica, purpose, key)
            return torch.full_like(found, (remainder + 0.5) / every) if purpose == contract.ASKED else found

        monkeypatch.setattr(contract, "draw_uniform", fixed)
        crf, field = graphs.model(graph), graphs.logits(graph).requires_grad_()
        chains = tc.ChainStore([(graph.nodes,)], seed=2)
        objective = Objective(0.0, 1.0, 2, every=every)
        loss = tc.CRFLoss(crf, chains=chains, sweeps=4, reduction="sum", engine=engine, objective=objective)
        value = loss(field, target, torch.tensor([0]), graph=given)
        value.backward()
        parts = [field.grad, *(table.grad for table in crf.factors)]
        return [value.detach(), *(part for part in parts if part is not None)]

    whole, parts = errors(1), [errors(2, remainder) for remainder in range(2)]
    assert not torch.allclose(parts[0][0], whole[0], atol=1e-3)
    for k, wanted in enumerate(whole):
        assert torch.allclose((parts[0][k] + parts[1][k]) / 2, wanted, atol=1e-5), k


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> Objective:
    """Losses that are made meanwhile have all of it."""
    full = Objective(likelihood=0.5, cross_entropy=2.0, contexts=2, margin=0.3, every=3)
    monkeypatch.setattr(tc, "CRFLoss", functools.partial(tc.CRFLoss, objective=full))
    return full


@pytest.mark.usefixtures("every")
@pytest.mark.parametrize(("method", "latent"), [("pcd", True), ("cd", False)])
def test_a_step_compiled_whole_does_as_the_plain_one(method: str, latent: bool) -> None:
    whole_step.same("aot_eager", method, latent, True, "numba")


@whole_step.NO_TRITON
@pytest.mark.usefixtures("every")
@pytest.mark.parametrize(("method", "latent", "replicas"), [("pcd", True, 2), ("cd", False, 1)])
def test_a_step_neither_waits_for_its_device_nor_copies_to_it(
    method: str, latent: bool, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "missing", lambda device, labels: None)
    monkeypatch.setattr(guard, "Deferred", whole_step.Unheard)
    assert whole_step.stalls(method, latent, replicas).found == []


@pytest.mark.usefixtures("every")
@pytest.mark.parametrize("fault", ["nan", "label", "forbidden", "none allowed", "index"])
def test_a_bad_call_is_void(fault: str) -> None:
    use.test_where_values_may_not_be_waited_for_a_fault_voids_the_call(fault)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_the_floats_that_they_are(dtype: torch.dtype) -> None:
    crf, told, target, _, _, more = given("kinds")
    found = []
    for kind in (dtype, torch.float32):
        logits = told["logits"].to(dtype).to(kind).requires_grad_()
        loss = tc.CRFLoss(crf, method="cd", sweeps=4, seed=1, objective=Objective(cross_entropy=1.0, margin=0.5))
        crf.zero_grad()
        loss(logits, target, **more).backward()
        assert crf.pairwise.grad is not None
        assert logits.grad is not None
        assert logits.grad.dtype == kind
        found.append((logits.grad.to(dtype), crf.pairwise.grad))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_what_does_not_learn_gets_nothing_and_a_label_weight_scales_all() -> None:
    crf, told, target, _, _, more = given("kinds")
    weight = torch.tensor([0.5, 2.0, 1.0])
    grads = []
    for scale in (None, weight):
        crf.zero_grad()
        crf.pairwise.requires_grad_(scale is None)
        objective = Objective(cross_entropy=1.0)
        loss = tc.CRFLoss(crf, method="cd", sweeps=4, seed=1, weight=scale, objective=objective)
        logits = told["logits"].clone().requires_grad_()
        loss(logits, target, **more).backward()
        assert logits.grad is not None
        grads.append(logits.grad)
        assert (crf.pairwise.grad is None) == (scale is not None)
    assert torch.allclose(grads[0] * weight[:, None, None], grads[1], atol=1e-7)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cross_entropy": -1.0}, "cross_entropy: expected a finite number of at least 0, got -1.0"),
        ({"margin": float("nan")}, "margin: expected a finite number of at least 0, got nan"),
        ({"margin": "1"}, "margin: expected a number, got str"),
        ({"contexts": 0}, "contexts: expected an integer from 1 to 65536, got 0"),
        ({"every": 0}, "every: expected an integer from 1 to 65536, got 0"),
        ({"every": 1.5}, "every: expected an integer, got 1.5"),
        ({"likelihood": 0.0}, "cross_entropy: expected a weight above 0 where that of the likelihood is 0, got 0.0"),
    ],
)
def test_wrong_objectives_raise(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        Objective(**options)


def test_a_visit_must_have_as_many_sweeps_as_contexts() -> None:
    crf = tc.GridCRF(3, tc.Neighborhood.nearest(4))
    told, averaged = "contexts: expected at most the 3 sweeps of a visit, got 4", Objective(cross_entropy=1.0)
    with pytest.raises(ValueError, match=told):
        tc.CRFLoss(crf, method="cd", sweeps=3, objective=averaged)
    loss = tc.CRFLoss(crf, method="cd", sweeps=4, objective=averaged)
    with pytest.raises(ValueError, match=told):
        loss.sweeps = 3
    assert loss.sweeps == 4
    with pytest.raises(TypeError, match="objective: expected an Objective or None, got str"):
        tc.CRFLoss(crf, method="cd", objective="margin")  # type: ignore[arg-type]


def test_the_command_line_learns_by_it_and_goes_on_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_net.py").write_text(cli.FACTORY)
    monkeypatch.chdir(tmp_path)
    toy = ["train", *cli.TOY, "--network", "cli_net:make"]
    asked = ["--cross-entropy", "0.5", "--contexts", "2", "--margin", "0.2", "--every", "3"]
    assert main([*toy, *asked, "--out", "whole"]) == 0
    assert main([*toy, "--out", "plain"]) == 0
    with pytest.raises(AssertionError, match=r"pairwise|network|chains"):
        cli.assert_same(tmp_path / "whole", tmp_path / "plain")
    monkeypatch.setenv("STOP_AFTER", "5")
    assert main([*toy, *asked, "--out", "stopped"]) == 130
    monkeypatch.delenv("STOP_AFTER")
    assert main(["train", "--resume", "stopped", "--network", "cli_net:make"]) == 0
    cli.assert_same(tmp_path / "whole", tmp_path / "stopped")
    capsys.readouterr()
    assert main([*toy, "--cross-entropy", "1", "--out", "few"]) == 2
    assert "contexts: expected at most the 2 sweeps of a visit, got 4" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
    sys.modules.pop("cli_net")
    sys.path.remove(str(tmp_path))


def test_flips_are_those_of_the_whole_visit() -> None:
    """A visit in pieces tells what one of a piece tells."""
    told = []
    for objective in (None, Objective(cross_entropy=1.0, contexts=3)):
        crf, own, target, _, _, more = given("kinds")
        loss = tc.CRFLoss(crf, method="cd", sweeps=7, seed=1, objective=objective)
        loss(own["logits"].clone().requires_grad_(), target, **more)
        assert loss.statistics is not None
        told.append(loss.statistics)
    assert float(told[0].flip_rate) > 0
    for name, value in vars(told[0]).items():
        assert torch.equal(value, getattr(told[1], name)), name


@pytest.mark.parametrize("kinds", [None, 3])
@pytest.mark.parametrize("labels", [2, 5, 9])
def test_soft_counts_have_the_same_bits_on_all_engines_and_in_any_order(labels: int, kinds: int | None) -> None:
    make = torch.Generator().manual_seed(labels)
    crf = tc.GridCRF(labels, tc.Neighborhood.grid(4, 2) | tc.Neighborhood.grid(1), kinds=kinds)
    form = (2, len(crf.neighborhood), 40, 60)
    given = None if kinds is None else torch.randint(0, kinds, form, generator=make).to(torch.uint8)
    sampler = tc.Sampler(crf, "torch")
    mask = torch.rand(2, 40, 60, generator=make) < 0.9
    chains = sampler.init(torch.randn(2, labels, 40, 60, generator=make), replicas=3, mask=mask, kinds=given)
    # Two labelings that mostly agree, as those of neighbouring sweeps do.
    rows = chains.rows.clone()
    rows[:, 1] = rows[:, 0].where(torch.rand(rows[:, 0].shape, generator=make) < 0.9, rows[:, 1])
    sites = chains.plan.free.flatten().nonzero()[:, 0]
    weights = (torch.rand(3, len(sites), labels, generator=make) * 2 - 1).div(STEP).round().mul(STEP)
    plan = replace(chains.plan, replicas=1)
    expected = sampler.engine.soft_counts(plan, rows, sites, weights)
    order = torch.randperm(len(sites), generator=make)
    for name in ENGINES:
        engine = tc.Sampler(crf, name).engine
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                assert torch.equal(engine.soft_counts(plan, rows, sites, weights), expected)
                assert torch.equal(engine.soft_counts(plan, rows, sites[order], weights[:, order]), expected)
        finally:
            torch.set_num_threads(threads)


def test_sums_of_tables_are_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ranks add up exactly."""
    found: list[Soft] = []
    right = reduction.cross_entropy

    def listen(*given: Any, **more: Any) -> Soft:
        found.append(right(*given, **more))
        return found[-1]

    monkeypatch.setattr("tritoncrf.reduction.cross_entropy", listen)
    errors_of({"objective": Objective(cross_entropy=1.0, contexts=2)})
    for soft in found:
        first, second, value = soft.numbers()
        assert bool(first.any())
        assert bool(second.any())
        again = soft.read(first, second, value)
        assert torch.equal(again.pairwise, soft.pairwise)
        assert torch.equal(again.gated, soft.gated)
        assert bool(((soft.pairwise / STEP) % 1 == 0).all())
