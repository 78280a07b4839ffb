"""How is a kernel launched? On its tensors' device and that device's current stream; and what a first launch says of itself.

Inductor would compile a Triton kernel that it sees without ``enable_fp_fusion=False`` and change its bits: launches are made
inside of what compilers do not open (`tritoncrf.compiling`). Tensors without memory launch nothing.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from triton import knobs


def tell(*, src: Any, metadata: object, metadata_group: object, times: Any, cache_hit: bool) -> None:
    """Says on stderr that a kernel was compiled: a first call takes that long, and later processes find it on disk."""
    if not cache_hit:
        print(f"tritoncrf: compiled {src.name} for this GPU in {times.total / 1e6:.1f} s", file=sys.stderr)


def launch(kernel: Any, programs: int, first: Tensor, *arguments: object, **options: object) -> None:
    """Runs so many programs of a kernel on the device of its first argument; none of them runs nothing."""
    if first.is_meta or not programs:
        return
    if not first.is_cuda:
        kernel[(programs,)](first, *arguments, **options)
        return
    kept = knobs.compilation.listener
    if kept is None:
        knobs.compilation.listener = tell
    try:
        with torch.cuda.device(first.device):
            kernel[(programs,)](first, *arguments, **options)
    finally:
        knobs.compilation.listener = kept
