"""How do chains on graphs move? All sweeps of a batch in one launch, each node's factors read from a list.

A node's energies are its unary row plus a row for each factor that it stands in: the table's entries along the node's own axis,
at the other members' labels. Tables are kept once for each of their axes, that axis last, so that what a node adds is one row
of PAD numbers behind ``base + sum_j label_j L^(m - j)`` (`Net`). A factor with a void member adds nothing. Gated rows are
weighed and put on rule 1's grid one by one (`tritoncrf.kernels.edges`). Rule 1 makes the order of additions harmless.

A team of programs, most often of one, holds a group of a graph's chains and goes through all colours of all sweeps, as on
lattices (`tritoncrf.kernels.sweeps`). Nodes of a colour share no factor, so their order changes no bit.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="import-not-found, assignment, misc, attr-defined"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from tritoncrf.kernels.conditionals import add_shares
from tritoncrf.kernels.device import launch
from tritoncrf.kernels.draw import draw, far, uniform, weigh
from tritoncrf.kernels.edges import weigh_row
from tritoncrf.kernels.rows import lanes, load_row, padded, separate, width
from tritoncrf.kernels.shapes import Launch
from tritoncrf.kernels.teams import APART, meet, with_room

SCALARS = [
    "scale", "key0", "key1", "purpose", "sweeps", "groups", "together", "team", "replicas", "volume", "slots", "colors", "ends",
]  # fmt: skip


class Net(NamedTuple):
    """The factors of a batch of N graphs, V nodes in all, by their E ends; M: members of the largest factor but one."""

    first: Tensor
    """int64 [N + 1]: nodes of graph n are ``first[n]`` to ``first[n + 1]``."""
    pointer: Tensor
    """int32 [V + 1]: the ends of node v are ``pointer[v]`` to ``pointer[v + 1]``."""
    base: Tensor
    """int32 [E]: the row that a node reads if all other members have label 0."""
    others: Tensor
    """int32 [M, E]: the other members' positions in a row of their own graph, in the order of their axes, the last ones last;
    -1 before them where a factor has fewer."""
    gates: Tensor | None
    """uint8 [E]: in steps of 1 / 128; None: all of them 128."""


class Nodes(NamedTuple):
    """Which free node comes when: graph by graph, colour by colour."""

    slot: Tensor
    """int32 [N, S]: a node's number in its own graph, which is its position too; -1 behind the last one."""
    site: Tensor
    """int32 [N, S]: the bits of its site number (rule 2)."""
    starts: Tensor
    """int32 [N, colors + 1]: where each colour begins in ``slot``."""


