"""What does another objective cost? ``python -m bench.objective --data FOLDER``: processor time of a learning step, as ratios.

One copy of network, tables and chains for each objective learns from the same images of the preset, a step of each in turns, so
that whatever else the machine does meets all alike. After the first visits the ratio of each one's mean processor time to that
of the likelihood is told; with calmer chains more neighbours are alike in all contexts, and the cross-entropy costs less.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import tritoncrf as tc
from bench.paper.edges import maker
from bench.paper.presets import PRESETS
from bench.paper.tuning import held_out
from bench.step import Learner, batches_of
from bench.turns import arguments
from tritoncrf import networks

OBJECTIVES = {
    "likelihood": tc.Objective(),
    "margin": tc.Objective(margin=0.3),
    **{f"cross-entropy of {m} averaged": tc.Objective(cross_entropy=1.0, contexts=m) for m in (1, 4, 10)},
    "cross-entropy of 4 averaged, one pixel of 4": tc.Objective(cross_entropy=1.0, contexts=4, every=4),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preset", choices=[name for name, preset in PRESETS.items() if preset.file], default="half")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--warm", type=int, default=2, help="visits of each image before time is taken")
    parser.add_argument("--visits", type=int, default=2, help="visits after that")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = replace(PRESETS[options.preset], train=options.images)
    data, _ = held_out(options.data, preset)
    told, batches = maker(preset.edges, preset.neighborhood), batches_of(data)
    arms: dict[str, Learner] = {}
    for name, objective in OBJECTIVES.items():
        torch.manual_seed(0)
        network = networks.build(preset.network, data.channels, data.num_labels)
        arms[name] = Learner(
            network, data, preset.neighborhood, told, sweeps=preset.visit_sweeps, objective=objective, rate=preset.table_rate
        )
    visits = [{name: sum(arm.step(batch)) for name, arm in arms.items()} for batch in batches * (options.warm + options.visits)]
    counted = visits[options.warm * len(batches) :]
    base = sum(visit["likelihood"] for visit in counted)
    for name in arms:
        total = sum(visit[name] for visit in counted)
        print(f"{name}: {1000 * total / len(counted):.1f} ms a step, {total / base:.2f} times the likelihood's")


if __name__ == "__main__":
    main()
