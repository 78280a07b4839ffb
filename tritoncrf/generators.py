"""Which random numbers come next? The states of every generator a training run draws from, to save and to restore.

Covers the default generators of torch (CPU and CUDA), numpy and Python, and those a data loader owns. Workers of a loader
are seeded from these when they start, so they repeat too, if they start anew at every epoch: a persistent worker's generators
go on from epoch to epoch where nobody can read them, and its loader draws no seed for the next one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from tritoncrf.checkpoint import CheckpointError, Tree, group, tensor


def capture(loader: DataLoader[object] | None) -> dict[str, Tree]:
    """The states as they are now, the loader's own too if there is one."""
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    version, words, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
        "numpy": {
            "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)), "pos": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]), "gauss": float(legacy["gauss"]),
        },
        "python": {"version": version, "words": list(words), "following": following},
        "loader": [] if loader is None else [generator.get_state() for generator in _owned(loader)],
    }  # fmt: skip


def restore(state: dict[str, Tree], loader: DataLoader[object] | None) -> None:
    """Puts the states back, the loader's own too if there is one. Raises CheckpointError unless `capture` gave them."""
    before = capture(loader)
    try:
        _restore(state, loader)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        _restore(before, loader)
        raise CheckpointError(f"generators: expected the states of this run's random generators, got {error}") from None


def _restore(state: dict[str, Tree], loader: DataLoader[object] | None) -> None:
    torch.set_rng_state(tensor(state, "torch"))
    cuda = state["cuda"]
    if torch.cuda.is_available() and isinstance(cuda, list) and cuda:
        torch.cuda.set_rng_state_all([part for part in cuda if isinstance(part, torch.Tensor)])
    legacy = group(state, "numpy")
    key = tensor(legacy, "key").numpy().astype(np.uint32)
    if key.shape != (624,) or not 0 <= cast(int, legacy["pos"]) <= 624:
        raise ValueError(f"a state of numpy's of {len(key)} words at {legacy['pos']!r}")
    np.random.set_state(("MT19937", key, legacy["pos"], legacy["has_gauss"], legacy["gauss"]))  # type: ignore[arg-type]  # noqa: NPY002
    python = group(state, "python")
    random.setstate((python["version"], tuple(python["words"]), python["following"]))  # type: ignore[arg-type]
    if loader is not None:
        restore_loader(state, loader)


def restore_loader(state: dict[str, Tree], loader: DataLoader[object]) -> None:
    """Puts back the states of the generators that a loader owns, if it is of the saved one's kind."""
    owned, saved = list(_owned(loader)), state["loader"]
    if isinstance(saved, list) and len(saved) == len(owned):
        for generator, kept in zip(owned, saved, strict=True):
            generator.set_state(kept)


def renew_workers(loader: DataLoader[object]) -> None:
    """Lets go of a loader's persistent workers, so that the next epoch starts its own, as a resumed one must."""
    if getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is not None:
        loader._iterator = None


def _owned(loader: DataLoader[object]) -> Iterator[torch.Generator]:
    seen: list[torch.Generator] = []
    for owner in (loader, loader.sampler, loader.batch_sampler):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not known for known in seen):
            seen.append(generator)
            yield generator
