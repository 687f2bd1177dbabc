"""The Optax side: any optimizer in the neurons' coordinates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm.coordinates import Moments, gradient_into, parameters_into, step_out_of
from jaxnorm.optim.layers import (
    Layer,
    Pair,
    changed,
    check_there,
    check_usable,
    layers_of,
    leaves_of,
    stacked,
)
from jaxnorm.statistics import tracked
from jaxnorm.statistics.tracked import Statistics


class InNeuronCoordinatesState(NamedTuple):
    """The state of `in_neuron_coordinates`: that of the inner optimizer, and nothing else."""

    takes_statistics = True

    inner_state: optax.OptState


def in_neuron_coordinates(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Run any optimizer in coordinates in which each neuron's inputs are standardized.

        g~_W = (g_W - mean g_b) / sigma,  g~_b = g_b          the gradient, into the coordinates
        dw~, db~ = inner(g~, w~ = sigma w, b~ = b + mean.w)   the inner optimizer's step
        dW = dw~ / sigma,  db = db~ - sum_i mean dW           the step, out of them

    mean and sigma are those of the layer's statistics (see `jaxnorm.Rule`; the layers' rules are in
    the statistics). With `step_scale` w~ and b~ are larger by the root of the divisor.

    The inner optimizer sees parameters in the coordinates too, so its decoupled weight decay
    (adamw, lion, ...) comes out as a decay of the original parameters, exactly. L2 regularization
    that is added to the gradient before (``chain(add_decayed_weights(...),
    in_neuron_coordinates(...))``) is preconditioned like the gradient. Clipping before it clips the
    plain gradient, inside it the one in the coordinates.

    Args:
        inner: any Optax transformation that needs gradients only. Line searches (`optax.lbfgs`),
            SAM and Sophia evaluate the loss at parameters of their own; schedule-free optimizers,
            Prodigy, DoWG, COCOB and Mechanic keep parameters, whose coordinates would change from
            step to step.

    Returns:
        A transformation whose update is called with the statistics:
        ``update(grads, state, params, neuron_stats=...)``, as `update_statistics` returns them
        (`jaxnorm.linen.TrainState` and `jaxnorm.nnx.Optimizer` do). A layer's statistics belong to
        the ``kernel`` and ``bias`` at its path; all other parameters go to the inner optimizer
        unchanged. A layer whose kernel is not among the gradients (`optax.masked`,
        `optax.partition`) is left out; one whose bias is not has second moments about zero, since
        nothing can absorb a mean. Other extra arguments go to the inner optimizer.

    Raises:
        ValueError: for such an optimizer; where the update is called, for missing or empty
            statistics, statistics of another model or of another shape, and (not under `jax.jit`)
            for such as were never updated. Under `jax.jit` those, and a single sample without
            `decay`, which is its own mean, make the update NaN: never a silently plain one.

    Layers that `flax.linen.scan` or `vmap` stacks must have parameters and statistics stacked along
    the leading axes.

    Transformations: jit, vmap, scan, cond; sharded. Dtypes: updates have those of the gradients,
    the change of coordinates is made in at least float32.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> x, y = jnp.arange(8.0).reshape(8, 1) + 100, jnp.arange(8.0).reshape(8, 1)
        >>> layer = jaxnorm.linen.Dense(1, gate=None)
        >>> variables = layer.init(jax.random.key(0), x)
        >>> params = variables["params"]
        >>> stats = jaxnorm.linen.init_statistics(layer, variables, x)
        >>> tx = jaxnorm.in_neuron_coordinates(optax.adam(0.3))
        >>> def loss(params, stats):
        ...     z = layer.apply({"params": params, "neuron_stats": stats}, x)
        ...     return jnp.mean((z - y) ** 2)
        >>> @jax.jit
        ... def step(params, stats, state):
        ...     grads, batch = jax.grad(loss, argnums=(0, 1))(params, stats)
        ...     stats = jaxnorm.update_statistics(stats, batch)
        ...     updates, state = tx.update(grads, state, params, neuron_stats=stats)
        ...     return optax.apply_updates(params, updates), stats, state
        >>> state = tx.init(params)
        >>> for _ in range(300):
        ...     params, stats, state = step(params, stats, state)
        >>> bool(loss(params, stats) < 0.01)  # plain Adam: 4.7
        True

    References:
        Ye, arXiv 2410.00232 (an optimizer and its regularization in other coordinates); Lange,
        Helfrich, Ye, JMLR 23(72), 2022 (the coordinates, uniform weights).
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        state = inner.init(params)
        _refuse(state)
        return InNeuronCoordinatesState(state)

    def update(updates, state, params=None, *, neuron_stats=None, **extra_args):
        layers = _coordinates_of(neuron_stats, updates)
        (gradient,) = changed((updates,), layers, _by(gradient_into))
        if params is not None:
            check_there("params", params, [layer for layer, _ in layers])
            (params,) = changed((params,), layers, _by(parameters_into))
        steps, inner_state = inner.update(gradient, state.inner_state, params, **extra_args)
        (steps,) = changed((steps,), layers, _by(step_out_of))
        return steps, InNeuronCoordinatesState(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


#: States of optimizers that keep parameters, whose coordinates change from step to step, or that
#: evaluate the loss at parameters of their own, which would not be in the coordinates.
_REFUSED = (
    "ScaleByLBFGSState",
    "ScaleByZoomLinesearchState",
    "ScaleByBacktrackingLinesearchState",
    "SAMState",
    "SophiaState",
    "ScheduleFreeState",
    "ProdigyState",
    "DoWGState",
    "COCOBState",
    "MechanicState",
)


def _refuse(state: Any) -> None:
    """Raise a ValueError for an inner optimizer that needs more than gradients."""
    leaves = jax.tree.leaves(state, is_leaf=lambda s: type(s).__name__ in _REFUSED)
    for name in (type(leaf).__name__ for leaf in leaves):
        if name in _REFUSED:
            raise ValueError(
                f"inner: got one with {name}, expected one that needs gradients only; it keeps "
                "parameters, or evaluates the loss at its own, and those are not in the "
                "coordinates; use it around in_neuron_coordinates, or another one"
            )


class _Coordinates(NamedTuple):
    """What changes the coordinates of one layer's parameters.

    Attributes:
        moments: of each neuron's inputs, [..., I, O] or broadcasting against it.
        root: of what a step is divided by, ().
    """

    moments: Moments
    root: jax.Array


def _by(change: Any) -> Any:
    """A change of coordinates as `changed` wants it."""
    return lambda known, pair: (Pair(*change(*pair, *known)),)


def _coordinates_of(neuron_stats: Any, updates: Any) -> list[tuple[Layer, _Coordinates]]:
    """The layers, each with its coordinates."""
    leaves, _ = leaves_of(updates)
    return [
        (layer, _coordinates(layer, centered=(*layer.path, "bias") in leaves))
        for layer in layers_of(neuron_stats, updates)
    ]


def _coordinates(layer: Layer, *, centered: bool) -> _Coordinates:
    """The coordinates; raises where the statistics are of another kind or were never updated."""
    if centered and layer.statistics.origin is None:
        raise ValueError(
            f"neuron_stats: got statistics without means for {layer.name}, expected "
            "those of a layer with a bias; they are of another model"
        )
    check_usable(
        layer,
        tracked.usable(layer.statistics),
        "were never updated or hold a single sample, which is its own mean; merge those of a batch "
        "with update_statistics first, and for batches of one use a Rule with decay > 0",
    )

    def one(statistics: Statistics) -> _Coordinates:
        root = jnp.sqrt(statistics.per_call().divisor)
        root = jnp.where(tracked.usable(statistics), root, jnp.nan)
        return _Coordinates(tracked.moments(statistics, centered=centered), root)

    return stacked(one, layer.statistics)(layer.statistics)
