"""What lies on the disk? Nested state as safetensors: written whole or not at all, and never unpickled.

A tree of dicts, lists, tuples, tensors, strings, numbers, booleans and None becomes named tensors plus a JSON skeleton in the
file's metadata, beside the kind of file, the format and the version of the bit contract. The file is written under a
temporary name, synced and renamed, so that a killed process or a full disk leaves the one before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tritoncrf import contract

FORMAT = 1
# Mapping and Sequence, not dict and list, so that a dict of tensors is a tree too.
Tree = Tensor | str | int | float | bool | None | Sequence["Tree"] | Mapping[str, "Tree"] | Mapping[int, "Tree"]


class CheckpointError(ValueError):
    """A file that cannot be read as what it was taken for: truncated, foreign, newer, or of another model."""


def write(path: str | os.PathLike[str], tree: Mapping[str, Tree], *, kind: str) -> None:
    """Writes ``tree`` to ``path``. Raises OSError (nothing changed) if it cannot, TypeError for what a tree cannot hold."""
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(tree, "", tensors)
    metadata = {
        "tritoncrf": kind, "format": str(FORMAT), "contract": str(contract.VERSION), "skeleton": json.dumps(skeleton)
    }  # fmt: skip
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def read(path: str | os.PathLike[str], *, kind: str) -> dict[str, Tree]:
    """The tree that `write` wrote, tensors on the CPU. Raises CheckpointError, or FileNotFoundError if there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a tritoncrf {kind} file, got no file")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("tritoncrf") != kind:
                found = metadata.get("tritoncrf", "a safetensors file that tritoncrf did not write")
                raise CheckpointError(f"{path}: expected a tritoncrf {kind} file, got {found}")
            for what, known in (("format", FORMAT), ("contract", contract.VERSION)):
                if metadata.get(what) != str(known):
                    raise CheckpointError(f"{path}: expected {what} version {known}, got {metadata.get(what)}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tree = _unflatten(json.loads(metadata["skeleton"]), tensors)
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected a whole tritoncrf {kind} file, got a truncated or foreign one ({error})"
        ) from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a tritoncrf {kind} file, got no state in it")
    return {str(name): value for name, value in tree.items()}


def _sync_folder(folder: Path) -> None:
    # Renames are durable once the folder is synced; Windows has no such call.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# A node of the skeleton is [tag, content]: "t" tensor name, "v" plain value, "l" list, "u" tuple, "d"/"i" dict by str/int.
def _flatten(node: Tree, name: str, tensors: dict[str, Tensor]) -> list[object]:
    if isinstance(node, Tensor):
        if name in tensors:
            name = f"{name}~{len(tensors)}"
        tensors[name] = node.detach().cpu().contiguous().clone()
        return ["t", name]
    if isinstance(node, dict):
        tag = "i" if node and all(type(key) is int for key in node) else "d"
        if tag == "d" and not all(isinstance(key, str) for key in node):
            raise TypeError(f"{name or 'state'}: expected keys that are all strings or all integers, got {list(node)[:3]}")
        return [tag, {str(key): _flatten(value, f"{name}.{key}" if name else str(key), tensors) for key, value in node.items()}]
    if isinstance(node, list | tuple):
        parts = [_flatten(value, f"{name}.{place}", tensors) for place, value in enumerate(node)]
        return ["l" if isinstance(node, list) else "u", parts]
    if node is None or isinstance(node, str | int | float | bool):
        return ["v", node]
    raise TypeError(f"{name}: expected tensors, strings, numbers, None, dicts or lists, got {type(node).__name__}")


def _unflatten(node: object, tensors: dict[str, Tensor]) -> Tree:
    if not isinstance(node, list) or len(node) != 2:
        raise KeyError("skeleton")
    tag, content = node
    if tag == "t":
        return tensors[content]
    if tag in ("d", "i"):
        pairs = {key: _unflatten(value, tensors) for key, value in content.items()}
        return {int(key): value for key, value in pairs.items()} if tag == "i" else pairs
    if tag in ("l", "u"):
        parts = [_unflatten(value, tensors) for value in content]
        return parts if tag == "l" else tuple(parts)
    value: str | int | float | bool | None = content
    return value


def tensor(tree: dict[str, Tree], name: str) -> Tensor:
    """The tensor called ``name``. Raises CheckpointError if there is none."""
    value = tree.get(name)
    if not isinstance(value, Tensor):
        raise CheckpointError(f"checkpoint: expected a tensor {name!r}, got {type(value).__name__}")
    return value


def group(tree: dict[str, Tree], name: str) -> dict[str, Tree]:
    """The sub-tree called ``name``. Raises CheckpointError if there is none."""
    value = tree.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint: expected a group {name!r}, got {type(value).__name__}")
    return {str(key): part for key, part in value.items()}


def tensors(tree: dict[str, Tree], name: str) -> dict[str, Tensor]:
    """The group called ``name``, of tensors alone, such as a module's state. Raises CheckpointError otherwise."""
    return {key: tensor({key: part}, key) for key, part in group(tree, name).items()}
