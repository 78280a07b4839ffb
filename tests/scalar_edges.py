"""Kinds and gates on edges, straight from their text, one site at a time; `python -m tests.scalar_edges` writes the answers.

`E(y) = sum_n unary_n(y_n) + sum_(c, i) (T[c, k_c(i), y_i, y_j] + sum_r g_rc(i) * G[r, c, y_i, y_j])`, j = i + d_c, over
the edges whose two ends exist. The kind (0 .. R-1) and the gates (0 .. 1) of an edge are read at its first end i; a class
without kinds reads table 0, one without gates has no gated energy. `T [C, R, L, L]` and `G [ranks, Cg, L, L]` (at most 16 in
size) are rounded as rule 1 rounds tables. A gate becomes a float32, then `b = floor(gate * 128 + 0.5)`; its energy for labels
(l, m) is `((b * (1/128)) * G[r, c, l, m] + 3072) - 3072`, in float32 and rank by rank. The rest is rules 1 to 3 as in
`enumeration`. A site sums its unary, the rows of the neighbour at +d_c (kind and gates at the site) and of the one at -d_c
(kind and gates at that neighbour). Nothing here knows the library.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.enumeration import Bools, Offsets, Singles, color_of, draw, philox, round_logits, sublattice, uniform

F = np.float32
Bytes = npt.NDArray[np.uint8]
Position = tuple[int, ...]
Case = dict[str, Any]
PURPOSES = {"free": 0, "data": 1, "inference": 2}
ANSWERS = Path(__file__).with_name("known_answers_edges.json")


def round_tables(tables: Singles) -> Singles:
    """Rule 1."""
    rounded: Singles = np.floor(tables.astype(F) * F(4096) + F(0.5)) / F(4096)
    return rounded


def round_gate(gate: np.float32) -> np.float32:
    """b, in 0 .. 128."""
    return F(np.floor(F(F(F(gate) * F(128)) + F(0.5))))


def gated_energy(b: np.float32, entry: np.float32) -> np.float32:
    scaled = F(F(b * F(1 / 128)) * entry)
    return F(F(scaled + F(3072)) - F(3072))


def chain(
    logits: Singles, tables: Singles, offsets: Offsets, sweeps: int, *, seed: int, index: int = 0, replica: int = 0,
    purpose: int = 0, beta: float = 1.0, exists: Bools | None = None, held: dict[Position, int] | None = None,
    kinds: Bytes | None = None, kinds_on: Offsets = (), gates: Singles | None = None, gates_on: Offsets = (),
    gated: Singles | None = None,
) -> tuple[Bytes, Bytes, int]:  # fmt: skip
    """One chain: (initial labels, labels after ``sweeps``, changes in the last sweep).

    Logits ``[*shape, L]``, tables ``[C, R, L, L]``, kinds ``[Ck, *shape]``, gates ``[ranks, Cg, *shape]``, gated
    ``[ranks, Cg, L, L]``; kinds_on and gates_on name the Ck and Cg classes by their offsets, in the order of the arrays.
    """
    shape, count = logits.shape[:-1], logits.shape[-1]
    basis, psi = sublattice(offsets), round_tables(tables)
    psi_gated = None if gated is None else round_tables(gated)
    assert psi_gated is None or float(abs(psi_gated).max()) <= 16
    fixed = {} if held is None else held
    present = {y: n for n, y in enumerate(itertools.product(*map(range, shape))) if exists is None or exists[y]}
    free = sorted((y for y in present if y not in fixed), key=lambda y: color_of(y, basis))
    unary = {y: round_logits(logits[y]) for y in free}

    def pair(offset: Position, first: Position, a: int, b: int) -> np.float32:
        """The energy of the edge (first, first + offset) under the labels a and b."""
        kind = 0
        if kinds is not None and offset in kinds_on:
            kind = int(kinds[(kinds_on.index(offset), *first)])
        total = F(psi[offsets.index(offset), kind, a, b])
        if gates is not None and psi_gated is not None and offset in gates_on:
            column = gates_on.index(offset)
            for r in range(len(gates)):
                total = F(total + gated_energy(round_gate(gates[(r, column, *first)]), psi_gated[r, column, a, b]))
        return total

    labels = dict(fixed)
    for y in free:
        labels[y] = draw(list(unary[y]), 0, uniform(present[y], 0, index, replica, purpose + 128, seed), 1.0)[0]
    start, flips = dict(labels), 0
    for sweep in range(sweeps):
        flips = 0
        for y in free:
            energy = [F(e) for e in unary[y]]
            for offset in offsets:
                ahead, behind = (tuple(a + n * b for a, b in zip(y, offset, strict=True)) for n in (1, -1))
                for label in range(count):
                    if ahead in present:
                        energy[label] = F(energy[label] + pair(offset, y, label, labels[ahead]))
                    if behind in present:
                        energy[label] = F(energy[label] + pair(offset, behind, labels[behind], label))
            new, _ = draw(energy, labels[y], uniform(present[y], sweep, index, replica, purpose, seed), beta)
            flips += new != labels[y]
            labels[y] = new

    def image(values: dict[Position, int]) -> Bytes:
        return np.array([values.get(y, 255) for y in np.ndindex(*shape)], np.uint8).reshape(shape)

    return image(start), image(labels), flips


RULES = """No libm, no generator: word j is word j of philox(counter, key=(1, 0)), sites are numbered row-major, every value is
exact in float32 save gates of 65535 steps (one float32 division). Logit of site s, label l, counter (s, l, 0, 0): (word 0 >>
16) / 2^14. T[c, k, a, b], counter (c, a*L + b, 1, k): ((word 0 >> 17) - 2^14) / 2^14. Kind of class c (its place in kinds_on)
at site s, counter (c, s, 2, 0): word 0 % kinds. Gate of rank r, class c (place in gates_on), counter (c, s, 3, r): (word 0 %
(steps + 1)) / steps, but (2^24 - 1) / 2^32 where word 1 % 16 = 0. G[r, c, a, b], counter (c, a*L + b, 4, r): ((word 0 >> 14) -
2^17) / 2^(13 + word 1 % 6). Where units: logits are (word 0 >> 28) / 2^14, T ((word 0 >> 28) - 8) / 2^14, G (8 * (word 0 >> 30)
+ (word 1 >> 30) + 2) / 2^14 plus 12 (c + r even) or minus 12 (odd), which rounds to an odd number of 2^-12. Where holes, with
the counter (s, 0, 5, 0): word 0 % 10 = 0 is a hole (hashed as 255); else word 1 % 7 = 0 clamps the site to label s % L; and
with the counter (s, l, 6, 0), word 0 % 5 = 0 forbids l (logit -inf) unless l = s % L. Labels are hashed (sha256) as bytes, row-
major; `changed` counts the last sweep's changes."""


