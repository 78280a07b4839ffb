"""The gradients of tables, gated tables, gates and logits are those of the enumerated likelihood, where tables see the image.

The oracle is that of `test_loss`: all labellings of a 2x3 lattice, log Z by autograd, loops of its own. Sampled means must lie
within 5.5 standard errors (of the exact variances) and, at full size, within 1 % of the largest component. Energies and
pseudo-likelihoods against loops, of their own and of their autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import tritoncrf as tc
from tests.test_loss import ALL, LABELS, OFFSETS, SHAPE
from tritoncrf.gradient import Errors, errors, gate_errors

HOOD = tc.Neighborhood.from_offsets(OFFSETS)
# Parts of the neighbourhood, not in its order.
KINDS_ON, GATES_ON = [(1, 1), (0, 1), (1, -2), (1, 0), (0, 2)], [(1, -1), (1, 0), (0, 1)]
KINDS, RANKS = 3, 2
CHAINS = pytest.param(20_000, 0.05), pytest.param(1_000_000, 0.01, marks=pytest.mark.slow)


def energies(
    listed: Tensor, exists: Tensor, kinds: Tensor | None, logits: Tensor, pairwise: Tensor, gated: Tensor | None,
    gates: Tensor | None, offsets: list[tuple[int, int]] = OFFSETS,
) -> Tensor:  # fmt: skip
    """E of labellings ``[M, H, W]``, differentiable: logits [L, H, W], pairwise [C, (R,) L, L], gates [G, Cg, H, W]."""
    height, width = listed.shape[1:]
    total = logits.new_zeros(len(listed))
    for y, x in itertools.product(range(height), range(width)):
        if not exists[y, x]:
            continue
        total = total - logits[listed[:, y, x], y, x]
        for c, (dy, dx) in enumerate(offsets):
            v, w = y + dy, x + dx
            if not (0 <= v < height and 0 <= w < width and exists[v, w]):
                continue
            a, b = listed[:, y, x], listed[:, v, w]
            table = pairwise[c]
            if kinds is not None:
                table = table[int(kinds[KINDS_ON.index((dy, dx)), y, x]) if (dy, dx) in KINDS_ON else 0]
            total = total + table[a, b]
            if gated is not None and gates is not None and (dy, dx) in GATES_ON:
                place = GATES_ON.index((dy, dx))
                for rank in range(RANKS):
                    total = total + gates[rank, place, y, x] * gated[rank, place][a, b]
    return total


@dataclass(frozen=True)
class Problem:
    crf: tc.GridCRF
    logits: Tensor
    kinds: Tensor | None
    gates: Tensor | None
    target: Tensor
    clamp: Tensor
    mask: Tensor

    @property
    def labelled(self) -> Tensor:
        return (self.target != 255) & self.mask

    @property
    def parameters(self) -> dict[str, Tensor]:
        found = {"logits": self.logits, "pairwise": self.crf.pairwise, "gated": self.crf.gated, "gates": self.gates}
        return {name: value.detach().clone() for name, value in found.items() if value is not None}

    def energies(self, **given: Tensor) -> Tensor:
        return energies(ALL, self.mask, self.kinds, given["logits"], given["pairwise"], given.get("gated"), given.get("gates"))


def model(sees: str, make: torch.Generator, steps: int = 128) -> tuple[tc.GridCRF, dict[str, Tensor]]:
    """A CRF, and kinds and gates of one 2x3 image, gates in whole ``steps``."""
    extra: dict[str, Any] = {}
    given: dict[str, Tensor] = {}
    pairwise = torch.randn(7, KINDS, LABELS, LABELS, generator=make)
    if sees in ("kinds", "both"):
        extra |= {"kinds": KINDS, "kinds_on": tc.Neighborhood.from_offsets(KINDS_ON)}
        given["kinds"] = torch.randint(0, KINDS, (len(KINDS_ON), *SHAPE), generator=make).to(torch.uint8)
    else:
        pairwise = pairwise[:, 0]
    if sees in ("gates", "both"):
        extra |= {"gates": RANKS, "gates_on": tc.Neighborhood.from_offsets(GATES_ON)}
        extra["gated"] = torch.randn(RANKS, len(GATES_ON), LABELS, LABELS, generator=make)
        given["gates"] = torch.randint(0, steps + 1, (RANKS, len(GATES_ON), *SHAPE), generator=make) / steps
    return tc.GridCRF(LABELS, HOOD, 0.7 * pairwise, **extra), given


def problem(sees: str, latent: bool = False, clamp: bool = False, holes: bool = False) -> Problem:
    make = torch.Generator().manual_seed(4)
    crf, given = model(sees, make)
    logits = torch.randn(LABELS, *SHAPE, generator=make)
    target = torch.randint(0, LABELS, SHAPE, generator=make)
    held, mask = torch.zeros(SHAPE, dtype=torch.bool), torch.ones(SHAPE, dtype=torch.bool)
    if latent:
        target[0, 0] = target[1, 1] = 255
    if clamp:
        held[0, 2] = held[1, 0] = True
    if holes:
        mask[0, 1] = False
    return Problem(crf, logits, given.get("kinds"), given.get("gates"), target, held, mask)


def exact(p: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradient of -log p(labelled | clamped) by autograd, and the variance of one sample's error, for each part."""
    given = {name: value.requires_grad_() for name, value in p.parameters.items()}
    energy = p.energies(**given)
    agrees = (ALL == p.target) | ~p.labelled
    data = agrees.flatten(1).all(1)
    free = (agrees | ~p.clamp).flatten(1).all(1)
    likelihood = torch.logsumexp(-energy[free], 0) - torch.logsumexp(-energy[data], 0)
    names = list(given)
    grads = dict(zip(names, torch.autograd.grad(likelihood, list(given.values())), strict=True))
    rows = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda *values: p.energies(**dict(zip(names, values, strict=True))), tuple(p.parameters.values()), vectorize=True
    )
    spread = {}
    for name, row in zip(names, rows, strict=True):
        spread[name] = torch.zeros_like(grads[name])
        for chosen in (free, data):
            weight = torch.softmax(-energy.detach()[chosen], 0).view(-1, *[1] * (row.dim() - 1))
            mean = (weight * row[chosen]).sum(0)
            spread[name] += (weight * (row[chosen] - mean) ** 2).sum(0)
    return grads, spread


