"""What does a compiled kernel say? PTX text as instructions, in blocks that only their last instruction leaves or pauses at."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LEAVES = re.compile(r"bra|ret")
# Where programs that run together may take turns: behind a barrier, and behind what others of them can see at once.
PAUSES = re.compile(r"bar\.|atom\.|red\.|(ld|st)\..*(relaxed|acquire|release)")


class Unknown(Exception):
    """An instruction outside of the subset that the kernels use."""


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    predicate: str
    """The register that says for which threads it holds, "" for all."""
    negated: bool
    text: str
    line: str
    """Of the source, file:number."""

    def unknown(self) -> Unknown:
        return Unknown(f"instruction: expected one of the subset that the emulator knows, got '{self.text}' ({self.line})")


@dataclass
class Kernel:
    name: str
    threads: int
    parameters: list[str] = field(default_factory=list)
    """Their types, in order."""
    blocks: list[list[Instruction]] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    """Which block a label stands before."""


def operands(text: str) -> tuple[str, ...]:
    """Split at commas outside of brackets and braces."""
    return tuple(part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip())


def words(group: str) -> list[str]:
    """The registers of ``{a, b}``, or the one that stands alone."""
    return [part.strip() for part in group.strip("{} ").split(",")]


def parse(text: str) -> Kernel:
    """Raises Unknown where a line is neither an instruction nor a directive without effect."""
    head, _, body = text.partition("\n{\n")
    name = re.search(r"\.entry\s+(\w+)", head)
    threads = re.search(r"\.reqntid\s+(\d+)", head)
    if not body or name is None or threads is None:
        raise Unknown("kernel: expected one entry with .reqntid and a body, got none")
    kernel = Kernel(name[1], int(threads[1]), re.findall(r"\.param \.(\w+)[^,)]*_param_\d+", head), [[]])
    files = {number: path.rpartition("/")[2] for number, path in re.findall(r'^\s*\.file\s+(\d+) .*?"([^"]*)"\s*$', text, re.M)}
    line = ""
    for raw in body.partition("\n}")[0].splitlines():
        stripped = raw.partition("//")[0].strip()
        place = re.match(r"\.loc\s+(\d+) (\d+)", stripped)
        if place:
            line = f"{files.get(place[1], place[1])}:{place[2]}"
        elif stripped.endswith(":"):
            kernel.blocks.append([])
            kernel.starts[stripped[:-1]] = len(kernel.blocks) - 1
        elif stripped and not re.match(r"\.(reg|pragma)\b", stripped):
            kernel.blocks[-1].append(_instruction(stripped, line))
            if LEAVES.match(kernel.blocks[-1][-1].opcode) or PAUSES.match(kernel.blocks[-1][-1].opcode):
                kernel.blocks.append([])
    return kernel


def _instruction(text: str, line: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*);", text)
    if found is None:
        raise Unknown(f"instruction: expected an opcode and its operands, got '{text}' ({line})")
    return Instruction(found[3], operands(found[4]), found[2] or "", bool(found[1]), text, line)
