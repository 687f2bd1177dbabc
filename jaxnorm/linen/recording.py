"""How the statistics reach the calls of a model in a loss, and come back beside its gradient."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxnorm.compat import get_opaque_trace_state
from jaxnorm.linen.neuron_stats import COLLECTION
from jaxnorm.optim.layers import is_statistics
from jaxnorm.optim.update_statistics import Certain, is_certain
from jaxnorm.statistics.beside_gradients import as_asked, asked_for

#: In the key of every `jax.jit` cache: what was traced without statistics must be traced again.
_recording = jax.make_user_context(default_value=None)

_BY_HAND = (
    'differentiate loss(params, neuron_stats) by argnums=(0, 1), with {"params": params, '
    '"neuron_stats": neuron_stats} as the variables'
)


class Gradients(NamedTuple):
    """The gradient of a loss, with the statistics of the batch beside it.

    A pytree: means over devices, sums over micro-batches and a loss scale go through all of it.
    Norms and clipping see ``params`` alone, because the statistics are scaled down to almost
    nothing, and a factor is nothing to them. What is *added* to a gradient (noise) goes to
    ``params``.

    Attributes:
        params: the gradient with respect to the parameters.
        neuron_stats: the statistics of the batch, times 2^-50.

    Raises:
        Nothing of its own.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model, x = jaxnorm.linen.Dense(3, gate=None), jnp.eye(5)
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> state = jaxnorm.linen.TrainState.prepare(model, params, optax.sgd(0.1), x)
        >>> grads = state.grad(lambda p: state.apply_fn({"params": p}, x).sum())(state.params)
        >>> grads.params["bias"]
        Array([5., 5., 5.], dtype=float32)
        >>> bool(optax.tree.norm(grads) == optax.tree.norm(grads.params))
        True
    """

    params: Any
    neuron_stats: Any


class _Loss(NamedTuple):
    """A loss that is being evaluated.

    Attributes:
        trace: of the differentiation: what depends on the parameters is in it.
        outer: the traces around it.
        statistics: of the model, on the way to the calls.
        reached: of how many calls.
        params: the leaves of the parameters.
        others: those of what else is differentiated by, which are in the same trace.
    """

    trace: Any
    outer: set[int]
    statistics: Any
    state: Any
    reached: list[int]
    params: list[Any]
    others: list[Any]


class _Local(threading.local):
    """The losses that are being evaluated in each thread, by the token of their apply function."""

    def __init__(self) -> None:
        self.losses: dict[object, _Loss] = {}


_LOCAL = _Local()


def recording(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The apply function, to whose calls in a loss `differentiated` brings the statistics."""
    token = object()

    @functools.wraps(apply)
    def recording_apply(*args, **kwargs):
        loss = _LOCAL.losses.get(token)
        if loss is not None:
            variables, *rest = (kwargs.pop("variables"), *args) if "variables" in kwargs else args
            if COLLECTION not in variables and _is_of(loss, variables):
                loss.reached.append(1)
                variables = {**variables, COLLECTION: loss.statistics}
            args = (variables, *rest)
        return apply(*args, **kwargs)

    recording_apply.token = token  # type: ignore[attr-defined]
    return recording_apply


