"""How fast is thrml, a published JAX package for block Gibbs sampling? Its own blocks and programs, a conditional of ours.

Its stock categorical factor stores a table for each edge (gigabytes here); the interaction and the conditional sampler
below share a table for each direction, as its documentation invites users to. Sites beyond the image are one clamped node.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from bench.peers import Array, Task, Ways, side_by_side


@functools.cache
def types() -> tuple[Any, Any, Any]:
    """The package, an interaction that holds a site's unaries, and a conditional sampler that holds the shared tables."""
    thrml: Any = importlib.import_module("thrml")
    equinox: Any = importlib.import_module("equinox")
    softmax: Any = importlib.import_module("thrml.conditional_samplers").SoftmaxConditional
    jnp: Any = importlib.import_module("jax.numpy")
    array: Any = importlib.import_module("jax").Array

    class Unary(equinox.Module):  # type: ignore[misc]
        values: array

    class Shared(softmax):  # type: ignore[misc]
        rows: array

        def compute_parameters(self, key: Any, interactions: Any, active: Any, states: Any, state: Any, out: Any) -> Any:
            around = jnp.concatenate(states[0], axis=1).astype(jnp.int32)
            pairs = self.rows[jnp.arange(len(self.rows)), around].sum(1)
            return -(interactions[0].values[:, 0] + pairs), state

    return thrml, Unary, Shared


class Moving:
    """A program and a state for each chain: labels by block, and a key."""

    def __init__(self, program: Any, places: list[Array], start: Array, labels: int) -> None:
        """places: of each block among a chain's labels, masks or numbers; start: the labels [chains, ..] to move."""
        self.jax: Any = importlib.import_module("jax")
        jnp = self.jax.numpy
        self.program, self.places, self.shape = program, places, start.shape
        self.clamped = [jnp.full((1,), labels, jnp.uint8)]
        self.states = [[[jnp.asarray(row[part]) for part in places], self.jax.random.key(n)] for n, row in enumerate(start)]
        self.sweep = _sweep()

    def run(self, sweeps: int) -> int:
        return side_by_side([functools.partial(self._move, state, sweeps) for state in self.states])

    def _move(self, state: list[Any], sweeps: int) -> int:
        state[0], state[1], flips = self.sweep(self.program, *state, self.clamped, self.jax.numpy.asarray(sweeps))
        return int(flips)

    def labels(self) -> Array:
        found = np.zeros(self.shape, np.uint8)
        for row, (blocks, _) in zip(found, self.states, strict=True):
            for part, block in zip(self.places, blocks, strict=True):
                row[part] = np.asarray(block)
        return found


class Program(Moving):
    """The lattice, whose missing neighbours are one clamped node."""

    def __init__(self, task: Task) -> None:
        thrml, unary_type, sampler_type = types()
        jnp: Any = importlib.import_module("jax.numpy")
        (height, width), labels = task.color.shape, task.unary.shape[-1]
        nodes = np.array([thrml.CategoricalNode() for _ in range(height * width)], object).reshape(height, width)
        void = thrml.CategoricalNode()
        offsets = np.stack([task.offsets, -task.offsets], 1).reshape(-1, 2)
        ys, xs = np.mgrid[:height, :width]
        tails = []
        for dy, dx in offsets:
            inside = (ys + dy >= 0) & (ys + dy < height) & (xs + dx >= 0) & (xs + dx < width)
            found = nodes[(ys + dy).clip(0, height - 1), (xs + dx).clip(0, width - 1)]
            tails.append(thrml.Block(np.where(inside, found, void).ravel().tolist()))
        rows = np.zeros((len(offsets), labels + 1, labels), np.float32)
        rows[0::2, :-1], rows[1::2, :-1] = task.pairwise.transpose(0, 2, 1), task.pairwise
        masks = [task.color == color for color in np.unique(task.color)]
        blocks = [thrml.Block(nodes[mask].tolist()) for mask in masks]
        group = thrml.InteractionGroup(
            unary_type(jnp.asarray(task.unary.reshape(-1, labels))), thrml.Block(nodes.ravel().tolist()), tails
        )
        samplers = [sampler_type(jnp.asarray(rows)) for _ in blocks]
        program = thrml.BlockSamplingProgram(thrml.BlockGibbsSpec(blocks, [thrml.Block([void])]), samplers, [group])
        super().__init__(program, masks, np.asarray(task.start), labels)


@functools.cache
def _sweep() -> Any:
    jax: Any = importlib.import_module("jax")
    blocks: Any = importlib.import_module("thrml.block_sampling")

    def sweep(program: Any, labels: Any, key: Any, clamped: Any, sweeps: Any) -> Any:
        def once(_: Any, state: Any) -> Any:
            labels, key, flips = state
            key, use = jax.random.split(key)
            moved, _ = blocks.sample_blocks(use, list(labels), clamped, program, [None] * len(labels))
            changed = sum((new != old).sum() for new, old in zip(moved, labels, strict=True))
            return moved, key, flips + changed

        return jax.lax.fori_loop(0, sweeps, once, (labels, key, jax.numpy.zeros((), jax.numpy.int32)))

    return importlib.import_module("equinox").filter_jit(sweep)


def start(task: Task) -> Ways | str:
    """One program; building it walks its graph in Python and takes a while."""
    try:
        return {"gather": Program(task)}
    except ImportError:
        return "thrml is not installed: pip install thrml"
