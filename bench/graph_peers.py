"""How fast are others on the same graph? A user's numba loop, thrml, dwave-samplers and a torch program, from the same labels.

Each is a function of a `Task` that gives chains to run, or a sentence that says why it cannot run here. A chain a thread.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, unused-ignore"

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.peers import Array, Chains, side_by_side
from bench.peers.thrml_blocks import Moving, types


@dataclass(frozen=True)
class Task:
    """One class of factors under a symmetric table, as plain arrays."""

    logits: Array
    """float32 [V, L]."""
    members: Array
    """int64 [F, k]."""
    table: Array
    """float32 [L, .., L], energies."""
    color: Array
    """int32 [V]."""
    start: Array
    """uint8 [chains, V]."""

    @functools.cached_property
    def neighbors(self) -> tuple[Array, Array]:
        """Of pairs: where each node's neighbours begin, int64 [V + 1], and they, int32 [2F]."""
        ends = np.concatenate([self.members, self.members[:, ::-1]])
        ends = ends[np.argsort(ends[:, 0], kind="stable")]
        first = np.zeros(len(self.logits) + 1, np.int64)
        first[1:] = np.bincount(ends[:, 0], minlength=len(self.logits)).cumsum()
        return first, ends[:, 1].astype(np.int32)


@functools.cache
def _compiled() -> Any:
    import numba as nb

    @nb.njit(nogil=True)
    def sweep(labels: Array, logits: Array, table: Array, first: Array, neighbors: Array, sweeps: int) -> int:
        count = logits.shape[1]
        energy = np.empty(count, np.float32)
        flips = 0
        for _ in range(sweeps):
            for v in range(len(labels)):
                for label in range(count):
                    energy[label] = -logits[v, label]
                for e in range(first[v], first[v + 1]):
                    other = labels[neighbors[e]]
                    for label in range(count):
                        energy[label] += table[other, label]
                low, total = energy.min(), 0.0
                for label in range(count):
                    energy[label] = np.exp(low - energy[label])
                    total += energy[label]
                left, new = np.random.random() * total, 0  # noqa: NPY002
                while new < count - 1 and left >= energy[new]:
                    left -= energy[new]
                    new += 1
                flips += new != labels[v]
                labels[v] = new
        return flips

    return sweep


class Loop:
    """The loop that a user writes: node after node, no colours, numba's own random numbers, libm's exp."""

    def __init__(self, task: Task) -> None:
        self.rows, self.sweep = [row.copy() for row in task.start], _compiled()
        self.given = (task.logits, task.table, *task.neighbors)

    def run(self, sweeps: int) -> int:
        return int(side_by_side([lambda y=row: self.sweep(y, *self.given, sweeps) for row in self.rows]))  # type: ignore[misc]

    def labels(self) -> Array:
        return np.stack(self.rows)


class Thrml(Moving):
    """thrml's blocks and programs, a conditional of ours that shares the table; missing neighbours are one clamped node."""

    def __init__(self, task: Task) -> None:
        thrml, unary_type, sampler_type = types()
        jnp: Any = importlib.import_module("jax.numpy")
        number, labels = task.logits.shape
        first, neighbors = task.neighbors
        most = int(np.diff(first).max())
        nodes = np.array([thrml.CategoricalNode() for _ in range(number + 1)], object)
        around = np.full((number, most), number)
        place = np.arange(len(neighbors)) - np.repeat(first[:-1], np.diff(first))
        around[np.repeat(np.arange(number), np.diff(first)), place] = neighbors
        rows = np.zeros((most, labels + 1, labels), np.float32)
        rows[:, :-1] = task.table
        chosen = [np.flatnonzero(task.color == color) for color in range(task.color.max() + 1)]
        blocks = [thrml.Block(nodes[part].tolist()) for part in chosen]
        group = thrml.InteractionGroup(
            unary_type(jnp.asarray(-task.logits)), thrml.Block(nodes[:-1].tolist()),
            [thrml.Block(nodes[column].tolist()) for column in around.T],
        )  # fmt: skip
        samplers = [sampler_type(jnp.asarray(rows)) for _ in blocks]
        spec = thrml.BlockGibbsSpec(blocks, [thrml.Block([nodes[-1]])])
        super().__init__(thrml.BlockSamplingProgram(spec, samplers, [group]), chosen, np.asarray(task.start), labels)


