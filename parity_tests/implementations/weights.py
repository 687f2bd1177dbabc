"""Between the two layouts of a kernel: flax [*window, I, O], torch [O, I, *window]. Never guessed.

A dense kernel has no window. PyTorch's transposed convolution has a layout of its own, in which its
cases are stored as well.
"""

from __future__ import annotations

import numpy as np


def to_torch(kernel: np.ndarray, *, inputs: int, outputs: int) -> np.ndarray:
    """A flax kernel [*window, I, O] as a torch weight [O, I, *window]."""
    _require(kernel.shape[-2:], (inputs, outputs), "flax kernel [*window, I, O]")
    window = range(kernel.ndim - 2)
    return np.ascontiguousarray(kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *window))


def to_flax(weight: np.ndarray, *, inputs: int, outputs: int) -> np.ndarray:
    """A torch weight [O, I, *window] as a flax kernel [*window, I, O]."""
    _require(weight.shape[:2], (outputs, inputs), "torch weight [O, I, *window]")
    return np.ascontiguousarray(weight.transpose(*range(2, weight.ndim), 1, 0))


def _require(ends: tuple[int, ...], expected: tuple[int, int], what: str) -> None:
    """Raise where an array has other channels than its layout says."""
    if ends != expected:
        raise ValueError(f"{what} must have {expected} there, got {ends}")
