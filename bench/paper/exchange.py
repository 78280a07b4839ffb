"""Is it the tables or the answer? ``python -m bench.paper.exchange --work runs/half --data FOLDER`` answers each row both ways.

A model learned by PCD is answered by Gibbs sampling and by mean field of five iterations; one learned through those, likewise:
its tables and network are a CRF's as well. All four on the test images of a finished run, with nothing learned here. If mean
field's lead is in its answer, PCD's tables have it too when mean field answers; if it is in what was learned, it stays.
Every answer's accuracy and cross-entropy (nats a pixel) go to ``exchange.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import tritoncrf as tc
from bench.paper import report
from bench.paper.edges import Maker
from bench.paper.figures import Work, open_work
from bench.paper.inference import Model
from bench.paper.methods import edges_of, meanfield
from bench.paper.methods.descent import by_sampling
from bench.paper.problem import Predictor
from bench.paper.run import finished
from tritoncrf import checkpoint
from tritoncrf.batches import Batch
from tritoncrf.metrics import Score

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


@torch.no_grad()
def judge(work: Work, predict: Predictor) -> tuple[float, float]:
    """Accuracy, and the mean cross-entropy of the marginals over the pixels that count."""
    test = work.problem.test
    score, total, count = Score.empty(test.num_labels, test.background), 0.0, 0
    for item in work.problem.tests():
        batch = Batch.of(item, work.problem.device)
        target = batch.target.masked_fill(~batch.present, 255)
        _, found = predict(batch)
        score = score.plus(target, found.argmax(1))
        counted = (target != 255) & (target != (-1 if test.background is None else test.background))
        own = _own(found, target)[counted]
        total, count = total - float(own.clamp(min=LEAST).double().log().sum()), count + int(counted.sum())
    return score.accuracy, total / max(count, 1)


def _own(found: Tensor, target: Tensor) -> Tensor:
    return found.gather(1, target.long().clamp(max=found.shape[1] - 1)[:, None])[:, 0]


def main(arguments: list[str] | None = None) -> int:
    parser = finished("exchange", __doc__ or "")
    parser.add_argument("--rows", nargs="+", default=["joint_kinds", "meanfield5_kinds"])
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = []
    try:
        work = open_work(options.work, options.data, options.split, options.seed)
        given = {row: answers(work, row) for row in options.rows}
    except (ValueError, OSError) as error:
        print(f"bench.paper.exchange: {error}", file=sys.stderr)
        return 2
    for row, ways in given.items():
        for update, predict in ways.items():
            accuracy, nats = judge(work, predict)
            found.append({
                "row": row, "answer": update, "preset": work.problem.preset.name, "split": work.problem.split,
                "seed": work.problem.seed, "images": len(work.problem.test), "accuracy": round(accuracy, 5),
                "cross_entropy": round(nats, 5),
            })  # fmt: skip
            print(json.dumps(found[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / EXCHANGE
    kept = json.loads(file.read_text()) if file.exists() else []
    mine = {(row["row"], row["preset"], row["split"], row["seed"]) for row in found}
    kept = [row for row in kept if (row["row"], row["preset"], row["split"], row["seed"]) not in mine]
    part = file.with_suffix(".part")
    part.write_text(json.dumps([*kept, *found], indent=1) + "\n")
    part.replace(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
