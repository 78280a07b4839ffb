"""What does another objective cost? ``python -m bench.objective --data FOLDER``: processor time of a learning step, as ratios.

One copy of network, tables and chains for each objective learns from the same images of the preset, a step of each in turns, so
that whatever else the machine does meets all alike. After the first visits the ratio of each one's mean processor time to that
of the likelihood is told; with calmer chains more neighbours are alike in all contexts, and the cross-entropy costs less.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

import tritoncrf as tc
from bench.paper.edges import crf_of, maker
from bench.paper.presets import PRESETS
from bench.paper.tuning import held_out
from tritoncrf import networks
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate
from tritoncrf.evaluation import edges_of

OBJECTIVES = {
    "likelihood": tc.Objective(),
    "margin": tc.Objective(margin=0.3),
    **{f"cross-entropy of {m} averaged": tc.Objective(cross_entropy=1.0, contexts=m) for m in (1, 4, 10)},
}


@dataclass
class Arm:
    """What one objective learns."""

    network: nn.Module
    loss: tc.CRFLoss
    optimizer: torch.optim.Optimizer
    step: list[float] = field(default_factory=list)
    """Seconds of processor time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preset", choices=[name for name, preset in PRESETS.items() if preset.file], default="half")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--warm", type=int, default=2, help="visits of each image before time is taken")
    parser.add_argument("--visits", type=int, default=2, help="visits after that")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = replace(PRESETS[options.preset], train=options.images)
    train, _ = held_out(options.data, preset)
    told = maker(preset.edges, preset.neighborhood)
    batches = [Batch.of(collate([train[n]]), torch.device("cpu")) for n in range(len(train))]
    arms: dict[str, Arm] = {}
    for name, objective in OBJECTIVES.items():
        torch.manual_seed(0)
        network = networks.build(preset.network, train.channels, train.num_labels)
        chains = tc.ChainStore(train.sizes, seed=0)
        loss = tc.CRFLoss(
            crf_of(train.num_labels, preset.neighborhood, told), chains=chains, sweeps=preset.visit_sweeps, objective=objective
        )
        parts = [*network.parameters(), *loss.parameters()]
        arms[name] = Arm(network, loss, torch.optim.Adam(parts, preset.table_rate))
    for visit in range(options.warm + options.visits):
        for batch in batches:
            for arm in arms.values():
                began = time.process_time()
                kinds, gates = edges_of(told, batch.image, None)
                value = arm.loss(
                    arm.network(batch.image).float(), batch.labels, batch.index, sizes=batch.sizes, mask=batch.mask,
                    clamp=batch.clamp, kinds=kinds, gates=gates,
                )  # fmt: skip
                value.backward()
                arm.optimizer.step()
                arm.optimizer.zero_grad()
                if visit >= options.warm:
                    arm.step.append(time.process_time() - began)
    base = sum(arms["likelihood"].step)
    for name, arm in arms.items():
        mean = 1000 * sum(arm.step) / len(arm.step)
        print(f"{name}: {mean:.1f} ms a step, {sum(arm.step) / base:.2f} times the likelihood's")


if __name__ == "__main__":
    main()
