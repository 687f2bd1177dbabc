"""The change of coordinates of one layer: gradients into it, steps back out of it. Pure algebra.

Per neuron, z = w.x + b = w~.x~ + b~ with x~ = (x - mean) / sigma, w~ = sigma w, b~ = b + mean.w.
Everything broadcasts against the kernel, whose last axis is the neurons.
"""

import jax
import jax.numpy as jnp

from jaxnorm.statistics import Moments


def covariant(centred_gradient: jax.Array, moments: Moments) -> jax.Array:
    """dL/dw~ = (g_W - mean g_b) / sigma; dL/db~ is g_b itself."""
    return centred_gradient / moments.sigma


def pull_back(
    step: jax.Array, bias_step: jax.Array | None, moments: Moments
) -> tuple[jax.Array, jax.Array | None]:
    """A step in the new coordinates as one of the parameters: (dW, db).

    dW = dw~ / sigma, db = db~ - sum_i mean dW.
    """
    kernel_step = step / moments.sigma
    if bias_step is None:
        return kernel_step, None
    # A mean of 0 moves nothing, not even where dW is NaN (0 NaN would be NaN).
    moved = jnp.where(moments.mean == 0, 0, moments.mean * kernel_step)
    return kernel_step, bias_step - jnp.sum(moved, axis=tuple(range(moved.ndim - 1)))
