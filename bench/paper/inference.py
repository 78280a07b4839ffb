"""How many sweeps at test time? ``python -m bench.paper.inference --work runs/half --data FOLDER`` asks held-out images.

Training images that the preset leaves out are answered by rows of a finished run after ever more sweeps, the first third of
them burn-in: from a sample of the pre-trained network's marginals (Kirillov et al. 2016, section 5) and from a random
labelling. Of four chains an image from the first start, split R-hat of the energy says when they agree. What the preset should
have is the least number of sweeps from which more make neither the answers better nor more images agree. Writes
``inference.json``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tritoncrf as tc
from bench.paper import report, report_rows
from bench.paper.edges import Maker
from bench.paper.figures import SAMPLED, Work, opened
from bench.paper.methods import edges_of, sampling
from bench.paper.problem import Chosen, Problem
from bench.paper.run import finished, program
from tritoncrf import checkpoint, diagnostics, evaluation
from tritoncrf.batches import Batch
from tritoncrf.datasets import Figures, NpzDataset, collate
from tritoncrf.edge_inputs import Edges
from tritoncrf.evaluation import run
from tritoncrf.metrics import Score
from tritoncrf.model_state import check_tables, load_tables, weights_of

BUDGETS = (3, 6, 15, 30, 60, 120, 240)
STARTS = ("pretrained", "random")
# Chains an image whose agreement chooses.
REPLICAS = 4
# By how much more sweeps may still raise the accuracy, and the share of images whose chains agree.
GAIN, JOINED = 0.001, 0.05


def burn_in(budget: int) -> int:
    """Sweeps of a budget that are not averaged."""
    return budget // 3


@dataclass(frozen=True)
class Model:
    """A sampled row as it was learned."""

    network: torch.nn.Module
    pretrained: dict[str, Tensor]
    crf: tc.GridCRF
    edge_maker: Maker | None = None
    """What tells of the edges beside the network."""

    @classmethod
    def of(cls, work: Work, row: str) -> Model:
        """Raises ValueError unless the row is a sampled one and finished in this folder."""
        if row not in SAMPLED or row not in work.rows:
            raise ValueError(f"rows: expected some of {', '.join(n for n in work.rows if n in SAMPLED)}, got {row!r}")
        path = work.folder / row / "model.safetensors"
        saved = checkpoint.read(path, kind="training")
        network, crf, edge_maker = sampling.parts(work.problem, edges_of(row))
        # Of the fresh network, whose logits are the pre-trained one's.
        pretrained = weights_of(network)
        network.load_state_dict(checkpoint.tensors(saved, "network"))
        check_tables(path, saved, crf)
        load_tables(saved, crf)
        return cls(network.eval(), pretrained, crf, edge_maker)

    def asked(self, batch: Batch) -> tuple[Tensor, Tensor | None, Edges]:
        """A batch's logits, those of the pre-trained weights, and what is told of its edges."""
        logits, gates, first = run(self.network, self.pretrained, batch.image)
        return logits, first, evaluation.edges_of(self.edge_maker, batch.image, gates)

    def answers(self, batch: Batch, start: str, budgets: Iterable[int], replicas: int) -> tuple[dict[int, Tensor], Tensor]:
        """One image's max-marginal labels ``[*shape]`` after each budget, and the energies ``[R, T]`` after each sweep."""
        logits, first, (kinds, gates) = self.asked(batch)
        if first is None or start == "random":
            first = torch.zeros_like(logits)
        sampler = tc.Sampler(self.crf, seed=0)
        chains = sampler.init(
            first, batch.known, batch.index, sizes=batch.sizes, mask=batch.mask, clamp=batch.clamp, replicas=replicas,
            kinds=kinds, gates=gates,
        )  # fmt: skip
        sampler.run(chains, 0, logits=logits)
        total = torch.zeros((*chains.plan.free.shape, self.crf.num_labels), dtype=torch.float64, device=self.crf.device)
        places, done = sorted({place for budget in budgets for place in (budget, burn_in(budget))} | {0}), 0
        sums, energies = dict[int, Tensor](), list[Tensor]()
        for place in places:
            energies.append(sampler.average(chains, place - done, total)[0])
            sums[place], done = total.clone(), place
        free, found = chains.plan.free[0], dict[int, Tensor]()
        known = torch.zeros_like(batch.target[0]) if batch.known is None else batch.known[0].to(batch.target.dtype)
        for budget in budgets:
            labels = known.flatten().clone()
            best = (sums[budget] - sums[burn_in(budget)])[0, free].argmax(-1)
            labels[chains.plan.pixels[free]] = best.to(labels.dtype)
            found[budget] = labels.view_as(known)
        return found, torch.cat(energies, -1)


