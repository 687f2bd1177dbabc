"""Penalties on what a layer puts out: a term of the loss, or a layer that adds its gradient."""

import functools

import jax
import jax.numpy as jnp

from jaxnorm.checks import check_floating
from jaxnorm.normalizers.refusals import check_choice, check_knob
from jaxnorm.precision import at_least_float32

#: How the entries of an output are put together.
REDUCTIONS = ("sum", "mean", "batch_mean")


def l1_penalty(x: jax.Array, weight: float = 1.0, reduction: str = "mean") -> jax.Array:
    """``weight`` times the absolute values of an output, a term for the loss.

        penalty = weight R |x_i|,    gradient = weight R' sign(x_i)        (0 at 0)

    Args:
        x: the output of a layer, of any shape; floating.
        weight: of the penalty, >= 0, default 1; in units of the loss per unit of x.
        reduction: R: "mean" of all entries (default), "sum" of all, or "batch_mean", the sum over
            all axes but the first and the mean over that.

    Returns:
        A number, in at least float32, in which the sum is taken.

    Raises:
        TypeError: for an x that is not floating, a weight that is no number.
        ValueError: for a negative weight, another reduction.

    Transformations: any.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> x = jnp.array([[1.0, -2.0], [0.0, 5.0]])
        >>> float(jaxnorm.penalties.l1_penalty(x, 0.5)), float(jaxnorm.penalties.l2_penalty(x, 0.5))
        (1.0, 3.75)
        >>> jax.grad(jaxnorm.penalties.l1_penalty)(x, 4.0).tolist()
        [[1.0, -1.0], [0.0, 1.0]]

    References:
        Activity regularization, as in `keras.layers.ActivityRegularization`, which has the sums of
        |x| and x^2, without a half.
    """
    _check(x, reduction, weight=weight)
    wide = x.astype(at_least_float32(x.dtype))
    # Not jnp.abs, which JAX gives a derivative of 1 at 0, where many outputs are.
    size = wide * jax.lax.stop_gradient(jnp.sign(wide))
    return weight * _share(x, reduction) * size.sum()


def l2_penalty(x: jax.Array, weight: float = 1.0, reduction: str = "mean") -> jax.Array:
    """``weight`` times the squares of an output, a term for the loss; as `l1_penalty`.

        penalty = weight R x_i^2,    gradient = 2 weight R' x_i

    Without a factor of one half.

    Args:
        x: as in `l1_penalty`.
        weight: as in `l1_penalty`, in units of the loss per squared unit of x.
        reduction: as in `l1_penalty`.

    Returns:
        A number, in at least float32.

    Raises:
        TypeError: as `l1_penalty`.
        ValueError: as `l1_penalty`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> jax.grad(jaxnorm.penalties.l2_penalty)(jnp.array([3.0, -1.0])).tolist()
        [3.0, -1.0]
    """
    _check(x, reduction, weight=weight)
    wide = x.astype(at_least_float32(x.dtype))
    return weight * _share(x, reduction) * jnp.square(wide).sum()


def penalize(x: jax.Array, l1: float = 0.0, l2: float = 0.0, reduction: str = "mean") -> jax.Array:
    """The identity, whose backward pass adds the gradient of the penalties.

        forward:  y = x
        backward: g_x = g_y + l1 R' sign(x) + 2 l2 R' x

    So ``loss(penalize(x, l1, l2))`` learns as ``loss(x) + l1_penalty(x, l1) + l2_penalty(x, l2)``
    does, without a way for the penalty out of the model; the loss that is printed is without it.
    The gradient is added however the loss is scaled: with loss scaling scale l1 and l2, too, and
    with a mean over devices or micro-batches mind what R is the mean over.

    As a layer: in `flax.linen.Sequential` or `nnx.Sequential` as
    ``functools.partial(jaxnorm.penalties.penalize, l1=1e-4)``.

    Args:
        x: the output of a layer, of any shape; floating.
        l1: weight of the absolute values, >= 0, default 0.
        l2: weight of the squares, >= 0, default 0.
        reduction: as in `l1_penalty`.

    Returns:
        x.

    Raises:
        TypeError: for an x that is not floating, a weight that is no number.
        ValueError: for a negative weight, another reduction.

    Transformations: ``jit``, ``grad``, ``scan``, ``remat``; under ``vmap`` R is over one example.
    No forward mode. Dtypes: the gradient is computed in at least float32, and has the dtype of x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> x = jnp.array([3.0, -1.0])
        >>> jax.grad(lambda x: jaxnorm.penalties.penalize(x, l1=2.0, l2=1.0).sum())(x).tolist()
        [5.0, -1.0]
    """
    _check(x, reduction, l1=l1, l2=l2)
    return _identity(x, l1, l2, reduction)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _identity(x: jax.Array, l1: float, l2: float, reduction: str) -> jax.Array:
    del l1, l2, reduction
    return x


def _forward(x: jax.Array, l1: float, l2: float, reduction: str) -> tuple[jax.Array, jax.Array]:
    del l1, l2, reduction
    return x, x


def _backward(l1: float, l2: float, reduction: str, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(at_least_float32(x.dtype))
    added = _share(x, reduction) * (l1 * jnp.sign(wide) + 2 * l2 * wide)
    return ((g.astype(wide.dtype) + added).astype(x.dtype),)


_identity.defvjp(_forward, _backward)


def _check(x: jax.Array, reduction: str, **weights: float) -> None:
    check_floating(x=x)
    check_choice("reduction", reduction, REDUCTIONS)
    for name, weight in weights.items():
        check_knob(name, weight, "a number >= 0", lambda value: value >= 0)


def _share(x: jax.Array, reduction: str) -> float:
    """What the reduction divides a sum by, inverted."""
    count = {"sum": 1, "mean": x.size, "batch_mean": x.shape[0] if x.ndim else 1}[reduction]
    return 1 / max(count, 1)