def differentiated(
    using: Callable[..., Any],
    loss: Callable[..., Any],
    argnums: int | Sequence[int],
    apply: Any,
    statistics: Any,
    *,
    taken: bool | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """``using(loss, argnums=argnums, **kwargs)``, with `Gradients` for the gradient.

    Args:
        using: `jax.value_and_grad`, or its like.
        loss: that calls `apply` with its parameters.
        argnums: which of its arguments to differentiate by; the (first) one are the parameters,
            and calls with the others do not record.
        apply: from `recording`.
        statistics: of the model so far.
        taken: whether they are taken in this step; None: the schedule says.
        **kwargs: for `using`.
    """
    if not hasattr(apply, "token"):
        raise ValueError(
            f"apply_fn: got {getattr(apply, '__qualname__', apply)}, expected one that takes the "
            "statistics by itself; make the state with TrainState.prepare, or the function with "
            f"jaxnorm.linen.neuronwise(model), or {_BY_HAND}"
        )
    at = argnums if isinstance(argnums, int) else argnums[0]
    asked = None if taken is False else asked_for(statistics, taken)
    outer: set[int] = set()

    @functools.wraps(loss)
    def with_statistics(*args, **named):
        params, zeros = args[at]
        given = list(args)
        given[at] = params
        if taken is False:
            return loss(*given, **named)
        # The gradient at the zeros is that at the statistics.
        inside = jax.tree.map(lambda old, zero: jax.lax.stop_gradient(old) + zero, asked, zeros)
        others = [] if isinstance(argnums, int) else [args[n] for n in argnums[1:]]
        with _evaluated(apply, inside, outer, params, others) as reached:
            result = loss(*given, **named)
        if not reached:
            raise ValueError(
                "loss: got one that does not call the apply function of the model with the "
                "parameters that it is given, expected at least one call; use state.apply_fn "
                "(not model.apply), and give it no neuron_stats"
            )
        return result

    grad = using(with_statistics, argnums=argnums, **kwargs)

    def recorded(*args, **named):
        outer.clear()
        outer.update(_traces((args, named, statistics)))
        zeros = jax.tree.map(jnp.zeros_like, asked)
        given = list(args)
        given[at] = Gradients(args[at], zeros)
        found = as_asked(grad(*given, **named))
        return _with_intervals(found, statistics) if taken else found

    return recorded


def _with_intervals(tree: Any, statistics: Any) -> Any:
    """The gradients in a tree, whose statistics are of the type of those before."""

    def as_before(new: Any, old: Any) -> Any:
        certain = is_certain(new) and old.interval != 1
        return new.replace(interval=Certain(old.interval)) if certain else new

    def each(node: Any) -> Any:
        if not isinstance(node, Gradients):
            return node
        found = jax.tree.map(as_before, node.neuron_stats, statistics, is_leaf=is_statistics)
        return node._replace(neuron_stats=found)

    return jax.tree.map(each, tree, is_leaf=lambda node: isinstance(node, Gradients))


@contextmanager
def _evaluated(
    apply: Any, statistics: Any, outer: set[int], params: Any, others: Any
) -> Iterator[list[int]]:
    """Bring the statistics to the calls of `apply`; yields one entry for each."""
    leaf = jax.tree.leaves(statistics)[0]
    leaves = jax.tree.leaves(params), jax.tree.leaves(others)
    loss = _Loss(_trace(leaf), outer, statistics, get_opaque_trace_state(), [], *leaves)
    before = _LOCAL.losses
    _LOCAL.losses = {**before, apply.token: loss}
    try:
        with _recording(apply.token):
            yield loss.reached
    finally:
        _LOCAL.losses = before


def _is_of(loss: _Loss, variables: Mapping[str, Any]) -> bool:
    """Whether a call's parameters are those of the loss, or are made of them."""
    leaves = jax.tree.leaves(variables["params"] if "params" in variables else variables)
    traces = {id(_trace(leaf)) for leaf in leaves if isinstance(leaf, Tracer)}
    if id(loss.trace) in traces:
        return _is_of_the_first(loss, [leaf for leaf in leaves if _trace(leaf) is loss.trace])
    if traces <= loss.outer or get_opaque_trace_state() == loss.state:
        return False  # other parameters, of an average or a target network
    raise ValueError(
        "params: got those of a transformation inside the loss (jax.jit, jax.checkpoint, a scan "
        "that carries them), where they cannot be told from other ones, expected those that the "
        "loss is given; transform the step or the model (flax.linen.remat) instead, or " + _BY_HAND
    )


def _is_of_the_first(loss: _Loss, leaves: list[Any]) -> bool:
    """The same, of parameters that the loss is differentiated by: whether by the first argument."""
    ids, others = {id(leaf) for leaf in leaves}, {id(leaf) for leaf in loss.others}
    if not ids.isdisjoint(map(id, loss.params)):
        return True
    if ids <= others:
        return False  # the second of two critics
    shapes = {jnp.shape(leaf) for leaf in loss.others}
    if not any(jnp.shape(leaf) in shapes for leaf in leaves):
        return True  # made of the first: a scale, or an input, makes no parameters
    raise ValueError(
        "params: got those that are computed in a loss that is differentiated by several "
        "arguments, where they cannot be told from each other, expected those that the loss is "
        "given; hand these to the apply function as they are, or " + _BY_HAND
    )


def _traces(tree: Any) -> set[int]:
    return {id(_trace(leaf)) for leaf in jax.tree.leaves(tree) if isinstance(leaf, Tracer)}


def _trace(leaf: Any) -> Any:
    return getattr(leaf, "_trace", None)
