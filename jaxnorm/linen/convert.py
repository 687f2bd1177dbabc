"""The rule in a whole linen model: `neuronwise`, and `find_gates`, which says what it decides."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from jaxnorm import checks
from jaxnorm.conversion.alterations import Problem, unknown, warn
from jaxnorm.conversion.choices import Choices, no_layers, records
from jaxnorm.conversion.foreign import settings_in
from jaxnorm.conversion.report import Report
from jaxnorm.conversion.search import search
from jaxnorm.conversion.trace import signature, trace
from jaxnorm.conversion.wiring import untold
from jaxnorm.linen.intercept import Converting, Marking, context
from jaxnorm.linen.recording import recording
from jaxnorm.linen.registry import KINDS
from jaxnorm.masks import neuron_mask
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName

#: For so many kinds of arguments what was found is remembered: flags, not numbers that change.
_MOST_SIGNATURES = 64

_REMEDY = "call jaxnorm.linen.neuronwise(model) again"


def neuronwise(
    model: Any,
    gates: Any = "auto",
    *,
    skip: Sequence[str] = (),
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
) -> Callable[..., Any]:
    """The apply function of a whole model, with the neuron-wise rule in every layer.

    Forward (exact):      the model's own, to the last bit; its code is not touched
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_W and g_b of the layers with a gate
                          by the rule, all else unchanged

    Every call of `flax.linen.Dense`, `DenseGeneral`, `Einsum`, `Conv` or `ConvTranspose`, or of a
    subclass that leaves its base's methods as they are, runs (but for layers of `jaxnorm.linen`,
    which know their gates) as the layer of that name in `jaxnorm.linen` would, on its own
    parameters, through `flax.linen.intercept_methods`. Interceptors that were set outside do not
    see these calls. `model.init` is used as before; `init_statistics` takes the returned function
    in place of the model.

    Args:
        model: a module, or a function that calls one (``model.apply``, ``state.apply_fn``, one
            that binds).
        gates: which activation follows which layer. ``"auto"``: found in the traced program, see
            `find_gates`. {pattern: gate}: glob patterns on paths such as ``"encoder/Dense_0"``, the
            first that matches counts, layers without a match are left alone. A callable
            (path, module) -> gate. A `Report` of `find_gates`. In place of a gate: `LEAVE`,
            `Deferred`, `Product`.
        skip: patterns of layers to leave alone whatever `gates` says.
        rule: see `jaxnorm.Rule`.
        axis_name: as in `Dense`.

    Returns:
        A function with the signature of ``model.apply``, for `TrainState.create` too; and a
        keyword of its own, ``neuron_mask=``, as `jaxnorm.neuron_mask`. Its ``.report`` is that of
        the call that was traced last.

    Raises:
        TypeError: for gates or a rule of another type.
        ValueError: for an unknown gate; and, at the first call without ``method=``, for a model
            without such a layer or a pattern that matches none.

    Transformations: jit, grad, scan, vmap, remat, shard_map, around the model and lifted inside.
    A layer that is called several times, or in every round of a loop with the same weights, has the
    statistics of all its calls, if the same gate follows each. With ``gradient="preconditioned"``
    "auto" leaves it alone: each call's gradient would use the statistics of its own. Modules
    under `flax.linen.jit` in one parent that differ in nothing but their name share one trace, of
    which Flax shows the first name only: "auto" leaves them alone, and what `gates` says of the
    first holds for all. An exception leaves no interceptor behind; any number of threads may call.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 5)))
        >>> apply = jaxnorm.linen.neuronwise(model)
        >>> same = apply(variables, jnp.ones((2, 5))) == model.apply(variables, jnp.ones((2, 5)))
        >>> bool(same.all())
        True
        >>> apply = jaxnorm.linen.neuronwise(model, {"layers_0": "relu", "layers_*": None})
    """
    checks.check_rule(rule)
    apply, checked = _apply_of(model), gates == "auto" and not skip
    reported: set[Problem] = set()
    skipped = Choices(dict.fromkeys(skip, None))
    if gates == "auto":
        found: dict[Any, tuple[Choices, Report | None]] = {}

        def choose(args, kwargs):
            arguments = signature(args, kwargs)
            if arguments is None:
                return _chosen(_find(apply, args, kwargs, records(rule)))
            key = arguments, settings_in(apply)
            if key not in found:
                found[key] = _chosen(_find(apply, args, kwargs, records(rule)))
                if len(found) > _MOST_SIGNATURES:
                    del found[next(iter(found))]
            return found[key]

    else:
        once = isinstance(gates, Report) and not records(rule)
        given = _chosen(gates.once() if once else gates)

        def choose(args, kwargs):
            del args, kwargs
            return given

    @functools.wraps(apply)
    def neuronwise_apply(*args, **kwargs):
        if "neuron_mask" in kwargs:
            with neuron_mask(kwargs.pop("neuron_mask")):
                return neuronwise_apply(*args, **kwargs)
        nonlocal checked
        chosen, report = choose(args, kwargs)
        interceptor = Converting(chosen, skipped, rule, axis_name)
        with context(interceptor.key), nn.intercept_methods(interceptor):
            out = apply(*args, **kwargs)
        problems = [untold(*left) for left in interceptor.handover.end().items()]
        if isinstance(gates, Report):
            problems += map(unknown, interceptor.seen.keys() - gates.gates.keys())
        warn([each for each in problems if each not in reported], _REMEDY)
        reported.update(problems)
        # Once: what `flax.linen.jit` has cached is not seen again.
        if not checked and kwargs.get("method") is None:
            if not (interceptor.seen or interceptor.ours):
                raise no_layers("neuronwise", (kind.__name__ for kind in KINDS))
            chosen.check_used(interceptor.seen)
            skipped.check_used(interceptor.seen)
            checked = True
        recorded.report = interceptor.report(report)
        return out

    recorded: Any = recording(neuronwise_apply)
    recorded.report = None
    return recorded


def find_gates(model: Any, *args: Any, **kwargs: Any) -> Report:
    """The activation that follows each layer of a model, read from its traced program.

    The model is traced, not run. From the output of every layer whatever is an elementwise function
    of it is followed, through reshapes, casts and dropout: the function where that ends is the
    gate. It is compared with those of `jax.nn` by its slope, not by its name; any other is cut out
    of the program. Behind a normalization it is `Deferred`; the product of two layers' activations
    is a `Product`, a function of parts of one layer's output (SwiGLU in one layer) a `JointGate`.
    Where a sum (a residual connection), a product, a reduction or the output of the model comes
    first the gate is None; where different functions read the output too, and the table says so.

    Args:
        model: as in `neuronwise`.
        *args: the arguments of ``model.apply``: variables and example inputs, arrays or
            `jax.ShapeDtypeStruct`; the batch may have any size above 1.
        **kwargs: as ``model.apply`` takes them (``rngs``, ``mutable``, ``train``, ``method``).

    Returns:
        A `Report`: print it, edit its ``gates``, or hand it to `neuronwise`.

    Raises:
        ValueError: for a model without a layer to convert; the model's own errors.

    Transformations: may be called inside any; nothing is computed.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> model = nn.Sequential([nn.Conv(8, (3, 3)), nn.GroupNorm(4), nn.gelu, nn.Dense(3)])
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> print(jaxnorm.linen.find_gates(model, variables, jnp.ones((2, 8, 8, 3))))
        layer     kind   gate  reason
        layers_0  Conv   gelu  deferred to layers_1
        layers_3  Dense  None  no activation follows: the output
        2 of 2 layers with a matrix are converted
    """
    return _find(_apply_of(model), args, kwargs, recorded=True)


def _find(apply: Callable[..., Any], args: tuple, kwargs: dict, recorded: bool) -> Report:
    """`find_gates`, for statistics that are recorded or not."""
    marking = Marking()
    # With a context of its own, so that nothing under `flax.linen.jit` comes from a cache.
    with context(marking), nn.intercept_methods(marking):
        traced = trace(apply, args, kwargs)
    if not (marking.seen or marking.ours) and kwargs.get("method") is None:
        raise no_layers("find_gates", (kind.__name__ for kind in KINDS))
    rows = search(traced, marking.marks.layers, recorded=recorded, anywhere=True)
    return Report((*rows, *marking.others.values()))


def _chosen(gates: Any) -> tuple[Choices, Report | None]:
    """What is chosen, and the report that it comes from."""
    return Choices(gates), gates if isinstance(gates, Report) else None


def _apply_of(model: Any) -> Callable[..., Any]:
    if isinstance(model, nn.Module):
        return model.apply
    if not callable(model):
        raise TypeError(f"model: got {model!r}, expected a module or a function that calls one")
    return model
