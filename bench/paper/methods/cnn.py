"""The network alone: as it was pre-trained, and after as many further epochs of cross-entropy as every other row learns for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from bench.paper.methods.descent import marginals
from bench.paper.problem import Predictor, Problem, descent
from tritoncrf.batches import Batch
from tritoncrf.evaluation import forward
from tritoncrf.training import Trainer


def learn(problem: Problem, work: Path, *, further: bool, faster: float = 1.0) -> Predictor:
    """further: the control, whose epochs are those of the other rows at the rate of their network; faster: a factor on it."""
    network = problem.network()
    if further:
        trainer = Trainer(network, problem.crf(), log=work / "log.jsonl")
        saved = work / "model.safetensors"
        if saved.exists():
            trainer.load(saved)
        rate = faster * problem.preset.network_rate
        optimizer = descent(problem.preset, weights=network.parameters(), weights_rate=rate)
        trainer.pretrain(problem.loader(), problem.preset.epochs, optimizer=optimizer, stage="control", checkpoint=saved)

    def predict(batch: Batch) -> tuple[Tensor, Tensor]:
        logits, _ = forward(network, None, batch.image)
        alone = marginals(batch, logits.softmax(1))
        return alone, alone

    return predict
