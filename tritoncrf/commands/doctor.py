"""Does it work here? `tritoncrf doctor`: versions, devices, engines, and a check that samples are exact.

The check lists all 729 labellings of a 2 x 3 lattice with 3 labels, joined by every offset that fits in it, and compares
their probabilities with how often chains come upon them. Listing uses nothing of the library's.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tritoncrf import contract, engines
from tritoncrf._version import VERSION
from tritoncrf.engines.triton import uninterpretable
from tritoncrf.grid_crf import GridCRF
from tritoncrf.lattice import Neighborhood
from tritoncrf.sampler import Sampler

_SHAPE, _LABELS = (2, 3), 3
_OFFSETS = ((0, 1), (0, 2), (1, -2), (1, -1), (1, 0), (1, 1), (1, 2))
_CHAINS, _SWEEPS = 49152, 16
# A perfect sampler's chi-square is larger than this once in a million.
_P = 1e-6


def run(arguments: argparse.Namespace) -> int:
    """Prints what is there; 1 if an engine that is ready draws inexact samples."""
    _row("tritoncrf", f"{VERSION}, bit contract {contract.VERSION}")
    _row("python", f"{platform.python_version()} ({sys.executable})")
    _row("platform", f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in torch")
    _row("torch", str(torch.__version__))
    for package in ("triton", "numba", "numpy", "safetensors", "matplotlib"):
        _row(package, _version(package))
    if trouble := uninterpretable(_version("triton"), _version("numpy")):
        _row("", trouble)
    devices = [torch.device("cpu"), *(torch.device("cuda", place) for place in range(torch.cuda.device_count()))]
    good = True
    for device in devices:
        name = platform.processor() or platform.machine()
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        _row(str(device), name)
        for engine, state in engines.report(device).items():
            _row(f"  {engine}", state)
            if state == "ready":
                good = _check(engine, device) and good
                if engine == "triton":
                    _warm(device)
    home = Path.home()
    for name, folder in (
        ("triton cache", Path(os.environ.get("TRITON_CACHE_DIR", home / ".triton" / "cache"))),
        ("torch cache", Path(torch.hub.get_dir())),
    ):
        _row(name, _size(folder))
    print("all is well" if good else "an engine fails or is not exact: please report this, with the lines above")
    return 0 if good else 1


def _row(name: str, text: str) -> None:
    print(f"{name:14} {text}", flush=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return f"none ({folder})"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{sum(path.stat().st_size for path in files) / 2**20:.1f} MiB in {len(files)} files ({folder})"


def _check(engine: str, device: torch.device) -> bool:
    started = time.perf_counter()
    try:
        chi, freedom, apart, limit = exactness(engine, device)
    except Exception as error:  # whatever an engine dies of is what the doctor is asked for
        _row("", f"FAILS: {type(error).__name__}: {' '.join(str(error).split())}")
        return False
    p = _tail(chi, freedom)
    verdict = "exact" if p > _P and apart < limit else "NOT EXACT"
    _row("", f"{verdict}: {_CHAINS} chains against all 729 labellings: chi-square {chi:.1f} at {freedom} degrees, p = {p:.2g} "
         f"(must exceed {_P:g}); largest error of a marginal {apart:.4f} (must stay below {limit:.4f}); "
         f"{time.perf_counter() - started:.1f} s")  # fmt: skip
    return verdict == "exact"


def _warm(device: torch.device) -> None:
    """Compiles what first sweeps of 20 labels need, for few images and for many, and says how long each kernel took."""
    if device.type != "cuda":
        _row("", "nothing to compile: the kernels are interpreted")
        return
    # Triton comes with GPU builds of torch alone.
    knobs = importlib.import_module("triton.knobs")
    seconds: dict[str, float] = {}

    def note(*, src: Any, metadata: object, metadata_group: object, times: Any, cache_hit: bool) -> None:
        seconds[src.name] = seconds.get(src.name, 0.0) + (0.0 if cache_hit else times.total / 1e6)

    kept, knobs.compilation.listener = knobs.compilation.listener, note
    try:
        sweep_all(device)
    finally:
        knobs.compilation.listener = kept
    times = ", ".join(f"{name} {spent:.1f} s" if spent else f"{name} cached" for name, spent in seconds.items())
    _row("", f"compiled: {times or 'nothing new'}")


def sweep_all(device: torch.device, labels: int = 20, many: int = 128) -> None:
    """A sweep by each update, on one image and on ``many``, conditionals and pair counts, with the Triton engine."""
    crf = GridCRF(labels, Neighborhood.nearest(8)).to(device)
    for images in (1, many):
        for update in ("gather", "incremental"):
            sampler = Sampler(crf, engine="triton", update=update)
            chains = sampler.init(torch.zeros(images, labels, 8, 8, device=device))
            sampler.run(chains, 1)
            sampler.conditionals(chains, torch.zeros((*chains.plan.free.shape, labels), dtype=torch.float64, device=device))
            sampler.pair_counts(chains)


def exactness(engine: str, device: torch.device, fault: float = 0.0) -> tuple[float, int, float, float]:
    """Chi-square, its degrees of freedom, the largest marginal error, and 6 standard errors of a marginal.

    fault: added to one table entry of the sampler's model alone, to see that the check finds it.
    """
    generator = torch.Generator().manual_seed(20160505)
    logits = _on_grid(torch.randn(1, _LABELS, *_SHAPE, generator=generator) * 0.5)
    tables = _on_grid(torch.randn(len(_OFFSETS), _LABELS, _LABELS, generator=generator) * 0.3)
    labellings, p = _enumerate(logits[0].double().flatten(1), tables.double())

    tables[0, 0, 1] += fault
    crf = GridCRF(_LABELS, Neighborhood.from_offsets(_OFFSETS), tables).to(device)
    sampler = Sampler(crf, engine=engine, seed=1)
    chains = sampler.init(logits.to(device), replicas=_CHAINS)
    found = sampler.run(chains, _SWEEPS).labels[0].flatten(1).cpu().long()

    powers = _LABELS ** torch.arange(found.shape[1] - 1, -1, -1)
    counts = torch.bincount((found * powers).sum(1), minlength=len(p)).double()
    order = p.argsort()
    expected, seen = _pool(p[order] * _CHAINS, counts[order])
    chi = float(((seen - expected) ** 2 / expected).sum())
    errors = []
    for label in range(_LABELS):
        marginal = (labellings == label).double().T @ p
        errors.append(float(((found == label).double().mean(0) - marginal).abs().max()))
    return chi, len(expected) - 1, max(errors), 6 * 0.5 / math.sqrt(_CHAINS)


def _on_grid(values: Tensor) -> Tensor:
    """Multiples of 2^-12, which the contract's rounding leaves alone."""
    return torch.floor(values * 4096 + 0.5) / 4096


