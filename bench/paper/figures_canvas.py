"""Where is drawn? On a matplotlib figure of its own, made when one is asked for, written to a folder that exists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches. Raises ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib: expected it to be installed for figures: pip install "tritoncrf[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG that is the same for the same drawing. Raises FileNotFoundError if the folder does not exist."""
    if not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {os.fspath(path)}")
    drawn.savefig(path, dpi=130, metadata={"Software": None})
