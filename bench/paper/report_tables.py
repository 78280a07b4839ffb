"""How do rows become tables? Accuracies over seeds by split, paired differences with their verdicts, costs, tuning, storage.

Figures are per cent and points; "not measured" stands where the JSON has no row. Every function returns lines of Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.paper import statistics
from bench.paper.report_claims import METHODS, margin
from bench.paper.report_rows import Curve, Inference, Lag, Row, Storage, Trial
from bench.paper.statistics import Difference

NONE = "not measured"
_SPLITS = {"split_by_clip": "clips held out", "split": "random split", "figures": "generated figures"}


@dataclass(frozen=True)
class Pair:
    """A comparison on one split, or over folds."""

    first: str
    second: str
    seeds: int
    found: Difference | None
    """None where the rows hold no per-image figures."""
    value: float
    iou: float | None
    """The difference of their mean IoUs, where all rows have one."""
    iou_found: Difference | None
    """None where the rows hold no counts of each label."""


def split_title(split: str) -> str:
    """A split's name in words."""
    return f"fold {split.removeprefix('fold')}" if split.startswith("fold") else _SPLITS.get(split, split)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others stand to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def by_split(
    rows: Sequence[Row], names: Sequence[str], splits: Sequence[str], value: Callable[[Row], float | None], paper: bool
) -> list[str]:
    """A line per method named and a column per split: mean over seeds, and the deviation where there are several.

    Folds (more than two splits) get a column with the mean over them. paper: with the paper's own figures.
    """
    folds = len(splits) > 2
    head = ["method", *(["paper"] if paper else []), *map(split_title, splits), *(["mean of folds"] if folds else [])]
    lines = []
    for name in names:
        method = METHODS[name]
        found = [[value(row) for row in rows if row.name == name and row.split == split] for split in splits]
        cells = [spread([x for x in values if x is not None]) for values in found]
        if folds:
            known = [[x for x in values if x is not None] for values in found]
            means = [statistics.mean_and_deviation(values)[0] for values in known if values]
            cells.append(spread(means) if len(means) == len(splits) else NONE)
        figure = "-" if method.paper is None else f"{method.paper:.2f}"
        lines.append([method.title, *([figure] if paper else []), *cells])
    return table(head, lines)


def spread(values: Sequence[float]) -> str:
    if not values:
        return NONE
    mean, deviation = statistics.mean_and_deviation(values)
    return f"{100 * mean:.2f}" if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f} ({len(values)})"


def compare(rows: Sequence[Row], splits: Sequence[str], first: str, second: str) -> Pair | None:
    """The difference over the splits (one, or folds) and seeds that both rows have; None where they share none."""
    places = {(row.split, row.seed): row for row in rows if row.name == second and row.split in splits}
    shared = [(row, places[row.split, row.seed]) for row in rows if row.name == first and (row.split, row.seed) in places]
    if not shared:
        return None
    value = statistics.mean_and_deviation([a.accuracy - b.accuracy for a, b in shared])[0]
    ious = [a.mean_iou - b.mean_iou for a, b in shared if a.mean_iou is not None and b.mean_iou is not None]
    iou = statistics.mean_and_deviation(ious)[0] if len(ious) == len(shared) else None
    scores = [(a.scores, b.scores) for a, b in shared if a.scores is not None and b.scores is not None]
    labels = [(a.labels, b.labels) for a, b in shared if a.labels is not None and b.labels is not None]
    if len(scores) < len(shared):
        return Pair(first, second, len(shared), None, value, iou, None)
    try:
        found = statistics.difference([a for a, _ in scores], [b for _, b in scores])
        whole = len(labels) == len(shared)
        counted = statistics.iou_difference([a for a, _ in labels], [b for _, b in labels]) if whole else None
    except ValueError as error:
        raise ValueError(f"results: {first} and {second} of {rows[0].preset} cannot be paired: {error}") from None
    return Pair(first, second, len(shared), found, found.value, iou, counted)


