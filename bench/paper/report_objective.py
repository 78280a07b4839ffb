"""What does another objective gain? Rows with a cross-entropy beside the likelihood, both answers, curves, and trials."""

from __future__ import annotations

from collections.abc import Sequence

from bench.paper import report_open, report_tables, statistics
from bench.paper.presets import PRESETS
from bench.paper.report_claims import METHODS, OBJECTIVE
from bench.paper.report_rows import Fields, Results, Trial

HEAD = """The likelihood asks for whole labellings; what is counted, and what mean field learns by, is single pixels. So beside
the likelihood we put the cross-entropy of the answer itself: of the conditionals (16) averaged over four of a visit's sweeps,
the labels of the neighbours held, with weight 1. It comes from the same chains. A later row asks a quarter of the pixels and
learns at three times the rates, which won on photographs; mean field learned at the preset's. In points of accuracy on the
headline split of `half`:"""
EXCHANGE = """Is mean field's lead in its answer or in what it learned? Both models, answered both ways, on the test images of
the headline split; the cross-entropy is that of the answer, in nats a body pixel:"""
ANSWERED = """Tables learned through mean field are as good under Gibbs sampling as under their own five iterations; those
learned by the likelihood lose three points when mean field answers. So the lead is in what was learned, single pixels, and not
in how it is answered; and the likelihood's tables want a sampler."""
CURVES = """The likelihood seen: before learning and after each epoch a few held-out images are asked for ``log p(y | x)``
of the truth, log Z by annealed importance sampling, and for the cross-entropy of the answer, both in nats a body pixel. Before
the first epoch the tables are zero and both are the network's own. With 200 steps of annealing the log-likelihood is told too
high: on two images of a model learned from 1200, 100 and 300 steps told it 0.03 and 0.01 nats above 3000 steps:"""
RISEN = """Each objective is the better one in its own measure: the likelihood alone ends with likelier labellings, and with an
answer that is surer than it is right. (Four images and one seed: too few for their accuracies to be told apart.)"""
TRIED = """Tried on validation images, held out of the training split; the gain is over the same without what the first column
says, of the same seeds. A margin favours wrong pixels in the chains (softmax-margin, Gimpel and Smith 2010)."""


def lines(results: Results) -> list[str]:
    """The section as Markdown; nothing where nothing of it was measured."""
    half = PRESETS["half"]
    mine = [row for row in results.rows if row.preset == half.name]
    found = {pair: report_tables.compare(mine, half.splits[:1], *pair) for pair in OBJECTIVE}
    tried, answered, rises = trials_table(results.trials), exchange_table(results.exchange), curves_table(results.likelihood)
    if not (tried or answered or rises or any(found.values())):
        return []
    said = ["", "## What is learned by", "", HEAD, ""]
    said += [f"- {report_tables.sentence(pair, *names)}" for names, pair in found.items()]
    for text, table, after in ((EXCHANGE, answered, [ANSWERED]), (CURVES, rises, [RISEN]), (TRIED, tried, [])):
        if table:
            said += ["", text, "", *table, *(part for line in after for part in ("", line))]
    return said


def exchange_table(rows: Sequence[Fields]) -> list[str]:
    """A line per model, a pair of columns per way to answer; nothing without rows."""
    found: dict[tuple[str, int], dict[str, tuple[float, float]]] = {}
    for row in rows:
        told = row.number("accuracy", 0, 1), row.number("cross_entropy")
        found.setdefault((row.text("row"), row.whole("seed")), {})[row.text("answer")] = told
    ways = list(dict.fromkeys(row.text("answer") for row in rows))
    shown = []
    for (name, seed), answers in found.items():
        cells = [f"{100 * answers[update][0]:.2f}" if update in answers else "-" for update in ways]
        cells += [f"{answers[update][1]:.3f}" if update in answers else "-" for update in ways]
        shown.append([METHODS[name].title if name in METHODS else name, str(seed), *cells])
    head = ["learned by", "seed", *(f"accuracy, {update}" for update in ways), *(f"nats, {update}" for update in ways)]
    return report_tables.table(head, shown) if shown else []


def curves_table(rows: Sequence[Fields]) -> list[str]:
    """A line per setting and epoch; nothing without rows."""
    shown = []
    for row in rows:
        for epoch, content in enumerate(row.items("curve")):
            point = Fields(row.path, f"{row.where}, epoch {epoch}", content)
            shown.append([
                row.text("what"), str(row.whole("seed")), str(epoch), f"{point.number('log_likelihood', -1e9):.3f}",
                f"{-point.number('cross_entropy'):.3f}", f"{100 * point.number('accuracy', 0, 1):.2f}",
            ])  # fmt: skip
    head = ["what", "seed", "epoch", "log-likelihood, nats a pixel", "- cross-entropy of the answer", "accuracy"]
    return report_tables.table(head, shown) if shown else []


def trials_table(trials: Sequence[Trial]) -> list[str]:
    """A line per objective and setting, its seeds together, with the gain over the likelihood alone; nothing without trials."""
    shown = []
    mine = [trial for trial in trials if "objective" in dict(trial.setting)]
    for what, setting in dict.fromkeys((trial.what, trial.setting) for trial in mine):
        same = [trial for trial in mine if (trial.what, trial.setting) == (what, setting)]
        gains = [gain for trial in same if (gain := report_open.gain(trial, trials)) is not None]
        told, (base, _, changed) = dict(setting), what.rpartition(", ")
        shown.append([
            changed, base, told.get("preset", report_tables.NONE), told.get("images", "-"), told.get("K", "-"),
            report_tables.spread([trial.accuracy for trial in same]),
            report_tables.points(statistics.mean_and_deviation(gains)[0]) if gains else report_tables.NONE,
            ", ".join(map(report_tables.points, gains)) if len(gains) > 1 else "",
        ])  # fmt: skip
    head = ["objective", "learning", "preset", "images", "K", "validation", "gain", "each seed"]
    return report_tables.table(head, shown) if shown else []
