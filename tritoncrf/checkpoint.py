"""What lies on the disk? Nested state as safetensors: written whole or not at all, never unpickled, and checked when read.

A tree of dicts, lists, tuples, tensors, strings, numbers, booleans and None becomes named tensors plus a JSON skeleton in the
file's metadata, beside the kind of file, the format and the version of the bit contract. The metadata also holds a SHA-256 of
the whole file, taken with zeros in its own place: a file of which any byte changed is refused. Files of format 1, from before
there was one, are read with a warning.

A file is written under a temporary name, synced and renamed, so that a killed process or a full disk leaves the one before it.
Who writes holds a lock on the temporary file; one that nobody holds was left by a killed process, and the next save of the same
name removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tritoncrf import contract

try:
    import fcntl
except ImportError:  # Windows: leftovers stay.
    fcntl = None  # type: ignore[assignment]

FORMAT, UNCHECKED = 2, 1
DIGEST = "0" * 64
CHUNK = 1 << 20
# How often a file is read anew that somebody replaces meanwhile.
TRIES = 100
_FOREIGN = (
    SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError,
)  # fmt: skip
# Mapping and Sequence, not dict and list, so that a dict of tensors is a tree too.
Tree = Tensor | str | int | float | bool | None | Sequence["Tree"] | Mapping[str, "Tree"] | Mapping[int, "Tree"]


class CheckpointError(ValueError):
    """A file that cannot be read as what it was taken for: truncated, foreign, newer, or of another model."""


def write(path: str | os.PathLike[str], tree: Mapping[str, Tree], *, kind: str) -> None:
    """Writes ``tree`` to ``path``. Raises OSError (nothing changed) if it cannot, TypeError for what a tree cannot hold."""
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(tree, "", tensors)
    metadata = {
        "tritoncrf": kind, "format": str(FORMAT), "contract": str(contract.VERSION), "skeleton": json.dumps(skeleton),
        "digest": DIGEST,
    }  # fmt: skip
    # A link is followed; what is there and is no plain file, a pipe or a device, is not for writing over.
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise FileExistsError(f"{path}: expected a file to write, got a link that leads back to itself")
    if target.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path}: expected a new or a plain file to write, got a special one")
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep_up(target)
    content = memoryview(save(tensors, metadata))
    place = _digest_place(bytes(content[: _header_end(content)]))
    digest = hashlib.sha256(content).hexdigest().encode()
    with _temporary(target) as (file, temporary):
        for part in (content[:place], digest, content[place + len(digest) :]):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            # Windows moves no open file.
            file.close()
        os.replace(temporary, target)
    _sync_folder(target.parent)


def read(path: str | os.PathLike[str], *, kind: str) -> dict[str, Tree]:
    """The tree that `write` wrote, tensors on the CPU.

    Raises CheckpointError for a file that is damaged, foreign or newer, FileNotFoundError if there is none. Warns of a file
    from before there were digests, of which nobody can tell whether it is as it was written.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a tritoncrf {kind} file, got no file")
    with believed(path, kind):
        for _ in range(TRIES):
            found = _read(path, kind)
            if found is not None:
                return found
    raise CheckpointError(f"{path}: expected a tritoncrf {kind} file at rest, got one that is written anew all the time")


