"""One case: a layer, a batch, a cotangent, and what is right for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from parity_tests import oracle
from parity_tests.oracle import Array, Dense, Knobs, Operation, Shape, View


@dataclass(frozen=True, eq=False)
class Layer:
    """An operation with the shapes of its x and kernel, and which axes of z its bias has."""

    op: Operation
    x: Shape
    kernel: Shape
    bias: tuple[int, ...] = (-1,)
    mask: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One layer, one batch, one cotangent. Arrays are stored in the dtype of the case.

    Channels come last in x, z and delta; the kernel has the layout that its `op` says.
    """

    family: str
    x: np.ndarray = field(repr=False)
    kernel: np.ndarray = field(repr=False)
    bias: np.ndarray | None = field(repr=False)
    delta: np.ndarray = field(repr=False)
    gate: str | None
    knobs: Knobs
    op: Operation = field(default_factory=Dense)
    mask: np.ndarray | None = field(default=None, repr=False)
    #: Whether the layer learns of its gate from `tell_gate`.
    deferred: bool = False

    @property
    def dense(self) -> bool:
        """Whether it is a dense layer, the only one whose moments can be asked for."""
        return isinstance(self.op, Dense)

    @cached_property
    def view(self) -> View:
        """What each neuron reads."""
        return self.op.view(self.x.shape, self.kernel.shape)

    @property
    def dtype(self) -> str:
        """Name of the dtype in which the layer is asked to compute."""
        return self.x.dtype.name

    @property
    def statistics_dtype(self) -> np.dtype[Any]:
        """The dtype of statistics: at least float32."""
        return np.promote_types(self.x.dtype, np.float32)

    @cached_property
    def expected(self) -> oracle.Layer:
        """What is right for these very numbers, in float64."""
        x, kernel, delta = (double(a) for a in (self.x, self.kernel, self.delta))
        bias = None if self.bias is None else double(self.bias)
        rule = (self.gate, self.knobs, self.mask)
        return oracle.linear(self.view, x, kernel, bias, delta, *rule)

    @cached_property
    def rows(self) -> np.ndarray:
        """The inputs of a dense layer as one matrix [N,I]."""
        return self.x.reshape(-1, self.x.shape[-1])

    @cached_property
    def weight(self) -> np.ndarray:
        """The oracle's sample weights [N,O] in the dtype of the case, the largest of a neuron 1.

        Their unit is free; in another one a saturated neuron's would be too small for float32.
        """
        z, delta = (double(a).reshape(-1, a.shape[-1]) for a in (self.expected.z, self.delta))
        weight = oracle.sample_weight(z, delta, self.gate, self.knobs.weighting)
        largest = np.abs(weight).max(0)
        return (weight / np.where(largest == 0, 1, largest)).astype(self.x.dtype)

    @cached_property
    def expected_moments(self) -> oracle.Moments:
        """Moments of the inputs under `weight`, centered as in a layer with a bias."""
        return oracle.moments(double(self.rows), double(self.weight), self.knobs)


def double(array: np.ndarray) -> Array:
    """The same numbers in float64."""
    return array.astype(np.float64)
