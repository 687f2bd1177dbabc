"""A linen model and its optimizer set up in one call, for loops without a `TrainState`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import optax
from flax import struct

from jaxnorm.conversion.report import Report
from jaxnorm.linen.convert import find_gates, neuronwise
from jaxnorm.linen.neuron_stats import init_statistics
from jaxnorm.linen.recording import Gradients, differentiated
from jaxnorm.optim.in_neuron_coordinates import wrapped
from jaxnorm.optim.update_statistics import update_statistics
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


class OptimizerState(struct.PyTreeNode):
    """The state of an optimizer from `prepare`.

    Attributes:
        inner_state: of the transformation that it was made of.
        neuron_stats: the statistics of all layers.
        apply: the function of the model. Static.
    """

    takes_statistics: ClassVar[bool] = True

    inner_state: Any
    neuron_stats: Any
    apply: Callable[..., Any] = struct.field(pytree_node=False)


class _Pair(NamedTuple):
    apply: Callable[..., Any]
    tx: optax.GradientTransformation


class Prepared(_Pair):
    """What `prepare` returns: the pair (apply, tx), with the report.

    Attributes:
        apply: the model's apply function, with the rule in its layers.
        tx: the optimizer in neuron coordinates, whose state has the statistics.
        report: what was decided for each layer; it is what prints.

    Raises:
        Nothing of its own.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model, x = nn.Dense(1), jnp.ones((2, 3))
        >>> params = model.init(jax.random.key(0), x)
        >>> prepared = jaxnorm.linen.prepare(model, params, optax.sgd(0.1), x)
        >>> apply, tx = prepared
        >>> len(prepared.report.converted)
        1
    """

    report: Report

    def __str__(self) -> str:
        return str(self.report)


def prepare(
    model: Any,
    params: Any,
    tx: Any,
    example_input: Any,
    *,
    gates: Any = "auto",
    skip: Sequence[str] = (),
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    frozen: Any | Callable[[Any], Any] = None,
    example_kwargs: Mapping[str, Any] | None = None,
    **collections: Any,
) -> Prepared:
    """Set up a model and its optimizer in one call, for a loop without a `TrainState`.

    Forward (exact):      the model's own, to the last bit
    Backward (default):   Flax's; the optimizer steps in the neurons' coordinates

    `neuronwise`, `init_statistics` and `jaxnorm.in_neuron_coordinates` together. The statistics are
    in the optimizer's state; `value_and_grad` finds them there, and ``tx.update`` merges them.

    Args:
        model: a module, or its apply function, as `neuronwise` takes it.
        params: as the loss hands them to the apply function: ``{"params": ...}`` as ``model.init``
            returns it, or ``variables["params"]``.
        tx: any Optax transformation that needs gradients only. It is run inside
            `in_neuron_coordinates`, unless that is in it already
            (``optax.chain(clip, jaxnorm.in_neuron_coordinates(adam))``: see there for the
            difference).
        example_input: what the model is traced with (not run): an array or `jax.ShapeDtypeStruct`,
            or a tuple of arguments.
        gates: see `neuronwise`; ``"auto"``: found once, in the example.
        skip: see `neuronwise`.
        rule: see `jaxnorm.Rule`.
        axis_name: see `neuronwise`.
        frozen: see `in_neuron_coordinates`.
        example_kwargs: keywords that the model needs, as ``model.apply`` takes them (``train``,
            ``rngs``, ``method``). The collections are ``mutable`` by themselves.
        **collections: the other collections: ``batch_stats=variables["batch_stats"]``.

    Returns:
        `Prepared`: the pair (apply, tx), with ``.report``, which is what it prints as. Look at it:
        a layer that was left alone is stepped as before.

    Raises:
        TypeError: for gates or a rule of another type.
        ValueError: as `neuronwise`, `init_statistics` and `in_neuron_coordinates`; for parameters
            with other collections among them; in ``tx.update``, for a gradient without statistics.

    Transformations: any; in a compiled program too.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)])
        >>> x = jax.random.normal(jax.random.key(0), (64, 3)) + 20
        >>> params = model.init(jax.random.key(1), x)
        >>> apply, tx = prepared = jaxnorm.linen.prepare(model, params, optax.adam(0.01), x)
        >>> print(prepared)
        layer     kind   gate  reason
        layers_0  Dense  relu  direct
        layers_2  Dense  None  no activation follows: the output
        2 of 2 layers with a matrix are converted; Rule()
        >>> state = tx.init(params)
        >>> def loss_fn(params):
        ...     return (apply(params, x) ** 2).mean()
        >>> loss, grads = jaxnorm.linen.value_and_grad(loss_fn, state)(params)
        >>> updates, state = tx.update(grads, state, params)
        >>> bool(loss_fn(optax.apply_updates(params, updates)) < loss)
        True
    """
    given = (model, params, example_input, example_kwargs, collections, gates)
    apply, stats = with_statistics(*given, skip=skip, rule=rule, axis_name=axis_name)
    prepared = Prepared(apply, _tracking(wrapped(tx, params, frozen), apply, stats))
    prepared.report = apply.report
    return prepared


def with_statistics(
    model: Any,
    params: Any,
    example_input: Any,
    kwargs: Mapping[str, Any] | None,
    collections: Mapping[str, Any],
    gates: Any,
    **options: Any,
) -> tuple[Any, Any]:
    """(apply function with the rule, statistics): gates are found once, in the example."""
    if not isinstance(params, Mapping) or ("params" in params and len(params) > 1):
        got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f"params: got {got}, expected the parameters alone; hand the other collections over by "
            'their names: variables["params"], ..., batch_stats=variables["batch_stats"]'
        )
    variables = {**(params if "params" in params else {"params": params}), **collections}
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    mutable = {"mutable": list(collections)} if collections else {}
    kwargs = {**mutable, **(kwargs or {})}
    if gates == "auto":
        gates = find_gates(model, variables, *args, **kwargs)
    apply = neuronwise(model, gates, **options)
    return apply, init_statistics(apply, variables, *args, **kwargs)


def _tracking(tx: Any, apply: Any, stats: Any) -> optax.GradientTransformation:
    """The transformation, with the statistics in its state."""

    def init(params) -> Any:
        return OptimizerState(inner_state=tx.init(params), neuron_stats=stats, apply=apply)

    def update(updates, state: Any, params=None, **extra_args):
        if not isinstance(updates, Gradients):
            raise ValueError(
                "grads: got a gradient without statistics, expected Gradients; differentiate with "
                "jaxnorm.linen.value_and_grad(loss, opt_state)"
            )
        merged = update_statistics(state.neuron_stats, updates.neuron_stats)
        updates, inner = tx.update(
            updates.params, state.inner_state, params, neuron_stats=merged, **extra_args
        )
        return updates, state.replace(inner_state=inner, neuron_stats=merged)

    return optax.GradientTransformationExtraArgs(init, update)


def value_and_grad(
    loss: Callable[..., Any],
    opt_state: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    using: Callable[..., Any] = jax.value_and_grad,
    **kwargs: Any,
) -> Callable[..., Any]:
    """`jax.value_and_grad` of a loss, which takes along the statistics.

    Args:
        loss: of the parameters, and whatever else, that calls the apply function of `prepare`.
        opt_state: the state of the optimizer of `prepare`, or one that contains it.
        argnums: see `TrainState.value_and_grad`, as the rest.
        has_aux: as JAX's.
        using: what differentiates: ``dynamic_scale.value_and_grad``, say.
        **kwargs: for `using`.

    Returns:
        A function as `jax.value_and_grad` returns it; the gradient is `Gradients`, for
        ``tx.update``.

    Raises:
        ValueError: for another state; and as `TrainState.value_and_grad`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model, x = nn.Dense(1), jnp.ones((2, 3))
        >>> params = model.init(jax.random.key(0), x)
        >>> apply, tx = jaxnorm.linen.prepare(model, params, optax.sgd(0.1), x)
        >>> loss_fn = lambda params: apply(params, x).sum()
        >>> loss, grads = jaxnorm.linen.value_and_grad(loss_fn, tx.init(params))(params)
        >>> grads.params["params"]["bias"]
        Array([2.], dtype=float32)
    """
    states = jax.tree.leaves(opt_state, is_leaf=_is_state)
    found = [each for each in states if _is_state(each)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state: got one with {len(found)} of jaxnorm.linen.prepare, expected one; make it "
            "with apply, tx = jaxnorm.linen.prepare(...) and tx.init(params)"
        )
    apply, stats = found[0].apply, found[0].neuron_stats
    return differentiated(using, loss, argnums, apply, stats, has_aux=has_aux, **kwargs)


def grad(
    loss: Callable[..., Any],
    opt_state: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    **kwargs: Any,
) -> Callable[..., Any]:
    """`jax.grad` of a loss. As `value_and_grad`, without the value.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model, x = nn.Dense(1), jnp.ones((2, 3))
        >>> params = model.init(jax.random.key(0), x)
        >>> apply, tx = jaxnorm.linen.prepare(model, params, optax.sgd(0.1), x)
        >>> loss_fn = lambda params: apply(params, x).sum()
        >>> grads = jaxnorm.linen.grad(loss_fn, tx.init(params))(params)
        >>> grads._fields
        ('params', 'neuron_stats')
    """
    return value_and_grad(loss, opt_state, argnums, has_aux, using=jax.grad, **kwargs)


def _is_state(node: Any) -> bool:
    return isinstance(node, OptimizerState)
