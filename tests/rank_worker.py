"""What one rank does in `test_ranks`: learn for three epochs, tell what came (``-m tests.rank_worker FOLDER CASE ..``)."""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import tritoncrf as tc
from tritoncrf import ranks, store
from tritoncrf.datasets import collate
from tritoncrf.fast import FastWeights
from tritoncrf.pace import AutoSweeps

IMAGES, BATCH, EPOCHS = 24, 8, 3


class Whole(Dataset[tuple[Tensor, Tensor]]):
    """Images of whole numbers and of many sizes, some pixels without a label."""

    def __init__(self) -> None:
        make = torch.Generator().manual_seed(5)
        self.sizes = [(4 + n % 3, 5 + n % 4) for n in range(IMAGES)]
        self.images = [torch.randint(0, 3, (2, *size), generator=make).float() for size in self.sizes]
        self.targets = [torch.randint(0, 3, size, generator=make) for size in self.sizes]
        for target in self.targets:
            target[0, :2] = 255

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        return self.images[n], self.targets[n]


def exact_network() -> nn.Module:
    """A layer whose sums are exact: whole numbers times multiples of 2^-12."""
    network = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        for part in network.parameters():
            part.copy_((torch.arange(part.numel()).view_as(part) % 5 - 2) / 4.0)
    return network


def learn(case: str, chains: tc.ChainStore | None, resume: Path | None = None) -> Iterator[dict[str, Tensor]]:
    """After each epoch all that was learned."""
    data = tc.Indexed(Whole())
    size = dist.get_world_size() if dist.is_initialized() else 1
    sampler = tc.DistributedIndexSampler(data, seed=3, chains=chains if case == "moved" else None)
    loader = DataLoader(data, BATCH // size, sampler=sampler, collate_fn=collate, generator=sampler.generator)
    network, crf = exact_network(), tc.GridCRF(3, tc.Neighborhood.nearest(8))
    method = "cd" if case == "cd" else "pcd"
    loss = tc.CRFLoss(
        crf,
        chains=chains,
        method=method,
        sweeps=AutoSweeps(2, 12, 0.001, 2) if case == "paced" else 3,
        fast=FastWeights(0.5) if case == "paced" else None,
        reduction="mean" if case == "mean" else "sum",
        objective=tc.Objective(cross_entropy=1.0, contexts=2, margin=0.5) if case == "soft" else None,
        seed=9 if chains is None else None,
    )
    # Its errors on logits are no whole numbers, which a network's gradients would add up in an order.
    network.requires_grad_(case != "soft")
    optimizer = torch.optim.SGD([*network.parameters(), *loss.parameters()], 2.0**-12)
    wrapped = DistributedDataParallel(network) if size > 1 and case != "soft" else network
    first = 0
    if resume is not None:
        kept = torch.load(resume, weights_only=True)
        network.load_state_dict(kept["network"])
        loss.load_state_dict(kept["loss"])
        sampler.generator.set_state(kept["order"])
        first = 1
    for epoch in range(first, EPOCHS):
        for image, target, index, *rest in loader:
            optimizer.zero_grad()
            value = loss(wrapped(image), target, index, sizes=rest[0].get("sizes") if rest else None)
            value.backward()
            optimizer.step()
        assert loss.statistics is not None
        parts = {"network": network.state_dict(), "loss": loss.state_dict()}
        flat = {f"{of}.{name}": part.clone() for of, state in parts.items() for name, part in state.items()}
        assert crf.pairwise.grad is not None
        flat |= {"value": value.detach(), "grad": crf.pairwise.grad.clone(), "epoch": torch.tensor(epoch)}
        flat |= {name: part for name, part in vars(loss.statistics).items() if name != "drops"}
        flat["bytes"] = torch.tensor(0 if chains is None else chains.labels.nbytes)
        yield flat
        if epoch == 0:
            yield {"state": {**parts, "order": sampler.generator.get_state()}}  # type: ignore[dict-item]


def run(folder: Path, case: str, name: str | None = None) -> None:
    """Learns; what came of it under ``name``, by default the case's."""
    sizes, rank = Whole().sizes, dist.get_rank() if dist.is_initialized() else 0
    # Nobody names a seed: the first rank's becomes everybody's.
    torch.manual_seed(100 + rank)
    shared = case in ("borrowed", "moved", "paced")
    chains = None if case == "cd" else tc.ChainStore(sizes, replicas=2, latent=True, shared=shared)
    results: list[dict[str, Tensor]] = []
    resume = folder / "state.pt" if (folder / "state.pt").exists() else None
    for found in learn(case, chains, resume):
        if "state" in found:
            if rank == 0 and resume is None:
                torch.save(found["state"], folder / f"{case}_after_one.pt")
        else:
            results.append(found)
    torch.save(results, folder / f"{name or case}_{rank}.pt")


def twice(folder: Path) -> None:
    """Image 0 on both ranks, with other logits on the second; two images on the first rank, three on the second."""
    rank, sizes = dist.get_rank(), [(4, 5)] * 5
    for share in (False, True):
        chains = tc.ChainStore(sizes, seed=1, shared=share)
        loss = tc.CRFLoss(tc.GridCRF(3, tc.Neighborhood.nearest(4)), chains=chains, sweeps=3)
        index = torch.tensor([0, 1] if rank == 0 else [4, 0, 2])
        logits = torch.zeros(len(index), 3, 4, 5)
        # Only on the first rank must image 0 have label 1 alone.
        if rank == 0:
            logits[0, [0, 2]] = -torch.inf
        loss(logits.requires_grad_(), torch.ones(len(index), 4, 5, dtype=torch.long), index).backward()
        results = {"labels": chains.state_dict()["labels"], "sweeps": chains.sweeps}
        torch.save([results], folder / f"twice_{'shared' if share else 'whole'}_{rank}.pt")


def moved(store: tc.ChainStore) -> tc.CRFLoss:
    """A loss that has learned with others, and whose store one rank then sets anew: `unlike`'s last."""
    loss = tc.CRFLoss(tc.GridCRF(3, tc.Neighborhood.nearest(4)), chains=copy.deepcopy(store), sweeps=1)
    index = torch.tensor([dist.get_rank()])
    loss(torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.long), index)
    assert loss.chains is not None
    if dist.get_rank() == 1:
        state = loss.chains.state_dict()
        loss.chains.load_state_dict({**state, "sweeps": state["sweeps"] + 1})
    return loss


