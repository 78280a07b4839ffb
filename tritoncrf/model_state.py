"""What of a model stands in a checkpoint, and does it fit this one? Network, tables, and what tables ask of their edges."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tritoncrf import checkpoint as files
from tritoncrf import contract, finite
from tritoncrf.checkpoint import CheckpointError, Tree
from tritoncrf.edge_inputs import EdgeForm, describe
from tritoncrf.edge_trees import EdgeTree
from tritoncrf.edges import Recipe
from tritoncrf.grid_crf import GridCRF
from tritoncrf.lattice import Neighborhood
from tritoncrf.loss import CRFLoss
from tritoncrf.store import ChainStore


def model_tree(crf: GridCRF) -> dict[str, Tree]:
    """The CRF's part of a training checkpoint: its state, and what its tables are tables of."""
    form = crf.form
    return {
        "pairwise": crf.pairwise.detach(),
        "crf": dict(crf.state_dict()),
        "offsets": torch.tensor(crf.neighborhood.offsets, device="cpu"),
        "num_labels": crf.num_labels,
        "kinds": form.kinds,
        "kinds_on": torch.tensor(form.kinds_on.offsets, device="cpu"),
        "gates": form.gates,
        "gates_on": torch.tensor(form.gates_on.offsets, device="cpu"),
        # Files of models without rings stay as they were.
        **({"wrap": torch.tensor(form.wrap, device="cpu")} if form.wrap else {}),
    }


def chains_tree(loss: CRFLoss | None, chains: ChainStore | None) -> dict[str, Tree]:
    """The loss's part of a training checkpoint, and that of its chains, which stand beside it."""
    kept: dict[str, Tree] | None = None
    if loss is not None:
        own, persistent = loss.chains, loss.chains is not None and loss.chains.persistent
        try:
            # Left out, for to ask for them may need every rank.
            if own is not None:
                own.persistent = False
            kept = dict(loss.state_dict())
        finally:
            if own is not None:
                own.persistent = persistent
    return {"loss": kept, "chains": None if chains is None else dict(chains.saved)}


def form_of(tree: dict[str, Tree]) -> EdgeForm:
    """What a checkpoint's tables ask of their edges; files from before there were kinds and gates have neither."""
    hoods = {}
    for name in ("offsets", "kinds_on", "gates_on"):
        given = files.tensor(tree, name if tree.get(name) is not None else "offsets")
        hoods[name] = Neighborhood.from_offsets(given.tolist())
    kinds, gates = tree.get("kinds"), tree.get("gates") or 0
    if not (kinds is None or isinstance(kinds, int)) or not isinstance(gates, int):
        raise CheckpointError(f"checkpoint: expected numbers of kinds and gates, got {kinds!r} and {gates!r}")
    wrap = () if tree.get("wrap") is None else tuple(map(bool, files.tensor(tree, "wrap").tolist()))
    return EdgeForm(hoods["offsets"], kinds, hoods["kinds_on"], gates, hoods["gates_on"], wrap)


def check_model(path: str | os.PathLike[str], tree: dict[str, Tree], crf: GridCRF) -> None:
    """Raises CheckpointError if a checkpoint's tables are not such as this CRF has."""
    form, labels = form_of(tree), tree.get("num_labels")
    if form != crf.form or labels != crf.num_labels:
        first = f" {form.neighborhood.offsets[:2]}..." if form.neighborhood != crf.neighborhood else ""
        raise CheckpointError(
            f"{path}: expected a CRF of {crf.extra_repr()}, got one of {labels} labels and {len(form.neighborhood)} "
            f"classes{first}{form}"
        )


def check_tables(path: str | os.PathLike[str], tree: dict[str, Tree], crf: GridCRF) -> None:
    """Raises CheckpointError if a checkpoint's tables are parametrized otherwise than this CRF's, or are no numbers."""
    mine = crf.state_dict()
    # Files from before tables could see the image have the table alone.
    kept = {"pairwise": files.tensor(tree, "pairwise")} if tree.get("crf") is None else files.tensors(tree, "crf")
    if not same_shapes(kept, mine):
        shapes = (name for name in _named(kept) if kept[name].shape != mine[name].shape)
        names = sorted(_named(kept) ^ _named(mine)) or sorted(shapes)
        raise CheckpointError(f"{path}: expected tables parametrized as this CRF's are, got others ({', '.join(names)})")
    if "_extra_state" in kept and not torch.equal(kept["_extra_state"], crf.get_extra_state().cpu()):
        raise CheckpointError(f"{path}: expected tables of {crf.extra_repr()}, got those of {describe(kept['_extra_state'])}")
    check_finite(path, kept, "crf", crf)


