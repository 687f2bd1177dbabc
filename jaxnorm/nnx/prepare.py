"""An nnx model and its optimizer set up in one call: `prepare`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax import nnx

from jaxnorm.compat import as_pure
from jaxnorm.conversion.choices import why_no_layer
from jaxnorm.conversion.decisions import LEAVE
from jaxnorm.conversion.report import Report, Row
from jaxnorm.nnx.base import Neuronwise
from jaxnorm.nnx.convert import convert
from jaxnorm.nnx.init_statistics import init_statistics
from jaxnorm.nnx.modules import become, modules
from jaxnorm.nnx.optimizer import Optimizer
from jaxnorm.nnx.registry import KINDS, kind_of
from jaxnorm.optim.in_neuron_coordinates import wrapped
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


class _Pair(NamedTuple):
    model: Any
    optimizer: Optimizer


class Prepared(_Pair):
    """What `prepare` returns: the pair (model, optimizer), with the report.

    Attributes:
        model: that was given.
        optimizer: a `jaxnorm.nnx.Optimizer` of it.
        report: what `convert` decided for each layer; it is what prints.

    Raises:
        Nothing of its own.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        >>> prepared = jaxnorm.nnx.prepare(model, optax.sgd(0.1), jnp.ones((2, 3)))
        >>> model, optimizer = prepared
        >>> len(prepared.report.converted)
        1
    """

    report: Report

    def __str__(self) -> str:
        return str(self.report)


def prepare(
    model: Any,
    tx: Any,
    example_input: Any,
    *,
    gates: Any = "auto",
    skip: Sequence[str] = (),
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    call: Callable[..., Any] | None = None,
    frozen: Any | Callable[[Any], Any] = None,
    wrt: Any = nnx.Param,
) -> Prepared:
    """Set up a model and its optimizer in one call.

    Forward (exact):      the model's own, to the last bit
    Backward (default):   Flax's; the optimizer steps in the neurons' coordinates

    `convert`, `init_statistics`, `jaxnorm.in_neuron_coordinates` and `Optimizer` together. The
    model is changed in place. In the training step `jaxnorm.nnx.value_and_grad` or `grad` take the
    place of Flax's, and all else stays.

    Args:
        model: an `nnx.Module`, as `convert` takes it, or one of layers of `jaxnorm.nnx` already.
        tx: any Optax transformation that needs gradients only. It is run inside
            `in_neuron_coordinates`, unless that is in it already
            (``optax.chain(clip, jaxnorm.in_neuron_coordinates(adam))``: see there for the
            difference).
        example_input: what the model is traced with (not run): an array or `jax.ShapeDtypeStruct`,
            or a tuple of arguments.
        gates: see `convert`.
        skip: see `convert`.
        rule: see `jaxnorm.Rule`.
        axis_name: see `convert`.
        call: see `convert`.
        frozen: see `in_neuron_coordinates`.
        wrt: see `Optimizer`.

    Returns:
        `Prepared`: the pair (model, optimizer), with ``.report``, which is what it prints as. Look
        at it: a layer that was left alone is stepped as before.

    Raises:
        TypeError: as `convert`.
        ValueError: as `convert`, `init_statistics`, `in_neuron_coordinates` and `Optimizer`.
            Whatever is raised, the model is as it was.

    Transformations: call it before `nnx.split` and `nnx.jit`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> x = jax.random.normal(jax.random.key(0), (64, 3)) + 20
        >>> first, last = (nnx.Linear(*io, rngs=nnx.Rngs(0)) for io in ((3, 8), (8, 1)))
        >>> model = nnx.Sequential(first, nnx.relu, last)
        >>> model, optimizer = prepared = jaxnorm.nnx.prepare(model, optax.adam(0.01), x)
        >>> print(prepared)
        layer     kind    gate  reason
        layers/0  Linear  relu  direct
        layers/2  Linear  None  no activation follows: the output
        2 of 2 layers with a matrix are converted; Rule()
        >>> grads = jaxnorm.nnx.grad(lambda model: (model(x) ** 2).mean())(model)
        >>> updates = optimizer.update(model, grads)
    """
    before = [(each, type(each), dict(vars(each))) for each, _ in modules(model).values()]
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        report = _of_ours(model)
        if report is None:
            options = {"skip": skip, "rule": rule, "axis_name": axis_name, "call": call}
            report = convert(model, gates, example_input=example_input, **options)
        init_statistics(model, *args, call=call)
        tx = wrapped(tx, as_pure(nnx.state(model, wrt)), frozen)
        prepared = Prepared(model, Optimizer(model, tx, wrt=wrt))
    except BaseException:
        for module, kind, attributes in before:
            become(module, kind)
            vars(module).clear()
            vars(module).update(attributes)
        raise
    prepared.report = report
    return prepared


def _of_ours(model: Any) -> Report | None:
    """The report of a model that has layers of ours, and none to convert."""
    found = {path: module for path, (module, _) in modules(model).items()}
    if any(kind_of(type(module)) is not None for module in found.values()):
        return None
    ours = {path: module for path, module in found.items() if isinstance(module, Neuronwise)}
    rows = [
        Row(path, type(module).__name__, LEAVE, why_no_layer(module, KINDS))
        for path, module in ours.items()
    ]
    return Report(tuple(rows)) if rows else None
