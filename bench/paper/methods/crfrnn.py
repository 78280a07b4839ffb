"""What would CRF-as-RNN give? A dense Gaussian CRF whose mean field is unrolled and learned through (Zheng et al. 2015).

Every two free pixels are joined. The energy of Krähenbühl and Koltun 2011 with the generalisations of Zheng et al.: two
Gaussian kernels k_1 (position) and k_2 (position and image, here depth), a learned weight for each kernel and label, a learned
compatibility of labels, and the parallel update, T times (5 in learning, 10 at test, as theirs):
``Q^0 = softmax(logits)``, ``Q^{t+1}_i = softmax(logit_i - B sum_r w_r * (K_r Q^t)_i)``, with ``B [L, L]`` from -1 on the
diagonal (Potts) and ``w_r [L]`` from `START`.

Filtering is exact, no permutohedral lattice. K_1 is a product of two small matrices, one an axis, over the whole image:
known pixels are in it as one-hot rows, void ones as zeros. K_2 is a dense float32 matrix over the free pixels of one image,
built once a visit: 4 N^2 bytes, 2 N^2 L multiply-adds an iteration in learning; background has no depth and is not in it. Above
`WHOLE` entries its rows are built anew, `CHUNK` at a time, at every use. Both leave out the pixel itself and are normalised
symmetrically, ``D^-1/2 K D^-1/2``, so they are their own adjoints in the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from bench.paper.methods.descent import descend, free_pixels, marginals
from bench.paper.problem import Predictor, Problem
from tritoncrf import contract
from tritoncrf.batches import Batch
from tritoncrf.evaluation import forward

# Kernel weights at the start, and the CRF parameters' rate: ours, not tuned. At the tables' 1e-3 Adam could hardly move them.
START, RATE = (1.0, 1.0), 1e-2
LEARNED, TESTED = 5, 10
# Entries of a kernel matrix that is kept whole: 1 GB. Rows a chunk otherwise; rows that are built at a time, for the cache.
WHOLE, CHUNK, BUILT = 1 << 28, 1024, 64
# Half-scale bodies' median height in pixels: the bandwidths below are for that.
HEIGHT = 164


@dataclass(frozen=True)
class Bandwidths:
    """Standard deviations of the kernels."""

    smooth: float = 3.0
    """Of k_1, in pixels."""
    reach: float = 30.0
    """Of k_2 in position, in pixels."""
    tone: float = 0.25
    """Of k_2 in the image's own units: 75 mm of depth, where 1 is 300 mm."""

    def scaled(self, factor: float) -> Bandwidths:
        """For images ``factor`` times as large."""
        return Bandwidths(self.smooth * factor, self.reach * factor, self.tone)


class DenseCRF(nn.Module):
    """What is learned beside the network: compatibility ``[L, L]`` and kernel weights ``[2, L]``."""

    def __init__(self, labels: int, widths: Bandwidths, start: tuple[float, float] = START) -> None:
        super().__init__()
        self.widths = widths
        self.compatibility = nn.Parameter(-torch.eye(labels))
        self.weights = nn.Parameter(torch.tensor(start)[:, None].repeat(1, labels))
        self.scratch = Scratch()

    def forward(
        self, logits: Tensor, image: Tensor, free: Tensor, known: Tensor | None, iterations: int, alone: bool = False
    ) -> Tensor:
        """``log Q^T`` up to a constant a pixel for one image: logits ``[L, H, W]``, image ``[C, H, W]`` -> ``[N, L]``.

        free bool ``[H, W]``, N of them true; known one-hot ``[L, H, W]``, zeros where nothing is known, None without any.
        alone: the last image's kernel is done with, and its memory may be taken.
        """
        unary = logits[:, free].T
        rest = torch.zeros_like(logits) if known is None else known.to(logits)
        smooth = position_filter(free | (rest.sum(0) > 0), self.widths.smooth)
        appear = appearance_filter(image, free, self.widths, self.scratch if alone else None)
        found = unary
        for _ in range(iterations):
            q = found.softmax(1)
            # masked_scatter keeps label by label, as q's transpose has it.
            dense = rest.masked_scatter(free, q.T)
            field = smooth(dense)[:, free].T * self.weights[0] + appear(q) * self.weights[1]
            found = unary - field @ self.compatibility.T
        return found


def learn(
    problem: Problem, work: Path, *, joint: bool, start: tuple[float, float] = START, rate: float = RATE,
    widths: Bandwidths | None = None,
) -> Predictor:  # fmt: skip
    """joint: the network learns too; widths: None scales the defaults by the training images' median height."""
    if widths is None:
        widths = Bandwidths().scaled(median(height for height, _ in problem.train.sizes) / HEIGHT)
    network, crf = problem.network(), DenseCRF(problem.train.num_labels, widths, start).to(problem.device)
    descend(problem, network, crf, objective(crf), work, f"crfrnn {'joint' if joint else 'separate'}", joint=joint, rate=rate)

    @torch.no_grad()
    def predict(batch: Batch) -> tuple[Tensor, Tensor]:
        logits, _ = forward(network, None, batch.image)
        alone = marginals(batch, logits.softmax(1))
        whole = alone.clone()
        free = free_pixels(batch)
        for n, found in enumerate(_each(crf, logits, batch, TESTED)):
            whole[n, :, free[n]] = found.softmax(1).T
        return alone, whole

    return predict


