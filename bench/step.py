"""What share of a training step do sampler and loss take? ``python -m bench.step`` times the parts of joint PCD steps.

Images of the size of half-scale bodies (178 x 85), one or four a step, the background clamped where its label is known, 20
labels, the far 32 classes, K = 10. Parts: the network forward; the loss forward, which samples; the loss backward, which
hands the error to the logits; the network backward; the optimizer. Steps with cross-entropy take turns with the PCD steps on
a copy of the network: the ratio within a turn is what the loss costs its user. The images are made-up figures, or those of
``--data``, an archive as `tritoncrf.datasets.NpzDataset` reads it. ``--write`` puts the table into ``bench/results/step.md``
and its JSON beside it.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritoncrf as tc
from bench.memory import peak, reset_peak
from bench.paper.edges import Maker, crf_of, loss_of
from bench.turns import RESULTS, Row, arguments, save, table
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


def clock() -> float:
    """Seconds: of the processor where one thread does all, so that nobody else's work counts."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Learner:
    """A network that learns with tables, over ``hood`` and what ``told`` says of the edges, and with chains of ``data``."""

    def __init__(
        self, network: nn.Module, data: tc.Indexed, hood: tc.Neighborhood, told: Maker | None = None, *, sweeps: int = 10,
        engine: str = "auto", objective: tc.Objective | None = None, shared: bool = False, rate: float = 1e-3,
        clock: Callable[[], float] = clock,
    ) -> None:  # fmt: skip
        self.network, self.told, self.clock = network, told, clock
        self.chains = tc.ChainStore(data.sizes, seed=0, shared=shared)
        crf = crf_of(data.num_labels, hood, told)
        self.loss = tc.CRFLoss(crf, chains=self.chains, sweeps=sweeps, engine=engine, objective=objective)
        self.optimizer = torch.optim.Adam([*self.loss.parameters(), *network.parameters()], lr=rate)

    def step(self, batch: Batch) -> list[float]:
        """Seconds of each of `PARTS` of one step."""
        times = [self.clock()]
        logits = self.network(batch.image)
        times.append(self.clock())
        # The graph is cut at the logits to time the two backward passes apart.
        cut: Tensor = logits.detach().requires_grad_()
        value = loss_of(self.loss, cut, batch, self.told)
        times.append(self.clock())
        value.backward()  # type: ignore[no-untyped-call]
        times.append(self.clock())
        logits.backward(cut.grad)
        times.append(self.clock())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(self.clock())
        return [b - a for a, b in itertools.pairwise(times)]

    @property
    def flip_rate(self) -> float:
        """Of the last step; NaN before any."""
        return float("nan") if self.loss.statistics is None else float(self.loss.statistics.flip_rate)


class Plain:
    """A network that learns by cross-entropy over the labelled pixels whose label is not known anyway."""

    def __init__(self, network: nn.Module, rate: float = 1e-3) -> None:
        self.network, self.optimizer = network, torch.optim.Adam(network.parameters(), lr=rate)

    def step(self, batch: Batch) -> float:
        """Seconds of one step."""
        began = clock()
        target = batch.target.long()
        if batch.clamp is not None:
            target = target.masked_fill(batch.clamp, 255)
        F.cross_entropy(self.network(batch.image), target, ignore_index=255).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return clock() - began


def batches_of(data: tc.Indexed, size: int = 1, first: int = 0, apart: int = 1) -> list[Batch]:
    """Of so many images each, every ``apart``-th from the ``first`` on; ValueError where there is none."""
    if len(data) < size:
        raise ValueError(f"images: expected at least a batch of {size}, got {len(data)}")
    groups = [range(i, i + size) for i in range(0, len(data) - size + 1, size)][first::apart]
    return [Batch.of(collate([data[i] for i in group]), torch.device("cpu")) for group in groups]


def measure(
    name: str, data: tc.Indexed, *, pretrain: int = 0, warm: int = 3, steps: int = 20, sweeps: int = 10, engine: str = "auto",
    batch: int = 1,
) -> Row:
    """The row of one network. pretrain: steps of cross-entropy first; warm: PCD steps before those that count."""
    torch.manual_seed(0)
    plain = Plain(networks.build(name, data.channels, data.num_labels))
    batches = batches_of(data, batch)
    for given in itertools.islice(itertools.cycle(batches), pretrain):
        plain.step(given)
    hood = tc.Neighborhood.grid(24, 8) | tc.Neighborhood.grid(1) | tc.Neighborhood.grid(2, 2)
    run = Learner(copy.deepcopy(plain.network), data, hood, sweeps=sweeps, engine=engine)
    parts, control, flips = [], [], []
    for i, given in enumerate(itertools.islice(itertools.cycle(batches), warm + steps)):
        if i == warm:
            reset_peak()
        step, beside = run.step(given), plain.step(given)
        if i >= warm:
            parts.append(step)
            control.append(beside)
            flips.append(run.flip_rate)
    totals = [sum(part) for part in parts]
    shares = [(part[1] + part[2]) / sum(part) for part in parts]
    free = [int((b.present if b.clamp is None else b.present & ~b.clamp).sum()) for b in batches]
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
    parser = arguments(__doc__, threads=torch.get_num_threads(), write=True)
    parser.add_argument("--data", type=Path, help="an .npz archive; made-up figures without")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--engine", default="auto", choices=("auto", "numba", "torch"))
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
