"""What the backward pass of a layer knows, made once, on flat axes. Nothing else thins rows."""

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
class Samples:
    """Some samples of a batch, as sums take them.

    Attributes:
        x: their inputs [..., C], in at least float32; 0 where a sample does not count.
        g_z: the gradient at z [..., O].
        counts: how often each sample of z counts [..., 1], or None: once.
    """

    x: jax.Array
    g_z: jax.Array
    counts: jax.Array | None = None

    def counted(self, s: jax.Array) -> jax.Array:
        """The weight s of each sample of z, as often as it counts."""
        return s if self.counts is None else s * self.counts


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one backward pass: all of them, and the rows that the neurons' sums use.

    Attributes:
        operation: the layer's linear operation.
        rule: see `Rule`.
        x: inputs [..., C].
        kernel: gives shapes and types only.
        g_z: gradient at z [..., O].
        every: all samples, of which the layer's own sums are taken.
        rows: those of which the sums of its neurons are taken.
        slope: phi'(z) on these rows (see `gate_slope`), or None where it is 1.
        centered: False where there is no bias to absorb a mean: second moments about zero.
        axis_name: mapped axes over which the batch is spread, or None.
        x_counts: how often each sample of x counts [..., 1], whose positions may be others than
            those of z; None: once.
    """

    operation: LinearOperation
    rule: Rule
    x: jax.Array
    kernel: jax.Array
    g_z: jax.Array
    every: Samples
    rows: Samples
    slope: jax.Array | None
    centered: bool
    axis_name: AxisName | None
    x_counts: jax.Array | None = None

    @property
    def samples(self) -> Any:
        """How many there are, of this device."""
        counts = self.every.counts
        return self.operation.samples(self.g_z) if counts is None else counts.sum()

    @property
    def x_samples(self) -> Any:
        """The same of the samples of x."""
        return self.operation.samples(self.x) if self.x_counts is None else self.x_counts.sum()

    @property
    def mean(self) -> jax.Array:
        """The mean of the inputs [C]."""
        count, total = self.total((self.x_samples, self.counted_sum(self.every.x)))
        return total / (max(count, 1) if isinstance(count, int) else jnp.where(count > 0, count, 1))

    def counted_sum(self, x: jax.Array) -> jax.Array:
        """The sum over the samples of x [C], as often as each counts."""
        return self.operation.bias_grad(x if self.x_counts is None else x * self.x_counts)

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
        slope = slope if counts is not None else operation.spaced_rows_of_z(slope, rows)
        slope = operation.flat(None, None, slope)[2]
    x, kernel, g_z = operation.flat(x, kernel, g_z)
    dtype = at_least_float32(x.dtype)
    x_counts, every = None, x
    if counts is not None:
        counts = counts.astype(dtype)
        x_counts = masks.fitted(counts[..., 0], x.shape[:-1], dtype)[..., None]
        # What does not count may be anything, NaN; of an image that counts, it is some tap's input.
        space = tuple(range(x.ndim - 1 - operation.spatial_axes, x.ndim - 1))
        every = jnp.where(jnp.max(x_counts, axis=space, keepdims=True) > 0, x, 0)
        slope = None if slope is None else operation.spaced_rows(slope, rows, counts)
    row_x, row_g_z = (operation.spaced_rows(a, rows, counts).astype(dtype) for a in (every, g_z))
    row_counts = counts
    if counts is not None:
        row_counts = operation.spaced_rows(counts, rows, counts)
        row_g_z = jnp.where(row_counts > 0, row_g_z, 0)
    return Batch(
        operation,
        rule,
        x,
        kernel,
        g_z,
        Samples(every.astype(dtype), g_z, counts),
        Samples(row_x, row_g_z, row_counts),
        slope,
        centered,
        axis_name,
        x_counts,
    )
