"""Derivative of the activation -> sample weight."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnorm.rule import Weighting


def needs_slope(weighting: Weighting) -> bool:
    """Whether the sample weight depends on the activation's derivative."""
    return weighting in ("gate", "gate_squared", "signed")


def sample_weight(
    weighting: Weighting,
    slope: jax.Array | None,
    g_z: jax.Array,
    maximum: Callable[[jax.Array], jax.Array],
) -> jax.Array | None:
    """The sample weight s[n,o], scaled to a largest value of 1 per neuron; None if s = 1.

    The statistics do not change when s is scaled by a constant, and with this one s^2 neither
    underflows (a saturated sigmoid, a vanishing gradient) nor overflows. A weight that is NaN or
    infinite counts as 0.

    Args:
        weighting: see `Rule`.
        slope: phi'(z) (see `gate_slope`), None for 1.
        g_z: gradient at z, in at least float32.
        maximum: the largest value of each neuron, over all devices that share the batch; keeps the
            axes.
    """
    base = g_z if weighting == "error" else slope
    if weighting == "uniform" or base is None:
        return None
    if base.dtype == bool:
        return base.astype(g_z.dtype)
    base = base.astype(g_z.dtype)
    base = jnp.where(jnp.isfinite(base), base, 0)
    top = maximum(jnp.abs(base))
    base = base / jnp.where(top > 0, top, 1)
    if weighting == "signed":
        return base
    return jnp.abs(base) if weighting == "gate" else base * base