def pairs_table(pairs: Sequence[Pair]) -> list[str]:
    """A line per comparison: the paper's margin, ours, the interval, what follows, each run's difference, that of mean IoU."""
    words = {"above": "above", "below": "**below**", "open": "open"}
    counted = any(pair.iou_found is not None for pair in pairs)
    lines = []
    for pair in pairs:
        paper, found = margin(pair.first, pair.second), pair.found
        lines.append([
            f"{METHODS[pair.first].title} - {METHODS[pair.second].title}", "-" if paper is None else f"{paper:+.2f}",
            points(pair.value), "-" if found is None else interval(found), NONE if found is None else words[found.verdict],
            "" if found is None or len(found.strata) < 2 else ", ".join(map(points, found.strata)),
            "-" if pair.iou is None else points(pair.iou), *([] if not counted else [
                NONE if pair.iou_found is None else interval(pair.iou_found),
            ]),
        ])  # fmt: skip
    head = ["first - second", "paper", "here", "95 % interval", "first is", "each run", "mean IoU"]
    return table([*head, "95 % interval"] if counted else head, lines)


def points(value: float) -> str:
    """A difference of shares in points, signed."""
    return f"{100 * value:+.2f}"


def interval(found: Difference) -> str:
    """The interval in points."""
    return f"{points(found.low)} to {points(found.high)}"


def sentence(pair: Pair | None, first: str, second: str) -> str:
    """What the interval says of one claim of the paper, in words."""
    a, b = METHODS[first].title, METHODS[second].title
    paper = margin(first, second)
    theirs = "no figure in the paper" if paper is None else f"the paper: {paper:+.2f}"
    if pair is None:
        return f"Not measured: {a} against {b} ({theirs})."
    if pair.found is None:
        return f"No interval: {a} less {b} is {points(pair.value)} ({theirs}), without figures per image."
    found = pair.found
    runs = len(found.strata)
    agree = sum(part > 0 for part in found.strata)
    said = f"{points(found.value)} points, {interval(found)}; {theirs}"
    if runs > 1:
        said += f"; above in {agree} of {runs} runs"
    if found.verdict == "above":
        return f"**Holds**: {a} is above {b} ({said})."
    if found.verdict == "below":
        order = "claimed" if paper is None else "paper's"
        return f"**Differs from the {order} order**: {a} is below {b} ({said})."
    return f"**Open**: {a} and {b} are not told apart, the interval holds zero ({said})."


def costs_table(rows: Sequence[Row]) -> list[str]:
    """Time and peak memory of each method and machine: means over its runs, the largest peak."""
    machines = sorted({row.machine or "unknown" for row in rows})
    lines = []
    for name, method in METHODS.items():
        for machine in machines:
            mine = [row for row in rows if row.name == name and (row.machine or "unknown") == machine]
            if mine:
                lines.append([
                    method.title, *([machine] if len(machines) > 1 else []), str(len(mine)),
                    " / ".join(f"{visits}" for visits in sorted({row.visits for row in mine})),
                    _mean([row.seconds for row in mine]), _mean([row.seconds_test for row in mine]),
                    _largest([row.peak_mb for row in mine]),
                ])  # fmt: skip
    head = ["method", *(["machine"] if len(machines) > 1 else []), "runs", "visits", "learning, s", "test, s", "peak, MB"]
    return table(head, lines)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean_and_deviation(known)[0]:.0f}" if known else "-"


def _largest(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.0f}" if known else "-"


def storage_table(rows: Sequence[Storage]) -> list[str]:
    """What is kept between visits, an image and in all."""
    return table(
        ["what is stored", "an image", "all images", "how it was found"],
        [[row.what, _bytes(row.bytes_per_image), _bytes(row.bytes_total), row.how] for row in rows],
    )


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g} B"


def trials_table(trials: Sequence[Trial]) -> list[str]:
    """A line per setting, its seeds together."""
    lines = []
    for what, setting in dict.fromkeys((trial.what, trial.setting) for trial in trials):
        mine = [trial for trial in trials if (trial.what, trial.setting) == (what, setting)]
        notes = "; ".join(dict.fromkeys(trial.note for trial in mine if trial.note))
        lines.append([
            what, ", ".join(f"{name} {value}" for name, value in setting) or "-", spread([trial.accuracy for trial in mine]),
            spread([trial.network_accuracy for trial in mine if trial.network_accuracy is not None]),
            _mean([trial.seconds for trial in mine]), notes,
        ])  # fmt: skip
    return table(["what", "setting", "validation", "network alone", "s", "note"], lines)


