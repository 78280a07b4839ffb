"""How does the log-likelihood rise? ``python -m bench.paper.likelihood --data FOLDER --out DIR`` draws learning curves in nats.

Settings of `tuning` learn as there, and after each epoch some held-out images are asked: ``log p(y | x) = -E(y) - log Z`` of
the true labelling, log Z by annealed importance sampling (`diagnostics.log_partition`; Neal 2001), in nats a free pixel; beside
it the answer's cross-entropy, also in nats a pixel, and its accuracy. The likelihood says how well whole labellings are told,
the cross-entropy single pixels. Before the first epoch tables are zero and both are the network's own cross-entropy.
Curves are appended to ``likelihood.json`` in the folder; one that stands there is not made again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import tritoncrf as tc
from bench.paper import tuning
from bench.paper.edges import Maker
from bench.paper.methods.descent import by_sampling, cross_entropy, descend, free_pixels
from bench.paper.problem import Problem
from bench.paper.run import Row
from bench.paper.settings import Setting, parse
from tritoncrf import diagnostics
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate
from tritoncrf.evaluation import edges_of, forward
from tritoncrf.metrics import Score

CURVES = "likelihood.json"
# Of the path of annealed importance sampling, and weights an image.
STEPS, REPLICAS = 200, 2


@torch.no_grad()
def ask(problem: Problem, network: nn.Module, crf: tc.GridCRF, told: Maker | None, images: int) -> dict[str, float]:
    """Means over the pixels of so many held-out images, evenly spaced."""
    predict = by_sampling(problem, network, crf, told)
    score = Score.empty(problem.test.num_labels, problem.test.background)
    sums = dict.fromkeys(("log_likelihood", "variance", "cross_entropy", "pixels"), 0.0)
    total = len(problem.test)
    for place in sorted({total * (2 * k + 1) // (2 * images) for k in range(images)}):
        batch = Batch.of(collate([problem.test[place]]), problem.device)
        logits, _ = forward(network, None, batch.image)
        kinds, gates = edges_of(told, batch.image, None)
        whole = diagnostics.log_partition(
            crf, logits, steps=STEPS, replicas=REPLICAS, labels=batch.known, clamp=batch.clamp, index=batch.index,
            sizes=batch.sizes, mask=batch.mask, kinds=kinds, gates=gates,
        )  # fmt: skip
        energy = crf.energy(logits, batch.labels, sizes=batch.sizes, mask=batch.mask, kinds=kinds, gates=gates)
        sums["log_likelihood"] += float(-energy - whole.mean)
        # Of the logarithm of one weight: half of it is about how far too low a single weight's log Z lies.
        sums["variance"] += float(whole.log_weights.var(1))
        sums["pixels"] += int(free_pixels(batch).sum())
        _, found = predict(batch)
        sums["cross_entropy"] += float(cross_entropy(found.clamp(min=1e-6).log(), batch)) * int(free_pixels(batch).sum())
        score = score.plus(batch.target.masked_fill(~batch.present, 255), found.argmax(1))
    pixels = sums.pop("pixels")
    return {name: round(value / pixels, 5) for name, value in sums.items()} | {"accuracy": round(score.accuracy, 5)}


def sampled(text: str) -> Setting:
    """The setting of a text. Raises ValueError also where it is not one that samples."""
    found = parse(text)
    if not found.learns or found.piecewise is not None:
        raise ValueError(f"setting: expected one that learns by sampling, got {text!r}")
    return found


def curve(problem: Problem, setting: Setting, work: Path, images: int) -> list[dict[str, float]]:
    """What is told before learning and after each epoch."""
    told = None if setting.edges is None else problem.edges(setting.edges)
    network, crf = problem.network(), problem.crf(told)
    found = [ask(problem, network.eval(), crf, told, images)]
    objective = tuning.Sampled(problem, crf, setting, told)

    def after() -> None:
        network.eval()
        found.append(ask(problem, network, crf, told, images))
        network.train(setting.joint)
        print(json.dumps(found[-1]), flush=True)

    descend(problem, network, objective, objective, work, "likelihood", joint=setting.joint, after=after)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = tuning.trials(__doc__ or "", sampled, ["joint, edges steps:0.1,0.3"], "half", 10)
    parser.add_argument("--images", type=int, default=4, help="held-out images that are asked")
    options = parser.parse_args(arguments)

    def make(problem: Problem, name: str, work: Path) -> Row:
        setting, folder = parse(name), work / f"likelihood {name}".replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(problem.seed + 1)
        own = replace(problem, preset=replace(problem.preset, **setting.changes))  # type: ignore[arg-type]
        return {"asked": options.images, "curve": curve(own, setting, folder, options.images)}

    tuning.attempt(options, CURVES, _about, make)
    return 0


def _about(problem: Problem, name: str) -> Row:
    preset, images = problem.preset, len(problem.train)
    return {"preset": preset.name, "images": images, "epochs": preset.epochs, "steps": STEPS, "weights": REPLICAS}


if __name__ == "__main__":
    sys.exit(main())
