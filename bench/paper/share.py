"""What share of a learning step is the sampler's? ``python -m bench.paper.share --work runs/facades --data FOLDER``

Of finished PCD rows, some training images are visited once more, their chains where learning left them: the network forward,
the loss, which is the sampler's K sweeps and what tells it of the edges, the backward, the optimizer's step at a rate of 0, so
that nothing moves. Beside each such step stands one of the control, cross-entropy in place of the loss, of the same network and
image. Times are the processor's, summed over the images; the two kinds of step take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

import tritoncrf as tc
from bench.paper.figures import open_work
from bench.paper.lag import PERSISTENT, Kept
from bench.paper.methods import METHODS
from bench.paper.methods.descent import cross_entropy
from bench.paper.run import finished
from tritoncrf import evaluation
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate

JOINT = [row for row in PERSISTENT if METHODS[row][1]["joint"]]
Value = Callable[[Tensor, Tensor | None, Batch], Tensor]
"""Logits, the network's own gates and their batch -> a scalar to go down."""


@dataclass(frozen=True)
class Share:
    """A row's step beside the control's."""

    row: str
    preset: str
    split: str
    images: int
    K: int
    control_ms: float
    """A step of cross-entropy: network, backward, optimizer."""
    joint_ms: float
    """A step of the row: the same with the loss in place of cross-entropy."""
    loss_ms: float
    """Of that, the loss alone: sampling and what it says of the errors."""
    flip_rate: float
    """Labels that changed in a sweep, as a share of the free pixels."""

    @property
    def ratio(self) -> float:
        """The row's step over the control's."""
        return self.joint_ms / self.control_ms

    @property
    def share(self) -> float:
        """The loss's share of the row's step."""
        return self.loss_ms / self.joint_ms


def measure(kept: Kept, row: str, batches: list[Batch], sweeps: int, preset: str, split: str) -> Share:
    """Visits each batch once to warm up and once to be timed; the row's model and chains on disk are left alone."""
    network, crf = copy.deepcopy(kept.model.network).train(), kept.model.crf
    loss = tc.CRFLoss(crf, chains=kept.chains, sweeps=sweeps)
    alone = torch.optim.Adam(network.parameters(), lr=0.0)
    both = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=0.0)
    spent, flips = np.zeros(3), list[float]()

    def of_loss(logits: Tensor, gates: Tensor | None, batch: Batch) -> Tensor:
        kinds, gates = evaluation.edges_of(kept.model.edge_maker, batch.image, gates)
        value: Tensor = loss(
            logits, batch.labels, batch.index, sizes=batch.sizes, mask=batch.mask, clamp=batch.clamp, kinds=kinds, gates=gates
        )
        return value

    def step(batch: Batch, optimizer: torch.optim.Optimizer, value: Value) -> tuple[float, float]:
        began = time.process_time()
        found = network(batch.image)
        logits, gates = found if isinstance(found, tuple) else (found, None)
        before = time.process_time()
        objective = value(logits.float(), gates, batch)
        after = time.process_time()
        optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.process_time() - began, after - before

    for timed in (False, True):
        for batch in batches:
            control, _ = step(batch, alone, lambda logits, gates, batch: cross_entropy(logits, batch))
            joint, within = step(batch, both, of_loss)
            if timed:
                spent += (control, joint, within)
                if loss.statistics is not None:
                    flips.append(float(loss.statistics.flip_rate))
    control_ms, joint_ms, loss_ms = (1e3 * spent / len(batches)).tolist()
    return Share(row, preset, split, len(batches), sweeps, control_ms, joint_ms, loss_ms, float(np.mean(flips)))


def main(arguments: list[str] | None = None) -> int:
    parser = finished("share", __doc__ or "")
    parser.add_argument("--rows", nargs="+", default=["joint_pcd"], help=", ".join(JOINT))
    parser.add_argument("--images", type=int, default=20, help="how many training images, evenly spaced")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        if options.images < 1:
            raise ValueError(f"images: expected at least 1, got {options.images}")
        work = open_work(options.work, options.data, options.split, options.seed)
        for row in options.rows:
            if row not in JOINT:
                raise ValueError(f"rows: expected some of {', '.join(JOINT)}, got {row!r}")
        rows = {row: Kept.of(work, row) for row in options.rows}
    except (ValueError, ImportError, OSError) as error:
        print(f"bench.paper.share: {error}", file=sys.stderr)
        return 2
    problem = work.problem
    places = np.unique(np.linspace(0, len(problem.train) - 1, options.images).round().astype(int)).tolist()
    batches = [Batch.of(collate([problem.train[place]]), problem.device) for place in places]
    for row, kept in rows.items():
        sweeps = int(METHODS[row][1].get("sweeps", problem.preset.visit_sweeps))
        found = measure(kept, row, batches, sweeps, problem.preset.name, problem.split)
        figures = {**asdict(found), "ratio": found.ratio, "share": found.share}
        print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