def load_tables(tree: dict[str, Tree], crf: GridCRF) -> None:
    """Takes over a checkpoint's tables, or what a parametrization makes them of, once looked at."""
    if tree.get("crf") is not None:
        crf.load_state_dict(files.tensors(tree, "crf"))
        return
    with torch.no_grad():
        crf.pairwise.copy_(files.tensor(tree, "pairwise"))


@dataclass(frozen=True)
class Parts:
    """What a training checkpoint holds besides its tables, looked at."""

    network: dict[str, Tensor]
    pretrained: dict[str, Tensor] | None
    loop: dict[str, Tree]
    history: list[dict[str, Tree]]
    statistics: dict[str, Tree]
    """What the loss told of its last call."""
    extra: dict[str, Tree]


def parts(
    path: str | os.PathLike[str], tree: dict[str, Tree], crf: GridCRF, network: nn.Module, loss: CRFLoss | None,
    edges: str | None,
) -> Parts:  # fmt: skip
    """Looks at all of a training checkpoint before any of it is taken over.

    loss: the one that will go on; edges: the text of the recipe that tells of the edges, where it is one. Raises
    CheckpointError if the file is of another network, model, recipe, or not whole.
    """
    check_model(path, tree, crf)
    theirs = tree.get("edges")
    if edges is not None and isinstance(theirs, str) and theirs != edges:
        raise CheckpointError(f"{path}: expected a model whose tables see {edges}, got one of {theirs}")
    check_tables(path, tree, crf)
    if files.tensor(tree, "pairwise").shape != crf.pairwise.shape:
        raise CheckpointError(f"{path}: expected tables of this CRF's shape, got another")
    weights, mine = files.tensors(tree, "network"), weights_of(network)
    if not same_shapes(weights, mine):
        raise CheckpointError(f"{path}: expected the weights of this network, got those of another")
    pretrained = None if tree.get("pretrained") is None else files.tensors(tree, "pretrained")
    if pretrained is not None and not same_shapes(pretrained, mine):
        raise CheckpointError(f"{path}: expected pre-trained weights of this network, got those of another")
    for part in (weights, pretrained):
        check_finite(path, part or {}, "network", network)
    for name in ("loss", "chains"):
        if tree.get(name) is not None:
            check_state(path, files.tensors(tree, name), name, crf)
    if (
        loss is not None
        and tree.get("loss") is not None
        and not same_shapes(files.tensors(tree, "loss"), files.tensors(chains_tree(loss, None), "loss"))
    ):
        raise CheckpointError(f"{path}: expected the state of this loss, got that of another")
    loop = files.group(tree, "loop")
    check_loop(path, loop)
    lines = tree.get("history") or []
    if not isinstance(lines, list):
        raise CheckpointError(f"{path}: expected a list of lines as history, got {type(lines).__name__}")
    history = [files.group({"line": line}, "line") for line in lines]
    figures = files.group(tree, "told") if "told" in tree else {}
    return Parts(weights, pretrained, loop, history, figures, files.group(tree, "extra"))


def check_state(path: str | os.PathLike[str], state: Mapping[str, Tensor], name: str, crf: GridCRF) -> None:
    """Raises CheckpointError if a loss's state, or that of its chains, holds what neither can be."""
    for at, part in state.items():
        if name == "loss" and at == "crf._extra_state" and not torch.equal(part, crf.get_extra_state().cpu()):
            raise CheckpointError(f"{path}: expected a loss of {crf.extra_repr()}, got one of {describe(part)}")
        if name == "loss" and at == "_extra_state" and (part.shape != (3,) or part.dtype != torch.int64):
            raise CheckpointError(f"{path}: expected {at} int64 [3], got {part.dtype} {list(part.shape)}")
        if not bool(part.isfinite().all()):
            raise CheckpointError(f"{path}: expected finite numbers in {name}.{at}, got others")
        if at in ("visits", "sweeps") and bool((part < 0).any()):
            raise CheckpointError(f"{path}: expected counts of at least 0 in {name}.{at}, got {int(part.min())}")
    if name == "chains":
        foreign = (state["labels"] >= crf.num_labels) & (state["labels"] != contract.VOID)
        if bool(foreign.any()):
            got = int(state["labels"][foreign][0])
            raise CheckpointError(f"{path}: expected chains of labels from 0 to {crf.num_labels - 1}, or 255, got {got}")


