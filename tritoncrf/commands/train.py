"""How is a run started, stopped and taken up again? `tritoncrf train`."""

from __future__ import annotations

import argparse
import dataclasses
import random
import shlex
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from tritoncrf.checkpoint import CheckpointError, Tree
from tritoncrf.commands import census, data, launched, models, neighborhoods, options
from tritoncrf.commands.data import Kind, Source
from tritoncrf.commands.models import CHECKPOINT, Run
from tritoncrf.commands.options import Settings
from tritoncrf.datasets import LabeledSamples, NpzDataset
from tritoncrf.evaluation import Evaluation
from tritoncrf.index_sampler import DistributedIndexSampler
from tritoncrf.loss import CRFLoss
from tritoncrf.objective import Objective
from tritoncrf.ranks import Ranks
from tritoncrf.store import ChainStore
from tritoncrf.training import Trainer

_NOT_SETTINGS = ("command", "debug", "config", "out", "resume")


def run(arguments: argparse.Namespace) -> int:
    """Trains into ``--out``, or goes on in ``--resume``; 130 if stopped by Ctrl-C, with all saved."""
    flags = {name: value for name, value in vars(arguments).items() if name not in _NOT_SETTINGS}
    config, out, resume = (getattr(arguments, name, None) for name in ("config", "out", "resume"))
    if resume is None:
        settings = options.resolve(config, flags)
        if out is None:
            raise ValueError("out: expected --out FOLDER for a new run, or --resume FOLDER, got neither")
        folder, before = Path(out), None
        _objective(settings)
    else:
        allowed = {"network"}
        given = [name for name in ("config", "out") if getattr(arguments, name, None)] + sorted(set(flags) - allowed)
        if given:
            raise ValueError(f"resume: expected no other settings, the run has its own, got --{given[0].replace('_', '-')}")
        before = models.read(resume)
        models.trusted(before, flags.get("network"))
        settings, folder = before.settings, Path(resume)
    with launched.together(settings.device) as ranks:
        if before is None and ranks.rank == 0:
            models.new_folder(str(folder))
        return _train(settings, folder, before, ranks)


def _train(settings: Settings, folder: Path, before: Run | None, ranks: Ranks) -> int:
    batch_size = launched.share(settings.batch_size, ranks)
    neighborhood = neighborhoods.parse(settings.neighborhood)
    edges = models.edges(settings, neighborhood)
    device = models.device_of(launched.device_for(settings.device))
    training, validation, test, kind = _data(settings, None if before is None else before.kind)
    models.check_axes(settings, kind, neighborhood)
    # A user's network or images may draw from any of the three.
    torch.manual_seed(settings.seed)
    np.random.seed(settings.seed % (1 << 32))  # noqa: NPY002
    random.seed(settings.seed)
    network = models.network(settings.network, kind).to(device)
    crf = models.crf(kind, neighborhood, edges).to(device)
    print(f"{len(training)} images to learn from, {kind.num_labels} labels; checking them", flush=True)
    found = census.take(training)
    print(found, flush=True)
    numbers = settings.images is not None and settings.palette is None and settings.map is None
    census.require(found, "the images to learn from", settings.void if numbers else None)
    for name, held_out in (("validation", validation), ("test", test)):
        if held_out is not None and not int(census.take(held_out).counts.sum()):
            raise ValueError(f"masks: expected pixels with a label in the {name} images, got none")
    models.probe(network, device, training)
    latent = found.void > 0
    chains = None
    if settings.method == "pcd":
        chains = ChainStore(training.sizes, device=device, seed=settings.seed, latent=latent, shared=ranks.size > 1)
    loss = CRFLoss(
        crf, chains=chains, method=settings.method, sweeps=settings.sweeps, engine=settings.engine, seed=settings.seed,
        objective=_objective(settings),
    )  # fmt: skip
    groups: list[dict[str, object]] = [{"params": list(loss.parameters()), "lr": settings.table_rate}]
    if settings.mode == "joint":
        groups.append({"params": list(network.parameters()), "lr": settings.network_rate})
    optimizer = torch.optim.Adam(groups, lr=settings.table_rate, fused=device.type == "cuda")
    trainer = Trainer(network, crf, optimizer=optimizer, loss=loss, log=folder / "log.jsonl", edges=edges)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    engine = loss.sampler.engine_name
    print(f"network {settings.network} of {parameters:,} parameters, {neighborhood!r}{crf.form}, engine {engine} on {device}")

    path = folder / CHECKPOINT
    if before is None:
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            options.write_toml(folder / "config.toml", settings)
        extra: dict[str, Tree] = {"settings": dict(settings.values()), "kind": kind.tree()}
        trainer.save(path, extra=extra)
        ranks.any(False, device)
    elif before.kind != kind:
        raise CheckpointError(f"{path}: expected the images of that run, got others ({kind} instead of {before.kind})")
    # Loading is also what makes the checkpoints of later steps carry the settings.
    trainer.load(path)
    if before is not None:
        print(f"going on in {folder} from {before.progress}")

    try:
        order = None if ranks.size == 1 else DistributedIndexSampler(training, settings.seed, chains=chains)
        batches = data.loader(training, batch_size, settings.seed, order)
        _learn(trainer, settings, batches, validation, path)
        print(f"done: the model is in {folder}; try: tritoncrf predict --model {shlex.quote(str(folder))} ..")
        if test is not None:
            _report("test", trainer.evaluate(data.loader(test)))
    except KeyboardInterrupt:
        saved = models.read(str(folder))
        if saved.finished:
            print(f"\nstopped; the run itself is finished and saved in {path}")
        else:
            words = ["tritoncrf", "train", "--resume", str(folder)]
            words += ["--network", settings.network] if ":" in settings.network else []
            print(f"\nstopped; everything up to {saved.progress} is saved in {path}; go on with:\n  {shlex.join(words)}")
        return 130
    return 0


