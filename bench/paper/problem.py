"""What is given to every method? Images, the pre-trained network, and fresh tables: the same for all rows of a run."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tritoncrf as tc
from bench.paper.edges import Form, crf_of, maker
from bench.paper.presets import FOLDS, Preset
from tritoncrf import networks
from tritoncrf.batches import Batch
from tritoncrf.datasets import Figures, NpzDataset, collate
from tritoncrf.datasets.base import Forwarding, LabeledSamples, Sample, check_index
from tritoncrf.edges import Recipe
from tritoncrf.metrics import Score
from tritoncrf.training import Trainer

Predictor = Callable[[Batch], tuple[Tensor, Tensor]]
"""Scores or marginals ``[N, L, H, W]`` of the network alone, and of the whole model."""


class Chosen(Forwarding):
    """Some of a data set's items, in the order given."""

    def __init__(self, dataset: LabeledSamples, places: list[int]) -> None:
        super().__init__(dataset)
        self.pixel_indices = places

    def __len__(self) -> int:
        return len(self.pixel_indices)

    def __getitem__(self, i: int) -> Sample:
        return self.dataset[self.pixel_indices[check_index(i, len(self))]]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        whole = super().sizes
        return [whole[place] for place in self.pixel_indices]


@dataclass(frozen=True)
class Problem:
    """A preset's data of one split and seed, with the network that every row starts from."""

    preset: Preset
    split: str
    seed: int
    train: tc.Indexed
    test: tc.Indexed
    start: nn.Module
    """The pre-trained network; `network` copies it."""
    device: torch.device

    def network(self) -> nn.Module:
        """A fresh copy of the pre-trained network."""
        return copy.deepcopy(self.start)

    def edges(self, text: str | None = None) -> Recipe:
        """What tells of the edges, over the preset's neighbourhood: a text of `bench.paper.edges`, None for the preset's."""
        return maker(self.preset.edges if text is None else text, self.preset.neighborhood)

    def crf(self, edge_maker: Form | None = None) -> tc.GridCRF:
        """Zero tables over the preset's neighbourhood, chosen or weighed as ``edge_maker`` has it."""
        return crf_of(self.train.num_labels, self.preset.neighborhood, edge_maker).to(self.device)

    def loader(self, shuffle: bool = True) -> DataLoader[object]:
        """The training images one at a time."""
        return DataLoader(self.train, batch_size=1, shuffle=shuffle, collate_fn=collate)

    def tests(self) -> DataLoader[object]:
        """The test images one at a time, in order."""
        return DataLoader(self.test, batch_size=1, collate_fn=collate)

    @torch.no_grad()
    def answers(self, predict: Predictor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each test image the truth ``[1, H, W]``, 255 where no pixel exists, and both that ``predict`` says of it."""
        for item in self.tests():
            batch = Batch.of(item, self.device)
            yield batch.target.masked_fill(~batch.present, 255), *predict(batch)

    def scores(self, predict: Predictor) -> tuple[Score, Score]:
        """Over the test images, of the network alone and of the whole model."""
        alone = whole = self.unscored
        for target, first, last in self.answers(predict):
            alone, whole = alone.plus(target, first.argmax(1)), whole.plus(target, last.argmax(1))
        return alone, whole

    @property
    def unscored(self) -> Score:
        """A score of no image yet."""
        return Score.empty(self.test.num_labels, self.test.background)

    def softened(self, factor: float) -> Problem:
        """The same from a network that is less sure: its last convolution times ``factor``."""
        network = self.network()
        *_, last = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(factor)
        return replace(self, start=network)


def read(preset: Preset, split: str, data: Path | None) -> tuple[tc.Indexed, tc.Indexed]:
    """Training and test images. Raises ValueError or FileNotFoundError if the archive is not there or another."""
    if preset.file is None:
        if preset.train is None or preset.test is None:
            raise ValueError(f"preset: expected a number of generated figures, got none in {preset.name!r}")
        return tc.Indexed(Figures(preset.train, seed=0)), tc.Indexed(Figures(preset.test, seed=1))
    if data is None:
        raise ValueError(f"data: expected the folder that holds {preset.file}, which preset {preset.name!r} needs, got none")
    if split in FOLDS:
        whole = distinct(NpzDataset(data / preset.file, split=None))
        tested = fold(len(whole), split)
        parts = [Chosen(whole, np.flatnonzero(part).tolist()) for part in (~tested, tested)]
        return tc.Indexed(parts[0]), tc.Indexed(parts[1])
    train, test = (
        NpzDataset(data / preset.file, split=part, split_key=split, limit=limit)
        for part, limit in (("train", preset.train), ("test", preset.test))
    )
    return tc.Indexed(train), tc.Indexed(test)


def repeated(dataset: LabeledSamples) -> list[list[int]]:
    """The places of each picture, in the order of the first; more than one where it stands more than once, bit for bit."""
    places: dict[bytes, list[int]] = {}
    for place in range(len(dataset)):
        picture: Tensor = dataset[place][0]
        digest = hashlib.sha256(repr(tuple(picture.shape)).encode() + picture.numpy().tobytes()).digest()
        places.setdefault(digest, []).append(place)
    return list(places.values())


def distinct(dataset: LabeledSamples) -> Chosen:
    """A data set with each picture once, the first of its places: a fold must not test on what it learned."""
    return Chosen(dataset, [places[0] for places in repeated(dataset)])


def fold(images: int, name: str) -> NDArray[np.bool_]:
    """Which of an archive's distinct images a fold tests on, every fifth of them: bool ``[images]``."""
    tested: NDArray[np.bool_] = np.arange(images) % len(FOLDS) == FOLDS.index(name)
    return tested


def prepare(preset: Preset, split: str, seed: int, data: Path | None, work: Path, device: torch.device) -> Problem:
    """Reads the data and pre-trains the network, or takes it from ``work`` where that was done before."""
    train, test = read(preset, split, data)
    return pretrained(preset, split, seed, train, test, work, device)


def pretrained(
    preset: Preset, split: str, seed: int, train: tc.Indexed, test: tc.Indexed, work: Path, device: torch.device
) -> Problem:
    """The problem of given images, its network pre-trained on them."""
    torch.manual_seed(seed)
    network = networks.build(preset.network, train.channels, train.num_labels).to(device)
    problem = Problem(preset, split, seed, train, test, network, device)
    trainer = Trainer(network, problem.crf(), log=work / "pretrain.jsonl")
    saved = work / "pretrain.safetensors"
    if saved.exists():
        trainer.load(saved)
    optimizer = descent(preset, weights=network.parameters(), weights_rate=preset.pretrain_rate)
    trainer.pretrain(problem.loader(), preset.pretrain, optimizer=optimizer, checkpoint=saved)
    return problem


def descent(
    preset: Preset, *, tables: Iterable[nn.Parameter] = (), rate: float | None = None, weights: Iterable[nn.Parameter] = (),
    weights_rate: float | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """The preset's optimizer of tables, which have no momentum, and of a network's weights, at the preset's rates or others.

    Raises ValueError if there are neither.
    """
    groups: list[dict[str, object]] = []
    tables, weights = list(tables), list(weights)
    if tables:
        groups.append({"params": tables, "lr": preset.table_rate if rate is None else rate})
        if preset.momentum is not None:
            groups[0]["momentum"] = 0.0
    if weights:
        groups.append({"params": weights, "lr": preset.network_rate if weights_rate is None else weights_rate})
    if not groups:
        raise ValueError("model: expected parameters to learn, or a joint descent, got neither")
    if preset.momentum is None:
        return torch.optim.Adam(groups, fused=(tables or weights)[0].is_cuda)
    return torch.optim.SGD(groups, momentum=preset.momentum)
