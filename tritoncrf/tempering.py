"""How do chains get from mode to mode? Parallel tempering: replicas at several inverse temperatures that change places.

Replica r is swept at ``beta_r``, the first at the one asked for, the others hotter. After every round of sweeps neighbours r
and r + 1 change their labels with probability ``min(1, exp((beta_r - beta_(r+1)) (E_r - E_(r+1))))``, which leaves the product
of all their distributions as it is (Geyer 1991). Pairs with r even and with r odd take turns, whatever became of them: this
scheme is not reversible, and a labelling travels through the temperatures rather than diffuses (Syed, Bouchard-Cote,
Deligiannidis, Doucet 2021). A round trip is a labelling's way from the first temperature to the last and back.

Bits: energies are rule 1's whole multiples of 2^-12, exact on every engine, and `contract` says how a swap is decided. Each
temperature is a launch of its own: a chain whose index has the replica's number above its 40 bits, which is where rule 2 has
it, so every engine gives replica r the labels that it has in a run at ``beta_r`` alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tritoncrf import contract, diagnostics, validation
from tritoncrf.chains import ChainState
from tritoncrf.edge_inputs import Edges
from tritoncrf.energies import energy
from tritoncrf.graphs import FactorGraph
from tritoncrf.inference import Estimate, _dense, _start
from tritoncrf.model_protocol import CRF
from tritoncrf.sampler import Sampler


@dataclass(frozen=True)
class Tempered(Estimate):
    """What the replica at the first temperature says, and how replicas changed places."""

    acceptance: Tensor
    """float32 [N, R - 1]: share of the proposed swaps of neighbours that were made."""
    round_trips: Tensor
    """int64 [N]: ways of a labelling from the first temperature to the last and back."""


class Ladder:
    """Replicas of N images, each at a temperature of its own, as chains that are moved apart."""

    def __init__(self, sampler: Sampler[CRF], chains: ChainState, betas: Sequence[float]) -> None:
        """chains: with as many replicas as there are betas; they stay as they are."""
        self.sampler, self.betas = sampler, [validation.beta(beta) for beta in betas]
        if len(self.betas) != chains.replicas:
            raise ValueError(f"betas: expected one for each of {chains.replicas} replicas, got {len(self.betas)}")
        self.rungs = [self._apart(chains, r) for r in range(len(self.betas))]
        images, count = len(chains.index), len(self.betas)
        device = chains.rows.device
        self.who = torch.arange(count, device=device).repeat(images, 1)
        """int64 [N, R]: which labelling stands at each temperature."""
        self.proposed, self.made = (torch.zeros((images, count - 1), dtype=torch.int64, device=device) for _ in range(2))
        # 0: seen at neither end, 1: at the first last, 2: at the last after that.
        self._way = torch.zeros((images, count), dtype=torch.int64, device=device)
        self._way[:, 0] = 1
        self.round_trips = torch.zeros(images, dtype=torch.int64, device=device)
        self._turn = 0

    def _apart(self, chains: ChainState, r: int) -> ChainState:
        plan = replace(chains.plan, index=chains.plan.index | (r << contract.INDEX_BITS), replicas=1)
        work = self.sampler.engine.prepare(plan, chains.logits, chains.tables)
        return replace(
            chains, plan=plan, work=work, rows=chains.rows[:, r : r + 1].clone(), count=chains.count.clone(),
            flips=chains.flips[:, r : r + 1].clone(), sites=chains.sites // chains.replicas, field=None,
            rate=type(chains.rate)(), moving={},
        )  # fmt: skip

    @property
    def rows(self) -> Tensor:
        """uint8 ``[N, R, volume]``: all replicas' labels."""
        return torch.cat([rung.rows for rung in self.rungs], 1)

    def run(self, sweeps: int) -> None:
        """Sweeps every replica at its own temperature."""
        for rung, beta in zip(self.rungs, self.betas, strict=True):
            self.sampler.run(rung, sweeps, beta=beta)

    def swap(self) -> None:
        """Proposes swaps of every second pair of neighbours, of the even ones first."""
        energies = torch.stack([energy(self.sampler.engine, rung)[:, 0] for rung in self.rungs], 1)
        for r in range(self._turn % 2, len(self.betas) - 1, 2):
            here, there = self.rungs[r], self.rungs[r + 1]
            t = exponent(self.betas[r], self.betas[r + 1], energies[:, r], energies[:, r + 1])
            index = here.index & ((1 << contract.INDEX_BITS) - 1)
            site = torch.full_like(index, r)
            u = contract.draw_uniform(site, here.count, index, 0, contract.SWAP, contract.key_of(self.sampler.seed))
            made = (t >= 0) | ((t >= contract.MIN_EXPONENT) & (u < contract.exp2(t.clamp(contract.MIN_EXPONENT, 0.0))))
            self.proposed[:, r] += 1
            self.made[:, r] += made
            chosen = made[:, None, None]
            here.rows, there.rows = torch.where(chosen, there.rows, here.rows), torch.where(chosen, here.rows, there.rows)
            # What is known of a site's field holds at the labels and the temperature that it was made for.
            here.field = there.field = None
            pair = self.who[:, r : r + 2]
            self.who[:, r : r + 2] = torch.where(made[:, None], pair.flip(1), pair)
        self._turn += 1
        last, first = self.who[:, -1:], self.who[:, :1]
        self._way.scatter_(1, last, torch.where(self._way.gather(1, last) == 1, 2, self._way.gather(1, last)))
        self.round_trips += (self._way.gather(1, first) == 2)[:, 0]
        self._way.scatter_(1, first, 1)


