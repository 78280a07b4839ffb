"""What does the sampler do without any learning? An Ising torus, a noisy picture, a chain of labels."""

from __future__ import annotations

import argparse
import math

import torch

import tritoncrf as tc
from tritoncrf.plots import colorize, label_grid


def ising(sweeps: int, beta: float = 0.3, side: int = 64) -> float:
    """Energy a bond, -<s_i s_j>, of a torus at inverse temperature ``beta``; label 0 is spin -1, label 1 is +1."""
    spins = torch.tensor([-1.0, 1.0])
    crf = tc.GridCRF(2, tc.Neighborhood.nearest(4), -torch.outer(spins, spins).expand(2, 2, 2), wrap=True)
    logits, sampler = torch.zeros(1, 2, side, side), tc.Sampler(crf, seed=0)
    chains = sampler.init(logits, replicas=16)
    sampler.run(chains, sweeps, beta=beta)
    return crf.energy(logits, chains.labels).mean().item() / (2 * side**2)


def onsager(beta: float = 0.3) -> float:
    """The same of the infinite grid (Onsager 1944), by the arithmetic-geometric mean."""
    k = 2 * math.sinh(2 * beta) / math.cosh(2 * beta) ** 2
    a, b = 1.0, math.sqrt(1 - k * k)
    for _ in range(20):
        a, b = (a + b) / 2, math.sqrt(a * b)
    return -(1 + (2 / math.pi) * (2 * math.tanh(2 * beta) ** 2 - 1) * math.pi / (2 * a)) / (2 * math.tanh(2 * beta))


def denoised(sweeps: int, noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A disc, the same with labels flipped with probability ``noise``, and the most probable labels given that."""
    make = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    truth = ((y - 32) ** 2 + (x - 32) ** 2 < 400).long()
    seen = truth ^ (torch.rand(64, 64, generator=make) < noise).long()
    # Logits are log-likelihoods of what is seen: negated unary energies.
    right, wrong = math.log(1 - noise), math.log(noise)
    logits = torch.stack([torch.where(seen == label, right, wrong) for label in (0, 1)])[None]
    potts = 0.6 * (1 - torch.eye(2)).expand(4, 2, 2)
    labels = tc.max_marginal(tc.GridCRF(2, tc.Neighborhood.nearest(8), potts), logits, sweeps=sweeps, burn_in=sweeps // 2)
    return truth, seen, labels[0]


def chain(sweeps: int) -> float:
    """Largest error of sampled marginals of a chain of 12 labels against the forward-backward recursion."""
    make = torch.Generator().manual_seed(0)
    logits, table = torch.randn(1, 3, 12, generator=make), torch.randn(1, 3, 3, generator=make)
    crf = tc.GridCRF(3, tc.Neighborhood.nearest(2, ndim=1), table)
    found = tc.marginals(crf, logits, sweeps=sweeps, burn_in=sweeps // 10, replicas=64)[0]
    unary = logits[0].double()
    ahead, back = [unary[:, 0]], [torch.zeros(3).double()]
    for n in range(1, 12):
        ahead.append(unary[:, n] + torch.logsumexp(ahead[-1][:, None] - table[0], 0))
        back.append(torch.logsumexp(unary[:, 12 - n] + back[-1] - table[0], 1))
    exact = (torch.stack(ahead, 1) + torch.stack(back[::-1], 1)).softmax(0)
    return float((found - exact).abs().max())


def main(steps: int, picture: str | None = None) -> None:
    print(f"Ising torus at beta 0.3: energy a bond {ising(steps):.4f}, Onsager {onsager():.4f}")
    disc = truth, seen, labels = denoised(steps)
    wrong = [(part != truth).float().mean() for part in (seen, labels)]
    print(f"disc: {wrong[0]:.1%} of the pixels wrong before, {wrong[1]:.1%} after")
    print(f"chain: marginals within {chain(steps):.4f} of forward-backward")
    if picture is not None:
        label_grid([[colorize(part, 2) for part in disc]], ["truth", "as seen", "most probable"], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="sweeps")
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
