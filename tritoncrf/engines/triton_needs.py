"""Can the Triton engine run here? A device, a release of Triton, and no more labels than registers hold."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re

import torch

from tritoncrf.engines import FEWEST

MAX_LABELS = 64
OLDEST = (3, 6)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def missing(device: torch.device, labels: int = FEWEST, arity: int = 0) -> str | None:
    """Why Triton cannot run on ``device`` with so many labels, and what to do about it."""
    if labels > MAX_LABELS:
        return f"it holds at most {MAX_LABELS} labels in registers and the model has {labels}: use engine='torch'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'tritoncrf[triton]' (Linux; GPU builds of torch bring their own)"
    version = _version()
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        return f"it needs Triton 3.6 or newer and found {version}: pip install -U 'triton>=3.6'"
    if device.type != "cuda" and not _interpreted():
        return f"it needs a GPU and the tensors are on {device}: move model and logits there, or use engine='torch'"
    if device.type != "cuda" and (trouble := uninterpretable(version, importlib.metadata.version("numpy"))):
        return f"{trouble}, or use engine='torch'"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0 or newer and {device} has less: use engine='torch'"
    return None


def uninterpretable(triton: str, numpy: str) -> str | None:
    """What ails Triton's interpreter with this NumPy, and what to do; None: nothing that is known."""
    ours, theirs = (tuple(int(part) for part in re.findall(r"\d+", version)[:2]) for version in (triton, numpy))
    # Up to 3.6 it takes a loop's end with int() from an array of one dimension, which NumPy 2.4 refuses.
    if not ours or ours > (3, 6) or theirs < (2, 4):
        return None
    found = f"Triton {triton} cannot interpret kernels (TRITON_INTERPRET=1) with NumPy {numpy}"
    return f"{found}, though it compiles them for a GPU: pip install 'numpy<2.4'"


def _version() -> str:
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    # Built from source, without metadata: as new as whoever built it wanted.
    return f"{OLDEST[0]}.{OLDEST[1]}"