def _objective(settings: Settings) -> Objective:
    """Raises ValueError for one that a visit's sweeps do not do for."""
    found = Objective(
        cross_entropy=settings.cross_entropy, contexts=settings.contexts, margin=settings.margin, every=settings.every
    )
    found.check(settings.sweeps)
    return found


def _learn(
    trainer: Trainer, settings: Settings, batches: DataLoader[object], validation: LabeledSamples | None, path: Path
) -> None:
    held_out: DataLoader[object] | None = None if validation is None else data.loader(validation)
    shown = len(trainer.history)
    if settings.pretrain_epochs:
        trainer.pretrain(
            batches, settings.pretrain_epochs, rate=settings.pretrain_rate, checkpoint=path, every=settings.checkpoint_every
        )
        shown = _show(trainer, shown)
    if settings.epochs:
        trainer.fit(
            batches, settings.mode, epochs=settings.epochs, validation=held_out, checkpoint=path,
            every=settings.checkpoint_every,
        )  # fmt: skip
        _show(trainer, shown)


def _show(trainer: Trainer, shown: int) -> int:
    for line in trainer.history[shown:]:
        text = f"{line['stage']} epoch {line['epoch']}: loss {line['loss']:.4f}"
        if "accuracy" in line:
            text += f", validation accuracy {line['accuracy']:.4f} (network alone {line['network_accuracy']:.4f})"
        print(text, flush=True)
    return len(trainer.history)


def _report(name: str, found: Evaluation) -> None:
    print(f"{name}: accuracy {found.crf.accuracy:.4f} (network alone {found.network.accuracy:.4f}), "
          f"mean IoU {found.crf.mean_iou:.4f} ({found.network.mean_iou:.4f})")  # fmt: skip


def _data(
    settings: Settings, known: Kind | None
) -> tuple[LabeledSamples, LabeledSamples | None, LabeledSamples | None, Kind]:
    """Training images, those for validation, those for the test, and what they are (``known`` for a run that goes on)."""
    source = Source.of(settings)
    _check_flags(settings)
    if settings.npz is not None:
        training: LabeledSamples = NpzDataset(settings.npz, settings.train_split, settings.split_key, settings.limit)
        kind = Kind.of(training, known)
    elif settings.generated is not None:
        training = data.figures(source, "train")
        kind = Kind.of(training, known)
    elif known is not None:
        training, kind = data.read(source, None, known), known
    else:
        training, kind = data.folder_and_kind(source, settings.labels or 0, settings.channels, settings.background)
    validation = test = None
    if settings.validation_files is not None:
        validation = data.read(dataclasses.replace(source, files=settings.validation_files), None, kind)
    elif settings.validation_split is not None:
        validation = data.read(source, settings.validation_split, kind)
    if settings.test_split is not None:
        test = data.read(source, settings.test_split, kind)
    return training, validation, test, kind


def _check_flags(settings: Settings) -> None:
    """Raises ValueError for settings of another source of data, which would be passed over in silence."""
    if settings.pretrain_epochs + settings.epochs == 0:
        raise ValueError("epochs: expected at least one epoch of pre-training or CRF learning, got none")
    if settings.images is not None:
        if settings.masks is None or settings.labels is None:
            raise ValueError("images: expected --masks DIR and --labels N with --images, got them not both")
        odd: tuple[str, ...] = ("validation_split", "test_split")
    else:
        odd = (
            "masks", "files", "validation_files", "labels", "palette", "background", "channels", "map", "recursive",
            "image_suffix", "mask_suffix",
        )  # fmt: skip
    for name in odd:
        if getattr(settings, name) not in (None, False, ""):
            flag = "--images" if settings.images is None else "--npz and --generated"
            raise ValueError(f"{name}: expected it only with {flag}, got {getattr(settings, name)!r}")
