"""What does a loader yield? ``(image, target, index)``, or with a dict of extras, moved to one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf import contract, validation

EXTRAS = ("sizes", "mask", "known", "view")


@dataclass(frozen=True)
class Batch:
    """N images with their targets and their positions in the data set."""

    image: Tensor
    """float [N, C, *shape]."""
    target: Tensor
    """integers [N, *shape]: the true labels, 255 (or what the loss ignores) where there is none."""
    index: Tensor
    """integers [N]."""
    sizes: Tensor | None = None
    """integers [N, d]: the images' own sizes where the batch is padded."""
    mask: Tensor | None = None
    """bool [N, *shape]: False where no pixel exists."""
    known: Tensor | None = None
    """integers [N, *shape]: the labels that are known at test time too, 255 elsewhere."""
    view: Tensor | None = None
    """integers [N, 2, d]: the corner of what was cut out, and which axes were turned."""

    @classmethod
    def of(cls, item: object, device: torch.device) -> Batch:
        """Checks and moves ``(image, target, index)`` or ``(image, target, index, extras)``.

        extras: optional "sizes", "mask" and "known" (uint8 ``[N, *shape]``, 255 where the label is not known at test time).
        Raises TypeError or ValueError for anything else.
        """
        if not isinstance(item, list | tuple) or len(item) not in (3, 4):
            raise TypeError(f"loader: expected batches (image, target, index) or with a dict of extras, got {_kind(item)}")
        if not all(isinstance(part, Tensor) for part in item[:3]):
            raise TypeError(f"loader: expected tensors image, target, index first, got {', '.join(map(_kind, item[:3]))}")
        image, target, index = (part.to(device, non_blocking=True) for part in item[:3])
        extras = item[3] if len(item) == 4 else {}
        if not isinstance(extras, dict) or not set(extras) <= set(EXTRAS):
            raise ValueError(f"loader: expected extras of {', '.join(map(repr, EXTRAS))}, got {_kind(extras)}")
        moved = {name: validation.tensor(name, part).to(device, non_blocking=True) for name, part in extras.items()}
        return cls(image, target, index, *(moved.get(name) for name in EXTRAS))

    @property
    def clamp(self) -> Tensor | None:
        """bool ``[N, *shape]``: True where the label is known at test time too."""
        return None if self.known is None else self.known != contract.VOID

    @property
    def labels(self) -> Tensor:
        """integers ``[N, *shape]`` to learn from: the known labels, and the target elsewhere."""
        clamp = self.clamp
        return (
            self.target
            if clamp is None or self.known is None
            else torch.where(clamp, self.known.to(self.target.dtype), self.target)
        )

    @property
    def present(self) -> Tensor:
        """bool ``[N, *shape]``: the pixels that exist."""
        shape = tuple(self.target.shape[1:])
        return validation.inside(shape, len(self.target), self.sizes, self.mask, self.target.device)

    def fitting(self, logits: Tensor, gates: Tensor | None, labels: int) -> tuple[Tensor, Tensor | None]:
        """What a network gave for this batch. Raises ValueError unless it is one logit a label and pixel of the target."""
        wanted = (len(self.image), labels, *self.target.shape[1:])
        if tuple(logits.shape) != wanted:
            area = list(self.image.shape[2:])
            if list(logits.shape[2:]) == area != list(self.target.shape[1:]):
                raise ValueError(f"target: expected {[len(self.image), *area]} as the image is, got {list(self.target.shape)}")
            hint = ""
            if logits.dim() == len(wanted) and logits.shape[1] != labels:
                hint = f": {labels} labels need {labels} channels, void is none of them"
            elif logits.dim() == len(wanted) and logits.shape[2:] != self.target.shape[1:]:
                hint = ": a network with a stride has to bring its logits back to the size of the target"
            raise ValueError(f"network: expected logits {list(wanted)} for this batch, got {list(logits.shape)}{hint}")
        return logits, gates


def _kind(item: object) -> str:
    if isinstance(item, list | tuple):
        return f"a {type(item).__name__} of {len(item)}"
    return f"keys {sorted(map(str, item))}" if isinstance(item, dict) else type(item).__name__
