"""The samples of a normalizer: where they lie, their sums over all devices, running averages."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.checks import check_floating
from jaxnorm.normalizers.refusals import check_channels, check_values
from jaxnorm.precision import at_least_float32

#: Added to sums of weights: far below any that matters, and not 0 in float32.
TINY = 1e-30


def rows_of(x: jax.Array, axis: int, channels: int | None) -> tuple[jax.Array, Callable]:
    """The rows of x, [samples, positions, channels], in at least float32, and the way back."""
    check_floating(x=x)
    check_channels(x.shape, axis, channels)
    last = jnp.moveaxis(x, axis, -1)
    positions = math.prod(last.shape[1:-1])
    rows = last.reshape(last.shape[0], positions, last.shape[-1])

    def restore(rows: jax.Array) -> jax.Array:
        return jnp.moveaxis(rows.reshape(last.shape), -1, axis)

    return rows.astype(at_least_float32(x.dtype)), restore


class Samples:
    """Sums over the samples of this device, or of all that share an axis.

    Args:
        x: the rows, [samples, positions, channels].
        axis_name: of the devices' axis, for `jax.lax.psum`.
        axis_index_groups: of that axis.
    """

    def __init__(self, x: jax.Array, axis_name: Any = None, axis_index_groups: Any = None) -> None:
        self.axis_name, self.groups = axis_name, axis_index_groups
        if axis_name is None:
            check_values(x.shape, -1)
        self.count = self.total(jnp.asarray(x.shape[0] * x.shape[1], x.dtype))

    def total(self, local: Any) -> Any:
        """Of all devices."""
        if self.axis_name is None:
            return local
        return jax.lax.psum(local, self.axis_name, axis_index_groups=self.groups)

    def sum(self, x: jax.Array) -> jax.Array:
        """Over samples and positions: [C]."""
        return self.total(x.sum((0, 1)))

    def mean(self, x: jax.Array) -> jax.Array:
        """Over samples and positions: [C]."""
        return self.sum(x) / self.count


def rowwise(value: jax.Array) -> jax.Array:
    """A value per channel, beside rows."""
    return value[None, None, :]


def running(old: Any, new: Any, momentum: float) -> Any:
    """The running averages after a batch, of which the gradient knows nothing."""
    averages = jax.tree.map(
        lambda old, new: momentum * old + (1 - momentum) * new.astype(old.dtype), old, new
    )
    return jax.lax.stop_gradient(averages)


def affine(rows: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Rows * scale + bias, in the precision of the rows."""
    if scale is not None:
        rows = rows * rowwise(scale.astype(rows.dtype))
    return rows if bias is None else rows + rowwise(bias.astype(rows.dtype))


def result_dtype(dtype: Any, *arrays: jax.Array | None) -> Any:
    """The dtype asked for, or the widest of the arrays', as Flax's layers have it."""
    if dtype is not None:
        return dtype
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(array for array in arrays if array is not None))
