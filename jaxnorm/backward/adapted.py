"""The gradient in the neurons' coordinates, pulled back or not: no state, this batch only."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxnorm import checks
from jaxnorm.coordinates import Moments, pull_back, standardized
from jaxnorm.statistics.batch import Batch
from jaxnorm.statistics.moments import input_moments
from jaxnorm.statistics.weighted_sums import real_mass


def parameter_gradients(batch: Batch) -> tuple[jax.Array, Any]:
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centered."""
    operation, rule = batch.operation, batch.rule
    samples = batch.total(batch.samples)
    if not isinstance(samples, Tracer):  # of a mask that is traced nothing is known
        checks.check_samples(int(samples), batch.centered)
    moments = input_moments(batch)
    if batch.centered:
        g_b = operation.bias_grad(batch.g_z.astype(moments.sigma.dtype))
        g_b = operation.per_neuron(g_b, batch.kernel)
        g_w = centered_gradient(batch, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(batch.x, batch.kernel, batch.g_z)
    if operation.mask is not None:
        g_w = jnp.where(jnp.asarray(operation.mask) == 0, 0, g_w)
    at = moments.coordinates
    g_w = standardized(g_w, at)
    g_w, g_b = (g_w, g_b) if rule.gradient == "standardized" else pull_back(g_w, g_b, at)
    return operation.restored(g_w, g_b)


def centered_gradient(batch: Batch, g_b: jax.Array, moments: Moments) -> jax.Array:
    """The sum of g_z (x - mean), as a product of x - center, because g_W - mean g_b cancels."""
    operation, x, kernel, dtype = batch.operation, batch.x, batch.kernel, g_b.dtype
    shifted = (x.astype(dtype) - operation.over_samples(moments.center, x)).astype(x.dtype)
    product = operation.kernel_grad(shifted, kernel, batch.g_z).astype(dtype)
    if not operation.padded:
        return product - moments.offset * g_b
    # Padding is x = 0, not x = center: a tap that sees it has less real mass than the bias.
    real = real_mass(operation, shifted, kernel, batch.g_z).astype(dtype)
    return product + (moments.mean - moments.offset) * real - moments.mean * g_b
