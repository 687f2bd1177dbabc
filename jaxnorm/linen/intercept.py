"""Interceptors of Flax linen: one runs the rule in place of Flax's layers, one marks them."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.core import Tracer

from jaxnorm.activations import DEFERRED
from jaxnorm.backward.deferred import tell_gate
from jaxnorm.conversion.choices import Choices, means, why_no_layer
from jaxnorm.conversion.decisions import LEAVE, Deferred, Product, Several
from jaxnorm.conversion.report import Report, Row, gate_name
from jaxnorm.conversion.trace import Layer, Marks
from jaxnorm.conversion.wiring import Handover
from jaxnorm.linen.base import Neuronwise
from jaxnorm.linen.neuron_stats import statistics_of
from jaxnorm.linen.registry import KINDS, kind_of
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName

#: What `Deferred` may name.
NORMALIZERS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm)

#: Layers inside of these have kernels that are functions of other parameters.
_REPARAMETERIZED = (nn.WeightNorm, nn.SpectralNorm)

#: In the key of every `jax.jit` cache, so that a layer under `flax.linen.jit` that was traced with
#: other gates, or with none, is traced again.
context = jax.make_user_context(default_value=None)


class Call(NamedTuple):
    """A call of a Flax layer that the rule can take over."""

    inputs: Any
    parameters: tuple[Any, Any]
    kwargs: dict[str, Any]
    neurons: int


def prepare(module: Any, args: tuple, kwargs: dict) -> Call | str:
    """The call with the layer's own parameters, or why Flax has to run it.

    Whatever Flax would complain about (missing or misshaped parameters, bad inputs) is left to
    Flax, so that its own error is raised.
    """
    if module.is_initializing():
        return "it is being initialized"
    if any(
        getattr(module, f"{name}_cls", None) for name in ("dot_general", "conv_general_dilated")
    ):
        return "its product is made by a class, which may have state"
    if isinstance(getattr(module, "mask", None), Tracer):
        return "its mask is not a constant"
    named = {**dict(zip(("inputs", "einsum_str"), args, strict=False)), **kwargs}
    try:
        inputs = named.pop("inputs")
        kind: Any = kind_of(type(module))
        shapes = kind.shapes(module, inputs, **named)
    except Exception as error:
        return str(error)
    parameters = []
    for name, shape in zip(("kernel", "bias"), shapes, strict=True):
        value = None
        if name == "kernel" or module.use_bias:
            value = nn.meta.unbox(module.get_variable("params", name))
            if value is None or jnp.shape(value) != tuple(shape):
                return f"it has no {name} of shape {tuple(shape)}"
            if not jnp.issubdtype(jnp.result_type(value, inputs), jnp.floating):
                return "it is not real floating-point"
        parameters.append(value)
    return Call(inputs, (parameters[0], parameters[1]), named, math.prod(shapes[1]))


class Interceptor:
    """What both interceptors share: which modules are layers, and where in the model they are."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.seen: dict[str, str] = {}  # path -> class, of the layers
        self.others: dict[str, Row] = {}  # of modules that have a matrix and are no such layer
        self.ours = False  # whether layers of ours are among those
        self._reparameterized = 0

    def __call__(self, run: Callable[..., Any], args: tuple, kwargs: dict, call: Any) -> Any:
        """The interceptor itself, as `flax.linen.intercept_methods` wants it."""
        if call.module.scope is None:
            return run(*args, **kwargs)
        path = "/".join(call.module.path)
        # What `flax.linen.jit` has traced inside one module must not run inside another like it.
        with context((self.key, path)):
            return self._call(path, run, args, kwargs, call)

    def _call(self, path: str, run: Any, args: tuple, kwargs: dict, call: Any) -> Any:
        module = call.module
        if call.method_name != "__call__":
            return run(*args, **kwargs)
        if isinstance(module, NORMALIZERS) and args:
            return self.normalizer(path, args[0], lambda x: run(x, *args[1:], **kwargs))
        if kind_of(type(module)) is not None:
            self.seen[path] = type(module).__name__
            prepared = prepare(module, args, kwargs)
            if self._reparameterized and not isinstance(prepared, str):
                prepared = "its kernel is a function of other parameters"
            return self.layer(path, module, prepared, lambda: run(*args, **kwargs))
        reparameterized = isinstance(module, _REPARAMETERIZED)
        self._reparameterized += reparameterized
        try:
            out = run(*args, **kwargs)
        finally:
            self._reparameterized -= reparameterized
        self._note(path, module)
        return self.returned(path, out)

    def _note(self, path: str, module: Any) -> None:
        """Remember a module that has a matrix of its own and is none of the layers."""
        params = module.variables.get("params", {}).values()
        values = (nn.meta.unbox(v) for v in params if not hasattr(v, "items"))
        if path not in self.seen and any(jnp.ndim(v) >= 2 for v in values):
            self.ours |= isinstance(module, Neuronwise)
            why = why_no_layer(module, KINDS)
            self.others[path] = Row(path, type(module).__name__, LEAVE, why)

    def normalizer(self, path: str, x: Any, run: Callable[[Any], Any]) -> Any:
        """A normalization of x."""
        raise NotImplementedError

    def returned(self, path: str, out: Any) -> Any:
        """What any other module returns."""
        raise NotImplementedError

    def layer(self, path: str, module: Any, prepared: Call | str, run: Callable[[], Any]) -> Any:
        """A layer of Flax; `run` is Flax's way."""
        raise NotImplementedError


