"""What does a site cost in instructions? Regions of a kernel's machine code, read from a listing of NVIDIA's or AMD's.

A region is a loop (the code between a label and a jump back to it) or the whole kernel, without the loops inside of it. Those
that matter are known by what they hold: random numbers (the high halves of Philox's products), a draw (the products of the
power's polynomial), a neighbour's row (a label's byte is loaded, and then 8 or 16 bytes at once; added as float32, or packed as
whole numbers), a neighbour whose bound a flip raises (an atomic addition that returns nothing). A lane holds a site, so
instructions of a lane are instructions of a site; where the compiler unrolled, they are divided among the turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

FLOAT = re.compile(r"^(?:F(ADD|MUL|FMA|MNMX|SETP|SEL|SET|RND|CHK)|v_(pk_)?\w+_f32)")
MEMORY = re.compile(r"^(?:(LD|ST)(G|S|L|C|SM)?\b|ATOM|RED|(global|flat|ds|buffer|scratch)_|s_load)")
OTHER = re.compile(r"^(?:BRA|BSSY|BSYNC|EXIT|BAR|CALL|RET|WARPSYNC|DEPBAR|U[A-Z]|R2UR|S2|s_(?!load))")
HIGH = re.compile(r"IMAD\.(HI|WIDE)\S*U32.*0x(2daee0ad|326172a9)|v_mul_hi_u32")
PRODUCT = re.compile(r"FMUL|v_(pk_)?mul_f32")
BYTE = re.compile(r"LDG\S*\.U8|global_load_ubyte|buffer_load_ubyte")
ADDED = re.compile(r"^(F|v_(pk_)?)(ADD|add_f32)")
ATOMIC = re.compile(r"^RED\S*\.ADD\.(?!64)|(global|buffer|flat)_atomic_add(_u32)?\b(?!.*(glc|sc0))")
WIDE = re.compile(r"LDG\.E(?:\.\w+)*?\.(128|64)|load_dwordx([24])")
# High halves of products in one draw of random numbers.
PHILOX = 20


@dataclass
class Region:
    """A loop, or the kernel: its own instructions, and the loops right inside of it."""

    first: int
    last: int
    own: list[str] = field(default_factory=list)
    inner: list[Region] = field(default_factory=list)

    def count(self, pattern: re.Pattern[str]) -> int:
        return sum(pattern.search(line) is not None for line in self.own)

    def walk(self) -> list[Region]:
        return [self, *(region for child in self.inner for region in child.walk())]


def regions(listing: str) -> Region:
    """The kernel of a listing, one instruction a line, labels of their own."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for text in listing.splitlines():
        label = re.match(r"\s*(\.L\w+):", text)
        if label:
            labels[label[1]] = len(lines)
            continue
        nvidia = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", text)
        amd = re.match(r"\s+((?:[vs]|global|ds|buffer|flat|scratch)_\w+.*)", text)
        found = nvidia or amd
        if found and not found[1].startswith("NOP"):
            lines.append(re.sub(r"^@!?U?P\w+\s+", "", found[1]))
    root = Region(0, len(lines))
    loops = []
    for place, line in enumerate(lines):
        target = re.search(r"\b(?:BRA|s_c?branch\w*)\b.*?(\.L\w+)", line)
        start = labels.get(target[1]) if target else None
        if start is not None and start < place:
            loops.append(Region(start, place + 1))
    # Several jumps back to one label are one loop; a jump to itself closes the listing.
    widest = {loop.first: loop for loop in sorted(loops, key=lambda loop: loop.last) if loop.last - loop.first > 2}
    stack = [root]
    for loop in sorted(widest.values(), key=lambda loop: (loop.first, -loop.last)):
        while loop.first >= stack[-1].last:
            stack.pop()
        stack[-1].inner.append(loop)
        stack.append(loop)
    for region in root.walk():
        covered = {place for child in region.inner for place in range(child.first, child.last)}
        region.own = [lines[place] for place in range(region.first, region.last) if place not in covered]
    return root


