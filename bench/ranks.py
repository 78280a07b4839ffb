"""What do ranks tell each other? ``python -m torch.distributed.run --nproc-per-node=2 -m bench.ranks --data FILE``.

The half-scale experiment (`bench.paper`, preset half): its network under DDP, 48 classes, K = 10, one image a rank and step.
The loss's messages are timed one by one behind a barrier, so that waiting for the slower rank is apart from sending; then the
same steps run without the barriers. Writes results/ranks.json and ranks.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tritoncrf as tc
from bench.paper.presets import PRESETS
from bench.step import Learner, Plain, batches_of, bodies
from bench.turns import RESULTS, Row, arguments, save, table
from tritoncrf import networks
from tritoncrf.batches import Batch
from tritoncrf.edges import parse
from tritoncrf.ranks import Ranks


class Clock:
    """Seconds spent in messages, and behind the barriers before them."""

    def __init__(self) -> None:
        self.sending = self.waiting = 0.0
        self.messages = 0

    def timed(self, method: Callable[..., object]) -> Callable[..., object]:
        def call(ranks: Ranks, *given: object) -> object:
            began = time.perf_counter()
            dist.barrier()
            ready = time.perf_counter()
            found = method(ranks, *given)
            self.waiting += ready - began
            self.sending += time.perf_counter() - ready
            self.messages += 1
            return found

        return call


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="bodyparts_depth.npz")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--pretrain", type=int, default=300)
    parser.add_argument("--warm", type=int, default=30)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    data = bodies(options.data, options.images)
    batches = batches_of(data, 1, rank, size)
    rows = []
    for shared, text in ((False, None), (True, None), (False, "steps:0.1,0.3")):
        rows.append(measure(data, batches, options, shared, text))
    if rank == 0:
        columns = {
            "chains": "chains", "edges": "edges", "ms": "step, ms", "messages": "messages", "sending": "messages, ms",
            "share": "share of the step", "waiting": "waiting for the other rank, ms", "bytes": "chains, bytes a rank",
        }  # fmt: skip
        lines = table(rows, columns)
        note = (
            f"{len(data)} images of {options.data.name}, {size} ranks of one thread over gloo, an image a rank and step; means "
            f"of {options.steps} steps after {options.warm}; a message is timed behind a barrier, a step without any."
        )
        save(RESULTS / "ranks.json", "python -m torch.distributed.run --nproc-per-node=2 -m bench.ranks --data FILE",
             {"rows": rows}, [note, "", *lines])  # fmt: skip
        print("\n".join(lines))
    dist.barrier()


def measure(data: tc.Indexed, batches: list[Batch], options: argparse.Namespace, shared: bool, text: str | None) -> Row:
    """A row: steps without barriers, and the messages of as many steps with them."""
    hood = PRESETS["half"].neighborhood
    torch.manual_seed(0)
    network = DistributedDataParallel(networks.build(PRESETS["half"].network, data.channels, data.num_labels))
    plain = Plain(network)
    for i in range(options.pretrain):
        plain.step(batches[i % len(batches)])
    # Waiting for another rank counts, which is no time of this one's processor.
    learner = Learner(network, data, hood, None if text is None else parse(text, hood), shared=shared, clock=time.perf_counter)

    def step(i: int) -> float:
        dist.barrier()
        return sum(learner.step(batches[i % len(batches)]))

    for i in range(options.warm):
        step(i)
    seconds = [step(i) for i in range(options.steps)]
    clock, right = Clock(), {name: getattr(Ranks, name) for name in ("sum_with", "exchange")}
    for name, method in right.items():
        setattr(Ranks, name, clock.timed(method))
    for i in range(options.steps):
        step(i)
    for name, method in right.items():
        setattr(Ranks, name, method)
    ms = 1e3 * statistics.mean(seconds)
    sending, waiting = (1e3 * spent / options.steps for spent in (clock.sending, clock.waiting))
    return {
        "chains": "a share a rank, borrowed" if shared else "all on every rank", "edges": text or "-", "ms": ms,
        "messages": clock.messages / options.steps, "sending": sending, "share": sending / ms, "waiting": waiting,
        "bytes": learner.chains.labels.nbytes,
    }  # fmt: skip


if __name__ == "__main__":
    main()
