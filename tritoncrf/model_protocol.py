"""What must a model tell those who sample and learn it? The same of a lattice and of a graph.

``E(y) = sum_n psi_n(y_n) + sum_f psi_f(y_f; x)``: the unaries come with a batch, the factors' tables are the model's, and which
sites a factor joins a `Layout` says. Everything above works on images ``[N, L, *shape]``; a batch of graphs is one of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tritoncrf.edge_inputs import Given
from tritoncrf.engines import Plan, Tables
from tritoncrf.frame import Shape
from tritoncrf.graph_rows import Fold
from tritoncrf.graphs import FactorGraph
from tritoncrf.layout import Layout
from tritoncrf.validation import Guard


class CRF(nn.Module):
    """What `GridCRF` and `FactorCRF` have in common; for an annotation, not to be made."""

    num_labels: int
    loaded = False
    """Whether a state was loaded: the tables are learned ones."""
    own = "crf.pairwise"
    """Where the parameters are."""
    arity = 0
    """Of a graph's largest factor; 0 for a lattice."""

    @property
    def ndim(self) -> int:
        """Axes of an image; 1 for graphs."""
        raise NotImplementedError

    @property
    def tables(self) -> Tables:
        """All tables, as they are now; whole on every rank, also where FSDP has them in shards."""
        raise NotImplementedError

    @property
    def parts(self) -> list[Tensor]:
        """The tensors that `tables` are made from."""
        raise NotImplementedError

    def rounded(self, guard: Guard, tables: Tables, plan: Plan | None = None) -> Tables:
        """Tables on rule 1's grid, looked at; plan: of the batch that they are for."""
        raise NotImplementedError

    def fold(self, graph: FactorGraph | None, *, sizes: object = None, kinds: object = None, gates: object = None,
             view: object = None) -> Fold | None:  # fmt: skip
        """How a batch of graphs passes for one of images; None for a lattice, whose batches are images.

        Raises ValueError or TypeError where a graph is missing or not asked for, or what belongs to images comes with one.
        """
        raise NotImplementedError

    def flows(self, graph: FactorGraph | None) -> Tensor | None:
        """The gates of a batch of graphs, float ``[factors of gated arities]``, with the gradient that they want; else None."""
        return None

    def layout(self, shape: Shape, given: Given) -> Layout:
        """The layout of images of padded ``shape``, or of a batch of graphs."""
        raise NotImplementedError

    def plan_with_edges(self, guard: Guard, plan: Plan, layout: Layout, present: Tensor, sizes: Tensor | None, given: Given) -> Plan:
        """The plan with what its batch says of its edges, looked at."""
        raise NotImplementedError

    def scores(self, logits: Tensor, labels: Tensor, sizes: Tensor | None, mask: Tensor | None, given: Given) -> Tensor:
        """`energy`, whatever it is told of edges."""
        raise NotImplementedError

    def foreign(self, plan: Plan, layout: Layout) -> str | None:
        """Whose chains these are, unless they are of this model."""
        raise NotImplementedError

    @property
    def caches(self) -> tuple[int, int]:
        """Layouts kept, and their bytes."""
        raise NotImplementedError

    @property
    def version(self) -> tuple[int, ...] | None:
        """What changes when a torch operation writes the tables; None where torch does not count."""
        tables = self.parts
        # What a parametrization computes is another tensor each time, perhaps at an old one's address.
        if any(table.is_inference() or not isinstance(table, nn.Parameter) for table in tables):
            return None
        return tuple(number for table in tables for number in (table.data_ptr(), table._version))

    @property
    def device(self) -> torch.device:
        # Not of a table: a parametrization would compute it for that.
        return next(self.parameters()).device

    def describe(self, state: object) -> str:
        """Whose tables a state's numbers say it holds."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """int64: what the tables are tables of, so that those of others are not taken for them."""
        raise NotImplementedError

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is kept: the state is looked at before any table is loaded."""

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping[str, object], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        name = f"{prefix}_extra_state"
        given, mine = state_dict.get(name), self.get_extra_state()
        if given is not None and not (isinstance(given, Tensor) and torch.equal(given.cpu(), mine)):
            raise ValueError(
                f"state: expected tables of {self.extra_repr()}, got those of {self.describe(given)} (to carry such tables over in "
                f"earnest, copy them into {self.own})"
            )
        args = (state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(*args)
        floats = [part for key, part in state_dict.items() if key.startswith(prefix) and part.is_floating_point()]
        self.loaded = any(part.device.type != "meta" and bool(part.any()) for part in floats)
        # States from before it was kept are taken as they are.
        if name in missing_keys:
            missing_keys.remove(name)


def piecewise(part: Callable[..., Tensor], pieces: Iterable[tuple[Tensor, ...]]) -> Tensor:
    """``part`` of each piece, one behind the other; what a piece needs for its gradient is computed again there, not kept."""
    if not torch.is_grad_enabled():
        # `checkpoint` imports a compiler at its first call.
        return torch.cat([part(*piece) for piece in pieces])
    return torch.cat([checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])


def whole(table: Tensor) -> Tensor:
    gather = getattr(table, "full_tensor", None)
    return table if gather is None else cast(Tensor, gather())
