"""How long does compiled code last? Functions compiled with one set of options, and kept on disk until any source changes.

Numba's own cache knows the file that a function stands in. Here a function holds the code of those that it calls, in whichever
file. A cache that cannot be read or written, a full disk or a damaged file, costs a compilation and a warning, no more.
"""

# mypy: disable-error-code="import-untyped, no-untyped-call, unused-ignore"

from __future__ import annotations

import contextlib
import hashlib
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as nb
from numba.core.caching import FunctionCache

from tritoncrf import contract

Function = TypeVar("Function", bound=Callable[..., Any])
_FILES = [*sorted(Path(__file__).parent.glob("numba_*.py")), Path(contract.__file__)]
# A compiled function holds the code of those that it calls, in whichever file: a change of any of them must miss the cache.
_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()
_noted = _warned = False
# Its types differ from release to release.
_njit: Any = nb.njit
_OPTIONS = {"error_model": "numpy", "nogil": True, "boundscheck": False}


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's, for which a damaged file or a full disk is no reason not to compile."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), _SOURCES)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        global _noted
        found = None
        try:
            found = super().load_overload(sig, target_context)
        # An index or code that is damaged can raise anything when it is unpickled.
        except Exception as error:
            self._warn(error)
            with contextlib.suppress(OSError):
                self.flush()
        if found is None and not _noted:
            _noted = True
            print("tritoncrf: compiling the numba engine, once for this machine (about 20 s)", file=sys.stderr)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        global _warned
        if not _warned:
            _warned = True
            reason = str(error) or type(error).__name__
            warnings.warn(
                f"engine: the numba engine's cache in {self.cache_path} cannot be used ({reason}): what it lacks is compiled in "
                "this process; NUMBA_CACHE_DIR names another place",
                stacklevel=2,
            )


def jit(function: Function) -> Function:
    """A function compiled into those that call it: numpy's arithmetic, no fast-math, the interpreter released."""
    return cast(Function, _njit(**_OPTIONS, forceinline=True)(function))


def call(function: Function) -> Function:
    """`jit` by a call: a loop of its own needs registers of its own."""
    return cast(Function, _njit(**_OPTIONS)(function))


def entry_point(function: Function) -> Function:
    """`call` kept on disk: beside this file, or where NUMBA_CACHE_DIR says; compiled anew where neither can be written."""
    compiled: Any = call(function)
    with contextlib.suppress(RuntimeError, OSError):
        compiled._cache = _Cache(function)
    return cast(Function, compiled)
