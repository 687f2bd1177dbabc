"""What the backward pass of a layer knows, made once, on flat axes. Nothing else thins rows."""

import dataclasses
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import masks
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
        counts: how often each sample of z counts on these rows [..., 1], or None: once.
        x_counts: the same of the samples of x, whose positions may be others.
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
    counts: jax.Array | None = None
    x_counts: jax.Array | None = None

    @property
    def samples(self) -> Any:
        """How many the statistics use, of this device."""
        return self.operation.samples(self.row_g_z) if self.counts is None else self.counts.sum()

    @property
    def x_samples(self) -> Any:
        """The same of the samples of x."""
        return self.operation.samples(self.row_x) if self.x_counts is None else self.x_counts.sum()

    @property
    def positions(self) -> Any:
        """How many of them share an image."""
        shape, space = self.row_g_z.shape[:-1], self.operation.spatial_axes
        if self.counts is None or space == 0:
            return math.prod(shape[len(shape) - space :])
        images = jnp.max(self.counts, axis=tuple(range(len(shape) - space, len(shape))))
        return self.total(self.samples) / jnp.maximum(self.total(images.sum()), 1)

    @property
    def mean(self) -> jax.Array:
        """The mean of the inputs [C]."""
        count, total = self.total((self.x_samples, self.counted_sum(self.row_x)))
        return total / (max(count, 1) if isinstance(count, int) else jnp.where(count > 0, count, 1))

    def counted_sum(self, x: jax.Array) -> jax.Array:
        """The sum over the samples of x [C], as often as each counts."""
        return self.operation.bias_grad(x if self.x_counts is None else x * self.x_counts)

    def counted(self, s: jax.Array) -> jax.Array:
        """The weight s of each sample of z, as often as it counts."""
        return s if self.counts is None else s * self.counts

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
    mask: jax.Array | None = None,
) -> Batch:
    """From Flax's axes; the slope may be whole, or without a mask cut to its rows already.

    The mask says how often each sample of z counts, with the axes of these samples.
    """
    operation, rows = operation.unplaced(), rule.statistics_rows
    counts = None if mask is None else mask[..., None]
    if slope is not None:
        slope = slope if counts is not None else operation.rows_of_z(slope, rows)
        slope = operation.flat(None, None, slope)[2]
    x, kernel, g_z = operation.flat(x, kernel, g_z)
    dtype = at_least_float32(x.dtype)
    row_x, row_g_z = (operation.first_rows(a, rows, counts).astype(dtype) for a in (x, g_z))
    batch = Batch(operation, rule, x, kernel, g_z, row_x, row_g_z, slope, centered, axis_name)
    if counts is None:
        return batch
    slope = None if slope is None else operation.first_rows(slope, rows, counts)
    counts = operation.first_rows(counts, rows, counts).astype(dtype)
    x_counts = masks.fitted(counts[..., 0], row_x.shape[:-1], dtype)[..., None]
    # What does not count may be anything, NaN too; of an image that counts, it is some tap's input.
    space = tuple(range(x_counts.ndim - 1 - operation.spatial_axes, x_counts.ndim - 1))
    row_x = jnp.where(jnp.max(x_counts, axis=space, keepdims=True) > 0, row_x, 0)
    row_g_z = jnp.where(counts > 0, row_g_z, 0)
    return dataclasses.replace(
        batch, row_x=row_x, row_g_z=row_g_z, slope=slope, counts=counts, x_counts=x_counts
    )
