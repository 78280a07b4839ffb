"""How does one object carry network and CRF through somebody else's loop? `CRFHead`: the loss when asked with a target, logits
without, labels on request.

``forward(image, target, index)`` is ``E(y) - E(y')`` of `CRFLoss` over the network's logits, and whatever ``auxiliary`` adds.
Whoever wraps modules (DDP, FSDP, a LightningModule, Accelerate) wraps this one: all that is learned are its parameters. Logits
at another resolution are brought to the target's, where the CRF lives: its tables speak of that grid's neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tritoncrf import contract, validation
from tritoncrf.batches import Batch
from tritoncrf.edge_inputs import Edges
from tritoncrf.evaluation import edges_of, evaluating, outputs
from tritoncrf.grid_crf import GridCRF
from tritoncrf.inference import max_marginal
from tritoncrf.loss import CRFLoss
from tritoncrf.model_state import check_recipe
from tritoncrf.store import ChainStore
from tritoncrf.tiles import windows

RESIZES = ("bilinear", "nearest")
_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


class CRFHead(nn.Module):
    """A network and a `GridCRF` as one module for a loop of your own.

    network: image ``[N, C, *shape]`` -> logits ``[N, L, *any]``, a pair of logits and gates, a mapping with one of the keys
    "out" and "logits", or an object with ``.logits``; logits: a function that picks any of these from what else it returns. A
    network of one channel for a CRF of two labels gives the logit of label 1. resize: "bilinear" (linear, trilinear) or
    "nearest" brings logits to the target's size; None raises where they differ.
    chains: the training set's `ChainStore`, for PCD; without it the loss is CD's. loss: a `CRFLoss` of the same ``crf`` with
    options of its own, in place of ``chains``. edges: image -> `Edges`, for a CRF with kinds or gates.
    auxiliary: (what the network returned, target ``[N, *shape]``) -> a scalar that is added to the loss while it learns: Dice,
    or the cross-entropy of a second head.

    ``head.loss`` and ``head.crf`` are the parts. In eval mode, or when ``head.network.eval()`` was called on a network that
    has parameters to learn, a call with a target is a look: no chain moves. A network none of whose parameters requires a
    gradient is fixed: the tables alone learn, and `train` leaves it in eval mode. Warns once where the target of an image with
    a chain changes between two visits (looked at on a CPU). Raises ValueError or TypeError naming the argument.

    >>> head = CRFHead(torch.nn.Conv2d(1, 3, 3, padding=1, stride=2), GridCRF(3, Neighborhood.nearest(8)))
    >>> image = torch.zeros(2, 1, 8, 10)
    >>> head(image, torch.zeros(2, 8, 10, dtype=torch.long), torch.arange(2)).shape, head(image).shape
    (torch.Size([]), torch.Size([2, 3, 8, 10]))
    >>> head.predict(image, sweeps=4, burn_in=2).shape
    torch.Size([2, 8, 10])
    """

    def __init__(
        self, network: nn.Module, crf: GridCRF, *, chains: ChainStore | None = None, loss: CRFLoss | None = None,
        logits: Callable[..., object] | None = None, resize: str | None = "bilinear",
        edges: Callable[[Tensor], Edges] | None = None, auxiliary: Callable[..., Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        if not isinstance(crf, GridCRF):
            raise TypeError(f"crf: expected a GridCRF, got {type(crf).__name__}")
        if loss is not None and (not isinstance(loss, CRFLoss) or loss.crf is not crf):
            raise ValueError("loss: expected a CRFLoss of the head's own crf, got another")
        if loss is not None and chains is not None and loss.chains is not chains:
            raise ValueError("chains: expected None beside a loss, which has its own, got a ChainStore")
        for name, given in (("logits", logits), ("auxiliary", auxiliary)):
            if given is not None and not callable(given):
                raise TypeError(f"{name}: expected a function of what the network returns, or None, got {type(given).__name__}")
        if resize is not None:
            validation.choice("resize", resize, RESIZES)
        if edges is not None:
            check_recipe(edges, crf.form)
        self.network = network
        # The tables are the loss's submodule alone: under two names a state would hold them twice.
        self.loss = loss or CRFLoss(crf, chains=chains, method="cd" if chains is None else "pcd")
        self.logits = logits
        self.resize = resize
        self.edges = edges
        self.auxiliary = auxiliary
        if self.fixed:
            self.network.eval()

    @property
    def crf(self) -> GridCRF:
        return self.loss.crf

    @property
    def fixed(self) -> bool:
        """Whether the network has nothing to learn."""
        return not any(parameter.requires_grad for parameter in self.network.parameters())

    def train(self, mode: bool = True) -> CRFHead:
        super().train(mode)
        if mode and self.fixed:
            # Batch statistics of a fixed network would go on moving.
            self.network.eval()
        return self

    def extra_repr(self) -> str:
        return f"resize={self.resize!r}"

    def forward(
        self, image: Tensor, target: Tensor | None = None, index: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss, a float32 scalar; without a target the logits ``[N, L, *shape]`` at the image's size.

        image: ``[N, C, *shape]``; target: integers or bool ``[N, *shape]`` or ``[N, 1, *shape]``; index: integers ``[N]``, the
        images' positions in the data set (`datasets.Indexed`); extras: "sizes", "mask", "known", "view" as a loader's batches
        have them (`datasets.collate`), so that ``head(*batch)`` takes any of those. Raises ValueError or TypeError naming the
        argument.
        """
        validation.tensor("image", image)
        if target is None:
            if index is not None or extras is not None:
                raise ValueError("target: expected the images' labels beside index or extras, got None")
            return self._logits(self.network(image), tuple(image.shape[2:]))[0]
        target = self._target(target)
        given = self.network(image)
        logits, gates = self._logits(given, tuple(target.shape[1:]))
        number = torch.arange(len(image), device=image.device) if index is None else validation.tensor("index", index)
        batch = Batch.of((image, target, number, {} if extras is None else dict(extras)), target.device)
        kinds, gates = edges_of(self.edges, image, gates)
        learning = self.loss.training and (self.network.training or self.fixed)
        mode = self.loss.training
        self.loss.training = learning
        try:
            value: Tensor = self.loss(
                logits, batch.labels, None if index is None else batch.index, sizes=batch.sizes, mask=batch.mask,
                clamp=batch.clamp, kinds=kinds, gates=gates, view=batch.view,
            )  # fmt: skip
        finally:
            self.loss.training = mode
        return value if self.auxiliary is None or not learning else value + self._added(given, target)

    @torch.no_grad()
    def predict(
        self, image: Tensor, *, sweeps: int = 40, burn_in: int = 20, labels: Tensor | None = None,
        index: Tensor | None = None, sizes: Tensor | None = None, mask: Tensor | None = None, clamp: Tensor | None = None,
        replicas: int = 1, beta: float = 1.0, seed: int | None = 0,
    ) -> Tensor:  # fmt: skip
        """Max-marginal labels, uint8 ``[N, *shape]``; the network runs in eval mode. Options and errors of `max_marginal`."""
        validation.tensor("image", image)
        with evaluating(self.network):
            logits, gates = self._logits(self.network(image), tuple(image.shape[2:]))
        kinds, gates = edges_of(self.edges, image, gates)
        return max_marginal(
            self.crf, logits, sweeps=sweeps, burn_in=burn_in, labels=labels, index=index, sizes=sizes, mask=mask, clamp=clamp,
            replicas=replicas, beta=beta, seed=seed, engine=self.loss.engine, kinds=kinds, gates=gates,
        )  # fmt: skip

    def predict_tiled(
        self, image: Tensor, tile: int | Sequence[int], overlap: int | Sequence[int], *, sweeps: int = 40, burn_in: int = 20,
        labels: Tensor | None = None, mask: Tensor | None = None, clamp: Tensor | None = None, replicas: int = 1,
        beta: float = 1.0, seed: int | None = 0,
    ) -> Tensor:  # fmt: skip
        """Labels of images past memory, uint8 ``[N, *shape]`` where the image lies; only a window at a time is on the device.

        tile, overlap: pixels, one for all axes or one an axis. A window sees ``tile`` pixels and answers for those at least
        ``overlap`` away from its inner sides; the rest of its labels are dropped, and no window sees another's. So logits are
        those of the whole image where the network sees no further than ``overlap`` (and where it strides, if the windows begin
        at multiples of its stride: tile, overlap and image all such); labels near a seam may differ from `predict`'s, the less
        the further ``overlap`` goes beyond the neighbourhood. An image within one tile is answered as by `predict`, whose the
        other options are. Raises ValueError or TypeError naming the argument.
        """
        validation.tensor("image", image)
        axes = self.crf.neighborhood.ndim
        if image.dim() != axes + 2:
            raise ValueError(f"image: expected [N, C] and {axes} axes as the neighbourhood, got {list(image.shape)}")
        seed = contract.fresh_seed() if seed is None else seed
        shape = (len(image), *image.shape[2:])
        for name, given in (("labels", labels), ("mask", mask), ("clamp", clamp)):
            if given is not None and tuple(validation.tensor(name, given).shape) != shape:
                raise ValueError(f"{name}: expected shape {list(shape)}, got {list(given.shape)}")
        found = torch.empty(shape, dtype=torch.uint8, device=image.device)
        order = torch.arange(len(image), device=self.crf.device)
        for place, window in enumerate(windows(shape[1:], tile, overlap)):
            seen = (slice(None), *window.seen)
            part = image[(slice(None), *seen)].to(self.crf.device)
            own, exists, held = (None if given is None else given[seen].to(self.crf.device) for given in (labels, mask, clamp))
            # Numbers of its own, or all windows would draw alike.
            answer = self.predict(
                part, sweeps=sweeps, burn_in=burn_in, labels=own, index=order + place * len(image), mask=exists, clamp=held,
                replicas=replicas, beta=beta, seed=seed,
            )  # fmt: skip
            found[(slice(None), *window.answered)] = answer[(slice(None), *window.core)].to(image.device)
        return found

    def _logits(self, given: object, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Logits at a size, and gates, of what the network returned."""
        logits, gates = outputs(given if self.logits is None else self.logits(given))
        labels, axes = self.crf.num_labels, self.crf.neighborhood.ndim
        if labels == 2 and logits.dim() > 1 and logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        validation.logits(logits, labels, axes)
        if tuple(logits.shape[2:]) == shape:
            return logits, gates
        if self.resize is None or len(shape) != axes:
            raise ValueError(f"logits: expected a size of {list(shape)}, got {list(logits.shape[2:])}")
        if self.resize == "bilinear" and axes in _SMOOTH:
            return F.interpolate(logits, shape, mode=_SMOOTH[axes], align_corners=False), gates
        return F.interpolate(logits, shape, mode="nearest"), gates

    def _target(self, target: Tensor) -> Tensor:
        target, axes = validation.tensor("target", target), self.crf.neighborhood.ndim
        if target.dim() == axes + 2 and target.shape[1] == 1:
            target = target[:, 0]
        if target.dim() != axes + 1:
            raise ValueError(f"target: expected [N] or [N, 1] and {axes} axes, got {list(target.shape)}")
        return target.to(torch.uint8) if target.dtype == torch.bool else target

    def _added(self, given: object, target: Tensor) -> Tensor:
        assert self.auxiliary is not None
        added = self.auxiliary(given, target)
        if not isinstance(added, Tensor) or added.dim():
            got = list(added.shape) if isinstance(added, Tensor) else type(added).__name__
            raise ValueError(f"auxiliary: expected a function to a scalar tensor, got one to {got}")
        return added
