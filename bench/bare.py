"""How does a machine with torch and Triton alone import the package? Stand-ins for the rest, and kernels from the checkout.

tritoncrf is installed with its dependencies as a rule; a machine that is lent for an hour has none of them and no way to get
them. Of these packages `bench.gpu_check` needs nothing: a stand-in serves to be imported, and says what is missing when used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

KERNELS = Path(__file__).parent.parent / "kernels"
OPTIONAL = ("PIL", "einops", "safetensors", "scipy", "tqdm")


class Hollow(type):
    """Of a class whose every attribute is the class again."""

    def __getattr__(cls, name: str) -> Hollow:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Missing(Exception, metaclass=Hollow):
    """Stands for whatever a missing package would hold, exceptions included."""

    def __init__(self, *arguments: object, **options: object) -> None:
        raise ModuleNotFoundError("bench: expected a package that is not installed here; pip install tritoncrf")


class StandIn(ModuleType):
    def __getattr__(self, name: str) -> Hollow:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, for what nothing else has found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "tritoncrf.kernels":
            return importlib.util.spec_from_file_location(
                fullname, KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)]
            )
        package = fullname.partition(".")[0]
        if package in OPTIONAL:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def provide() -> None:
    """Lets ``import tritoncrf`` work from a checkout that is not installed."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