class Dwave:
    """dwave-samplers' compiled annealer held at one temperature: an Ising model, Gibbs acceptance, spins one after another.

    Its lists are made before; what a call builds of them is counted, so that a call makes many sweeps.
    """

    least = 1000

    def __init__(self, task: Task) -> None:
        module: Any = importlib.import_module("dwave.samplers.sa.simulated_annealing")
        self.anneal, self.calls = module.simulated_annealing, 0
        if task.logits.shape[1] != 2:
            raise ImportError("it knows two labels only")
        # Label 1 is spin +1: E = sum h s + sum J s s, less a constant.
        self.fields = ((task.logits[:, 0] - task.logits[:, 1]) / 2).astype(float)
        same, other = task.table[0, 0] + task.table[1, 1], task.table[0, 1] + task.table[1, 0]
        slope = (task.table[1, 1] - task.table[0, 0]) / 4
        np.add.at(self.fields, task.members.reshape(-1), slope)
        self.edges = task.members[:, 0].tolist(), task.members[:, 1].tolist(), [float(same - other) / 4] * len(task.members)
        self.h, self.spins = self.fields.tolist(), [(2 * row.astype(np.int8) - 1)[None].copy() for row in task.start]

    def run(self, sweeps: int) -> int:
        self.calls += 1
        side_by_side([functools.partial(self._move, n, sweeps) for n in range(len(self.spins))])
        return -1

    def _move(self, n: int, sweeps: int) -> int:
        seed = 1 + self.calls * len(self.spins) + n
        self.anneal(1, self.h, *self.edges, sweeps, [1.0], seed, self.spins[n], False, "Gibbs", None)
        return 0

    def labels(self) -> Array:
        return np.concatenate([(spins + 1) // 2 for spins in self.spins]).astype(np.uint8)


class Enumeration:
    """A torch program for factors of any arity: colour by colour, every factor's entries for each label of the node at hand."""

    def __init__(self, task: Task) -> None:
        self.rows = torch.from_numpy(task.start.astype(np.int64))
        self.logits, self.count = torch.from_numpy(task.logits), task.logits.shape[1]
        self.table, members = torch.from_numpy(task.table), torch.from_numpy(task.members)
        color, self.phases = torch.from_numpy(task.color.astype(np.int64)), []
        for c in range(int(color.max()) + 1):
            nodes = (color == c).nonzero()[:, 0]
            number = torch.full((len(color),), -1).scatter(0, nodes, torch.arange(len(nodes)))
            ends = []
            for axis in range(members.shape[1]):
                own = members[number[members[:, axis]] >= 0]
                others = [k for k in range(members.shape[1]) if k != axis]
                ends.append((number[own[:, axis]], own[:, others], self.table.movedim(axis, -1)))
            self.phases.append((nodes, ends))

    def run(self, sweeps: int) -> int:
        flips = 0
        for _ in range(sweeps):
            for labels in self.rows:
                for nodes, ends in self.phases:
                    energy = -self.logits[nodes]
                    for owner, others, table in ends:
                        energy.index_add_(0, owner, table[tuple(labels[others].T)])
                    new = torch.multinomial((-energy).softmax(1), 1)[:, 0]
                    flips += int((new != labels[nodes]).sum())
                    labels[nodes] = new
        return flips

    def labels(self) -> Array:
        return self.rows.numpy().astype(np.uint8)


PEERS: dict[str, Callable[[Task], Chains]] = {
    "user's numba loop": Loop, "thrml": Thrml, "dwave-samplers": Dwave, "torch, every label of every factor": Enumeration,
}  # fmt: skip


def start(name: str, task: Task) -> Chains | str:
    """Chains of a peer, or why there are none."""
    try:
        return PEERS[name](task)
    except ImportError as error:
        return f"{name}: {error}"
