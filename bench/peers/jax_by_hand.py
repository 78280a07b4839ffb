"""How fast is a program in plain JAX? One compiled loop over sweeps and colours, all sites of a colour at once.

XLA's own threads take what cores there are, whatever number of threads was asked for; the chains run side by side.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from bench.peers import Array, Frame, Task, Ways, side_by_side


@functools.cache
def _compiled() -> Any:
    jax: Any = importlib.import_module("jax")
    jnp = jax.numpy

    def sweep(labels: Any, key: Any, sweeps: Any, sites: Any, real: Any, unary: Any, rows: Any, steps: Any) -> Any:
        """labels [P]; sites, real [K, M] (colours padded to one length), unary [K, M, L], rows [D, L + 1, L], steps [D]."""

        def phase(labels: Any, colour: Any) -> Any:
            sites, real, unary, key = colour
            around = labels[sites[:, None] + steps].astype(jnp.int32)
            energy = unary + rows[jnp.arange(len(steps)), around].sum(1)
            weights = jnp.cumsum(jnp.exp(energy.min(1, keepdims=True) - energy), 1)
            x = jax.random.uniform(key, (len(sites), 1)) * weights[:, -1:]
            new = jnp.minimum((weights <= x).sum(1), unary.shape[1] - 1).astype(labels.dtype)
            flips = jnp.sum((new != labels[sites]) & real)
            return labels.at[jnp.where(real, sites, len(labels))].set(new, mode="drop"), flips

        def once(_: Any, state: Any) -> Any:
            labels, key, flips = state
            key, use = jax.random.split(key)
            labels, moved = jax.lax.scan(phase, labels, (sites, real, unary, jax.random.split(use, len(sites))))
            return labels, key, flips + moved.sum()

        return jax.lax.fori_loop(0, sweeps, once, (labels, key, jnp.zeros((), jnp.int32)))

    return jax, jax.jit(sweep)


class Program:
    """A labelling and a key for each chain."""

    def __init__(self, task: Task, jax: Any, sweep: Any) -> None:
        self.frame, self.sweep = Frame.of(task), sweep
        frame = self.frame
        longest = max(map(len, frame.phases))
        # A padding site stands at the first real one, and what is drawn there is dropped.
        sites = np.stack([np.pad(p, (0, longest - len(p)), mode="edge") for p in frame.phases])
        real = np.stack([np.arange(longest) < len(p) for p in frame.phases])
        unary = np.stack([np.pad(u, ((0, longest - len(u)), (0, 0))) for u in frame.unaries])
        self.arguments = [jax.numpy.asarray(a) for a in (sites.astype(np.int32), real, unary, frame.rows)]
        self.arguments.append(jax.numpy.asarray(frame.steps.astype(np.int32)))
        self.states = [[jax.numpy.asarray(y), jax.random.key(n)] for n, y in enumerate(frame.labels)]

    def run(self, sweeps: int) -> int:
        return side_by_side([functools.partial(self._move, state, sweeps) for state in self.states])

    def _move(self, state: list[Any], sweeps: int) -> int:
        state[0], state[1], flips = self.sweep(*state, sweeps, *self.arguments)
        return int(flips)

    def labels(self) -> Array:
        return self.frame.image(np.stack([np.asarray(labels) for labels, _ in self.states]))


def start(task: Task) -> Ways | str:
    """One program."""
    try:
        return {"gather": Program(task, *_compiled())}
    except ImportError:
        return "jax is not installed: pip install jax"
