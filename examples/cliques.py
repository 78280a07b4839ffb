"""What do factors of three add to pairs? Thin lines under noise, cleaned by tables that learned from clean ones."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

import tritoncrf as tc
from tritoncrf.graph_builders import grid
from tritoncrf.plots import colorize, label_grid

SIDE, NOISE = 32, 0.05
Cliques = Sequence[Sequence[tuple[int, int]]]
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Both models reach as far: a pixel's neighbours, and those two steps away in the same directions.
PAIRS: Cliques = [((0, 0), (y * step, x * step)) for y, x in DIRECTIONS for step in (1, 2)]
TRIPLES: Cliques = [((-y, -x), (0, 0), (y, x)) for y, x in DIRECTIONS]


def lines(count: int, make: torch.Generator) -> Tensor:
    """Pictures ``[count, SIDE, SIDE]`` of a few strokes one pixel wide, straight or diagonal, that may cross."""
    pictures = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for picture in pictures:
        for _ in range(6):
            y, x, way, length = (int(torch.randint(n, (), generator=make)) for n in (SIDE, SIDE, len(DIRECTIONS), 20))
            dy, dx = DIRECTIONS[way]
            for step in range(-10 - length, 10 + length):
                if 0 <= y + step * dy < SIDE and 0 <= x + step * dx < SIDE:
                    picture[y + step * dy, x + step * dx] = 1
    return pictures


def logits_of(seen: Tensor) -> Tensor:
    """Log-likelihoods of what is seen, ``[nodes, 2]``."""
    right, wrong = math.log(1 - NOISE), math.log(NOISE)
    return torch.stack([torch.where(seen == label, right, wrong) for label in (0, 1)], -1).flatten(0, -2)


def learned(cliques: Cliques, truth: Tensor, seen: Tensor, steps: int) -> tc.FactorCRF:
    """A model of these cliques, one table each, that maximises the likelihood of the pictures given what is seen of them."""
    graph = grid((SIDE, SIDE), cliques)
    crf = tc.FactorCRF(2, [len(clique) for clique in cliques])
    loss = tc.CRFLoss(crf, chains=tc.ChainStore([(SIDE * SIDE,)] * len(truth), seed=0))
    optimizer = torch.optim.Adam(crf.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    together = 8
    for step in range(steps):
        chosen = torch.arange(step * together, (step + 1) * together) % len(truth)
        optimizer.zero_grad()
        batch = tc.FactorGraph.batch([graph] * together)
        # Nothing below the tables learns, but a loss wants logits that could.
        loss(logits_of(seen[chosen]).requires_grad_(), truth[chosen].flatten(), chosen, graph=batch).backward()
        optimizer.step()
        schedule.step()
    return crf


def cleaned(crf: tc.FactorCRF, cliques: Cliques, seen: Tensor) -> Tensor:
    batch = tc.FactorGraph.batch([grid((SIDE, SIDE), cliques)] * len(seen))
    return tc.max_marginal(crf, logits_of(seen), sweeps=100, burn_in=50, graph=batch).view_as(seen)


def main(steps: int, picture: str | None = None) -> None:
    make = torch.Generator().manual_seed(0)
    train, test = lines(128, make), lines(32, make)
    noisy, seen = (truth ^ (torch.rand(truth.shape, generator=make) < NOISE).long() for truth in (train, test))
    found = {"as seen": seen}
    for name, cliques in (("pairs", PAIRS), ("pairs and triples", [*PAIRS, *TRIPLES])):
        crf = learned(cliques, train, noisy, steps)
        found[name] = cleaned(crf, cliques, seen).long()
    for name, labels in found.items():
        on = test == 1
        missed, added = (labels[on] == 0).float().mean(), (labels[~on] == 1).float().mean()
        print(f"{name}: {(labels != test).float().mean():.2%} of the pixels wrong, {missed:.1%} of the strokes missed, "
              f"{added:.2%} of the rest added")  # fmt: skip
    if picture is not None:
        rows = [[colorize(part[n], 2, background=0) for part in (test, *found.values())] for n in range(3)]
        label_grid(rows, ["truth", *found], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
