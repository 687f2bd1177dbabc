"""Products with a loss's Hessian and Gauss-Newton matrix, in the coordinates of neurons too."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.coordinates import pull_back
from jaxnorm.optim.layers import Pair, changed, layers_of
from jaxnorm.statistics import merging
from jaxnorm.statistics.tracked import Statistics

Product = Callable[[Any], Any]
"""A symmetric linear map of trees like the parameters."""


def hessian_product(loss: Callable[[Any], jax.Array], params: Any) -> Product:
    """Products with the Hessian of a loss.

        v -> H v,  H = d^2 L / d theta^2

    Forward mode over reverse mode: about twice the price of a gradient, and none of the matrix.

    Args:
        loss: parameters -> a scalar; of the network without the rule (``gradient="plain"``, or
            Flax's own layers): what is asked for is the curvature of the loss, and a modified
            gradient is no gradient of anything.
        params: a tree of floating-point arrays, where.

    Returns:
        A function of a tree like `params`; for `jax.jit`, `lanczos`, `spectral_density`.

    Raises:
        TypeError: (by JAX) for a loss that is no scalar, or whose backward pass is given by hand
            (`jax.custom_vjp`) and so has no forward mode.

    Transformations: jit, vmap over v.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.analysis import hessian_product
        >>> product = hessian_product(lambda p: p["w"] ** 2 * p["b"], {"w": 3.0, "b": 2.0})
        >>> print({k: float(v) for k, v in product({"w": 1.0, "b": 0.0}).items()})
        {'b': 6.0, 'w': 4.0}

    References:
        Pearlmutter, Neural Computation 6(1), 1994.
    """
    return lambda v: jax.jvp(jax.grad(loss), (params,), (v,))[1]


def gauss_newton_product(
    model: Callable[[Any], Any], loss: Callable[[Any], jax.Array], params: Any
) -> Product:
    """Products with the generalized Gauss-Newton matrix of a loss.

        v -> J^T (d^2 l / dy^2) J v,  y = model(params),  J = dy / d theta

    What is left of the Hessian without the curvature of the network itself: positive semidefinite
    where the loss is convex in the outputs.

    Args:
        model: parameters -> outputs, any tree.
        loss: outputs -> a scalar.
        params: as in `hessian_product`.

    Returns:
        As `hessian_product`.

    Raises:
        TypeError: as `hessian_product`.

    Transformations: jit, vmap over v.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.analysis import gauss_newton_product
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> product = gauss_newton_product(
        ...     lambda w: x @ w, lambda y: (y**2).sum() / 2, jnp.zeros(2))
        >>> print(product(jnp.array([1.0, 0.0])))  # a column of x^T x
        [10. 14.]

    References:
        Schraudolph, Neural Computation 14(7), 2002, equation (7).
    """

    def product(v: Any) -> Any:
        y, moved = jax.jvp(model, (params,), (v,))
        curved = jax.jvp(jax.grad(loss), (y,), (moved,))[1]
        return jax.vjp(model, params)[1](curved)[0]

    return product


def in_coordinates(product: Product, neuron_stats: Any, params: Any) -> Product:
    """The same curvature in the coordinates of neurons: a product with P^T H P.

    With w = w~ / sigma and b = b~ - mean . w, theta = P theta~, and a loss with the Hessian H has
    P^T H P in the new coordinates. Its spectrum is what an optimizer inside of
    `in_neuron_coordinates` meets, and that of P P^T H, what the preconditioned gradient meets.

    Args:
        product: of `hessian_product` or `gauss_newton_product`.
        neuron_stats: statistics of layers that were merged at least once (`update_statistics`), as
            `in_neuron_coordinates` takes them; layers without any stay as they are.
        params: a tree of arrays; their shapes matter.

    Returns:
        A product of trees like `params`.

    Raises:
        ValueError: for statistics that fit no parameter.

    Transformations: jit, vmap over v.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> from jaxnorm.analysis import in_coordinates
        >>> layer = jaxnorm.linen.Dense(2, gate=None)
        >>> x = jnp.array([[1.0, 5.0], [3.0, 5.1], [2.0, 4.9]])
        >>> variables = layer.init(jax.random.key(0), x)
        >>> params, stats = variables["params"], jaxnorm.linen.init_statistics(layer, variables, x)
        >>> def loss(params, stats):
        ...     z = layer.apply({"params": params, "neuron_stats": stats}, x)
        ...     return (z**2).sum()
        >>> stats = jaxnorm.update_statistics(stats, jax.grad(loss, 1)(params, stats))
        >>> identity = in_coordinates(lambda v: v, stats, params)  # P^T P
        >>> identity(params)["bias"].shape
        (2,)
    """
    zeros = jax.tree.map(jnp.zeros_like, params)
    layers = [(layer, layer.statistics) for layer in layers_of(neuron_stats, zeros)]

    def back(step: Any) -> Any:
        return changed((step,), layers, _pulled_back)[0]

    def transformed(v: Any) -> Any:
        out, transposed = jax.vjp(back, v)
        return transposed(product(out))[0]

    return transformed


def _pulled_back(statistics: Statistics, pair: Pair) -> tuple[Pair]:
    """A step in the coordinates as one of the parameters."""
    return (Pair(*pull_back(*pair, merging.coordinates(statistics, None))),)
