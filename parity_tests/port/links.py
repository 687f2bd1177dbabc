"""Which numbers of one model are which of the other, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxnorm.checkpoints.layout import Entry, Shape, lay_out
from parity_tests.port.sides.base import Arrays

#: How two entries were found to belong together, the surest first.
GIVEN, BY_NAME, ONLY, WIRED, BY_ORDER, TRIED = (
    "given",
    "by name",
    "the only one that shapes admit",
    "the only one that shapes and wiring admit",
    "by order",
    "by order, the one of several tried that agrees",
)


@dataclass(frozen=True)
class Link:
    """One entry of a Flax tree and what it is in PyTorch.

    Attributes:
        flax: its path.
        torch: its name in PyTorch; of a recurrent bias two names, the sum of which it is.
        entry: its layout, of the rows alone if it is some rows.
        rows: the rows of PyTorch's array that it is; None: all of it.
        columns: the columns of Flax's array that it is; None: all of it.
        state: whether it is a state, and no parameter.
        sureness: how the two were found to belong together.
    """

    flax: str
    torch: tuple[str, ...]
    entry: Entry
    torch_shape: Shape
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    state: bool = False
    sureness: str = BY_NAME

    @property
    def name(self) -> str:
        """What it is called in a report."""
        return self.flax if self.columns is None else f"{self.flax}[{self.columns[0]}:]"

    def of_flax(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The entry among Flax's arrays; writing to it writes to them."""
        array = arrays[self.flax]
        return array[..., slice(*self.columns)] if self.columns else array

    def to_flax(self, arrays: Mapping[str, np.ndarray], *, gradient: bool = False) -> np.ndarray:
        """The entry in Flax, from PyTorch's arrays.

        Args:
            arrays: name -> array.
            gradient: whether they are gradients, of which a sum's is that of one of its terms.
        """
        parts = [self._part(arrays[name]) for name in self.torch[: 1 if gradient else None]]
        total = parts[0] if len(parts) == 1 else np.sum(parts, axis=0)
        return self.entry.to_flax(total.reshape(self.entry.torch))

    def to_torch(self, value: np.ndarray, into: Arrays) -> None:
        """Write the entry into PyTorch's arrays: the second of two that are added becomes zero."""
        array = self.entry.to_torch(value).reshape(self._part_shape())
        for n, name in enumerate(self.torch):
            rows = slice(*self.rows) if self.rows else slice(None)
            if array.ndim:
                into[name][rows] = array if n == 0 else 0.0
            else:
                into[name] = array

    def _part(self, array: np.ndarray) -> np.ndarray:
        return array[slice(*self.rows)] if self.rows else array

    def _part_shape(self) -> Shape:
        if self.rows is None:
            return self.torch_shape
        return (self.rows[1] - self.rows[0], *self.torch_shape[1:])


def fitted(
    leaf: str,
    flax: Shape,
    torch: Shape,
    *,
    name: str = "",
    transposed: bool = False,
    image: Shape | None = None,
    as_is: bool = False,
) -> Entry | None:
    """The layout that brings one shape to the other, or None.

    Args:
        leaf: what the entry is called in Flax.
        flax: its shape there.
        torch: its shape in PyTorch.
        name: its name there.
        transposed: whether it is the kernel of a transposed convolution in Flax.
        image: the image [*space, channels] that is flattened before the layer.
        as_is: whether PyTorch stores it as Flax does (``Conv1D`` of transformers).
    """
    same = Entry(name, flax, flax, (), tuple(range(len(flax))), flax)
    if as_is and leaf == "kernel":
        return same if flax == torch else None
    if leaf == "kernel" and len(torch) > 2 and set(torch[2:]) == {1} and len(flax) == 2:
        # A convolution over one pixel is a dense layer.
        entry = lay_out(name, leaf, flax, torch[:2], transposed, image)
        return entry if entry.torch == torch[:2] else None
    entry = lay_out(name, leaf, flax, torch, transposed, image)
    if entry.torch == torch:
        return entry
    if leaf not in ("kernel", "bias", "scale", "mean", "var", "embedding"):
        if _squeezed(flax) == _squeezed(torch):
            return Entry(name, flax, flax, (), tuple(range(len(flax))), flax)
    return None


def _squeezed(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)
