"""What share of a training step do sampler and loss take? ``python -m bench.step`` times the parts of joint PCD steps.

Images of the size of half-scale bodies (178 x 85), one or four a step, the background clamped where its label is known, 20
labels, the far 32 classes, K = 10. Parts: the network forward; the loss forward, which samples; the loss backward, which
hands the error to the logits; the network backward; the optimizer. Steps with cross-entropy take turns with the PCD steps on
a copy of the network: the ratio within a turn is what the loss costs its user. The images are made-up figures, or those of
``--data``, an archive as `tritoncrf.datasets.NpzDataset` reads it. ``--write`` puts the table into ``bench/results/step.md``
and its JSON beside it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritoncrf as tc
from bench.memory import peak, reset_peak
from bench.turns import RESULTS, save, table
from tritoncrf import networks
from tritoncrf.batches import Batch
from tritoncrf.datasets import Figures, NpzDataset, collate

SIZE = (178, 85)
PARTS = ("network forward", "loss forward", "loss backward", "network backward", "optimizer")
COLUMNS = {
    "network": "network", "batch": "batch", "threads": "threads", "parameters": "parameters", "trained": "steps before",
    "step_ms": "PCD step, ms",
    **{part: part for part in PARTS}, "share": "share of sampler and loss", "to_cross_entropy": "step / cross-entropy's",
    "flip_rate": "flip rate", "free": "pixels drawn", "peak_megabytes": "MB at peak",
}  # fmt: skip
Row = dict[str, object]


def clock() -> float:
    """Seconds: of the processor where one thread does all, so that nobody else's work counts."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Steps:
    """A network that learns with the CRF, ``batch`` images at a time; the copy of it learns by cross-entropy."""

    def __init__(self, name: str, data: tc.Indexed, sweeps: int, engine: str, batch: int) -> None:
        torch.manual_seed(0)
        neighborhood = tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2)
        self.network = networks.build(name, data.channels, data.num_labels)
        if len(data) < batch:
            raise ValueError(f"images: expected at least a batch of {batch}, got {len(data)}")
        groups = (range(i, i + batch) for i in range(0, len(data) - batch + 1, batch))
        self.batches = [Batch.of(collate([data[i] for i in group]), torch.device("cpu")) for group in groups]
        self.loss = tc.CRFLoss(
            tc.GridCRF(data.num_labels, neighborhood), chains=tc.ChainStore(data.sizes, seed=0), sweeps=sweeps, engine=engine
        )
        self.plain = copy.deepcopy(self.network)
        learned = [{"params": self.loss.parameters()}, {"params": self.network.parameters()}]
        self.optimizer = torch.optim.Adam(learned, lr=1e-3)
        self.control = torch.optim.Adam(self.plain.parameters(), lr=1e-3)

    def cross_entropy(self, i: int, network: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        """Seconds of one step."""
        batch = self.batches[i % len(self.batches)]
        began = clock()
        target = batch.target.long()
        if batch.clamp is not None:
            target = target.masked_fill(batch.clamp, 255)
        F.cross_entropy(network(batch.image), target, ignore_index=255).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return clock() - began

    def pcd(self, i: int) -> list[float]:
        """Seconds of each part of one step."""
        batch = self.batches[i % len(self.batches)]
        times = [clock()]
        logits = self.network(batch.image)
        times.append(clock())
        # The graph is cut at the logits to time the two backward passes apart.
        cut: Tensor = logits.detach().requires_grad_()
        value = self.loss(cut, batch.labels, batch.index, sizes=batch.sizes, mask=batch.mask, clamp=batch.clamp)
        times.append(clock())
        value.backward()
        times.append(clock())
        logits.backward(cut.grad)
        times.append(clock())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(clock())
        return [b - a for a, b in itertools.pairwise(times)]


def measure(
    name: str, data: tc.Indexed, *, pretrain: int = 0, warm: int = 3, steps: int = 20, sweeps: int = 10, engine: str = "auto",
    batch: int = 1,
) -> Row:
    """The row of one network. pretrain: steps of cross-entropy first; warm: PCD steps before those that count."""
    run = Steps(name, data, sweeps, engine, batch)
    for i in range(pretrain):
        run.cross_entropy(i, run.plain, run.control)
    run.network.load_state_dict(run.plain.state_dict())
    for i in range(warm):
        run.pcd(i)
        run.cross_entropy(i, run.plain, run.control)
    reset_peak()
    parts, control, flips = [], [], []
    for i in range(warm, warm + steps):
        parts.append(run.pcd(i))
        control.append(run.cross_entropy(i, run.plain, run.control))
        if run.loss.statistics is not None:
            flips.append(float(run.loss.statistics.flip_rate))
    totals = [sum(part) for part in parts]
    shares = [(part[1] + part[2]) / sum(part) for part in parts]
    free = [int((b.present if b.clamp is None else b.present & ~b.clamp).sum()) for b in run.batches]
    return {
        "network": name, "parameters": sum(p.numel() for p in run.network.parameters()), "trained": pretrain + warm,
        "step_ms": 1e3 * statistics.median(totals),
        **{part: 1e3 * statistics.median(times) for part, times in zip(PARTS, zip(*parts, strict=True), strict=True)},
        "share": statistics.median(shares), "share_least": min(shares), "share_most": max(shares),
        "to_cross_entropy": statistics.median(a / b for a, b in zip(totals, control, strict=True)),
        "flip_rate": statistics.mean(flips), "free": round(statistics.mean(free)), "sweeps": sweeps, "steps": steps,
        "images": len(data), "batch": batch, "engine": run.loss.sampler.engine_name, "threads": torch.get_num_threads(),
        "peak_megabytes": peak() / 1e6,
    }  # fmt: skip


def bodies(path: Path | None, count: int, size: tuple[int, int] = SIZE) -> tc.Indexed:
    """Images of the archive at ``path``, or made-up figures."""
    return tc.Indexed(Figures(count, size=size) if path is None else NpzDataset(path, limit=count))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="an .npz archive; made-up figures without")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--engine", default="auto", choices=("auto", "numba", "torch"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = bodies(options.data, options.images)
    rows = []
    # An untrained network's chains flip at almost every site, a trained one's at few: the cost lies between.
    # Chains are shared among threads, so a lone image's run on one: with more threads only larger batches gain.
    for name, batch, pretrain, warm, steps in (
        ("small", 1, 0, 3, 1.0), ("small", 1, 100, 100, 1.0), ("small", 4, 100, 100, 1.0), ("table1", 1, 0, 2, 0.35),
    ):  # fmt: skip
        print(f"{name}, batch {batch}, after {pretrain + warm} steps", file=sys.stderr)
        count = max(1, round(options.steps * steps))
        row = measure(
            name, data, pretrain=pretrain, warm=warm, steps=count, sweeps=options.sweeps, engine=options.engine,
            batch=batch,
        )  # fmt: skip
        rows.append(row)
    lines = table(rows, COLUMNS)
    print("\n".join(lines))
    if options.write:
        of = f"made-up figures of {SIZE}" if options.data is None else f"images of {options.data.name}"
        what = f"{len(data)} {of}"
        note = f"{what}, K = {options.sweeps}. Parts in ms, medians; the share is the median of the steps' shares."
        save(RESULTS / "step", "python -m bench.step --write", {"data": what, "rows": rows}, [note, "", *lines])


if __name__ == "__main__":
    main()