def sampled(p: Problem, loss: tc.CRFLoss, images: int, visits: int) -> dict[str, Tensor]:
    """The mean gradient per image of the last visit."""
    wide = (images, -1, -1)
    given: dict[str, Tensor] = {"mask": p.mask.expand(wide), "clamp": p.clamp.expand(wide)}
    if p.kinds is not None:
        given["kinds"] = p.kinds.expand(images, *p.kinds.shape)
    for _ in range(visits):
        logits = p.logits.expand(images, *p.logits.shape).clone().requires_grad_()
        gates = None if p.gates is None else p.gates.expand(images, *p.gates.shape).clone().requires_grad_()
        p.crf.zero_grad()
        loss(logits, p.target.expand(wide), torch.arange(images), gates=gates, **given).backward()
    found = {"logits": logits.grad, "pairwise": p.crf.pairwise.grad}
    if gates is not None and p.crf.gated is not None:
        found |= {"gated": p.crf.gated.grad, "gates": gates.grad}
    shared = {name: value / images for name, value in found.items() if value is not None and name in ("pairwise", "gated")}
    own = {name: value.mean(0) for name, value in found.items() if value is not None and name not in shared}
    assert len(shared) + len(own) == len(found)
    return shared | own


def agree(p: Problem, found: dict[str, Tensor], chains: int, tolerance: float) -> dict[str, float]:
    """Fails unless the sampled gradients are the exact ones; the largest error of each over its largest component."""
    grads, spread = exact(p)
    assert found.keys() == grads.keys()
    worst = {}
    for name, truth in grads.items():
        error = (found[name] - truth).abs()
        assert bool((error <= 5.5 * (spread[name] / chains).sqrt() + 1e-4).all()), (name, float(error.max()))
        worst[name] = float(error.max() / truth.abs().max())
        assert worst[name] <= tolerance, name
    return worst


CASES: dict[str, dict[str, bool]] = {
    "labelled": {}, "latent": {"latent": True}, "clamped": {"clamp": True}, "holes": {"holes": True},
    "all": {"latent": True, "clamp": True, "holes": True},
}  # fmt: skip


