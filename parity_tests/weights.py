"""Between the two layouts of a kernel, flax [I,O] and torch [O,I]: checked, never guessed."""

from __future__ import annotations

import numpy as np


def to_torch(kernel: np.ndarray, *, inputs: int, outputs: int) -> np.ndarray:
    """A flax kernel [I,O] as a torch weight [O,I]."""
    _require(kernel, (inputs, outputs), "flax kernel [I,O]")
    return np.ascontiguousarray(kernel.T)


def to_flax(weight: np.ndarray, *, inputs: int, outputs: int) -> np.ndarray:
    """A torch weight [O,I] as a flax kernel [I,O]."""
    _require(weight, (outputs, inputs), "torch weight [O,I]")
    return np.ascontiguousarray(weight.T)


def _require(array: np.ndarray, shape: tuple[int, int], what: str) -> None:
    """Raise where an array has another shape than its layout says."""
    if array.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}")
