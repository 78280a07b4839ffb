"""How fast should the kernels be, from their compiled code alone? `python -m bench.compiled --write` puts it into docs/gpu.md.

Each limit is a rate in site updates a nanosecond: instructions issued, bytes through L1, bytes of device memory, and the time
that a program (or a launch) takes though nothing else holds it up. If all of them overlap, the slowest is the rate; if none
does, their times add up. The truth lies between, where the assumptions below hold. Nothing here was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
BEGIN, END = "<!-- predicted: begin -->", "<!-- predicted: end -->"
Figures = Mapping[str, Mapping[str, float]]
# The standard problem: sites, colours, neighbours, bytes of a row of float32 energies.
SITES, COLOURS, NEIGHBOURS, ROW = 130 * 330, 20, 64, 80
# Cycles: an answer from device memory, from L2 and from L1; an instruction of a warp that waits for the one before, with some
# independent ones between. Microseconds: a node of a CUDA graph; a launch from Python.
MEMORY, SECOND, FIRST, CHAIN = 650, 270, 35, 2.0
NODE, LAUNCH = 3.25, 5.0
# Lines of L1 that a warp's lanes touch with one load of a row: one label (calm), labels at random among 21 rows of 80 bytes.
LINES = {"calm": 1.0, "hot": 14 * (1 - (13 / 14) ** 32)}
FLIPS = {"calm": 0.006, "busy": 0.02, "hot": 0.84}
# Launches a phase of a sampler written with torch's own operators; share of the peak that the network's convolutions reach.
TORCH_LAUNCHES, REACHED = 25, 0.5


@dataclass(frozen=True)
class Card:
    name: str
    multiprocessors: int
    clock: float
    """GHz."""
    bandwidth: float
    """Bytes a nanosecond."""
    flops: float
    """Float32 operations a nanosecond, without tensor cores."""


CARDS = (Card("H200", 132, 1.755, 4800, 67000), Card("H100", 132, 1.755, 3350, 67000))
Limits = dict[str, float]


def between(limits: Limits) -> tuple[float, float]:
    """Site updates a nanosecond if nothing overlaps, and if everything does."""
    return 1 / sum(1 / rate for rate in limits.values()), min(limits.values())


def issue(card: Card, instructions: float, busy: float) -> float:
    """Four warp instructions a clock on each of ``busy`` multiprocessors, 32 sites to a warp."""
    return busy * 4 * 32 * card.clock / instructions


def redrawn(rate: float) -> float:
    """The share of sites that their stay bound does not cover: a neighbour flipped within the last sweep, at least."""
    return 1 - (1 - rate) ** NEIGHBOURS


def turns(block: int, rate: float, together: int) -> float:
    """Expected turns of a program that pushes ``together`` flips at a time, of ``block`` sites that flip independently."""
    return sum(math.ceil(k / together) * math.comb(block, k) * rate**k * (1 - rate) ** (block - k) for k in range(block + 1))


def gather(card: Card, figures: Mapping[str, float], images: int, kind: str, narrow: bool) -> Limits:
    """One program an image, all phases fused; labels of neighbours come from L2, rows from L1."""
    row = figures["narrow" if narrow else "row"]
    size = figures["row_bytes"] / (2 if narrow else 1)
    busy = min(images, card.multiprocessors)
    instructions = figures["site"] + NEIGHBOURS * row
    # A load of 16 bytes a lane takes 4 clocks, or as many as it touches lines.
    clocks = NEIGHBOURS * size / 16 * max(4.0, LINES[kind]) / 32
    alone = CHAIN * figures["site"] + NEIGHBOURS / 2 * (SECOND + 2 * FIRST)
    return {
        "instructions": issue(card, instructions, busy),
        "rows from L1": busy * card.clock / clocks,
        "device memory": card.bandwidth / (ROW + 9),
        "waiting": busy * figures["block"] * card.clock / alone,
    }


def pushed(figures: Mapping[str, float], rate: float) -> float:
    """Instructions of a lane, a site, to push flips: whole turns of a block where the list is a block's, else what there is."""
    if figures["redraw"]:
        return rate * NEIGHBOURS * figures["push"]
    block = int(figures["block"])
    return turns(block, rate, max(1, block // NEIGHBOURS)) * figures["push"]


def incremental(card: Card, figures: Mapping[str, float], images: int, kind: str, fused: bool) -> Limits:
    """Energies kept current: one program an image, or a launch a phase in a CUDA graph."""
    rate = FLIPS[kind]
    share = redrawn(rate)
    busy = min(images, card.multiprocessors) if fused else card.multiprocessors
    instructions = figures["site"] + share * figures["redraw"] + pushed(figures, rate)
    # A bound and a number for each site; energies, position and label of one that is redrawn; two rows moved for a push.
    moved = 12 + share * (ROW + 9) + rate * NEIGHBOURS * (2 * ROW + 8)
    found = {"instructions": issue(card, instructions, busy), "device memory": card.bandwidth / moved}
    steps = SITES / COLOURS / figures["block"]
    drawing = CHAIN * (figures["redraw"] or figures["site"]) + 2 * MEMORY
    pushing = CHAIN * figures["push"] + 3 * SECOND
    if not fused:
        found["launches"] = images * SITES / COLOURS / (1e3 * NODE)
        found["waiting"] = images * SITES / COLOURS * card.clock / (drawing + pushing)
        return found
    if figures["redraw"]:
        redraws = max(1.0, share * steps)
        alone = steps / 2 * (CHAIN * figures["site"] + MEMORY) + redraws * drawing
        alone += pushing * max(1.0, rate * SITES / COLOURS * NEIGHBOURS / figures["block"])
    else:
        alone = steps * (drawing + pushing * turns(int(figures["block"]), rate, int(figures["block"]) // NEIGHBOURS))
    found["waiting"] = busy * SITES / COLOURS * card.clock / alone
    return found


def told(limits: Limits) -> str:
    """Three largest costs, with what each alone would allow."""
    first = sorted(limits.items(), key=lambda item: item[1])[:3]
    return ", ".join(f"{name} {rate:.3g}" for name, rate in first)


def training(card: Card, images: int) -> tuple[float, float, float]:
    """Milliseconds of the network of Table 1 (forward, and backward twice that) and of sampler and loss; the latter's share."""
    from tritoncrf.networks import table1

    pixels, sweeps, colours = 164 * 72, 10, 17
    weights = sum(parameter.numel() for parameter in table1().parameters())
    network = 6 * weights * pixels * images / (REACHED * card.flops) / 1e6
    # Data phase and free phase; twice some thirty small launches to prepare, and to count.
    sampling = (2 * sweeps * colours * NODE + 60 * LAUNCH) / 1e3
    return network, sampling, sampling / (network + sampling)


def table(figures: Figures, card: Card) -> list[str]:
    """Rows of issue and goal, with the range predicted and what costs most."""

    def of(kernel: str) -> Mapping[str, float]:
        return figures[f"{kernel} 20 sm_90"]

    rows: list[tuple[str, str, Limits]] = [
        (f"incremental, batch 128, {kind}", goal, incremental(card, of("incremental_fused"), 128, kind, True))
        for kind, goal in (("calm", ">= 25"), ("busy", ">= 10"))
    ]
    sixteen = incremental(card, of("incremental_phase"), 16, "calm", False)
    rows.append(("incremental, batch 16, calm, a graph node a phase", ">= 8", sixteen))
    rows.append(("gather, batch 128, calm, float32 rows", ">= 5", gather(card, of("gather_fused"), 128, "calm", False)))
    rows.append(("gather, batch 128, hot, float32 rows", ">= 2.5", gather(card, of("gather_fused"), 128, "hot", False)))
    if of("gather_fused")["narrow"]:
        rows.append(("gather, batch 128, calm, int16 rows", ">= 8", gather(card, of("gather_fused"), 128, "calm", True)))
    lines = []
    for name, goal, limits in rows:
        low, high = between(limits)
        lines.append(f"| {name} | {goal} | {low:.3g} to {high:.3g} | {told(limits)} |")
    if not of("gather_fused")["narrow"]:
        lines.append("| gather, batch 128, calm, int16 rows | >= 8 | not compiled yet | |")
    low, high = between(incremental(card, of("incremental_phase"), 1, "calm", False))
    costs = told(incremental(card, of("incremental_phase"), 1, "calm", False))
    times = f"{SITES / high / 1e3:.3g} to {SITES / low / 1e3:.3g} us"
    lines.append(f"| one image, one sweep, incremental | <= 80 us | {times} | {costs} |")
    plain = 16 * SITES / COLOURS / (TORCH_LAUNCHES * LAUNCH * 1e3)
    low, high = between(sixteen)
    lines.append(
        f"| against plain torch, batch 16 | >= 20 x | {low / plain:.3g} to {high / plain:.3g} x | "
        f"plain torch: {TORCH_LAUNCHES} launches a phase, {plain:.2g} |"
    )
    for images in (1, 16):
        network, sampling, share = training(card, images)
        lines.append(
            f"| PCD step of Table 1's network, batch {images}, share | <= 10 % | {share:.0%} | "
            f"network {network:.3g} ms, sampler and loss {sampling:.3g} ms, most of it launches |"
        )
    return lines


def write(figures: Figures) -> None:
    """Puts the tables between the markers of the page."""
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    parts = [before]
    for card in CARDS:
        head = f"**{card.name}** *(predicted)*, updates a nanosecond unless said: {card.multiprocessors} multiprocessors at"
        parts += ["", f"{head} {card.clock} GHz, {card.bandwidth / 1e3:g} TB/s.", ""]
        parts += ["| figure | goal | predicted | largest costs, and what each alone would allow |", "|---|---|---|---|"]
        parts += table(figures, card)
    PAGE.write_text("\n".join([*parts, "", after.rstrip("\n")]) + "\n")
