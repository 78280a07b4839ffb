"""The launchers as opaque operators ``torch.ops.tritoncrf.*``: what a compiler calls without looking inside.

Inductor would recompile a visible Triton kernel without ``enable_fp_fusion=False`` and change its bits. Every operator runs on
its tensors' device and that device's current stream, allocates on the device alone, and never waits for it.
"""

# mypy: disable-error-code="import-not-found, no-any-return"

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from tritoncrf.kernels import conditionals, counts, edges, errors, gather, incremental, initial
from tritoncrf.kernels.counts import Ends
from tritoncrf.kernels.edges import Edges
from tritoncrf.kernels.rows import padded
from tritoncrf.kernels.shapes import Launch


def tell(*, src: Any, metadata: object, metadata_group: object, times: Any, cache_hit: bool) -> None:
    """Says on stderr that a kernel was compiled: a first call takes that long, and later processes find it on disk."""
    if not cache_hit:
        print(f"tritoncrf: compiled {src.name} for this GPU in {times.total / 1e6:.1f} s", file=sys.stderr)


@contextlib.contextmanager
def _on(tensor: Tensor) -> Iterator[None]:
    if not tensor.is_cuda:
        yield
        return
    kept = knobs.compilation.listener
    if kept is None:
        knobs.compilation.listener = tell
    try:
        with torch.cuda.device(tensor.device):
            yield
    finally:
        knobs.compilation.listener = kept


@torch.library.custom_op("tritoncrf::unary_rows", mutates_args=())
def unary_rows(logits: Tensor, pixels: Tensor, slot: Tensor, block: int, warps: int) -> Tensor:
    with _on(logits):
        return initial.build_unary(logits, pixels, slot, Launch(block, warps, False))


@unary_rows.register_fake
def _(logits: Tensor, pixels: Tensor, slot: Tensor, block: int, warps: int) -> Tensor:
    return logits.new_empty((*slot.shape, padded(logits.shape[1])), dtype=torch.float32)


@torch.library.custom_op("tritoncrf::initial_labels", mutates_args=("labels",))
def initial_labels(
    labels: Tensor, unary: Tensor, position: Tensor, site: Tensor, index: Tensor, count: Tensor, scale: float, key0: int,
    key1: int, purpose: int, num_labels: int, block: int, warps: int,
) -> None:  # fmt: skip
    with _on(labels):
        launch = Launch(block, warps, False)
        initial.initial(labels, unary, position, site, index, count, scale, (key0, key1), purpose, num_labels, launch)


@torch.library.custom_op("tritoncrf::field", mutates_args=())
def field(
    labels: Tensor, unary: Tensor, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor, position: Tensor,
    num_labels: int, block: int, warps: int, kinds: Tensor | None = None, gates: Tensor | None = None,
    gated: Tensor | None = None, gating: Tensor | None = None,
) -> Tensor:  # fmt: skip
    with _on(labels):
        launch = Launch(block, warps, False)
        return incremental.new_field(
            labels, unary, rows, words, fits, displacements, position, num_labels, launch, Edges(kinds, gates, gated, gating)
        )