class Converting(Interceptor):
    """Runs the rule in place of Flax's layers. One for each call of a model."""

    def __init__(
        self, choices: Choices, skipped: Choices, rule: Rule, axis_name: AxisName | None
    ) -> None:
        super().__init__((choices, id(rule), axis_name))
        self.choices, self.settings = choices, {"rule": rule, "axis_name": axis_name}
        self.skipped, self.handover = skipped, Handover()
        self.gates: dict[str, Any] = {}  # path -> what was chosen

    def report(self, found: Report | None) -> Report:
        """What became of each layer, as it was found, or as the user has given it."""
        rows = {} if found is None else {row.layer: row for row in found.rows}
        for path, gate in self.gates.items():
            if self.skipped.choose(path, None) is None:
                rows[path] = Row(path, self.seen[path], LEAVE, "skipped")
            elif found is None:
                reason = "not named in gates, or LEAVE" if gate is LEAVE else "as given"
                rows[path] = Row(path, self.seen[path], gate, reason)
        return Report(tuple({**rows, **self.others}.values()), self.settings["rule"])

    def normalizer(self, path: str, x: Any, run: Callable[[Any], Any]) -> Any:
        """Tell its gate to the layer that waits for it."""
        u = run(x)
        return self.handover.tell_normalized(x, u, lambda gate, layer: means(gate, path, layer))

    def returned(self, path: str, out: Any) -> Any:
        """Tell its gate to the layers inside that wait for it."""
        return self.handover.tell_returned(out, lambda gate, layer: means(gate, path, layer))

    def layer(self, path: str, module: Any, prepared: Call | str, run: Callable[[], Any]) -> Any:
        """Flax's forward pass, the rule's backward pass."""
        left = self.skipped.choose(path, module) is None
        gate = self.gates[path] = LEAVE if left else self.choices.choose(path, module)
        if gate is LEAVE:
            return run()
        if isinstance(prepared, str):
            out = run()  # first: Flax's own error says more
            if self.choices.explicit and not module.is_initializing():
                raise ValueError(
                    f"gates[{path!r}]: got {gate_name(gate)}, expected LEAVE, because the rule "
                    f"cannot take over this {type(module).__name__}: {prepared}"
                )
            return out
        waits = isinstance(gate, Deferred | Product | Several)
        kind: Any = kind_of(type(module))
        out = kind.forward(
            module,
            prepared.inputs,
            *prepared.parameters,
            **prepared.kwargs,
            gate=DEFERRED if waits else gate,
            statistics=functools.partial(statistics_of, module),
            **self.settings,
        )
        if not waits:
            return out
        z, handle = out
        if not isinstance(gate, Product):
            for part in gate.parts if isinstance(gate, Several) else (gate,):
                if part.at or part.moves is None:
                    self.handover.wait(path, z, handle, part)
                else:
                    z = tell_gate(z, handle, part.gate)
            return z
        return self.handover.tell_product(
            path, z, handle, gate, lambda other: means(gate, other, path)
        )


class Marking(Interceptor):
    """Marks layers and normalizations in the traced program, for `search`."""

    def __init__(self) -> None:
        super().__init__(self)
        self.marks = Marks()

    def normalizer(self, path: str, x: Any, run: Callable[[Any], Any]) -> Any:
        """Mark what goes in and what comes out."""
        return self.marks.normalization(path, x, run)

    def returned(self, path: str, out: Any) -> Any:
        """Mark it, if it is an array."""
        return self.marks.returned(path, out)

    def layer(self, path: str, module: Any, prepared: Call | str, run: Callable[[], Any]) -> Any:
        """Mark the kernel and what comes out."""
        z = run()
        what = (path, type(module).__name__, jnp.shape(z))
        if isinstance(prepared, str):
            return self.marks.layer(Layer(*what, 1, 0, prepared), None, z)
        kernel = prepared.parameters[0]
        layer = Layer(*what, prepared.neurons, jnp.ndim(kernel), None)
        return self.marks.layer(layer, kernel, z)
