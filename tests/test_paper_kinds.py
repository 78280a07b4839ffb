"""Comparison methods whose tables an edge's kind chooses: each against a loop over pixels, or the library's own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritoncrf as tc
from bench.paper.methods import kinds as kinded
from bench.paper.methods import meanfield, pseudolikelihood
from bench.paper.methods.messages import Sites
from bench.paper.methods.messages import messages as unkinded
from tests.test_paper_methods import AROUND, LABELS, SHAPE, free_of, pixels, scene, state
from tritoncrf.batches import Batch
from tritoncrf.edge_inputs import Edges
from tritoncrf.lattice import Neighborhood

KINDS = 3


class Given:
    """A maker of kinds that are told, whatever the image."""

    gates = 0

    def __init__(self, kinds: Tensor, neighborhood: Neighborhood = AROUND) -> None:
        self.told, self.neighborhood, self.kinds = kinds, neighborhood, KINDS

    def __call__(self, image: Tensor) -> Edges:
        return Edges(self.told)


def kinds_and_tables(seed: int, on: Neighborhood = AROUND) -> tuple[Tensor, Tensor]:
    """Kinds uint8 ``[2, Ck, *SHAPE]`` and float64 tables ``[C, R, L, L]``."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randint(KINDS, (2, len(on), *SHAPE), generator=draw).to(torch.uint8)
    return kinds, torch.randn((len(AROUND), KINDS, LABELS, LABELS), generator=draw, dtype=torch.float64)


def field_by_loop(q: Tensor, tables: Tensor, kinds: Tensor) -> Tensor:
    """Dense q ``[N, L, H, W]``: each edge's table is its kind's, told at its first end."""
    out = torch.zeros_like(q)
    for n, (y, x), (c, (dy, dx)) in itertools.product(range(len(q)), pixels(), enumerate(AROUND.offsets)):
        if (y + dy, x + dx) in pixels():
            table = tables[c, int(kinds[n, c, y, x])]
            out[n, :, y, x] = out[n, :, y, x] + table @ q[n, :, y + dy, x + dx]
            out[n, :, y + dy, x + dx] = out[n, :, y + dy, x + dx] + q[n, :, y, x] @ table
    return out


def parts_of(batch: Batch, kinds: Tensor) -> tuple[Sites, Tensor, kinded.Groups]:
    sites = Sites.of(batch, AROUND, LABELS)
    chosen = sites.kinds(kinds)
    return sites, chosen, kinded.Groups.of(sites, chosen, KINDS)


def test_messages_with_kinds_are_the_loops() -> None:
    batch, logits, _ = scene()
    kinds, tables = kinds_and_tables(1)
    sites, chosen, groups = parts_of(batch, kinds)
    q = state(batch, logits)
    expected = sites.pick(field_by_loop(q, tables, kinds))
    found = kinded.messages(sites.pick(q), tables, groups) + kinded.labelled(tables, sites, chosen)
    assert torch.allclose(found, expected, atol=1e-12)
    assert len(groups.heard) > 10
    # With one table a class it is the field without kinds, and what every pixel's label is known needs no groups.
    same = tables[:, :1].expand_as(tables).contiguous()
    assert torch.allclose(
        kinded.messages(sites.pick(q), same, groups) + kinded.labelled(same, sites, chosen),
        unkinded(sites.pick(q), tables[:, 0], sites), atol=1e-12,
    )  # fmt: skip
    truth = sites.labels_of(batch.labels.clamp(max=LABELS - 1))
    sure = F.one_hot(truth, LABELS).to(q.dtype)
    both = kinded.messages(sure, tables, groups) + kinded.labelled(tables, sites, chosen)
    assert torch.allclose(kinded.labelled(tables, sites, chosen, truth), both, atol=1e-12)


