"""The oracle: what the mathematics says, by listing every labelling, in float64 and without the library.

`E(y) = sum_n unary[n, y_n] + sum_c sum_(i, i + d_c) tables[c, y_i, y_{i + d_c}]` and `p(y) = exp(-E(y)) / Z` on
lattices small enough to list; transfer matrices for strips too long for that; and rules 1 to 3 of the bit contract,
straight from their text, one site at a time. Sites are row-major; a labelling's number has its first site as the highest digit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Offsets = Sequence[tuple[int, ...]]
F = np.float32


def on_grid(values: npt.ArrayLike) -> Floats:
    """Multiples of 2^-12, which rule 1 leaves as they are: the oracle then has the sampler's own energies."""
    return np.floor(np.asarray(values, dtype=np.float64) * 4096 + 0.5) / 4096


def labellings(sites: int, labels: int) -> Integers:
    """All of them, ``[labels^sites, sites]``."""
    return np.indices([labels] * sites).reshape(sites, -1).T.astype(np.int64)


def edges(shape: Sequence[int], offsets: Offsets, exists: Bools | None = None) -> list[tuple[int, int, int]]:
    """(class, i, j) of every edge, sites by row-major number, both of them existing."""
    found = []
    present = np.ones(shape, dtype=bool) if exists is None else exists
    for site in itertools.product(*map(range, shape)):
        for c, offset in enumerate(offsets):
            other = tuple(a + b for a, b in zip(site, offset, strict=True))
            if all(0 <= a < n for a, n in zip(other, shape, strict=True)) and present[site] and present[other]:
                found.append((c, int(np.ravel_multi_index(site, shape)), int(np.ravel_multi_index(other, shape))))
    return found


def energies(
    labels: Integers, unary: Floats, tables: Floats, shape: Sequence[int], offsets: Offsets, exists: Bools | None = None
) -> Floats:
    """E of labellings ``[M, sites]``; unary ``[sites, L]``, tables ``[C, L, L]``."""
    present = np.ones(len(unary), dtype=bool) if exists is None else exists.reshape(-1)
    total = np.zeros(len(labels))
    for site in np.flatnonzero(present):
        total += unary[site, labels[:, site]]
    for c, i, j in edges(shape, offsets, exists):
        total += tables[c, labels[:, i], labels[:, j]]
    return total


def seeing_energies(
    labels: Integers, unary: Floats, tables: Floats, shape: Sequence[int], offsets: Offsets, exists: Bools | None = None,
    kinds: Integers | None = None, gated: Floats | None = None, gates: Floats | None = None,
) -> Floats:  # fmt: skip
    """As `energies`, of tables that see the image, edge by edge, each kind and gate read at the first end.

    tables ``[C, R, L, L]``, kinds ``[C, sites]`` (0 everywhere if None), gated ``[G, C, L, L]``, gates ``[G, C, sites]``.
    """
    total = energies(labels, unary, np.zeros((len(offsets), *tables.shape[2:])), shape, offsets, exists)
    for c, i, j in edges(shape, offsets, exists):
        total += tables[c, 0 if kinds is None else kinds[c, i], labels[:, i], labels[:, j]]
        if gated is not None and gates is not None:
            for table, gate in zip(gated[:, c], gates[:, c, i], strict=True):
                # What a gate makes of an entry lies on the grid again, halves at the even multiple.
                total += (np.round(gate * table * 4096) / 4096)[labels[:, i], labels[:, j]]
    return total


def log_partition(energy: Floats) -> float:
    lowest = float(energy.min())
    return math.log(float(np.exp(lowest - energy).sum())) - lowest


def joint(energy: Floats) -> Floats:
    """p(y) of every labelling listed; one of energy +inf (forbidden, or against an observed label) has 0."""
    return np.exp(-energy - log_partition(energy))


def given(energy: Floats, labels: Integers, observed: dict[int, int]) -> Floats:
    """The energies conditional on observed sites: +inf where a labelling contradicts them."""
    conflict = np.zeros(len(labels), dtype=bool)
    for site, label in observed.items():
        conflict |= labels[:, site] != label
    return np.where(conflict, np.inf, energy)