@triton.jit
def factors_of(
    chain, net, rows, node, valid, ends,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, MEMBERS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """What factors add to nodes' energies, a tuple of pieces [B, WIDTH].

    chain: uint8 pointers [B] to the first of the nodes' chain's labels; net: the pointers of `Net`, without the first; node:
    int64 [B], of the batch; valid: bool [B]; rows: float32 [rows, PAD].
    """
    pointer, base, others, gates = net
    column = tl.arange(0, WIDTH)
    pieces = ()
    for _ in tl.static_range(PAD // WIDTH):
        pieces = pieces + (tl.zeros((node.shape[0], WIDTH), tl.float32),)  # noqa: RUF005
    begin = tl.load(pointer + node, mask=valid, other=0)
    degree = tl.load(pointer + node + 1, mask=valid, other=0) - begin
    for k in range(0, tl.max(degree, 0)):
        end = begin.to(tl.int64) + k
        whole = k < degree
        row = tl.load(base + end, mask=whole, other=0)
        offset = row * 0
        for j in tl.static_range(MEMBERS):
            where = tl.load(others + j * ends.to(tl.int64) + end, mask=whole, other=-1)
            label = tl.load(chain + where, mask=where >= 0, other=0).to(tl.int32)
            whole = whole & (label < LABELS)
            offset = offset * LABELS + label
        there = rows + (row + offset).to(tl.int64) * PAD
        if GATED:
            gate = tl.load(gates + end, mask=whole, other=0)
        total = ()
        for q in tl.static_range(PAD // WIDTH):
            entries = tl.load(there[:, None] + (q * WIDTH + column)[None, :], mask=whole[:, None], other=0.0)
            if GATED:
                entries = weigh_row(gate, entries)
            total = total + (pieces[q] + entries,)  # noqa: RUF005
        pieces = total
    return pieces


@triton.jit(do_not_specialize=SCALARS)
def sweep_graphs(
    labels, unary, rows, first_node, pointer, base, others, gates, slot, site, starts, index, count, flips, bad, arrivals,
    scale, key0, key1, purpose, sweeps, groups, together, team, replicas, volume, slots, colors, ends,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, MEMBERS: tl.constexpr,
    GATED: tl.constexpr, SINGLE: tl.constexpr, TEAMED: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """All colours of ``sweeps`` sweeps; program ``(graph * groups + group) * team + member`` holds ``together`` replicas.

    labels: uint8 [N, R, volume], changed in place, void (L) where no node is; unary: float32 [N, slots, PAD]; rows: float32
    [rows, PAD]; first_node to gates: as in `Net`; slot, site, starts: as in `Nodes`; index, count: int64 [N]; flips: int64
    [N, R], added to; bad: bool [1], where it is true nothing happens, or None. TEAMED: arrivals: int32 [teams * 32], 0. All
    contiguous.
    """
    member = tl.program_id(0) % team
    group = (tl.program_id(0) // team) % groups
    graph = tl.program_id(0) // team // groups
    origin = group * together
    here_replicas = tl.minimum(together, replicas - origin)
    starting = starts + graph * (colors + 1)
    go = tl.load(starting + colors) * sweeps > 0
    if bad is not None:
        go = go & (tl.load(bad) == 0)
    if go:
        begun, number, base_node = tl.load(count + graph), tl.load(index + graph), tl.load(first_node + graph)
        row = graph.to(tl.int64) * slots
        gate, target, moved = arrivals, team, sweeps * 0
        if TEAMED:
            gate = arrivals + (graph * groups + group) * APART
        for done in range(sweeps):
            for color in range(colors):
                first = tl.load(starting + color)
                length = tl.load(starting + color + 1) - first
                items = length * here_replicas
                stretch = (items + team - 1) // team
                begin = tl.minimum(member * stretch, items)
                end = tl.minimum(begin + stretch, items)
                for start in range(begin, end, LANES):
                    item = start + tl.arange(0, LANES)
                    rank, replica, valid = lanes(item, length, length, here_replicas, SINGLE)
                    valid = valid & (item < end)
                    replica = replica + origin
                    chain = graph.to(tl.int64) * replicas + replica
                    listed = row + first + rank
                    node = tl.load(slot + listed, mask=valid, other=0)
                    at = labels + chain * volume
                    added = factors_of(
                        at, (pointer, base, others, gates), rows, base_node + node, valid, ends, LABELS, PAD, WIDTH, MEMBERS,
                        GATED,
                    )  # fmt: skip
                    alone = load_row(unary + (row + node) * PAD, valid, PAD, WIDTH)
                    total = ()
                    for q in tl.static_range(PAD // WIDTH):
                        total = total + (alone[q] + added[q],)  # noqa: RUF005
                    bits = tl.load(site + listed, mask=valid, other=0)
                    u = uniform(bits, begun + done, number, replica, purpose, key0, key1)
                    current = tl.load(at + node, mask=valid, other=0).to(tl.int32)
                    drawn, _ = draw(separate(total, PAD, WIDTH), current, u, scale, LABELS, FAR)
                    flipped = valid & (drawn != current)
                    tl.store(at + node, drawn.to(tl.uint8), mask=flipped)
                    if SINGLE:
                        moved += tl.sum(flipped.to(tl.int32), 0)
                    else:
                        tl.atomic_add(flips + chain, flipped.to(tl.int64), mask=flipped, sem="relaxed")
                # The next colour reads what was drawn.
                meet(gate, target, TEAMED)
                target += team
        if SINGLE:
            tl.atomic_add(flips + graph, moved.to(tl.int64), mask=moved > 0, sem="relaxed")


def sweep(
    labels: Tensor, unary: Tensor, rows: Tensor, net: Net, nodes: Nodes, index: Tensor, count: Tensor, flips: Tensor,
    bad: Tensor | None, sweeps: int, scale: float, key: tuple[int, int], purpose: int, num_labels: int, shape: Launch,
) -> None:  # fmt: skip
    """Runs ``sweeps`` sweeps in place. key: the words as signed 32-bit integers."""
    graphs, replicas, volume = labels.shape
    slots, colors = unary.shape[1], nodes.starts.shape[1] - 1
    together = shape.together(replicas, slots // max(colors, 1))
    groups = -(-replicas // together)

    def run(shape: Launch) -> None:
        arrivals = None
        if shape.team > 1:
            arrivals = torch.zeros(graphs * groups * APART.value, dtype=torch.int32, device=labels.device)
        launch(
            sweep_graphs, graphs * groups * shape.team, labels, unary, rows, *net, *nodes, index, count, flips, bad, arrivals,
            scale, *key, purpose, sweeps, groups, together, shape.team, replicas, volume, slots, colors, len(net.base),
            LABELS=num_labels, PAD=padded(num_labels), WIDTH=width(num_labels), LANES=shape.lanes, MEMBERS=len(net.others),
            GATED=net.gates is not None, SINGLE=replicas == 1, TEAMED=shape.team > 1, FAR=far(scale), **shape.options(),
        )  # fmt: skip

    with_room(run, shape)


@triton.jit(do_not_specialize=["blocks", "replicas", "volume", "slots", "ends"])
def add_graph_conditionals(
    labels, unary, rows, first_node, pointer, base, others, gates, slot, bad, out, energy, scale, blocks, replicas, volume,
    slots, ends,
    LABELS: tl.constexpr, PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MEMBERS: tl.constexpr,
    GATED: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Adds to ``out``; program ``graph * blocks + block`` takes BLOCK listed nodes and goes through the replicas.

    bad: bool [1], where it is true nothing is added, or None; out: float64 [N, slots, L]; energy: float64 [N, R], added to;
    the rest as in `sweep_graphs`. All contiguous.
    """
    graph = (tl.program_id(0) // blocks).to(tl.int64)
    rank = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    node = tl.load(slot + graph * slots + rank, mask=rank < slots, other=-1)
    if bad is not None:
        node = tl.where(tl.load(bad) == 0, node, -1)
    valid = node >= 0
    node = tl.where(valid, node, 0)
    row = graph * slots + node
    alone = load_row(unary + row * PAD, valid, PAD, WIDTH)
    for replica in range(replicas):
        chain = graph * replicas + replica
        # One pointer for all lanes, as `factors_of` wants one each.
        at = labels + chain * volume + node.to(tl.int64) * 0
        added = factors_of(
            at, (pointer, base, others, gates), rows, tl.load(first_node + graph) + node, valid, ends, LABELS, PAD, WIDTH,
            MEMBERS, GATED,
        )  # fmt: skip
        pieces = ()
        for q in tl.static_range(PAD // WIDTH):
            pieces = pieces + (alone[q] + added[q],)  # noqa: RUF005
        energies = separate(pieces, PAD, WIDTH)
        weights, total = weigh(energies, scale, LABELS, FAR)
        target = out + row * LABELS
        add_shares(at + node, energies, weights, total, target, energy + chain, valid, replicas, LABELS)


def conditionals(
    labels: Tensor, unary: Tensor, rows: Tensor, net: Net, nodes: Nodes, bad: Tensor | None, out: Tensor, scale: float,
    num_labels: int, block: int, warps: int,
) -> Tensor:  # fmt: skip
    """Adds each free node's conditional to ``out`` float64 ``[N, S, L]``; returns the energies, float64 ``[N, R]``."""
    graphs, replicas, volume = labels.shape
    slots = unary.shape[1]
    energy = torch.zeros((graphs, replicas), dtype=torch.float64, device=labels.device)
    blocks = -(-slots // block)
    launch(
        add_graph_conditionals, graphs * blocks, labels, unary, rows, *net, nodes.slot, bad, out, energy, scale, blocks,
        replicas, volume, slots, len(net.base), LABELS=num_labels, PAD=padded(num_labels), WIDTH=width(num_labels),
        BLOCK=block, MEMBERS=len(net.others), GATED=net.gates is not None, FAR=far(scale), num_warps=warps,
        enable_fp_fusion=False, maxnreg=255,
    )  # fmt: skip
    return energy
