"""``python -m bench.paper --preset P --out DIR [--data FOLDER] [--rows ...] [--seeds N] [--minutes M] [--resume]``"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from bench.paper import __doc__ as about
from bench.paper.methods import METHODS
from bench.paper.presets import PRESETS
from bench.paper.problem import prepare
from bench.paper.run import add_rows, claim, make, rows_of, slice_of
from tritoncrf import networks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=(about or "").splitlines()[0])
    parser.add_argument("--preset", required=True, help=", ".join(PRESETS))
    parser.add_argument("--out", type=Path, required=True, help="a folder of this run's own: models, logs and rows")
    parser.add_argument("--data", type=Path, help="the folder of the archives; toy needs none")
    parser.add_argument("--rows", nargs="+", help=f"by default, what the preset is for; {', '.join(METHODS)}")
    parser.add_argument("--splits", nargs="+", help="some of the preset's splits or folds; the first by default")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after so long; --resume goes on")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"bench.paper: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.paper: stopped; what was learned is saved, and --resume goes on", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {options.preset!r}")
    preset = PRESETS[options.preset]
    options.rows = options.rows or list(preset.rows or METHODS)
    for row in options.rows:
        if row not in METHODS:
            raise ValueError(f"rows: expected some of {', '.join(METHODS)}, got {row!r}")
    splits = options.splits or preset.splits[:1]
    for split in splits:
        if split not in preset.splits:
            raise ValueError(f"splits: expected some of {', '.join(preset.splits)} for preset {preset.name!r}, got {split!r}")
    if preset.file is not None and options.data is not None and not (options.data / preset.file).is_file():
        raise FileNotFoundError(f"data: expected a folder that holds {preset.file}, got {options.data}")
    if options.minutes is not None and options.minutes <= 0:
        raise ValueError(f"minutes: expected a positive number, got {options.minutes}")
    # What a network needs is asked for before anything is written.
    networks.build(preset.network, 1, 2)
    claim(options.out, preset, options.resume)
    torch.set_num_threads(options.threads)
    with slice_of(options.minutes):
        for seed in range(options.seed, options.seed + options.seeds):
            for split in splits:
                _rows(options, split, seed)
    return 0


def _rows(options: argparse.Namespace, split: str, seed: int) -> None:
    preset = PRESETS[options.preset]
    work = options.out / f"{split}_{seed}"
    file = options.out / f"{preset.name}_{split}_{seed}.json"
    if not set(options.rows) - {row["name"] for row in rows_of(file)}:
        return
    problem = prepare(preset, split, seed, options.data, work, torch.device(options.device))
    for name in options.rows:
        if name in {row["name"] for row in rows_of(file)}:
            continue
        row = make(name, problem, work / name)
        # The file is read again: another process may have added rows of its own meanwhile.
        add_rows(file, [row], indent=None)
        print(json.dumps({key: value for key, value in row.items() if not key.startswith("per_")}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
