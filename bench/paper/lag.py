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

import numpy as np

import tritoncrf as tc
from bench.paper import report, report_rows
from bench.paper.figures import Work, opened
from bench.paper.inference import Model
from bench.paper.methods import METHODS
from bench.paper.run import add_rows, finished, program, rows_of
from tritoncrf import checkpoint, diagnostics
from tritoncrf.batches import Batch

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


@program
def main(arguments: list[str] | None = None) -> None:
    options = finished(
        "lag", __doc__ or "", rows=("separate_pcd", "joint_pcd"), which=", ".join(PERSISTENT), images=40, out=report.RESULTS
    ).parse_args(arguments)  # fmt: skip
    work, file = opened(options), options.out / report_rows.LAG
    rows = {row: Kept.of(work, row) for row in options.rows}
    rows_of(file, "row")
    batches = work.learned(options.images)
    for row, kept in rows.items():
        moved = np.array([kept.moved(batch) for batch in batches])
        spread = (moved.std(0, ddof=1) / len(moved) ** 0.5).round(5).tolist() if len(moved) > 1 else [None] * len(MORE)
        found: dict[str, object] = {
            "row": row, "preset": work.problem.preset.name, "split": work.problem.split, "seed": work.problem.seed,
            "images": len(batches), "sweeps": list(MORE), "energy": moved.mean(0).round(5).tolist(),
            "error": spread,
        }  # fmt: skip
        print(json.dumps(found), flush=True)
        add_rows(file, [found], "row", ("row", "preset", "split", "seed"))


if __name__ == "__main__":
    sys.exit(main())
