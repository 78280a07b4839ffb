"""Where does a site live? Colour-major slots, a void border, neighbours by arithmetic, one layout per bucket of shapes.

A chain's labels are one flat row. Site ``y`` of a padded bucket sits at position ``start + sum_j y_j * stride_j``, where every
axis but the first is followed by a border as wide as the neighbourhood reaches and the whole is preceded and followed by
one: a step off the image always lands on void, never on another row, so the neighbour at offset d is always
``position + sum_j d_j * stride_j`` and no bounds are tested. Missing neighbours, padding, ragged images and holes are one
mechanism: void. A bucket rounds each axis up by at most an eighth, so few layouts serve all image sizes; an axis that wraps is
kept as it is, for the offsets across its seam know its length (`periodic`).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from tritoncrf import contract
from tritoncrf.coloring import sublattice_coloring
from tritoncrf.engines import Factors, Plan
from tritoncrf.frame import Frame
from tritoncrf.frame import Shape as Shape
from tritoncrf.graph_rows import Fold
from tritoncrf.guard import capturing
from tritoncrf.lattice import Neighborhood
from tritoncrf.periodic import Wrap, unroll

T = TypeVar("T", bound=Frame | Tensor)
# Bytes that batches share which a layout keeps.
SHARED = 1 << 26


def bucket(shape: Shape, wrap: Wrap = ()) -> Shape:
    """The padded shape whose layout serves ``shape``: each axis that is no ring up to the next of eight steps per doubling."""
    rings = wrap or (False,) * len(shape)
    steps = (1 if ring else 1 << max(0, n.bit_length() - 4) for n, ring in zip(shape, rings, strict=True))
    return tuple(-(-n // step) * step for n, step in zip(shape, steps, strict=True))


@dataclass(frozen=True)
class Layout:
    """Positions and slots of a bucket; independent of the batch."""

    neighborhood: Neighborhood | None
    """None for graphs."""
    shape: Shape
    """The bucket."""
    padded: Shape
    """The bucket with the borders that follow its axes."""
    start: int
    volume: int
    displacements: tuple[int, ...]
    classes: tuple[int, ...]
    num_classes: int
    color_bounds: tuple[int, ...]
    coordinates: Tensor
    """int64 [S, d] of each slot."""
    positions: Tensor
    """int64 [S]."""
    wrap: Wrap = ()
    """Which axes are rings; () for none."""
    factors: Factors | None = None
    """Of a batch of graphs, whose nodes are a row without a border: who touches whom."""
    fold: Fold | None = None
    """Of a batch of graphs: which node is which pixel."""
    shared: dict[Shape | int, Frame | Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Frames of the shapes that were seen, and numbers of the images of a batch."""
    captured: dict[Shape | int, Frame | Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Those that a CUDA graph reads, which must stay where they are."""

    @classmethod
    def build(cls, neighborhood: Neighborhood, shape: Shape, device: torch.device, wrap: Wrap = ()) -> Layout:
        """The layout of bucket ``shape`` for a neighbourhood."""
        unrolled, owners = unroll(neighborhood, wrap, shape)
        pairs = zip(unrolled.offsets, owners, strict=True)
        inside = [(d, c) for d, c in pairs if all(abs(s) < n for s, n in zip(d, shape, strict=True))]
        reach = [max((abs(d[axis]) for d, _ in inside), default=0) for axis in range(len(shape))]
        padded = (shape[0], *(n + r for n, r in zip(shape[1:], reach[1:], strict=True)))
        strides = [math.prod(padded[axis + 1 :]) for axis in range(len(shape))]
        start = sum(r * stride for r, stride in zip(reach, strides, strict=True))
        coordinates = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, len(shape))
        coloring = sublattice_coloring(unrolled)
        color = coloring.color(coordinates)
        order = np.argsort(color, kind="stable")
        bounds = np.searchsorted(color[order], np.arange(coloring.colors + 1))
        coordinates = coordinates[order]
        return cls(
            neighborhood=neighborhood,
            shape=shape,
            padded=padded,
            start=start,
            volume=2 * start + math.prod(padded),
            displacements=tuple(sum(s * t for s, t in zip(d, strides, strict=True)) for d, _ in inside),
            classes=tuple(c for _, c in inside),
            num_classes=len(neighborhood),
            color_bounds=tuple(bounds.tolist()),
            coordinates=torch.from_numpy(coordinates).to(device),
            positions=torch.from_numpy(coordinates @ np.array(strides) + start).to(device),
            wrap=wrap,
        )

    @property
    def nbytes(self) -> int:
        return self.coordinates.nbytes + self.positions.nbytes + self._shared_bytes()

    def _shared_bytes(self) -> int:
        return sum(part.nbytes for part in list(self.shared.values()))

    def frame(self, shape: Shape) -> Frame:
        """What batches of padded ``shape`` [*shape] share; made at the first of them."""
        return self._share(shape, lambda: Frame.of(self.coordinates, self.positions, shape))

    def numbers(self, images: int) -> Tensor:
        """int64 ``[2, N]``: 0 to N - 1, and zeros; nobody writes into it."""
        device = self.positions.device
        steps = torch.arange
        return self._share(images, lambda: steps(images, device=device) * steps(1, -1, -1, device=device)[:, None])

    def _share(self, key: Shape | int, make: Callable[[], T]) -> T:
        device = self.positions.device
        found = self.captured.get(key, self.shared.get(key))
        if capturing(device):
            # What is made inside of a capture is the graph's own, and holds nothing before a replay.
            if found is None:
                return make()
            self.captured[key] = found
        elif found is None:
            made = make()
            if device.type == "cuda":
                # Another stream may be the next to read it.
                torch.cuda.current_stream(device).synchronize()
            if self._shared_bytes() > SHARED:
                self.shared.clear()
            self.shared[key] = made
            return made
        return cast(T, found)

    def plan(
        self, num_labels: int, shape: Shape, index: Tensor, replicas: int,
        sizes: Tensor | None, mask: Tensor | None, clamp: Tensor | None, present: Tensor | None = None,
    ) -> Plan:  # fmt: skip
        """Lays out a batch of images of padded ``shape`` [*shape]; sizes int64 [N, d], mask and clamp bool [N, *shape].

        present: what `Frame.exists` gave, where it is at hand.
        """
        frame, images = self.frame(shape), len(index)
        exists, sites = frame.inside.expand(images, -1), frame.pixels.expand(images, -1)
        if sizes is not None:
            first, *others = self.coordinates.unbind(-1)
            sites = first.expand(images, -1)
            for steps, own in zip(others, sizes.unbind(1)[1:], strict=True):
                sites = torch.addcmul(steps, sites, own[:, None])
        if sizes is not None or mask is not None:
            present = frame.exists(images, sizes, mask) if present is None else present
            exists = present.flatten(1)[:, frame.pixels]
            if math.prod(shape) < len(self.positions):
                exists = exists.logical_and_(frame.inside)
        plan = Plan(
            num_labels=num_labels, volume=self.volume, positions=self.positions, color_bounds=self.color_bounds,
            displacements=self.displacements, classes=self.classes, num_classes=self.num_classes, pixels=frame.pixels,
            exists=exists, free=exists, sites=sites, index=index, replicas=replicas, factors=self.factors,
        )  # fmt: skip
        return with_clamps(plan, clamp)

    def crop(self, rows: Tensor, shape: Shape) -> Tensor:
        """The part of flat rows ``[..., volume]`` that an image of ``shape`` covers: a view ``[..., *shape]``."""
        body = rows[..., self.start : self.start + math.prod(self.padded)]
        body = body.view(*rows.shape[:-1], *self.padded)
        for axis, length in enumerate(shape):
            body = body.narrow(axis - len(shape), 0, length)
        return body

    def ahead(self, rows: Tensor, shape: Shape, displacement: int) -> Tensor:
        """As `crop`, of what stands a displacement further on: ``[..., *shape]``."""
        return self.crop(rows.roll(-displacement, -1), shape)

    def pixels(self, shape: Shape) -> Tensor:
        """int64 [volume]: the row-major index of each position in an image of ``shape``, 0 where it lies outside."""
        rows = torch.zeros(self.volume, dtype=torch.int64, device=self.positions.device)
        numbers = torch.arange(math.prod(shape), device=rows.device)
        self.crop(rows, shape).copy_(numbers.view(shape))
        return rows


def with_clamps(plan: Plan, clamp: Tensor | None) -> Plan:
    """The plan with sites clamped, bool ``[N, *shape]``; None for none of them."""
    # Greater: is true, where the other is not.
    free = plan.exists if clamp is None else plan.exists.gt(clamp.flatten(1)[:, plan.pixels])
    return replace(plan, free=free)


def pack(plan: Plan, layout: Layout, labels: Tensor, present: Tensor | None = None) -> Tensor:
    """Labels uint8 ``[N, R, *shape]`` -> flat rows ``[N, R, volume]``; what is no label, and pixels that do not exist, is void.

    present: bool ``[N, *shape]``, the pixels that exist; None: others hold 255.
    """
    rows = torch.full((*labels.shape[:2], plan.volume), plan.void, dtype=torch.uint8, device=labels.device)
    if present is not None:
        labels = labels.masked_fill(~present[:, None], contract.VOID)
    # An image lies in its row as a box: a copy of lines, not a scatter of pixels.
    torch.clamp(labels, max=plan.void, out=layout.crop(rows, tuple(labels.shape[2:])))
    return rows


def unpack(plan: Plan, layout: Layout, rows: Tensor, shape: Shape) -> Tensor:
    """Flat rows -> labels uint8 ``[N, R, *shape]``; 255 where no site exists (or none was drawn yet)."""
    labels = layout.crop(rows, shape)
    return labels.masked_fill(labels == plan.void, contract.VOID)


class LayoutCache:
    """The layouts last used with a neighbourhood: at most ``limit`` of them and, beyond one, ``most`` bytes."""

    # Caches pickled before axes could wrap have none.
    wrap: Wrap = ()

    def __init__(self, neighborhood: Neighborhood, limit: int = 64, most: int = 1 << 28, wrap: Wrap = ()) -> None:
        self.neighborhood = neighborhood
        self.wrap = wrap
        self.limit = limit
        self.most = most
        self._layouts: OrderedDict[tuple[Shape, torch.device], Layout] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        # What can be built again is not worth its bytes in a copy or a file.
        return {"neighborhood": self.neighborhood, "limit": self.limit, "most": self.most, "wrap": self.wrap}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._layouts, self._lock = OrderedDict(), threading.Lock()

    def get(self, shape: Shape, device: torch.device) -> Layout:
        """The layout of the bucket of ``shape``."""
        key = bucket(shape, self.wrap), device
        with self._lock:
            layout = self._layouts.get(key)
        if layout is None:
            layout = Layout.build(self.neighborhood, key[0], device, self.wrap)
        with self._lock:
            self._layouts[key] = layout
            self._layouts.move_to_end(key)
            while len(self._layouts) > self.limit or (len(self._layouts) > 1 and self._nbytes() > self.most):
                self._layouts.popitem(last=False)
        return layout

    def _nbytes(self) -> int:
        return sum(layout.nbytes for layout in self._layouts.values())

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._nbytes()

    def __len__(self) -> int:
        return len(self._layouts)
