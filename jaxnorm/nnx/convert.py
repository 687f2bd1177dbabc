"""The rule in a whole nnx model, in place: `convert`."""

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxnorm import checks
from jaxnorm.conversion.choices import Choices, means, no_layers, records, why_no_layer
from jaxnorm.conversion.decisions import LEAVE, Deferred, Product
from jaxnorm.conversion.report import Report, Row
from jaxnorm.nnx.modules import FOUND, GIVEN, MARK, become, modules
from jaxnorm.nnx.registry import KINDS, NORMALIZERS, kind_of
from jaxnorm.nnx.trace import follow_layers
from jaxnorm.nnx.wiring import Bound, converted_layer, converted_module, converted_normalizer
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


def convert(
    model: Any,
    gates: Any = "auto",
    *,
    example_input: Any = None,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    skip: Sequence[str] = (),
    call: Callable[..., Any] | None = None,
) -> Report:
    """Give the layers of a model the neuron-wise rule, in place.

    Forward (exact):      the model's own, to the last bit; its code is not touched
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_W and g_b of the layers with a gate
                          by the rule, all else unchanged

    Every `flax.nnx.Linear`, `LinearGeneral`, `Einsum`, `Conv` or `ConvTranspose`, wherever in the
    model (those of `MultiHeadAttention` too), becomes the layer of that name in `jaxnorm.nnx`: the
    same object with the same parameters, so optimizers, states and checkpoints stay valid. A
    subclass that leaves its base's methods as they are stays an instance of its class. `revert`
    takes it back.

    Args:
        model: an `nnx.Module`, or lists and dicts of them with `call`.
        gates: which activation follows which layer. ``"auto"``: found in the traced program, see
            `jaxnorm.linen.find_gates`. {pattern: gate}: glob patterns on paths such as
            ``"blocks/0/linear"``, the first that matches counts, layers without a match are left
            alone. A callable (path, layer) -> gate. A `Report`. In place of a gate:
            `jaxnorm.linen.LEAVE`, `Deferred`, `Product`.
        example_input: what the model is traced with (not run): an array or `jax.ShapeDtypeStruct`,
            or a tuple of arguments. Needed for ``"auto"`` and for a `Product`.
        rule: see `jaxnorm.Rule`.
        axis_name: as in `Linear`.
        skip: patterns of layers to leave alone whatever `gates` says.
        call: (model, *example_input) -> output, if that is not ``model(*example_input)``.

    Returns:
        A `Report`; print it.

    Raises:
        TypeError: for gates or a rule of another type.
        ValueError: for a model without such a layer, an unknown gate, a pattern that matches none,
            a `Deferred` or `Product` that names no such module, a missing example_input; and the
            model's own errors on example_input. Then the model is as it was.

    Transformations: the model's own; convert before `nnx.split` and `nnx.jit`. Layers stacked by
    `nnx.vmap` and run by `nnx.scan` are converted like any other. A layer that is called several
    times, or in every round of a loop with the same weights, has the statistics of all its calls,
    if the same gate follows each (with ``gradient="preconditioned"`` it is left alone). A converted
    model can be copied and pickled as before. If it is changed later so that nobody tells a layer
    what its activation sees, a warning says so, once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> rngs = nnx.Rngs(0)
        >>> first, last = nnx.Linear(5, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        >>> model = nnx.Sequential(first, nnx.relu, last)
        >>> print(jaxnorm.nnx.convert(model, example_input=jnp.ones((2, 5))))
        layer     kind    gate  reason
        layers/0  Linear  relu  direct
        layers/2  Linear  None  no activation follows: the output
        2 of 2 layers with a matrix are converted; Rule()
        >>> jaxnorm.nnx.revert(model)
    """
    checks.check_rule(rule)
    found = modules(model)
    layers = {path: each for path, each in found.items() if kind_of(type(each[0])) is not None}
    if not layers:
        raise no_layers("convert", (f"nnx.{kind.__name__}" for kind in KINDS))
    skipped = Choices(dict.fromkeys(skip, None))
    skipped.check_used(layers)
    traced, order = None, {}
    if example_input is not None:
        traced, order = follow_layers(model, example_input, call, recorded=records(rule))
    elif gates == "auto":
        raise ValueError(
            "example_input: got None, expected an array or a tuple of arguments, because "
            "gates='auto' traces the model; or name the gates"
        )
    choices = Choices(traced if gates == "auto" else gates)
    choices.check_used(layers)
    rows, plan = [], []
    for path, (layer, also) in layers.items():
        gate, reason, unresolved = choices.choose(path, layer), "as given", False
        if traced is not None and gates == "auto":
            reason, unresolved = traced[path].reason, traced[path].unresolved
        if skipped.choose(path, layer) is None:
            gate, reason, unresolved = LEAVE, "skipped", False
        if gate is LEAVE and reason == "as given":
            reason = "not named in gates, or LEAVE"
        if also:
            reason += f"; the same object at {', '.join(also)}"
        if _stacked(layer):
            reason += "; stacked weights"
        way = () if traced is None else traced[path].way
        rows.append(Row(path, type(layer).__name__, gate, reason, unresolved, way=way))
        if gate is not LEAVE:
            plan.append((layer, *_bound(gate, path, layers, found, order)))
    for path, (module, _) in found.items():
        if kind_of(type(module)) is None and _has_matrix(module):
            rows.append(Row(path, type(module).__name__, LEAVE, why_no_layer(module, KINDS)))
    for layer, gate, tells in plan:
        become(layer, converted_layer(type(layer)))
        layer.gate, layer.rule, layer.axis_name = gate, rule, axis_name
        setattr(layer, MARK, FOUND if gates == "auto" else GIVEN)
        for module in tells:
            if isinstance(module, NORMALIZERS) and not gate.choice.applied:
                if type(module) in NORMALIZERS:
                    become(module, converted_normalizer(type(module)))
            elif not hasattr(module, MARK):
                become(module, converted_module(type(module)))
                setattr(module, MARK, gate.around)
    return Report(tuple(rows), rule)


