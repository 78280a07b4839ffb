"""Which calls cost more than they should? ``python -m bench.traps [--write]``: pairs that ought to cost about the same.

A PCD visit whose sampler chooses its update, beside visits told to take either; single sweeps beside as many in one call; a
gathered site of 255 labels beside one of 20; the log-pseudolikelihood of a million pixels without and with its gradient. One
thread, processor time, in turns; a ratio is the median of those within a turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import tritoncrf as tc
from bench.problem import standard
from bench.turns import RESULTS, Row, arguments, save, table, take_turns

# What "calm" is multiplied by, for flip rates of about 0.6, 2 and 7 per cent.
CALM = {"0.006": 1.0, "0.022": 0.73, "0.07": 0.62}
COLUMNS = {"call": "call", "of": "beside", "ms": "ms", "of_ms": "ms beside", "ratio": "ratio", "note": "note"}


def noise(*shape: int, spread: float = 1.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, spread, shape)).float()


def turns(calls: Mapping[str, Callable[[], object]], number: int) -> dict[str, list[float]]:
    """Processor time of each call in ms, ``number`` times in turn, after one that does not count."""
    found = take_turns(calls, number + 1, clock=time.process_time)
    return {name: [1e3 * seconds for seconds, _ in taken[1:]] for name, taken in found.items()}


def row(times: Mapping[str, list[float]], note: str, names: Sequence[str] = (), scale: float = 1.0) -> Row:
    """Of the first two calls, or of those named; scale: by which times count."""
    call, of = names or list(times)[:2]
    ratio = statistics.median(a / b for a, b in zip(times[call], times[of], strict=True))
    first, second = (statistics.median(times[name]) * scale for name in (call, of))
    return {"call": call, "of": of, "ms": first, "of_ms": second, "ratio": ratio, "note": note}


def visits(rate: str, number: int, engine: str = "numba", sweeps: int = 10) -> list[Row]:
    """PCD visits of the standard problem's one image, by the update that the loss chooses and by both that it may."""
    problem = standard("calm")
    crf = tc.GridCRF(problem.crf.num_labels, problem.crf.neighborhood, problem.crf.pairwise.detach() * CALM[rate])
    logits = problem.logits * CALM[rate]
    losses, calls = {}, {}
    for update in ("auto", "incremental", "gather"):
        loss = tc.CRFLoss(crf, chains=tc.ChainStore([tuple(logits.shape[2:])], seed=0), sweeps=sweeps, engine=engine)
        loss.sampler.update = update
        losses[update] = loss
        calls[update] = lambda loss=loss: loss(logits, logits.argmax(1), torch.tensor([0]))
        for _ in range(4):
            calls[update]()
    times = turns(calls, number)
    told = losses["auto"].statistics
    assert told is not None
    better = min(("incremental", "gather"), key=lambda update: statistics.median(times[update]))
    note = f"PCD visit, flip rate {float(told.flip_rate):.4f}"
    return [row(times, note, ("auto", better)), row(times, note, ("gather", "incremental"))]


def single_sweeps(labels: int, classes: int, number: int, engine: str = "numba") -> Row:
    """200 calls of one sweep beside one call of 200, on 24 x 24 pixels."""
    crf = tc.GridCRF(labels, tc.Neighborhood.nearest(2 * classes), noise(classes, labels, labels, spread=0.05))
    logits = 4.0 * noise(1, labels, 24, 24)
    sampler = tc.Sampler(crf, engine)
    chains = [sampler.run(sampler.init(logits), 200) for _ in range(2)]
    calls: dict[str, Callable[[], object]] = {
        "200 calls of a sweep": lambda: [sampler.run(chains[0], 1) for _ in range(200)],
        "one of 200": lambda: sampler.run(chains[1], 200),
    }
    return row(turns(calls, number), f"{labels} labels, {classes} classes, 24 x 24")


def gathers(kind: str, number: int, engine: str = "numba") -> Row:
    """A sweep by gather with 255 labels and with 20: random labels ("hot"), large entries ("float32"), or those of
    regions ("calm")."""
    samplers = {}
    for labels in (255, 20):
        hood = tc.Neighborhood.nearest(64)
        tables = noise(len(hood), labels, labels, spread=0.03 if kind == "calm" else 0.1)
        logits = noise(1, labels, 130, 330)
        if kind == "calm":
            distance = torch.tensor(np.hypot(*np.array(hood.offsets).T), dtype=torch.float32)
            tables -= torch.eye(labels) * (0.35 / distance)[:, None, None]
            ys, xs = torch.meshgrid(torch.arange(130), torch.arange(330), indexing="ij")
            regions = (ys // 22 * 16 + xs // 22) * 37 % labels
            logits = 1.3 * logits + 6.0 * torch.nn.functional.one_hot(regions, labels).movedim(-1, 0)[None]
        elif kind == "float32":
            tables[0, 0, 0] = 9.0
        sampler = tc.Sampler(tc.GridCRF(labels, hood, tables), engine, update="gather")
        samplers[f"{labels} labels"] = sampler, sampler.run(sampler.init(logits), 5)
    calls = {name: lambda s=s, chains=chains: s.run(chains, 3) for name, (s, chains) in samplers.items()}
    times = turns(calls, number)
    rates = [float(chains.flips.sum()) / 3 / chains.sites for _, chains in samplers.values()]
    note = f"a gather sweep of 130 x 330, {kind}, flip rates {rates[0]:.3f} and {rates[1]:.3f}"
    return row(times, note, scale=1 / 3)


def pseudolikelihoods(side: int, number: int) -> Row:
    """`log_pseudolikelihood` of ``side^2`` pixels, 20 labels, 64 neighbours, without and with what its gradient needs."""
    crf = tc.GridCRF(20, tc.Neighborhood.nearest(64), noise(32, 20, 20, spread=0.1))
    logits, labels = noise(1, 20, side, side), torch.arange(side * side).view(1, side, side) % 20

    def plain() -> Tensor:
        with torch.no_grad():
            return crf.log_pseudolikelihood(logits, labels)

    def learning() -> None:
        crf.log_pseudolikelihood(logits, labels).sum().backward()  # type: ignore[no-untyped-call]

    calls: dict[str, Callable[[], object]] = {"without gradient": plain, "with gradient": learning}
    return row(turns(calls, number), f"log_pseudolikelihood of {side} x {side}")


def main() -> None:
    parser = arguments(__doc__, turns=15, write=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [found for rate in CALM for found in visits(rate, 2 * options.turns)]
    rows += [single_sweeps(labels, classes, options.turns) for labels, classes in ((20, 4), (20, 32), (255, 32))]
    rows += [gathers(kind, options.turns) for kind in ("hot", "float32", "calm")]
    rows.append(pseudolikelihoods(1000, max(2, options.turns // 5)))
    lines = table(rows, COLUMNS)
    print("\n".join(lines))
    if options.write:
        save(RESULTS / "traps", "python -m bench.traps --write", {"rows": rows}, lines)


if __name__ == "__main__":
    main()
