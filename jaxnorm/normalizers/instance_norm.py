"""What an InstanceNorm of Flax needs beside itself to track running statistics as PyTorch does.

    old' = m old + (1 - m) (mean over samples)   of the mean and the variance of each
    var of a sample: times N / (N - 1) in PyTorch's convention, N positions

[measured: no paper tells]
"""

import math
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxnorm.normalizers.batch_norm import averaged, stored_variance
from jaxnorm.normalizers.conventions import DEFAULT, convention_of, epsilon_of, momentum_of
from jaxnorm.precision import at_least_float32


class Knobs(NamedTuple):
    """The arguments of a layer, with the convention's in place of those that were not given."""

    momentum: Any
    epsilon: Any
    use_scale: bool
    use_bias: bool
    unbiased: bool


def knobs_of(convention: Any, momentum: Any, epsilon: Any, use_scale: Any, use_bias: Any) -> Knobs:
    """What these arguments come to. Raises a ValueError for impossible ones."""
    defaults = convention_of(convention)
    return Knobs(
        momentum_of(momentum, defaults.momentum, average=False),
        epsilon_of(epsilon, defaults.epsilon),
        defaults.instance_affine if use_scale == DEFAULT else use_scale,
        defaults.instance_affine if use_bias == DEFAULT else use_bias,
        defaults.unbiased,
    )


def updated(
    mean: jax.Array, var: jax.Array, x: jax.Array, knobs: Knobs
) -> tuple[jax.Array, jax.Array]:
    """The running statistics after x [N, *space, C]; no gradient flows into them."""
    x = lax.stop_gradient(x).astype(at_least_float32(x.dtype))
    space = tuple(range(1, x.ndim - 1))
    of_samples = x.mean(space), x.var(space)
    count = math.prod(x.shape[1:-1])
    batch = stored_variance(of_samples[1].mean(0), count, unbiased=knobs.unbiased)
    return (
        averaged(mean, of_samples[0].mean(0), knobs.momentum, None),
        averaged(var, batch, knobs.momentum, None),
    )
