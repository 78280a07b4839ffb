"""What is bad input? Every check raises one sentence with the argument's name, what was expected and what was got.

Shapes, dtypes and devices are known on the host and raise at once. Values (NaN, ranges) are looked at through a `Guard`: at
once on a CPU; on a GPU, where reading them would stall the stream, it sets a flag on the device, the call's results are
voided, and the next call raises.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tritoncrf import contract

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


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Checks a Python integer in ``least .. most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least or (most is not None and value > most):
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


class Guard:
    """Looks at values: at once on a CPU, through a device flag elsewhere (``immediate`` forces one or the other).

    Public calls run inside `call`. `require` states a condition; where it may not wait, a failed one turns `flag` true until
    the next call, which raises for it as soon as the device has told; `settle` waits for that.
    """

    def __init__(self, immediate: bool | None = None) -> None:
        self._immediate = immediate
        self._depth = 0
        self._open: list[tuple[str, Tensor]] = []
        self._pending: list[tuple[tuple[str, ...], Tensor, torch.cuda.Event | None]] = []

    @contextmanager
    def call(self) -> Iterator[None]:
        """A public call: the outermost one closes the last one's flag and raises for an earlier call now known to be bad."""
        if self._depth == 0:
            self._close()
            self.settle(wait=False)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def waits(self, device: torch.device) -> bool:
        """Whether values on ``device`` are looked at once."""
        return device.type == "cpu" if self._immediate is None else self._immediate

    def require(self, ok: Tensor, sentence: str, got: Callable[[], str]) -> None:
        """States that all of ``ok`` is true: ``sentence`` says name and expectation, ``got()`` what there was instead."""
        good = ok.all()
        if not self.waits(good.device):
            self._open.append((sentence, good))
        elif not bool(good):
            self._open.clear()
            raise ValueError(f"{sentence}, got {got()}")

    def flag(self, device: torch.device) -> Tensor:
        """bool ``[]``: whether any value looked at since the call began was bad."""
        bad = torch.zeros((), dtype=torch.bool, device=device)
        for _, good in self._open:
            bad = bad | ~good
        return bad

    def settle(self, wait: bool = True) -> None:
        """Raises ValueError for an earlier deferred check that failed; with ``wait``, also for those still on the device."""
        if wait:
            self._close()
        while self._pending:
            sentences, bad, event = self._pending[0]
            if event is not None and not (wait or event.query()):  # type: ignore[no-untyped-call]
                return
            if event is not None:
                event.synchronize()
            self._pending.pop(0)
            failed = [sentence for sentence, is_bad in zip(sentences, bad.tolist(), strict=True) if is_bad]
            if failed:
                self._pending.clear()
                raise ValueError(f"{failed[0]}, got otherwise in an earlier call, whose loss was NaN and which moved no chain")

    def _close(self) -> None:
        if self._open:
            sentences, flags = zip(*self._open, strict=True)
            bad = ~torch.stack(flags)
            event = None
            if bad.is_cuda:
                host = torch.empty(bad.shape, dtype=torch.bool, pin_memory=True)
                host.copy_(bad, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                bad = host
            self._pending.append((sentences, bad, event))
            self._open = []


def first(bad: Tensor) -> str:
    """Where the first True of a mask lies, for a sentence."""
    return "index " + shape_text(torch.nonzero(bad)[0].tolist())


def logit_values(guard: Guard, values: Tensor, exists: Tensor, name: str = "logits") -> None:
    """Requires neither NaN nor +inf, and an allowed label, where ``exists`` (bool ``[N, *shape]``)."""
    # Rule 1 converts first, and a large double is an infinite float.
    seen = values.detach().to(torch.float32)
    top = seen.amax(1)
    fine = ~exists | ((top < torch.inf) & (top > -torch.inf))
    guard.require(
        fine,
        f"{name}: expected finite numbers or -inf for a forbidden label, one finite at least per pixel",
        lambda: _logit_fault(seen, exists, fine),
    )


def _logit_fault(values: Tensor, exists: Tensor, fine: Tensor) -> str:
    place = torch.nonzero(~fine)[0].tolist()
    pixel = values[(place[0], slice(None), *place[1:])]
    what = "NaN" if bool(pixel.isnan().any()) else "+inf" if bool((pixel == torch.inf).any()) else "no allowed label"
    return f"{what} in image {place[0]} at pixel {tuple(place[1:])}"


def label_values(guard: Guard, name: str, values: Tensor, labels: int, looked_at: Tensor, also: int | None = None) -> None:
    """Requires labels in 0 .. labels - 1 (or ``also``) where ``looked_at``."""
    values = values.long()
    bad = looked_at & ((values < 0) | (values >= labels))
    if also is not None:
        bad &= values != also
    extra = "" if also is None else f" (or {also})"
    guard.require(
        ~bad, f"{name}: expected labels from 0 to {labels - 1}{extra}", lambda: f"{int(values[bad][0])} at {first(bad)}"
    )


def tables(guard: Guard, rounded: Tensor) -> None:
    """Requires finite tables within rule 1's bound."""
    mass = contract.table_mass(rounded)
    guard.require(
        mass.isfinite(),
        "pairwise: expected finite table entries",
        lambda: f"NaN or infinity in class {int((~mass.isfinite()).int().argmax())}",
    )
    guard.require(
        mass.sum() <= contract.TABLE_BOUND,
        f"pairwise: expected 2 * sum of each class's largest |entry| of at most {contract.TABLE_BOUND:g}",
        lambda: f"{float(mass.sum()):.6g}, most of it in class {int(mass.argmax())} ({float(mass.max()):.1f})",
    )


def extents(
    guard: Guard, images: int, shape: Sequence[int], sizes: object, mask: object, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Checks ``sizes`` (integers ``[N, d]`` of 1 .. shape) and ``mask`` (bool ``[N, *shape]``); sizes come back as int64."""
    if sizes is not None:
        sizes = shaped("sizes", sizes, [(images, len(shape))], INTEGERS, device).long()
        limit = torch.tensor(tuple(shape), device=device)
        bad = (sizes < 1) | (sizes > limit)
        told = sizes
        guard.require(
            ~bad,
            f"sizes: expected sizes from 1 to those of the padded batch {tuple(shape)}",
            lambda: f"{told[bad.any(1)][0].tolist()} at {first(bad.any(1))}",
        )
        sizes = torch.minimum(sizes.clamp(min=1), limit)
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
