"""What do kinds cost a training step? ``python -m bench.edge_steps --data FILE``: joint PCD steps with and without, in turns.

The half-scale experiment (`bench.paper`, preset half): its network, 48 classes, K = 10, one image a step. Every model starts
from the same network after ``--pretrain`` steps of cross-entropy and learns ``--warm`` joint steps before those that count, so
that flip rates are those of learning. A turn is one step of every model on the same image. Kinds are made from the image within
the step, as the Trainer makes them. Writes results/edge_steps.json and edge_steps.md.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from pathlib import Path

import torch

from bench.paper.presets import PRESETS
from bench.step import Learner, Plain, batches_of, bodies
from bench.turns import RESULTS, Row, arguments, save, table
from tritoncrf import networks
from tritoncrf.edges import parse

TEXTS = {"without": None, "3 kinds": "steps:0.2", "5 kinds": "steps:0.1,0.3", "1 Gaussian gate on all": "gaussian:0.1"}


def main() -> None:
    parser = arguments(__doc__, threads=1)
    parser.add_argument("--data", type=Path, required=True, help="bodyparts_depth.npz")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--pretrain", type=int, default=600)
    parser.add_argument("--warm", type=int, default=180)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, hood = bodies(options.data, options.images), PRESETS["half"].neighborhood
    torch.manual_seed(0)
    plain = Plain(networks.build(PRESETS["half"].network, data.channels, data.num_labels), rate=3e-3)
    batches = batches_of(data)
    for batch in itertools.islice(itertools.cycle(batches), options.pretrain):
        plain.step(batch)
    models = {
        name: Learner(copy.deepcopy(plain.network), data, hood, None if text is None else parse(text, hood))
        for name, text in TEXTS.items()
    }
    turns = [
        {name: (sum(model.step(batch)), model.flip_rate) for name, model in models.items()}
        for batch in itertools.islice(itertools.cycle(batches), options.warm + options.steps)
    ][options.warm :]
    rows: list[Row] = []
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