@pytest.mark.parametrize(("chains", "tolerance"), CHAINS)
@pytest.mark.parametrize(
    ("sees", "case"), [("kinds", "labelled"), ("gates", "labelled"), *itertools.product(["both"], CASES)]
)
def test_pcd_gradient_is_that_of_the_enumerated_likelihood(
    sees: str, case: str, chains: int, tolerance: float, record_property: Callable[[str, object], None]
) -> None:
    p = problem(sees, **CASES[case])
    replicas = 1000
    store = tc.ChainStore([SHAPE] * (chains // replicas), replicas=replicas, seed=1, latent=True)
    loss = tc.CRFLoss(p.crf, chains=store, sweeps=10, reduction="sum")
    worst = agree(p, sampled(p, loss, chains // replicas, visits=3), chains, tolerance)
    told = ", ".join(f"{name} {100 * value:.2f} %" for name, value in worst.items())
    record_property("largest error", told)
    print(f"pcd {sees} {case}: largest errors of the largest component: {told}; {chains} chains")


def test_cd_with_many_sweeps_has_the_same_gradient() -> None:
    p = problem("both", latent=True)
    loss = tc.CRFLoss(p.crf, method="cd", sweeps=30, reduction="sum", seed=5)
    agree(p, sampled(p, loss, 20_000, visits=1), 20_000, 0.05)


FAULTS = ("sign of gates", "kinds merged", "kinds turned", "gated transposed", "gates of the other end", "unweighed")


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any, **more: Any) -> Errors:
        found = errors(*given, **more)
        if fault == "sign of gates":
            return found._replace(gates=-found.gates)
        if fault == "kinds merged":
            return found._replace(pairwise=found.pairwise.mean(1, keepdim=True).expand_as(found.pairwise).contiguous())
        if fault == "kinds turned":
            return found._replace(pairwise=found.pairwise.roll(1, 1))
        if fault == "gated transposed":
            return found._replace(gated=found.gated.transpose(2, 3).contiguous())
        if fault == "unweighed":
            return found._replace(gated=2 * found.gated)
        # Of class (1, 0): the edge that ends at a pixel in place of that which begins there.
        gates = found.gates.clone()
        gates[:, :, 1] = gates[:, :, 1].roll(1, 2)
        return found._replace(gates=gates)

    monkeypatch.setattr("tritoncrf.reduction.errors", wrong)
    p = problem("both")
    loss = tc.CRFLoss(p.crf, chains=tc.ChainStore([SHAPE] * 20, replicas=1000, seed=1), reduction="sum")
    with pytest.raises(AssertionError) as caught:
        agree(p, sampled(p, loss, 20, visits=2), 20_000, 0.05)
    print(fault, str(caught.value).splitlines()[0])


@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_value_is_the_energy_gap_and_mean_divides_by_labelled_pixels(engine: str) -> None:
    p = problem("both", latent=True)
    assert p.gates is not None
    found = {}
    for reduction in ("sum", "mean"):
        store = tc.ChainStore([SHAPE] * 4, seed=1, latent=True)
        loss = tc.CRFLoss(p.crf, chains=store, reduction=reduction, engine=engine)
        logits = p.logits.expand(4, -1, -1, -1).clone().requires_grad_()
        gates = p.gates.expand(4, *p.gates.shape).clone().requires_grad_()
        assert p.kinds is not None
        kinds, index = p.kinds.expand(4, *p.kinds.shape), torch.arange(4)
        p.crf.zero_grad()
        value = loss(logits, p.target.expand(4, -1, -1), index, kinds=kinds, gates=gates)
        y, drawn = (store.fetch(store.pixel_indices(index, SHAPE), data=data)[:, 0].long() for data in (True, False))
        value.backward()
        assert p.crf.gated is not None
        found[reduction] = [value.detach(), logits.grad, gates.grad, p.crf.pairwise.grad, p.crf.gated.grad]
        if reduction == "mean":
            continue
        # The errors of these very samples are the gradient of their energies.
        again = {"logits": logits.detach().clone().requires_grad_(), "gates": gates.detach().clone().requires_grad_()}
        p.crf.zero_grad()
        gap = [p.crf.energy(again["logits"], labels, kinds=kinds, gates=again["gates"]).sum() for labels in (y, drawn)]
        (gap[0] - gap[1]).backward()  # type: ignore[no-untyped-call]
        grads = again["logits"].grad, again["gates"].grad, p.crf.pairwise.grad, p.crf.gated.grad
        expected = [(gap[0] - gap[1]).detach(), *grads]
        for got, wanted in zip(found["sum"], expected, strict=True):
            assert got is not None
            assert wanted is not None
            assert torch.allclose(got, wanted, atol=1e-4), (got, wanted)
    for whole, mean in zip(found["sum"], found["mean"], strict=True):
        assert whole is not None
        assert mean is not None
        assert torch.allclose(mean * 16, whole, atol=1e-4)


def batch(sees: str = "both", seed: int = 0) -> tuple[tc.GridCRF, Tensor, Tensor, dict[str, Any], Tensor]:
    """(crf, logits, labels, arguments with sizes and a mask, pixels that exist) of three images, nonsense beyond."""
    make = torch.Generator().manual_seed(seed)
    crf, told = model(sees, make)
    shape, images = (4, 5), 3
    given: dict[str, Tensor] = {}
    sizes = torch.tensor([[4, 5], [3, 5], [4, 2]])
    mask = torch.rand(images, *shape, generator=make) < 0.8
    exists = mask.clone()
    for n, (height, width) in enumerate(sizes.tolist()):
        exists[n, height:] = False
        exists[n, :, width:] = False
    if "kinds" in told:
        given["kinds"] = torch.randint(0, KINDS, (images, len(KINDS_ON), *shape), generator=make).to(torch.uint8)
    if "gates" in told:
        # Not in whole steps: what counts is the multiple of 1 / 128, also for the gradients of others.
        given["gates"] = torch.rand(images, RANKS, len(GATES_ON), *shape, generator=make)
    logits = torch.randn(images, LABELS, *shape, generator=make)
    labels = torch.randint(0, LABELS, (images, *shape), generator=make)
    logits.masked_fill_(~exists[:, None], torch.nan)
    for name, offsets, nonsense in (("kinds", KINDS_ON, 255), ("gates", GATES_ON, torch.nan)):
        if name in given:
            absent = torch.stack([~joined(exists, offset) for offset in offsets], 1)
            given[name].masked_fill_(absent if name == "kinds" else absent[:, None], nonsense)
    return crf, logits, labels.masked_fill(~exists, 99), given | {"sizes": sizes, "mask": mask}, exists


def joined(exists: Tensor, offset: tuple[int, int]) -> Tensor:
    """Whether an edge of this class begins at a pixel."""
    found = torch.zeros_like(exists)
    _, height, width = exists.shape
    for y, x in itertools.product(range(height), range(width)):
        v, w = y + offset[0], x + offset[1]
        if 0 <= v < height and 0 <= w < width:
            found[:, y, x] = exists[:, y, x] & exists[:, v, w]
    return found


def straight(gates: Tensor | None) -> Tensor | None:
    """Multiples of 1 / 128, whose gradient passes as it is."""
    return None if gates is None else (torch.floor(gates.detach() * 128 + 0.5) / 128).nan_to_num(0.0).double().requires_grad_()


def pseudo(p: dict[str, Any], n: int, labels: Tensor, exists: Tensor) -> Tensor:
    """Besag's product, site by site: what the energy says of all labels of one site."""
    total = torch.zeros((), dtype=torch.float64)
    for y, x in exists[n].nonzero().tolist():
        ways = labels[n].clamp(max=LABELS - 1)[None].repeat(LABELS, 1, 1)
        ways[:, y, x] = torch.arange(LABELS)
        energy = energies(ways, exists[n], p["kinds"], p["logits"][n], p["pairwise"], p["gated"], p["gates"])
        total = total + (-energy).log_softmax(0)[labels[n, y, x]]
    return total


@pytest.mark.parametrize("what", ["energy", "log_pseudolikelihood"])
@pytest.mark.parametrize("sees", ["kinds", "gates", "both"])
def test_energy_and_pseudolikelihood_and_their_gradients_against_loops(sees: str, what: str) -> None:
    crf, logits, labels, given, exists = batch(sees)
    logits.requires_grad_()
    if "gates" in given:
        given["gates"].requires_grad_()
    values = getattr(crf, what)(logits, labels, **given)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (values * weights).sum().backward()
    own = {"logits": logits.detach().nan_to_num(0.0).double().requires_grad_(), "gates": straight(given.get("gates"))}
    own |= {"pairwise": crf.pairwise.detach().double().requires_grad_()}
    own |= {"gated": None if crf.gated is None else crf.gated.detach().double().requires_grad_()}
    total = torch.zeros((), dtype=torch.float64)
    for n in range(3):
        gates = own["gates"]
        part: dict[str, Any] = own | {
            "kinds": given["kinds"][n] if "kinds" in given else None, "gates": None if gates is None else gates[n]
        }  # fmt: skip
        if what == "energy":
            assert own["logits"] is not None
            whole = labels[n].clamp(max=LABELS - 1)[None]
            table, gated = part["pairwise"], part["gated"]
            value = energies(whole, exists[n], part["kinds"], own["logits"][n], table, gated, part["gates"])[0]
        else:
            value = pseudo(part, n, labels, exists)
        assert float(values[n].detach()) == pytest.approx(float(value.detach()), abs=2e-4)
        total = total + weights[n].double() * value
    total.backward()  # type: ignore[no-untyped-call]
    mine = {"logits": logits.grad, "pairwise": crf.pairwise.grad}
    if crf.gated is not None:
        mine |= {"gated": crf.gated.grad, "gates": given["gates"].grad}
    for name, grad in mine.items():
        expected = own[name]
        assert expected is not None
        assert grad is not None
        assert expected.grad is not None
        assert bool(expected.grad.any())
        assert torch.allclose(grad.double(), expected.grad, atol=1e-4), name


def test_pair_counts_of_kinds_against_loops() -> None:
    crf, _, labels, given, exists = batch()
    found = crf.pair_counts(labels, sizes=given["sizes"], mask=given["mask"], kinds=given["kinds"])
    assert found.shape == (3, 7, KINDS, LABELS, LABELS)
    expected = torch.zeros_like(found)
    for n, (c, offset) in itertools.product(range(3), enumerate(OFFSETS)):
        for y, x in joined(exists, offset)[n].nonzero().tolist():
            kind = int(given["kinds"][n, KINDS_ON.index(offset), y, x]) if offset in KINDS_ON else 0
            expected[n, c, kind, labels[n, y, x], labels[n, y + offset[0], x + offset[1]]] += 1
    assert torch.equal(found, expected)


def test_gradients_of_gates_are_finite_differences_of_the_rounded_energy() -> None:
    """A gate moved by whole steps of 1 / 128 moves the energy by its gradient times that."""
    crf, logits, labels, given, _ = batch("both", seed=3)
    gates = given["gates"].clone()
    gates[0, 1, 0, 0, :] = 64 / 128
    given["gates"] = gates.clone().requires_grad_()
    energy = crf.energy(logits, labels, **given)
    energy.sum().backward()  # type: ignore[no-untyped-call]
    slope = given["gates"].grad
    assert slope is not None
    moved = 0
    for x in range(1, 5):
        changed = gates.clone()
        changed[0, 1, 0, 0, x] = 96 / 128
        after = crf.energy(logits, labels, **(given | {"gates": changed}))
        assert float((after - energy)[0].detach()) == pytest.approx(float(slope[0, 1, 0, 0, x]) / 4, abs=2e-5)
        moved += int(slope[0, 1, 0, 0, x] != 0)
    assert moved


@pytest.mark.parametrize("replicas", [1, 3])
def test_errors_of_gates_against_loops(replicas: int) -> None:
    crf, logits, labels, given, exists = batch()
    assert crf.gated is not None
    sampler = tc.Sampler(crf, "torch", 2)
    data = sampler.init(logits, labels, replicas=replicas, **given)
    free = sampler.run(sampler.init(logits, labels, replicas=replicas, **given), 2)
    found = gate_errors(data, free, crf.gated)
    expected = torch.zeros_like(found)
    for n, r, (place, offset) in itertools.product(range(3), range(replicas), enumerate(GATES_ON)):
        for y, x in joined(exists, offset)[n].nonzero().tolist():
            for chains, sign in ((data.labels, 1), (free.labels, -1)):
                a, b = int(chains[n, r, y, x]), int(chains[n, r, y + offset[0], x + offset[1]])
                expected[n, :, place, y, x] += sign * crf.gated.detach()[:, place, a, b] / replicas
    assert bool(expected.any())
    assert torch.allclose(found, expected, atol=1e-6)


def steps(compiler: str | None, sees: str, flow: bool, method: str, engine: str, latent: bool) -> list[Tensor]:
    """Everything that two steps of a network that gives logits, and gates if they flow, leave behind."""
    torch.manual_seed(0)
    crf, logits, labels, given, _ = batch(sees, seed=5)
    del logits
    net = torch.nn.Conv2d(2, LABELS + RANKS * len(GATES_ON), 3, padding=1)
    store = tc.ChainStore(given["sizes"], seed=7, replicas=2, latent=latent) if method == "pcd" else None
    loss = tc.CRFLoss(crf, chains=store, method=method, sweeps=2, engine=engine, seed=3)
    image, index = torch.randn(3, 2, 4, 5), torch.arange(3)
    target = labels.masked_fill(labels > LABELS, 0)
    if latent:
        target[0, 0, :2] = 255
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1)

    def step(image: Tensor, target: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        out = net(image)
        if flow:
            given = given | {"gates": out[:, LABELS:].sigmoid().view(3, RANKS, len(GATES_ON), 4, 5)}
        return loss(out[:, :LABELS], target, index, **given), loss.invalid

    run = step if compiler is None else torch.compile(step, backend=compiler, fullgraph=True)
    left: list[Tensor] = []
    for _ in range(2):
        value, invalid = run(image, target, given)
        value.backward()  # type: ignore[no-untyped-call]
        assert invalid is not None
        left += [value.detach(), invalid]
        left += [p.grad.clone() for p in [*net.parameters(), *loss.parameters()] if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
    return [*left, loss.visits, *(() if store is None else (store.labels, store.sweeps))]


@pytest.mark.parametrize(
    ("sees", "flow", "method", "engine", "latent"),
    [
        ("kinds", False, "pcd", "numba", False), ("gates", True, "pcd", "numba", True), ("gates", False, "cd", "torch", False),
        ("both", True, "pcd", "numba", False),
    ],
)  # fmt: skip
def test_a_step_compiled_whole_does_as_the_plain_one(
    sees: str, flow: bool, method: str, engine: str, latent: bool
) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected, found = (steps(compiler, sees, flow, method, engine, latent) for compiler in (None, "aot_eager"))
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_no_gradient_is_made_for_gates_that_want_none() -> None:
    p = problem("both")
    assert p.gates is not None
    assert p.kinds is not None
    loss = tc.CRFLoss(p.crf, method="cd", seed=0)
    logits = p.logits[None].clone().requires_grad_()
    gates = p.gates[None].clone()
    loss(logits, p.target[None], kinds=p.kinds[None], gates=gates).backward()
    assert gates.grad is None
    assert p.crf.gated is not None
    assert p.crf.gated.grad is not None
    assert logits.grad is not None
    assert torch.allclose(logits.grad.sum(1), torch.zeros(1, *SHAPE), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gates_may_be_of_any_float_type(dtype: torch.dtype) -> None:
    """They count as the multiples of 1 / 128 nearest to what they are in float32, and get gradients of their own type."""
    p = problem("both")
    assert p.gates is not None
    assert p.kinds is not None
    kinds, target = p.kinds[None], p.target[None]
    found = []
    for kind in (torch.float32, dtype):
        # 7 bits hold multiples of 1 / 128 up to 1.
        gates = (torch.floor(p.gates[None] * 64) / 64).to(kind).requires_grad_()
        loss = tc.CRFLoss(p.crf, method="cd", seed=4)
        p.crf.zero_grad()
        energy = p.crf.energy(p.logits[None], target, kinds=kinds, gates=gates).sum()
        value = loss(p.logits[None], target, kinds=kinds, gates=gates) + energy
        value.backward()
        assert gates.grad is not None
        assert gates.grad.dtype == kind
        found.append((value.detach(), gates.grad.float(), p.crf.pairwise.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][2] is not None
    assert found[1][2] is not None
    assert torch.equal(found[0][2], found[1][2])
    assert torch.allclose(found[0][1], found[1][1], rtol=0.02, atol=0.02)
