"""What was measured? The committed JSON, read and checked: rows of the table, tuning, storage, inference, lag.

Seven kinds of file (`results/README.md` has their fields): ``<preset>_<split>_<seed>.json``, and at most one each of
``tuning.json``, ``storage.json``, ``inference.json``, ``lag.json``, and `report_objective`'s ``exchange.json`` and
``likelihood.json``. Accuracies are shares of 1. Whatever does not fit is a ValueError that names the file, what was expected
and what was got.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.paper import statistics
from bench.paper.statistics import Labels, Scores

Setting = tuple[tuple[str, str], ...]
TUNING, STORAGE, INFERENCE, LAG = "tuning.json", "storage.json", "inference.json", "lag.json"
EXCHANGE, LIKELIHOOD = "exchange.json", "likelihood.json"
# Of trials that a guide tells of (`bench.paper.mixing`).
MIXING = "mixing.json"


@dataclass(frozen=True)
class Row:
    """One method, learned and tested once."""

    name: str
    preset: str
    split: str
    seed: int
    accuracy: float
    network_accuracy: float | None
    mean_iou: float | None
    images: int
    visits: int
    seconds: float
    seconds_test: float | None
    peak_mb: float | None
    commit: str
    machine: str | None
    burn_in: int | None
    sweeps: int | None
    scores: Scores | None
    """int64 [test images, 2]: (correct, counted) pixels."""
    labels: Labels | None
    """int64 [test images, L, 3]: of each label (shared, true, given) pixels."""


@dataclass(frozen=True)
class Trial:
    """One setting tried on validation images."""

    what: str
    setting: Setting
    seed: int
    accuracy: float
    network_accuracy: float | None
    seconds: float | None
    note: str
    iou: float | None = None
    cpu: float | None = None
    """Processor seconds of learning."""


@dataclass(frozen=True)
class Storage:
    """What one method must keep between visits."""

    what: str
    bytes_per_image: float | None
    bytes_total: float | None
    how: str


@dataclass(frozen=True)
class Curve:
    """Accuracy on validation images after so many averaged sweeps, from one kind of first sample."""
    row: str
    start: str
    sweeps: tuple[int, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Inference:
    """How burn-in and averaging sweeps were chosen."""

    burn_in: int
    sweeps: int
    rhat: float | None
    images: int | None
    how: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Lag:
    """How far the energy of kept chains moves when they go on under the learned model: nats a free pixel."""

    row: str
    preset: str
    split: str
    seed: int
    images: int
    sweeps: tuple[int, ...]
    energy: tuple[float, ...]
    error: tuple[float | None, ...]
    """Standard errors over the images; None of a single one."""


@dataclass(frozen=True)
class Results:
    """All that stands in a folder of results."""

    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]
    storage: tuple[Storage, ...]
    inference: Inference | None
    lags: tuple[Lag, ...] = ()
    exchange: tuple[Fields, ...] = ()
    likelihood: tuple[Fields, ...] = ()


def read(folder: Path) -> Results:
    """Reads every ``*.json`` of a folder. Raises FileNotFoundError without the folder, ValueError for foreign content."""
    if not folder.is_dir():
        raise FileNotFoundError(f"results: expected a folder of JSON files, got {folder}, which is none")
    rows: dict[tuple[str, str, str, int], Row] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name in (TUNING, STORAGE, INFERENCE, LAG, EXCHANGE, LIKELIHOOD, MIXING):
            continue
        for fields in _list(path):
            row = _row(fields)
            if path.name != f"{row.preset}_{row.split}_{row.seed}.json":
                raise fields.wrong("rows of its own preset, split and seed", f"one of {row.preset}, {row.split}, {row.seed}")
            if (key := (row.preset, row.split, row.name, row.seed)) in rows:
                raise fields.wrong("each row once", f"{row.name!r} again")
            rows[key] = row
    trials, storage, chosen, lag = (folder / name for name in (TUNING, STORAGE, INFERENCE, LAG))
    return Results(
        tuple(rows.values()),
        tuple(map(_trial, _list(trials))) if trials.exists() else (),
        tuple(map(_storage, _list(storage))) if storage.exists() else (),
        _inference(Fields(chosen, "the file", _load(chosen))) if chosen.exists() else None,
        _lags(_list(lag)) if lag.exists() else (),
        *(tuple(_list(folder / name)) if (folder / name).exists() else () for name in (EXCHANGE, LIKELIHOOD)),
    )


class Fields:
    """A JSON object whose fields are asked for by name and kind."""

    def __init__(self, path: Path, where: str, content: object) -> None:
        self.path, self.where = path, where
        if not isinstance(content, dict):
            raise self.wrong("a JSON object", type(content).__name__)
        self.content: dict[str, object] = content

    def wrong(self, expected: str, got: str) -> ValueError:
        return ValueError(f"{self.path.name}: expected {expected} in {self.where}, got {got}")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.content.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(f"{name} as text", _said(value))
        return value

    def number(self, name: str, least: float = 0.0, most: float = math.inf) -> float:
        value = self.content.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= float(value) <= most or not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise self.wrong(f"{name} as a number {_range(least, most)}", _said(value))
        return float(value)  # type: ignore[arg-type]

    def maybe(self, name: str, least: float = 0.0, most: float = math.inf) -> float | None:
        return None if self.content.get(name) is None else self.number(name, least, most)

    def whole(self, name: str) -> int:
        value = self.number(name)
        if value != int(value):
            raise self.wrong(f"{name} as a whole number", _said(self.content[name]))
        return int(value)

    def maybe_whole(self, name: str) -> int | None:
        return None if self.content.get(name) is None else self.whole(name)

    def items(self, name: str) -> list[object]:
        value = self.content.get(name)
        if not isinstance(value, list):
            raise self.wrong(f"{name} as a list", _said(value))
        return value


def _range(least: float, most: float) -> str:
    return f"of at least {least:g}" if most == math.inf else f"within {least:g} and {most:g}"


def _said(value: object) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _load(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: expected JSON, got something else ({error})") from None


def _list(path: Path) -> list[Fields]:
    content = _load(path)
    if not isinstance(content, list):
        raise ValueError(f"{path.name}: expected a list of rows, got {type(content).__name__}")
    return [Fields(path, f"row {place}", part) for place, part in enumerate(content)]


def _row(fields: Fields) -> Row:
    accuracy, iou = fields.number("accuracy", 0, 1), fields.maybe("mean_iou", 0, 1)
    found = _counts(fields, "per_image", lambda pairs: statistics.scores(_lists(pairs)))
    if found is not None and abs(statistics.pooled(found) - accuracy) > 1e-4:
        raise fields.wrong(f"the accuracy of its images, {statistics.pooled(found):.5f},", f"{accuracy:.5f}")
    labels = _counts(fields, "per_label", lambda images: statistics.labels([_lists(image) for image in _lists(images)]))
    if labels is not None and (iou is None or abs(statistics.mean_iou(labels) - iou) > 1e-4):
        raise fields.wrong(f"the mean IoU of its labels, {statistics.mean_iou(labels):.5f},", _said(iou))
    return Row(
        fields.text("name"), fields.text("preset"), fields.text("split"), fields.whole("seed"), accuracy,
        fields.maybe("network_accuracy", 0, 1), iou, fields.whole("images"), fields.whole("visits"),
        fields.number("seconds"), fields.maybe("seconds_test"), fields.maybe("peak_mb"), fields.text("commit"),
        fields.text("machine", "") or None, fields.maybe_whole("burn_in"), fields.maybe_whole("sweeps"), found, labels,
    )  # fmt: skip


def _counts(fields: Fields, name: str, check: Callable[[list[object]], NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """Checked counts of the test images; None where the row has none."""
    if fields.content.get(name) is None:
        return None
    try:
        return check(fields.items(name))
    except ValueError as error:
        raise ValueError(f"{fields.path.name}: {error}, in {fields.where}") from None


def _lists(content: Sequence[object]) -> list[list[int]]:
    """Lists within a list; what is none becomes an empty one, which every check refuses."""
    return [part if isinstance(part, list) else [] for part in content]


def _trial(fields: Fields) -> Trial:
    setting = fields.content.get("setting")
    if not isinstance(setting, dict):
        raise fields.wrong("setting as a JSON object", _said(setting))
    named = tuple((str(name), value if isinstance(value, str) else json.dumps(value)) for name, value in setting.items())
    return Trial(
        fields.text("what"), named, fields.whole("seed"), fields.number("validation_accuracy", 0, 1),
        fields.maybe("network_accuracy", 0, 1), fields.maybe("seconds"), fields.text("note", ""),
        fields.maybe("validation_iou", 0, 1), fields.maybe("cpu_seconds"),
    )  # fmt: skip


def _storage(fields: Fields) -> Storage:
    return Storage(fields.text("what"), fields.maybe("bytes_per_image"), fields.maybe("bytes_total"), fields.text("how", ""))


def _inference(fields: Fields) -> Inference:
    curves = [_curve(Fields(fields.path, f"curve {place}", part)) for place, part in enumerate(fields.items("curves"))]
    return Inference(
        fields.whole("burn_in"), fields.whole("sweeps"), fields.maybe("rhat"), fields.maybe_whole("images"),
        fields.text("how", ""), tuple(curves),
    )  # fmt: skip


def _lags(rows: list[Fields]) -> tuple[Lag, ...]:
    found: dict[tuple[str, str, str, int], Lag] = {}
    for lag, fields in zip(map(_lag, rows), rows, strict=True):
        if (key := (lag.row, lag.preset, lag.split, lag.seed)) in found:
            raise fields.wrong("each row once", f"{lag.row!r} again")
        found[key] = lag
    return tuple(found.values())


def _lag(fields: Fields) -> Lag:
    sweeps, energy, error = fields.items("sweeps"), fields.items("energy"), fields.items("error")
    if not len(sweeps) == len(energy) == len(error) or not sweeps:
        found = f"{len(energy)} and {len(error)} for {len(sweeps)}"
        raise fields.wrong("as many energies and errors as sweeps, at least one,", found)
    points = [
        Fields(fields.path, fields.where, {"sweeps": s, "energy": e, "error": r})
        for s, e, r in zip(sweeps, energy, error, strict=True)
    ]
    return Lag(
        fields.text("row"), fields.text("preset"), fields.text("split"), fields.whole("seed"), fields.whole("images"),
        tuple(point.whole("sweeps") for point in points), tuple(point.number("energy", -math.inf) for point in points),
        tuple(point.maybe("error") for point in points),
    )  # fmt: skip


def _curve(fields: Fields) -> Curve:
    sweeps, accuracy = fields.items("sweeps"), fields.items("accuracy")
    if len(sweeps) != len(accuracy) or not sweeps:
        raise fields.wrong("as many accuracies as sweeps, at least one,", f"{len(accuracy)} for {len(sweeps)}")
    points = [Fields(fields.path, fields.where, {"sweeps": s, "accuracy": a}) for s, a in zip(sweeps, accuracy, strict=True)]
    return Curve(
        fields.text("row"), fields.text("start"), tuple(point.whole("sweeps") for point in points),
        tuple(point.number("accuracy", 0, 1) for point in points),
    )  # fmt: skip
