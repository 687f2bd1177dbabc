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
    base = _base(weighting, slope, g_z)
    if base is None or base.dtype == bool:
        return _weight(weighting, base, g_z)
    top = maximum(jnp.abs(base))
    return _weight(weighting, base / jnp.where(top > 0, top, 1), g_z)


def raw_weight(weighting: Weighting, slope: jax.Array | None, g_z: jax.Array) -> jax.Array | None:
    """`sample_weight` in its own unit, so that the sums of several batches can be added."""
    return _weight(weighting, _base(weighting, slope, g_z), g_z)


def _base(weighting, slope, g_z):
    """What the weight is a function of; None if s = 1."""
    base = g_z if weighting == "error" else slope
    if weighting == "uniform" or base is None:
        return None
    if base.dtype == bool:
        return base
    base = base.astype(g_z.dtype)
    return jnp.where(jnp.isfinite(base), base, 0)


def _weight(weighting, base, g_z):
    if base is None or base.dtype == bool:
        return None if base is None else base.astype(g_z.dtype)
    if weighting == "signed":
        return base
    return jnp.abs(base) if weighting == "gate" else base * base
