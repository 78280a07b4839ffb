"""What does a visit leave to be watched? Samples and counts, reduced to figures when somebody asks for them.

Most steps' figures nobody reads: on a GPU each would be launches of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tritoncrf import contract
from tritoncrf.energies import Path


@dataclass(frozen=True)
class Statistics:
    """Of the last call, as tensors on its device: reading one is what waits for the device."""

    flip_rate: Tensor
    """Label changes per free pixel and sweep of the free phase, 0 .. 1."""
    energy_gap: Tensor
    """``E(y) - E(y')`` per labelled pixel, in nats: near 0 once the chains follow the model."""
    chain_accuracy: Tensor
    """Share of labelled, unclamped pixels whose sampled label is the target."""
    labelled: Tensor
    """Labelled, unclamped pixels in the batch."""
    energy_drop: Tensor
    """By how much the free phase's sweeps lowered the chains' energy, per free pixel, in nats: zero in the mean where they keep
    up with the model, more where they lag behind it (`energies`)."""
    drops: Tensor
    """float32 [N]: the same of each image, of this rank's own."""


@dataclass(frozen=True)
class Tally:
    """What `Statistics` are made from, of all ranks; nobody writes into it afterwards."""

    labelled: Tensor
    """int64 []: pixels that count."""
    gap: Tensor
    """float64 [] or [N]: ``E(y) - E(y')``."""
    right: tuple[Tensor, ...]
    """Of those that count, how many sampled labels are the target, int64 []; or samples uint8 [N, R, *shape], targets uint8 and
    which count, bool [N, *shape]."""
    updates: Tensor
    """int64 [], or bool [N, S]: free sites."""
    flips: Tensor
    """int64 [] or [N, R]."""
    replicas: int
    sweeps: int
    path: Path
    fallen: Tensor | None = None
    """int64 [marks + 1]: of several ranks, the falls of energy between marks of all their free phases' paths, in 2^-12 nat, and
    their free sites."""

    def __reduce__(self) -> tuple[type[Statistics], tuple[Tensor, ...]]:
        # A copy has the figures, not what they are made from.
        return Statistics, tuple(vars(self.statistics()).values())

    def statistics(self) -> Statistics:
        """The figures, made anew: after a CUDA graph's replay those of the replay."""
        updates, labelled = self.updates.sum(), self.labelled
        correct = self.right[0] if len(self.right) == 1 else agreeing(*self.right)
        return Statistics(
            self.flips.sum().float() / (updates * self.replicas * self.sweeps).clamp(min=1).float(),
            (self.gap.sum() / labelled.clamp(min=1)).float(),
            correct.float() / (labelled * self.replicas).clamp(min=1).float(),
            labelled.clone(),
            *self._drops(),
        )

    def falls(self) -> tuple[Tensor, Tensor]:
        """Of all ranks' images, int64 ``[marks]`` and ``[]``: falls between marks in 2^-12 nat, and free sites."""
        if self.fallen is not None:
            return self.fallen[:-1], self.fallen[-1]
        return self.path.drops().sum(1), self.path.sites.sum()

    def _drops(self) -> tuple[Tensor, Tensor]:
        # Between first and last all others fall out.
        drops, sites = self.path.whole().drops()[0], self.path.sites
        fallen = (drops.sum(), sites.sum()) if self.fallen is None else (self.fallen[:-1].sum(), self.fallen[-1])
        return per_site(*fallen), per_site(drops, sites)


def per_site(fallen: Tensor, sites: Tensor) -> Tensor:
    """Nats a site, float32, of int64 in 2^-12 nat."""
    return (fallen.double() / contract.GRID / sites.clamp(min=1)).float()


def agreeing(samples: Tensor, known: Tensor, counted: Tensor) -> Tensor:
    """int64 []: how many samples ``[N, R, *shape]`` are the known label ``[N, *shape]`` where that counts."""
    return ((samples == known[:, None]) & counted[:, None]).sum()
