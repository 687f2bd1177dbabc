"""The change of coordinates of one layer: gradients into it, steps back out of it. Pure algebra.

Per neuron, z = w.x + b = w~.x~ + b~ with x~ = (x - mean) / sigma, w~ = sigma w, b~ = b + mean.w.
Everything, biases too, broadcasts against the kernel, whose last axis is the neurons.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """Each neuron's input moments; everything broadcasts against the kernel.

    Attributes:
        center: about which the sums were taken, per channel of x, [C].
        mean: where the inputs are centered.
        offset: mean - center, apart because the difference of two large numbers has lost it.
        sigma: what they are divided by.
        varies: where the inputs do; the rest has no gradient in the coordinates.
    """

    center: jax.Array
    mean: jax.Array
    offset: jax.Array
    sigma: jax.Array
    varies: jax.Array

    @property
    def coordinates(self) -> "Coordinates":
        """What of them changes the coordinates."""
        return Coordinates(self.mean, 1 / self.sigma, self.varies)


class Coordinates(NamedTuple):
    """What changes the coordinates; everything broadcasts against the kernel.

    Attributes:
        mean: see `Moments`.
        scale: 1 / sigma: products are cheaper than quotients.
        varies: see `Moments`.
    """

    mean: jax.Array
    scale: jax.Array
    varies: jax.Array


def standardized(centered_gradient: jax.Array, at: Coordinates) -> jax.Array:
    """dL/dw~ = (g_W - mean g_b) / sigma; dL/db~ is g_b itself."""
    return jnp.where(at.varies, centered_gradient * at.scale, 0)


def pull_back(
    step: jax.Array, bias_step: jax.Array | None, at: Coordinates
) -> tuple[jax.Array, jax.Array | None]:
    """A step in the new coordinates as one of the parameters: (dW, db).

    dW = dw~ / sigma, db = db~ - sum_i mean dW.
    """
    kernel_step = step * at.scale
    if bias_step is None:
        return kernel_step, None
    # A mean of 0 moves nothing, not even where dW is NaN (0 NaN would be NaN).
    moved = jnp.where(at.mean == 0, 0, at.mean * kernel_step)
    return kernel_step, bias_step - _over_inputs(moved)


def gradient_into(
    g_w: jax.Array, g_b: jax.Array | None, at: Coordinates
) -> tuple[jax.Array, jax.Array | None]:
    """The plain gradient as that in the coordinates; where |mean| / sigma is large, g_W cancels.

    An entry whose plain gradient is exactly 0 is not learning (frozen, pruned, masked), and has
    none here either.
    """
    centered = g_w if g_b is None else g_w - at.mean * g_b
    return standardized(centered, at._replace(varies=at.varies & (g_w != 0))), g_b


def parameters_into(
    kernel: jax.Array, bias: jax.Array | None, at: Coordinates
) -> tuple[jax.Array, jax.Array | None]:
    """(w~, b~)."""
    new = kernel / at.scale
    if bias is None:
        return new, None
    # A mean of 0 moves nothing, not even where the kernel is not finite.
    moved = jnp.where(at.mean == 0, 0, at.mean * kernel)
    return new, bias + _over_inputs(moved)


def _over_inputs(values: jax.Array) -> jax.Array:
    """The sum over all that feeds one neuron."""
    return jnp.sum(values, axis=tuple(range(values.ndim - 1)), keepdims=True)
