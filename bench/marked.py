"""Which part of a page is made by a command? What stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""

from __future__ import annotations

from pathlib import Path

GPU = Path(__file__).parent.parent / "docs" / "gpu.md"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def read(page: Path, name: str) -> list[str]:
    """The lines between the marks; raises ValueError without them."""
    begin, end = _marks(name)
    before, found, rest = page.read_text().partition(begin)
    inner, closed, _ = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page.name}: expected {begin} and {end}, got {before.count('<!--')} other marks")
    return inner.strip("\n").splitlines()


def write(page: Path, name: str, lines: list[str]) -> None:
    """Puts lines between the marks; raises ValueError without them, and writes nothing then."""
    read(page, name)
    begin, end = _marks(name)
    text = page.read_text()
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    page.write_text("\n".join([before, "", *lines, "", after]))
