"""Input standardization as a layer of Flax nnx."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm.normalizers.standardize import (
    Axis,
    Standardization,
    apply,
    batch_moments,
    merge,
)


class InputStat(nnx.Variable):
    """The type of the statistics: no parameters, and no running averages."""


class Standardize(nnx.Module):
    """As `jaxnorm.linen.normalizers.Standardize`, as a module of nnx.

    Args:
        features: their number, or shape, where there are several axes.
        axis: of the features, default -1.
        state: from `jaxnorm.normalizers.standardize.fit`; None for one to be fitted yet.

    Raises:
        ValueError: where no data were seen (not under ``jit``), for other features.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.nnx.normalizers import Standardize
        >>> layer = Standardize(2)
        >>> _ = layer(jnp.array([[1.0, 7.0], [3.0, 7.0]]), fit=True)
        >>> layer(jnp.array([[4.0, 8.0]])).tolist()
        [[2.0, 1.0]]
    """

    def __init__(
        self,
        features: int | tuple[int, ...],
        *,
        axis: Axis = -1,
        state: Standardization | None = None,
    ) -> None:
        shape = features if isinstance(features, tuple) else (features,)
        if state is None:
            state = Standardization(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))
        self.axis = axis
        self.count = InputStat(jnp.asarray(state.count))
        self.mean = InputStat(jnp.asarray(state.mean))
        self.var = InputStat(jnp.asarray(state.var))

    def __call__(self, x: jax.Array, *, fit: bool = False) -> jax.Array:
        """Standardize x; with `fit` take it into the statistics before."""
        x = jnp.asarray(x)
        state = Standardization(self.count[...], self.mean[...], self.var[...])
        if fit:
            new = batch_moments(jax.lax.stop_gradient(x).astype(state.mean.dtype), self.axis)
            state = merge(state, new)
            self.count[...], self.mean[...], self.var[...] = state
        return apply(x, state, self.axis)
