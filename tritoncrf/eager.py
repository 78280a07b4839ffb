"""What must torch.compile leave alone? Whatever the bit contract covers: a compiler fuses multiply and add, and bits change."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """The function, run as it stands also inside of a compiled one.

    `torch.compiler.disable` as a plain decorator would import the whole compiler, seconds of it, for users who never compile.
    """
    guarded: list[Callable[P, T]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not guarded:
            guarded.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return guarded[0](*args, **kwargs)

    return call
