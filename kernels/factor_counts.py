"""How often is each entry of a graph's tables read? Counts of factors by their members' labels, added up atomically.

Counts are whole numbers, a factor counting its gate's steps where the model has gates, so their order changes nothing. The
difference of two samples looks at both at once: a factor that reads the same entry in both, as most do, adds nothing.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.device import launch


class Part(NamedTuple):
    """All factors of one arity, F of them."""

    members: Tensor
    """int32 [arity, F]: positions in a row of their own graph, in the order of the table's axes."""
    graph: Tensor
    """int32 [F]: the graph of each."""
    start: Tensor
    """int64 [F]: where its table begins in the flat tables."""
    gates: Tensor | None
    """uint8 [F]: in steps of 1 / 128; None: all of them count ``unit``."""


@triton.jit
def entries_of(row, members, start, factor, inside, number, LABELS: tl.constexpr, ARITY: tl.constexpr):
    """The entry that each factor reads of the flat tables, int64 [B], and whether it reads one, from labels' rows [B]."""
    # Below 64^4.
    entry = tl.zeros(factor.shape, tl.int32)
    for j in tl.static_range(ARITY):
        position = tl.load(members + j * number + factor, mask=inside, other=0)
        label = tl.load(row + position, mask=inside, other=0).to(tl.int32)
        inside = inside & (label < LABELS)
        entry = entry * LABELS + label
    return start + entry, inside


@triton.jit(do_not_specialize=["unit", "size", "replicas", "volume", "number"])
def count_factors(
    data, free, counts, members, graph, start, gates, unit, size, replicas, volume, number,
    LABELS: tl.constexpr, ARITY: tl.constexpr, DIFFERENCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds BLOCK factors' counts; program ``block``.

    data, free: uint8 [N, R, volume]; members to gates: as in `Part`; counts: int64 [N, R, size], or [size], of data less
    those of free, if DIFFERENCE. All contiguous.
    """
    factor = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = factor < number
    begin = tl.load(start + factor, mask=inside, other=0)
    owner = tl.load(graph + factor, mask=inside, other=0).to(tl.int64) * replicas
    weight = begin * 0 + unit
    if gates is not None:
        weight = tl.load(gates + factor, mask=inside, other=0).to(tl.int64)
    for replica in range(replicas):
        row = (owner + replica) * volume
        entry, whole = entries_of(data + row, members, begin, factor, inside, number, LABELS, ARITY)
        if DIFFERENCE:
            other, also = entries_of(free + row, members, begin, factor, inside, number, LABELS, ARITY)
            moved = (entry != other) | (whole != also)
            tl.atomic_add(counts + entry, weight, mask=whole & moved, sem="relaxed")
            tl.atomic_add(counts + other, -weight, mask=also & moved, sem="relaxed")
        else:
            tl.atomic_add(counts + (owner + replica) * size + entry, weight, mask=whole, sem="relaxed")


def factor_counts(
    data: Tensor, free: Tensor | None, parts: list[Part], num_labels: int, size: int, unit: int, block: int = 128
) -> Tensor:
    """How often each of ``size`` entries is read, int64 ``[N, R, size]``; with free, ``[size]``, of data less free, all chains.

    data, free: uint8 ``[N, R, volume]``; unit: what a factor without a gate counts.
    """
    graphs, replicas, volume = data.shape
    counts = torch.zeros((graphs, replicas, size) if free is None else (size,), dtype=torch.int64, device=data.device)
    for part in parts:
        arity, number = part.members.shape
        launch(
            count_factors, -(-number // block), data, data if free is None else free, counts, *part, unit, size, replicas,
            volume, number, LABELS=num_labels, ARITY=arity, DIFFERENCE=free is not None, BLOCK=block, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
    return counts
