"""Would a fault be seen? Faults planted in the PTX, one at a time: is each found, and by what?

"barrier": a ``bar.sync`` is gone; "barriers": several that stand together are. "address": a global access is one element
further. "store": an atomic addition is a plain one, or a guarded store has lost its guard, so that lanes race. "missing": a
store or an addition is gone, as of the counters of a list. "bound": what a draw leaves or a flip adds to a bound is too small.
"release", "acquire": an atomic has lost it. "contraction": compiled with fused multiply-adds. "not cooperative": a team is
launched as programs that need not run at once. What is not found on any problem is redundant there: no two threads touched a
byte in the intervals that a barrier parted, or what was read elsewhere did not matter. What no problem comes to is told apart.
"""

from __future__ import annotations

import re
from itertools import product

from tests.compiled.launch import Emulator, emulated
from tests.compiled.parse import Unknown, parse
from tests.compiled.problems import compare, shape, swept
from tests.compiled.program import Code
from tests.test_kernels_interpret import FIVE, Case

# Phases of more sites than a program looks at at once, in packed rows and in float32; the code for several chains.
CASES = [
    Case((41, 27), 4, ((0, 1), (1, 0)), sweeps=3),
    Case((13, 17), 4, FIVE, images=2, entries="above"),
    Case((41, 27), 4, ((0, 1), (1, 0)), replicas=2, sweeps=3),
    Case((13, 17), 4, FIVE, replicas=2, entries="above"),
]
# Code of `sweep_chains` -> way, and programs of a team.
SWEEPS = {"gather": ("gather", 1), "gather_team": ("gather", 3), "lazy": ("incremental", 1), "lazy_team": ("incremental", 3)}
# Those that multiply matrices, or whose threads tell each other what they found, with what they need to be launched.
MATRICES = Case((13, 17), 4, FIVE, sweeps=1, kinds=2, gates=1)
OTHERS = dict.fromkeys(("pair_products", "gated_products", "add_conditionals", "table_rows"), MATRICES)
# Phases of more sites than are listed at once.
OTHERS["list_sites"] = Case((41, 61), 4, ((0, 1), (1, 0)), sweeps=1)
# Those of averages that look only at what no longer stands.
STANDING = dict.fromkeys(("mark_stale", "settle"), Case((13, 17), 4, FIVE, images=2, replicas=2, sweeps=1))
OTHERS |= STANDING
PATTERNS = {
    "barrier": r"\tbar\.sync \t0;",
    "barriers": r"\tbar\.sync \t0;(?:\s+(?:\.loc[^\n]*|//[^\n]*|\$L__tmp\d+:|bar\.sync \t0;))*\s+bar\.sync \t0;",
    "address": r"(?<=\s)(?:ld|st|red)\.global\.[\w.]+[^\n]*;",
    "store": r"(?:@!?%p\d+ )?(?:red|atom)\.global\.gpu\.relaxed\.add\.[\w.]+[^\n]*;|@%p\d+ st\.global[^\n]*;",
    "missing": r"(?:@!?%p\d+ )?(?:red|st)\.global\.[\w.]+[^\n]*;",
    # 1024 units of log2.
    "bound": r"mul\.rn\.f32 \t%r\d+, %r\d+, 0f44800000;",
    "release": r"(?<=\s)(?:st|red|atom)\.[\w.]*\b(?:release|acq_rel)\b",
    "acquire": r"(?<=\s)(?:ld|atom)\.[\w.]*\b(?:acquire|acq_rel)\b",
}
IDLE = "nothing: no problem comes to it"
# What is left of an atomic without one of the two.
WEAKER = {"release": {"release": "relaxed", "acq_rel": "acquire"}, "acquire": {"acquire": "relaxed", "acq_rel": "release"}}


def places(kind: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(PATTERNS[kind], text))


def plant(kind: str, place: re.Match[str], text: str) -> str:
    """The PTX with a fault of ``kind`` at one of its `places`."""
    before, own, after = text[: place.start()], place[0], text[place.end() :]
    if kind in ("barrier", "missing"):
        return before + after
    if kind == "bound":
        # Few odds are above 1, so that twice as many units are too few.
        units = "0f45000000" if "draw.py" in line_of(text, place.start()) else "0f43800000"
        return before + own.replace("0f44800000", units) + after
    if kind == "barriers":
        return before + own.replace("bar.sync \t0;", "") + after
    if kind in WEAKER:
        return before + re.sub(r"acq_rel|release|acquire", lambda sem: WEAKER[kind][sem[0]], own) + after
    if kind == "address":
        bits = re.search(r"\.[bfu](\d+)\b", own)
        assert bits is not None
        return before + re.sub(r"\[ ?(%rd\d+)( \+ (\d+))? ?\]", rf"[ \1 + {int(bits[1]) // 8} ]", own) + after
    return before + unguarded(own) + after


