"""The Optax side: any optimizer in the neurons' coordinates."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from jaxnorm.coordinates import gradient_into, parameters_into, step_out_of
from jaxnorm.optim.layers import (
    Path,
    fits,
    leaves_of,
    listed,
    pairs,
    restored,
    shown,
    stacked,
    statistics_in,
    transposed,
)
from jaxnorm.statistics import tracked
from jaxnorm.statistics.moments import AxisName, Moments


class InNeuronCoordinatesState(NamedTuple):
    """The state of `in_neuron_coordinates`: that of the inner optimizer, and nothing else."""

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
        inside = _in_coordinates(updates, layers, gradient_into)
        moved = None if params is None else _in_coordinates(params, layers, parameters_into)
        steps, inner_state = inner.update(inside, state.inner_state, moved, **extra_args)
        steps = _in_coordinates(steps, layers, step_out_of)
        return steps, InNeuronCoordinatesState(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def update_statistics(old: Any, new: Any, *, axis_name: AxisName | None = None) -> Any:
    """Merge the statistics so far with those of a batch, layer by layer.

    Args:
        old: from `init_statistics`, or the last step.
        new: the gradient with respect to them. Those of several micro-batches may be added first:
            then a step with their summed gradients is that of the whole batch.
        axis_name: mapped axes over which the batch is spread, where no one has summed over them yet
            (`jax.vmap`; `jax.shard_map` with ``check_vma=False``).

    Returns:
        The same tree. ``decay`` of each layer's rule is the share of the old; from the first step
        on the moments are those of the weighted samples exactly, with no bias to correct.

    Raises:
        ValueError: for trees that do not fit.

    Transformations: any.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Dense(1, gate=None, rule=jaxnorm.Rule(decay=0.5))
        >>> x = jnp.arange(4.0).reshape(4, 1)
        >>> variables = layer.init(jax.random.key(0), x)
        >>> stats = jaxnorm.linen.init_statistics(layer, variables, x)
        >>> loss = lambda stats: layer.apply({**variables, "neuron_stats": stats}, x).sum()
        >>> stats = jaxnorm.update_statistics(stats, jax.grad(loss)(stats))
        >>> float(stats["center"][0]), float(stats["steps"])
        (1.5, 1.0)
    """
    for name, tree in (("old", old), ("new", new)):
        if tree is None:
            raise ValueError(
                f"{name}: got None, expected a tree of statistics; differentiate the loss by the "
                "statistics too (argnums) and hand their gradient over as neuron_stats="
            )
    if axis_name is not None:
        new = lax.psum(new, axis_name)
    olds, news = statistics_in(old), statistics_in(new)
    if olds.keys() != news.keys():
        raise ValueError(
            f"new: got statistics of {listed(news)}, expected of {listed(olds)}; differentiate "
            "the loss by the statistics too (argnums=, PARAMS_AND_STATISTICS), of the same model"
        )
    merged = {path: _merged(path, olds[path], news[path]) for path in olds}
    leaves = [merged[path[:-1]][path[-1]] for path in leaves_of(old)[0]]
    return jax.tree.unflatten(jax.tree.structure(old), leaves)


def _merged(path: Path, old: Any, new: Any) -> Any:
    """`tracked.merge` of one layer; raises where the two are not of the same."""
    shapes = [{name: jnp.shape(value) for name, value in each.items()} for each in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"new: got {shapes[1]} for {shown(path)}, expected {shapes[0]}; differentiate the "
            "loss by the statistics of the same model"
        )
    return stacked(tracked.merge, old["calls"].ndim)(old, new)


#: States of what takes the statistics.
_TAKING = ("InNeuronCoordinatesState", "ScaleByBnpState", "ScaleByQuasiDiagonalState")


def check_wrapped(state: Any) -> None:
    """Raise a ValueError for the state of an optimizer that would ignore the statistics."""
    leaves = jax.tree.leaves(state, is_leaf=lambda s: type(s).__name__ in _TAKING)
    if not any(type(leaf).__name__ in _TAKING for leaf in leaves):
        raise ValueError(
            "tx: got a transformation that takes no statistics, expected "
            "jaxnorm.in_neuron_coordinates(tx), or a chain that contains it"
        )


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
        kernel_axes: see `LinearOperation`.
        bias_axes: see `LinearOperation`.
        stack: by how many leading axes all of this, and the parameters, are stacked.
    """

    moments: Moments
    root: jax.Array
    kernel_axes: tuple[int, ...] | None
    bias_axes: tuple[int, ...] | None
    stack: int

    def applied(self, change: Any, kernel: jax.Array, bias: Any) -> tuple[Any, Any]:
        """`change` of the kernel and the bias (or None), on Flax's axes and in its dtypes."""

        def one(moments, root, kernel, bias):
            sigma = moments.sigma
            flat = transposed(kernel, self.kernel_axes)
            if sigma.ndim:
                *inputs, _ = sigma.shape
                flat = flat.reshape(*inputs, flat.size // max(math.prod(inputs), 1))
            dtype = jnp.promote_types(sigma.dtype, kernel.dtype)
            flat, flat_bias = flat.astype(dtype), None
            if bias is not None:
                flat_bias = transposed(bias, self.bias_axes).astype(dtype).reshape(-1)
            flat, flat_bias = change(flat, flat_bias, moments, root)
            result = restored(flat, self.kernel_axes, kernel)
            return result, None if bias is None else restored(flat_bias, self.bias_axes, bias)

        return stacked(one, self.stack)(self.moments, self.root, kernel, bias)


def _coordinates_of(neuron_stats: Any, updates: Any) -> dict[Path, _Coordinates]:
    """Path of the parameters -> their coordinates."""
    leaves, _ = leaves_of(updates)
    layers = {}
    for path, (name, statistics) in pairs(neuron_stats, updates).items():
        bias = leaves.get((*path, "bias"))
        if bias is not None and "origin" not in statistics:
            raise ValueError(
                f"neuron_stats: got statistics without means for {shown(name)}, expected "
                "those of a layer with a bias; they are of another model"
            )
        layers[path] = _coordinates(name, statistics, leaves[(*path, "kernel")], bias)
    return layers


def _coordinates(path: Path, statistics: Any, kernel: jax.Array, bias: Any) -> _Coordinates:
    """The coordinates; raises where its statistics do not fit the kernel or were never updated."""
    stack = statistics["calls"].ndim
    moments = functools.partial(tracked.moments, centered=bias is not None)
    moments = stacked(moments, stack)(statistics)
    *inputs, outputs = moments.sigma.shape[stack:] or (1,)
    axes = tracked.axes_of("kernel", statistics)
    shape = kernel.shape[stack:]
    shape = [shape[a] for a in axes or range(len(shape))]
    if kernel.shape[:stack] != statistics["calls"].shape or not fits(shape, inputs, outputs):
        raise ValueError(
            f"neuron_stats: got statistics of shape {moments.sigma.shape} for {shown(path)}, "
            f"expected such as fit its kernel, {kernel.shape}; they are of another model"
        )
    usable = stacked(tracked.usable, stack)(statistics)
    if not isinstance(usable, Tracer) and not bool(jnp.all(usable)):
        raise ValueError(
            f"neuron_stats: got statistics of {shown(path)} that were never updated or hold a "
            "single sample, which is its own mean; merge those of a batch with update_statistics "
            "first, and for batches of one use a Rule with decay > 0"
        )
    calls = jnp.maximum(statistics["calls"], 1)
    root = jnp.where(usable, jnp.sqrt(statistics["divisor"] / calls), jnp.nan)
    return _Coordinates(moments, root, axes, tracked.axes_of("bias", statistics), stack)


def _in_coordinates(tree: Any, layers: dict[Path, _Coordinates], change: Any) -> Any:
    """The tree with every layer's kernel and bias changed, all else as it is."""
    leaves, _ = leaves_of(tree)
    new = dict(leaves)
    for path, layer in layers.items():
        kernel, bias = (*path, "kernel"), (*path, "bias")
        if kernel not in leaves:
            raise ValueError(
                f"params: got none at {shown(kernel)}, expected the tree of the gradients"
            )
        changed = layer.applied(change, leaves[kernel], leaves.get(bias))
        new[kernel] = changed[0]
        if changed[1] is not None:
            new[bias] = changed[1]
    return jax.tree.unflatten(jax.tree.structure(tree), list(new.values()))
