"""`update_statistics`: what a step does to the statistics of a model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.backward.sharding import varying_alike
from jaxnorm.branches import either
from jaxnorm.optim.layers import is_statistics, shown, stacked, statistics_in
from jaxnorm.statistics import merging
from jaxnorm.statistics.batch import AxisName
from jaxnorm.statistics.tracked import Statistics


class Certain(int):
    """The interval of statistics that were taken in any case: merging them needs no branch.

    Equal to the number, so that such a tree has the type of that of the state, and adds up with it.
    Where that loses the mark, or a cache of `jax.jit` takes one for the other, there is a branch
    that nobody needs, or a merge of nothing: the same numbers.
    """


def is_certain(new: Statistics) -> bool:
    """Whether these are of a batch in any case: seen in the program."""
    return new.interval == 1 or isinstance(new.interval, Certain)


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
        >>> float(stats["statistics"].center[0]), float(stats["statistics"].steps)
        (1.5, 1.0)
    """
    for name, tree in (("old", old), ("new", new)):
        if tree is None:
            raise ValueError(
                f"{name}: got None, expected a tree of statistics; differentiate the loss by the "
                "statistics too (state.value_and_grad, or argnums=(0, 1)) and hand their gradient "
                "over as neuron_stats="
            )
    if axis_name is not None:
        new = lax.psum(new, axis_name)
    olds, news = statistics_in(old), statistics_in(new)
    if olds.keys() != news.keys():
        raise ValueError(
            f"new: got statistics of {_listed(news)}, expected of {_listed(olds)}; differentiate "
            "the loss by the statistics too (jaxnorm.nnx.value_and_grad, argnums=), of the same "
            "model"
        )
    for path, each in olds.items():
        got, expected = checks.fields_of(news[path]), checks.fields_of(each)
        if got != expected:
            raise ValueError(
                f"new: got {got} for {shown(path)}, expected {expected}; differentiate the loss "
                "by the statistics of the same model"
            )
    merged = [_merged(is_certain(news[path]), olds[path], news[path]) for path in olds]
    return jax.tree.unflatten(jax.tree.structure(old, is_leaf=is_statistics), merged)


@functools.partial(jax.jit, static_argnums=0)
def _merged(certain: bool, old: Statistics, new: Statistics) -> Statistics:
    """Those of one layer; in a step without statistics nothing but their age is computed.

    Compiled by itself so that layers of the same shapes are traced and lowered once.
    """
    merge, unchanged = (stacked(f, old) for f in (merging.merge, _unchanged))
    new = new.replace(interval=old.interval)
    if certain:
        return merge(old, new)
    old, new = varying_alike((old, new))
    return either(jnp.any(new.calls > 0), merge, unchanged, old, new)


def skip_statistics(old: Any) -> Any:
    """The statistics after a step in which none were taken, as the program says: one step older.

    By default a branch of the compiled step finds out whether statistics are due. Two steps, each
    compiled for one of the cases, have no branch: cheaper on a GPU, and under `jax.vmap` (over
    seeds), which computes both of its sides. `due_steps` says
    whose turn it is.

    Args:
        old: as `update_statistics` takes it.

    Returns:
        The same tree.

    Raises:
        Nothing of its own.

    Transformations: any.

    Example:
        >>> import functools
        >>> import jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model, x = jaxnorm.linen.Dense(3, gate=None), jnp.eye(5)
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> state = jaxnorm.linen.TrainState.prepare(model, params, optax.sgd(0.1), x)
        >>> @functools.partial(jax.jit, static_argnames="statistics")
        ... def step(state, statistics):
        ...     loss = lambda p: (state.apply_fn({"params": p}, x) ** 2).sum()
        ...     grads = state.grad(loss, statistics=statistics)(state.params)
        ...     return state.apply_gradients(grads=grads)  # calls it where there are none
        >>> for due in jaxnorm.due_steps(40):
        ...     state = step(state, statistics=due)
        >>> [int(each.age) for each in jax.tree.leaves(
        ...     state.neuron_stats, is_leaf=lambda s: hasattr(s, "age"))]
        [2]
    """
    merged = [stacked(merging.unchanged, each)(each) for each in statistics_in(old).values()]
    return jax.tree.unflatten(jax.tree.structure(old, is_leaf=is_statistics), merged)


def _unchanged(old: Statistics, _: Statistics) -> Statistics:
    return merging.unchanged(old)


def _listed(layers: Any) -> str:
    return ", ".join(map(shown, sorted(layers))) or "no layer"
