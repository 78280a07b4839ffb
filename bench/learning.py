"""Does joint learning help on real images? Rows of `bench.paper` on few images, with the network that sees far.

``python -m bench.learning --data bodyparts_depth.npz --out runs/bodies`` pre-trains the small network, then compares: the
network, the control (the same network with as many further epochs of cross-entropy), separate PCD, the same beside logits
halved, joint CD-1, CD-10 and joint PCD. Archive, split, network and visits are arguments, which a preset fixes: that alone, the
halved logits and the picture are its own. Writes a row of JSON per method and a picture; the table goes to stdout.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bench.paper.methods import learn
from bench.paper.presets import Preset, far
from bench.paper.problem import prepare
from bench.paper.run import machine, make
from tritoncrf import contract, plots
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate

# Our names -> rows of `bench.paper`.
METHODS = {
    "network": "cnn", "control": "control", "separate_pcd": "separate_pcd", "separate_pcd_soft": "separate_pcd",
    "joint_cd1": "joint_cd1", "joint_cd10": "joint_cd10", "joint_pcd": "joint_pcd",
}  # fmt: skip
# Factor on the logits of a network that is too sure of the images it was trained on, for tables learned beside it.
SOFT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="split_by_clip")
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--network", default="small", help="small, table1 or module:factory")
    parser.add_argument("--pretrain", type=int, default=20, help="epochs of cross-entropy before the comparison")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # 32 classes: a sparse grid that reaches 24 pixels, and two dense blocks around the site.
    preset = Preset(
        "learning", options.data.name, (options.split,), options.train, options.test, options.network, options.pretrain,
        options.epochs, far(24, 8),
    )  # fmt: skip
    tag = f"{options.network.replace(':', '_')}_{options.train}_{options.seed}"
    work = options.out / f"{options.data.stem}_{options.split}_{tag}_{options.pretrain}_{options.epochs}"
    problem = prepare(preset, options.split, options.seed, options.data.parent, work, torch.device("cpu"))
    labels, batch = problem.test.num_labels, Batch.of(collate([problem.test[0]]), problem.device)
    rows: list[dict[str, object]] = []
    pictures: list[torch.Tensor] = []
    for method in options.rows:
        own = problem.softened(SOFT) if method.endswith("soft") else problem
        found = make(METHODS[method], own, work / method)
        pictures.append(learn(METHODS[method], own, work / method)(batch)[1][0].argmax(0))
        kept = ("visits", "images", "test_images", "network_accuracy", "accuracy", "mean_iou", "seconds", "seconds_test")
        rows.append({
            "name": method, "data": options.data.name, "split": options.split, "seed": options.seed, "network": options.network,
            **{key: round(value, 5) if isinstance(value := found[key], float) else value for key in kept},
            "torch": torch.__version__, "machine": machine(problem.device), "contract": contract.VERSION,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
        (options.out / f"rows_{tag}.json").write_text(json.dumps(rows, indent=1) + "\n")
    image, target = problem.test[0][0], problem.test[0][1]
    shown = [image[0].numpy(), *(plots.colorize(p.numpy(), labels) for p in (target, *pictures))]
    titles = ["input", "truth", *(f"{row['name']} {100 * float(str(row['accuracy'])):.1f}" for row in rows)]
    plots.label_grid([shown], [titles], options.out / f"picture_{tag}.png")


if __name__ == "__main__":
    main()
