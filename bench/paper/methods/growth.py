"""What grows with the number of iterations? A learning step's time and memory, unrolled mean field beside sampling.

Section 4 of Kirillov et al. 2016: unrolled inference pays for every iteration, in time and in what is kept for the backward.
A step is the network, the objective, its backward; the weights do not matter. Memory is the most that torch held at once
beyond what stood before, the images' maximum; time is the processor's, their mean. Mean field is measured as autograd
unrolls it, keeping every neighbour's row, and as `messages` does, gathering rows anew; this and sampling also with tables
chosen by the preset's recipe.

``python -m bench.paper.methods.growth --preset half --data FOLDER`` prints rows of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

import tritoncrf as tc
from bench.paper.edges import Maker, loss_of
from bench.paper.methods import crfrnn, meanfield, pseudolikelihood
from bench.paper.methods.descent import Objective, cross_entropy
from bench.paper.methods.messages import messages, plain
from bench.paper.presets import PRESETS
from bench.paper.problem import Problem, read
from tritoncrf import networks
from tritoncrf.batches import Batch


@dataclass(frozen=True)
class Step:
    """A learning step's cost over visits."""

    name: str
    milliseconds: float
    peak_bytes: int
    visits: int
    pixels: float
    """Of an image."""


def rows(problem: Problem, iterations: Sequence[int] = (2, 5, 10), visits: int = 8) -> list[Step]:
    """Steps over the first ``visits`` training images, on one thread or whatever torch is set to."""
    edge_maker, crf, labels = problem.edges(), problem.crf(), problem.train.num_labels
    kinded = problem.crf(edge_maker)

    def sampling(crf: tc.GridCRF, edge_maker: Maker | None) -> Objective:
        pcd = tc.CRFLoss(crf, chains=tc.ChainStore(problem.train.sizes, seed=0, device=problem.device))
        return lambda logits, batch: loss_of(pcd, logits, batch, edge_maker)

    def dense() -> Objective:
        return crfrnn.objective(crfrnn.DenseCRF(labels, crfrnn.Bandwidths()).to(problem.device))

    steps: dict[str, Callable[[], Objective]] = {"cross-entropy": lambda: cross_entropy}
    steps["PCD-10"], steps["PCD-10, kinds"] = partial(sampling, crf, None), partial(sampling, kinded, edge_maker)
    steps["pseudo-likelihood"] = lambda: pseudolikelihood.objective(crf)
    for count in iterations:
        steps[f"mean field {count}"] = partial(meanfield.objective, crf, count, messages)
        steps[f"mean field {count}, kinds"] = partial(meanfield.objective, kinded, count, messages, edge_maker)
        steps[f"mean field {count}, autograd"] = partial(meanfield.objective, crf, count, plain)
    steps[f"CRF-as-RNN {crfrnn.LEARNED}"] = dense
    return [_measure(problem, name, make, visits) for name, make in steps.items()]


def show(found: Sequence[Step]) -> None:
    """A line of JSON a row."""
    for row in found:
        print(json.dumps({name: round(value, 1) if isinstance(value, float) else value for name, value in asdict(row).items()}))


def peak(step: Callable[[], None]) -> int:
    """The most bytes torch held at once during ``step`` beyond those before it; CPU or CUDA."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = most = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def _measure(problem: Problem, name: str, make: Callable[[], Objective], visits: int) -> Step:
    network = problem.network()
    batches = [Batch.of(item, problem.device) for item in islice(problem.loader(shuffle=False), visits)]

    def step(objective: Objective) -> None:
        for batch in batches:
            network.zero_grad()
            objective(network(batch.image).float(), batch).backward()  # type: ignore[no-untyped-call]

    objective = make()
    # Compiled engines, layouts and gradients are made by the first visits.
    step(objective)
    began = time.process_time()
    step(objective)
    spent = time.process_time() - began
    count = len(batches)
    pixels = sum(batch.target.numel() for batch in batches) / count
    # A new objective, so that what it keeps from visit to visit counts as well.
    return Step(name, 1e3 * spent / count, peak(lambda: step(make())), count, pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="half")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--visits", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    whole = PRESETS[options.preset]
    preset = replace(whole, train=min(options.visits, whole.train or options.visits), test=whole.test or 1)
    train, test = read(preset, preset.splits[0], options.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = networks.build(preset.network, train.channels, train.num_labels).to(device)
    show(rows(Problem(preset, preset.splits[0], 0, train, test, network, device), visits=options.visits))


if __name__ == "__main__":
    main()
