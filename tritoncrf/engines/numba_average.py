"""When is a site's conditional computed anew? Sweeps whose local conditionals are averaged, each computed once while it stands.

A site's conditional depends on its neighbours' labels alone, and stands from sweep to sweep until one of them flips. It is
added once, times the number of sweeps it stood, when that happens: from a second copy of the labels, which a sweep's flips
reach only after that. So a site keeps one number, the sweep that its conditional stands since, and no energies. Flips are
found by comparing the copies; the sweep itself is that of `numba_sweeps`.

The trace, the sum over free sites of the energy of their own label given the rest, is known after a pass over all sites. A
flip from ``old`` to ``new`` at i changes it by ``psi_i(new) - psi_i(old)`` and by every pair's change, twice where the
neighbour is free (both ends count the pair). All are multiples of 2^-12 (rule 1), so float64 sums them exactly, and the
trace of earlier sweeps follows backwards from that of a later one.
"""

from __future__ import annotations

import numpy as np

from tritoncrf.engines import numba_draw as one
from tritoncrf.engines import numba_edges as edges
from tritoncrf.engines import numba_flips as flips_of
from tritoncrf.engines.numba_cache import call, entry_point, jit
from tritoncrf.engines.numba_draw import Bytes, Integers, Positions, Singles, Words
from tritoncrf.engines.numba_edges import Seen
from tritoncrf.engines.numba_errors import differing
from tritoncrf.engines.numba_sweeps import Doubles, sweep
from tritoncrf.engines.numba_vectors import accumulate, address, byte, prefetch, word

# Marks a site, on average, from which on nearly all sites are stale: then they are passed over in order, without a look.
MARKS = 6.0
# How many sites ahead memory is asked for.
AHEAD = 8


@call
def _settle(
    done: int, size: int, since: Positions, queue: Positions, many: int, here: int, position: Positions, slot: Positions,
    unary: int, steps: Integers, parts: Integers, rows: Bytes, number: int, width: int, short: bool, scale: float,
    replicas: int, seen: Seen | None, edge: int, result: Doubles,
) -> float:  # fmt: skip
    """Adds the conditionals of queued sites for the sweeps before ``done`` that they stood; the sum of own energies."""
    energies, weight, total = np.empty(width, np.float32), np.zeros((4, width), np.float32), np.empty(4, np.float32)
    e, w, target = address(energies), address(weight), address(result)
    last = address(parts) + 8 * (len(parts) - 1)
    if seen is not None:
        kinds, bytes_of, gating, ranks, weighed, factors = seen
        wide, gates = bytes_of.shape[1], 2 * len(steps) if kinds else 0
        g, q, f = address(gating), address(weighed), address(factors)
    own = 0.0
    for group in range(0, many, 4):
        together = min(4, many - group)
        for n in range(group + AHEAD, min(group + AHEAD + 4, many)):
            t = np.int64(queue[np.uint64(n)])
            for line in range(0, 4 * width, 64):
                prefetch(unary + 4 * width * t + line)
            for line in range(0, 8 * number + 63, 64):
                prefetch(target + 8 * number * np.int64(slot[np.uint64(t)]) + line)
        for j in range(together):
            t = np.int64(queue[np.uint64(group + j)])
            p = here + np.int64(position[np.uint64(t)])
            if seen is None and width >= one.WIDE:
                own_unary = unary + 4 * width * int(t)
                one.gather_wide(p, address(steps), address(parts), last, address(rows), number, width, short, own_unary, e)
            elif seen is None:
                one.gather(p, steps, parts, rows, number, width, short, unary + 4 * width * int(t), e)
            else:
                own_edge, own_unary = edge + wide * int(t), unary + 4 * width * int(t)
                if kinds:
                    edges.gather(
                        p, address(steps), address(parts), len(parts) - 1, address(rows), number, width, short, kinds, own_edge,
                        own_unary, e,
                    )  # fmt: skip
                else:
                    one.gather(p, steps, parts, rows, number, width, short, own_unary, e)
                if ranks:
                    end = g + 8 * len(gating)
                    edges.add_gated(p, g, end, ranks, q, f, number, width, own_edge + gates, e)
            one.weights(e, w + 4 * width * j, width, scale)
            own += np.float64(energies[np.uint64(byte(p))])
        one.totals(weight, number, total)
        for j in range(together):
            t = np.int64(queue[np.uint64(group + j)])
            times = (done - since[np.uint64(t)]) / (np.float64(total[j]) * replicas)
            place = target + 8 * number * np.int64(slot[np.uint64(t)])
            for label in range(0, number - 3, 4):
                accumulate(place + 8 * label, w + 4 * (width * j + label), times)
            for label in range(number & -4, number):
                result[np.uint64(slot[np.uint64(t)]), np.uint64(label)] += weight[j, label] * times
            since[np.uint64(t)] = done
    return own


@jit
def _stale(marks: Bytes, size: int, queue: Positions) -> int:
    """Queues the marked sites in order, and takes the marks away; returns their number."""
    found, a = 0, address(marks)
    for group in range(0, size, 8):
        if word(a + group) != 0:
            for t in range(group, min(group + 8, size)):
                if marks[np.uint64(t)]:
                    queue[np.uint64(found)] = t
                    found += 1
                    marks[np.uint64(t)] = 0
            # The place past the end stands for all that are not free.
            marks[np.uint64(size)] = 0
    return found


