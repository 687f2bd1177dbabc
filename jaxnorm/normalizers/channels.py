"""What normalizers of channels share: moments of x [N, *space, C], sums, running averages."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.checks import check_floating
from jaxnorm.normalizers.checks import check_channels, check_rank
from jaxnorm.precision import at_least_float32

#: Added to sums of weights: far below any that matters, and not 0 in float32.
TINY = 1e-30


def computed(x: jax.Array) -> jax.Array:
    """The same in the dtype in which its statistics are computed: float32 or wider."""
    return x.astype(at_least_float32(x.dtype))


def result_dtype(dtype: Any, *arrays: jax.Array | None) -> Any:
    """The dtype asked for, or the widest of the arrays', as Flax's layers have it."""
    if dtype is not None:
        return dtype
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(array for array in arrays if array is not None))


def along(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values [..., C] as they stand beside x [N, *space, C]."""
    shape = (*values.shape[:-1], *(1,) * (x.ndim - values.ndim), values.shape[-1])
    return computed(values).reshape(shape)


def moments(x: Any, axis_name: Any = None, axis_index_groups: Any = None) -> tuple[Any, Any, Any]:
    """Mean and variance (biased), [1..., C], of each channel of the batch, and x without the mean.

    Args:
        x: [N, *space, C].
        axis_name: mapped axes over which the batch is spread.
        axis_index_groups: groups of their indices, as `jax.lax.psum` takes them.
    """
    axes, over = tuple(range(x.ndim - 1)), over_devices(axis_name, axis_index_groups)
    mean, centered = centered_over(x, axes, over)
    return mean, over(jnp.mean(jnp.square(centered), axes, keepdims=True)), centered


def space_moments(x: Any) -> tuple[Any, Any, Any]:
    """Mean and variance (biased), [N, 1..., C], of each sample's channels, and x without the mean.

    Without space the mean is x and the variance 0.
    """
    axes = tuple(range(1, x.ndim - 1))
    mean, centered = centered_over(x, axes)
    return mean, jnp.mean(jnp.square(centered), axes, keepdims=True), centered


def centered_over(x: Any, axes: tuple[int, ...], over: Any = lambda mean: mean) -> tuple[Any, Any]:
    """The mean over axes, which stay, and x without it; `over` takes it over devices, too.

    The first value stands in for the mean at first: so nothing of x is lost in a large mean, and
    what is constant is 0.
    """
    first = x[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(x.ndim))]
    shift = over(lax.stop_gradient(first))
    x = x - shift
    mean = over(jnp.mean(x, axes, keepdims=True))
    return shift + mean, x - mean


def weighted_moments(deviation: jax.Array, weight: jax.Array, over: Any) -> tuple[Any, Any, Any]:
    """The mean weight, and mean and variance [C] of each channel under weights [N, *space or 1].

    Args:
        deviation: [N, *space, C], x without its mean, so that a large one costs no digits.
        weight: not negative.
        over: see `over_devices`.
    """
    axes, each = tuple(range(deviation.ndim - 1)), weight[..., None]
    mass = over(jnp.mean(weight))
    mean = over(jnp.mean(each * deviation, axes)) / (mass + TINY)
    square = over(jnp.mean(each * jnp.square(deviation - along(mean, deviation)), axes))
    return mass, mean, square / (mass + TINY)


def over_devices(axis_name: Any, axis_index_groups: Any) -> Any:
    """A mean over named axes, or what leaves it as it is if there are none."""
    if axis_name is None:
        return lambda mean: mean
    return functools.partial(lax.pmean, axis_name=axis_name, axis_index_groups=axis_index_groups)


def count(x: jax.Array, axis_name: Any = None, axis_index_groups: Any = None) -> int:
    """The values of each channel of x [N, *space, C], over named axes too."""
    devices = 1
    if axis_name is not None:
        devices = lax.psum(1, axis_name, axis_index_groups=axis_index_groups)
    return math.prod(x.shape[:-1]) * devices


def positions(x: jax.Array) -> int:
    """Those of x [N, *space, C] in space."""
    return math.prod(x.shape[1:-1])


def averaged(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    """The running average [C], in which `momentum` is the weight of the old; no gradient.

    Its dtype stays, so that steps can be scanned.
    """
    new = momentum * computed(old) + (1 - momentum) * new.reshape(old.shape)
    return lax.stop_gradient(new.astype(old.dtype))


def scaled(y: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """The product with the scale plus the bias, of those that there are."""
    y = y if scale is None else y * along(scale, y)
    return y if bias is None else y + along(bias, y)


def check_input(x: jax.Array, channels: int | None = None, axis: int = -1) -> None:
    """Raise an error unless x is floating-point, a batch, and has the channels on the axis."""
    check_floating(x=x)
    check_rank(x.shape, max(2, axis + 1, -axis))
    if channels is not None:
        check_channels(x.shape, axis, channels)