def objective(crf: DenseCRF, iterations: int = LEARNED) -> Callable[[Tensor, Batch], Tensor]:
    """Logits and their batch -> the cross-entropy of Q^T on free labelled pixels."""

    def value(logits: Tensor, batch: Batch) -> Tensor:
        target = batch.target[free_pixels(batch)].long()
        counted = target != contract.VOID
        found = torch.cat(_each(crf, logits, batch, iterations))
        total = F.cross_entropy(found, target.masked_fill(~counted, -100), reduction="sum")
        return total / counted.sum().clamp(min=1)

    return value


def _each(crf: DenseCRF, logits: Tensor, batch: Batch, iterations: int) -> list[Tensor]:
    free, known = free_pixels(batch), None
    if batch.known is not None and batch.clamp is not None:
        fixed = batch.clamp & batch.present
        known = F.one_hot(batch.known.long().clamp(max=logits.shape[1] - 1), logits.shape[1]).movedim(-1, 1) * fixed[:, None]
    return [
        crf(logits[n], batch.image[n], free[n], None if known is None else known[n], iterations, len(logits) == 1)
        for n in range(len(logits))
    ]


def position_filter(exists: Tensor, width: float) -> Callable[[Tensor], Tensor]:
    """``q [L, H, W] -> D^-1/2 (K - 1) D^-1/2 q`` with the Gaussian of distance between pixels that exist."""
    axes = []
    for length in exists.shape:
        steps = torch.arange(length, device=exists.device, dtype=torch.float64)
        axes.append(torch.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2))
    down, across = axes
    present = exists.double()
    total = (down @ present @ across - present).clamp(min=1e-6)
    norm = torch.where(exists, total.rsqrt(), 0.0)

    def apply(q: Tensor) -> Tensor:
        scaled = q * norm.to(q)
        return (down.to(q) @ scaled @ across.to(q) - scaled) * norm.to(q)

    return apply


class Scratch:
    """Memory for one image's kernel, taken again for the next: fresh pages cost more than the kernel's arithmetic."""

    def __init__(self) -> None:
        self._held = torch.empty(0)
        self.taken = 0

    def take(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """``[rows, columns]`` of ``like``'s kind; what was taken before is overwritten from here on."""
        count = rows * columns
        if self._held.numel() < count or (self._held.dtype, self._held.device) != (like.dtype, like.device):
            self._held = torch.empty(count, dtype=like.dtype, device=like.device)
        self.taken += 1
        return self._held[:count].view(rows, columns)


def appearance_filter(
    image: Tensor, free: Tensor, widths: Bandwidths, scratch: Scratch | None = None
) -> Callable[[Tensor], Tensor]:
    """``q [N, L] -> D^-1/2 (K - 1) D^-1/2 q`` with the Gaussian of distance and difference between free pixels.

    The kernel lies in ``scratch``: what comes after the next taking from it raises RuntimeError.
    """
    places = free.nonzero().to(image.dtype) / widths.reach
    features = torch.cat([places, image[:, free].T / widths.tone], 1)
    # Centred, so that -|a - b|^2 / 2 = a b - |a|^2 / 2 - |b|^2 / 2 loses no digits; the last two are columns of the product.
    features = features - features.mean(0)
    count, lengths = len(features), -0.5 * features.square().sum(1, keepdim=True)
    left = torch.cat([features, lengths, torch.ones_like(lengths)], 1)
    right = torch.cat([features, torch.ones_like(lengths), lengths], 1).T
    memory = Scratch() if scratch is None else scratch
    step = max(count, 1) if count**2 <= WHOLE else CHUNK
    kernel = memory.take(min(step, count), count, features)
    ticket = memory.taken

    def rows(begin: int) -> Tensor:
        span = kernel[: min(step, count - begin)]
        for start in range(0, len(span), BUILT):
            part, at = span[start : start + BUILT], begin + start
            torch.mm(left[at : at + len(part)], right, out=part).exp_()
            part[:, at : at + len(part)].fill_diagonal_(0.0)
        return span

    def product(q: Tensor) -> Tensor:
        """``K q`` as ``(q' K)'``, which is the faster way round for few labels."""
        if memory.taken != ticket:
            raise RuntimeError("scratch: expected a kernel's last use before the next one is built, got a later one")
        flat = q.to(features.dtype).T.contiguous()
        return torch.cat([flat @ (kernel if step == count else rows(begin)).T for begin in range(0, count, step)], 1).T

    if count == 0:
        return lambda q: q
    if step == count:
        rows(0)
    norm = product(torch.ones_like(lengths)).clamp(min=1e-6).rsqrt()

    def apply(q: Tensor) -> Tensor:
        result: Tensor = _Symmetric.apply(q, lambda value: (product(value * norm) * norm).to(value.dtype))  # type: ignore[no-untyped-call]
        return result

    return apply


class _Symmetric(torch.autograd.Function):
    """A symmetric linear map: it carries the gradient back as it carries the values, and keeps nothing of its own."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.product = product  # type: ignore[attr-defined]
        return product(q)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.product(grad), None  # type: ignore[attr-defined]