def exponent(beta: float, other: float, energy: Tensor, theirs: Tensor) -> Tensor:
    """``t`` of a swap, whose probability is 2^t: float32 ``[N]``, of energies float64 ``[N]``."""
    scale = contract.scale_of(beta) - contract.scale_of(other)
    return (scale * (energy - theirs)).to(torch.float32)


def temper(
    crf: CRF, logits: Tensor, *, betas: Sequence[float], sweeps: int, burn_in: int, every: int = 1,
    labels: Tensor | None = None, index: Tensor | None = None, sizes: Tensor | None = None, mask: Tensor | None = None,
    clamp: Tensor | None = None, init_logits: Tensor | None = None, engine: str = "auto", seed: int | None = 0,
    kinds: Tensor | None = None, gates: Tensor | None = None, graph: FactorGraph | None = None,
) -> Tempered:  # fmt: skip
    """`estimate` at the first of ``betas`` with a replica at each of them, which change places every ``every`` sweeps.

    betas: inverse temperatures, at least two, the one asked for first (1 for the model) and falling from there; sweeps and
    burn_in are each replica's own, rounded up to whole rounds; labels: ``[N, *shape]``, all replicas'; the rest as in
    `estimate`. A swap costs each replica a count of its label pairs. Raises ValueError or TypeError naming the argument.
    """
    sweeps, burn_in = validation.whole("sweeps", sweeps, 1), validation.whole("burn_in", burn_in, 0)
    every = validation.whole("every", every, 1)
    if not isinstance(betas, Sequence) or len(betas) < 2 or any(a < b for a, b in itertools.pairwise(betas)):
        raise ValueError(f"betas: expected at least two inverse temperatures that do not rise, got {betas!r}")
    edges = Edges(kinds, gates) if graph is None else graph
    with torch.no_grad():
        sampler: Sampler[CRF] = Sampler(crf, engine, seed, validate=True)
        chains = _start(sampler, logits, init_logits, labels, index, sizes, mask, clamp, len(betas), edges)
        ladder = Ladder(sampler, chains, betas)
        for _ in range(-(-burn_in // every)):
            ladder.run(every)
            ladder.swap()
        first, rounds = ladder.rungs[0], -(-sweeps // every)
        total = torch.zeros((*first.plan.free.shape, crf.num_labels), dtype=torch.float64, device=crf.device)
        traces, flips = list[Tensor](), torch.zeros_like(first.flips)
        free = first.plan.free.sum(1).clamp(min=1)[:, None, None]
        for _ in range(rounds):
            traces.append(sampler.average(first, every, total, beta=ladder.betas[0]) / free)
            flips += first.flips
            for rung, beta in zip(ladder.rungs[1:], ladder.betas[1:], strict=True):
                sampler.run(rung, every, beta=beta)
            ladder.swap()
        first.flips = flips
        dense, fold = _dense(first, total / (rounds * every)).float(), first.layout.fold
        return Tempered(
            dense if fold is None else fold.back(dense), torch.cat(traces, -1),
            diagnostics.flip_rate(first, rounds * every), ladder.made / ladder.proposed.clamp(min=1), ladder.round_trips,
        )  # fmt: skip
