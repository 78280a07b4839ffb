"""Does joint learning help on real images? The methods side by side: same images, same pre-trained network, same visits.

``python -m bench.learning --data bodyparts_depth.npz --out runs/bodies`` pre-trains the small network, then compares: the
network, the control (the same network with as many further epochs of cross-entropy), separate PCD, the same beside logits
halved, joint CD-1, CD-10 and joint PCD. Writes a row of JSON per method and a picture; the table goes to stdout.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import tritoncrf as tc
from tritoncrf import contract, networks, plots
from tritoncrf.batches import Batch
from tritoncrf.datasets import NpzDataset, collate
from tritoncrf.training import Trainer

METHODS = ("network", "control", "separate_pcd", "separate_pcd_soft", "joint_cd1", "joint_cd10", "joint_pcd")
# Factor on the logits of a network that is too sure of the images it was trained on, for tables learned beside it.
SOFT = 0.5


def far() -> tc.Neighborhood:
    """32 classes: a sparse grid that reaches 24 pixels, and two dense blocks around the site."""
    return tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="split_by_clip")
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--network", default="small", help="small, table1 or module:factory")
    parser.add_argument("--pretrain", type=int, default=20, help="epochs of cross-entropy before the comparison")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train, test = (
        tc.Indexed(NpzDataset(options.data, split=split, split_key=options.split, limit=limit))
        for split, limit in (("train", options.train), ("test", options.test))
    )
    labels = train.num_labels
    options.out.mkdir(parents=True, exist_ok=True)
    start = networks.build(options.network, train.channels, labels)
    first = Trainer(start, tc.GridCRF(labels, far()))
    tag = _tag(options)
    saved = options.out / f"network_{tag}_{options.pretrain}.safetensors"
    if saved.exists():
        first.load(saved)
    # Where that was finished before, nothing is left to do.
    first.pretrain(_loader(train, shuffle=True), options.pretrain, checkpoint=saved)
    rows = []
    pictures: list[torch.Tensor] = []
    for method in options.rows:
        row, picture = _run(method, options, start, train, test)
        rows.append(row)
        pictures.append(picture)
        print(json.dumps(row), flush=True)
        (options.out / f"rows_{tag}.json").write_text(json.dumps(rows, indent=1) + "\n")
    image, target = test[0][0], test[0][1]
    shown = [image[0].numpy(), *(plots.colorize(p.numpy(), labels) for p in (target, *pictures))]
    titles = ["input", "truth", *(f"{row['name']} {100 * float(str(row['accuracy'])):.1f}" for row in rows)]
    plots.label_grid([shown], [titles], options.out / f"picture_{tag}.png")


def _tag(options: argparse.Namespace) -> str:
    """What the files of a run are known by."""
    return f"{options.network.replace(':', '_')}_{options.train}_{options.seed}"


def _loader(data: tc.Indexed, *, shuffle: bool) -> DataLoader[object]:
    return DataLoader(data, batch_size=1, shuffle=shuffle, collate_fn=collate)


def _run(
    method: str, options: argparse.Namespace, start: torch.nn.Module, train: tc.Indexed, test: tc.Indexed
) -> tuple[dict[str, object], torch.Tensor]:
    tag = _tag(options)
    torch.manual_seed(options.seed + 1)
    began = time.perf_counter()
    network = copy.deepcopy(start)
    if method.endswith("soft"):
        *_, last = (layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d))
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(SOFT)
    crf = tc.GridCRF(train.num_labels, far())
    store = tc.ChainStore(train.sizes, seed=options.seed)
    loss = None
    if method.startswith("joint_cd"):
        loss = tc.CRFLoss(crf, method="cd", sweeps=int(method.removeprefix("joint_cd")), chains=store)
    trainer = Trainer(network, crf, loss=loss, chains=store, log=options.out / f"log_{tag}_{method}.jsonl")
    loader = _loader(train, shuffle=True)
    if method == "control":
        trainer.pretrain(loader, options.epochs, rate=1e-3)
    elif method.startswith("separate_pcd"):
        trainer.fit(loader, "separate", epochs=options.epochs)
    elif method.startswith("joint"):
        trainer.fit(loader, "joint", epochs=options.epochs)
    learned = time.perf_counter() - began
    alone = method in ("network", "control")
    found = trainer.evaluate(_loader(test, shuffle=False), sweeps=1 if alone else 40, burn_in=0 if alone else 20)
    score = found.network if alone else found.crf
    network.eval()
    batch = Batch.of(next(iter(_loader(test, shuffle=False))), trainer.device)
    answers = trainer.marginals(batch)
    return {
        "name": method, "data": options.data.name, "split": options.split, "seed": options.seed,
        "network": options.network, "images": len(train), "test_images": len(test),
        "visits": 0 if method == "network" else options.epochs * len(train),
        "accuracy": round(score.accuracy, 5), "mean_iou": round(score.mean_iou, 5),
        "network_accuracy": round(found.network.accuracy, 5), "seconds": round(learned, 1),
        "seconds_test": round(time.perf_counter() - began - learned, 1), "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "contract": contract.VERSION,
    }, answers[0 if alone else 1][0].argmax(0)  # fmt: skip


if __name__ == "__main__":
    main()
