"""Weight normalization, Salimans and Kingma, arXiv 1602.07868, equation 2: w = g v / |v|."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.normalizers.conventions import convention_of

#: convention -> (what is added to |v|^2, whether g starts as |v|, so that w starts as v, or as 1).
STARTS = {"flax": (1e-12, False), "torch": (0.0, True)}


def start_of(convention: Any) -> tuple[float, bool]:
    """The row of the table. Raises a ValueError for another convention."""
    convention_of(convention)
    return STARTS[convention]


def norm(v: jax.Array, feature_axes: int | Sequence[int] | None) -> jax.Array:
    """|v| over all axes but these, in the shape of these."""
    return jnp.sqrt(jnp.square(v).sum(_others(v, feature_axes)))


def weight_norm(
    v: jax.Array, g: jax.Array | None, feature_axes: int | Sequence[int] | None, epsilon: float
) -> jax.Array:
    """The weight g v / sqrt(|v|^2 + epsilon).

    Args:
        v: the direction, of the kernel's shape.
        g: the length, of the shape of the feature axes; None for 1.
        feature_axes: the axes of which every entry has a norm of its own; None: one for all.
        epsilon: added to |v|^2.
    """
    others = _others(v, feature_axes)
    w = v * lax.rsqrt(jnp.square(v).sum(others, keepdims=True) + epsilon)
    return w if g is None else w * jnp.expand_dims(g, others)


def _others(v: jax.Array, feature_axes: Any) -> tuple[int, ...]:
    given = () if feature_axes is None else feature_axes
    given = (given,) if isinstance(given, int) else given
    return tuple(axis for axis in range(v.ndim) if axis not in {a % v.ndim for a in given})
