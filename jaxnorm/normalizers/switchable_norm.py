"""Switchable Normalization: learned mixtures of the means and variances of several norms."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.normalizers.batch_stats import BatchStats
from jaxnorm.normalizers.channels import (
    along,
    averaged,
    centered_over,
    check_channels,
    check_choice,
    check_count,
    check_knob,
    check_positions,
    computed,
    count,
    over_devices,
    scaled,
    space_moments,
)

#: The norms whose statistics can be mixed, in the order of their weights.
STATISTICS = ("instance", "layer", "batch")


class _Part(NamedTuple):
    """The statistics of one norm: x without its mean is centered + off."""

    off: Any
    var: Any


def switchable_norm(
    x: jax.Array,
    state: BatchStats,
    mean_weight: jax.Array,
    var_weight: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    statistics: tuple[str, ...] = STATISTICS,
    unbiased: bool = False,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, BatchStats]:
    """The function of `jaxnorm.linen.normalizers.SwitchableNorm`, which says what all of it means.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.normalizers import initial_batch_stats, switchable_norm
        >>> x, ones = jax.random.normal(jax.random.key(0), (4, 8, 8, 3)), jnp.ones(3)
        >>> y, state = switchable_norm(x, initial_batch_stats(3), ones, ones, train=True)
        >>> y.shape, state.var.shape
        ((4, 8, 8, 3), (3,))
    """
    check_channels(x, state.mean.shape[0])
    check_statistics(x, statistics)
    check_knob("momentum", momentum, 0, 1)
    check_knob("epsilon", epsilon, 0)
    x = computed(x)
    mean, var, centered = space_moments(x)
    if unbiased and x.ndim > 2:
        check_positions(x, unbiased=True)
        positions = math.prod(x.shape[1:-1])
        var = var * (positions / (positions - 1))
    # Without space there is no variance in an instance to be unbiased: that of the others is.
    direct = unbiased and x.ndim == 2
    parts = {"instance": _Part(jnp.zeros_like(mean), var)}
    if "layer" in statistics:
        _, parts["layer"] = _over(mean, var, x.ndim - 1, x.shape[-1] if direct else None)
    if "batch" in statistics and train:
        values = count(x, axis_name, axis_index_groups)
        check_count(x, values)
        over = over_devices(axis_name, axis_index_groups)
        center, parts["batch"] = _over(mean, var, 0, values if direct else None, over)
        state = BatchStats(
            averaged(state.mean, center, momentum),
            averaged(state.var, parts["batch"].var, momentum),
        )
    elif "batch" in statistics:
        parts["batch"] = _Part(mean - along(state.mean, x), along(state.var, x))
    chosen = [parts[name] for name in statistics]
    of_means, of_vars = jax.nn.softmax(mean_weight), jax.nn.softmax(var_weight)
    off = sum(weight * part.off for weight, part in zip(of_means, chosen, strict=True))
    mixed = sum(weight * part.var for weight, part in zip(of_vars, chosen, strict=True))
    return scaled((centered + off) * lax.rsqrt(mixed + epsilon), scale, bias), state


def _over(
    mean: Any, var: Any, axis: int, values: int | None, over: Any = lambda mean: mean
) -> tuple[Any, _Part]:
    """The mean and the norm over one more axis of instances; unbiased for so many values."""
    center, off = centered_over(mean, (axis,), over)
    spread = over(jnp.mean(var + jnp.square(off), axis, keepdims=True))
    return center, _Part(off, spread if values is None else spread * (values / (values - 1)))


def check_statistics(x: jax.Array, statistics: tuple[str, ...]) -> None:
    """Raise a ValueError unless they are norms, each once, that x has."""
    for name in statistics:
        check_choice("statistics", name, STATISTICS)
    if not statistics or len(set(statistics)) != len(statistics):
        raise ValueError(f"statistics: got {statistics}, expected at least one name, each once")
    if "instance" in statistics and x.ndim < 3:
        raise ValueError(
            f"statistics: got 'instance' for x of shape {tuple(x.shape)}, expected an axis of "
            "space, because each value is its own mean; use statistics=('layer', 'batch')"
        )