def test_messages_with_kinds_have_the_loops_gradients() -> None:
    batch, logits, _ = scene(2)
    kinds, tables = kinds_and_tables(3)
    sites, chosen, groups = parts_of(batch, kinds)
    weights = torch.randn((len(sites), LABELS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grads = []
    for update in ("ours", "loop"):
        leaves = logits.clone().requires_grad_(), tables.clone().requires_grad_()
        q = state(batch, leaves[0])
        if update == "ours":
            field = kinded.messages(sites.pick(q), leaves[1], groups) + kinded.labelled(leaves[1], sites, chosen)
        else:
            field = sites.pick(field_by_loop(q, leaves[1], kinds))
        grads.append(torch.autograd.grad((field.sin() * weights).sum(), leaves))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11)
    q = sites.pick(logits).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kinded.messages(a, b, groups), (q, tables.requires_grad_()))


def test_nobody_free_and_nobody_near() -> None:
    batch, logits, _ = scene()
    kinds, tables = kinds_and_tables(1)
    for mask in (torch.zeros_like(batch.present), torch.zeros_like(batch.present).index_fill(1, torch.tensor(2), True)):
        sites, chosen, groups = parts_of(replace(batch, mask=mask, known=None), kinds)
        q = sites.pick(logits).softmax(1)
        assert torch.equal(kinded.labelled(tables, sites, chosen), torch.zeros_like(q))
        assert kinded.messages(q, tables, groups).shape == q.shape


def crf_with(tables: Tensor, on: Neighborhood | None = None) -> tc.GridCRF:
    return tc.GridCRF(LABELS, AROUND, tables.float(), kinds=KINDS, kinds_on=on).to(tables.dtype)


@pytest.mark.parametrize("iterations", [1, 4])
def test_mean_field_with_kinds_is_the_loops(iterations: int) -> None:
    batch, logits, _ = scene(1)
    kinds, tables = kinds_and_tables(4)
    tables = tables.float().double()
    q, free = state(batch, logits), free_of(batch)
    for _ in range(iterations):
        q = torch.where(free[:, None], (logits - field_by_loop(q, tables, kinds)).softmax(1), q)
    sites = Sites.of(batch, AROUND, LABELS)
    expected = meanfield.pixel_cross_entropy(sites.pick(q).log(), batch, sites)
    crf = crf_with(tables)
    value = meanfield.objective(crf, iterations, edge_maker=Given(kinds))
    assert torch.allclose(value(logits, batch), expected, atol=1e-12)
    crf.pairwise.grad = None
    value(logits, batch).backward()  # type: ignore[no-untyped-call]
    assert crf.pairwise.grad is not None
    assert bool(crf.pairwise.grad.abs().sum((2, 3)).gt(0).all())


@pytest.mark.parametrize("some", [False, True])
def test_a_tree_fields_objective_is_the_models_pseudolikelihood(some: bool) -> None:
    """As `test_pseudolikelihood_is_the_models`; classes without kinds read table 0."""
    batch, logits, _ = scene(4)
    assert batch.known is not None
    on = tc.Neighborhood((AROUND.offsets[2], AROUND.offsets[0])) if some else AROUND
    kinds, tables = kinds_and_tables(5, on)
    logits = logits.float()
    mine, theirs = (crf_with(tables.float(), on) for _ in range(2))
    value = pseudolikelihood.objective(mine, Given(kinds, on))(logits.requires_grad_(), batch)
    exists = batch.present & (batch.target != 255)
    free = free_of(batch) & exists
    own = F.one_hot(batch.labels.clamp(max=LABELS - 1), LABELS).movedim(-1, 1).bool()
    again = logits.detach().clone().requires_grad_()
    held = torch.where(free[:, None], again, torch.where(own, 0.0, -torch.inf))
    labels = batch.labels.masked_fill(~exists, 0)
    other = -theirs.log_pseudolikelihood(held, labels, mask=exists, kinds=kinds).sum() / free.sum()
    assert torch.allclose(value, other, atol=1e-5)
    pairs = torch.autograd.grad(value, (logits, mine.pairwise)), torch.autograd.grad(other, (again, theirs.pairwise))
    for ours, expected in zip(*pairs, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)


def test_kinds_are_asked_for_where_tables_have_them() -> None:
    batch, _, tables = scene()
    sites = Sites.of(batch, AROUND, LABELS)
    with pytest.raises(ValueError, match="edge_maker: expected kinds for a CRF that has them, got"):
        kinded.of_edges(tc.GridCRF(LABELS, AROUND, tables), Given(kinds_and_tables(0)[0]), batch, sites)
