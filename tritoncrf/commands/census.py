"""Which labels do the masks hold? A count over all pixels before anything is learned from them.

Masks that mean something else than the flags say look like learning that went well: of 0 and 255 with two labels, 255 is void
and label 0 is all that is left to answer. So no label at all, or one alone where there are several, is an error: there is
nothing to tell apart. A label that no mask holds is a warning: small sets and long lists of classes are honest reasons.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf.datasets import VOID, LabeledSamples
from tritoncrf.datasets.base import unpack


@dataclass(frozen=True)
class Census:
    """Pixels by label (one known anyway counts as that), and those without one."""

    counts: Tensor
    """int64 [L]."""
    void: int
    names: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """The names of the labels that no pixel has."""
        return [name for name, count in zip(self.names, self.counts.tolist(), strict=True) if count == 0]

    def __str__(self) -> str:
        total = int(self.counts.sum()) + self.void
        counted = zip((*self.names, "no label"), (*self.counts.tolist(), self.void), strict=True)
        return "pixels by label: " + ", ".join(f"{name} {_percent(count, total)}" for name, count in counted if count)


def take(dataset: LabeledSamples) -> Census:
    """Decodes every item once, so that a bad file is found before hours of work, and counts its labels."""
    counts = torch.zeros(dataset.num_labels, dtype=torch.int64)
    void = 0
    for i in range(len(dataset)):
        _, target, extras = unpack(dataset[i])
        if "known" in extras:
            fixed = extras["known"] != VOID
            target = torch.where(fixed, extras["known"].to(target.dtype), target)
        seen = torch.bincount(target.flatten(), minlength=VOID + 1)
        counts += seen[: dataset.num_labels]
        void += int(seen[VOID])
    return Census(counts, void, tuple(dataset.class_names))


def require(census: Census, what: str, void: int | Sequence[int] | None = None) -> None:
    """Raises ValueError for masks from which nothing can be learned, warns of labels that none holds.

    what: names the images; void: the numbers that mean "no label" where a map could say that they mean a label, else None.
    """
    total = int(census.counts.sum())
    voids = (void,) if isinstance(void, int) else tuple(void or ())
    if total == 0:
        where = f" but {' and '.join(map(str, voids))}, which say that there is none" if voids else ""
        raise ValueError(f"masks: expected pixels with a label in {what}, got none{where}")
    if len(census.names) > 1 and len(census.missing) == len(census.names) - 1:
        only = int(census.counts.argmax())
        sentence = f"masks: expected at least two labels in {what}, got {census.names[only]} alone"
        if census.void:
            sentence += f" and {_percent(census.void, total + census.void)} without a label"
            other = next((label for label in range(len(census.names)) if label != only), 0)
            if len(voids) == 1:
                sentence += f": if {voids[0]} means label {other} and not 'no label', say --map {voids[0]}={other}"
        raise ValueError(sentence)
    if census.missing:
        shown = ", ".join(census.missing[:8]) + (f" and {len(census.missing) - 8} more" if len(census.missing) > 8 else "")
        warnings.warn(f"masks: no pixel of {what} has {shown}: nothing will be learned of it", stacklevel=2)


def _percent(count: int, total: int) -> str:
    share = 100 * count / total if total else 0.0
    return "0 %" if count == 0 else "<0.1 %" if share < 0.05 else f"{share:.1f} %"
