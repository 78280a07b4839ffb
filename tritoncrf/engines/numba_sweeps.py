"""What does a thread do? The compiled loops over a range of chains or images; each chain is swept by one thread alone.

The incremental update keeps no field but, for each free site, an upper bound of its odds against staying,

    odds = sum_(l != current) 2^(t_l) / 2^(t_current),        t_l = -e_l * scale,

so that the label stays wherever ``u * (1 + odds) < 1 - margin``: 16 sites are looked at together and most are passed over
without reading anything else. A doubtful site gathers its energies, draws, and leaves its exact odds behind. A flip adds
``d = row[new] - row[old]`` to a neighbour's energies, which multiplies that neighbour's odds by at most
``2^((d_current - min d) * scale) <= 2^(spread[new] * scale) * 2^(spread[old] * scale)``, the spread of a row being its
largest minus its smallest entry: one product per neighbour in place of a row of labels. Odds multiply where a bound of the
probability of staying would only shrink: a site deep inside a region keeps odds far below 1 through many flips around it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tritoncrf.engines import numba_draw as one
from tritoncrf.engines import numba_edges as edges
from tritoncrf.engines import numba_flips as flips_of
from tritoncrf.engines import numba_graphs as graphs
from tritoncrf.engines.numba_cache import entry_point, jit
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles, Whole, Words
from tritoncrf.engines.numba_edges import Seen
from tritoncrf.engines.numba_graphs import Net
from tritoncrf.engines.numba_sites import GROUP
from tritoncrf.engines.numba_vectors import address, byte, doubtful, keep, prefetch, trailing

Doubles = npt.NDArray[np.float64]
_WORD = 0xFFFFFFFF


@jit
def _fill(sites: Words, uniforms: Singles, count: int, index: int, replica: int, purpose: int, key0: int, key1: int) -> None:
    """Uniform numbers ``[4, A]`` of a chain for the block of sweeps that ``count`` falls in."""
    high = (purpose << 24) | (replica << 8) | (index >> 32)
    n = len(sites)
    u = uniforms
    one.philox(sites, (count >> 2) & _WORD, index & _WORD, high, key0, key1, u[0, :n], u[1, :n], u[2, :n], u[3, :n])


@jit
def _doubtful(
    a: int, b: int, uniforms: Singles, chances: Singles, sure: float, queue: Positions, unary: int, width: int, edge: int,
    wide: int,
) -> int:  # fmt: skip
    """Queues the sites of a colour that must be looked at, their unary rows and their edges' bytes on the way from memory;
    returns their number."""
    found = 0
    u, r = address(uniforms), address(chances)
    for group in range(a, b, GROUP):
        mask = doubtful(u + 4 * group, r + 4 * group, sure)
        if b - group < GROUP:
            mask &= (1 << (b - group)) - 1
        while mask:
            t = group + trailing(mask)
            mask &= mask - 1
            queue[np.uint64(found)] = t
            found += 1
            for line in range(0, width, 64):
                prefetch(unary + width * t + line)
            prefetch(unary + width * t + width - 1)
            for line in range(0, wide + 63 if wide else 0, 64):
                prefetch(edge + wide * t + line)
    return found


@jit
def _push(p: Whole, place: Positions, steps: Integers, push: Singles, old: Whole, new: Whole, chances: Singles) -> None:
    """Raises the odds of the neighbours of position p, whose label went from ``old`` to ``new``."""
    came, went = np.uint64(new), np.uint64(old)
    for k in range(len(steps)):
        there, back = np.uint64(place[np.uint64(p + steps[k])]), np.uint64(place[np.uint64(p - steps[k])])
        chances[there] *= push[came, 2 * k] * push[went, 2 * k]
        chances[back] *= push[came, 2 * k + 1] * push[went, 2 * k + 1]


@entry_point
def sweep(
    begin: int, end: int, replicas: int, labels: Bytes, first: Integers, bounds: Integers, position: Positions, site: Words,
    index: Integers, unary: Singles, rows: Bytes, short: bool, steps: Integers, parts: Integers, base: Integers,
    uniforms: Singles, blocks: Integers, key0: int, key1: int, purpose: int, count: Integers, number: int, sweeps: int,
    scale: float, lazy: bool, field: Singles, lookup: Positions, push: Singles, lifts: Singles, sure: float, seen: Seen | None,
    net: Net | None, flips: Integers,
) -> None:  # fmt: skip
    """Sweeps of chains ``begin`` to ``end``: by gather, or passing over sites that surely stay if ``lazy``.

    net: the lists of a graph, in the place of ``steps`` and ``parts``.
    """
    width = unary.shape[1]
    energies, weight, total = np.empty(width, np.float32), np.zeros((4, width), np.float32), np.empty(4, np.float32)
    sums = np.empty((width // 16, 4), np.float32)
    e, w, last = address(energies), address(weight), address(parts) + 8 * (len(parts) - 1)
    wide = listed = 0
    if seen is not None:
        # Numbers, not arrays, in the loops: numba counts the references of what a tuple holds.
        kinds, bytes_of, gating, ranks, weighed, factors = seen
        wide, listed, gates = bytes_of.shape[1], address(bytes_of), 2 * len(steps) if kinds else 0
        g, q, f = address(gating), address(weighed), address(factors)
        end_of, steps_at, parts_at, rows_at = g + 8 * len(gating), address(steps), address(parts), address(rows)
    if net is not None:
        sections, many, cuts, ends, block = graphs.addresses(net)
        table = address(rows)
    queue = np.empty(np.max(bounds) if lazy else 0, np.int32)
    for chain in range(begin, end):
        image = chain // replicas
        replica = chain - image * replicas
        start, size = first[image], first[image + 1] - first[image]
        stride = (base[image + 1] - base[image]) // replicas
        own = base[image] + replica * stride
        u = uniforms[4 * own : 4 * (own + stride)].reshape(4, stride)
        chances = field[own : own + stride] if lazy else field[:0]
        sites = site[start : start + size]
        place = lookup[image] if lazy else lookup[0]
        row = labels[chain]
        here, energy, edge = address(row), address(unary) + 4 * width * start, listed + wide * start
        changed = 0
        for done in range(sweeps):
            now = count[image] + done
            if blocks[chain] != now >> 2:
                _fill(sites, u, now, index[image], replica, purpose, key0, key1)
                blocks[chain] = now >> 2
            chosen = u[now & 3]
            for color in range(bounds.shape[1] - 1):
                a, b = bounds[image, color], bounds[image, color + 1]
                visits = b - a
                if lazy:
                    visits = _doubtful(a, b, chosen, chances, sure, queue, energy, 4 * width, edge, wide)
                for group in range(0, visits, 4):
                    together = min(4, visits - group)
                    if net is not None and lazy:
                        for n in range(group + 4, min(group + 8, visits)):
                            graphs.ask(cuts + 8 * many * (start + np.int64(queue[np.uint64(n)])), many, ends)
                    for j in range(together):
                        t = np.int64(queue[np.uint64(group + j)]) if lazy else a + group + j
                        p = here + np.int64(position[np.uint64(start + t)])
                        if net is not None:
                            own_cuts = cuts + 8 * many * (start + t)
                            graphs.gather(
                                here, sections, many, own_cuts, ends, table, number, width, block, energy + 4 * width * t, e
                            )
                        elif seen is None and width >= one.WIDE:
                            one.gather_wide(
                                p, address(steps), address(parts), last, address(rows), number, width, short,
                                energy + 4 * width * t, e,
                            )  # fmt: skip
                        elif seen is None:
                            one.gather(p, steps, parts, rows, number, width, short, energy + 4 * width * t, e)
                        else:
                            if kinds:
                                edges.gather(
                                    p, steps_at, parts_at, len(parts) - 1, rows_at, number, width, short, kinds,
                                    edge + wide * t, energy + 4 * width * t, e,
                                )  # fmt: skip
                            else:
                                one.gather(p, steps, parts, rows, number, width, short, energy + 4 * width * t, e)
                            if ranks:
                                edges.add_gated(p, g, end_of, ranks, q, f, number, width, edge + wide * t + gates, e)
                        one.weights(e, w + 4 * width * j, width, scale)
                    if width >= one.WIDE:
                        one.totals_wide(weight, number, total, sums)
                    else:
                        one.totals(weight, number, total)
                    for j in range(together):
                        t = np.int64(queue[np.uint64(group + j)]) if lazy else a + group + j
                        p = np.int64(position[np.uint64(start + t)])
                        old = np.int64(row[np.uint64(p)])
                        if width >= one.WIDE:
                            new = one.draw_wide(weight, j, number, old, chosen[np.uint64(t)], total[j], sums)
                        else:
                            new = one.draw(weight, j, number, old, chosen[np.uint64(t)], total[j])
                        if lazy:
                            chances[np.uint64(t)] = one.odds(weight, j, number, new, total[j])
                        if new != old:
                            changed += 1
                            row[np.uint64(p)] = new
                            if lazy:
                                if net is not None:
                                    own_cuts = cuts + 8 * many * (start + t)
                                    graphs.push(sections, many, own_cuts, ends, place, lifts, old, new, chances)
                                elif seen is None:
                                    _push(p, place, steps, push, old, new, chances)
                                else:
                                    flips_of.push(
                                        p, place, steps, push, lifts, old, new, chances, kinds, gating, ranks, edge + wide * t
                                    )
        flips[chain] += changed
    keep(energies)
    keep(seen)
    keep(net)


@entry_point
def initial(
    begin: int, end: int, replicas: int, void: int, labels: Bytes, first: Integers, position: Positions, site: Words,
    index: Integers, unary: Singles, base: Integers, uniforms: Singles, blocks: Integers,
    key0: int, key1: int, purpose: int, count: Integers, scale: float,
) -> None:  # fmt: skip
    """Draws the free sites of chains that hold void from their unaries alone."""
    width = unary.shape[1]
    weight = np.empty((1, width), np.float32)
    for chain in range(begin, end):
        image = chain // replicas
        replica = chain - image * replicas
        start, size = first[image], first[image + 1] - first[image]
        stride = (base[image + 1] - base[image]) // replicas
        own = base[image] + replica * stride
        u = uniforms[4 * own : 4 * (own + stride)].reshape(4, stride)
        _fill(site[start : start + size], u, count[image], index[image], replica, purpose, key0, key1)
        # These are another purpose's numbers.
        blocks[chain] = -1
        chosen = u[count[image] & 3]
        for t in range(size):
            p = position[start + t]
            if labels[chain, p] == void:
                one.weights(address(unary) + 4 * width * (start + t), address(weight), width, scale)
                total = weight[0, 0]
                for label in range(1, void):
                    total += weight[0, label]
                labels[chain, p] = one.draw(weight, 0, void, 0, chosen[t], total)


@entry_point
def conditionals(
    begin: int, end: int, replicas: int, labels: Bytes, first: Integers, position: Positions, slot: Positions,
    unary: Singles, rows: Bytes, short: bool, steps: Integers, parts: Integers, number: int, scale: float, seen: Seen | None,
    net: Net | None, out: Doubles, energy: Doubles,
) -> None:  # fmt: skip
    """Adds the conditionals of images ``begin`` to ``end``, averaged over replicas, to ``out`` ``[N, S, L]``."""
    width = unary.shape[1]
    energies, weight = np.empty(width, np.float32), np.empty(width, np.float32)
    e, w, last = address(energies), address(weight), address(parts) + 8 * (len(parts) - 1)
    if seen is not None:
        kinds, bytes_of, gating, ranks, weighed, factors = seen
        g, q, f = address(gating), address(weighed), address(factors)
    if net is not None:
        sections, many, cuts, ends, block = graphs.addresses(net)
    for image in range(begin, end):
        for replica in range(replicas):
            chain = image * replicas + replica
            here = address(labels[chain])
            own = 0.0
            for t in range(first[image], first[image + 1]):
                p = here + np.int64(position[t])
                own_unary = address(unary) + 4 * width * t
                if net is not None:
                    own_cuts = cuts + 8 * many * t
                    graphs.gather(here, sections, many, own_cuts, ends, address(rows), number, width, block, own_unary, e)
                elif seen is None and width >= one.WIDE:
                    one.gather_wide(p, address(steps), address(parts), last, address(rows), number, width, short, own_unary, e)
                elif seen is None:
                    one.gather(p, steps, parts, rows, number, width, short, own_unary, e)
                else:
                    edge = address(bytes_of) + bytes_of.shape[1] * t
                    if kinds:
                        edges.gather(
                            p, address(steps), address(parts), len(parts) - 1, address(rows), number, width, short, kinds, edge,
                            own_unary, e,
                        )  # fmt: skip
                        edge += 2 * len(steps)
                    else:
                        one.gather(p, steps, parts, rows, number, width, short, own_unary, e)
                    if ranks:
                        edges.add_gated(p, g, g + 8 * len(gating), ranks, q, f, number, width, edge, e)
                one.weights(e, w, width, scale)
                total = weight[0]
                for label in range(1, number):
                    total += weight[label]
                share = 1.0 / (np.float64(total) * replicas)
                target = out[image, slot[t]]
                for label in range(number):
                    target[label] += weight[label] * share
                own += energies[byte(p)]
            energy[chain] = own
    keep(seen)
    keep(net)
