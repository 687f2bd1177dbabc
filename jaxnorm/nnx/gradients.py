"""nnx's `grad` and `value_and_grad`, with the statistics of the batch beside the gradient."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from jaxnorm.nnx.neuron_stats import NeuronStats
from jaxnorm.statistics.beside_gradients import made_small


def value_and_grad(
    f: Callable[..., Any] | None = None,
    *,
    argnums: int | nnx.DiffState | Sequence[int | nnx.DiffState] = 0,
    statistics: bool | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """`flax.nnx.value_and_grad`, which takes along the statistics.

    Norms and clipping of the gradient see the parameters alone: the statistics beside them are
    scaled down to almost nothing, and a factor is nothing to them.

    Args:
        f: a loss; without it a decorator is returned, as by Flax.
        argnums: as Flax's; to whatever is differentiated by `NeuronStats` are added.
        statistics: False: not in this step, as `Optimizer.update` must be told too (see
            `jaxnorm.skip_statistics`). None (default): if they are due.
        **kwargs: the other arguments of Flax's: ``has_aux``, ...

    Returns:
        As Flax's; the gradient is for `jaxnorm.nnx.Optimizer`.

    Raises:
        ValueError: for ``statistics=True``.

    Transformations: those of Flax's.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> x, y = jnp.eye(5), jnp.ones((5, 3))
        >>> model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
        >>> model, optimizer = jaxnorm.nnx.prepare(model, optax.adam(0.1), x)
        >>> @nnx.jit
        ... def step(model, optimizer):
        ...     def loss_fn(model):
        ...         return jnp.mean((model(x) - y) ** 2)
        ...     loss, grads = jaxnorm.nnx.value_and_grad(loss_fn)(model)
        ...     optimizer.update(model, grads)
        ...     return loss
        >>> bool(step(model, optimizer) > step(model, optimizer))
        True
    """
    return _with_statistics(value_and_grad, f, argnums, statistics, kwargs)


def grad(
    f: Callable[..., Any] | None = None,
    *,
    argnums: int | nnx.DiffState | Sequence[int | nnx.DiffState] = 0,
    statistics: bool | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """`flax.nnx.grad`, which takes along the statistics. As `value_and_grad`, without the value.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Linear(5, 3, gate=None, rngs=nnx.Rngs(0))
        >>> jaxnorm.nnx.init_statistics(layer, jnp.eye(5))
        >>> grads = jaxnorm.nnx.grad(lambda layer: layer(jnp.eye(5)).sum())(layer)
        >>> sorted(grads)
        ['bias', 'kernel', 'neuron_stats']
    """
    return _with_statistics(grad, f, argnums, statistics, kwargs)


def _with_statistics(
    ours: Any, f: Any, argnums: Any, statistics: bool | None, kwargs: dict[str, Any]
) -> Any:
    if f is None:
        return functools.partial(ours, argnums=argnums, statistics=statistics, **kwargs)
    if statistics:
        raise ValueError(
            "statistics: got True, expected None (taken if they are due) or False; a step that "
            "always takes them is that of a Rule with statistics_every=1"
        )
    theirs: Any = {grad: nnx.grad, value_and_grad: nnx.value_and_grad}[ours]
    if statistics is False:
        return theirs(f, argnums=argnums, **kwargs)
    several = isinstance(argnums, Sequence)
    by = tuple(map(_by, argnums)) if several else _by(argnums)
    differentiated = theirs(f, argnums=by, **kwargs)

    @functools.wraps(f)
    def small(*args, **named):
        return made_small(differentiated(*args, **named))

    return small


def _by(argnum: int | nnx.DiffState) -> nnx.DiffState:
    """What is differentiated by, and the statistics."""
    if isinstance(argnum, int):
        argnum = nnx.DiffState(argnum, nnx.Param)
    return dataclasses.replace(argnum, filter=nnx.Any(argnum.filter, NeuronStats))
