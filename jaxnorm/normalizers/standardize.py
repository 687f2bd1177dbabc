"""Input standardization that is fitted on training data only."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnorm.precision import at_least_float32

#: The axes of the features.
Axis = int | tuple[int, ...]


class Standardization(NamedTuple):
    """What was fitted; NumPy arrays of float64 from `fit`.

    Attributes:
        count: how many values of each feature were seen.
        mean: in the shape of the features.
        var: biased, in the shape of the features.
    """

    count: Any
    mean: Any
    var: Any


def fit(x: Any, axis: Axis = -1) -> Standardization:
    """Mean and variance of each feature of the training data, in float64.

    Give it the training split only: what is fitted on all data has seen the test data.

        y = (x - mean) / sqrt(var),    y = x - mean where var = 0

    A feature that is constant in the training data is only centered: its variance is exactly 0, for
    differences are taken from its first value before anything is summed.

    Args:
        x: any array of real numbers, integers and booleans too (images of uint8); NumPy's
            or JAX's.
        axis: of the features, default -1. For images [N, H, W, C]: -1 for a mean per channel,
            (1, 2, 3) for one per pixel, () for one in all.

    Returns:
        The state, for `apply`.

    Raises:
        TypeError: for an x that is not real.
        ValueError: for no values, values that are not finite, an axis that x has not.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers import standardize
        >>> train, test = jnp.array([[1.0, 7.0], [3.0, 7.0]]), jnp.array([[4.0, 8.0]])
        >>> state = standardize.fit(train)
        >>> standardize.apply(test, state).tolist()
        [[2.0, 1.0]]

    References:
        Merging: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American
        Statistician 37(3), 1983, eq. 1.5b, from memory.
    """
    values = np.asarray(x)
    if values.dtype.kind not in "fiub" and values.dtype.name not in ("bfloat16", "float16"):
        raise TypeError(f"x: got dtype {values.dtype}, expected real numbers")
    moments = batch_moments(values.astype(np.float64), axis)
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.var).all()):
        raise ValueError(
            "x: got values that are not finite, expected finite ones; drop or fill them before"
        )
    return moments


def fit_stream(batches: Iterable[Any], axis: Axis = -1) -> Standardization:
    """As `fit`, of data that come in batches, as of all at once; one pass, one batch in memory.

    Args:
        batches: arrays as in `fit`, of any sizes.
        axis: as in `fit`.

    Returns:
        The state, for `apply`.

    Raises:
        TypeError: as `fit`.
        ValueError: as `fit`; for no batch, or batches of other features.

    Example:
        >>> import numpy as np
        >>> from jaxnorm.normalizers import standardize
        >>> x = np.arange(10.0)[:, None]
        >>> state = standardize.fit_stream([x[:3], x[3:4], x[4:]])
        >>> float(state.count), round(float(state.mean[0]), 9), round(float(state.var[0]), 9)
        (10.0, 4.5, 8.25)
    """
    state = None
    for batch in batches:
        new = fit(batch, axis)
        state = new if state is None else merge(state, new)
    if state is None:
        raise ValueError("batches: got none, expected at least one")
    return state


def merge(one: Standardization, other: Standardization) -> Standardization:
    """Of the data of both, by Chan's formula: no digits are lost, however large the means are.

    Args:
        one: of some data.
        other: of others, of the same features.

    Returns:
        The state of all.

    Raises:
        ValueError: for other features.

    Example:
        >>> import numpy as np
        >>> from jaxnorm.normalizers import standardize
        >>> x = np.array([[1e9], [1e9 + 2]])
        >>> state = standardize.merge(standardize.fit(x), standardize.fit(x + 4))
        >>> state.mean.tolist(), state.var.tolist()
        ([1000000003.0], [5.0])
    """
    if np.shape(one.mean) != np.shape(other.mean):
        raise ValueError(
            f"features: got shape {np.shape(other.mean)}, expected {np.shape(one.mean)}, that of "
            "the batches before"
        )
    count = one.count + other.count
    new = other.count / count
    apart = other.mean - one.mean
    var = one.var + (other.var - one.var) * new + apart**2 * (new * (1 - new))
    return Standardization(count, one.mean + apart * new, var)


def apply(x: jax.Array, state: Standardization, axis: Axis = -1) -> jax.Array:
    """Standardize x by what was fitted, see `fit`.

    Args:
        x: any real array of the same features.
        state: from `fit` or `fit_stream`.
        axis: as in `fit`.

    Returns:
        In the dtype of x, or float32 for integers. Computed in at least float32, and without loss
        for means that are large beside the deviation.

    Raises:
        ValueError: for a state of no data, other features.

    Transformations: any; its derivative is 1 / sqrt(var). Nothing is learned from x.

    Example: see `fit`.
    """
    x, axes = jnp.asarray(x), feature_axes(jnp.ndim(x), axis)
    check_fitted(state, x.shape, axes)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    wide = at_least_float32(dtype)
    high, low, root = _parts(state, wide)
    y = (x.astype(wide) - _beside(high, x.ndim, axes)) - _beside(low, x.ndim, axes)
    return (y / _beside(root, x.ndim, axes)).astype(dtype)


def invert(y: jax.Array, state: Standardization, axis: Axis = -1) -> jax.Array:
    """What `apply` has made y of; of constant features too.

    Args:
        y: of the same features, floating.
        state: from `fit` or `fit_stream`.
        axis: as in `fit`.

    Returns:
        In the dtype of y.

    Raises:
        ValueError: as `apply`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers import standardize
        >>> x = jnp.array([[1.0, 7.0], [3.0, 7.0]])
        >>> state = standardize.fit(x)
        >>> standardize.invert(standardize.apply(x, state), state).tolist()
        [[1.0, 7.0], [3.0, 7.0]]
    """
    y, axes = jnp.asarray(y), feature_axes(jnp.ndim(y), axis)
    check_fitted(state, y.shape, axes)
    wide = at_least_float32(y.dtype)
    high, low, root = (_beside(each, y.ndim, axes) for each in _parts(state, wide))
    return (y.astype(wide) * root + low + high).astype(y.dtype)


def batch_moments(x: Any, axis: Axis) -> Standardization:
    """Of one batch, of NumPy or JAX, in its precision."""
    axes = feature_axes(x.ndim, axis)
    others = tuple(each for each in range(x.ndim) if each not in axes)
    shape = tuple(x.shape[each] for each in axes)
    count = x.size // max(int(np.prod(shape)), 1)
    if count == 0 or x.size == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one value per feature")
    first = x[tuple(slice(0, 1) if each in others else slice(None) for each in range(x.ndim))]
    apart = x - first
    mean = apart.mean(others, keepdims=True)
    var = ((apart - mean) ** 2).mean(others, keepdims=True)
    number = (np if isinstance(x, np.ndarray) else jnp).asarray(count, x.dtype)
    return Standardization(number, (first + mean).reshape(shape), var.reshape(shape))


def feature_axes(ndim: int, axis: Axis) -> tuple[int, ...]:
    """The axes of the features, in order."""
    given = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(each, int) and -ndim <= each < ndim for each in given):
        raise ValueError(f"axis: got {axis!r}, expected axes of the {ndim} of x")
    return tuple(sorted({each % ndim for each in given}))


def check_fitted(state: Standardization, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Raise a ValueError for a state of no data, or of other features."""
    if not isinstance(state.count, Tracer) and float(state.count) == 0:
        raise ValueError(
            "standardization: got one that has seen no data, expected a fitted one; fit it on the "
            "training data first"
        )
    features = tuple(shape[each] for each in axes)
    if tuple(np.shape(state.mean)) != features:
        raise ValueError(
            f"x: got shape {tuple(shape)} with features {features}, expected features "
            f"{tuple(np.shape(state.mean))}, those that were fitted"
        )


def _parts(state: Standardization, dtype: Any) -> tuple[Any, Any, Any]:
    """(mean, what rounding it to `dtype` leaves, deviation or 1), in `dtype`."""
    xp = np if isinstance(state.mean, np.ndarray) else jnp
    high = state.mean.astype(dtype)
    low = (state.mean - high.astype(state.mean.dtype)).astype(dtype)
    constant = state.var == 0
    root = xp.where(constant, xp.ones_like(state.var), xp.sqrt(state.var))
    return high, low, root.astype(dtype)


def _beside(value: Any, ndim: int, axes: tuple[int, ...]) -> jax.Array:
    """Values per feature, beside x."""
    return jnp.expand_dims(jnp.asarray(value), tuple(k for k in range(ndim) if k not in axes))
