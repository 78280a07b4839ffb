"""What must hold on a GPU? The bodies of `tests/test_gpu.py`, functions of a place, so that the interpreter runs them too.

A place is a device and a size: full on a GPU, toy in Triton's interpreter on a CPU. What only a GPU has (streams, capture,
the watch for host waits) is behind the place's methods, which on a CPU do the same work in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import enumeration, test_exactness
from tests.graph_cases import drawn, same, walk
from tests.test_kernels_interpret import VECTORS, Case, assert_bounds, moved, problem
from tritoncrf import ChainStore, CRFLoss, GridCRF, Neighborhood, Sampler
from tritoncrf.chains import ChainState

FOUR = Neighborhood.nearest(4)


@dataclass(frozen=True)
class Place:
    device: torch.device
    toy: bool

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def deferred(self) -> bool | None:
        """What to pass as ``validate`` so that values are looked at later, as on a GPU by default."""
        return None if self.cuda else False

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Whatever waits for the device inside raises."""
        if not self.cuda:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def streams(self, count: int) -> list[contextlib.AbstractContextManager[object]]:
        """Contexts of streams that start after what was queued so far."""
        if not self.cuda:
            return [contextlib.nullcontext() for _ in range(count)]
        make: Any = torch.cuda.Stream
        made = [make(self.device) for _ in range(count)]
        for stream in made:
            stream.wait_stream(torch.cuda.current_stream(self.device))
        return [torch.cuda.stream(stream) for stream in made]

    def recorded(self, step: Callable[[], object]) -> Callable[[], object]:
        """``step`` captured as one CUDA graph, without running it; called to replay it."""
        if not self.cuda:
            return step
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay


def equal_to_torch(place: Place, case: Case, update: str) -> int:
    """Labels, flips, conditionals, energies and pair counts are the torch engine's on the CPU; returns sites compared."""
    asked = problem(case)
    ours, chains = moved(asked, place.device).start("triton", update)
    theirs, expected = asked.start("torch", "gather")
    assert torch.equal(chains.rows.cpu(), expected.rows), "initial labels"
    ours.run(chains, case.sweeps, beta=case.beta)
    theirs.run(expected, case.sweeps, beta=case.beta)
    differ = int((chains.rows.cpu() != expected.rows).sum())
    assert differ == 0, f"{differ} labels differ"
    assert torch.equal(chains.flips.cpu(), expected.flips)
    assert int(expected.flips.sum()) > 0
    found, energies = [], []
    for sampler, state in ((ours, chains), (theirs, expected)):
        out = torch.zeros((*state.plan.free.shape, case.labels), dtype=torch.float64, device=state.rows.device)
        energies.append(sampler.conditionals(state, out, beta=case.beta).cpu())
        found.append(out.cpu())
    assert torch.equal(*energies)
    assert torch.equal(*found)
    if not place.toy:
        averages(((ours, chains), (theirs, expected)), case)
    assert torch.equal(ours.pair_counts(chains).cpu(), theirs.pair_counts(expected))
    _, before = asked.start("torch", "gather")
    for name in ("pair_errors", "gated_errors"):
        found_errors = getattr(ours.engine, name)(chains.plan, before.rows.to(place.device), chains.rows).cpu()
        assert torch.equal(found_errors, getattr(theirs.engine, name)(expected.plan, before.rows, expected.rows)), name
    return int(expected.plan.free.sum()) * case.replicas * case.sweeps


def graphs_are_those_of_torch(place: Place, labels: int) -> int:
    """A graph of pairs, and one of all arities with kinds and gates: all that an engine tells; returns site updates."""
    done = 0
    for nodes, factors, gated, replicas in ((6000, {2: 12000}, False, 1), (900, {4: 200, 2: 900, 3: 500}, True, 3)):
        few = labels if replicas == 1 else min(labels, 5)
        if place.toy:
            nodes, factors = nodes // 150, {arity: count // 100 for arity, count in factors.items()}
        crf, graph, logits = drawn(nodes, factors, few, kinds=2 if gated else 1, gated=gated)
        theirs = walk("torch", "gather", crf, graph, logits, replicas, 2)
        given = crf.to(place.device), graph.to(place.device), logits.to(place.device)
        same(walk("triton", "gather", *given, replicas, 2), theirs)
        done += 5 * nodes * replicas
    return done


