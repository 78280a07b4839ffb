"""What must torch.compile leave alone? Whatever the bit contract covers: a compiler fuses multiply and add, and bits change."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

try:
    from torch._library.opaque_object import register_opaque_type
    from torch._opaque_base import OpaqueBaseMeta
except ImportError:
    register_opaque_type = None  # type: ignore[assignment]
    OpaqueBaseMeta = type  # type: ignore[assignment,misc]

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


class Unopened(OpaqueBaseMeta):
    """The metaclass of classes for `unopened`."""


def unopened(kind: type) -> bool:
    """Lets operators take objects of a class, whose metaclass is `Unopened`, without a compiler looking into them.

    So that a graph carries the object itself, and no table of objects by number is kept. False where this torch cannot.
    """
    if register_opaque_type is None:
        return False
    register_opaque_type(kind, typ="reference")
    return True
