"""Input standardization as a layer of Flax linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.normalizers.standardize import (
    Axis,
    Standardization,
    apply,
    batch_moments,
    feature_axes,
    merge,
)
from jaxnorm.precision import at_least_float32

#: The collection that the layer has.
COLLECTION = "standardization"


class Standardize(nn.Module):
    """Standardizes inputs by statistics that were fitted on training data, and never learned.

        y = (x - mean) / sqrt(var),    y = x - mean where var = 0

    The first layer of a model, so that the statistics are saved with it. Train and eval are the
    same; only ``fit=True`` changes them. Two ways to fit:

    - before: ``Standardize.variables(jaxnorm.normalizers.standardize.fit(train))`` has them in
      float64, of NumPy;
    - in passing: calls with ``fit=True`` take the batch into the statistics, each batch once, and
      return it standardized by those so far. In float32, if JAX has no float64: to about 1e-6, and
      counts up to 2^24.

    Args:
        axis: of the features, default -1: as in `jaxnorm.normalizers.standardize.fit`.

    Collections: standardization {count [], mean, var in the shape of the features}, which is no
    parameter: count 0, mean 0, variance 1 at first.

    Returns:
        What a call returns: in the dtype of x, or float32 for integers.

    Raises:
        ValueError: where no data were seen (not under ``jit``, where x passes as it is), for other
            features.

    Transformations: any. Dtypes: see `apply`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.linen.normalizers import Standardize
        >>> from jaxnorm.normalizers import standardize
        >>> train = jnp.array([[1.0, 7.0], [3.0, 7.0]])
        >>> variables = Standardize.variables(standardize.fit(train))
        >>> Standardize().apply(variables, jnp.array([[4.0, 8.0]])).tolist()
        [[2.0, 1.0]]
    """

    axis: Axis = -1

    @nn.compact
    def __call__(self, x: jax.Array, *, fit: bool = False) -> jax.Array:
        """Standardize x; with `fit` take it into the statistics before."""
        x = jnp.asarray(x)
        shape = tuple(x.shape[each] for each in feature_axes(x.ndim, self.axis))
        wide = at_least_float32(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        count = self.variable(COLLECTION, "count", jnp.zeros, (), wide)
        mean = self.variable(COLLECTION, "mean", jnp.zeros, shape, wide)
        var = self.variable(COLLECTION, "var", jnp.ones, shape, wide)
        if self.is_initializing():
            return x
        state = Standardization(count.value, mean.value, var.value)
        if fit:
            new = batch_moments(jax.lax.stop_gradient(x).astype(count.value.dtype), self.axis)
            state = merge(state, new)
            count.value, mean.value, var.value = state
        return apply(x, state, self.axis)

    @staticmethod
    def variables(state: Standardization) -> dict[str, Any]:
        """The variables of a layer that was fitted so."""
        return {COLLECTION: state._asdict()}