def marginals(p: Floats, labels: Integers, count: int) -> Floats:
    """``[sites, L]``."""
    return np.stack([p @ (labels == label) for label in range(count)], axis=-1)


def expected_pair_counts(
    p: Floats, labels: Integers, count: int, shape: Sequence[int], offsets: Offsets, exists: Bools | None = None
) -> Floats:
    """``[C, L, L]``: how often each pair of labels stands on an edge of each class, on average."""
    expected = np.zeros((len(offsets), count, count))
    for c, i, j in edges(shape, offsets, exists):
        np.add.at(expected[c], (labels[:, i], labels[:, j]), p)
    return expected


def after_sweep(p: Floats, target: Floats, sites: int, labels: int, order: Sequence[int]) -> Floats:
    """The law of the labelling after one exact Gibbs sweep over ``order``, started from the law ``p``."""
    law, goal = p.reshape([labels] * sites), target.reshape([labels] * sites)
    for site in order:
        law = law.sum(site, keepdims=True) * (goal / goal.sum(site, keepdims=True))
    return law.reshape(-1)


def strip(unary: Floats, down: Floats, right: Floats) -> tuple[float, float]:
    """(log Z, mean energy) of a strip ``[rows, columns, L]`` with open boundaries and 4 neighbours, site by site.

    ``down[l, m]`` joins (y, x) to (y + 1, x), ``right`` (y, x) to (y, x + 1). Beside the vector of sums of exp(-E) over
    the labels behind the frontier goes that of E exp(-E), so the mean energy is no difference quotient.
    """
    rows, columns, labels = unary.shape
    weight: Floats = np.ones(1)
    moment: Floats = np.zeros(1)
    log_scale = 0.0
    for y, x in itertools.product(range(rows), range(columns)):
        if y == 0:
            # The first row only adds axes to the frontier.
            weight = np.repeat(weight.reshape([labels] * x + [1]), labels, axis=-1)
            moment = np.repeat(moment.reshape([labels] * x + [1]), labels, axis=-1)
        else:
            kernel = np.exp(-down)
            old, old_moment = np.moveaxis(weight, x, -1), np.moveaxis(moment, x, -1)
            weight = np.moveaxis(old @ kernel, -1, x)
            moment = np.moveaxis(old_moment @ kernel + old @ (kernel * down), -1, x)
        local = unary[y, x].reshape([-1 if axis == x else 1 for axis in range(weight.ndim)])
        if x:
            view = [labels if axis in (x - 1, x) else 1 for axis in range(weight.ndim)]
            local = local + right.reshape(view)
        factor = np.exp(-local)
        moment = factor * (moment + local * weight)
        weight = factor * weight
        top = float(weight.max())
        weight, moment, log_scale = weight / top, moment / top, log_scale + math.log(top)
    total = float(weight.sum())
    return log_scale + math.log(total), float(moment.sum()) / total


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of four 32-bit words."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & 0xFFFFFFFF, (p >> 32) ^ d ^ m, p & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def uniform(site: int, sweep: int, index: int, replica: int, purpose: int, seed: int) -> np.float32:
    """Rule 2."""
    seed %= 2**64
    counter = (site, sweep >> 2, index % 2**32, (purpose << 24) + (replica << 8) + (index >> 32))
    word = philox(counter, (seed % 2**32, seed >> 32))[sweep & 3]
    return F(F(word >> 9) + F(0.5)) * F(2.0**-23)


def weight(t: np.float32) -> np.float32:
    """Rule 3's 2^t, t in [-100, 0]."""
    n = np.floor(t)
    f = F(t - n)
    p = F(0.0018793180352076888)
    for a in (0.008990994654595852, 0.05581868067383766, 0.240159273147583, 0.6931517124176025):
        p = F(F(p * f) + F(a))
    return F(F(F(p * f) + F(1.0)) * F(2.0 ** int(n)))