def _enumerate(logits: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """All labellings ``[M, sites]``, the first site as the highest digit, and their probabilities."""
    height, width = _SHAPE
    labellings = torch.tensor(list(itertools.product(range(_LABELS), repeat=height * width)))
    energy = torch.zeros(len(labellings), dtype=torch.float64)
    for y, x in itertools.product(range(height), range(width)):
        site = y * width + x
        energy -= logits[labellings[:, site], site]
        for c, (dy, dx) in enumerate(_OFFSETS):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                energy += tables[c, labellings[:, site], labellings[:, site + dy * width + dx]]
    return labellings, (-energy).softmax(0)


def _pool(expected: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Cells of growing expectation joined until each expects 5."""
    pairs: list[tuple[float, float]] = []
    e = n = 0.0
    for expect, count in zip(expected.tolist(), counts.tolist(), strict=True):
        e, n = e + expect, n + count
        if e >= 5:
            pairs.append((e, n))
            e = n = 0.0
    if e and pairs:
        pairs[-1] = (pairs[-1][0] + e, pairs[-1][1] + n)
    table = torch.tensor(pairs, dtype=torch.float64)
    return table[:, 0], table[:, 1]


def _tail(chi: float, freedom: int) -> float:
    """The chance of a larger chi-square (exactly: the regularised upper incomplete gamma function)."""
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(chi / 2, dtype=torch.float64)))