def check_loop(path: str | os.PathLike[str], loop: dict[str, Tree]) -> None:
    """Raises CheckpointError if what says where a run is does not."""
    where = files.group(loop, "progress")
    names, lengths = where.get("finished"), where.get("lengths")
    counts = [where.get(name) for name in ("epochs", "batches", "epoch", "position")]
    pairs = [row for row in lengths if isinstance(row, list) and len(row) == 2] if isinstance(lengths, list) else []
    for number in (*counts, *(number for row in pairs for number in row)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise CheckpointError(f"{path}: expected progress in whole numbers, got {number!r}")
    if (
        not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(pairs) != len(names)
        or len(pairs) != len(lengths) or not isinstance(where.get("stage"), str)  # type: ignore[arg-type]
        or where["epoch"] > where["epochs"] or where["position"] > where["batches"]  # type: ignore[operator]
    ):  # fmt: skip
        raise CheckpointError(f"{path}: expected progress through stages of some length, got {where!r:.200}")
    if "optimizer" in loop:
        steps = files.group(loop, "schedule").get("last_epoch")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise CheckpointError(f"{path}: expected a schedule's number of steps, got {steps!r}")
        for name in ("optimizer", "scaler", "now"):
            files.group(loop, name)
        if files.tensor(loop, "summed").dim() or not files.tensor(loop, "summed").is_floating_point():
            raise CheckpointError(f"{path}: expected a sum of losses, got {files.tensor(loop, 'summed')!r:.80}")
        try:
            finite.check_tree(path, [loop["optimizer"], loop.get("kept")], "optimizer", {})
        except FloatingPointError as error:
            raise CheckpointError(f"{path}: {str(error).partition(';')[0]}") from None


def check_finite(path: str | os.PathLike[str], state: Mapping[str, Tensor], name: str, module: nn.Module) -> None:
    """Raises CheckpointError for a module's state with what is no number (a network's masks may be infinite)."""
    try:
        finite.check_tree(path, state, name, finite.names_of(**{name: module}))
    except FloatingPointError as error:
        raise CheckpointError(f"{path}: {str(error).partition(';')[0]}") from None


def take_over(found: Parts, tree: dict[str, Tree], crf: GridCRF, network: nn.Module) -> dict[str, Tensor] | None:
    """Loads tables and network, once looked at; returns the weights that the network was pre-trained to."""
    load_tables(tree, crf)
    network.load_state_dict(found.network)
    if found.pretrained is None:
        return None
    mine = network.state_dict()
    # In the weights' own memory format: convolutions of another one round differently.
    return {name: torch.empty_like(mine[name]).copy_(value) for name, value in found.pretrained.items()}


def recipe_of(maker: object) -> str | None:
    """What tells of the edges, in a text, where it is such a recipe."""
    return str(maker) if isinstance(maker, Recipe) else None


def check_recipe(maker: object, form: EdgeForm) -> None:
    """Raises ValueError if what tells of the edges says that it does so of others than the tables ask for.

    A function of the user's own says nothing; a recipe knows its classes, kinds and gates. A module that would learn raises
    too: what it makes gets no gradient.
    """
    if isinstance(maker, nn.Module) and any(parameter.requires_grad for parameter in maker.parameters()):
        raise ValueError(
            "edges: expected a function with nothing to learn, got a module with parameters, which would get no gradient: "
            "let the network return its gates, as (logits, gates)"
        )
    if not isinstance(maker, Recipe | EdgeTree):
        return
    classes = form.gates_on if maker.gates else form.kinds_on
    if (maker.kinds, maker.gates, maker.neighborhood) != (form.kinds, form.gates, classes):
        raise ValueError(
            f"edges: expected {form.kinds or 'no'} kinds and {form.gates or 'no'} gates over {classes!r}, got "
            f"{maker.kinds or 'no'} and {maker.gates or 'no'} over {maker.neighborhood!r}"
        )


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names and shapes, what modules keep beside tensors of their own left out."""
    return {name: one[name].shape for name in _named(one)} == {name: other[name].shape for name in _named(other)}


def _named(state: Mapping[str, Tensor]) -> set[str]:
    return {name for name in state if not name.endswith("_extra_state")}
