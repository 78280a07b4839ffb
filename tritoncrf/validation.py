"""What is bad input? Every check raises one sentence with the argument's name, what was expected and what was got.

Shapes, dtypes and devices are known on the host and raise at once. Values (NaN, ranges) are checked through a `Guard`.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.guard import Guard as Guard
from tritoncrf.guard import capturing as capturing

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def shape_text(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    return value


def logits(value: object, labels: int, ndim: int, device: torch.device | None = None, name: str = "logits") -> Tensor:
    """Checks float ``[N, L, *shape]`` with ``ndim`` spatial axes, no axis empty."""
    value = tensor(name, value)
    axes = ("N", labels, *("DHW"[-ndim:] if ndim <= 3 else ["size"] * ndim))
    if value.dim() != ndim + 2 or value.shape[1] != labels:
        raise ValueError(f"{name}: expected shape {shape_text(axes)}, got {shape_text(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
    if 0 in value.shape:
        raise ValueError(f"{name}: expected at least one image and one pixel, got shape {shape_text(value.shape)}")
    same_device(name, value, device)
    return value


def same_device(name: str, value: Tensor, device: torch.device | None) -> None:
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected device {device} (that of the CRF's tables), got {value.device}")


def shaped(
    name: str, value: object, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype], device: torch.device
) -> Tensor:
    """Checks a tensor's shape (one of ``shapes``), dtype (one of ``dtypes``) and device."""
    value = tensor(name, value)
    if tuple(value.shape) not in {tuple(shape) for shape in shapes}:
        expected = " or ".join(map(shape_text, shapes))
        raise ValueError(f"{name}: expected shape {expected}, got {shape_text(value.shape)}")
    if value.dtype not in dtypes:
        expected = "an integer dtype" if len(dtypes) > 1 else str(dtypes[0])
        raise TypeError(f"{name}: expected {expected}, got {value.dtype}")
    same_device(name, value, device)
    return value


def writable(name: str, value: Tensor) -> None:
    """Checks that a tensor may be written in place here."""
    if value.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name}: expected chains made outside of torch.inference_mode, got some made in it, outside of it")


