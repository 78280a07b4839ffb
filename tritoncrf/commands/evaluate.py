"""How good is a model on held-out images? `tritoncrf evaluate`: the network alone beside the CRF."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence

from tritoncrf.checkpoint import CheckpointError
from tritoncrf.commands import data, models
from tritoncrf.commands.data import Source
from tritoncrf.evaluation import Evaluation
from tritoncrf.metrics import Score

Figures = Mapping[str, object]


def run(arguments: argparse.Namespace) -> int:
    """Prints accuracy, mean intersection over union, and both by class."""
    saved = models.read(arguments.model)
    if arguments.images is not None and arguments.masks is None:
        raise ValueError("masks: expected --masks DIR with --images, got none")
    # An archive's images would else be those of the training too.
    split = arguments.split or saved.settings.test_split or "test"
    source = _source(arguments, Source.of(saved.settings))
    images = data.read(source, split, saved.kind)
    trainer = models.trainer(saved, named=arguments.network, device=arguments.device, engine=arguments.engine)
    found = trainer.evaluate(
        data.loader(images), sweeps=arguments.sweeps, burn_in=arguments.burn_in, replicas=arguments.replicas,
        seed=arguments.seed, background=saved.kind.background,
    )  # fmt: skip
    if not any(int(score.confusion.sum()) for score in (found.network, found.crf)):
        raise CheckpointError("data: expected labelled pixels to compare with, got none")
    _warn_of_one_label(found.crf, saved.kind.class_names, source)
    if arguments.json:
        print(json.dumps(figures(found, len(images), saved.kind.class_names), indent=2))
    else:
        of = f" of split {split}" if arguments.npz is not None else ""
        print(f"{len(images)} images{of}; {table(found, saved.kind.class_names)}")
    return 0


def _source(given: argparse.Namespace, trained: Source) -> Source:
    """The images that the flags name; how they are to be read, where no flag says it, is as in training."""

    def chosen(name: str) -> object:
        value: object = getattr(given, name)
        return getattr(trained, name) if value is None else value

    same = {name: chosen(name) for name in ("split_key", "recursive", "image_suffix", "mask_suffix")}
    return dataclasses.replace(
        trained, npz=given.npz, images=given.images, masks=given.masks, files=given.files, generated=given.generated,
        limit=given.limit, void=trained.void if given.void is None else tuple(given.void),
        # A palette is for masks in colour, a map for numbers: one goes without the other.
        palette=given.palette or (None if given.map else trained.palette),
        map=given.map or (None if given.palette else trained.map), **same,  # type: ignore[arg-type]
    )  # fmt: skip


def _warn_of_one_label(score: Score, names: Sequence[str], source: Source) -> None:
    seen = [name for name, count in zip(names, score.confusion.sum(1).tolist(), strict=True) if count]
    if len(seen) == 1 and len(names) > 1 and source.masks is not None:
        void = source.void if isinstance(source.void, int) else " ".join(map(str, source.void))
        warnings.warn(
            f"masks: expected several labels to tell apart, got {seen[0]} alone: is a label meant where masks have {void} "
            "(void)? --map says what values mean", stacklevel=2,
        )  # fmt: skip


def figures(found: Evaluation, images: int, names: Sequence[str]) -> Figures:
    """Everything that `table` shows, as JSON takes it; null where there is nothing to count."""

    def of(score: Score) -> Figures:
        by_class = zip(names, score.per_class, score.iou, strict=True)
        return {
            "accuracy": _number(score.accuracy), "mean_iou": _number(score.mean_iou),
            "per_class": {name: {"accuracy": _number(share), "iou": _number(iou)} for name, share, iou in by_class},
        }  # fmt: skip

    background = found.crf.background
    left_out = None if background is None else names[background]
    return {"images": images, "background": left_out, "network": of(found.network), "crf": of(found.crf)}


def table(found: Evaluation, names: Sequence[str]) -> str:
    """A table in text, in per cent."""
    background = found.crf.background
    over = "all labelled pixels" if background is None else f"all pixels that are not {names[background]}"
    width = max(len("accuracy"), *map(len, names))
    lines = [
        f"accuracy over {over}, in per cent", "",
        f"{'':{width}}  {'network':>8} {'CRF':>8}",
        f"{'accuracy':{width}}  {_percent(found.network.accuracy)} {_percent(found.crf.accuracy)}",
        f"{'mean IoU':{width}}  {_percent(found.network.mean_iou)} {_percent(found.crf.mean_iou)}", "",
        f"{'':{width}}  {'accuracy':^17}   {'IoU':^17}",
        f"{'class':{width}}  {'network':>8} {'CRF':>8}   {'network':>8} {'CRF':>8}",
    ]  # fmt: skip
    columns = (found.network.per_class, found.crf.per_class, found.network.iou, found.crf.iou)
    for name, a, b, c, d in zip(names, *columns, strict=True):
        lines.append(f"{name:{width}}  {_percent(a)} {_percent(b)}   {_percent(c)} {_percent(d)}")
    return "\n".join(lines)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return f"{'-':>8}" if math.isnan(value) else f"{100 * value:8.2f}"
