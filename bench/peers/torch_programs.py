"""How fast are programs in plain torch? All sites of a colour at once, the chains as a batch, torch's own threads.

"naive" indexes the tables by direction and neighbour's label and sums; "embedding_bag" leaves both to that operator;
"compile" is the naive one through torch.compile, which needs a C++ compiler.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.peers import Array, Frame, Task, Ways

Draw = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def naive(labels: Tensor, sites: Tensor, unary: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
    """New labels ``[chains, sites]`` of one colour: labels int64 [chains, P], sites [M], unary [M, L], rows [D, L + 1, L]."""
    around = labels[:, sites[:, None] + steps]
    energy = unary + rows[torch.arange(len(steps)), around].sum(-2)
    return torch.multinomial((-energy).softmax(-1).flatten(0, 1), 1).view(len(labels), -1)


def embedding_bag(labels: Tensor, sites: Tensor, unary: Tensor, rows: Tensor, steps: Tensor) -> Tensor:
    """The same by one operator."""
    around = labels[:, sites[:, None] + steps] + torch.arange(len(steps)) * rows.shape[1]
    sums = F.embedding_bag(around.flatten(0, 1), rows.flatten(0, 1), mode="sum")
    energy = unary + sums.view(len(labels), *unary.shape)
    return torch.multinomial((-energy).softmax(-1).flatten(0, 1), 1).view(len(labels), -1)


class Program:
    """Chains as a batch of flat label rows with a border."""

    def __init__(self, task: Task, draw: Any) -> None:
        self.frame = Frame.of(task)
        self.draw: Draw = draw
        self.rows, self.steps = torch.from_numpy(self.frame.rows), torch.from_numpy(self.frame.steps)
        self.y = torch.from_numpy(self.frame.labels).long()
        self.phases = [
            (torch.from_numpy(sites), torch.from_numpy(unary))
            for sites, unary in zip(self.frame.phases, self.frame.unaries, strict=True)
        ]

    @torch.no_grad()
    def run(self, sweeps: int) -> int:
        flips = 0
        for _ in range(sweeps):
            for sites, unary in self.phases:
                new = self.draw(self.y, sites, unary, self.rows, self.steps)
                flips += int((new != self.y[:, sites]).sum())
                self.y[:, sites] = new
        return flips

    def labels(self) -> Array:
        return self.frame.image(self.y.numpy())


def start(task: Task) -> Ways | str:
    """The three programs; the compiled one only where there is a compiler."""
    ways: Ways = {"naive": Program(task, naive), "embedding_bag": Program(task, embedding_bag)}
    if shutil.which("g++") is not None:
        ways["compile"] = Program(task, torch.compile(naive, dynamic=True))
    return ways
