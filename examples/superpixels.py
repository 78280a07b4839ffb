"""What do superpixels make of a network's logits? A CRF on regions that touch, beside one on pixels; both learn jointly."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.segmentation import slic
from torch import Tensor, nn

import tritoncrf as tc
from tritoncrf.graph_builders import Superpixels, superpixels
from tritoncrf.networks import small
from tritoncrf.plots import colorize, label_grid

# Pixels of a superpixel, about.
AREA = 32
VOID, BATCH, SWEEPS = 255, 4, 100


class Photographs:
    """Pictures, labels, and the regions of each picture: a graph, a label and the area of every node."""

    def __init__(self, pictures: list[Tensor], labels: list[Tensor]) -> None:
        self.pictures, self.labels = pictures, labels
        self.found: list[Superpixels] = []
        self.targets: list[Tensor] = []
        for picture, label in zip(pictures, labels, strict=True):
            # Smoothed: in noise hardly any region holds together.
            image, many = picture.permute(1, 2, 0).numpy(), label.numel() // AREA
            segments = slic(image, n_segments=many, compactness=10, sigma=1, start_label=0)
            found = superpixels(segments)
            votes = torch.zeros(found.graph.num_nodes, VOID + 1)
            votes.index_put_((found.node.flatten(), label.flatten()), torch.ones(label.numel()), accumulate=True)
            # A region of no label that is known is latent.
            known = votes[:, :VOID]
            self.found.append(found)
            self.targets.append(torch.where(known.sum(1) > 0, known.argmax(1), VOID))

    def __len__(self) -> int:
        return len(self.pictures)


def drawn(count: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Stands for photographs: three kinds of coloured houses on a ground, and noise."""
    make = torch.Generator().manual_seed(seed)
    colors = torch.tensor([[0.5, 0.6, 0.7], [0.7, 0.4, 0.3], [0.6, 0.6, 0.4], [0.4, 0.5, 0.4]])
    pictures, labels = [], []
    for _ in range(count):
        label = torch.zeros(64, 64, dtype=torch.long)
        for _ in range(5):
            y, x, h, w, kind = (int(torch.randint(n, (), generator=make)) for n in (50, 50, 24, 24, 3))
            label[y : y + 8 + h, x : x + 8 + w] = kind + 1
        pictures.append((colors[label] + 0.25 * torch.randn(64, 64, 3, generator=make)).permute(2, 0, 1).clamp(0, 1))
        labels.append(label)
    return pictures, labels


def photographs(path: str, split: str) -> tuple[list[Tensor], list[Tensor]]:
    """Of an archive with ``images`` uint8 ``[N, H, W, 3]``, ``labels`` uint8, ``sizes`` ``[N, 2]`` and ``split``."""
    with np.load(Path(path)) as data:
        images, marks, sizes = data["images"], data["labels"], data["sizes"]
        chosen = [(n, *sizes[n]) for n in np.flatnonzero(data["split"] == split)]
    pictures = [torch.from_numpy(images[n, :h, :w]).permute(2, 0, 1).float() / 255 for n, h, w in chosen]
    return pictures, [torch.from_numpy(marks[n, :h, :w]).long() for n, h, w in chosen]


def padded(parts: list[Tensor], value: float) -> Tensor:
    """Pictures of several sizes in one batch."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.stack([F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2]), value=value) for part in parts])


def learn(data: Photographs, network: nn.Module, steps: int, rate: float, value: Callable[[Tensor], Tensor],
          tables: list[nn.Parameter]) -> float:  # fmt: skip
    """Steps on random pictures, at rates that fall to 0; ``value`` tells the loss of some of them. Seconds it took."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([{"params": network.parameters(), "lr": rate}, {"params": tables, "lr": 3e-3}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        value(torch.randint(len(data), (BATCH,))).backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - began


