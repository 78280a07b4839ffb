"""What does another objective cost? ``python -m bench.objective --data FOLDER``: processor time of a learning step, as ratios.

One copy of network, tables and chains for each objective learns from the same images of the preset, a step of each in turns, so
that whatever else the machine does meets all alike. After the first visits the ratios of each one's mean processor time to that
of the likelihood and of the network alone are told; with calmer chains more neighbours are alike in all contexts, and the
cross-entropy costs less. With ``--work``, a folder of `bench.paper.tuning`, all begin with its pre-trained network.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch

import tritoncrf as tc
from bench.paper.edges import maker
from bench.paper.presets import PRESETS
from bench.paper.problem import pretrained
from bench.paper.tuning import folder_of, held_out
from bench.step import Learner, Plain, batches_of
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
    parser.add_argument("--work", type=Path, help="a folder of bench.paper.tuning, for its pre-trained network")
    parser.add_argument("--sweeps", type=int, help="K; the preset's by default")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--warm", type=int, default=2, help="visits of each image before time is taken")
    parser.add_argument("--visits", type=int, default=2, help="visits after that")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = PRESETS[options.preset]
    train, held = held_out(options.data, replace(preset, train=options.images if options.work is None else 300))
    start = networks.build(preset.network, train.channels, train.num_labels)
    if options.work is not None:
        folder = options.work / folder_of(preset, 300, preset.pretrain, 0)
        start = pretrained(preset, preset.splits[0], 0, train, held, folder, torch.device("cpu")).network()
    told, batches = maker(preset.edges, preset.neighborhood), batches_of(train)[: options.images]
    arms: dict[str, Learner | Plain] = {"network alone": Plain(copy.deepcopy(start), options.rate)}
    for name, objective in OBJECTIVES.items():
        arms[name] = Learner(
            copy.deepcopy(start), train, preset.neighborhood, told, sweeps=options.sweeps or preset.visit_sweeps,
            objective=objective, rate=options.rate,
        )  # fmt: skip
    visits = [
        {name: arm.step(batch) if isinstance(arm, Plain) else sum(arm.step(batch)) for name, arm in arms.items()}
        for batch in batches * (options.warm + options.visits)
    ]
    counted = visits[options.warm * len(batches) :]
    alone, base = (sum(visit[name] for visit in counted) for name in ("network alone", "likelihood"))
    for name, arm in arms.items():
        total = sum(visit[name] for visit in counted)
        flips = "" if isinstance(arm, Plain) else f", {arm.flip_rate:.1%} flips at the end"
        ratios = f"{total / base:.2f} times the likelihood's, {total / alone:.2f} times the network's alone"
        print(f"{name}: {1000 * total / len(counted):.1f} ms a step, {ratios}{flips}")


if __name__ == "__main__":
    main()
