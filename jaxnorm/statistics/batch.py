"""What the backward pass of a layer knows, made once, on flat axes. Nothing else thins rows."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.operations.linear import LinearOperation
from jaxnorm.precision import at_least_float32
from jaxnorm.rule import Rule

AxisName = Hashable


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one backward pass: all of them, and the rows that the statistics use.

    Attributes:
        operation: the layer's linear operation.
        rule: see `Rule`.
        x: inputs [..., C].
        kernel: gives shapes and types only.
        g_z: gradient at z [..., O].
        row_x: x on the rows that the statistics use, in at least float32.
        row_g_z: g_z on these rows.
        slope: phi'(z) on these rows (see `gate_slope`), or None where it is 1.
        centered: False where there is no bias to absorb a mean: second moments about zero.
        axis_name: mapped axes over which the batch is spread, or None.
    """

    operation: LinearOperation
    rule: Rule
    x: jax.Array
    kernel: jax.Array
    g_z: jax.Array
    row_x: jax.Array
    row_g_z: jax.Array
    slope: jax.Array | None
    centered: bool
    axis_name: AxisName | None

    @property
    def samples(self) -> int:
        """How many the statistics use, of this device."""
        return self.operation.samples(self.row_g_z)

    @property
    def mean(self) -> jax.Array:
        """The mean of the inputs [C]."""
        count = self.total(self.operation.samples(self.row_x))
        return self.total(self.operation.bias_grad(self.row_x)) / max(count, 1)

    def total(self, values: Any) -> Any:
        """The sum over all devices that share the batch."""
        return values if self.axis_name is None else lax.psum(values, self.axis_name)

    def maximum(self, values: jax.Array) -> jax.Array:
        """The largest value of each neuron, over all devices too; keeps the axes."""
        top = jnp.max(values, axis=self.operation.sample_axes(values), keepdims=True)
        return top if self.axis_name is None else lax.pmax(top, self.axis_name)


def make_batch(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    g_z: jax.Array,
    slope: jax.Array | None,
    rule: Rule,
    *,
    centered: bool,
    axis_name: AxisName | None = None,
) -> Batch:
    """From Flax's axes; the slope may be whole, or cut to its rows already."""
    operation = operation.unplaced()
    if slope is not None:
        slope = operation.flat(None, None, operation.rows_of_z(slope, rule.statistics_rows))[2]
    x, kernel, g_z = operation.flat(x, kernel, g_z)
    dtype = at_least_float32(x.dtype)
    row_x, row_g_z = (operation.first_rows(a, rule.statistics_rows).astype(dtype) for a in (x, g_z))
    return Batch(operation, rule, x, kernel, g_z, row_x, row_g_z, slope, centered, axis_name)
