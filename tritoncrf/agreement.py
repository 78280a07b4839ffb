"""Do all ranks learn the same model? What must be alike before the first step of several, asked once."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tritoncrf import contract
from tritoncrf.ranks import Ranks


def agree(ranks: Ranks, settings: Mapping[str, int], seed: int, device: torch.device) -> int:
    """The first rank's seed. Raises the same ValueError on every rank where what is ``settings``, by name, is not alike."""
    numbers = torch.tensor([*settings.values(), *contract.key_of(seed)], dtype=torch.int64, device=device)
    everyone = [part.tolist() for part in ranks.gather(numbers)]
    for place, name in enumerate(settings):
        odd = next((rank for rank, part in enumerate(everyone) if part[place] != everyone[0][place]), None)
        if odd is not None:
            raise ValueError(f"{name}: expected the same on every rank, got other ones on rank {odd} than on rank 0")
    return int(everyone[0][-2]) | int(everyone[0][-1]) << 32