def unguarded(own: str) -> str:
    """An atomic addition in plain steps, or a store without its guard."""
    guard, access = re.fullmatch(r"(@!?%p\d+ )?(.*)", own, re.DOTALL).groups("")  # type: ignore[union-attr]
    if access.startswith("st"):
        return str(access)
    if access.startswith("red"):
        return guard + re.sub(r"red\.global\.gpu\.relaxed\.add((?:\.v\d)?)\.[uf](\d+)", r"st.global\1.b\2", access)
    found = re.fullmatch(r"atom\.global\.gpu\.relaxed\.add\.u32 (%r\d+), (\[[^]]*\]), (%r\d+);", re.sub(r"\s+", " ", access))
    assert found is not None, own
    before, place, what = found.groups()
    steps = f"ld.global.b32 {{ {before} }}, {place};", f"add.s32 %r9999999, {before}, {what};"
    return f"{guard}{steps[0]}\n\t{steps[1]}\n\t{guard}st.global.b32 {place}, {{ %r9999999 }};"


def line_of(text: str, at: int) -> str:
    """Where in the source the ``.loc`` before a place points."""
    located = re.findall(r"\.loc\s+[^/\n]*// (\S+)", text[:at])
    return located[-1] if located else ""


def sweep(emulator: Emulator, kernel: str, case: Case) -> str:
    """What a run of ``kernel`` shows to be wrong; "" if nothing."""
    update, team = SWEEPS.get(kernel, ("incremental" if kernel in STANDING else "gather", 1))
    try:
        if kernel not in SWEEPS:
            compare(emulator, case, update, team)
            return next(iter(emulator.faults()), "")
        with emulated(emulator), shape(team):
            said = swept(case, update, case.sweeps)
    except (AssertionError, Unknown, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return next(iter(emulator.faults()), "") or said


def came_to(code: Code, text: str, at: int) -> bool:
    """Whether a run of ``code``, of this PTX, came to the instruction at a place of it."""
    before = text[: text.rindex("\n", 0, at)]
    return len(parse(before + "\n}").blocks) - 1 in code.ran


def verdicts(kernel: str, kinds: tuple[str, ...] = tuple(PATTERNS), cases: int = len(CASES)) -> dict[str, str]:
    """Every fault of these kinds in ``kernel``, each run on its own: what found it, "" for nothing; on the first ``cases``.

    `IDLE` where none of them comes to the instruction.
    """
    result: dict[str, str] = {}
    run: set[str] = set()
    compiled = "sweep_chains" if kernel in SWEEPS else kernel
    for case in CASES[:cases] if kernel in SWEEPS else [OTHERS[kernel]]:
        clean = Emulator()
        assert not (said := sweep(clean, kernel, case)), said
        texts = {text: clean.code[key][0] for key, (text, _) in clean.texts.items() if key[0] == compiled}
        others = {key: code for key, code in clean.code.items() if key[0] != compiled}
        for text, kind in product(texts, kinds):
            for number, place in enumerate(places(kind, text)):
                chains = "" if case.replicas == 1 else ", several chains"
                name = f"{kind} {number} of {kernel}{chains} ({line_of(text, place.start())})"
                if came_to(texts[text], text, place.start()):
                    run.add(name)
                if not result.get(name):
                    edits = {text: plant(kind, place, text)}
                    result[name] = sweep(Emulator(edits, texts=clean.texts, code=dict(others)), kernel, case)
    result = {name: by or ("" if name in run else IDLE) for name, by in result.items()}
    if kernel in SWEEPS:
        result[f"contraction of {kernel}"] = sweep(Emulator(contract="sweep_chains"), kernel, CASES[0])
    if kernel.endswith("_team"):
        result[f"not cooperative of {kernel}"] = sweep(Emulator(cooperative=False), kernel, CASES[0])
    return result