def _stacked(layer) -> bool:
    """Whether the parameters have more axes than the layer itself would give them."""
    axes = {
        nnx.Linear: lambda: 2,
        nnx.LinearGeneral: lambda: (
            len(layer.in_features + layer.out_features) + len(layer.batch_axis)
        ),
        nnx.Einsum: lambda: len(layer.kernel_shape),
        nnx.Conv: lambda: len(layer.kernel_size) + 2,
        nnx.ConvTranspose: lambda: len(layer.kernel_size) + 2,
    }
    return layer.kernel[...].ndim > axes[kind_of(type(layer))]()  # type: ignore[index]


def _has_matrix(module) -> bool:
    parameters = [v for v in vars(module).values() if isinstance(v, nnx.Param)]
    return any(jnp.ndim(v[...]) >= 2 for v in parameters)


def _bound(gate, path, layers, found, order) -> tuple[Any, list[Any]]:
    """(gate with the modules that it names looked up, the modules that take part)."""
    if isinstance(gate, Product):
        other = [name for name in layers if means(gate, name, path)]
        if not other or path not in order or other[0] not in order:
            raise ValueError(
                f"gates[{path!r}]: got Product with {gate.other!r}, expected the path of another "
                "layer, and an example_input that shows which of the two is called first"
            )
        first, second = sorted((path, other[0]), key=order.__getitem__)
        around, module = _around(first, second, found)
        pair = f"{_number(layers[first][0])} {first} {second}"
        return Bound(gate, path, around, pair, first=first == path), module
    if not isinstance(gate, Deferred):
        return gate, []
    fits = {
        name: module
        for name, (module, _) in found.items()
        if means(gate, name, path)
        and (isinstance(module, NORMALIZERS) or gate.applied)
        and callable(module)
        and name not in layers
    }
    if not fits:
        kinds = "BatchNorm or another normalizer"
        raise ValueError(
            f"gates[{path!r}]: got Deferred at {gate.at!r}, expected the path of a "
            f"{'module' if gate.applied else kinds}"
        )
    name, module = next(iter(fits.items()))
    if gate.applied:
        return Bound(gate, path, _place(name, module)), [module]
    around, outer = _around(path, name, found)
    return Bound(gate, path, around), [module, *outer]


def _around(one: str, other: str, found) -> tuple[str, list[Any]]:
    """(place, [module]) of the innermost module around both that can be called, if there is one."""
    parts = zip(one.split("/"), other.split("/"), strict=False)
    shared = [a for a, _ in itertools.takewhile(lambda ab: ab[0] == ab[1], parts)]
    for n in range(len(shared), -1, -1):
        name = "/".join(shared[:n])
        module = found.get(name, (None,))[0]
        if callable(module) and name not in (one, other):
            return _place(name, module), [module]
    return "", []


def _place(name: str, module: Any) -> str:
    """A module as a key, the same in no other model."""
    return f"{_number(module)} {name}"


def _number(module: Any) -> int:
    """Not its id, which another module has when this one is gone."""
    return _NUMBERS.setdefault(module, next(_COUNT))


_COUNT = itertools.count()
_NUMBERS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
