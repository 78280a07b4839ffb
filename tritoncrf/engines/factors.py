"""Where do a graph's neighbours come from? Lists of factors, in the place of a lattice's displacements and slot ranges.

A node's energies are its unary row plus one row of a table for each factor that it stands in: the entries that vary along the
node's own axis, at the labels of the factor's other members. All tables lie in one flat row, class after class, kind after
kind, each row-major; a factor one of whose members holds void reads nothing. A gated factor's entries are weighed and put on
the grid one by one (`contract.gate`).

In a plan with factors a slot is a node's number in its own graph, and so is its position: ``positions`` and ``pixels`` are
0 .. S - 1, ``volume`` is S + 1, the last position is void. ``color_bounds`` is (0, S), displacements and classes are empty:
colours are `Factors.colors`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tritoncrf import contract

# Ends whose rows are gathered at once.
TOGETHER = 1 << 18


@dataclass(frozen=True)
class Ends:
    """All factors of one arity, F of them, and their E = F * arity ends, node by node. V nodes of all graphs of a batch are
    numbered one graph after another."""

    arity: int
    members: Tensor
    """int64 [F, arity]: nodes of the batch, in the order of the table's axes."""
    table: Tensor
    """int32 [F]: which table a factor reads, among those of all classes and kinds (`Factors.starts`)."""
    gate: Tensor | None
    """uint8 [F]: in steps of 1 / 128; None: all of them 128."""
    pointer: Tensor
    """int64 [V + 1]: the ends of node v are ``pointer[v]`` to ``pointer[v + 1]``."""
    factor: Tensor
    """int32 [E]: the factor."""
    axis: Tensor
    """uint8 [E]: the table's axis that is the node's own."""
    others: Tensor
    """int32 [E, arity - 1]: the other members' positions in a row of their own graph, in the order of their axes."""


