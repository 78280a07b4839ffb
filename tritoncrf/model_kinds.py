"""Which models are there? `GridCRF` of lattices, the one meant where nothing else is said, and `FactorCRF` of graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tritoncrf.grid_crf import GridCRF
from tritoncrf.model_protocol import CRF

if TYPE_CHECKING:
    import typing_extensions

    Model = typing_extensions.TypeVar("Model", bound=CRF, covariant=True, default=GridCRF)
else:
    # Defaults came with Python 3.13; only type checkers read them.
    Model = TypeVar("Model", bound=CRF, covariant=True)
