"""What do kinds and gates cost? ``python -m bench.edges [--threads N]``: the standard problem with them and without, in turns.

All models of a problem have the same chains: every kind has the plain model's table, and a gate of 1 weighs half of it beside
the other half. So ratios are of time alone. An edge's kind is drawn at random, the worst case for caches. Writes
results/edges.json and edges.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import tritoncrf as tc
from bench.problem import HEIGHT, KINDS, WIDTH, standard
from bench.turns import RESULTS, Row, arguments, ratios, save, spread, sweeps_for, table, take_turns

SECONDS, TURNS, BURN_IN = 0.4, 9, 30


def models(crf: tc.GridCRF, chains: int) -> dict[str, tuple[tc.GridCRF, dict[str, Tensor]]]:
    """The model as it is, and the same energies by way of kinds and of gates, with what their calls take."""
    hood, labels = crf.neighborhood, crf.num_labels
    # Halves on the grid, so that two of them are the whole.
    whole = torch.floor(crf.pairwise.detach() * 2048 + 0.5) / 2048
    area, near = (HEIGHT, WIDTH), tc.Neighborhood(hood.offsets[:4])
    random = torch.Generator().manual_seed(0)

    def kinds(count: int) -> dict[str, Tensor]:
        return {"kinds": torch.randint(0, count, (chains, len(hood), *area), generator=random, dtype=torch.uint8)}

    def ones(classes: tc.Neighborhood) -> dict[str, Tensor]:
        return {"gates": torch.ones(chains, 1, len(classes), *area)}

    some = whole.clone()
    some[:4] /= 2
    three = whole[:, None].repeat(1, 3, 1, 1)
    return {
        "without": (tc.GridCRF(labels, hood, whole), {}),
        "3 kinds on all": (tc.GridCRF(labels, hood, three, kinds=3), kinds(3)),
        "1 gate on all": (tc.GridCRF(labels, hood, whole / 2, gates=1, gated=whole[None] / 2), ones(hood)),
        "1 gate on 4": (tc.GridCRF(labels, hood, some, gates=1, gates_on=near, gated=whole[None, :4] / 2), ones(near)),
    }


def main() -> None:
    parser = arguments(__doc__, threads=2)
    parser.add_argument("--engine", default="numba")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for kind in KINDS:
        problem = standard(kind)
        for update in ("gather", "incremental"):
            rows += _rows(kind, update, problem.logits.expand(options.threads, -1, -1, -1), problem.crf, options.engine)
    columns = {
        "problem": "problem", "update": "update", "model": "model", "rate": "M updates/s", "flips": "flips/update",
        "time": "time",
        "least": "least", "most": "most",
    }  # fmt: skip
    lines = [
        f"{options.threads} threads, a chain each, medians of {TURNS} turns; time is that of the row over that of the model "
        "without, within a turn.", "", *table(rows, columns),
    ]  # fmt: skip
    save(RESULTS / "edges.json", "python -m bench.edges", {"threads": options.threads, "rows": rows}, lines)
    print("\n".join(lines))


def _rows(kind: str, update: str, logits: Tensor, crf: tc.GridCRF, engine: str) -> list[Row]:
    calls: dict[str, Callable[[], int]] = {}
    made = models(crf, len(logits))
    sweeps = 1
    ends = []
    for name, (model, given) in made.items():
        sampler = tc.Sampler(model, engine, seed=1, update=update)
        chains = sampler.init(logits, **given)  # type: ignore[arg-type]
        sampler.run(chains, BURN_IN)
        if name == "without":
            sweeps = sweeps_for(lambda n, s=sampler, c=chains: s.run(c, n).count.numel(), SECONDS)  # type: ignore[misc]
            chains = sampler.init(logits)
            sampler.run(chains, BURN_IN)
        ends.append(chains)
        calls[name] = lambda s=sampler, c=chains, n=sweeps: int(s.run(c, n).flips.sum())  # type: ignore[misc]
    turns = take_turns(calls, TURNS)
    if not all(torch.equal(ends[0].rows, chains.rows) for chains in ends):
        raise AssertionError("expected the same labels of all models, got others")
    updates = sweeps * len(logits) * HEIGHT * WIDTH
    rows: list[Row] = []
    for name, timed in turns.items():
        rows.append({
            "problem": kind, "update": update, "model": name,
            "rate": updates / statistics.median(seconds for seconds, _ in timed) / 1e6,
            "flips": sum(flips for _, flips in timed) / (updates * len(timed)),
            **spread(ratios(timed, turns["without"]), "time"),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