def inputs(case: Case) -> dict[str, Any]:
    """The arrays of a case by RULES, under ``chain``'s names."""
    shape, count, units = tuple(case["shape"]), case["labels"], case["units"]
    sites, offsets = math.prod(shape), [tuple(offset) for offset in case["offsets"]]
    kinds_on, gates_on = ([tuple(offset) for offset in case[name]] for name in ("kinds_on", "gates_on"))
    steps, ranks = case["steps"], case["ranks"]

    def word(*counter: int) -> tuple[int, int, int, int]:
        return philox(counter, (1, 0))

    def filled(rule: Callable[..., float], *sizes: int) -> Singles:
        return np.array([rule(*place) for place in np.ndindex(*sizes)], F).reshape(sizes)

    def logit(s: int, label: int) -> float:
        if case["holes"] and label != s % count and word(s, label, 6, 0)[0] % 5 == 0:
            return -math.inf
        return (word(s, label, 0, 0)[0] >> (28 if units else 16)) / 2**14

    def entry(c: int, k: int, a: int, b: int) -> float:
        first = word(c, a * count + b, 1, k)[0]
        return ((first >> 28) - 8 if units else (first >> 17) - 2**14) / 2**14

    def gate(r: int, c: int, s: int) -> float:
        first, second, _, _ = word(c, s, 3, r)
        return (2**24 - 1) / 2**32 if second % 16 == 0 else float(F(first % (steps + 1)) / F(steps))

    def gated(r: int, c: int, a: int, b: int) -> float:
        first, second, _, _ = word(c, a * count + b, 4, r)
        if units:
            return (8 * (first >> 30) + (second >> 30) + 2) / 2**14 + (-12 if (c + r) % 2 else 12)
        return ((first >> 14) - 2**17) / 2.0 ** (13 + second % 6)

    marks = [word(s, 0, 5, 0) for s in range(sites)]
    exists = np.array([not case["holes"] or mark[0] % 10 != 0 for mark in marks]).reshape(shape)
    chosen = [s for s in range(sites) if case["holes"] and marks[s][1] % 7 == 0 and exists.reshape(-1)[s]]
    kinds = [[word(c, s, 2, 0)[0] % case["kinds"] for s in range(sites)] for c in range(len(kinds_on))]
    return {
        "logits": filled(logit, sites, count).reshape(*shape, count),
        "tables": filled(entry, len(offsets), case["kinds"], count, count),
        "offsets": offsets, "exists": exists,
        "held": {tuple(int(a) for a in np.unravel_index(s, shape)): s % count for s in chosen},
        "kinds": np.array(kinds, np.uint8).reshape(-1, *shape) if kinds_on else None, "kinds_on": kinds_on,
        "gates": filled(gate, ranks, len(gates_on), sites).reshape(ranks, -1, *shape) if ranks else None,
        "gates_on": gates_on, "gated": filled(gated, ranks, len(gates_on), count, count) if ranks else None,
    }  # fmt: skip


