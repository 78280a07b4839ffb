"""Which neighbourhood does an expression such as ``grid:24:8+grid:1`` name?

Parts joined by ``+`` are united; each is ``name:number[:number..]`` with the numbers of `Neighborhood`'s method of that name,
and ``3d`` behind the name for volumes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tritoncrf.lattice import Neighborhood

# Each form's maker with the least and the most numbers that it takes.
_FORMS: dict[str, tuple[Callable[..., Neighborhood], int, int, str]] = {
    "nearest": (Neighborhood.nearest, 1, 1, "nearest:COUNT"),
    "grid": (Neighborhood.grid, 1, 2, "grid:REACH[:STEP]"),
    "nearest3d": (partial(Neighborhood.nearest, ndim=3), 1, 1, "nearest3d:COUNT"),
    "grid3d": (partial(Neighborhood.grid, ndim=3), 1, 2, "grid3d:REACH[:STEP]"),
    "rays": (Neighborhood.rays, 1, 2, "rays:REACH[:COUNT]"),
    "log_polar": (Neighborhood.log_polar, 1, 3, "log_polar:REACH[:RINGS[:DIRECTIONS]]"),
}


def parse(text: str) -> Neighborhood:
    """The neighbourhood that an expression names, in the order of its parts.

    Raises ValueError naming the part that is no form, or has a wrong number.

    >>> parse("grid:24:8+grid:1+grid:2:2")
    Neighborhood(32 classes, 64 neighbours, reach (24, 24))
    """
    parts = [_part(part.strip(), text) for part in text.split("+")]
    found = parts[0]
    for part in parts[1:]:
        if part.ndim != found.ndim:
            raise ValueError(f"neighborhood: expected parts all for images or all for volumes, got {text!r}")
        found = found | part
    return found


def _part(part: str, text: str) -> Neighborhood:
    name, *words = part.split(":")
    if name not in _FORMS:
        forms = ", ".join(form for *_, form in _FORMS.values())
        raise ValueError(f"neighborhood: expected parts {forms} joined by +, got {part!r} in {text!r}")
    make, least, most, form = _FORMS[name]
    if not least <= len(words) <= most or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"neighborhood: expected {form} with whole numbers, got {part!r} in {text!r}")
    try:
        return make(*map(int, words))
    except ValueError as error:
        raise ValueError(f"neighborhood: {part!r} in {text!r}: {error}") from None
