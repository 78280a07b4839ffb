"""What can I run? The command line: train, predict, evaluate, demo, doctor.

Flags are known here; a command's module is imported only when it runs. Errors are one sentence on stderr, exit status 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO, cast

from tritoncrf._version import VERSION
from tritoncrf.commands import options

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving, so that every error is printed alike."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, without the program's name. Returns the exit status: 0 well, 1 doctor found a fault, 2 an error."""
    words = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            arguments = _parser().parse_args(words)
            command = cast(Command, importlib.import_module(f"tritoncrf.commands.{arguments.command}").run)
            return command(arguments)
        except KeyboardInterrupt:
            print("tritoncrf: stopped", file=sys.stderr)
            return 130
        except (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError) as error:
            if "--debug" in words:
                raise
            if isinstance(error, MemoryError):
                error = MemoryError(f"memory: expected enough for this data, got too little ({error or 'none left'})")
            print(f"tritoncrf: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
            return 2


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    print(f"tritoncrf: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    about = "CRFs on pixel grids over a network's logits, learned and answered by exact Gibbs sampling."
    parser = _Parser(prog="tritoncrf", description=about)
    parser.add_argument("--version", action="version", version=f"tritoncrf {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _demo(_command(commands, "demo", "see it work in about two minutes, on made-up figures, with a report folder"))
    _train(_command(commands, "train", "learn from images: an .npz archive, two folders, or made-up figures", sparse=True))
    _predict(_command(commands, "predict", "label new images"))
    _evaluate(_command(commands, "evaluate", "score a model on held-out images, network alone beside CRF"))
    _command(commands, "doctor", "show versions, devices and engines, and check that samples are exact")
    return parser


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, text: str, *, sparse: bool = False
) -> argparse.ArgumentParser:
    # A sparse command's flags leave no trace where they are not given.
    default = argparse.SUPPRESS if sparse else None
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", argument_default=default)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    return parser


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="tritoncrf-demo", metavar="FOLDER", help="default: tritoncrf-demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="torch", choices=options.ENGINES, help="the sampler's engine (default: torch)")
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, to see that it runs; learns little")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FOLDER", help="a new folder for checkpoint, log and settings")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with a stopped run, to the same bits")
    parser.add_argument("--config", metavar="FILE", help="TOML with any of the settings below; flags go before it")
    options.add_flags(parser)


def _model(parser: argparse.ArgumentParser, split: str) -> None:
    parser.add_argument("--model", required=True, metavar="FOLDER", help="the folder of `tritoncrf train --out`")
    parser.add_argument("--network", metavar="MODULE:FACTORY", help="allow the code that the model was trained with")
    parser.add_argument("--files", metavar="LIST", help="a text file of stems, images, or `image mask`, one a line")
    options.switch(parser, "recursive", "also images in folders below")
    parser.add_argument("--image-suffix", metavar="SUFFIX", help="what follows the stem in every image's name")
    parser.add_argument("--split-key", metavar="KEY", help="the archive's array of splits (default: as in training)")
    parser.add_argument("--split", metavar="NAME", help=f"a split of the archive (default: {split})")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--sweeps", type=int, default=40, help="sweeps that are averaged (default: 40)")
    parser.add_argument("--burn-in", type=int, default=20, metavar="SWEEPS", help="sweeps before them (default: 20)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="chains an image (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="auto", choices=options.ENGINES)


def _predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", help="a folder of images or volumes, one file of it, or an .npz archive")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder for labels: NAME.png, or as volumes are")
    parser.add_argument(
        "--marginals", action="store_true", help="also float16 [L, H, W] in NAME.npz (of volumes in NAME.marginals.npz)"
    )
    parser.add_argument("--entropy", action="store_true", help="also NAME.entropy.png (or as volumes are): white where unsure")
    _model(parser, "all of it")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--npz", metavar="FILE", help="an archive of images and labels")
    parser.add_argument("--images", metavar="DIR", help="a folder of images, with --masks")
    parser.add_argument("--masks", metavar="DIR", help="a folder of masks; how they are read is as in training, or:")
    parser.add_argument("--mask-suffix", metavar="SUFFIX", help="what follows the stem in every mask's name")
    parser.add_argument("--map", metavar="MAP", help="what values of masks mean, as VALUE=LABEL,.. or a file")
    parser.add_argument("--void", type=int, nargs="+", metavar="VALUE", help="the values of masks that mean 'no label'")
    parser.add_argument("--palette", metavar="FILE", help="JSON or TOML of '#rrggbb' = label (default: as in training)")
    parser.add_argument("--generated", type=int, metavar="COUNT", help="made-up figures that no training has seen")
    parser.add_argument("--json", action="store_true", help="all figures as JSON on stdout")
    _model(parser, "that of the run's --test-split, or test")


def command() -> int:
    """`main` as a program of its own: `tritoncrf`, or ``torchrun .. -m tritoncrf``."""
    status = main()
    # Only where the command has loaded it: a mistyped flag needs no torch.
    launched = sys.modules.get("tritoncrf.commands.launched")
    return status if launched is None else cast(int, launched.leave(status))


if __name__ == "__main__":
    raise SystemExit(command())
