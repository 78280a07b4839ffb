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
from bench.paper.edges import loss_of
from bench.paper.figures import opened
from bench.paper.lag import PERSISTENT, Kept
from bench.paper.methods import METHODS
from bench.paper.methods.descent import cross_entropy
from bench.paper.run import finished, program
from tritoncrf.batches import Batch

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

    told = kept.model.edge_maker
    for timed in (False, True):
        for batch in batches:
            control, _ = step(batch, alone, lambda logits, gates, batch: cross_entropy(logits, batch))
            joint, within = step(batch, both, lambda logits, gates, batch: loss_of(loss, logits, batch, told, gates))
            if timed:
                spent += (control, joint, within)
                if loss.statistics is not None:
                    flips.append(float(loss.statistics.flip_rate))
    control_ms, joint_ms, loss_ms = (1e3 * spent / len(batches)).tolist()
    return Share(row, preset, split, len(batches), sweeps, control_ms, joint_ms, loss_ms, float(np.mean(flips)))


@program
def main(arguments: list[str] | None = None) -> None:
    parser = finished("share", __doc__ or "", rows=("joint_pcd",), which=", ".join(JOINT), images=20, threads=1)
    options = parser.parse_args(arguments)
    work = opened(options)
    for row in options.rows:
        if row not in JOINT:
            raise ValueError(f"rows: expected some of {', '.join(JOINT)}, got {row!r}")
    rows = {row: Kept.of(work, row) for row in options.rows}
    problem, batches = work.problem, work.learned(options.images)
    for row, kept in rows.items():
        sweeps = int(METHODS[row][1].get("sweeps", problem.preset.visit_sweeps))
        found = measure(kept, row, batches, sweeps, problem.preset.name, problem.split)
        figures = {**asdict(found), "ratio": found.ratio, "share": found.share}
        print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}))


if __name__ == "__main__":
    sys.exit(main())
