"""Which error flows into the network? ``[y' = l] - [y = l]`` at every pixel.

Kirillov et al. 2016, Algorithm 1, step 6, with the sign of a loss to be minimised; averaged over replicas. Replicas are counted
in integers, so that a pixel whose labels agree in both phases, as a clamped one's do, has an error of exactly 0.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch


@triton.jit(do_not_specialize=["share", "blocks", "area", "replicas"])
def unary_differences(free, data, out, share, blocks, area, replicas, LABELS: tl.constexpr, BLOCK: tl.constexpr):
    """Program ``image * blocks + block`` writes BLOCK pixels of all labels.

    free, data: uint8 [N, R, area], 255 where no pixel exists, whose errors are 0; share: 1 / R; out: float32
    [N, L, area], written. All contiguous.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < area
    for label in range(LABELS):
        surplus = tl.zeros((BLOCK,), tl.int32)
        for replica in range(replicas):
            drawn = tl.load(free + (image * replicas + replica) * area + pixel, mask=inside, other=255).to(tl.int32)
            stands = tl.load(data + (image * replicas + replica) * area + pixel, mask=inside, other=255).to(tl.int32)
            surplus += (drawn == label).to(tl.int32) - (stands == label).to(tl.int32)
        tl.store(out + (image * LABELS + label) * area + pixel, surplus.to(tl.float32) * share, mask=inside)


def unary_errors(free: Tensor, data: Tensor, num_labels: int, block: int = 256) -> Tensor:
    """float32 ``[N, L, *shape]`` of labels uint8 ``[N, R, *shape]``, 255 where no pixel exists."""
    images, replicas, *shape = free.shape
    area = free[0, 0].numel()
    out = torch.empty((images, num_labels, *shape), device=free.device)
    blocks = -(-area // block)
    launch(
        unary_differences, images * blocks, free.contiguous(), data.contiguous(), out, 1.0 / replicas, blocks, area, replicas,
        LABELS=num_labels, BLOCK=block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out
