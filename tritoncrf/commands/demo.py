"""What does it do, seen in two minutes? `tritoncrf demo`: figures are made up, a network and a CRF learn, a report is written.

Three networks are compared on held-out figures: the pre-trained one; a control that got the same further epochs of
cross-entropy; and the one learned jointly with a CRF by persistent contrastive divergence.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tritoncrf import networks
from tritoncrf.commands import data, models, neighborhoods, report
from tritoncrf.commands.data import Kept
from tritoncrf.commands.report import Figures
from tritoncrf.datasets import Figures as FigureSet
from tritoncrf.edges import parse
from tritoncrf.grid_crf import GridCRF
from tritoncrf.loss import CRFLoss
from tritoncrf.store import ChainStore
from tritoncrf.training import Trainer


@dataclass(frozen=True)
class Size:
    """How much the demo does."""

    images: int
    held_out: int
    shape: tuple[int, int]
    neighborhood: str
    edges: str
    pretrain_epochs: int
    epochs: int
    sweeps: int
    batch: int
    network_rate: float = 3e-3
    table_rate: float = 1e-2
    """Above the trainer's own: a few hundred updates must do what some thousands do there."""


FULL = Size(160, 40, (96, 64), "grid:18:6+grid:1", "steps:0.2", 6, 6, 5, 4)
SMALL = Size(8, 4, (32, 24), "grid:4:2+grid:1", "steps:0.2", 1, 1, 2, 4)


def run(arguments: argparse.Namespace) -> int:
    """Learns, prints the accuracies, and writes the report to ``--out``; an earlier demo's report is written over."""
    report.check()
    folder = models.new_folder(arguments.out, allow=report.MARK)
    if arguments.seed < 0:
        raise ValueError(f"seed: expected at least 0, got {arguments.seed}")
    size = SMALL if arguments.small else FULL
    folder.mkdir(parents=True, exist_ok=True)
    (folder / report.LOG).unlink(missing_ok=True)
    threads = torch.get_num_threads()
    # Figures are small, and threads that wait for each other cost more than they bring where other programs run.
    torch.set_num_threads(1)
    try:
        _run(folder, arguments.seed, arguments.engine, size)
    finally:
        torch.set_num_threads(threads)
    return 0


def _run(folder: Path, seed: int, engine: str, size: Size) -> None:
    started = time.perf_counter()
    height, width = size.shape
    training = Kept(FigureSet(size.images, 2 * seed, size.shape))
    held_out = Kept(FigureSet(size.held_out, 2 * seed + 1, size.shape))
    print(f"made {size.images} figures of {height} x {width} pixels to learn from, {size.held_out} to ask about", flush=True)
    batches, test = data.loader(training, size.batch, seed), data.loader(held_out, size.batch)

    torch.manual_seed(seed)
    network = networks.small(training.channels, training.num_labels)
    neighborhood = neighborhoods.parse(size.neighborhood)
    edges = parse(size.edges, neighborhood)
    crf = GridCRF(training.num_labels, neighborhood, kinds=edges.kinds)
    loss = CRFLoss(crf, chains=ChainStore(training.sizes, seed=seed), sweeps=size.sweeps, engine=engine)
    groups: list[dict[str, object]] = [
        {"params": [crf.pairwise], "lr": size.table_rate},
        {"params": list(network.parameters()), "lr": size.network_rate},
    ]
    trainer = Trainer(network, crf, optimizer=torch.optim.Adam(groups), loss=loss, log=folder / report.LOG, edges=edges)
    with _told(f"the network learns alone: {size.pretrain_epochs} epochs of cross-entropy"):
        trainer.pretrain(batches, size.pretrain_epochs)
    alone = trainer.evaluate(test, sweeps=1, burn_in=0).network
    # The control's tables stay zero: it is the network alone.
    zero = GridCRF(training.num_labels, crf.neighborhood)
    control = Trainer(copy.deepcopy(network), zero, loss=CRFLoss(zero, method="cd", engine=engine))
    with _told(f"a copy of it, the control, gets {size.epochs} epochs more"):
        control.pretrain(batches, size.epochs, rate=size.network_rate, stage="control")
    tables = f"{len(crf.neighborhood)} x {crf.form.kinds} tables"
    with _told(f"network and CRF learn jointly for {size.epochs} epochs: {tables} by Gibbs sampling"):
        trainer.fit(batches, "joint", epochs=size.epochs)
    with _told(f"{size.held_out} held-out figures are labelled"):
        found = trainer.evaluate(test)
    figures = Figures(
        network=alone.accuracy, control=control.evaluate(test, sweeps=1, burn_in=0).network.accuracy, crf=found.crf.accuracy,
        joint_network=found.network.accuracy, seconds=time.perf_counter() - started, seed=seed, **dataclasses.asdict(size),
    )  # fmt: skip
    report.write(folder, figures, trainer, control, held_out)
    print(
        f"\ncorrect pixels on held-out figures, background not counted:\n"
        f"  network                      {figures.network:6.1%}\n"
        f"  control (as long, no CRF)    {figures.control:6.1%}\n"
        f"  network and CRF, jointly     {figures.crf:6.1%}\n"
        f"{figures.seconds:.0f} seconds; the report is {folder / report.PAGE}"
    )


@contextmanager
def _told(text: str) -> Iterator[None]:
    started = time.perf_counter()
    print(f"{text} ..", end="", flush=True)
    yield
    print(f" {time.perf_counter() - started:.0f} s", flush=True)