def averages(both: tuple[tuple[Sampler, ChainState], ...], case: Case) -> None:
    """Labels and energies of averaged sweeps are equal, and the averages but for the order of their sums."""
    found, energies = [], []
    for sampler, state in both:
        out = torch.zeros((*state.plan.free.shape, case.labels), dtype=torch.float64, device=state.rows.device)
        energies.append(sampler.average(state, 3, out, beta=case.beta).cpu())
        found.append(out.cpu())
    (_, chains), (_, expected) = both
    assert torch.equal(*energies), "energies of averaged sweeps"
    assert torch.equal(chains.rows.cpu(), expected.rows), "labels of averaged sweeps"
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def contract_vectors(place: Place, name: str, update: str) -> None:
    """The contract's known answers, made from its rules alone by two other programs."""
    if not VECTORS.is_file():
        pytest.skip("the contract's vectors are not here: they lie in the shared folder beside the checkout")
    case = json.loads(VECTORS.read_text())["small"][name]
    sites, labels, classes = torch.Size(case["shape"]).numel(), case["labels"], len(case["offsets"])
    words = [[enumeration.philox((s, k, 0, 0), (1, 0))[0] >> 16 for s in range(sites)] for k in range(labels)]
    entries = [[enumeration.philox((c, k, 1, 0), (1, 0))[0] >> 20 for k in range(labels**2)] for c in range(classes)]
    tables = (torch.tensor(entries).view(classes, labels, labels) - 2048) / 4096
    crf = GridCRF(labels, Neighborhood.from_offsets(case["offsets"]), tables.float()).to(place.device)
    logits = (torch.tensor(words) / 4096).view(1, labels, *case["shape"]).to(place.device)
    sampler, replica = Sampler(crf, "triton", case["seed"], update=update), case["replica"]
    index = torch.tensor([case["index"]], device=place.device)
    chains = sampler.init(logits, index=index, replicas=replica + 1, phase=case["phase"])

    def sha() -> str:
        return hashlib.sha256(chains.labels[0, replica].cpu().contiguous().numpy().tobytes()).hexdigest()

    assert sha() == case["initial"]
    done = 0
    for sweeps, (expected, changed) in list(case["after_sweeps"].items())[: 1 if place.toy else None]:
        # The flips that the vector counts are those of the last sweep.
        sampler.run(chains, int(sweeps) - 1 - done, beta=case["beta"])
        sampler.run(chains, 1, beta=case["beta"])
        done = int(sweeps)
        assert sha() == expected
        assert f"changed {int(chains.flips[0, replica])}" == changed


@dataclass(frozen=True)
class Placed(test_exactness.Problem):
    """A problem of the exactness tests whose chains are on a device."""

    device: torch.device

    def sampler(self, engine: str, update: str) -> Sampler:
        made = super().sampler(engine, update)
        return Sampler(made.crf.to(self.device), engine, made.seed, update=update)

    def logits(self) -> Tensor:
        return super().logits().to(self.device)

    def histogram(self, labels: Tensor) -> enumeration.Integers:
        return super().histogram(labels.cpu())

    def samples(self, seed: int) -> Tensor:
        return super().samples(seed).to(self.device)


def exact(place: Place, name: str, update: str, record: Callable[[str, object], None]) -> None:
    """10^6 chains: after the sweeps that the transition law needs, and from exact samples after 1, 2 and 7."""
    given = Placed(**vars(test_exactness.problem(name)), device=place.device)
    # Their helpers name no device.
    with torch.device(place.device):
        if place.toy:
            test_exactness.check_from_start(given, 2, "triton", update, 1, record)
            return
        test_exactness.check_from_start(given, test_exactness.sweeps_needed(name), "triton", update, 10, record)
        test_exactness.check_stationary(given, "triton", update, 10, record)


