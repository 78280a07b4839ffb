"""What does a learned model say of new images, and how good is it? The network alone beside the whole model.

Test-time inference as in Kirillov et al. 2016, section 5: the first sample is drawn from the marginals of the pre-trained
network, also for a jointly trained model, whose own logits are more ambiguous by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.batches import Batch
from tritoncrf.edge_inputs import Edges
from tritoncrf.grid_crf import GridCRF
from tritoncrf.inference import estimate
from tritoncrf.metrics import Score
from tritoncrf.validation import Guard

Answer = Callable[[Batch, int, int, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Scores over many images of the network alone and of the whole model."""

    network: Score
    crf: Score


def outputs(given: object) -> tuple[Tensor, Tensor | None]:
    """What a network returned: logits, or a pair of logits and gates.

    Logits may be in a mapping under one of the keys "out" (torchvision's) and "logits" (transformers'), or an object's
    ``.logits``; gates beside them under "gates" or as ``.gates``. Raises TypeError for anything else.
    """
    if isinstance(given, Tensor):
        return given, None
    if isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(part, Tensor) for part in given):
        return given[0], given[1]
    got = type(given).__name__
    if isinstance(given, Mapping):
        found, gates = [given[key] for key in ("out", "logits") if key in given], given.get("gates")
        got = f"keys {sorted(map(str, given))}"
    else:
        found, gates = [getattr(given, "logits", None)], getattr(given, "gates", None)
    if len(found) == 1 and isinstance(found[0], Tensor):
        return found[0], gates if isinstance(gates, Tensor) else None
    raise TypeError(f"network: expected logits, logits and gates, or one of 'out' and 'logits' in what it returns, got {got}")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network in eval mode, and its modules back to what they were."""
    # Module by module: a frozen part of a network that learns is in eval mode already, and stays in it.
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def edges_of(maker: Callable[[Tensor], Edges] | None, image: Tensor, gates: Tensor | None) -> Edges:
    """What the images and the network say of the edges. Raises TypeError or ValueError where that is not clear."""
    if maker is None:
        return Edges(None, gates)
    with torch.no_grad():
        made = maker(image)
    if not isinstance(made, Edges):
        raise TypeError(f"edges: expected a function from images to Edges(kinds, gates), got one to {type(made).__name__}")
    if made.gates is not None and gates is not None:
        raise ValueError("edges: expected gates of the network or of `edges`, got both")
    return made if gates is None else Edges(made.kinds, gates)


@torch.no_grad()
def check_edges(crf: GridCRF, batch: Batch, logits: Tensor, edges: Edges) -> None:
    """Raises ValueError or TypeError if a batch's edges are not what the tables ask for."""
    if edges.kinds is not None or edges.gates is not None or crf.form.kinds or crf.form.gates:
        labels = torch.zeros_like(batch.target)
        crf.energy(logits, labels, sizes=batch.sizes, mask=batch.mask, kinds=edges.kinds, gates=edges.gates)


@torch.no_grad()
def run(
    network: nn.Module, pretrained: Mapping[str, Tensor] | None, image: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits ``[N, L, *shape]`` and gates (None if it has none) of the network in eval mode, and the logits of its pre-trained
    weights if there are any."""
    with evaluating(network):
        logits, gates = outputs(network(image))
        first = None if pretrained is None else outputs(torch.func.functional_call(network, dict(pretrained), (image,)))[0]
    return logits.float(), None if gates is None else gates.float(), None if first is None else first.float()


def forward(network: nn.Module, pretrained: Mapping[str, Tensor] | None, image: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits of `run`: of the network, and of its pre-trained weights if there are any."""
    logits, _, first = run(network, pretrained, image)
    return logits, first


def answer(
    crf: GridCRF, logits: Tensor, first: Tensor | None, batch: Batch, sweeps: int, burn_in: int, replicas: int = 1,
    seed: int = 0, engine: str = "auto", edges: Edges | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Marginals float32 ``[N, L, *shape]`` of the logits alone and of the whole model, whose first sample ``first`` gives.

    Labels that are known (``batch.clamp``) are one-hot in both. Sampling options as in `inference.estimate`.
    """
    kinds, gates = edges or Edges()
    found = estimate(
        crf, logits, sweeps=sweeps, burn_in=burn_in, labels=batch.known, index=batch.index, sizes=batch.sizes, mask=batch.mask,
        clamp=batch.clamp, init_logits=first, replicas=replicas, seed=seed, engine=engine,
        kinds=kinds, gates=gates,
    ).marginals  # fmt: skip
    alone = logits.softmax(1)
    return alone if batch.clamp is None else torch.where(batch.clamp[:, None], found, alone), found


def evaluate(
    answers: Answer, batches: Iterable[Batch], labels: int, background: int | None, sweeps: int, burn_in: int, replicas: int,
    seed: int,
) -> Evaluation:  # fmt: skip
    """Pools the most probable labels of both answers; pixels that do not exist or have no label do not count."""
    network = crf = Score.empty(labels, background)
    guard = Guard(immediate=True)
    for batch in batches:
        validation.label_values(guard, "target", batch.target, labels, batch.present & (batch.target >= 0), also=contract.VOID)
        alone, whole = answers(batch, sweeps, burn_in, replicas, seed)
        target = batch.target.masked_fill(~batch.present, contract.VOID)
        network, crf = network.plus(target, alone.argmax(1)), crf.plus(target, whole.argmax(1))
    return Evaluation(network, crf)
