"""The layers of each package behind one interface: NumPy in, NumPy out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parity_tests.normalizers.case import Case, Result


class Normalizer(ABC):
    """A package that has the layers of the families."""

    name: str

    @abstractmethod
    def run(self, case: Case) -> list[Result]:
        """Make every call of the case, one after the other."""


def load(frameworks: tuple[str, ...] = ("jax", "torch")) -> list[Normalizer]:
    """One instance of everything that the named frameworks offer."""
    modules = [import_module(f"{__name__}.in_{name}") for name in frameworks]
    return [kind() for module in modules for kind in module.NORMALIZERS]
