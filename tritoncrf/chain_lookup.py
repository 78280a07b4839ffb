"""Which chains does a batch continue? Its images' positions in a store, and the labels kept there, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from tritoncrf import contract, validation
from tritoncrf.model_protocol import CRF
from tritoncrf.store import ChainStore
from tritoncrf.validation import Guard


def positions(index: Tensor | None, images: int, device: torch.device) -> Tensor | None:
    """Of a batch, int64 ``[N]`` on the device, once what the host knows of them is checked."""
    if index is None:
        return None
    index = validation.tensor("index", index).to(device, non_blocking=True)
    return validation.shaped("index", index, [(images,)], validation.INTEGERS, index.device).long()


def continued(store: ChainStore, device: torch.device, index: Tensor | None) -> Tensor:
    """The positions, once what the host knows of them and of the store is checked."""
    if store.device != device:
        raise ValueError(f"chains: expected a ChainStore on {device} (that of the CRF's tables), got {store.device}")
    validation.writable("chains", store.labels)
    if index is None:
        raise ValueError("index: expected integers [N], each image's position in the data set, got None")
    return index


def check_index_and_view(
    guard: Guard, store: ChainStore, device: torch.device, index: Tensor | None, limits: Tensor, shape: tuple[int, ...],
    sizes: Tensor | None, view: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The positions in the store of a batch's images, int64 ``[N]``, and the view of their chains.

    limits: int64 ``[d]``, the shape on the device.
    """
    given = continued(store, device, index)
    index = given.clamp(0, len(store) - 1)
    expected = f"index: expected positions from 0 to {len(store) - 1}"
    guard.require(index.eq(given), expected, lambda: f"{int(given[index != given][0])}")
    if view is None and sizes is None and store.uniform == shape:
        return index, None
    kept = store.sizes[index]
    now = kept.new_tensor(shape).expand_as(kept) if sizes is None and view is not None else sizes
    if view is not None and now is not None:
        view = validation.tensor("view", view).to(device, non_blocking=True)
        view = validation.shaped("view", view, [(len(index), 2, len(shape))], validation.INTEGERS, device).long()
        corner = view[:, 0]
        out = ((corner < 0) | (corner + now > kept)).any(1)
        guard.require(~out, "view: expected corners whose cut lies within the image of the chain",
                      lambda: f"{corner[out][0].tolist()} and a cut of {now[out][0].tolist()} for image "
                      f"{int(given[out][0])} of {kept[out][0].tolist()}")  # fmt: skip
        # What a deferred check will report must not reach another image's chain.
        return index, torch.stack([corner.clamp(min=0).minimum((kept - now).clamp(min=0)), view[:, 1]], 1)
    same = kept.eq(limits if sizes is None else sizes)

    def got() -> str:
        moved = ~same.all(1)
        return (
            f"{list(shape) if sizes is None else sizes[moved][0].tolist()} for image {int(given[moved][0])} "
            f"of {kept[moved][0].tolist()}"
        )

    guard.require(same, "sizes: expected each image at the size its chain has, or a view that says what was cut", got)
    return index, None


def check_labels(guard: Guard, labels: Tensor, most: int) -> None:
    """Checks labels that a store held: below ``most`` or 255. Others are drawn anew where a call goes on."""
    if most == contract.VOID:
        return
    # The byte after 255 is 0.
    fits = labels.add(1).le(most)

    def got() -> str:
        return f"label {int(labels[~fits][0])} in it at {validation.first(~fits)} of the batch"

    guard.require(fits, f"chains: expected a store of chains of {most} labels", got)


def write_chains(
    store: ChainStore, indices: Tensor, samples: tuple[Tensor, Tensor], chains: list[Tensor | None], index: Tensor,
    good: Tensor, moved: bool,
) -> None:  # fmt: skip
    """Writes samples of the free phase and the data phase back, or where not ``good``, bool ``[]``, what was there before.

    indices: into the store's row, or images ``[N]`` of one shape; samples: uint8 ``[N, R, *shape]``, 255 where no pixel is;
    chains: what was fetched, None where none are kept; moved: whether one image may stand in several places. Of an image
    ``index`` that stands twice the first is kept: both write that, in whatever order.
    """
    first = _firsts(index)
    for data, before in enumerate(chains):
        if before is None:
            continue
        labels, where = samples[data], indices
        if first is not None:
            labels = labels[first]
            before, where = (before[first], where[first]) if moved else (before, where)
        labels, whole = torch.where(good, labels, before), store.images(bool(data)) if where.dim() == 1 else None
        if whole is None:
            store.labels[data].index_put_((where,), labels)
        else:
            whole.index_copy_(0, where, labels)


def _firsts(index: Tensor) -> Tensor | None:
    """int64 ``[N]``: where each image of a batch stands first; None where all are known to be apart."""
    if len(index) == 1 or (index.device.type == "cpu" and len(set(index.tolist())) == len(index)):
        return None
    return torch.eq(index[:, None], index).to(torch.uint8).argmax(1)


def fitting_chains(chains: object, crf: CRF, method: str) -> None:
    """Raises TypeError or ValueError unless a loss of this kind can use them."""
    if chains is not None and not isinstance(chains, ChainStore):
        raise TypeError(f"chains: expected a ChainStore or None, got {type(chains).__name__}")
    if chains is None and method == "pcd":
        raise ValueError("chains: expected a ChainStore over the training images' sizes for method='pcd', got None")
    if chains is not None and chains.sizes.shape[1] != crf.ndim:
        wanted = f"images of {crf.ndim} axes as the neighbourhood," if not crf.arity else "one axis, a graph's nodes,"
        raise ValueError(f"chains: expected {wanted} got {chains.sizes.shape[1]}")
