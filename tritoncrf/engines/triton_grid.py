"""What do a layout's batches share on their device? Lists of phases and edges, copied there once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from tritoncrf.engines import Plan


@dataclass(frozen=True)
class Grid:
    """What a layout's batches share, on their device."""

    phases: Tensor
    """int32 [phases + 1]."""
    phase: Tensor
    """int64 [S]: the phase of each slot."""
    ends: Tensor
    """int64 [phases + 1]: as ``phases``, to index by."""
    displacements: Tensor
    """int32 [K]."""
    tables: Tensor
    """int32 [K]."""
    kinded: Tensor
    """int32 [2, 2K]: of `by_rank`'s outputs the planes, and how far before its site an edge begins."""
    weighing: Tensor
    """int32 [2, Kg * 2 * G]: likewise, of gates."""
    gating: Tensor
    """int32 [K + 2 Kg]: as `tritoncrf.kernels.edges.Edges` has it."""


@functools.lru_cache(maxsize=64)
def _grid(
    phases: tuple[int, ...], displacements: tuple[int, ...], classes: tuple[int, ...], ranks: int, planes: int,
    kinded: tuple[int, ...], gating: tuple[int, ...], device: torch.device,
) -> Grid:  # fmt: skip
    # Copied to the device once a layout: a step that is captured or must not stall finds them there.
    ends = torch.tensor(phases, dtype=torch.int64, device="cpu")
    phase = torch.repeat_interleave(torch.arange(len(phases) - 1, device="cpu"), ends.diff())
    gated = [k for k, plane in enumerate(gating) if plane >= 0]
    outputs = [
        (rank * planes + gating[k], step) for k in gated for step in (0, displacements[k]) for rank in range(ranks)
    ]
    lists = (
        displacements, classes, (kinded * 2, (0,) * len(kinded) + (displacements if kinded else ())),
        ([plane for plane, _ in outputs], [step for _, step in outputs]),
        ([gated.index(k) if k in gated else -1 for k in range(len(gating))] + gated + [gating[k] for k in gated]),
    )  # fmt: skip
    parts = ends.int(), phase, ends, *(torch.tensor(numbers, dtype=torch.int32, device="cpu") for numbers in lists)
    return Grid(*(part.to(device) for part in parts))


def grid_of(plan: Plan) -> Grid:
    """The grid of a plan's layout and form."""
    _, ranks, kinded, gating = plan.form
    planes = plan.edges.gates.shape[2] if plan.edges is not None and plan.edges.gates is not None else 0
    device = plan.positions.device
    return _grid(plan.phases, plan.displacements, plan.classes, ranks, planes, kinded, gating, device)
