"""What do a layout's batches share on their device? Lists of colours and edges, copied there once."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf.engines import Plan


@dataclass(frozen=True)
class Grid:
    """What a layout's batches share, on their device."""

    color_bounds: Tensor
    """int32 [colors + 1]."""
    displacements: Tensor
    """int32 [K]."""
    tables: Tensor
    """int32 [K]."""
    steps: Tensor
    """int32 [F]: displacements, filled up with the first to a length that suits kernels (`tritoncrf.kernels.rows.filled`)."""
    chosen: Tensor
    """int32 [F]: tables, filled up with -1."""
    planes: Tensor
    """int32 [K]: where each displacement's kinds stand, -1: nowhere."""
    kinded: Tensor
    """int32 [2, 2F]: of `by_rank`'s outputs the planes, and how far before its site an edge begins."""
    weighing: Tensor
    """int32 [2, Kg * 2 * G]: likewise, of gates."""
    gating: Tensor
    """int32 [F + 2 Kg]: as `tritoncrf.kernels.edges.Edges` has it."""


@functools.lru_cache(maxsize=64)
def _grid(
    color_bounds: tuple[int, ...], displacements: tuple[int, ...], classes: tuple[int, ...], ranks: int, planes: int,
    kinded: tuple[int, ...], gating: tuple[int, ...], device: torch.device,
) -> Grid:  # fmt: skip
    from tritoncrf.kernels.rows import filled

    # Copied to the device once a layout: a step that is captured or must not stall finds them there.
    gated = [k for k, plane in enumerate(gating) if plane >= 0]
    outputs = [
        (rank * planes + gating[k], step) for k in gated for step in (0, displacements[k]) for rank in range(ranks)
    ]
    empty = filled(len(displacements)) - len(displacements)
    # A neighbour, since at a site itself a lane would read what another one writes.
    steps, chosen = displacements + displacements[:1] * empty, classes + (-1,) * empty
    ends = [(plane, step) for plane, far in zip(kinded, displacements, strict=False) for step in (0, far)]
    ends += [(-1, 0)] * (2 * empty if kinded else 0)
    lists = (
        color_bounds, displacements, classes, steps, chosen, kinded, ([plane for plane, _ in ends], [step for _, step in ends]),
        ([plane for plane, _ in outputs], [step for _, step in outputs]),
        ([gated.index(k) if k in gated else -1 for k in range(len(gating))] + [-1] * (empty if gating else 0) + gated
         + [gating[k] for k in gated]),
    )  # fmt: skip
    parts = (torch.tensor(numbers, dtype=torch.int32, device="cpu") for numbers in lists)
    return Grid(*(part.to(device) for part in parts))


def grid_of(plan: Plan) -> Grid:
    """The grid of a plan's layout and form."""
    _, ranks, kinded, gating = plan.form
    planes = plan.edges.gates.shape[2] if plan.edges is not None and plan.edges.gates is not None else 0
    device = plan.positions.device
    return _grid(plan.color_bounds, plan.displacements, plan.classes, ranks, planes, kinded, gating, device)