def _most(found: list[Region], measure: Callable[[Region], float]) -> Region | None:
    best = max(found, key=measure, default=None)
    return best if best is not None and measure(best) > 0 else None


def _bytes(region: Region) -> int:
    widths = [match for match in map(WIDE.search, region.own) if match]
    return sum(int(match[1]) // 8 if match[1] else 4 * int(match[2]) for match in widths)


def costs(listing: str, marks: int = 1, gates: int = 0) -> dict[str, float]:
    """Instructions a lane executes, of a kernel that reads ``marks`` bytes of a neighbour (its label, the kind of its edge).

    site: for every site; redraw: for every site that is redrawn, where that is a loop of its own, else 0; row, packed: for
    every neighbour whose row is gathered, as float32 and in words, with row_float, row_integer, row_memory and row_bytes what
    the first of them is made of; shared_redraw, packed_shared: where several lanes share a site; push: for every neighbour of a
    flip. With gates the rows they weigh are left out.
    """
    root = regions(listing)
    every = root.walk()
    leaves = [region for region in every if not region.inner and region is not root]
    pushing = _most([region for region in leaves if not region.count(HIGH)], lambda region: region.count(ATOMIC))
    gathering = [region for region in leaves if region.count(BYTE) and _bytes(region) and region is not pushing]
    if gates:
        # No other row is multiplied.
        gathering = [region for region in gathering if not region.count(PRODUCT)]
    full = [region for region in gathering if region.count(ADDED)]
    words = [region for region in gathering if region not in full]
    random = _most(every, lambda region: region.count(HIGH) // (PHILOX // 2))
    # Gated rows are multiplied in leaves.
    drawing = [region for region in every if (region.inner or region is root) and region.count(PRODUCT)]
    most = max((region.count(PRODUCT) for region in drawing), default=0)
    drawing = [region for region in drawing if 2 * region.count(PRODUCT) > most]
    # Without random numbers: what goes round the rows, or everything.
    around = next((region for region in every if full and full[0] in region.inner), root)
    site = random or around
    turns = max(1, round(site.count(HIGH) / PHILOX)) if random else 1
    # Sites with a lane each come first; a redraw of every site is told as what a site takes.
    redraws = drawing if random is not None else []

    def part(found: list[Region], place: int = 0, pattern: re.Pattern[str] | None = None) -> float:
        if place >= len(found):
            return 0.0
        region = found[place]
        several = region.count(BYTE) / marks if region in gathering else 1
        chosen = len(region.own) if pattern is None else region.count(pattern)
        return round(chosen / several, 1)

    floats, memory, other = (part(full, 0, pattern) for pattern in (FLOAT, MEMORY, OTHER))
    return {
        "site": round(len(site.own) / turns, 1), "redraw": 0.0 if random in redraws else part(redraws),
        "shared_redraw": part(redraws, 1), "row": part(full),
        "row_float": floats, "row_memory": memory, "row_integer": round(max(part(full) - floats - memory - other, 0.0), 1),
        "row_bytes": _bytes(full[0]) * marks / full[0].count(BYTE) if full else 0.0, "packed": part(words),
        "packed_shared": part(words, 1), "push": part([pushing] if pushing else []),
    }  # fmt: skip


def gated_costs(listing: str, marks: int) -> float:
    """Instructions of a lane for every neighbour whose gated rows are gathered: its label and its gates are ``marks`` bytes."""
    root = regions(listing)
    weighing = [
        region for region in root.walk()
        if not region.inner and region is not root and region.count(PRODUCT) and region.count(BYTE) and not region.count(HIGH)
        and not region.count(ATOMIC)
    ]  # fmt: skip
    region = _most(weighing, lambda region: region.count(PRODUCT) * _bytes(region))
    return round(len(region.own) * marks / region.count(BYTE), 1) if region else 0.0
