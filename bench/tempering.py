"""Does tempering pay? Effective samples a CPU second of plain replicas and of tempered ones: ``python -m bench.tempering``.

A Potts model of few labels past its transition (both modes are as likely), and, with --data and --work, an image of the facades
under tables that `bench.paper.mixing` learned. The trace is the share of pixels with label 0 (Potts) or the energy a pixel
(facades), once a round; its effective sample size is `diagnostics.ess` of two independent runs of each kind, which a chain that
has not moved between modes makes small. Both kinds take as many sweeps in all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import tritoncrf as tc
from bench.turns import arguments
from tritoncrf.chains import ChainState
from tritoncrf.diagnostics import ess, rhat
from tritoncrf.energies import energy
from tritoncrf.tempering import Ladder


def compare(
    what: str, crf: tc.GridCRF, logits: Tensor, betas: tuple[float, ...], rounds: int, every: int,
    look: Callable[[tc.Sampler[tc.GridCRF], ChainState], Tensor],
) -> None:  # fmt: skip
    """Prints a line for plain replicas and one for tempered ones; the first half of each is burn-in."""
    runs = range(2)
    traces, began = list[Tensor](), time.process_time()
    for seed in runs:
        sampler = tc.Sampler(crf, seed=seed)
        chains = sampler.init(logits)
        # A plain chain has all replicas' sweeps.
        trace = []
        for _ in range(rounds):
            sampler.run(chains, every * len(betas))
            trace.append(look(sampler, chains))
        traces.append(torch.stack(trace[rounds // 2 :]))
    _tell(what, "plain", torch.stack(traces), time.process_time() - began)
    traces, began, trips, made = [], time.process_time(), 0, torch.zeros(len(betas) - 1)
    for seed in runs:
        sampler = tc.Sampler(crf, seed=seed)
        ladder = Ladder(sampler, sampler.init(logits, replicas=len(betas)), betas)
        trace = []
        for _ in range(rounds):
            ladder.run(every)
            ladder.swap()
            trace.append(look(sampler, ladder.rungs[0]))
        trips, made = trips + int(ladder.round_trips), made + (ladder.made / ladder.proposed)[0] / len(runs)
        traces.append(torch.stack(trace[rounds // 2 :]))
    _tell(what, "tempered", torch.stack(traces), time.process_time() - began, trips, made.tolist())


def _tell(what: str, kind: str, traces: Tensor, seconds: float, trips: int = 0, made: list[float] | None = None) -> None:
    size = float(ess(traces))
    print(json.dumps({
        "what": what, "kind": kind, "ess": round(size, 1), "rhat": round(float(rhat(traces)), 3),
        "mean": [round(float(m), 4) for m in traces.mean(1)], "cpu_seconds": round(seconds, 2),
        "ess_a_second": round(size / seconds, 2), "round_trips": trips,
        "acceptance": None if made is None else [round(m, 2) for m in made],
    }), flush=True)  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="a folder of bench.paper.mixing with model.safetensors")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    crf = tc.GridCRF(2, tc.Neighborhood.nearest(4), -1.1 * torch.eye(2).expand(2, 2, 2))
    share = lambda sampler, chains: (chains.labels == 0).double().mean()  # noqa: E731
    ladder = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6)
    compare("Ising 16 x 16 at 1.1", crf, torch.zeros(1, 2, 16, 16), ladder, options.rounds, 1, share)
    if options.data is not None and options.work is not None:
        facades(options.data, options.work, options.rounds // 5)


def facades(data: Path, work: Path, rounds: int) -> None:
    """The first held-out image under a learned model."""
    from bench.paper.presets import PRESETS
    from bench.paper.tuning import held_out
    from tritoncrf import checkpoint, networks
    from tritoncrf.batches import Batch
    from tritoncrf.datasets import collate

    preset, saved = PRESETS["facades"], checkpoint.read(work / "model.safetensors", kind="paper mixing")
    train, held = held_out(data, preset)
    network = networks.build(preset.network, train.channels, train.num_labels).eval()
    network.load_state_dict(checkpoint.tensors(saved, "network"))
    crf = tc.GridCRF(train.num_labels, preset.neighborhood)
    with torch.no_grad():
        crf.pairwise.copy_(checkpoint.tensors(saved, "model")["crf.pairwise"])
        batch = Batch.of(collate([held[0]]), torch.device("cpu"))
        height, width = batch.sizes[0].tolist() if batch.sizes is not None else batch.image.shape[2:]
        logits = network(batch.image).float()[:, :, :height, :width].contiguous()
    pixels = height * width
    look = lambda sampler, chains: energy(sampler.engine, chains)[0, 0] / pixels  # noqa: E731
    compare("facade", crf, logits, tuple(1 - 0.02 * r for r in range(8)), rounds, 2, look)


if __name__ == "__main__":
    main()
