"""Does it fit? What a file or an option claims to hold, against this machine's memory, before any of it is taken.

A system that promises memory which it does not have kills a process that takes it at its word, without a sentence.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Final

# What reading an array out of a damaged archive can raise.
FAILURES: Final = (
    OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def memory() -> int | None:
    """Bytes of this machine's memory, None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def check(what: str, claimed: int) -> None:
    """Raises ValueError if ``what`` claims more bytes than there are."""
    there = memory()
    if there is not None and claimed > there:
        raise ValueError(f"{what}: expected at most {_text(there)}, this machine's memory, got {_text(claimed)}")


def check_member(archive: zipfile.ZipFile | None, what: str, key: str) -> None:
    """As `check`, of an archive's array ``key``, unpacked."""
    if archive is not None and f"{key}.npy" in archive.namelist():
        check(what, archive.getinfo(f"{key}.npy").file_size)


def _text(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"