def main(steps: int, path: str | None = None, picture: str | None = None) -> None:
    torch.manual_seed(0)
    count = 12 if path else 4
    train, test = ((photographs(path, split) if path else drawn(20, n)) for n, split in enumerate(("train", "test")))
    train, test = Photographs(*train), Photographs(*test)
    network = small(3, count)

    def pixels(model: nn.Module, data: Photographs, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = index.tolist()
        sizes = torch.tensor([data.labels[n].shape for n in chosen])
        logits = model(padded([data.pictures[n] for n in chosen], 0.0))
        return logits, padded([data.labels[n] for n in chosen], VOID), sizes

    def nodes(model: nn.Module, data: Photographs, index: Tensor) -> tuple[Tensor, Tensor, tc.FactorGraph]:
        """The mean of the pixels' logits over every region."""
        logits, _, sizes = pixels(model, data, index)
        parts = [data.found[n].mean(logits[k, :, : sizes[k, 0], : sizes[k, 1]]) for k, n in enumerate(index.tolist())]
        graph = tc.FactorGraph.batch([data.found[n].graph for n in index.tolist()])
        return torch.cat(parts), torch.cat([data.targets[n] for n in index.tolist()]), graph

    def entropy(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda index: F.cross_entropy(*pixels(model, train, index)[:2], ignore_index=VOID)

    learn(train, network, steps, 3e-3, entropy(network), [])
    control, below, above = (copy.deepcopy(network) for _ in range(3))
    seconds = {"network, as long": learn(train, control, steps, 1e-3, entropy(control), [])}

    grid = tc.GridCRF(count, tc.Neighborhood.grid(12, 6) | tc.Neighborhood.grid(1))
    sizes_of = [tuple(label.shape) for label in train.labels]
    # Photographs' chains are slow: many sweeps a visit.
    on_pixels = tc.CRFLoss(grid, chains=tc.ChainStore(sizes_of, seed=0), sweeps=SWEEPS)

    def lattice(index: Tensor) -> Tensor:
        logits, labels, sizes = pixels(below, train, index)
        return on_pixels(logits, labels, index, sizes=sizes)

    seconds["with a CRF of pixels"] = learn(train, below, steps, 1e-3, lattice, list(grid.parameters()))

    regions = tc.FactorCRF(count, [2])
    nodes_of = [(part.graph.num_nodes,) for part in train.found]
    on_regions = tc.CRFLoss(regions, chains=tc.ChainStore(nodes_of, seed=0), sweeps=SWEEPS)

    def graphs(index: Tensor) -> Tensor:
        logits, labels, graph = nodes(above, train, index)
        return on_regions(logits, labels, index, graph=graph)

    seconds["with a CRF of superpixels"] = learn(train, above, steps, 1e-3, graphs, list(regions.parameters()))

    answers: dict[str, list[Tensor]] = {name: [] for name in ("network", *seconds, "best of superpixels")}
    asked = dict.fromkeys(answers, 0.0)
    with torch.no_grad():
        for n in range(len(test)):
            index, found = torch.tensor([n]), test.found[n]

            def region(index: Tensor = index, found: Superpixels = found) -> Tensor:
                logits, _, graph = nodes(above, test, index)
                return found.spread(tc.max_marginal(regions, logits, sweeps=60, burn_in=30, graph=graph))

            ways: dict[str, Callable[[], Tensor]] = {
                "network": lambda index=index: pixels(network, test, index)[0].argmax(1)[0],  # type: ignore[misc]
                "network, as long": lambda index=index: pixels(control, test, index)[0].argmax(1)[0],  # type: ignore[misc]
                "with a CRF of pixels": lambda index=index: tc.max_marginal(  # type: ignore[misc]
                    grid, pixels(below, test, index)[0], sweeps=60, burn_in=30
                )[0],
                "with a CRF of superpixels": region,
                "best of superpixels": lambda n=n, found=found: found.spread(test.targets[n]),  # type: ignore[misc]
            }
            for name, way in ways.items():
                began = time.perf_counter()
                answers[name].append(way().long())
                asked[name] += time.perf_counter() - began
    known = torch.cat([label.flatten() for label in test.labels]) != VOID
    truth = torch.cat([label.flatten() for label in test.labels])[known]
    for name, found_labels in answers.items():
        right = (torch.cat([part.flatten() for part in found_labels])[known] == truth).float().mean()
        learned = f"{seconds[name]:.0f} s of learning, " if name in seconds else ""
        print(f"{name}: {right:.1%} of the pixels right, {learned}{1e3 * asked[name] / len(test):.0f} ms a picture")
    if picture is not None:
        shown = ["network, as long", "with a CRF of pixels", "with a CRF of superpixels"]
        rows = []
        for n in range(3):
            photo = test.pictures[n].permute(1, 2, 0).numpy()
            rows.append([photo, *(colorize(part, count) for part in (test.labels[n], *(answers[k][n] for k in shown)))])
        label_grid(rows, ["picture", "truth", *shown], picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--data", metavar="FILE", help="an archive of photographs with labels; without one pictures are made")
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.data, options.picture)
