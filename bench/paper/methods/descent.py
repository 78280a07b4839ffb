"""How does a comparison method descend? Any objective of ``(logits, batch)``, one recipe for all, resumed where it was killed.

The recipe is that of the sampling rows: the preset's optimizer and rates, one image a step, every rate falling linearly to 0
(eq. 8 of Kirillov et al. 2016 wants diminishing steps); "separate" keeps the pre-trained network fixed, "joint" learns it too.
What differs between methods is the objective and the parameters beside the network's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.paper.edges import Maker
from bench.paper.problem import Predictor, Problem, descent
from tritoncrf import checkpoint, contract
from tritoncrf.batches import Batch
from tritoncrf.checkpoint import CheckpointError
from tritoncrf.evaluation import answer, edges_of, forward
from tritoncrf.grid_crf import GridCRF
from tritoncrf.loop import Loop

Objective = Callable[[Tensor, Batch], Tensor]
# Steps between checkpoints: a kill costs a minute or two, not an epoch.
EVERY = 200


def descend(
    problem: Problem, network: nn.Module, model: nn.Module | None, objective: Objective, work: Path, name: str, *,
    joint: bool, rate: float | None = None, after: Callable[[], None] = lambda: None,
) -> list[float]:  # fmt: skip
    """Learns ``model`` and, if joint, ``network``, in place; returns each epoch's mean objective.

    objective: logits float32 ``[N, L, *shape]`` and their batch -> a scalar to go down; rate: of the model's parameters, None
    takes the preset's for tables; after: called after each epoch. ``work/model.safetensors`` keeps the state; a run found there
    goes on and ends as if it had not stopped. Raises CheckpointError if it is of another method or network, ValueError if there
    is nothing to learn.
    """
    preset = problem.preset
    path, losses = work / "model.safetensors", list[float]()
    tables, weights = () if model is None else model.parameters(), network.parameters() if joint else ()
    optimizer = descent(preset, tables=tables, rate=rate, weights=weights)
    torch.manual_seed(problem.seed + 1)
    loop, loader = Loop(problem.device, None, quiet=True), problem.loader()
    if path.exists():
        losses = _load(path, name, network, model, loop)

    def value(item: object) -> Tensor:
        batch = Batch.of(item, problem.device)
        with torch.set_grad_enabled(joint):
            logits = network(batch.image).float()
        return objective(logits, batch)

    def save() -> None:
        checkpoint.write(path, {
            "network": dict(network.state_dict()), "model": {} if model is None else dict(model.state_dict()),
            "loop": loop.state(), "losses": losses,
        }, kind=f"paper {name}")  # fmt: skip

    def ended(epoch: int, mean: float) -> None:
        losses.append(mean)
        after()

    network.train(joint)
    try:
        loop.run(
            name, loader, preset.epochs, optimizer, value=value, invalid=lambda: None, after_step=lambda step: None,
            after_epoch=ended, save=save, every=EVERY,
        )  # fmt: skip
    finally:
        network.eval()
    return losses


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """The mean over pixels that exist, have a label, and whose label is not known anyway."""
    counted = free_pixels(batch) & (batch.target != contract.VOID)
    target = batch.target.long().masked_fill(~counted, -100)
    return F.cross_entropy(logits, target, reduction="sum") / counted.sum().clamp(min=1)


def free_pixels(batch: Batch) -> Tensor:
    """bool ``[N, *shape]``: the pixels that exist and whose label is not known at test time."""
    return batch.present if batch.clamp is None else batch.present & ~batch.clamp


def marginals(batch: Batch, given: Tensor) -> Tensor:
    """Distributions ``[N, L, *shape]`` with one-hot rows where the label is known, and 0 where no pixel exists."""
    if batch.known is not None and batch.clamp is not None:
        fixed = F.one_hot(batch.known.long().clamp(max=given.shape[1] - 1), given.shape[1]).movedim(-1, 1)
        given = torch.where(batch.clamp[:, None], fixed.to(given.dtype), given)
    return given * batch.present[:, None]


def by_sampling(problem: Problem, network: nn.Module, crf: GridCRF, edge_maker: Maker | None = None) -> Predictor:
    """Max-marginal inference with the paper's start: the first sample is drawn from the pre-trained network's marginals.

    told: what tells of the edges, for a CRF whose tables see the image.
    """
    start, preset = dict(problem.start.state_dict()), problem.preset

    def predict(batch: Batch) -> tuple[Tensor, Tensor]:
        logits, first = forward(network, start, batch.image)
        edges = edges_of(edge_maker, batch.image, None)
        return answer(crf, logits, first, batch, preset.sweeps, preset.burn_in, seed=problem.seed, edges=edges)

    return predict


def _load(path: Path, name: str, network: nn.Module, model: nn.Module | None, loop: Loop) -> list[float]:
    tree = checkpoint.read(path, kind=f"paper {name}")
    try:
        network.load_state_dict(checkpoint.tensors(tree, "network"))
        if model is not None:
            model.load_state_dict(checkpoint.tensors(tree, "model"))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: expected the state of this network and model, got another's ({error})") from None
    loop.load(checkpoint.group(tree, "loop"))
    losses = tree.get("losses")
    return [value for value in losses if isinstance(value, float)] if isinstance(losses, list) else []
