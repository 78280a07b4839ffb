"""Can a network weigh its own edges? A head beside the logits, ``g = sigmoid(w * hidden)``, for the nearest classes.

The gate of the edge from pixel i to i + d weighs a table of its own beside the class's plain one: ``T[c] + g_c(i) G[c]``. Its
gradient is ``G[y_i, y_j] - G[y'_i, y'_j]`` (`tritoncrf.gradient`): zero while G is, so the tables move first. They get the
count differences weighted by g, which starts near 0.5 everywhere, and from the second step on the head learns where they help.
Of the network only the logits are pre-trained; the head starts from small random weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tritoncrf.lattice import Neighborhood

# Classes that get gates, and the deviation of the head's first weights.
NEAREST, START = 4, 0.01


class Gated(nn.Module):
    """A network that returns ``(logits, gates [N, 1, Cg, H, W])``; what a CRF must know of the gates are its attributes."""

    kinds = None
    gates = 1

    def __init__(self, network: nn.Module, neighborhood: Neighborhood) -> None:
        super().__init__()
        layers = list(network.children()) if isinstance(network, nn.Sequential) else []
        if not layers or not isinstance(layers[-1], nn.Conv2d):
            raise TypeError(f"network: expected a Sequential that ends in a convolution, got {type(network).__name__}")
        near = sorted(neighborhood.offsets, key=lambda offset: sum(step * step for step in offset))[:NEAREST]
        self.neighborhood = Neighborhood(tuple(near))
        self.body, self.head = nn.Sequential(*layers[:-1]), layers[-1]
        # 3 x 3, so that it sees both ends of an edge to the next pixel.
        self.gate = nn.Conv2d(self.head.in_channels, len(near), 3, padding=1).to(self.head.weight)
        nn.init.normal_(self.gate.weight, std=START)
        nn.init.zeros_(self.gate.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(image)
        return self.head(hidden), torch.sigmoid(self.gate(hidden))[:, None]