def calm(place: Place) -> tuple[GridCRF, Tensor]:
    """The standard problem's CRF and logits ``[1, L, H, W]``; a small one's at toy size."""
    if place.toy:
        return GridCRF(3, FOUR, 0.3 * torch.ones(2, 3, 3).tril()), torch.zeros(1, 3, 3, 4)
    from bench.problem import standard

    asked = standard("calm")
    return asked.crf.to(place.device), asked.logits.to(place.device)


def started(place: Place, images: int, update: str, seed: int = 1) -> tuple[Sampler, ChainState]:
    crf, logits = calm(place)
    sampler = Sampler(crf, "triton", seed, update=update)
    return sampler, sampler.init(logits.expand(images, -1, -1, -1))


def launches_agree(place: Place, update: str, shape: Callable[[int], None]) -> int:
    """Some 10^9 site updates by one program a chain and by teams of four (``shape`` forces them); returns how many."""
    images, sweeps = (2, 2) if place.toy else (128, 183)
    found = []
    for team in (1, 4):
        shape(team)
        sampler, chains = started(place, images, update)
        found.append(sampler.run(chains, sweeps).rows)
        # A field is not needed twice.
        done = int(chains.plan.free.sum()) * sweeps
        del chains
    differ = int((found[0] != found[1]).sum())
    assert differ == 0, f"{differ} labels differ after {done} site updates"
    return done


def bounds_hold(place: Place) -> None:
    """No bound of odds lies below the odds themselves, of an image that says of its edges what there is to say."""
    case = Case(
        (5, 6) if place.toy else (70, 90), 3 if place.toy else 20, ((0, 1), (1, 0), (1, -1), (-2, 3)), images=2, clamps=True,
        holes=True, kinds=2, gates=1, replicas=2,
    )  # fmt: skip
    asked = moved(problem(case), place.device)
    sampler, chains = asked.start("triton", "incremental")
    for beta in (1.0, 1.0, 5.0):
        sampler.run(chains, 1 if place.toy else 3, beta=beta)
        assert_bounds(chains, asked.crf, beta)


def update_is_chosen(place: Place) -> None:
    """Asked for no update, calls go on incrementally once few labels change, as earlier ones told without being waited for."""
    tables = 3.0 * (1 - torch.eye(3)).expand(2, 3, 3).contiguous()
    logits = torch.randn(2, 3, *((4, 5) if place.toy else (60, 70)), generator=torch.Generator().manual_seed(0))
    (sampler, chains), (twin, expected) = (
        (made, made.init(logits.to(place.device)))
        for made in (
            Sampler(GridCRF(3, FOUR, tables).to(place.device), "triton", 1, update=update) for update in ("auto", "gather")
        )
    )
    sampler.run(chains, 5)
    # On a GPU nothing has been heard yet.
    assert chains.field is None or not place.cuda
    place.wait()
    turns = 2 if place.toy else 40
    for turn in range(turns):
        with place.quiet() if turn else contextlib.nullcontext():
            sampler.run(chains, 2)
        place.wait()
    rate = chains.rate.value
    assert rate is not None
    assert rate < sampler.engine.break_even
    assert chains.field is not None
    twin.run(expected, 5 + 2 * turns)
    assert torch.equal(chains.rows, expected.rows)
    # As hot as this nearly every label changes, and bounds are of no use; a rate that is told belongs to a call before.
    for _ in range(turns):
        sampler.run(chains, 1, beta=0.01)
        place.wait()
    hot = chains.rate.value
    assert hot is not None
    assert hot > sampler.engine.break_even
    assert chains.field is None


def captured_sweeps_agree(place: Place, update: str) -> None:
    """Replays of one captured call of a sampler leave chains where as many eager calls do."""
    eager, (sampler, chains) = started(place, 2, update), started(place, 2, update)
    replays = 1 if place.toy else 5
    for _ in range(2 + replays):
        eager[0].run(eager[1], 3)
    (stream,) = place.streams(1)
    with stream:
        for _ in range(2):
            sampler.run(chains, 3)
    place.wait()
    sampler.guard.settle()
    replay = place.recorded(lambda: sampler.run(chains, 3))
    for _ in range(replays):
        replay()
    place.wait()
    assert torch.equal(chains.rows, eager[1].rows)
    assert torch.equal(chains.count, eager[1].count)