@jit
def _backwards(trace: Doubles, known: int, last: int, value: float) -> None:
    """Makes changes into values: the trace after sweep ``last`` is ``value``, those up to ``known`` stand."""
    for k in range(last, known, -1):
        change = trace[k]
        trace[k] = value
        value -= change


@entry_point
def average(
    begin: int, end: int, replicas: int, labels: Bytes, first: Integers, bounds: Integers, position: Positions, site: Words,
    index: Integers, unary: Singles, rows: Bytes, short: bool, steps: Integers, parts: Integers, base: Integers,
    uniforms: Singles, blocks: Integers, key0: int, key1: int, purpose: int, count: Integers, number: int, sweeps: int,
    scale: float, lazy: bool, field: Singles, lookup: Positions, push: Singles, lifts: Singles, sure: float, seen: Seen | None,
    flips: Integers, slot: Positions, places: Positions, out: Doubles, traces: Doubles,
) -> None:  # fmt: skip
    """Sweeps of images ``begin`` to ``end``: the conditionals after each, averaged over replicas, are added to ``out``.

    places: int32 ``[N, volume]``, as the incremental update's lookup; traces: ``[N * R, sweeps]``. The rest is that of `sweep`
    and of `numba_sweeps.conditionals`.
    """
    width, volume, most = unary.shape[1], labels.shape[1], np.max(first[1:] - first[:-1])
    before, found = np.empty(volume, np.uint8), np.empty(volume, np.int32)
    since, queue, marks = np.empty(most, np.int32), np.empty(most, np.int32), np.zeros(most + 8, np.uint8)
    now = count.copy()
    wide = listed = 0
    if seen is not None:
        wide, listed = seen[1].shape[1], address(seen[1])
    half, shorts, floats = (number + 1) * width, rows.view(np.int16), rows.view(np.float32)
    for image in range(begin, end):
        start, size = first[image], first[image + 1] - first[image]
        place, energy, edge = places[image], address(unary) + 4 * width * start, listed + wide * start
        for chain in range(image * replicas, (image + 1) * replicas):
            trace, row, here = traces[chain], labels[chain], address(before)
            since[:] = 0
            # Up to which sweep the trace holds values; beyond stand changes.
            known = -1
            for done in range(sweeps + 1):
                if done < sweeps:
                    now[image] = count[image] + done
                    # Types as in a launch of sweeps alone, whose code is then this one's too: a number that is written here
                    # has one of its own.
                    sweep(
                        chain, chain + 1, replicas, labels, first, bounds, position, site, index, unary, rows, short, steps,
                        parts, base, uniforms, blocks, key0, key1, purpose, now, number, int(np.int64(1)), scale, lazy, field,
                        lookup, push, lifts, sure, seen, None, flips,
                    )  # fmt: skip
                if done == 0:
                    # An assignment of one array to another compiles a sentence about their shapes, for three seconds.
                    for k in range(volume):
                        before[np.uint64(k)] = row[np.uint64(k)]
                    continue
                flipped = differing(address(row), here, volume, found)
                everywhere = done == sweeps or flipped * 2.0 * len(steps) > MARKS * size
                if everywhere:
                    many = size
                    for t in range(size):
                        queue[np.uint64(t)] = t
                else:
                    for n in range(flipped):
                        p = np.int64(found[np.uint64(n)])
                        for k in range(len(steps)):
                            marks[np.uint64(place[np.uint64(p + steps[k])])] = 1
                            marks[np.uint64(place[np.uint64(p - steps[k])])] = 1
                    many = _stale(marks, size, queue)
                own = _settle(
                    done, size, since, queue, many, here, position[start : start + size], slot[start : start + size], energy,
                    steps, parts, rows, number, width, short, scale, replicas, seen, edge, out[image],
                )  # fmt: skip
                if everywhere:
                    _backwards(trace, known, done - 1, own)
                    known = done - 1
                change = 0.0
                for n in range(flipped):
                    p = np.int64(found[np.uint64(n)])
                    new, old = np.int64(row[np.uint64(p)]), np.int64(before[np.uint64(p)])
                    if not everywhere:
                        t = start + np.int64(place[np.uint64(p)])
                        change += np.float64(unary[t, new]) - np.float64(unary[t, old])
                        if seen is not None:
                            own_edge = edge + wide * (int(t) - start)
                            change += flips_of.gap(
                                before, p, place, size, steps, rows, short, width, number, seen, own_edge, old, new
                            )
                        else:
                            for k in range(2 * len(steps)):
                                q = np.uint64(p - steps[k >> 1] if k & 1 else p + steps[k >> 1])
                                pair = k * half + np.int64(before[q]) * width
                                came, went = np.uint64(pair + new), np.uint64(pair + old)
                                if short:
                                    gap = (np.int64(shorts[came]) - np.int64(shorts[went])) / 4096.0
                                else:
                                    gap = np.float64(floats[came]) - np.float64(floats[went])
                                change += gap + gap if place[q] < size else gap
                    before[np.uint64(p)] = new
                if done < sweeps:
                    trace[done] = change
