"""How does Triton's interpreter spend less on types? They are values: each is made once, and kept.

A third of an interpreted kernel's time went into types of blocks, their shapes as constants and numpy's types, made anew at
every operation. What is computed stays the interpreter's own. A release that makes them otherwise is left alone.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def install() -> None:
    """Keeps types for the rest of this process."""
    from triton.language import core
    from triton.runtime import interpreter

    block = core.block_type(core.int32, [2])
    known = set(vars(core.tensor(None, block))) == {"handle", "shape", "numel", "type", "dtype"}
    if not known or set(vars(block)) != {"element_ty", "shape", "numel", "name"}:
        return
    _keep_blocks(core)
    _keep_shapes(core)
    # `core` looks it up at each call.
    core._unwrap_if_constexpr = _unwrapping(core, core._unwrap_if_constexpr)
    interpreter._get_np_dtype = _keeping(core, interpreter._get_np_dtype)


def _keep_blocks(core: Any) -> None:
    kept: dict[object, Any] = {}
    right = core.block_type.__init__

    def new(cls: Any, element_ty: Any, shape: Any) -> Any:
        sizes = tuple(getattr(size, "value", size) for size in shape)
        # Pointers of one name may point into different spaces.
        key = element_ty.name, getattr(element_ty, "address_space", None), sizes
        found = kept.get(key)
        if found is None:
            found = object.__new__(cls)
            right(found, element_ty, shape)
            kept[key] = found
        return found

    core.block_type.__new__ = staticmethod(new)
    core.block_type.__init__ = lambda self, element_ty, shape: None


def _keep_shapes(core: Any) -> None:
    def constants(shape: Any) -> tuple[Any, Any]:
        # Of the language's own kind of tuple.
        return core.constexpr(math.prod(shape)), core.tuple([core.constexpr(size) for size in shape])

    kept: dict[int, tuple[Any, Any, Any]] = {}
    scalar = constants(())

    def init(self: Any, handle: Any, type: Any) -> None:
        if not type.is_block():
            self.numel, self.shape = scalar
        else:
            # Blocks' types are kept, and with them their places.
            found = kept.get(id(type))
            if found is None or found[2] is not type:
                found = kept[id(type)] = *constants(type.shape), type
            self.numel, self.shape, _ = found
        self.handle, self.type, self.dtype = handle, type, type.scalar

    core.tensor.__init__ = init


def _unwrapping(core: Any, right: Callable[[Any], Any]) -> Callable[[Any], Any]:
    constant, same = core.constexpr, {core.tensor, int, float, bool, str, type(None)}

    def unwrapped(value: Any) -> Any:
        kind = type(value)
        if kind is constant:
            return value.value
        return value if kind in same else right(value)

    return unwrapped


def _keeping(core: Any, right: Callable[[Any], Any]) -> Callable[[Any], Any]:
    kept: dict[tuple[type, str], Any] = {}

    def dtype(kind: Any) -> Any:
        scalar = kind.element_ty if isinstance(kind, core.block_type) else kind
        key = type(scalar), scalar.name
        if key not in kept:
            kept[key] = right(kind)
        return kept[key]

    return dtype