def describe(shape: Sequence[int], labels: int, offsets: Offsets, **more: Any) -> Case:
    edges = {"kinds": 1, "kinds_on": [], "ranks": 0, "gates_on": [], "steps": 65535, "units": False, "holes": False}
    numbers = {"seed": 7, "index": 0, "replica": 0, "phase": "free", "beta": 1.0}
    return {"shape": shape, "labels": labels, "offsets": offsets, **edges, **numbers, **more}


LINE, SPACE = [(1,), (2,), (5,)], [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, -1, 2)]
PLANE = [(0, 1), (1, 0), (1, 1), (1, -1), (0, 3), (4, 2)]
SOME, OTHERS = [(1, -1), (0, 1), (4, 2)], [(4, 2), (1, 0), (1, -1), (0, 3)]
CASES: dict[str, Case] = {
    "line_kinds": describe([211], 3, LINE, kinds=3, kinds_on=LINE),
    "plane_kinds": describe([16, 17], 5, PLANE, kinds=3, kinds_on=SOME, index=5, phase="data", seed=-7),
    "plane_gates": describe([17, 14], 4, PLANE, ranks=2, gates_on=OTHERS, index=6),
    "plane_all": describe([18, 16], 4, PLANE, kinds=3, kinds_on=SOME, ranks=2, gates_on=OTHERS, steps=256, holes=True,
                          index=7 + 2**32, replica=3, beta=0.7, phase="data", seed=99),
    "volume": describe([5, 6, 7], 3, SPACE, kinds=2, kinds_on=SPACE[::-1], ranks=1, gates_on=SPACE, index=11, replica=2,
                       phase="inference", beta=0.5),
    "ties": describe([13, 15], 4, PLANE, kinds=2, kinds_on=SOME, ranks=2, gates_on=OTHERS, steps=2, units=True, beta=2048.0),
}  # fmt: skip


def answer(case: Case, counts: Iterable[int] = (1, 2, 5, 9)) -> Case:
    given, after, initial = inputs(case), {}, ""
    numbers = {name: case[name] for name in ("seed", "index", "replica", "beta")}
    for sweeps in counts:
        first, last, flips = chain(**given, sweeps=sweeps, purpose=PURPOSES[case["phase"]], **numbers)
        initial = hashlib.sha256(first.tobytes()).hexdigest()
        after[str(sweeps)] = [hashlib.sha256(last.tobytes()).hexdigest(), f"changed {flips}"]
    return case | {"initial": initial, "after_sweeps": after}


if __name__ == "__main__":
    text = {"inputs": RULES.replace("\n", " "), "cases": {name: answer(case) for name, case in CASES.items()}}
    ANSWERS.write_text(json.dumps(text, indent=1) + "\n")