@contextlib.contextmanager
def believed(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """What a file that somebody else made lets go wrong inside, as one CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _FOREIGN as error:
        stated = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"{path}: expected a whole tritoncrf {kind} file, got a truncated or foreign one ({stated:.200})"
        ) from None


def _read(path: str | os.PathLike[str], kind: str) -> dict[str, Tree] | None:
    """The tree; None if the file was replaced by another meanwhile."""
    with Path(path).open("rb") as handle, safe_open(str(path), framework="pt") as file:
        # While it is held nobody else's file can have its number.
        if not os.path.samestat(os.fstat(handle.fileno()), Path(path).stat()):
            return None
        metadata = file.metadata() or {}
        if metadata.get("tritoncrf") != kind:
            found = metadata.get("tritoncrf", "a safetensors file that tritoncrf did not write")
            raise CheckpointError(f"{path}: expected a tritoncrf {kind} file, got {found}")
        if metadata.get("format") not in (str(FORMAT), str(UNCHECKED)):
            raise CheckpointError(f"{path}: expected format version {FORMAT}, got {metadata.get('format')}")
        # Before anything is believed, and before memory is taken for it.
        _check_digest(path, handle, kind, metadata)
        if metadata.get("contract") != str(contract.VERSION):
            raise CheckpointError(f"{path}: expected contract version {contract.VERSION}, got {metadata.get('contract')}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tree = _unflatten(json.loads(metadata["skeleton"], object_pairs_hook=_distinct), tensors)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a tritoncrf {kind} file, got no state in it")
    return {str(name): value for name, value in tree.items()}


def _check_digest(path: str | os.PathLike[str], file: BinaryIO, kind: str, metadata: Mapping[str, str]) -> None:
    stated = metadata.get("digest")
    if metadata["format"] == str(UNCHECKED) and stated is None:
        stated = f"{path}: a {kind} file from before files had digests: whether it is undamaged cannot be told"
        warnings.warn(stated, stacklevel=5)
        return
    damaged = CheckpointError(f"{path}: expected a tritoncrf {kind} file as it was written, got one that has changed since")
    if metadata["format"] != str(FORMAT) or stated is None or len(stated) != len(DIGEST):
        raise damaged
    start = file.read(8)
    header = start + file.read(_header_end(start) - 8)
    place = _digest_place(header, stated)
    found = hashlib.sha256(header[:place] + DIGEST.encode() + header[place + len(stated) :])
    while part := file.read(CHUNK):
        found.update(part)
    if found.hexdigest() != stated:
        raise damaged


def _header_end(content: bytes | memoryview) -> int:
    """Where a safetensors file's header ends: behind its length, a little-endian uint64, and as many bytes of JSON."""
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def _digest_place(header: bytes, digest: str = DIGEST) -> int:
    """Where the digest's own digits stand."""
    mark = f'"digest":"{digest}"'.encode()
    return header.index(mark) + len(mark) - len(digest) - 1


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside ``target``, locked while it is open; removed if what is done with it fails."""
    while True:
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        with temporary.open("xb") as file:
            try:
                # Whoever sweeps up may have come between opening and locking.
                if not (_lock(file) and temporary.exists()):
                    continue
                yield file, temporary
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            return


def _lock(file: BinaryIO) -> bool:
    """Whether nobody else holds a file, which is then ours until it is closed; true where files cannot be locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems lock nothing.
        return True
    return True


def _sweep_up(target: Path) -> None:
    """Removes the temporary files of killed saves of this name; those that somebody still writes stay."""
    if fcntl is None:
        return
    digits = "[0-9a-f]" * 8
    for left in target.parent.glob(f"{_literal(target.name)}.{digits}.part"):
        if left.is_symlink() or not left.is_file():
            continue
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


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
        while name in tensors:
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
    """The tree of a skeleton. Takes each tensor out of ``tensors``, for none stands in two places."""
    if not isinstance(node, list) or len(node) != 2:
        raise ValueError(f"a skeleton of pairs, got {node!r:.80}")
    tag, content = node
    if tag == "t":
        return tensors.pop(content)
    if tag in ("d", "i") and isinstance(content, dict):
        pairs = {key: _unflatten(value, tensors) for key, value in content.items()}
        if tag == "d":
            return pairs
        if any(str(int(key)) != key for key in pairs):
            raise ValueError(f"keys that are integers, got {list(pairs)[:3]}")
        return {int(key): value for key, value in pairs.items()}
    if tag in ("l", "u") and isinstance(content, list):
        parts = [_unflatten(value, tensors) for value in content]
        return parts if tag == "l" else tuple(parts)
    if tag == "v" and (content is None or isinstance(content, str | int | float)):
        return content
    raise ValueError(f"a skeleton of known nodes, got {node!r:.80}")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"distinct keys, got some twice among {[key for key, _ in pairs][:5]}")
    return found


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
