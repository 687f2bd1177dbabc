"""What normalizers of channels share: moments of x [N, *space, C], running averages, checks."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.precision import at_least_float32


def computed(x: jax.Array) -> jax.Array:
    """The same in the dtype in which its statistics are computed: float32 or wider."""
    return x.astype(at_least_float32(x.dtype))


def along(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values [..., C] as they stand beside x [N, *space, C]."""
    return values.reshape(*values.shape[:-1], *(1,) * (x.ndim - values.ndim), values.shape[-1])


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


def averaged(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    """The running average [C], in which `momentum` is the weight of the old; no gradient.

    Its dtype stays, so that steps can be scanned.
    """
    new = momentum * old + (1 - momentum) * new.reshape(old.shape)
    return lax.stop_gradient(new.astype(old.dtype))


def scaled(y: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """The product with the scale plus the bias, of those that there are."""
    y = y if scale is None else y * along(scale, y)
    return y if bias is None else y + along(bias, y)


def check_channels(x: jax.Array, channels: int | None = None, axis: int = -1) -> None:
    """Raise an error unless x is floating-point, a batch, and has the channels on the axis."""
    checks.check_floating(x=x)
    shape = tuple(x.shape)
    if len(shape) < 2 or not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"x: got shape {shape}, expected at least 2 axes, a batch, channels; add the one that "
            "is missing"
        )
    if channels not in (None, shape[axis]):
        raise ValueError(
            f"x: got shape {shape}, expected {channels} channels along axis {axis}; move the "
            "channels there, or make the layer anew"
        )


def check_count(x: jax.Array, values: int, per: str = "value per channel") -> None:
    """Raise a ValueError where a mean would be that of a single value."""
    if values < 2:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected more than one {per} in training: a single "
            "value is its own mean, so the output would not depend on it; use a larger batch"
        )


def check_positions(x: jax.Array, *, unbiased: bool) -> None:
    """Raise a ValueError where there is no unbiased variance over space."""
    positions = math.prod(x.shape[1:-1])
    if unbiased and positions < 2:
        raise ValueError(
            f"unbiased: got True with {positions} position per sample and channel, expected at "
            "least 2; use unbiased=False"
        )


def check_knob(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless a number of Python is finite and in [low, high]."""
    if isinstance(value, (int, float)) and not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name}: got {value}, expected a finite number in [{low}, {high}]")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")