@field.register_fake
def _(
    labels: Tensor, unary: Tensor, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor, position: Tensor,
    num_labels: int, block: int, warps: int, kinds: Tensor | None = None, gates: Tensor | None = None,
    gated: Tensor | None = None, gating: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return unary.new_empty((*labels.shape[:2], *unary.shape[1:]))


@torch.library.custom_op("tritoncrf::gather_sweeps", mutates_args=("labels", "flips"))
def gather_sweeps(
    labels: Tensor, unary: Tensor, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor, phases: Tensor,
    position: Tensor, site: Tensor, counts: Tensor, index: Tensor, count: Tensor, flips: Tensor, bounds: list[int],
    sweeps: int, scale: float, key0: int, key1: int, purpose: int, num_labels: int, block: int, warps: int, fused: bool,
    kinds: Tensor | None = None, gates: Tensor | None = None, gated: Tensor | None = None, gating: Tensor | None = None,
) -> None:  # fmt: skip
    with _on(labels):
        gather.gather(
            labels, unary, rows, words, fits, displacements, phases, position, site, counts, index, count, flips, bounds,
            sweeps, scale, (key0, key1), purpose, num_labels, Launch(block, warps, fused), Edges(kinds, gates, gated, gating),
        )  # fmt: skip


@torch.library.custom_op("tritoncrf::incremental_sweeps", mutates_args=("labels", "energies", "flips"))
def incremental_sweeps(
    labels: Tensor, energies: Tensor, rows: Tensor, displacements: Tensor, phases: Tensor, position: Tensor, site: Tensor,
    lookup: Tensor, counts: Tensor, index: Tensor, count: Tensor, flips: Tensor, bounds: list[int], sweeps: int,
    scale: float, key0: int, key1: int, purpose: int, num_labels: int, block: int, warps: int, fused: bool,
    kinds: Tensor | None = None, gates: Tensor | None = None, gated: Tensor | None = None, gating: Tensor | None = None,
) -> None:  # fmt: skip
    with _on(labels):
        incremental.incremental(
            labels, energies, rows, displacements, phases, position, site, lookup, counts, index, count, flips, bounds, sweeps,
            scale, (key0, key1), purpose, num_labels, Launch(block, warps, fused), Edges(kinds, gates, gated, gating),
        )  # fmt: skip


@torch.library.custom_op("tritoncrf::add_conditionals", mutates_args=("out",))
def add_conditionals(
    labels: Tensor, unary: Tensor, energies: Tensor | None, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor,
    position: Tensor, slot: Tensor, out: Tensor, scale: float, num_labels: int, block: int, warps: int,
    kinds: Tensor | None = None, gates: Tensor | None = None, gated: Tensor | None = None, gating: Tensor | None = None,
) -> Tensor:  # fmt: skip
    with _on(labels):
        return conditionals.conditionals(
            labels, unary, energies, rows, words, fits, displacements, position, slot, out, scale, num_labels,
            Launch(block, warps, False), Edges(kinds, gates, gated, gating),
        )  # fmt: skip


@add_conditionals.register_fake
def _(
    labels: Tensor, unary: Tensor, energies: Tensor | None, rows: Tensor, words: Tensor, fits: Tensor, displacements: Tensor,
    position: Tensor, slot: Tensor, out: Tensor, scale: float, num_labels: int, block: int, warps: int,
    kinds: Tensor | None = None, gates: Tensor | None = None, gated: Tensor | None = None, gating: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return out.new_empty(labels.shape[:2])


@torch.library.custom_op("tritoncrf::edge_bytes", mutates_args=())
def edge_bytes(values: Tensor, chosen: Tensor, steps: Tensor, places: Tensor, position: Tensor) -> Tensor:
    with _on(values):
        return edges.by_rank(values, chosen, steps, places, position)


@edge_bytes.register_fake
def _(values: Tensor, chosen: Tensor, steps: Tensor, places: Tensor, position: Tensor) -> Tensor:
    return values.new_empty((len(values), len(chosen), position.shape[1]))


@torch.library.custom_op("tritoncrf::pair_counts", mutates_args=())
def pair_counts(
    labels: Tensor, displacements: Tensor, tables: Tensor, num_labels: int, num_classes: int, num_kinds: int = 0,
    kinds: Tensor | None = None, places: Tensor | None = None, planes: Tensor | None = None,
) -> Tensor:  # fmt: skip
    ends = None if kinds is None or places is None or planes is None else Ends(kinds, places, planes)
    with _on(labels):
        return counts.pair_counts(labels, displacements, tables, num_labels, num_classes, num_kinds, ends)


@pair_counts.register_fake
def _(
    labels: Tensor, displacements: Tensor, tables: Tensor, num_labels: int, num_classes: int, num_kinds: int = 0,
    kinds: Tensor | None = None, places: Tensor | None = None, planes: Tensor | None = None,
) -> Tensor:  # fmt: skip
    shape = (num_classes, *([num_kinds] if num_kinds else []), num_labels, num_labels)
    return labels.new_empty((*labels.shape[:-1], *shape), dtype=torch.int64)


@torch.library.custom_op("tritoncrf::gated_errors", mutates_args=())
def gated_errors(
    data: Tensor, free: Tensor, displacements: Tensor, num_labels: int, weighed: int, gates: Tensor, places: Tensor,
    gating: Tensor,
) -> Tensor:  # fmt: skip
    with _on(data):
        return counts.gated_errors(data, free, displacements, num_labels, weighed, Ends(gates, places, gating))


@gated_errors.register_fake
def _(
    data: Tensor, free: Tensor, displacements: Tensor, num_labels: int, weighed: int, gates: Tensor, places: Tensor,
    gating: Tensor,
) -> Tensor:  # fmt: skip
    return data.new_empty((*gates.shape[1:3], num_labels, num_labels), dtype=torch.int64)


@torch.library.custom_op("tritoncrf::unary_errors", mutates_args=())
def unary_errors(free: Tensor, data: Tensor, factor: Tensor, num_labels: int) -> Tensor:
    with _on(free):
        return errors.unary_errors(free, data, factor, num_labels)


@unary_errors.register_fake
def _(free: Tensor, data: Tensor, factor: Tensor, num_labels: int) -> Tensor:
    return factor.new_empty((free.shape[0], num_labels, *free.shape[2:]))


for _operator in (initial_labels, gather_sweeps, incremental_sweeps):
    _operator.register_fake(lambda *_: None)
