"""What is in a run's folder? The trained network and CRF, and what they need to see images as in training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tritoncrf import checkpoint as files
from tritoncrf import generators, networks
from tritoncrf.batches import Batch
from tritoncrf.checkpoint import CheckpointError, Tree
from tritoncrf.commands.data import Kind, loader
from tritoncrf.commands.options import Settings, from_values
from tritoncrf.datasets import LabeledSamples
from tritoncrf.edges import Recipe, parse
from tritoncrf.evaluation import run as run_network
from tritoncrf.grid_crf import GridCRF
from tritoncrf.lattice import Neighborhood
from tritoncrf.loss import CRFLoss
from tritoncrf.training import Trainer

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Run:
    """A run's checkpoint as read."""

    path: Path
    tree: dict[str, Tree]
    settings: Settings
    kind: Kind

    @property
    def neighborhood(self) -> Neighborhood:
        return Neighborhood.from_offsets(files.tensor(self.tree, "offsets").tolist())

    @property
    def progress(self) -> str:
        """Where the run is, in words."""
        progress = files.group(files.group(self.tree, "loop"), "progress")
        stage, epoch, position = progress.get("stage"), progress.get("epoch"), progress.get("position")
        return f"{stage} epoch {epoch} of {progress.get('epochs')}, batch {position}" if stage else "the start"

    @property
    def finished(self) -> bool:
        done = files.group(files.group(self.tree, "loop"), "progress").get("finished")
        return isinstance(done, list) and (self.settings.mode if self.settings.epochs else "pretrain") in done


def read(folder: str) -> Run:
    """Raises FileNotFoundError where there is no run, CheckpointError where it is no whole run of `tritoncrf train`."""
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"model: expected a folder with {CHECKPOINT} as `tritoncrf train` writes it, got {folder}")
    tree = files.read(path, kind="training")
    extra = files.group(tree, "extra")
    kind = Kind.read(extra, path)
    try:
        settings = from_values(files.group(extra, "settings"), str(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: expected the settings of `tritoncrf train`, got others ({error})") from None
    run = Run(path, tree, settings, kind)
    with files.believed(path, "training"):
        # What a run tells of itself is asked for here, where a foreign file is still an error of its own.
        _ = run.neighborhood, run.progress, run.finished
    return run


def network(name: str, kind: Kind) -> nn.Module:
    """A network by name; a user's module is looked for in the current folder too, as ``python -m`` does."""
    here = str(Path.cwd())
    if ":" in name and here not in sys.path:
        sys.path.insert(0, here)
    return networks.build(name, kind.channels, kind.num_labels)


def trusted(run: Run, named: str | None) -> str:
    """The run's network, which must be named again where it is a user's code.

    A checkpoint may come from anyone, and must not choose by itself which function is called.
    """
    wanted = run.settings.network
    if ":" in wanted and named is None:
        raise ValueError(f"network: expected --network {wanted} to allow the code that this run was trained with, got none")
    if named is not None and named != wanted:
        raise ValueError(f"network: expected {wanted}, with which this run was trained, got {named}")
    return wanted


def check_axes(settings: Settings, kind: Kind, neighborhood: Neighborhood) -> None:
    """Raises ValueError for a neighbourhood or a network that comes along for images of other axes."""
    what, near, known = ("volumes", "nearest3d:26", "small3d") if kind.ndim == 3 else ("pictures", "nearest:8", "small")
    if neighborhood.ndim != kind.ndim:
        raise ValueError(
            f"neighborhood: expected one for {what}, such as {near} (with --network {known}), got {settings.neighborhood}"
        )
    if ":" not in settings.network and (settings.network == "small3d") != (kind.ndim == 3):
        raise ValueError(f"network: expected one for {what}, such as {known}, got {settings.network}")


def probe(network: nn.Module, device: torch.device, dataset: LabeledSamples) -> None:
    """Raises ValueError or TypeError if the network's answer to the first image is no logits for its target.

    Nothing random is drawn that learning would draw, and nothing is learned.
    """
    batches = loader(dataset)
    now = generators.capture(batches)
    try:
        batch = Batch.of(next(iter(batches)), device)
        logits, gates, _ = run_network(network, None, batch.image)
        batch.fitting(logits, gates, dataset.num_labels)
    finally:
        generators.restore(now, None)


def edges(settings: Settings, neighborhood: Neighborhood) -> Recipe | None:
    """What the tables see of an image. Raises ValueError for a text that says nothing known."""
    try:
        return None if settings.edges is None else parse(settings.edges, neighborhood)
    except ValueError as error:
        # Here the text is the setting.
        raise ValueError(str(error).replace("text:", "edges:", 1)) from None


def crf(kind: Kind, neighborhood: Neighborhood, seen: Recipe | None) -> GridCRF:
    """Zero tables that see what ``seen`` tells."""
    if seen is None:
        return GridCRF(kind.num_labels, neighborhood)
    return GridCRF(kind.num_labels, neighborhood, kinds=seen.kinds, gates=seen.gates)


def trainer(run: Run, *, named: str | None, device: str, engine: str) -> Trainer:
    """The run's model, ready to answer."""
    place = device_of(device)
    seen = edges(run.settings, run.neighborhood)
    tables = crf(run.kind, run.neighborhood, seen).to(place)
    loss = CRFLoss(tables, method="cd", engine=engine)
    found = Trainer(network(trusted(run, named), run.kind), tables, loss=loss, device=place, edges=seen)
    found.load(run.path)
    if not run.finished:
        print(f"tritoncrf: note: the run in {run.path.parent} is not finished (at {run.progress})", file=sys.stderr)
    return found


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU if there is one. Raises ValueError for what is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected auto, cpu or a device that is there, got {name!r}: {reason}") from None
    return device


def new_folder(out: str, allow: str | None = None) -> Path:
    """``out`` as a folder to write to, not made yet; one that holds anything (but a file ``allow``) is an error."""
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"out: expected a new or empty folder, got the file {out}")
    held = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if held and (allow is None or allow not in held):
        hint = f"; to go on with that run: tritoncrf train --resume {out}" if CHECKPOINT in held else ""
        raise FileExistsError(f"out: expected a new or empty folder, got {out}, which holds {held[0]}{hint}")
    return path
