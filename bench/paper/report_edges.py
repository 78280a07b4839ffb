"""What do tables gain that see the image? Sentences on the headline split, and what was tried for the choice of tables."""

from __future__ import annotations

from collections.abc import Sequence

from bench.paper import report_open, report_tables, statistics
from bench.paper.methods import METHODS
from bench.paper.presets import PRESETS
from bench.paper.report_claims import EDGES
from bench.paper.report_rows import Results, Trial

ROWS = tuple(name for name, (module, options) in METHODS.items() if "edges" in options or module == "treefield")
HEAD = """An edge of a class chooses one of several tables, by the step between its ends (thresholds in the image's own unit, of
depth 0.3 m) or by a tree, or has one weighed by a gate. The paper has none of these; decision tree fields are its [4], and mean
field may read the same tables as ours. In points of accuracy on the headline split of `half`:"""
TRIED = """Tried on validation images, held out of the training split; the gain is over one table a class, of the same seeds. At
half scale five kinds by signed steps were above three and above seven on both seeds. On one seed the sign was worth 0.3 to 0.4,
and kinds on the far classes alone or on the near ones alone gained less than on all. The preset's recipe follows from this:"""


def lines(results: Results) -> list[str]:
    """The section as Markdown; nothing where nothing of it was measured."""
    half = PRESETS["half"]
    mine = [row for row in results.rows if row.preset == half.name]
    tried = tuning_table(results.trials)
    if not tried and not any(row.name in ROWS for row in results.rows):
        return []
    said = ["", HEAD, ""]
    for pair in EDGES:
        found = report_tables.compare(mine, half.splits[:1], *pair)
        said.append(f"- {report_tables.sentence(found, *pair)}")
    return ["", "## Tables that see the image", *said, *(["", TRIED, "", *tried] if tried else [])]


def tuning_table(trials: Sequence[Trial]) -> list[str]:
    """A line per recipe and setting, its seeds together, with the gain over the same without; nothing without trials."""
    shown = []
    mine = [trial for trial in trials if "edges" in dict(trial.setting)]
    for what, setting in dict.fromkeys((trial.what, trial.setting) for trial in mine):
        same = [trial for trial in mine if (trial.what, trial.setting) == (what, setting)]
        gains = [gain for trial in same if (gain := report_open.gain(trial, trials)) is not None]
        stated = dict(setting)
        shown.append([
            stated["edges"], what.rpartition(", ")[0], stated.get("preset", report_tables.NONE), stated.get("images", "-"),
            report_tables.spread([trial.accuracy for trial in same]),
            report_tables.points(statistics.mean_and_deviation(gains)[0]) if gains else report_tables.NONE,
        ])  # fmt: skip
    head = ["tables by", "learning", "preset", "images", "validation", "gain"]
    return report_tables.table(head, shown) if shown else []
