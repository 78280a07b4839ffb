"""Is it the tables or the answer? ``python -m bench.paper.exchange --work runs/half --data FOLDER`` answers each row both ways.

A model learned by PCD is answered by Gibbs sampling and by mean field of five iterations; one learned through those, likewise:
its tables and network are a CRF's as well. All four on the test images of a finished run, with nothing learned here. If mean
field's lead is in its answer, PCD's tables have it too when mean field answers; if it is in what was learned, it stays.
Every answer's accuracy and cross-entropy (nats a pixel) go to ``exchange.json``.
"""

from __future__ import annotations

import json
import sys

from torch import Tensor, nn

import tritoncrf as tc
from bench.paper import report
from bench.paper.edges import Maker
from bench.paper.figures import Work, opened
from bench.paper.inference import Model
from bench.paper.methods import edges_of, meanfield
from bench.paper.methods.descent import by_sampling
from bench.paper.problem import Predictor
from bench.paper.run import add_rows, finished, program
from tritoncrf import checkpoint

EXCHANGE = "exchange.json"
ITERATIONS = 5
# A marginal of 0, as counted sweeps may give, costs this.
LEAST = 1e-6


def learned(work: Work, row: str) -> tuple[nn.Module, tc.GridCRF, Maker | None]:
    """Network, tables and what tells of the edges of a finished row, a sampled one or of mean field."""
    if not row.startswith("meanfield"):
        model = Model.of(work, row)
        return model.network, model.crf, model.edge_maker
    told = None if edges_of(row) is None else work.problem.edges()
    network, crf = work.problem.network(), work.problem.crf(told)
    name = row.replace("_", " ")
    saved = checkpoint.read(work.folder / row / "model.safetensors", kind=f"paper {name}")
    network.load_state_dict(checkpoint.tensors(saved, "network"))
    crf.load_state_dict(checkpoint.tensors(saved, "model"))
    return network.eval(), crf, told


def answers(work: Work, row: str) -> dict[str, Predictor]:
    """Both ways."""
    network, crf, told = learned(work, row)
    return {
        "Gibbs sampling": by_sampling(work.problem, network, crf, told),
        "mean field": meanfield.answering(network, crf, ITERATIONS, told),
    }


def judge(work: Work, predict: Predictor) -> tuple[float, float]:
    """Accuracy, and the mean cross-entropy of the marginals over the pixels that count."""
    score, total, count = work.problem.unscored, 0.0, 0
    ignored = -1 if score.background is None else score.background
    for target, _, found in work.problem.answers(predict):
        score = score.plus(target, found.argmax(1))
        counted = (target != 255) & (target != ignored)
        own = _own(found, target)[counted]
        total, count = total - float(own.clamp(min=LEAST).double().log().sum()), count + int(counted.sum())
    return score.accuracy, total / max(count, 1)


def _own(found: Tensor, target: Tensor) -> Tensor:
    return found.gather(1, target.long().clamp(max=found.shape[1] - 1)[:, None])[:, 0]


@program
def main(arguments: list[str] | None = None) -> None:
    rows = ("joint_kinds", "meanfield5_kinds")
    options = finished("exchange", __doc__ or "", rows=rows, out=report.RESULTS).parse_args(arguments)
    work, made = opened(options), []
    given = {row: answers(work, row) for row in options.rows}
    for row, ways in given.items():
        for update, predict in ways.items():
            accuracy, nats = judge(work, predict)
            found: dict[str, object] = {
                "row": row, "answer": update, "preset": work.problem.preset.name, "split": work.problem.split,
                "seed": work.problem.seed, "images": len(work.problem.test), "accuracy": round(accuracy, 5),
                "cross_entropy": round(nats, 5),
            }  # fmt: skip
            made.append(found)
            print(json.dumps(found), flush=True)
    add_rows(options.out / EXCHANGE, made, "row", ("row", "preset", "split", "seed"))


if __name__ == "__main__":
    sys.exit(main())
