"""Which settings does a training run have? One list for the flags, the TOML file and the checkpoint, each checked.

A setting ``pretrain_epochs`` is the flag ``--pretrain-epochs`` and the TOML key ``pretrain_epochs``. Flags go before the file.
"""

from __future__ import annotations

import argparse
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from tritoncrf.commands.meanings import is_text

T = TypeVar("T")
Value = str | int | float | bool | list[int] | None
Kind = type[str] | type[int] | type[float] | type[bool]
_KINDS: dict[str, Kind] = {"str": str, "int": int, "float": float, "bool": bool}
ENGINES = ("auto", "torch", "numba", "triton")
_PATHS = ("npz", "images", "masks", "files", "validation_files", "palette", "map")


def _option(default: T, text: str, *choices: str) -> T:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """Everything that decides a training run, besides the folder that it is written to."""

    npz: str | None = _option(None, "data: an .npz archive of images and labels")
    split_key: str = _option("split", "the archive's array of split names")
    train_split: str = _option("train", "the split to learn from")
    validation_split: str | None = _option(None, "the split scored after each epoch (for --generated: any name)")
    test_split: str | None = _option(None, "the split scored at the end (for --generated: any name)")
    images: str | None = _option(None, "data: a folder of images, or of volumes (.npz, .nii, .nii.gz)")
    masks: str | None = _option(None, "the folder of label masks, matched by stem or as --files says")
    files: str | None = _option(None, "a text file of lines: stems, names of images, or `image mask` below the two folders")
    validation_files: str | None = _option(None, "a text file like --files, of the images scored after each epoch")
    recursive: bool = _option(False, "also images in folders below")
    image_suffix: str = _option("", "what follows the stem in every image's name, such as _leftImg8bit")
    mask_suffix: str = _option("", "what follows the stem in every mask's name, such as _gtFine_labelIds")
    labels: int | None = _option(None, "number of labels in the masks")
    palette: str | None = _option(None, "JSON or TOML of '#rrggbb' = label, for masks that show labels as colours")
    map: str | None = _option(
        None, "what values of index masks mean: VALUE=LABEL joined by commas, or a JSON or TOML file; 255 is 'no label', * "
        "are all other values; goes before --void"
    )  # fmt: skip
    void: int | tuple[int, ...] = _option(255, "the values in index masks that mean 'no label'")
    background: int | None = _option(None, "the label left out of the accuracy, known where a depth image is 0")
    channels: int | None = _option(None, "1 for grey and depth, 3 for colour (default: as the images are)")
    generated: int | None = _option(None, "data: so many made-up figures in depth")
    generated_size: str = _option("96x64", "height x width of the made-up figures")
    limit: int | None = _option(None, "use only the first so many images of every split")
    network: str = _option("small", "small, small3d for volumes, table1, or module:factory called with channels and labels")
    neighborhood: str = _option(
        "grid:24:8+grid:1+grid:2:2", "nearest:COUNT, grid:REACH[:STEP], rays:REACH[:COUNT] or "
        "log_polar:REACH[:RINGS[:DIRECTIONS]], for volumes nearest3d or grid3d, joined by +"
    )  # fmt: skip
    edges: str | None = _option(
        None, "what tables see of the image: steps:T[,T..] for kinds by the signed step of the first channel, "
        "contrast:T[,T..] for kinds by the distance of colours, gaussian:WIDTH for gates"
    )  # fmt: skip
    mode: str = _option("joint", "learn the tables alone or with the network", "joint", "separate")
    pretrain_epochs: int = _option(8, "epochs of cross-entropy before")
    epochs: int = _option(4, "epochs of CRF learning")
    sweeps: int = _option(10, "Gibbs sweeps per visit of an image")
    method: str = _option("pcd", "persistent chains, or chains from the data", "pcd", "cd")
    cross_entropy: float = _option(0.0, "weight of the cross-entropy of averaged conditionals beside the likelihood")
    contexts: int = _option(4, "how many sweeps of a visit those are averaged over")
    every: int = _option(1, "of how many pixels that cross-entropy asks one a visit")
    margin: float = _option(0.0, "nats by which a wrong pixel is favoured in the chains, of softmax-margin")
    batch_size: int = _option(1, "images per update, of all ranks together under torchrun")
    pretrain_rate: float = _option(3e-3, "Adam's rate in pre-training")
    network_rate: float = _option(1e-3, "Adam's rate for the network in joint learning")
    table_rate: float = _option(1e-3, "Adam's rate for the tables")
    seed: int = _option(0, "of weights, data order and chains")
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, ..")
    engine: str = _option("auto", "the sampler's engine", *ENGINES)
    checkpoint_every: int = _option(500, "steps between checkpoints inside an epoch (0: after epochs only)")

    def __post_init__(self) -> None:
        object.__setattr__(self, "void", _void(self.void))
        for spec in fields(self):
            value, kind = getattr(self, spec.name), _kind(spec.type)
            if spec.name == "void" or (value is None and "None" in str(spec.type)):
                continue
            if (isinstance(value, bool) and kind is not bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{spec.name}: expected {_NOUNS[kind]}, got {value!r}")
            choices = spec.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{spec.name}: expected {' or '.join(choices)}, got {value!r}")
        for name, least in (("pretrain_epochs", 0), ("epochs", 0), ("sweeps", 1), ("batch_size", 1), ("seed", 0),
                            ("checkpoint_every", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("limit", "generated"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("pretrain_rate", "network_rate", "table_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")

    def values(self) -> dict[str, Value]:
        """Every setting by name."""
        found = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


_NOUNS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _kind(annotation: object) -> Kind:
    return _KINDS[str(annotation).split(" |")[0]]


def _void(value: object) -> int | tuple[int, ...]:
    """One value alone is that value, as it is in settings from before there were several."""
    given = value if isinstance(value, list | tuple) else [value]
    several = tuple(part for part in given if type(part) is int)
    if not several or len(several) < len(given):
        raise ValueError(f"void: expected a whole number, or several, got {value!r}")
    return several[0] if len(several) == 1 else several


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting; one that is not given leaves no trace, so that the file decides."""
    for spec in fields(Settings):
        if _kind(spec.type) is bool:
            switch(parser, spec.name, spec.metadata["help"], default=argparse.SUPPRESS)
            continue
        given = f" (default: {spec.default})" if spec.default not in (None, "") else ""
        parser.add_argument(
            "--" + spec.name.replace("_", "-"), type=_kind(spec.type), default=argparse.SUPPRESS,
            choices=spec.metadata["choices"] or None, help=spec.metadata["help"] + given,
            metavar=None if spec.metadata["choices"] else spec.name.rsplit("_", 1)[-1].upper(),
            nargs="+" if spec.name == "void" else None,
        )  # fmt: skip


def switch(parser: argparse.ArgumentParser, name: str, text: str, default: object = None) -> None:
    """A flag that says yes, with one that says no beside it."""
    flag = "--" + name.replace("_", "-")
    parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)


def resolve(config: str | None, flags: Mapping[str, object]) -> Settings:
    """The settings of a TOML file with the given flags over them, its paths made absolute.

    Raises ValueError or FileNotFoundError for a file that is not there, no TOML, or holds an unknown key.
    """
    given = {**({} if config is None else read_toml(config)), **flags}
    return from_values(given, config or "flags", root=Path.cwd())


def from_values(given: Mapping[str, object], where: str, root: Path | None = None) -> Settings:
    """Settings from names and values that came from ``where``. Raises ValueError for an unknown name or a wrong value."""
    known = [spec.name for spec in fields(Settings)]
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: expected only known settings, got the key {name!r}; known are {', '.join(known)}")
    kept = dict(given)
    for name in _PATHS:
        value = kept.get(name)
        if root is not None and isinstance(value, str) and not (name == "map" and is_text(value)):
            kept[name] = os.path.normpath(root / value)
    return Settings(**kept)  # type: ignore[arg-type]  # its own checks name what does not fit


def read_toml(path: str) -> dict[str, object]:
    """The keys of a TOML file; paths in it count from its own folder."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"config: expected a TOML file, got {path}, which does not exist")
    try:
        found: dict[str, object] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: expected TOML, got {path}, which is none: {error}") from None
    for name in _PATHS:
        value = found.get(name)
        if isinstance(value, str) and not (name == "map" and is_text(value)):
            found[name] = os.path.normpath(Path(path).resolve().parent / value)
    return found


def write_toml(path: Path, settings: Settings) -> None:
    """Writes every setting that has a value."""
    # A TOML basic string is a JSON string, but for the delete character, which no setting holds in earnest.
    given = {name: value for name, value in settings.values().items() if value is not None}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
