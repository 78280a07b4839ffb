"""Did the chains keep up? ``python -m bench.paper.lag --work runs/half --data FOLDER`` lets them run on, the model held still.

A persistent chain relies on the model changing slowly (Tieleman 2008; Kirillov et al. 2016, section 4.2): then its labels are
nearly a sample, and if it goes on under the last tables and network its energy moves about a mean. Energy that moves away says
that the labels were not what the model draws. Of finished PCD rows, some training images' kept chains go on; ``lag.json`` says
how far the energy a free pixel moved, in nats, with its standard error over images. The rates have fallen to 0 by then: it is
the kindest moment to ask.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import tritoncrf as tc
from bench.paper import report, report_rows
from bench.paper.figures import Work, open_work
from bench.paper.inference import Model
from bench.paper.methods import METHODS
from bench.paper.run import finished, rows_of
from tritoncrf import checkpoint, diagnostics
from tritoncrf.batches import Batch
from tritoncrf.datasets import collate

MORE = (10, 40, 160, 640)
PERSISTENT = [name for name, (_, options) in METHODS.items() if options.get("method") == "pcd"]


@dataclass(frozen=True)
class Kept:
    """A finished row with the chains that its learning left."""

    model: Model
    chains: tc.ChainStore

    @classmethod
    def of(cls, work: Work, row: str) -> Kept:
        """Raises ValueError unless the row is a persistent one and finished in this folder."""
        if row not in PERSISTENT or row not in work.rows:
            finished = ", ".join(name for name in work.rows if name in PERSISTENT) or "a run with PCD rows, which this has not"
            raise ValueError(f"rows: expected some of {finished}, got {row!r}")
        chains = tc.ChainStore(work.problem.train.sizes, seed=work.problem.seed, device=work.problem.device)
        saved = checkpoint.read(work.folder / row / "model.safetensors", kind="training")
        chains.load_state_dict(checkpoint.tensors(saved, "chains"))
        return cls(Model.of(work, row), chains)

    def moved(self, batch: Batch, more: tuple[int, ...] = MORE) -> list[float]:
        """By how much the energy of one image's chain changes within so many further sweeps: nats a free pixel."""
        logits, _, (kinds, gates) = self.model.asked(batch)

        def after(sweeps: int) -> float:
            return float(diagnostics.lag(
                self.model.crf, self.chains, logits, batch.index, sweeps=sweeps, sizes=batch.sizes, mask=batch.mask,
                clamp=batch.clamp, kinds=kinds, gates=gates,
            ))  # fmt: skip

        return [after(sweeps) for sweeps in more]


def main(arguments: list[str] | None = None) -> int:
    parser = finished("lag", __doc__ or "")
    parser.add_argument("--rows", nargs="+", default=["separate_pcd", "joint_pcd"], help=", ".join(PERSISTENT))
    parser.add_argument("--images", type=int, default=40, help="how many training images, evenly spaced")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        if options.images < 1:
            raise ValueError(f"images: expected at least 1, got {options.images}")
        work = open_work(options.work, options.data, options.split, options.seed)
        rows = {row: Kept.of(work, row) for row in options.rows}
        file = options.out / report_rows.LAG
        options.out.mkdir(parents=True, exist_ok=True)
        rows_of(file, "row")
    except (ValueError, OSError) as error:
        print(f"bench.paper.lag: {error}", file=sys.stderr)
        return 2
    train = work.problem.train
    places = np.unique(np.linspace(0, len(train) - 1, options.images).round().astype(int)).tolist()
    for row, kept in rows.items():
        moved = np.array([kept.moved(Batch.of(collate([train[place]]), kept.model.crf.device)) for place in places])
        spread = (moved.std(0, ddof=1) / len(moved) ** 0.5).round(5).tolist() if len(moved) > 1 else [None] * len(MORE)
        found: dict[str, object] = {
            "row": row, "preset": work.problem.preset.name, "split": work.problem.split, "seed": work.problem.seed,
            "images": len(places), "sweeps": list(MORE), "energy": moved.mean(0).round(5).tolist(),
            "error": spread,
        }  # fmt: skip
        print(json.dumps(found), flush=True)
        same = ("row", "preset", "split", "seed")
        earlier = [old for old in rows_of(file, "row") if any(old.get(key) != found[key] for key in same)]
        part = file.with_suffix(".part")
        part.write_text(json.dumps([*earlier, found], indent=1) + "\n")
        part.replace(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
