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
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tritoncrf as tc
from bench.paper.presets import PRESETS
from bench.step import bodies
from bench.turns import RESULTS, save, table
from tritoncrf import networks
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate
from tritoncrf.edges import parse
from tritoncrf.evaluation import edges_of
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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
    batches = [Batch.of(collate([data[i]]), torch.device("cpu")) for i in range(rank, len(data), size)]
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


def measure(
    data: tc.Indexed, batches: list[Batch], options: argparse.Namespace, shared: bool, text: str | None
) -> dict[str, object]:
    """A row: steps without barriers, and the messages of as many steps with them."""
    hood = PRESETS["half"].neighborhood
    recipe = None if text is None else parse(text, hood)
    torch.manual_seed(0)
    network = networks.build(PRESETS["half"].network, data.channels, data.num_labels)
    learner = DistributedDataParallel(network)
    chains = tc.ChainStore(data.sizes, seed=0, shared=shared)
    loss = tc.CRFLoss(tc.GridCRF(data.num_labels, hood, kinds=None if recipe is None else recipe.kinds), chains=chains)
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=1e-3)
    for i in range(options.pretrain):
        batch = batches[i % len(batches)]
        target = batch.target.long() if batch.clamp is None else batch.target.long().masked_fill(batch.clamp, 255)
        value: Tensor = nn.functional.cross_entropy(learner(batch.image), target, ignore_index=255)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    def step(i: int) -> float:
        batch = batches[i % len(batches)]
        dist.barrier()
        began = time.perf_counter()
        logits = learner(batch.image)
        kinds, _ = edges_of(recipe, batch.image, None)
        loss(logits, batch.labels, batch.index, clamp=batch.clamp, kinds=kinds).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    for i in range(options.warm):
        step(i)
    plain = [step(i) for i in range(options.steps)]
    clock, right = Clock(), {name: getattr(Ranks, name) for name in ("sum_with", "exchange")}
    for name, method in right.items():
        setattr(Ranks, name, clock.timed(method))
    for i in range(options.steps):
        step(i)
    for name, method in right.items():
        setattr(Ranks, name, method)
    ms = 1e3 * statistics.mean(plain)
    sending, waiting = (1e3 * seconds / options.steps for seconds in (clock.sending, clock.waiting))
    return {
        "chains": "a share a rank, borrowed" if shared else "all on every rank", "edges": text or "-", "ms": ms,
        "messages": clock.messages / options.steps, "sending": sending, "share": sending / ms, "waiting": waiting,
        "bytes": chains.labels.nbytes,
    }  # fmt: skip


if __name__ == "__main__":
    main()
