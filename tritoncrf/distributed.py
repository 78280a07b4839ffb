"""How do several processes train as one? What a `Trainer` does on every rank so that they make one model, log and checkpoint.

The network learns under `DistributedDataParallel`, its batches are the ranks' own, and figures are of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tritoncrf import validation
from tritoncrf.batches import Batch
from tritoncrf.evaluation import Evaluation
from tritoncrf.metrics import Score
from tritoncrf.ranks import Ranks
from tritoncrf.validation import Guard

T = TypeVar("T")


def align(ranks: Ranks, *modules: nn.Module) -> None:
    """Gives every rank the first one's parameters and buffers."""
    if ranks.size > 1:
        first = dist.get_global_rank(ranks.group or dist.group.WORLD, 0)  # type: ignore[arg-type]
        for module in modules:
            for part in (*module.parameters(), *module.buffers()):
                dist.broadcast(part.detach(), first, group=ranks.group)


def learner(ranks: Ranks, network: nn.Module) -> nn.Module:
    """The network that averages its gradients over ranks; itself on one rank, or where nothing of it learns."""
    if ranks.size == 1 or not any(part.requires_grad for part in network.parameters()):
        return network
    # A head that the loss does not use, as torchvision's auxiliary ones, gets no gradient.
    return nn.parallel.DistributedDataParallel(network, process_group=ranks.group, find_unused_parameters=True)


def write(ranks: Ranks, action: Callable[[], None]) -> None:
    """What the first rank alone does to the disk; all wait for it, and hear of its OSError."""
    trouble: OSError | None = None
    if ranks.rank == 0:
        try:
            action()
        except OSError as error:
            trouble = error
    message = ranks.objects(None if trouble is None else str(trouble))[0]
    if trouble is not None:
        raise trouble
    if message is not None:
        raise OSError(message)


def part_of(ranks: Ranks, items: Iterable[T]) -> Iterator[T]:
    """Every rank's turn of what all go through."""
    return islice(items, ranks.rank, None, ranks.size)


def pooled(ranks: Ranks, found: Evaluation, device: torch.device) -> Evaluation:
    """The scores of all ranks' parts."""
    if ranks.size == 1:
        return found
    both = (found.network, found.crf)
    network, crf = (Score(ranks.sum(score.confusion.to(device)).cpu(), score.background) for score in both)
    return Evaluation(network, crf)


def cross_entropy(ranks: Ranks, guard: Guard, batch: Batch, logits: Tensor, labels: int, void: int) -> Tensor:
    """The mean over all ranks' labelled pixels whose label is not known anyway, times the ranks: DDP takes their mean again."""
    with guard.call():
        validation.label_values(guard, "target", batch.target, labels, batch.present, also=void)
        validation.logit_values(guard, logits, batch.present)
    ignored = ~batch.present | (batch.target >= labels) | (batch.target < 0)
    if batch.clamp is not None:
        ignored |= batch.clamp
    target = batch.target.long().masked_fill(ignored, -100)
    # The mean over no pixel would be NaN.
    counted = ranks.sum((~ignored).sum()).clamp(min=1)
    return F.cross_entropy(logits, target, reduction="sum") * ranks.size / counted

