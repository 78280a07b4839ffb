"""How do docstrings look on the site? Examples as code, and arguments that a sentence tells one after the other as a list.

Markdown would take ``>>>`` for a quotation in a quotation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

# From a prompt to the next empty line or the end: the example and what it prints.
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
# Sentences about a call as a whole, which follow its arguments.
WHOLE = re.compile(r"(?<=[.)]) +(?=(?:Raises|Returns|Warns|Waits) )")


# Between code spans: a shape such as [N, *shape] would begin an emphasis.
STAR = re.compile(r"(`+[^`]*`+)|\*(?=\w)")


def starred(text: str) -> str:
    """The text with the stars of shapes as they are."""
    return STAR.sub(lambda found: found[1] or "\\*", text)


def fenced(text: str) -> str:
    """The text with each run of examples in a fence."""
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)


def listed(text: str, names: list[str]) -> str:
    """The text whose paragraphs ``name: what it is; other: ..`` are lists, where they begin with an argument."""
    if not names:
        return text
    one = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    start = re.compile(rf"(?:^|(?<=[.;)])\s+)((?:{one})(?:, (?:{one}))*): ")
    return "\n\n".join(_items(part, start) if start.match(part) else part for part in text.split("\n\n"))


def _items(paragraph: str, start: re.Pattern[str]) -> str:
    _, *parts = start.split(" ".join(paragraph.split()))
    lines, after = [], []
    for name, said in zip(parts[::2], parts[1::2], strict=True):
        own, *rest = WHOLE.split(said.strip(), maxsplit=1)
        lines.append(f"- `{name}`: {own.rstrip(';')}")
        after += rest
    return "\n".join(lines) + "".join(f"\n\n{rest}" for rest in after)


def arguments(obj: griffe.Object) -> list[str]:
    """Names of what a function, or a class's constructor, takes; of a class without one, such as a dataclass, its fields."""
    if obj.is_class and "__init__" not in obj.members:
        return [name for name, member in obj.members.items() if member.is_attribute]
    maker = obj.members["__init__"] if obj.is_class else obj
    return [own.name for own in getattr(maker, "parameters", ()) if own.name != "self"]


def objects(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            yield from objects(member)


class Docstrings(griffe.Extension):
    """Changes every docstring of a package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for obj in objects(pkg):
            if obj.docstring is not None:
                obj.docstring.value = listed(fenced(starred(obj.docstring.value)), arguments(obj))
