"""The Triton engine: fused kernels for NVIDIA and AMD GPUs, the torch engine's labels bit for bit.

What a batch is, a lattice's (`triton_lattice`) or graphs' (`triton_graphs`), is asked once, where it is prepared: the work
knows how its chains move.

With TRITON_INTERPRET=1 in the environment when Triton is first imported the same kernels run on CPU tensors, slowly.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tritoncrf.engines import Plan, Tables, triton_graphs, triton_lattice
from tritoncrf.engines import Work as AnyWork
from tritoncrf.engines.soft import soft_counts
from tritoncrf.engines.triton_graphs import GraphWork
from tritoncrf.engines.triton_lattice import LatticeWork, gated_errors
from tritoncrf.engines.triton_needs import missing

__all__ = [
    "average", "break_even", "conditionals", "field", "gated_errors", "initial", "missing", "pair_counts", "pair_errors",
    "prepare", "retable", "soft_counts", "sweep", "unary_errors",
]  # fmt: skip
# Where the times of both updates at 0.6, 2.2 and 84 % of flips cross, on an H200 at 20 labels.
break_even = 0.06


def prepare(plan: Plan, logits: Tensor, tables: Tables, like: AnyWork | None = None) -> LatticeWork | GraphWork:
    if plan.volume >= 1 << 31 or len(plan.positions) * plan.replicas >= 1 << 31:
        raise ValueError("logits: expected fewer than 2^31 sites times replicas an image for engine='triton', got more")
    # Kernels read numbers one behind the other, whatever view the caller gave.
    plan = replace(plan, index=plan.index.contiguous())
    if like is not None:
        return _check_work(like).with_plan(plan)
    if plan.factors is not None:
        return triton_graphs.prepare(plan, plan.factors, logits, tables)
    return triton_lattice.prepare(plan, logits, tables)


def retable(work: AnyWork, tables: Tables) -> LatticeWork | GraphWork:
    return _check_work(work).retable(tables)


def initial(work: AnyWork, labels: Tensor, key: tuple[int, int], count: Tensor, purpose: int) -> None:
    _check_work(work).initial(labels, _signed(key), count.contiguous(), purpose)


def field(work: AnyWork, labels: Tensor) -> Tensor:
    return _check_work(work).field(labels)


def sweep(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, bad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return _check_work(work).sweep(labels, field, sweeps, scale, _signed(key), count.contiguous(), purpose, bad)


def conditionals(
    work: AnyWork, labels: Tensor, field: Tensor | None, scale: float, out: Tensor, bad: Tensor | None = None
) -> Tensor:  # fmt: skip
    return _check_work(work).conditionals(labels, field, scale, out, bad)


def average(
    work: AnyWork, labels: Tensor, field: Tensor | None, sweeps: int, scale: float,
    key: tuple[int, int], count: Tensor, purpose: int, out: Tensor, bad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _check_work(work).average(labels, field, sweeps, scale, _signed(key), count.contiguous(), purpose, out, bad)


def pair_counts(plan: Plan, labels: Tensor) -> Tensor:
    if plan.factors is not None:
        return triton_graphs.factor_counts(plan, plan.factors, labels, None)
    return triton_lattice.pair_counts(plan, labels)


def pair_errors(plan: Plan, data: Tensor, free: Tensor) -> Tensor:
    if plan.factors is not None:
        return triton_graphs.factor_counts(plan, plan.factors, data, free)
    return triton_lattice.pair_errors(plan, data, free)


def unary_errors(data: Tensor, free: Tensor, labels: int) -> Tensor:
    from tritoncrf.kernels import errors

    return errors.unary_errors(free, data, labels)  # type: ignore[no-any-return]


def _check_work(work: AnyWork) -> LatticeWork | GraphWork:
    if not isinstance(work, LatticeWork | GraphWork):
        raise TypeError(f"work: expected what the triton engine prepared, got {type(work).__name__}")
    return work


def _signed(key: tuple[int, int]) -> tuple[int, int]:
    """Key words as signed 32-bit integers, so that every seed runs the same compiled kernel."""
    low, high = ((word ^ 1 << 31) - (1 << 31) for word in key)
    return low, high
