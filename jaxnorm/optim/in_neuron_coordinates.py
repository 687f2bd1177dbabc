"""The Optax side: any optimizer in the neurons' coordinates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm.backward.sharding import varying_alike
from jaxnorm.branches import seldom
from jaxnorm.coordinates import Coordinates, gradient_into, parameters_into, pull_back
from jaxnorm.optim.inner import Inner, check_inner, inspect
from jaxnorm.optim.layers import (
    Layer,
    Pair,
    changed,
    check_there,
    check_usable,
    layers_of,
    leaves_of,
    read,
    stacked,
    takes_statistics,
)
from jaxnorm.statistics import merging
from jaxnorm.statistics.tracked import Statistics


class InNeuronCoordinatesState(NamedTuple):
    """The state of `in_neuron_coordinates`: that of the inner optimizer, and nothing else."""

    takes_statistics = True

    inner_state: optax.OptState


def in_neuron_coordinates(
    inner: optax.GradientTransformation, *, frozen: Any | Callable[[Any], Any] = None
) -> optax.GradientTransformationExtraArgs:
    """Run any optimizer in coordinates in which each neuron's inputs are standardized.

        g~_W = (g_W - mean g_b) / sigma,  g~_b = g_b          the gradient, into the coordinates
        dw~, db~ = inner(g~, w~ = sigma w, b~ = b + mean.w)   the inner optimizer's step
        dW = dw~ / sigma,  db = db~ - sum_i mean dW           the step, out of them

    mean and sigma are those of the layer's statistics (see `jaxnorm.Rule`; the layers' rules are in
    the statistics). sigma is relative to its root mean square over a neuron's inputs, so that
    steps are as large as the plain optimizer's and the rate stays that one's; with
    ``Rule(step_size="standardized")`` it is absolute.

    Decoupled weight decay inside (adamw, lion, ...; with a mask) is one of the original parameters,
    exactly: whatever part of the step is an affine function of the parameters is not made up for by
    the bias. An inner optimizer whose step depends on them otherwise (the trust ratio of lamb) sees
    those in the coordinates. L2 regularization that is added to the gradient before
    (``chain(add_decayed_weights(...), in_neuron_coordinates(...))``) is preconditioned like the
    gradient.

    Clipping before it clips the plain gradient, inside it the one in the coordinates. Before it the
    gradients of a layer's kernel and bias may only be scaled alike (`optax.clip_by_global_norm`),
    not clipped entry by entry (`optax.clip`) or one parameter at a time: then the mean is not what
    ``g_W - mean g_b`` takes away, and training diverges.

    What does not learn does not move, and nothing makes up for it: an entry whose plain gradient is
    exactly 0 (frozen, pruned, not reached) has none in the coordinates; a neuron whose bias's is,
    or whose bias the inner optimizer never moves (`optax.set_to_zero`, a rate that is 0 in its
    program, not one that is only set so, as `inject_hyperparams` can), has second
    moments about zero, as without a bias; an input that does not vary has no gradient. A layer
    without usable statistics (of no sample so far, a single one without `decay`, ...) makes no step
    but for weight decay; `skipped_steps` counts them.

    Args:
        inner: any Optax transformation that needs gradients only. Line searches (`optax.lbfgs`),
            SAM and Sophia evaluate the loss at parameters of their own; schedule-free optimizers,
            Prodigy, DoG, DoWG, COCOB and Mechanic keep parameters, whose coordinates would change
            from step to step.
        frozen: which parameters something *behind* this transformation does not let move (what is
            in front of it or inside is seen): a tree of bools or boolean arrays, or a prefix of
            one, or a function of the parameters that returns it. None (default): none.

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
            for such as were never updated.

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
    inspected: dict[Any, Inner] = {}

    def init(params):
        check_inner(inner, params)
        return InNeuronCoordinatesState(inner.init(params))

    def update(updates, state, params=None, *, neuron_stats=None, **extra_args):
        off = frozen(updates if params is None else params) if callable(frozen) else frozen
        updates = updates if off is None else _without(updates, off)
        layers = layers_of(neuron_stats, updates)
        if params is not None:
            check_there("params", params, layers)
        key = _types((updates, state, params))
        if key not in inspected:
            inspected[key] = inspect(inner, updates, state.inner_state, params, extra_args)
        does = inspected[key]
        still = jax.tree.unflatten(jax.tree.structure(updates), does.still)
        plain = _without(updates, still)
        known = _with_unmoved([(layer, _known(layer, plain)) for layer in layers], plain)
        some = _any(each.unmoved for _, each in known)
        known, updates = _about_zero(gradient_into, some, known, updates, plain)

        gradient = _through(gradient_into, updates, known)

        def through(change: Any, tree: Any) -> Any:
            there, tree = _about_zero(change, some, known, tree, plain)
            return _through(change, tree, there)

        if params is None or does.params == "unused":
            steps, inner_state = inner.update(gradient, state.inner_state, params, **extra_args)
            return through(pull_back, steps), InNeuronCoordinatesState(inner_state)
        inside = through(parameters_into, params)
        if does.params == "other":
            steps, inner_state = inner.update(gradient, state.inner_state, inside, **extra_args)
            return through(pull_back, steps), InNeuronCoordinatesState(inner_state)

        def run(params: Any) -> Any:
            return inner.update(gradient, state.inner_state, params, **extra_args)

        # What the parameters add to the step is their decay, which nothing has to make up for.
        steps, decay, inner_state = jax.linearize(run, inside, has_aux=True)
        learned = through(pull_back, jax.tree.map(jnp.subtract, steps, decay(inside)))
        params = jax.tree.map(lambda *both: varying_alike(both)[0], params, inside)
        steps = jax.tree.map(jnp.add, learned, decay(params))
        return steps, InNeuronCoordinatesState(inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def wrapped(tx: Any, params: Any, frozen: Any = None) -> Any:
    """`in_neuron_coordinates` of a transformation, unless that is in it already."""
    if not takes_statistics(jax.eval_shape(tx.init, params)):
        return in_neuron_coordinates(tx, frozen=frozen)
    if frozen is not None:
        raise ValueError(
            "frozen: got it beside a transformation that contains in_neuron_coordinates, expected "
            "None; give it to that one: in_neuron_coordinates(inner, frozen=...)"
        )
    return tx


def _types(tree: Any) -> Any:
    """What a traced program depends on."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _without(updates: Any, off: Any) -> Any:
    """The gradient, zero where a prefix of its tree says that nothing learns."""

    def each(off: Any, branch: Any) -> Any:
        return jax.tree.map(lambda g: g if off is False else jnp.where(off, 0, g), branch)

    return jax.tree.map(each, off, updates)


class _Known(NamedTuple):
    """What changes the coordinates of one layer's parameters.

    Attributes:
        statistics: of the layer, merged.
        usable: whether there are any; where not, the layer has no gradient and plain coordinates.
        at: the coordinates; about zero where there is no bias.
        unmoved: which neurons have a bias without a gradient, [1, ..., O]; None: there is no bias.
        fixed: which of these have one that may not move, and so second moments about zero.
    """

    statistics: Statistics
    usable: jax.Array
    at: Coordinates
    unmoved: jax.Array | None = None
    fixed: jax.Array | None = None


Layers = list[tuple[Layer, _Known]]


def _known(layer: Layer, updates: Any) -> _Known:
    """The coordinates; raises where the statistics are of another kind or were never updated."""
    has_bias = layer.bias in leaves_of(updates)[0]
    if has_bias and layer.statistics.origin is None:
        raise ValueError(
            f"neuron_stats: got statistics without means for {layer.name}, expected "
            "those of a layer with a bias; they are of another model"
        )
    # Under `jax.jit` nothing can be raised: those of a batch are of no use then.
    check_usable(
        layer,
        layer.statistics.age > 0,
        "were never updated; merge those of a batch with update_statistics first",
    )

    def one(statistics: Statistics) -> _Known:
        at = merging.coordinates(statistics, None if has_bias else True)
        return _Known(statistics, (statistics.calls > 0) & (statistics.age > 0), at)

    return stacked(one, layer.statistics)(layer.statistics)


def _with_unmoved(known: Layers, plain: Any) -> Layers:
    """The layers, and which of their biases have no gradient."""

    def unmoved(_: _Known, gradient: Pair) -> Any:
        return None if gradient.bias is None else gradient.bias == 0

    found = read((plain,), known, unmoved)
    return [
        (layer, each._replace(unmoved=f, fixed=f))
        for (layer, each), f in zip(known, found, strict=True)
    ]


def _any(flags: Any) -> jax.Array | None:
    """Whether one of them is set anywhere; None: there are no flags."""
    every = [jnp.any(flag) for flag in jax.tree.leaves(list(flags))]
    return jnp.any(jnp.stack(every)) if every else None


def _about_zero(
    change: Any, some: jax.Array | None, known: Layers, tree: Any, plain: Any
) -> tuple[Layers, Any]:
    """The layers with the neurons that are fixed, and the tree with these about zero.

    Seldom there are any: of biases that are frozen, or of neurons that are dead. So nobody looks
    where all biases have gradients, and what is not changed stays in its place.

    Args:
        change: as in `_through`.
        some: whether there is a bias without a gradient.
        known: the layers; on the way into the coordinates nobody knows yet what is fixed.
        tree: what goes through the change.
        plain: the gradients, which say what learns.
    """

    def fixed(known: _Known, pair: Pair, gradient: Pair) -> Any:
        if known.unmoved is None:
            return None
        if change is pull_back:
            # Of a neuron without a gradient now memory may move the kernel, but not such a bias.
            return known.fixed | (known.unmoved & (pair.bias == 0))
        inputs = tuple(range(gradient.kernel.ndim - 1))
        return known.unmoved & jnp.any(gradient.kernel != 0, axis=inputs, keepdims=True)

    def with_fixed(fixed: list[Any]) -> Layers:
        return [(layer, k._replace(fixed=f)) for (layer, k), f in zip(known, fixed, strict=True)]

    def look(tree: Any, plain: Any, _: Any) -> Any:
        found = read((tree, plain), known, fixed)
        there = with_fixed(found)
        rescale = functools.partial(_rescaled, change)
        change_all = lambda tree: changed((tree,), there, rescale)[0]  # noqa: E731
        return found, seldom(_any(found), change_all, lambda tree: tree, tree)

    if some is None:
        return known, tree
    found = [each.fixed for _, each in known]
    # In `jax.shard_map` both branches have to vary over the same axes.
    *given, _ = varying_alike((tree, plain, found, [each.statistics for _, each in known]))
    found, tree = seldom(some, look, lambda tree, _, found: (found, tree), *given)
    return with_fixed(found), tree


@functools.partial(jax.jit, static_argnums=0)
def _rescaled(change: Any, known: _Known, pair: Pair) -> tuple[Pair]:
    """One layer's pair, what is fixed about zero; traced once as `_moved`."""
    if known.fixed is None:
        return (pair,)
    # (Of settled statistics the scales are read where they are, and not handed over.)
    ratio = merging.scale_about_zero(known.statistics, known.at, relative=True)
    ratio = jnp.where(known.fixed & known.usable, ratio, 1)
    kernel = pair.kernel / ratio if change is parameters_into else pair.kernel * ratio
    return (pair._replace(kernel=kernel),)


def _through(change: Any, tree: Any, known: Layers) -> Any:
    """The tree with the layers' pairs through a change of coordinates.

    Args:
        change: `gradient_into`, `parameters_into` or `pull_back`.
        tree: like the gradients.
        known: the layers.
    """
    return changed((tree,), known, functools.partial(_moved, change))[0]


@functools.partial(jax.jit, static_argnums=0)
def _moved(change: Any, known: _Known, pair: Pair) -> tuple[Pair]:
    """One layer's pair; layers of the same shapes are traced and lowered once."""
    at, usable, still = known.at, known.usable, known.fixed
    fixed = jnp.zeros((), bool) if still is None else still
    if change is gradient_into:  # one choice for each entry, and what is a neuron's is made there
        at = at._replace(varies=(at.varies | fixed) & usable)
        moving = None if pair.bias is None else jnp.where(fixed, 0, pair.bias)
        kernel, _ = gradient_into(pair.kernel, moving, at)
        return (Pair(kernel, None if pair.bias is None else jnp.where(usable, pair.bias, 0)),)
    at = at._replace(scale=jnp.where(usable, at.scale, 1))
    kernel, bias = change(*pair, at)
    # A bias that may not move, or of a layer without coordinates, makes up for nothing.
    bias = None if bias is None else jnp.where(fixed | ~usable, pair.bias, bias)
    return (Pair(kernel, bias),)
