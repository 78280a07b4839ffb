"""What of a model stands in a checkpoint, and does it fit this one? Network, tables, and what tables ask of their edges."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tritoncrf import checkpoint as files
from tritoncrf.checkpoint import CheckpointError, Tree
from tritoncrf.edge_inputs import EdgeForm
from tritoncrf.lattice import Neighborhood
from tritoncrf.model import GridCRF


def model_tree(crf: GridCRF) -> dict[str, Tree]:
    """The CRF's part of a training checkpoint: its state, and what its tables are tables of."""
    form = crf.form
    return {
        "pairwise": crf.pairwise.detach(),
        "crf": dict(crf.state_dict()),
        "offsets": torch.tensor(crf.neighborhood.offsets),
        "num_labels": crf.num_labels,
        "kinds": form.kinds,
        "kinds_on": torch.tensor(form.kinds_on.offsets),
        "gates": form.gates,
        "gates_on": torch.tensor(form.gates_on.offsets),
    }


def form_of(tree: dict[str, Tree]) -> EdgeForm:
    """What a checkpoint's tables ask of their edges; files from before there were kinds and gates have neither."""
    hoods = {}
    for name in ("offsets", "kinds_on", "gates_on"):
        given = files.tensor(tree, name if tree.get(name) is not None else "offsets")
        hoods[name] = Neighborhood.from_offsets(given.tolist())
    kinds, gates = tree.get("kinds"), tree.get("gates") or 0
    if not (kinds is None or isinstance(kinds, int)) or not isinstance(gates, int):
        raise CheckpointError(f"checkpoint: expected numbers of kinds and gates, got {kinds!r} and {gates!r}")
    return EdgeForm(hoods["offsets"], kinds, hoods["kinds_on"], gates, hoods["gates_on"])


def check_model(path: str | os.PathLike[str], tree: dict[str, Tree], crf: GridCRF) -> None:
    """Raises CheckpointError if a checkpoint's tables are not such as this CRF has."""
    form, labels = form_of(tree), tree.get("num_labels")
    if form != crf.form or labels != crf.num_labels:
        first = f" {form.neighborhood.offsets[:2]}..." if form.neighborhood != crf.neighborhood else ""
        raise CheckpointError(
            f"{path}: expected a CRF of {crf.extra_repr()}, got one of {labels} labels and {len(form.neighborhood)} "
            f"classes{first}{form}"
        )


def load_model(path: str | os.PathLike[str], tree: dict[str, Tree], crf: GridCRF) -> None:
    """Takes over a checkpoint's tables, or what a parametrization makes them of. Raises CheckpointError if they do not fit."""
    if tree.get("crf") is None:
        with torch.no_grad():
            crf.pairwise.copy_(files.tensor(tree, "pairwise"))
        return
    kept, mine = files.tensors(tree, "crf"), crf.state_dict()
    # Looked at whole: torch would load what fits before it says that something does not.
    if not same_shapes(kept, {name: value for name, value in mine.items() if name in kept or name != "_extra_state"}):
        names = sorted(set(kept) ^ set(mine) - {"_extra_state"})
        names = names or sorted(name for name in kept if kept[name].shape != mine[name].shape)
        raise CheckpointError(f"{path}: expected tables parametrized as this CRF's are, got others ({', '.join(names)})")
    crf.load_state_dict(kept)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names and shapes."""
    return {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