@dataclass(frozen=True)
class Factors:
    """The factors of a batch of N graphs."""

    num_labels: int
    """L."""
    arities: tuple[int, ...]
    """Of each class."""
    kinds: tuple[int, ...]
    """How many tables each class has."""
    starts: tuple[int, ...]
    """Where each table begins in the flat tables, class after class, kind after kind; then where the last one ends."""
    first: Tensor
    """int64 [N + 1]: nodes ``first[n]`` to ``first[n + 1]`` of the batch are graph n."""
    colors: Tensor
    """int32 [N, S]: the colour of each slot; 0 beyond a graph's nodes. No factor has two members of one colour."""
    num_colors: int
    ends: tuple[Ends, ...]
    """One for each arity that occurs, ascending."""
    kept: dict[str, object] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What engines made of these lists, by name, for the next batch of the same graphs."""

    @property
    def arity(self) -> int:
        """The largest."""
        return max(self.arities)

    @property
    def gated(self) -> bool:
        return any(part.gate is not None for part in self.ends)

    @property
    def nodes(self) -> int:
        """V."""
        return len(self.ends[0].pointer) - 1

    def graph_of(self, nodes: Tensor) -> Tensor:
        """int64: the graph of each node of the batch."""
        if len(self.first) == 2:
            return torch.zeros_like(nodes)
        return graph_of(self.first, nodes)

    def entries(self, part: Ends, labels: Tensor) -> Tensor:
        """int64 ``[R, F]``: the entry of the flat tables that each factor of ``part`` reads under labels uint8 ``[N, R,
        volume]``; ``starts[-1]``, one past the last, where a member holds void."""
        number, slots = self.num_labels, labels.shape[2] - 1
        nodes = part.members
        where = nodes if len(self.first) == 2 else nodes - self.first[self.graph_of(nodes)] + self.graph_of(nodes) * slots
        flat = labels[:, :, :-1].transpose(0, 1).flatten(1)[:, where].long()
        found = self._starts(labels.device)[part.table.long()].expand(len(flat), -1)
        for axis in range(part.arity):
            found = torch.addcmul(found, flat[..., axis], flat.new_tensor(number ** (part.arity - 1 - axis)))
        return found.masked_fill((flat >= number).any(2), self.starts[-1])

    def rows(self, nodes: Tensor, base: Tensor, flat: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Rows that sites read, piece by piece: (which site int64 ``[E]``, entries int64 ``[E, L]``, gates uint8 ``[E]``).

        nodes: int64 ``[A]`` nodes of the batch; base: int64 ``[A]``, where each one's chain begins in ``flat``, uint8: all
        chains' labels. An entry is ``starts[-1]`` where another member holds void.
        """
        for part in self.ends:
            for site, entries, factor in self.rows_of(part, nodes, base, flat):
                yield site, entries, None if part.gate is None else part.gate[factor]

    def rows_of(self, part: Ends, nodes: Tensor, base: Tensor, flat: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `rows`, of one arity, with each row's factor, int64 ``[E]``, in the place of its gate."""
        number, starts = self.num_labels, self._starts(flat.device)
        steps = torch.arange(number, device=flat.device)
        owner, ends = _of(part, nodes)
        kept = _strides(part.arity, number, flat.device)
        for site, end in zip(torch.split(owner, TOGETHER), torch.split(ends, TOGETHER), strict=True):
            others, axis, factor = part.others[end], part.axis[end].long(), part.factor[end].long()
            there = flat[base[site, None] + others].long()
            own, strides = kept[0][axis], kept[1][axis]
            entry = starts[part.table[factor].long()] + (there * strides).sum(1)
            entries = torch.addcmul(entry[:, None], own[:, None], steps)
            entries.masked_fill_((there >= number).any(1)[:, None], self.starts[-1])
            yield site, entries, factor

    def neighbours(self, nodes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The other members of all factors of ``nodes``: (which of ``nodes`` int64 ``[E]``, positions ``[E, arity - 1]``)."""
        for part in self.ends:
            owner, ends = _of(part, nodes)
            yield owner, part.others[ends]

    def only(self, n: int) -> Factors:
        """Those of graph n alone; its slots stay as many."""
        low, high = self.first[n : n + 2].tolist()
        parts = []
        for part in self.ends:
            a, b = part.pointer[[low, high]].tolist()
            own = (part.members[:, 0] >= low) & (part.members[:, 0] < high)
            numbers = own.cumsum(0) - 1
            parts.append(replace(
                part, members=part.members[own] - low, table=part.table[own],
                gate=None if part.gate is None else part.gate[own], pointer=part.pointer[low : high + 1] - a,
                factor=numbers[part.factor[a:b].long()].int(), axis=part.axis[a:b], others=part.others[a:b],
            ))  # fmt: skip
        return replace(self, first=self.first[n : n + 2] - low, colors=self.colors[n : n + 1], ends=tuple(parts))

    def _starts(self, device: torch.device) -> Tensor:
        return torch.tensor(self.starts, dtype=torch.int64, device=device)


def graph_of(first: Tensor, nodes: Tensor) -> Tensor:
    """int64: the graph of each node of a batch whose graphs begin at ``first``."""
    return torch.searchsorted(first, nodes.contiguous(), right=True) - 1


def starts_of(arities: tuple[int, ...], kinds: tuple[int, ...], labels: int) -> tuple[int, ...]:
    """`Factors.starts`."""
    sizes = (labels**arity for arity, count in zip(arities, kinds, strict=True) for _ in range(count))
    return tuple(itertools.accumulate(sizes, initial=0))


def _of(part: Ends, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Which of ``nodes``, and the end, int64 ``[E]`` both: all their ends."""
    begin = part.pointer[nodes]
    length = part.pointer[nodes + 1] - begin
    owner = torch.arange(len(nodes), device=nodes.device).repeat_interleave(length)
    return owner, torch.arange(len(owner), device=nodes.device) + (begin - length.cumsum(0) + length)[owner]


def _strides(arity: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """By how much an entry's place grows with the own label, int64 ``[arity]`` by own axis, and with those of the other
    members, ``[arity, arity - 1]``."""
    strides = [number ** (arity - 1 - axis) for axis in range(arity)]
    others = [[stride for axis, stride in enumerate(strides) if axis != own] for own in range(arity)]
    return (
        torch.tensor(strides, dtype=torch.int64, device=device),
        torch.tensor(others, dtype=torch.int64, device=device).view(arity, -1),
    )


def weigh(gate: Tensor | None, rows: Tensor) -> Tensor:
    """Rows as they count: gates uint8 ``[E]``, rounded rows float32 ``[E, L]``."""
    return rows if gate is None else contract.gate(gate[:, None], rows)
