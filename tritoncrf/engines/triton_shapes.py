"""By which shape is a kernel of the Triton engine launched? By labels, warps and multiprocessors of the device at hand."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from tritoncrf.engines import Plan

if TYPE_CHECKING:
    from tritoncrf.kernels.shapes import Launch


def plain(plan: Plan) -> tuple[int, int]:
    """Sites a program and warps, of kernels that visit each site once."""
    from tritoncrf.kernels import shapes

    found: tuple[int, int] = shapes.plain(plan.num_labels, _wide())
    return found


def sweeping(plan: Plan, lazy: bool, colors: int, device: torch.device) -> Launch:
    """Of a launch of sweeps through so many colours."""
    from tritoncrf.kernels import shapes

    length = len(plan.positions) // max(colors, 1)
    return shapes.choose(plan.num_labels, lazy, len(plan.index), plan.replicas, length, _processors(device), _wide())


def _wide() -> bool:
    """Whether warps have 64 lanes."""
    return torch.version.hip is not None


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors; one where kernels are interpreted, a program after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
