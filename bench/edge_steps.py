"""What do kinds cost a training step? ``python -m bench.edge_steps --data FILE``: joint PCD steps with and without, in turns.

The half-scale experiment (`bench.paper`, preset half): its network, 48 classes, K = 10, one image a step. Every model starts
from the same network after ``--pretrain`` steps of cross-entropy and learns ``--warm`` joint steps before those that count, so
that flip rates are those of learning. A turn is one step of every model on the same image. Kinds are made from the image within
the step, as the Trainer makes them. Writes results/edge_steps.json and edge_steps.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import tritoncrf as tc
from bench.paper.presets import PRESETS
from bench.step import bodies
from bench.turns import RESULTS, save, table
from tritoncrf import networks
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate
from tritoncrf.edges import Recipe, parse
from tritoncrf.evaluation import edges_of

TEXTS = {"without": None, "3 kinds": "steps:0.2", "5 kinds": "steps:0.1,0.3", "1 Gaussian gate on all": "gaussian:0.1"}


class Model:
    """One model that learns."""

    def __init__(self, network: nn.Module, data: tc.Indexed, recipe: Recipe | None) -> None:
        hood = PRESETS["half"].neighborhood
        self.network, self.recipe = copy.deepcopy(network), recipe
        crf = tc.GridCRF(data.num_labels, hood)
        if recipe is not None:
            crf = tc.GridCRF(data.num_labels, hood, kinds=recipe.kinds, gates=recipe.gates)
        self.loss = tc.CRFLoss(crf, chains=tc.ChainStore(data.sizes, seed=0))
        self.optimizer = torch.optim.Adam([*self.loss.parameters(), *self.network.parameters()], lr=1e-3)

    def step(self, batch: Batch) -> tuple[float, float]:
        """Seconds, and the flip rate."""
        began = time.perf_counter()
        logits = self.network(batch.image)
        kinds, gates = edges_of(self.recipe, batch.image, None)
        given = {"sizes": batch.sizes, "mask": batch.mask, "clamp": batch.clamp, "kinds": kinds, "gates": gates}
        self.loss(logits, batch.labels, batch.index, **given).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        return seconds, float("nan") if self.loss.statistics is None else float(self.loss.statistics.flip_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="bodyparts_depth.npz")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--pretrain", type=int, default=600)
    parser.add_argument("--warm", type=int, default=180)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = bodies(options.data, options.images)
    batches = [Batch.of(collate([data[i]]), torch.device("cpu")) for i in range(len(data))]
    torch.manual_seed(0)
    network = networks.build(PRESETS["half"].network, data.channels, data.num_labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for i in range(options.pretrain):
        batch = batches[i % len(batches)]
        target = batch.target.long() if batch.clamp is None else batch.target.long().masked_fill(batch.clamp, 255)
        nn.functional.cross_entropy(network(batch.image), target, ignore_index=255).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    hood = PRESETS["half"].neighborhood
    models = {name: Model(network, data, None if text is None else parse(text, hood)) for name, text in TEXTS.items()}
    for i in range(options.warm):
        for model in models.values():
            model.step(batches[i % len(batches)])
    turns = [
        {name: model.step(batches[i % len(batches)]) for name, model in models.items()}
        for i in range(options.warm, options.warm + options.steps)
    ]
    rows: list[dict[str, object]] = []
    for name in models:
        ratios = [turn[name][0] / turn["without"][0] for turn in turns]
        rows.append({
            "model": name, "ms": 1e3 * statistics.median(turn[name][0] for turn in turns), "time": statistics.median(ratios),
            "quarters": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            "flips": statistics.mean(turn[name][1] for turn in turns),
        })  # fmt: skip
    columns = {"model": "model", "ms": "step, ms", "time": "time", "quarters": "quarters", "flips": "flips/update"}
    lines = table(rows, columns)
    note = (
        f"{len(data)} images of {options.data.name}, {options.threads} thread(s), medians of {options.steps} turns after "
        f"{options.warm} joint steps; time is that of the row over that of the model without, within a turn."
    )
    save(RESULTS / "edge_steps.json", "python -m bench.edge_steps --data FILE", {"rows": rows}, [note, "", *lines])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