def totals(value: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Checks ``out``, which engines add float64 numbers to by place."""
    shaped("out", value, [shape], [torch.float64], device)
    if value.requires_grad or not value.is_contiguous():
        got = "one that does" if value.requires_grad else f"strides {list(value.stride())}"
        raise ValueError(f"out: expected a contiguous tensor that needs no gradient, got {got}")


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number in ``least .. most``, Python's or numpy's, as Python's."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if (value := int(value)) < least or (most is not None and value > most):
        bound = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: expected an integer {bound}, got {value}")
    return value


def choice(name: str, value: object, options: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def beta(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= contract.MAX_BETA:
        raise ValueError(f"beta: expected an inverse temperature from 0 to {contract.MAX_BETA:g}, got {value!r}")
    return float(value)


def first(bad: Tensor, graph: bool = False) -> str:
    """Where the first True of a mask lies, for a sentence; graph: whether the mask is ``[N, .., nodes]`` of graphs."""
    found = torch.nonzero(bad)[0].tolist()
    return f"node {found[-1]} of graph {found[0]}" if graph else "index " + shape_text(found)


def logit_values(
    guard: Guard, values: Tensor, exists: Tensor | None, name: str = "logits", graph: bool = False
) -> None:
    """Requires neither NaN nor +inf, and an allowed label, where ``exists`` (bool ``[N, *shape]``, None: everywhere)."""
    per = "node" if graph else "pixel"
    sentence = f"{name}: expected finite numbers or -inf for a forbidden label, one finite at least per {per}"
    # Rule 1 converts first, and a large double is an infinite float.
    if not guard.waits(values.device):
        top = values.detach().amax(1).to(torch.float32)
        top = top if exists is None else top.masked_fill(~exists, 0.0)
        guard.require(torch.linalg.vector_norm(top, torch.inf) < torch.inf, sentence, str)
        return
    # A finite sum has finite terms, and adding up costs least; one that is not says nothing yet.
    if bool(values.detach().sum(dtype=torch.float32).isfinite()):
        return
    seen = values.detach().to(torch.float32)
    top = seen.amax(1)
    fine = (top < torch.inf) & (top > -torch.inf)
    fine = fine if exists is None else fine | ~exists
    guard.require(fine, sentence, lambda: _logit_fault(seen, fine, graph))


def _logit_fault(values: Tensor, fine: Tensor, graph: bool) -> str:
    place = torch.nonzero(~fine)[0].tolist()
    pixel = values[(place[0], slice(None), *place[1:])]
    what = "NaN" if bool(pixel.isnan().any()) else "+inf" if bool((pixel == torch.inf).any()) else "no allowed label"
    return f"{what} at {first(~fine, graph)}" if graph else f"{what} in image {place[0]} at pixel {tuple(place[1:])}"


def label_values(
    guard: Guard, name: str, values: Tensor, labels: int, checked: Tensor, also: int | None = None, graph: bool = False
) -> None:
    """Requires labels in 0 .. labels - 1 (or ``also``) where ``checked``; graph: whether they are of graphs' nodes."""
    values = values.long()
    bad = checked & ((values < 0) | (values >= labels))
    if also is not None:
        bad &= values != also
    extra = "" if also is None else f" (or {also})"
    guard.require(
        ~bad, f"{name}: expected labels from 0 to {labels - 1}{extra}", lambda: f"{int(values[bad][0])} at {first(bad, graph)}"
    )


def tables(guard: Guard, rounded: Tensor, gated: Tensor | None = None, gating: Sequence[int] = ()) -> None:
    """Requires finite tables within rule 1's bound; gating: where each class stands among those of ``gated``, -1: nowhere."""
    mass = contract.table_mass(rounded)
    # In double precision it is finite if all are.
    total, also = mass.sum(dtype=torch.float64), ""
    guard.require(
        total < torch.inf,
        "pairwise: expected finite table entries",
        lambda: f"NaN or infinity in class {int((~mass.isfinite()).int().argmax())}",
    )
    if gated is not None:
        largest = gated.abs().amax((2, 3))
        guard.require(
            largest <= contract.GATED_BOUND,
            f"gated: expected entries of at most {contract.GATED_BOUND:g} in size",
            lambda: f"{float(largest[~(largest <= contract.GATED_BOUND)][0]):g} in table "
            f"{shape_text(torch.nonzero(~(largest <= contract.GATED_BOUND))[0].tolist())}",
        )
        total, also = total + 2.0 * largest.sum(), ", gates' included,"

    def got() -> str:
        per_class = mass.clone()
        if gated is not None:
            chosen = [c for c, place in enumerate(gating) if place >= 0]
            per_class[chosen] += 2.0 * gated.abs().amax((2, 3)).sum(0)[[gating[c] for c in chosen]]
        return f"{float(total):.6g}, most of it in class {int(per_class.argmax())} ({float(per_class.max()):.1f})"

    sentence = f"pairwise: expected 2 * sum of each class's largest |entry|{also} of at most {contract.TABLE_BOUND:g}"
    guard.require(total <= contract.TABLE_BOUND, sentence, got)


def extents(
    guard: Guard, images: int, shape: Sequence[int], sizes: object, mask: object, device: torch.device,
    limits: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Checks ``sizes`` (integers ``[N, d]`` of 1 .. shape) and ``mask`` (bool ``[N, *shape]``); sizes come back as int64.

    limits: int64 ``[d]``, the shape, where it is on the device already.
    """
    if sizes is not None:
        sizes = shaped("sizes", sizes, [(images, len(shape))], INTEGERS, device).long()
        if limits is None:
            limits = torch.tensor(shape, device=device)
        fitting = sizes.clamp(min=1).minimum(limits)
        fine, told = sizes.eq(fitting), sizes
        guard.require(
            fine,
            f"sizes: expected sizes from 1 to those of the padded batch {tuple(shape)}",
            lambda: f"{told[~fine.all(1)][0].tolist()} at {first(~fine.all(1))}",
        )
        sizes = fitting
    if mask is not None:
        mask = shaped("mask", mask, [(images, *shape)], [torch.bool], device)
    return sizes, mask


def inside(shape: Sequence[int], images: int, sizes: Tensor | None, mask: Tensor | None, device: torch.device) -> Tensor:
    """bool ``[N, *shape]``: the pixels that exist."""
    present = torch.ones((images, *shape), dtype=torch.bool, device=device)
    if sizes is not None:
        for axis, length in enumerate(shape):
            view = [1] * (len(shape) + 1)
            view[axis + 1] = length
            steps = torch.arange(length, device=device).view(view)
            present &= steps < sizes[:, axis].view(-1, *[1] * len(shape))
    return present if mask is None else present & mask