def draw(energy: Sequence[np.float32], current: int, u: np.float32, beta: float) -> tuple[int, bool]:
    """Rule 3: the new label, and whether it took the last resort ("or, if none, ...")."""
    low = min(energy)
    scale = F(beta * 1.4426950408889634)
    weights = []
    for e in energy:
        t = F(F(low - e) * scale)
        weights.append(F(0) if F(e - low) >= 1024 or t < -100 else weight(t))
    total = weights[0]
    for w in weights[1:]:
        total = F(total + w)
    x = F(u * total)
    if x < weights[current]:
        return current, False
    r, cum = F(x - weights[current]), F(0)
    others = [label for label in range(len(energy)) if label != current]
    for label in others:
        cum = F(cum + weights[label])
        if cum > r:
            return label, False
    return [label for label in others if weights[label] > 0][-1], True


def round_logits(logits: Singles) -> Singles:
    """Rule 1 for one site."""
    m = max(logits)
    with np.errstate(over="ignore"):
        distances = [F(min(F(m - v), F(1023))) for v in logits]
    rounded = [np.floor(F(F(d * F(4096)) + F(0.5))) / F(4096) for d in distances]
    return np.array([F(3071) if v == -np.inf else d for v, d in zip(logits, rounded, strict=True)])


def sublattice(offsets: Offsets) -> Integers:
    """The contract's sublattice: a basis row per axis."""
    d = len(offsets[0])
    for index in itertools.count(2):
        diagonals = [r for r in itertools.product(range(1, index + 1), repeat=d) if math.prod(r) == index]
        for diagonal in sorted(diagonals, key=lambda r: r[::-1]):
            upper = [(i, j) for i in range(d) for j in range(i + 1, d)]
            for entries in itertools.product(*(range(diagonal[j]) for _, j in upper)):
                basis = np.diag(diagonal)
                for (i, j), h in zip(upper, entries, strict=True):
                    basis[i, j] = h
                if all(color_of(offset, basis) for offset in offsets):
                    return basis.astype(np.int64)
    raise AssertionError("no sublattice")


def color_of(position: Sequence[int], basis: Integers) -> int:
    rest, number = [int(y) for y in position], 0
    for axis, row in enumerate(basis.tolist()):
        times = rest[axis] // row[axis]
        rest = [y - times * h for y, h in zip(rest, row, strict=True)]
        number = number * row[axis] + rest[axis]
    return number


def chain(
    logits: Singles, tables: Singles, offsets: Offsets, sweeps: int, *, seed: int, index: int = 0, replica: int = 0,
    purpose: int = 0, beta: float = 1.0, exists: Bools | None = None, held: dict[tuple[int, ...], int] | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int]:  # fmt: skip
    """One chain, logits ``[*shape, L]``: (initial labels, labels after ``sweeps``, changes in the last sweep)."""
    shape = logits.shape[:-1]
    basis = sublattice(offsets)
    rounded = np.floor(tables * F(4096) + F(0.5)) / F(4096)
    fixed = {} if held is None else held
    present = {y: n for n, y in enumerate(itertools.product(*map(range, shape))) if exists is None or exists[y]}
    free = sorted((y for y in present if y not in fixed), key=lambda y: color_of(y, basis))
    unary = {y: round_logits(logits[y]) for y in free}
    labels = dict(fixed)
    for y in free:
        labels[y] = draw(list(unary[y]), 0, uniform(present[y], 0, index, replica, purpose + 128, seed), 1.0)[0]
    start, flips = dict(labels), 0
    for sweep in range(sweeps):
        flips = 0
        for y in free:
            energy = unary[y].astype(F)
            for c, offset in enumerate(offsets):
                ahead = tuple(a + b for a, b in zip(y, offset, strict=True))
                behind = tuple(a - b for a, b in zip(y, offset, strict=True))
                if ahead in present:
                    energy = energy + rounded[c, :, labels[ahead]]
                if behind in present:
                    energy = energy + rounded[c, labels[behind], :]
            new, _ = draw(list(energy), labels[y], uniform(present[y], sweep, index, replica, purpose, seed), beta)
            flips += new != labels[y]
            labels[y] = new

    def image(values: dict[tuple[int, ...], int]) -> npt.NDArray[np.uint8]:
        listed = [values.get(y, 255) if y in present else 255 for y in np.ndindex(*shape)]
        return np.array(listed, np.uint8).reshape(shape)

    return image(start), image(labels), flips
