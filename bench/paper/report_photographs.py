"""What makes learning on photographs better? Trials on held-out facades: objectives, fast tables, sweeps and rates."""

from __future__ import annotations

from collections.abc import Sequence

from bench.paper import report_tables, statistics
from bench.paper.presets import FOLDS
from bench.paper.report_claims import OBJECTIVE
from bench.paper.report_rows import Results, Trial

PRESET, CONTROL = "facades", "control"
HEAD = """Facades' chains mix slowly, and the likelihood alone needs K = 100 there. Tried on a fifth of the training images of
fold 0, held out; the gain is over the control of the same seed:"""
SAID = """So on photographs the cross-entropy of the answer gains most: with K = 10 about as much as with K = 100, and one pixel
of every four asks for it as well as all do. Larger rates gain once more, which they do not for the control. Fast tables
(Tieleman and Hinton 2009) gain 1.2 and 2.1 points without kinds; with kinds they lost on both seeds at a rate of 0.3,
and beside the cross-entropy they are not needed, unless sweeps are few. A mean-field step from the chain's averages
("field") is not above the cross-entropy and costs four times as much. Folds 1 to 4 test on some of these images, fold 0
on none."""

FOLDED = "What won, on the test images of five folds, in points of accuracy; mean IoU stands below:"


def mine(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that tell of mean IoU too."""
    return [trial for trial in trials if trial.iou is not None and dict(trial.setting).get("preset") == PRESET]


def lines(results: Results) -> list[str]:
    """The section as Markdown; nothing where nothing of it was measured."""
    table = trials_table(mine(results.trials))
    if not table:
        return []
    said = ["", "## Learning on photographs", "", HEAD, "", *table, "", SAID, "", FOLDED, ""]
    for preset in (PRESET, "faces"):
        rows = [row for row in results.rows if row.preset == preset]
        for pair in OBJECTIVE:
            found = report_tables.compare(rows, FOLDS, *pair)
            if found is not None and pair[0] == "joint_kinds_quick":
                said.append(f"- {preset}: {report_tables.sentence(found, *pair)}")
    return said


def trials_table(trials: Sequence[Trial]) -> list[str]:
    """A line per setting, its seeds together, best last; nothing without trials."""
    shown = []
    base = {trial.seed: trial for trial in trials if trial.what == CONTROL}
    names = dict.fromkeys(trial.what for trial in trials)
    means = {name: statistics.mean_and_deviation([t.accuracy for t in trials if t.what == name])[0] for name in names}
    for what in sorted(names, key=lambda name: means[name]):
        # Each column of gains is of one seed, whatever order they were run in.
        same = sorted((trial for trial in trials if trial.what == what), key=lambda trial: trial.seed)
        pairs = [(trial, base[trial.seed]) for trial in same if trial.seed in base]
        over = [trial.accuracy - other.accuracy for trial, other in pairs]
        iou = [trial.iou - other.iou for trial, other in pairs if trial.iou is not None and other.iou is not None]
        shown.append([
            what, dict(same[0].setting).get("K", "-") if what.split(",")[0] != CONTROL else "-",
            report_tables.spread([trial.accuracy for trial in same]),
            report_tables.spread([trial.iou for trial in same if trial.iou is not None]),
            *(", ".join(map(report_tables.points, gains)) if what != CONTROL else "" for gains in (over, iou)),
        ])  # fmt: skip
    head = ["setting", "K", "validation", "mean IoU", "gain, each seed", "gain of IoU, each seed"]
    return report_tables.table(head, shown) if shown else []