def held_out(problem: Problem, split: str, data: Path | None, count: int) -> tc.Indexed:
    """Images of the training split that the preset does not learn from, evenly spaced.

    Most show clips from which it learned others: enough to see when chains settle, not how accurate the model is.
    """
    preset = problem.preset
    if preset.file is None:
        return tc.Indexed(Figures(count, seed=2))
    if data is None:
        raise ValueError(f"data: expected the folder that holds {preset.file}, got none")
    if preset.train is None:
        raise ValueError(f"work: expected a preset that leaves training images out, got {preset.name!r}")
    whole = NpzDataset(data / preset.file, split="train", split_key=split)
    places = np.linspace(preset.train, len(whole) - 1, count).round().astype(int)
    return tc.Indexed(Chosen(whole, np.unique(places).tolist()))


def curve(model: Model, images: tc.Indexed, start: str, budgets: Iterable[int] = BUDGETS) -> list[float]:
    """The accuracy of a single chain an image after each budget."""
    budgets = tuple(budgets)
    scores = {budget: Score.empty(images.num_labels, images.background) for budget in budgets}
    for i in range(len(images)):
        batch = Batch.of(collate([images[i]]), model.crf.device)
        target = batch.target.masked_fill(~batch.present, 255)
        for budget, labels in model.answers(batch, start, budgets, 1)[0].items():
            scores[budget] = scores[budget].plus(target[0], labels)
    return [scores[budget].accuracy for budget in budgets]


def agreement(model: Model, images: tc.Indexed, budgets: Iterable[int] = BUDGETS) -> dict[int, Tensor]:
    """Split R-hat of the energies of `REPLICAS` chains an image, over the averaged sweeps of each budget from 6 on."""
    found: dict[int, list[Tensor]] = {budget: [] for budget in budgets if budget >= 6}
    for i in range(len(images)):
        batch = Batch.of(collate([images[i]]), model.crf.device)
        _, energies = model.answers(batch, "pretrained", found, REPLICAS)
        for budget, values in found.items():
            values.append(diagnostics.rhat(energies[:, burn_in(budget) : budget]))
    return {budget: torch.stack(values) for budget, values in found.items()}


def share(values: Tensor) -> float:
    """Of images whose chains agree, by their R-hat."""
    return float((values < diagnostics.DISAGREE).double().mean())


def choose(agreed: dict[int, Tensor], accuracy: dict[int, float]) -> tuple[int, float, str]:
    """The least budget after which the most sweeps gain little, neither accuracy nor agreement; its largest R-hat; in words.

    Chains that lie in modes apart never agree, so R-hat cannot be asked to fall below a bound on every image.
    """
    shares = {budget: share(values) for budget, values in agreed.items()}
    most = max(agreed)
    budget = min(b for b in agreed if shares[b] >= shares[most] - JOINED and accuracy[b] >= accuracy[most] - GAIN)
    how = (
        f"The least from which on {most} sweeps gain no more than {100 * GAIN:g} point of accuracy and bring no more than "
        f"{JOINED:.0%} of the images below an R-hat of {diagnostics.DISAGREE} "
        f"({shares[budget]:.0%} are, {shares[most]:.0%} then). "
        "The images are left out of learning, most of their clips are not."
    )
    return budget, float(agreed[budget].max()), how


@program
def main(arguments: list[str] | None = None) -> None:
    rows, which = ("joint_pcd", "separate_pcd"), "the first one's chains choose"
    options = finished("inference", __doc__ or "", rows=rows, which=which, images=40, out=report.RESULTS).parse_args(arguments)
    work = opened(options)
    images = held_out(work.problem, work.problem.split, options.data, options.images)
    models = {row: Model.of(work, row) for row in options.rows}
    curves = list[dict[str, Any]]()
    for row, model in models.items():
        for start in STARTS:
            accuracy = curve(model, images, start)
            curves.append({"row": row, "start": start, "sweeps": list(BUDGETS), "accuracy": accuracy})
            print(row, start, *(f"{100 * value:.2f}" for value in accuracy), flush=True)
    agreed = agreement(models[options.rows[0]], images)
    for budget, values in agreed.items():
        print(f"{budget} sweeps: R-hat median {float(values.median()):.3f}, below {diagnostics.DISAGREE} on "
              f"{share(values):.0%}", flush=True)  # fmt: skip
    budget, largest, how = choose(agreed, dict(zip(BUDGETS, curves[0]["accuracy"], strict=True)))
    found = {"burn_in": burn_in(budget), "sweeps": budget - burn_in(budget),
             "rhat": largest if math.isfinite(largest) else None, "images": len(images), "how": how,
             "preset": work.problem.preset.name, "split": work.problem.split, "curves": curves}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / report_rows.INFERENCE).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