def uneven(folder: Path) -> None:
    """Loaders of unlike lengths, a file that cannot be written, and one that is read at once."""
    rank, data, results = dist.get_rank(), tc.Indexed(Whole()), []
    network = nn.Conv2d(2, 3, 1)
    learner = tc.Trainer(network, tc.GridCRF(3, tc.Neighborhood.nearest(4)), quiet=True)
    part = torch.utils.data.Subset(data, range(4 + 2 * rank))
    try:
        learner.pretrain(DataLoader(part, 2, collate_fn=collate), 1)
    except ValueError as error:
        results.append(str(error))
    try:
        learner.save(folder / "no" / ("x" * 300))
    except OSError as error:
        results.append("no file" if "File name too long" in str(error) else str(error))
    learner.save(folder / "model")
    learner.load(folder / "model", resume=False)
    torch.save(results, folder / f"uneven_{rank}.pt")


def unlike(folder: Path) -> None:
    """The sentences for losses that differ between ranks."""
    rank, hood, results = dist.get_rank(), tc.Neighborhood.nearest(4), []
    store = tc.ChainStore([(4, 5)] * 3, seed=0)
    losses = [
        tc.CRFLoss(tc.GridCRF(3, hood, torch.full((2, 3, 3), float(rank))), chains=store),
        tc.CRFLoss(tc.GridCRF(3, hood), chains=tc.ChainStore([(4, 5)] * (3 + rank), seed=0)),
        tc.CRFLoss(tc.GridCRF(3, hood), chains=store, seed=rank),
        tc.CRFLoss(tc.GridCRF(3, hood), chains=store, reduction="none"),
        tc.CRFLoss(tc.GridCRF(3, hood), chains=tc.ChainStore([(4, 5)] * 3, seed=0, replicas=1 + rank)),
        tc.CRFLoss(tc.GridCRF(3, hood), chains=tc.ChainStore([(4, 5)] * 3, seed=0, shared=rank == 0)),
        tc.CRFLoss(tc.GridCRF(3, hood), chains=store, weight=torch.ones(3) + rank),
        moved(store),
    ]
    for loss in losses:
        try:
            loss(torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, dtype=torch.long), torch.tensor([rank]))
        except ValueError as error:
            results.append(str(error))
    torch.save(results, folder / f"unlike_{rank}.pt")


