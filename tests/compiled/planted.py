"""Would a fault be seen? Faults planted in the PTX, one at a time: is each found, and by what?

"barrier": a ``bar.sync`` is gone; "barriers": several that stand together are. "address": a global access is one element
further. "store": an atomic addition is a plain store, or a guarded store has lost its guard, so that lanes race. "release",
"acquire": an atomic has lost it. "contraction": compiled with fused multiply-adds. What is not found on any problem is
redundant there: no two threads touched a byte in the intervals that a barrier parted, or what was read elsewhere did not
matter.
"""

from __future__ import annotations

import re
from itertools import product

import torch

from tests.compiled.launch import Emulator, emulated
from tests.compiled.parse import Unknown
from tests.compiled.problems import compare, shape
from tests.test_kernels_interpret import FIVE, Case, problem

# Phases of more sites than a fused program looks at at once, in packed rows and in float32; the code for several chains.
CASES = [
    Case((41, 27), 4, ((0, 1), (1, 0)), sweeps=3),
    Case((13, 17), 4, FIVE, images=2, entries="above"),
    Case((41, 27), 4, ((0, 1), (1, 0)), replicas=2, sweeps=3),
    Case((13, 17), 4, FIVE, replicas=2, entries="above"),
]
# Kernel -> (way, fused) of a sweep that launches it.
SWEEPS = {
    "gather_phase": ("gather", False), "gather_fused": ("gather", True),
    "incremental_phase": ("incremental", False), "incremental_fused": ("incremental", True),
}  # fmt: skip
# Those that multiply matrices, or add what a program found, with what they need to be launched.
OTHERS = ("pair_products", "gated_products", "add_conditionals")
MATRICES = Case((13, 17), 4, FIVE, sweeps=1, kinds=2, gates=1)
PATTERNS = {
    "barrier": r"\tbar\.sync \t0;",
    "barriers": r"\tbar\.sync \t0;(?:\s+(?:\.loc[^\n]*|//[^\n]*|\$L__tmp\d+:|bar\.sync \t0;))*\s+bar\.sync \t0;",
    "address": r"(?<=\s)(?:ld|st|red)\.global\.[\w.]+[^\n]*;",
    "store": r"red\.global\.gpu\.relaxed\.add\.[\w.]+[^\n]*;|@%p\d+ st\.global[^\n]*;",
    "release": r"(?<=\s)(?:st|red|atom)\.[\w.]*\b(?:release|acq_rel)\b",
    "acquire": r"(?<=\s)(?:ld|atom)\.[\w.]*\b(?:acquire|acq_rel)\b",
}
# What is left of an atomic without one of the two.
WEAKER = {"release": {"release": "relaxed", "acq_rel": "acquire"}, "acquire": {"acquire": "relaxed", "acq_rel": "release"}}


def places(kind: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(PATTERNS[kind], text))


def plant(kind: str, place: re.Match[str], text: str) -> str:
    """The PTX with a fault of ``kind`` at one of its `places`."""
    before, own, after = text[: place.start()], place[0], text[place.end() :]
    if kind == "barrier":
        return before + after
    if kind == "barriers":
        return before + own.replace("bar.sync \t0;", "") + after
    if kind in WEAKER:
        return before + re.sub(r"acq_rel|release|acquire", lambda sem: WEAKER[kind][sem[0]], own) + after
    if kind == "address":
        bits = re.search(r"\.[bfu](\d+)\b", own)
        assert bits is not None
        return before + re.sub(r"\[ ?(%rd\d+)( \+ (\d+))? ?\]", rf"[ \1 + {int(bits[1]) // 8} ]", own) + after
    if own.startswith("@"):
        return before + own.partition(" ")[2] + after
    kinds = re.sub(r"red\.global\.gpu\.relaxed\.add((?:\.v\d)?)\.[uf](\d+)", r"st.global\1.b\2", own)
    return before + kinds + after


def line_of(text: str, at: int) -> str:
    """Where in the source the ``.loc`` before a place points."""
    located = re.findall(r"\.loc\s+[^/\n]*// (\S+)", text[:at])
    return located[-1] if located else ""


def sweep(emulator: Emulator, kernel: str, case: Case) -> str:
    """What a run of ``kernel`` shows to be wrong; "" if nothing."""
    way, fused = SWEEPS.get(kernel, ("gather", False))
    asked = problem(case)
    try:
        if kernel not in SWEEPS:
            compare(emulator, case, way, fused)
            return next(iter(emulator.faults()), "")
        with emulated(emulator), shape(fused):
            ours, chains = asked.start("triton", way)
            ours.run(chains, case.sweeps)
    except (AssertionError, Unknown, ValueError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"
    if faults := emulator.faults():
        return faults[0]
    theirs, expected = asked.start("torch", "gather")
    theirs.run(expected, case.sweeps)
    labels = int((chains.rows != expected.rows).sum())
    return f"{labels} labels differ" if labels else "" if torch.equal(chains.flips, expected.flips) else "flips differ"


def verdicts(kernel: str, kinds: tuple[str, ...] = tuple(PATTERNS)) -> dict[str, str]:
    """Every fault of these kinds in ``kernel``, each run on its own: what found it, "" for nothing."""
    result: dict[str, str] = {}
    for case in CASES if kernel in SWEEPS else [MATRICES]:
        clean = Emulator()
        assert not (said := sweep(clean, kernel, case)), said
        texts = [text for key, (text, _) in clean.texts.items() if key[0] == kernel]
        others = {key: code for key, code in clean.code.items() if key[0] != kernel}
        for text, kind in product(texts, kinds):
            for number, place in enumerate(places(kind, text)):
                chains = "" if case.replicas == 1 else ", several chains"
                name = f"{kind} {number} of {kernel}{chains} ({line_of(text, place.start())})"
                if not result.get(name):
                    edits = {text: plant(kind, place, text)}
                    result[name] = sweep(Emulator(edits, texts=clean.texts, code=dict(others)), kernel, case)
    if kernel in SWEEPS:
        result[f"contraction of {kernel}"] = sweep(Emulator(contract=kernel), kernel, CASES[0])
    return result
