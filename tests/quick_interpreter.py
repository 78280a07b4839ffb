"""How does Triton's interpreter spend less on what it need not do? Each type is made once; the language stays patched.

Of an interpreted kernel's time a third went into types of blocks, their shapes as constants and numpy's types, made anew at
every operation; of the rest a quarter into sums that are asked whether they overflow, where the answer is thrown away, a fifth
into patching the language again at every call of one function by another, and a quarter into asking what two operands' types
make of them, numbers made into blocks among it. What is computed stays the interpreter's own. A release that makes these
otherwise is left alone.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# Constant blocks that are kept.
MOST = 10_000


def install() -> None:
    """Keeps types for the rest of this process."""
    from triton.language import core, semantic
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
    kind = getattr(semantic, "TritonSemantic", None)
    if hasattr(kind, "binary_op_sanitize_overflow_impl"):
        _skip_unread_overflows(kind)
    if hasattr(kind, "broadcast_impl_value"):
        _pass_equal_blocks(kind)
    if hasattr(kind, "binary_op_type_checking_impl"):
        _check_once(core, kind)
    if {"_patch_attr", "_LangPatchScope", "interpreter_semantic"} <= vars(interpreter).keys():
        _call_at_once(core, interpreter)
    if hasattr(interpreter, "_LangPatchScope") and hasattr(interpreter, "_patch_lang"):
        _patch_once(core, interpreter)


def _keep_blocks(core: Any) -> None:
    kept: dict[object, Any] = {}
    shapes: dict[object, Any] = {}
    right = core.block_type.__init__

    def new(cls: Any, element_ty: Any, shape: Any) -> Any:
        sizes = tuple(getattr(size, "value", size) for size in shape)
        # Pointers of one name may point into different spaces.
        key = element_ty.name, getattr(element_ty, "address_space", None), sizes
        found = kept.get(key)
        if found is None:
            found = object.__new__(cls)
            right(found, element_ty, shape)
            found.shape = shapes.setdefault(sizes, found.shape)
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
    constant = core.constexpr
    same = {core.tensor, core.dtype, core.block_type, core.pointer_type, int, float, bool, str, type(None)}

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


def _skip_unread_overflows(kind: Any) -> None:
    right = kind.binary_op_sanitize_overflow_impl

    def sanitized(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        # Its last step, an assertion on the device, does nothing else.
        if self.builder.options.debug:
            right(self, lhs, rhs, operation)

    kind.binary_op_sanitize_overflow_impl = sanitized


def _pass_equal_blocks(kind: Any) -> None:
    right = kind.broadcast_impl_value
    # What a block's and a scalar's types make of the scalar, by their places.
    kept: dict[tuple[int, int], tuple[Any, Any, Any]] = {}

    def spread(self: Any, block: Any, scalar: Any) -> Any:
        found = kept.get((id(block.type), id(scalar.type)))
        if found is None or found[0] is not block.type or found[1] is not scalar.type:
            found = block.type, scalar.type, block.type.with_element_ty(scalar.type.scalar)
            kept[id(block.type), id(scalar.type)] = found
        return self.tensor(self.builder.create_splat(found[2], scalar.handle), found[2])

    def broadcast(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        # Of kept types: blocks of one type have one shape, whose tuple is kept too.
        one, other = lhs.type, rhs.type
        if one is other:
            return lhs, rhs
        if one.is_block():
            if not other.is_block():
                return lhs, spread(self, lhs, rhs)
            if one.shape is other.shape:
                return lhs, rhs
        elif other.is_block():
            return spread(self, rhs, lhs), rhs
        found: tuple[Any, Any] = right(self, lhs, rhs)
        return found

    kind.broadcast_impl_value = broadcast


def _check_once(core: Any, semantics: Any) -> None:
    """Operands of types that are not cast are not cast again; a number beside a block becomes the same constant block again."""
    right, tensor = semantics.binary_op_type_checking_impl, core.tensor
    # By types' places, of which those of blocks and of the language's scalars stay; types, to see that others do not.
    passed: dict[tuple[object, ...], tuple[Any, Any]] = {}
    constants: dict[tuple[object, ...], tuple[Any, Any]] = {}

    def checked(self: Any, lhs: Any, rhs: Any, *how: bool, **named: bool) -> tuple[Any, Any]:
        one, other = type(lhs), type(rhs)
        if one is tensor and other is tensor:
            key: tuple[object, ...] = id(lhs.type), id(rhs.type), how, *named.items()
            found = passed.get(key)
            if found is not None and found[0] is lhs.type and found[1] is rhs.type:
                made: tuple[Any, Any] = self.broadcast_impl_value(lhs, rhs)
                return made
            made = right(self, lhs, rhs, *how, **named)
            if all(after.type.scalar is before.type.scalar for after, before in zip(made, (lhs, rhs), strict=True)):
                passed[key] = lhs.type, rhs.type
            return made
        block, number = (lhs, rhs) if one is tensor else (rhs, lhs)
        kind = type(number)
        # 0.0 and -0.0 are equal, and NaN is not.
        if type(block) is not tensor or not (kind is int or (kind is float and abs(number) > 0)):
            made = right(self, lhs, rhs, *how, **named)
            return made
        key = one is tensor, id(block.type), number, kind, how, *named.items()
        found = constants.get(key)
        if found is not None and found[0] is block.type:
            return (block, found[1]) if one is tensor else (found[1], block)
        made = right(self, lhs, rhs, *how, **named)
        whole, constant = made if one is tensor else made[::-1]
        if whole is block:
            keep(key, block.type, constant)
        return made

    def keep(key: tuple[object, ...], beside: Any, constant: Any) -> None:
        if len(constants) > MOST:
            constants.clear()
        # Who writes to it fails.
        constant.handle.data.flags.writeable = False
        constants[key] = beside, constant

    semantics.binary_op_type_checking_impl = checked


def _call_at_once(core: Any, interpreter: Any) -> None:
    """A patched function of the language is called without the one around it, which asks whether it was patched."""
    asks = core.builtin(len).__code__

    def patch(place: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        inner = member.__wrapped__ if getattr(member, "__code__", None) is asks else member
        semantic = interpreter.interpreter_semantic

        def called(*values: Any, **named: Any) -> Any:
            named["_semantic"] = semantic
            return inner(*values, **named)

        scope.set_attr(place, name, called)

    interpreter._patch_attr = patch


def _patch_once(core: Any, interpreter: Any) -> None:
    """A launch patches the language and restores it; a function that it calls finds it patched."""
    right, current = interpreter._patch_lang, list[frozenset[str]]()

    def languages(function: Any) -> frozenset[str]:
        places = {"language": interpreter.tl, "core": core}
        return frozenset(name for name, place in places.items() if any(v is place for v in function.__globals__.values()))

    kept: dict[int, tuple[Any, frozenset[str]]] = {}

    def patch(function: Any) -> Any:
        if id(function) not in kept:
            kept[id(function)] = function, languages(function)
        needed = kept[id(function)][1]
        # One that sees no language is refused, as ever.
        if current and needed and needed <= current[-1]:
            return interpreter._LangPatchScope()
        scope = right(function)
        if current:
            # As ever, what a called function patches nobody restores.
            current[-1] |= needed
            return scope
        current.append(needed)
        restore = scope.restore

        def restored() -> None:
            current.clear()
            restore()

        scope.restore = restored
        return scope

    interpreter._patch_lang = patch
