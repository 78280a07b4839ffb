"""What does a data set made of others say of itself? What all its parts say, through torch's `Subset` and `ConcatDataset`.

An image's chain is found by its number, so parts that are joined must be numbered once, from outside: `concat`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset


def forwarded(dataset: object, name: str) -> object:
    """Attribute ``name`` of a data set, or of what it is a part of or is joined from; "sizes" are picked and joined.

    Raises AttributeError where there is none, ValueError where joined parts differ.
    """
    if hasattr(dataset, name):
        return getattr(dataset, name)
    if isinstance(dataset, Subset):
        found = forwarded(dataset.dataset, name)
        # A list: numpy's integers and tensors number lists as well.
        return [found[int(i)] for i in dataset.indices] if name == "sizes" and isinstance(found, list) else found
    if isinstance(dataset, ConcatDataset) and dataset.datasets:
        parts = [forwarded(part, name) for part in dataset.datasets]
        if name == "sizes":
            return list(chain.from_iterable(part for part in parts if isinstance(part, list)))
        if any(part != parts[0] for part in parts):
            raise ValueError(f"datasets: expected the same {name} in all parts, got {parts}")
        return parts[0]
    raise AttributeError(f"dataset: {type(dataset).__name__} has no attribute {name!r} to forward")


def known_of(dataset: object, name: str) -> Any:
    """As `forwarded`; None where there is none."""
    try:
        return forwarded(dataset, name)
    except AttributeError:
        return None


def numbering(dataset: object) -> object:
    """The data set whose numbers a loader's batches carry: what a `Subset` is a part of.

    Raises ValueError for data sets that were joined after they were numbered, each from 0.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset) and len(dataset.datasets) > 1:
        raise ValueError(
            f"dataset: expected images that are numbered once, got {len(dataset.datasets)} data sets joined by "
            "ConcatDataset (join them by tritoncrf.concat)"
        )
    return dataset


def flat(datasets: tuple[Dataset[object], ...], kind: type) -> ConcatDataset[object]:
    """The joined data sets, of those of a ``kind`` what they are around."""
    if not datasets:
        raise ValueError("datasets: expected one at least, got none")
    return ConcatDataset([part.dataset if isinstance(part, kind) else part for part in datasets])  # type: ignore[attr-defined]