def views_table(trials: Sequence[Trial]) -> list[str]:
    """What tables add to networks that see more or less of a figure: a line per network and training, its seeds together."""
    names = ("control", "separate", "joint")
    found: dict[tuple[str, ...], dict[str, dict[int, float]]] = {}
    for trial in trials:
        setting = dict(trial.setting)
        if trial.what in names and "network" in setting and setting.get("preset", "half") == "half":
            key = tuple(setting.get(name, NONE) for name in ("network", "classes", "images", "pretrain", "epochs"))
            found.setdefault(key, {}).setdefault(trial.what, {})[trial.seed] = trial.accuracy
    lines = []
    for key, by_name in found.items():
        base, *others = (by_name.get(name, {}) for name in names)
        pairs = [[value - base[seed] for seed, value in other.items() if seed in base] for other in others]
        gains = [statistics.mean_and_deviation(some)[0] if some else None for some in pairs]
        cells = [spread(list(by_name[name].values())) if name in by_name else NONE for name in names]
        lines.append([*key, *cells, *(NONE if gain is None else points(gain) for gain in gains)])
    head = ["network", "classes", "images", "epochs before", "epochs", *names, "separate - control", "joint - control"]
    return table(head, lines) if lines else []


def lag_table(lags: Sequence[Lag]) -> list[str]:
    """A line per row and preset: how far the energy of its kept chains moves within so many further sweeps."""
    places = sorted({place for lag in lags for place in lag.sweeps})
    lines = []
    for lag in lags:
        known = {place: (energy, error) for place, energy, error in zip(lag.sweeps, lag.energy, lag.error, strict=True)}
        title = METHODS[lag.row].title if lag.row in METHODS else lag.row
        cells = [_moved(*known[place]) if place in known else "-" for place in places]
        lines.append([title, f"{lag.preset}, {split_title(lag.split)}", str(lag.seed), str(lag.images), *cells])
    head = "energy, nats a free pixel, after so many further sweeps"
    return table([head, "preset", "seed", "images", *map(str, places)], lines)


def _moved(energy: float, error: float | None) -> str:
    return f"{energy:+.3f}" if error is None else f"{energy:+.3f} ± {error:.3f}"


def inference_lines(found: Inference) -> list[str]:
    """The choice in words, and the curves as a table."""
    rhat = "" if found.rhat is None else f", where the largest split R-hat was {found.rhat:.3f}"
    images = "" if found.images is None else f" on {found.images} validation images"
    chosen = f"Chosen once{images}: burn-in {found.burn_in}, then {found.sweeps} sweeps averaged{rhat}. {found.how}"
    lines = [chosen.rstrip(), ""]
    places = sorted({place for curve in found.curves for place in curve.sweeps})
    rows = []
    for curve in found.curves:
        known = dict(zip(curve.sweeps, curve.accuracy, strict=True))
        cells = [f"{100 * known[place]:.2f}" if place in known else "-" for place in places]
        rows.append([f"{METHODS[curve.row].title if curve.row in METHODS else curve.row}, start {curve.start}", *cells])
    return lines + (table(["accuracy after so many sweeps", *map(str, places)], rows) if rows else []) + _slower(found.curves)


def _slower(curves: Sequence[Curve]) -> list[str]:
    """How much longer another start takes to come within a tenth of a point of the pre-trained start's last accuracy."""
    lines: list[str] = []
    for base in (curve for curve in curves if curve.start == "pretrained"):
        goal = base.accuracy[-1] - 0.001
        own = next(place for place, value in zip(base.sweeps, base.accuracy, strict=True) if value >= goal)
        for curve in (curve for curve in curves if curve.row == base.row and curve is not base):
            reached = [place for place, value in zip(curve.sweeps, curve.accuracy, strict=True) if value >= goal]
            theirs = f"after {reached[0]}" if reached else f"not within {curve.sweeps[-1]}"
            lines += ["", f"Within 0.1 point of {100 * base.accuracy[-1]:.2f} % ({base.row}): from the pre-trained network's "
                      f"marginals after {own} sweeps, from a {curve.start} start {theirs}."]  # fmt: skip
    return lines