def streams_agree(place: Place, update: str) -> None:
    """Two chains at once on two streams end where each ends alone."""
    sweeps = 1 if place.toy else 40
    expected = []
    for seed in (1, 2):
        sampler, chains = started(place, 2, update, seed)
        expected.append(sampler.run(chains, sweeps).rows)
    both = [started(place, 2, update, seed) for seed in (1, 2)]
    streams = place.streams(2)
    for _ in range(sweeps):
        for (sampler, chains), stream in zip(both, streams, strict=True):
            with stream:
                sampler.run(chains, 1)
    place.wait()
    for (_, chains), rows in zip(both, expected, strict=True):
        assert torch.equal(chains.rows, rows)


def far_images_agree(place: Place, update: str) -> int:
    """The last images of a batch whose energies pass 2^31 numbers are those of the same images alone; returns how many."""
    images, sweeps = (4, 1) if place.toy else (2600, 2)
    crf, logits = calm(place)
    last = torch.arange(images - 2, images, device=place.device)

    def run(index: Tensor) -> Tensor:
        # Images differ by the random numbers of their index; the logits are one image's, seen many times.
        sampler = Sampler(crf, "triton", seed=4, update=update)
        return sampler.run(sampler.init(logits.expand(len(index), -1, -1, -1), index=index), sweeps).rows[-2:].clone()

    energies = images * logits.numel()
    assert place.toy or energies > 1 << 31
    assert torch.equal(run(torch.arange(images, device=place.device)), run(last))
    return energies


FAULTS = ("nan", "infinity", "nothing allowed", "label", "index", "tables")


