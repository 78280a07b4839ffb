"""How does a model learn? Pre-train the network, then learn the tables alone or both together, and resume bit for bit.

Algorithm 1 of Kirillov et al. 2016: per visit the network's logits, K sweeps of each image's chain, the error
``[y' = l] - [y = l]`` back through the network and the count differences into the tables. "separate" keeps the pre-trained
network fixed, "joint" learns both. Steps diminish (eq. 8): every rate falls linearly to 0 over a stage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tritoncrf import checkpoint as files
from tritoncrf import contract
from tritoncrf.batches import Batch
from tritoncrf.checkpoint import Tree
from tritoncrf.datasets.joined import known_of, numbering
from tritoncrf.distributed import align, cross_entropy, learner, part_of, pooled, write
from tritoncrf.edge_inputs import Edges
from tritoncrf.evaluation import Evaluation, answer, check_edges, edges_of, evaluate, outputs, run
from tritoncrf.finite import check_tree, names_of
from tritoncrf.grid_crf import GridCRF
from tritoncrf.loop import Loop
from tritoncrf.loss import CRFLoss
from tritoncrf.model_state import chains_tree, check_recipe, model_tree, parts, recipe_of, take_over, weights_of
from tritoncrf.monitor import Journal, Record, check_fall, numbers
from tritoncrf.ranks import Ranks
from tritoncrf.store import ChainStore
from tritoncrf.validation import Guard

MODES = ("separate", "joint")
# Adam's peak rates that did best on half-scale body parts: pre-training, the network in joint learning, the tables.
PRETRAIN_RATE, NETWORK_RATE, TABLE_RATE = 3e-3, 1e-3, 1e-3
# Tables that learn beside a fixed network take larger steps: nothing runs ahead of them.
SEPARATE_RATE = 3e-3


class Trainer:
    """Learns a network and a CRF from a loader of ``(image, target, index)`` or with extras (see `batches.Batch`).

    network: image ``[N, C, *shape]`` -> logits ``[N, L, *shape]``; crf: the tables. optimizer: for `fit`; None makes Adam
    (tables 3e-3, if joint 1e-3; network 1e-3). loss: None makes a `CRFLoss` with PCD and K = 10 over ``chains``;
    chains: None makes a store over ``loader.dataset.sizes`` at the first `fit`. device: None leaves all where the network is.
    edges: image -> `Edges`, for a CRF with kinds or gates (`tritoncrf.edges` has some); it gets no gradient. A network may give
    gates of its own, which do, as ``(logits, gates)`` in place of logits.
    Under `torch.distributed` every rank makes a Trainer of the bare network, with a loader of its own part
    (`DistributedIndexSampler`); the first writes log and checkpoints, validation is shared out, all get the figures of all.
    log: a file that gets a line of JSON every 50 steps and epoch. precision: torch.float16 or bfloat16 under autocast.

    ``trainer.pretrain(loader, 8)``, ``trainer.fit(loader, "joint", epochs=4)``, ``trainer.evaluate(test).crf.accuracy``.
    """

    def __init__(
        self, network: nn.Module, crf: GridCRF, *, optimizer: Optimizer | None = None, loss: CRFLoss | None = None,
        chains: ChainStore | None = None, device: str | torch.device | None = None,
        log: str | os.PathLike[str] | None = None, precision: torch.dtype | None = None, quiet: bool = False,
        edges: Callable[[Tensor], Edges] | None = None,
    ) -> None:  # fmt: skip
        if loss is not None and loss.crf is not crf:
            raise ValueError("loss: expected a loss of the trainer's own crf, got one of another")
        if loss is not None and chains is not None and loss.chains is not chains:
            raise ValueError("chains: expected the loss's own ChainStore (or one of the two alone), got another")
        if not isinstance(network, nn.Module) or not isinstance(crf, GridCRF):
            raise TypeError(
                f"network, crf: expected a module and a GridCRF, got {type(network).__name__}, {type(crf).__name__}"
            )
        if edges is not None:
            check_recipe(edges, crf.form)
        first = next(network.parameters(), next(crf.parameters()))
        self.device = first.device if device is None else torch.empty(0, device=device).device
        self.network = network.to(self.device)
        self.crf = crf.to(self.device)
        self.loss = None if loss is None else loss.to(self.device)
        self.chains = chains if loss is None else loss.chains
        self.optimizer = optimizer
        self.edges = edges
        self.precision = precision
        self.pretrained: dict[str, Tensor] | None = None
        self.history: list[dict[str, Tree]] = []
        self.ranks = Ranks.of(None if loss is None else loss.process_group)
        self._learner = self.network
        self.loop = Loop(self.device, precision, quiet, self.ranks)
        self._journal = Journal(log if self.ranks.rank == 0 else None)
        self.extra: dict[str, Tree] = {}
        self._saved: dict[str, Tree] | None = None
        self._statistics: dict[str, Tree] = {}

    def pretrain(
        self, loader: DataLoader[object], epochs: int, *, rate: float = PRETRAIN_RATE, stage: str = "pretrain",
        checkpoint: str | os.PathLike[str] | None = None, every: int = 0, optimizer: Optimizer | None = None,
    ) -> None:  # fmt: skip
        """Cross-entropy over the labelled pixels whose label is not known anyway, by Adam from ``rate`` down to 0.

        stage: the name under which a checkpoint knows it; another one makes further epochs a stage of their own.
        optimizer: one of the network's parameters to use instead, from its own rates down to 0.
        """
        keeps = optimizer is not None
        if optimizer is None:
            optimizer = torch.optim.Adam(self.network.parameters(), lr=rate, fused=self.device.type == "cuda")
        guard, looked = Guard(), list[bool]()
        self._set_training(True)
        self._align()

        def value(item: object) -> Tensor:
            batch = Batch.of(item, self.device)
            logits, gates = self._outputs(batch)
            logits = logits.float()
            if not looked:
                # Not after hours of pre-training: the tables must be told what they ask for.
                check_edges(self.crf, batch, logits, edges_of(self.edges, batch.image, gates))
                looked.append(True)
            void = contract.VOID if self.loss is None else self.loss.ignore_index
            return cross_entropy(self.ranks, guard, batch, logits, self.crf.num_labels, void)

        def finished(epoch: int) -> dict[str, Tree]:
            # Buffers, such as batch norm's, are each rank's own until here.
            align(self.ranks, self.network)
            if epoch == epochs:
                self.pretrained = weights_of(self.network)
            return {}

        self._run(stage, loader, epochs, optimizer, value, finished, checkpoint, every, lambda: guard.flag(self.device), keeps)
        guard.settle()

    def fit(
        self, loader: DataLoader[object], mode: str = "joint", *, epochs: int,
        validation: DataLoader[object] | None = None, checkpoint: str | os.PathLike[str] | None = None, every: int = 0,
    ) -> None:  # fmt: skip
        """Learns the tables ("separate", the network fixed) or both ("joint").

        validation: a loader scored after each epoch; a fall of the whole model's accuracy warns that the chains fall behind.
        checkpoint: written after each epoch, after every ``every``-th step, and on Ctrl-C, which then ends the run.
        Raises FloatingPointError, naming parameter and step, where a gradient is no number: on a CPU before it is used.
        """
        if mode not in MODES:
            raise ValueError(f"mode: expected 'separate' or 'joint', got {mode!r}")
        loss = self._loss_for(loader)
        if self.pretrained is None:
            self.pretrained = weights_of(self.network)
        rate = TABLE_RATE if mode == "joint" else SEPARATE_RATE
        groups: list[dict[str, object]] = [{"params": list(loss.parameters()), "lr": rate}]
        if mode == "joint":
            groups.append({"params": list(self.network.parameters()), "lr": NETWORK_RATE})
        optimizer = self.optimizer or torch.optim.Adam(groups, lr=rate, fused=self.device.type == "cuda")
        self._set_training(mode == "joint")
        self._align()
        loss.train()

        def value(item: object) -> Tensor:
            batch = Batch.of(item, self.device)
            with torch.set_grad_enabled(mode == "joint"):
                logits, gates = self._outputs(batch)
            kinds, gates = edges_of(self.edges, batch.image, gates)
            more = {"sizes": batch.sizes, "mask": batch.mask, "clamp": batch.clamp, "view": batch.view}
            return cast(Tensor, loss(logits, batch.labels, batch.index, kinds=kinds, gates=gates, **more))

        finished = lambda epoch: {} if validation is None else self._validate(mode, validation)  # noqa: E731
        keeps = self.optimizer is not None
        self._run(mode, loader, epochs, optimizer, value, finished, checkpoint, every, lambda: loss.invalid, keeps)

    def evaluate(
        self, loader: DataLoader[object], *, sweeps: int = 40, burn_in: int = 20, replicas: int = 1, seed: int = 0,
        background: int | None = None,
    ) -> Evaluation:  # fmt: skip
        """Scores the network alone, and max-marginal labels whose first sample the pre-trained network's marginals give.

        background: a label whose true pixels do not count in the accuracy; None asks ``loader.dataset.background``.
        """
        if background is None:
            background = known_of(loader.dataset, "background")
        align(self.ranks, self.network)
        items = self.loop.bar(loader, "evaluate", len(loader))
        batches = (Batch.of(item, self.device) for item in part_of(self.ranks, items))
        found = evaluate(self.answer, batches, self.crf.num_labels, background, sweeps, burn_in, replicas, seed)
        return pooled(self.ranks, found, self.device)

    def answer(
        self, batch: Batch, sweeps: int = 40, burn_in: int = 20, replicas: int = 1, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Marginals of a batch, float32 ``[N, L, *shape]``: of the network alone, and of the whole model."""
        engine = "auto" if self.loss is None else self.loss.engine
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            logits, gates, first = run(self.network, self.pretrained, batch.image)
        batch.fitting(logits, gates, self.crf.num_labels)
        edges = edges_of(self.edges, batch.image, gates)
        return answer(self.crf, logits, first, batch, sweeps, burn_in, replicas, seed, engine, edges)

    def save(self, path: str | os.PathLike[str], *, extra: dict[str, Tree] | None = None) -> None:
        """Writes everything a resumed run needs, whole or not at all.

        extra: the caller's own tree, kept and written again by every later save. Raises OSError if the disk will not take it,
        FloatingPointError, naming it, for a weight, table or optimizer's state that is no number: the file stays as it was.
        """
        if extra is not None:
            self.extra = dict(extra)
        tree: dict[str, Tree] = {
            "network": dict(weights_of(self.network)),
            "pretrained": None if self.pretrained is None else dict(self.pretrained),
            **model_tree(self.crf),
            "edges": recipe_of(self.edges),
            **chains_tree(self.loss, self.chains),
            "loop": self.loop.state(),
            "history": list(self.history),
            "told": self._figures(),
            "extra": self.extra,
        }  # fmt: skip
        for name in ("network", "pretrained", "crf"):
            check_tree(path, tree[name], name, self._named())
        self.loop.optimizers.check(path, self._named())
        write(self.ranks, lambda: files.write(path, tree, kind="training"))

    def load(self, path: str | os.PathLike[str], *, resume: bool = True) -> dict[str, Tree]:
        """Takes over a saved run; the same calls of `pretrain` and `fit` then go on where it was. Returns its ``extra``.

        resume: False takes the model and its chains alone, for a run of its own.
        Raises CheckpointError if the file is truncated, foreign, newer, or of another network, neighbourhood or data set.
        """
        tree = files.read(path, kind="training")
        with files.believed(path, "training"):
            found = parts(path, tree, self.crf, self.network, self.loss, recipe_of(self.edges))
            if self.chains is not None and tree.get("chains") is not None:
                self.chains.check(files.tensors(tree, "chains"))
        if resume:
            self.loop.load(found.loop)
        self.pretrained = take_over(found, tree, self.crf, self.network)
        self.history, self._statistics = (found.history, found.statistics) if resume else ([], {})
        self._saved = tree
        if self.loss is not None:
            self._restore(self.loss)
            self.loss.statistics = None
        self.extra = found.extra
        return dict(self.extra)

    def _loss_for(self, loader: DataLoader[object]) -> CRFLoss:
        if self.loss is None:
            if (chains := self.chains) is None:
                sizes = known_of(numbering(loader.dataset), "sizes")
                if sizes is None:
                    raise ValueError("chains: expected a ChainStore, or a loader whose dataset has .sizes, got neither")
                # A seed that a saved run brings must not be drawn again: what is drawn after it would shift.
                saved = self._saved is not None and self._saved.get("chains") is not None
                chains = ChainStore(sizes, device=self.device, seed=0 if saved else None)
            loss = CRFLoss(self.crf, chains=chains).to(self.device)
            # Before either is kept: a store that does not fit is refused at every call, not at the first alone.
            self._restore(loss)
            self.chains, self.loss = chains, loss
        return self.loss

    def _restore(self, loss: CRFLoss) -> None:
        if (saved := self._saved) is not None and saved.get("loss") is not None:
            with files.believed("checkpoint", "training"):
                loss.load_state_dict(files.tensors(saved, "loss"))
                if loss.chains is not None and saved.get("chains") is not None:
                    loss.chains.take(files.tensors(saved, "chains"))

    def _run(
        self, stage: str, loader: DataLoader[object], epochs: int, optimizer: Optimizer, value: Callable[[object], Tensor],
        finished: Callable[[int], dict[str, Tree]], checkpoint: str | os.PathLike[str] | None, every: int,
        invalid: Callable[[], Tensor | None], keeps: bool,
    ) -> None:  # fmt: skip
        record = Record(self._journal, self.history, stage, self._figures if stage in MODES else dict[str, Tree], finished)
        save = None if checkpoint is None else lambda: self.save(checkpoint)
        self.loop.run(
            stage, loader, epochs, optimizer, value=value, after_step=record.step, after_epoch=record.epoch, save=save,
            every=every, invalid=invalid, named=self._named(), keeps=keeps,
        )  # fmt: skip

    def _figures(self) -> dict[str, Tree]:
        """What the loss told of its last call, which may have been the saved run's."""
        return numbers(self.loss.statistics) if self.loss is not None and self.loss.statistics is not None else self._statistics

    def _named(self) -> dict[str, Tensor]:
        return names_of(network=self.network, crf=self.crf)

    def _validate(self, stage: str, loader: DataLoader[object]) -> dict[str, Tree]:
        """Scores held-out images, and warns if the whole model has fallen behind its best."""
        found = self.evaluate(loader)
        check_fall(found.crf.accuracy, [line.get("accuracy") for line in self.history if line["stage"] == stage])
        return {"accuracy": found.crf.accuracy, "network_accuracy": found.network.accuracy, "mean_iou": found.crf.mean_iou}

    def _set_training(self, mode: bool) -> None:
        # A user may have frozen parts of a network that is in training mode already.
        if self.network.training != mode:
            self.network.train(mode)

    def _outputs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The network's logits, and its gates where it has some."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            network = self._learner if torch.is_grad_enabled() else self.network
            return batch.fitting(*outputs(network(batch.image)), self.crf.num_labels)

    def _align(self) -> None:
        align(self.ranks, self.network, self.crf)
        self._learner = learner(self.ranks, self.network)
