"""What of a visit do kernels do beside sampling? They look at what came in, and tell what it leaves, in two launches each.

For batches whose pixels all exist, of models whose tables do not see the image; tensors and integers only.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tritoncrf import contract

if TYPE_CHECKING:
    from tritoncrf.kernels.looks import Looked
    from tritoncrf.kernels.tells import Told


def look(
    logits: Tensor, target: Tensor, pairwise: Tensor, index: Tensor | None, visits: Tensor, sweeps: Tensor | None,
    labels: Tensor | None, swept: int, ignore: int,
) -> Looked:  # fmt: skip
    """`tritoncrf.kernels.looks.look` before ``swept`` sweeps."""
    from tritoncrf.kernels import looks

    most = (1 << contract.SWEEP_BITS) - swept
    given = logits.detach(), target, pairwise.detach(), index, visits, sweeps, labels, most
    found: Looked = looks.look(*given, contract.TABLE_BOUND, ignore)
    return found


def tell(
    looked: Looked, logits: Tensor, data: Tensor, free: Tensor, positions: Tensor, pairs: Tensor, pairwise: Tensor,
    labels: Tensor | None, sweeps: Tensor | None, visits: Tensor | None, swept: int, mean: bool,
) -> Told:  # fmt: skip
    """`tritoncrf.kernels.tells.tell`."""
    from tritoncrf.kernels import tells

    written = labels, sweeps, visits
    rows = data.contiguous(), free.contiguous()
    found: Told = tells.tell(looked, logits.detach(), *rows, positions, pairs, pairwise.detach(), *written, swept, mean)
    return found