def fsdp(folder: Path) -> None:
    """Three steps with DDP, with a network in shards, and with tables in shards too."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    rank, data = dist.get_rank(), Whole()
    for name in ("plain", "network", "both"):
        chains = tc.ChainStore(data.sizes, seed=1)
        loss = tc.CRFLoss(tc.GridCRF(3, tc.Neighborhood.nearest(8)), chains=chains, sweeps=3, reduction="sum")
        network = exact_network()
        if name == "plain":
            learner: nn.Module = DistributedDataParallel(network)
        else:
            learner = fully_shard(network)  # type: ignore[assignment]
        if name == "both":
            fully_shard(loss)
            assert isinstance(loss.crf.pairwise, DTensor)
        optimizer = torch.optim.SGD([*network.parameters(), *loss.parameters()], 2.0**-12)
        for step in range(3):
            n = 2 * step + rank
            optimizer.zero_grad()
            loss(learner(data.images[n][None]), data.targets[n][None], torch.tensor([n])).backward()
            optimizer.step()
        energy = loss.crf.energy(torch.zeros(1, 3, *data.sizes[0]), data.targets[0].clamp(max=2)[None]).detach()
        tables = loss.crf.state_dict()["pairwise"]
        state = {**network.state_dict(), "pairwise": tables, "labels": chains.labels, "energy": energy}
        whole = {key: part.full_tensor() if isinstance(part, DTensor) else part for key, part in state.items()}
        torch.save([whole], folder / f"fsdp_{name}_{rank}.pt")


def trainer(folder: Path) -> None:
    """A whole run: pre-training, joint learning with validation and checkpoints, evaluation."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(rank)
    data = tc.Indexed(Whole())
    chains = tc.ChainStore(data.sizes, latent=True, shared=True, seed=2)
    order = tc.DistributedIndexSampler(data, seed=3, chains=chains)
    loader = DataLoader(data, BATCH // size, sampler=order, collate_fn=collate, generator=order.generator)
    held, dropout = DataLoader(data, 1, collate_fn=collate), float(os.environ.get("DROPOUT", "0.1"))
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Dropout(dropout), nn.ReLU(), nn.Conv2d(4, 3, 1))
    loss = tc.CRFLoss(tc.GridCRF(3, tc.Neighborhood.nearest(8)), chains=chains, sweeps=3)
    learner = tc.Trainer(network, loss.crf, loss=loss, log=folder / f"log_{rank}.jsonl", quiet=True)
    path = folder / "run.safetensors"
    if path.exists():
        learner.load(path)
    learner.pretrain(loader, 1, checkpoint=path)
    stopping = int(os.environ.get("STOP_AT", "0"))
    if stopping:
        right = learner.loop._step

        def step(*given: Any) -> Tensor:
            place = learner.loop.progress
            # A Ctrl-C that reaches one rank alone.
            if (place.epoch, place.position, rank) == (stopping, 1, size - 1):
                signal.raise_signal(signal.SIGINT)
            return right(*given)

        learner.loop._step = step  # type: ignore[method-assign, assignment]
    try:
        learner.fit(loader, "joint", epochs=3, validation=held, checkpoint=path)
    except KeyboardInterrupt:
        return
    found = learner.evaluate(held)
    state = {**network.state_dict(), "pairwise": loss.crf.pairwise.detach(), "labels": chains.state_dict()["labels"]}
    state |= {"confusion": found.crf.confusion, "loss": torch.tensor([float(line["loss"]) for line in learner.history])}  # type: ignore[arg-type]
    torch.save([state], folder / f"trainer_{rank}.pt")


def faults(folder: Path) -> None:
    """Runs with what is planted, each under the fault's own name."""
    right = ranks.Ranks.sum_with

    def own(self: ranks.Ranks, part: Tensor, parcel: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        found, parcels = right(self, part, parcel)
        # The last six numbers are no tables.
        return torch.cat([part[:-6], found[-6:]]), parcels

    def mean(self: ranks.Ranks, part: Tensor, parcel: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        found, parcels = right(self, part, parcel)
        return torch.cat([found[:-6], part[-6:]]), parcels

    def no_turns(self: ranks.Meeting) -> Tensor:
        assert self.counts is not None
        return torch.arange(self.counts[self.ranks.rank])

    def stale(*given: object) -> None:
        pass

    for name, case, place, what, wrong in (
        ("tables of one rank", "whole", ranks.Ranks, "sum_with", own),
        ("mean of one rank", "mean", ranks.Ranks, "sum_with", mean),
        ("no turns", "cd", ranks.Meeting, "offsets", property(no_turns)), ("stale chains", "whole", store, "unpack", stale),
    ):  # fmt: skip
        with mock.patch.object(place, what, wrong):
            run(folder, case, name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo", f"file://{os.environ['MEETING']}", rank=int(os.environ["RANK"]), world_size=world)
    for word in sys.argv[2:]:
        others = {"twice": twice, "unlike": unlike, "fsdp": fsdp, "faults": faults, "trainer": trainer, "uneven": uneven}
        if word in others:
            others[word](Path(sys.argv[1]))
        else:
            run(Path(sys.argv[1]), word)
    if dist.is_initialized():
        dist.barrier()
        # DDP over gloo at times aborts an interpreter that ends in the usual way (torch 2.13, also without this package).
        os._exit(0)