def loss_is_voided(place: Place, fault: str) -> None:
    """Bad values: a NaN loss, gradients of 0, chains as they were, and an error at the next call; then all goes on."""
    device = place.device
    store = ChainStore([(4, 5)] * 3, seed=0, device=device)
    crf = GridCRF(3, FOUR).to(device)
    loss = CRFLoss(crf, chains=store, sweeps=1, engine="triton", validate=place.deferred)
    index, target = torch.tensor([2, 0], device=device), torch.zeros(2, 4, 5, dtype=torch.long, device=device)

    def call(logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        value: Tensor = loss(logits, target, index)
        value.backward()  # type: ignore[no-untyped-call]
        place.wait()
        return value

    good = torch.zeros(2, 3, 4, 5, device=device, requires_grad=True)
    assert bool(call(good, target, index).isfinite())
    kept = store.labels.clone(), store.sweeps.clone()
    logits, wrong, places = good.detach().clone(), target.clone(), index.clone()
    if fault in ("nan", "infinity"):
        logits[1, 2, 3, 4] = float(fault)
    elif fault == "nothing allowed":
        logits[0, :, 1, 1], wrong[0, 1, 1] = -torch.inf, loss.ignore_index
    elif fault == "label":
        wrong[1, 0, 0] = 3
    elif fault == "index":
        places[1] = 3
    else:
        with torch.no_grad():
            crf.pairwise[1, 0, 0] = torch.nan
    logits.requires_grad_()
    crf.pairwise.grad = None
    assert bool(call(logits, wrong, places).isnan())
    assert loss.invalid is not None
    assert bool(loss.invalid)
    assert logits.grad is not None
    assert crf.pairwise.grad is not None
    assert not bool(logits.grad.any())
    assert not bool(crf.pairwise.grad.any())
    assert torch.equal(store.labels, kept[0])
    assert torch.equal(store.sweeps, kept[1])
    with torch.no_grad():
        crf.pairwise.zero_()
    name = {"label": "target", "index": "index", "tables": "pairwise"}.get(fault, "logits")
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got otherwise in an earlier call"):
        call(good, target, index)
    assert bool(call(good, target, index).isfinite())
    assert not torch.equal(store.sweeps, kept[1])


def chains_are_voided(place: Place, update: str) -> None:
    """New logits with a NaN move no chain; the next call says so, and the one after goes on where the chains were."""
    crf = GridCRF(3, FOUR).to(place.device)
    logits = torch.zeros(2, 3, 4, 5, device=place.device)
    sampler, twin = (Sampler(crf, "triton", seed=1, update=update, validate=place.deferred) for _ in range(2))
    chains, expected = sampler.init(logits), twin.init(logits)
    sampler.run(chains, 2)
    kept = chains.rows.clone(), chains.count.clone(), chains.flips.clone()
    bad = logits.clone()
    bad[0, 1, 2, 3] = torch.nan
    sampler.run(chains, 2, logits=bad)
    place.wait()
    assert all(torch.equal(*pair) for pair in zip(kept, (chains.rows, chains.count, chains.flips), strict=True))
    with pytest.raises(ValueError, match="logits: expected finite"):
        sampler.run(chains, 1)
    assert torch.equal(sampler.run(chains, 2).rows, twin.run(expected, 4).rows)


@dataclass
class Learner:
    """A network, a loss and plain gradient descent on inputs that stay where they are."""

    network: nn.Module
    loss: CRFLoss
    store: ChainStore
    step: Callable[[], object]

    def state(self) -> list[Tensor]:
        return [*self.network.parameters(), self.loss.crf.pairwise, self.store.labels, self.store.sweeps]


def learner(place: Place, method: str) -> Learner:
    generator = torch.Generator().manual_seed(0)
    shape, labels, area = ((3, 4), 3, FOUR) if place.toy else ((40, 50), 5, Neighborhood.nearest(8))
    network, crf = nn.Conv2d(1, labels, 1).to(place.device), GridCRF(labels, area).to(place.device)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    store = ChainStore([shape] * 3, seed=0, device=place.device)
    loss = CRFLoss(crf, chains=store, method=method, sweeps=2, engine="triton", validate=place.deferred)
    optimizer = torch.optim.SGD([*network.parameters(), crf.pairwise], lr=0.1)
    x = torch.randn(2, 1, *shape, generator=generator).to(place.device)
    target = torch.randint(0, labels, (2, *shape), generator=generator).to(place.device)
    clamp = (torch.rand(2, *shape, generator=generator) < 0.3).to(place.device)
    index = torch.tensor([2, 0], device=place.device)

    def step() -> None:
        optimizer.zero_grad()
        loss(network(x), target, index, clamp=clamp).backward()
        optimizer.step()

    return Learner(network, loss, store, step)


def steps_never_wait(place: Place, method: str) -> None:
    """A training step asks the device for nothing, once its kernels are compiled and its layout is there."""
    made = learner(place, method)
    for _ in range(2):
        made.step()
    before = [value.detach().clone() for value in made.state()]
    with place.quiet():
        for _ in range(1 if place.toy else 5):
            made.step()
    place.wait()
    changed = [not torch.equal(old, new) for old, new in zip(before, made.state(), strict=True)]
    # CD reads no chain and writes none.
    assert changed == [True] * (len(changed) - 2) + [method == "pcd", True]


def captured_steps_agree(place: Place, method: str) -> None:
    """Replays of one captured step leave parameters and chains where as many eager steps do."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        eager, made = learner(place, method), learner(place, method)
        steps = 1 if place.toy else 5
        for _ in range(2 + steps):
            eager.step()
        (stream,) = place.streams(1)
        with stream:
            for _ in range(2):
                made.step()
        place.wait()
        # What earlier calls left to be told cannot be asked for inside of a capture.
        made.loss.sampler.guard.settle()
        replay = place.recorded(made.step)
        for _ in range(steps):
            replay()
        place.wait()
        made.loss.sampler.guard.settle()
    for one, other in zip(eager.state(), made.state(), strict=True):
        assert torch.equal(one, other)
