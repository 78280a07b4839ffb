"""How are sequences labelled whose distant places belong together? A chain, and edges between the places of one name."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import tritoncrf as tc
from tritoncrf.graph_recipes import chain
from tritoncrf.plots import colorize, label_grid

LABELS, FEATURES, NAMES, LENGTH = 5, 12, 8, 80


class Sequences:
    """Made sequences: labels that tend to stay, some places that bear a name, whose label is the same wherever it stands.

    What is seen of a place tells little of its label, as a context does; which places bear the same name is known.
    """

    def __init__(self, count: int, seed: int) -> None:
        make, looks = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
        means = torch.randn(LABELS, FEATURES, generator=looks)
        self.features, self.labels, self.names = list[Tensor](), list[Tensor](), list[Tensor]()
        self.graphs = list[tc.FactorGraph]()
        for _ in range(count):
            own = torch.randint(LABELS, (NAMES,), generator=make)
            name = torch.randint(NAMES, (LENGTH,), generator=make).where(torch.rand(LENGTH, generator=make) < 0.4, -1)
            label = torch.randint(LABELS, (LENGTH,), generator=make)
            for t in range(LENGTH):
                if name[t] >= 0:
                    label[t] = own[name[t]]
                elif t and torch.rand((), generator=make) < 0.8:
                    label[t] = label[t - 1]
            places = [(name == n).nonzero()[:, 0] for n in range(NAMES)]
            skips = torch.cat([torch.stack([part[:-1], part[1:]], 1) for part in places])
            self.features.append(means[label] + 3.0 * torch.randn(LENGTH, FEATURES, generator=make))
            self.labels.append(label)
            self.names.append(name)
            self.graphs.append(chain(LENGTH, skips))

    def batch(self, index: Tensor, skips: bool) -> tuple[Tensor, Tensor, tc.FactorGraph]:
        """Features and labels of all places of the sequences, and their graph, of one class or two."""
        graphs = [self.graphs[n] for n in index.tolist()]
        if not skips:
            graphs = [tc.FactorGraph(LENGTH, graph.members[:1]) for graph in graphs]
        features, labels = (torch.cat([part[n] for n in index.tolist()]) for part in (self.features, self.labels))
        return features, labels, tc.FactorGraph.batch(graphs)


def learned(data: Sequences, steps: int, skips: bool | None) -> tuple[nn.Module, tc.FactorCRF | None]:
    """A network of features alone, or one that learned together with a chain's tables, and with those of skips."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, LABELS))
    crf = None if skips is None else tc.FactorCRF(LABELS, [2, 2] if skips else [2])
    loss = None if crf is None else tc.CRFLoss(crf, chains=tc.ChainStore([(LENGTH,)] * len(data.labels), seed=0))
    optimizer = torch.optim.Adam([*network.parameters(), *([] if crf is None else crf.parameters())], 5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        index = torch.randperm(len(data.labels))[:16]
        features, labels, graph = data.batch(index, bool(skips))
        logits = network(features)
        value = nn.functional.cross_entropy(logits, labels) if loss is None else loss(logits, labels, index, graph=graph)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return network, crf


def main(steps: int, picture: str | None = None) -> None:
    train, test = Sequences(200, 1), Sequences(100, 2)
    everything, named = torch.arange(100), torch.cat(test.names) >= 0
    drawn: dict[str, Tensor] = {}
    for name, skips in (("network alone", None), ("chain", False), ("chain with skips", True)):
        network, crf = learned(train, steps, skips)
        features, truth, graph = test.batch(everything, bool(skips))
        logits = network(features).detach()
        labels = logits.argmax(1)
        if crf is not None:
            labels = tc.max_marginal(crf, logits, sweeps=200, burn_in=50, graph=graph).long()
        drawn |= {"truth": truth, name: labels}
        right = labels == truth
        print(f"{name}: {right.float().mean():.1%} of the places right, {right[named].float().mean():.1%} of those with a name")
    if picture is not None:
        rows = [[colorize(part[: 30 * LENGTH].view(30, LENGTH), LABELS) for part in drawn.values()]]
        label_grid(rows, list(drawn), picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", metavar="FILE", help="where to draw what came out (needs matplotlib)")
    options = parser.parse_args()
    main(options.steps, options.picture)
