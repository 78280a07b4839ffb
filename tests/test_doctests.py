"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import tritoncrf as tc

PACKAGE = Path(tc.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text() and "engines" not in path.parts and "kernels" not in path.parts
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    public = {part: getattr(tc, part) for part in tc.__all__} | {"torch": torch, "tc": tc}
    found = doctest.testmod(importlib.import_module(name), extraglobs=public, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0
