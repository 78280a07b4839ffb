"""What do a mask's colours and numbers mean? Palettes and label maps, from files or from the command line.

A palette is a JSON or TOML file of ``"#rrggbb" = label``, a label map one of ``"number" = label``, or the text
``number=label,..``. In both 255 stands for no label; in a map ``*`` stands for all other numbers up to 255.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from tritoncrf.datasets import VOID


def read_palette(path: str) -> dict[tuple[int, int, int], int]:
    """Colours and labels from a file. Raises FileNotFoundError or ValueError."""
    found = {}
    for colour, label in _table("palette", path, "'#rrggbb' = label").items():
        try:
            red, green, blue = bytes.fromhex(colour.removeprefix("#"))
        except ValueError:
            raise ValueError(f"palette: expected colours as '#rrggbb' in {path}, got {colour!r}") from None
        found[red, green, blue] = _whole("palette", colour, label, path)
    return found


def read_map(given: str) -> dict[int, int]:
    """Numbers and labels from a text such as ``7=0,8=1,*=255``, or a file. Raises FileNotFoundError or ValueError.

    >>> read_map("255=1")
    {255: 1}
    """
    if is_text(given):
        pairs: dict[str, object] = {}
        for part in given.split(","):
            number, equals, label = (word.strip() for word in part.partition("="))
            if not equals or not (label.isascii() and label.isdigit()):
                raise ValueError(f"map: expected NUMBER=LABEL joined by commas, got {part.strip()!r} in {given!r}")
            if number in pairs:
                raise ValueError(f"map: expected every number once, got {number} twice in {given!r}")
            pairs[number] = int(label)
    else:
        pairs = _table("map", given, "number = label")
    others = pairs.pop("*", None)
    found: dict[int, int] = {} if others is None else dict.fromkeys(range(VOID + 1), _whole("map", "*", others, given))
    for number, meant in pairs.items():
        if not (number.isascii() and number.isdigit()):
            raise ValueError(f"map: expected whole numbers to map, got {number!r} in {given!r}")
        found[int(number)] = _whole("map", number, meant, given)
    return found


def is_text(given: str) -> bool:
    """Whether a map is given as text, and not as a file."""
    return "=" in given and not Path(given).is_file()


def _table(name: str, path: str, form: str) -> dict[str, object]:
    if not Path(path).is_file():
        also = ", or NUMBER=LABEL joined by commas" if name == "map" else ""
        raise FileNotFoundError(f"{name}: expected a JSON or TOML file{also}, got {path}, which does not exist")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        table: object = tomllib.loads(text) if path.endswith(".toml") else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: expected JSON or TOML, got {path}, which is neither: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{name}: expected {form} in {path}, got {type(table).__name__}")
    return {str(key): value for key, value in table.items()}


def _whole(name: str, key: str, label: object, where: str) -> int:
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"{name}: expected a whole number for {key!r} in {where}, got {label!r}")
    return label
