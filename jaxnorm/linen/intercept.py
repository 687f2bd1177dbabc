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
from jaxnorm.conversion.report import LEAVE, Choices, Deferred, Product, gate_name, means
from jaxnorm.conversion.trace import Layer, mark
from jaxnorm.conversion.wiring import Handover
from jaxnorm.linen.base import Neuronwise
from jaxnorm.linen.neuron_stats import statistics_of
from jaxnorm.rule import Rule
from jaxnorm.statistics.moments import AxisName

#: For each layer of Flax ours, whose `shapes` and `forward` take Flax's too.
Kinds = dict[type[nn.Module], type[Neuronwise]]

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


def prepare(kinds: Kinds, module: Any, args: tuple, kwargs: dict) -> Call | str:
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
        shapes = kinds[type(module)].shapes(module, inputs, **named)
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

    def __init__(self, kinds: Kinds, key: Any) -> None:
        self.kinds, self.key = kinds, key
        self.seen: dict[str, str] = {}  # path -> class, of the layers
        self.others: dict[str, tuple[str, str]] = {}  # path -> (class, why it is no such layer)
        self._inside = 0

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
        if type(module) in self.kinds:
            self.seen[path] = type(module).__name__
            prepared = prepare(self.kinds, module, args, kwargs)
            if self._inside and not isinstance(prepared, str):
                prepared = "its kernel is a function of other parameters"
            return self.layer(path, module, prepared, lambda: run(*args, **kwargs))
        reparameterized = type(module) in _REPARAMETERIZED
        self._inside += reparameterized
        try:
            out = run(*args, **kwargs)
        finally:
            self._inside -= reparameterized
        self._note(path, module)
        return self.returned(path, out)

    def _note(self, path: str, module: Any) -> None:
        """Remember a module that has a matrix of its own and is none of the layers."""
        own = module.variables.get("params", {})
        values = (nn.meta.unbox(v) for v in own.values() if not hasattr(v, "items"))
        if path not in self.seen and any(jnp.ndim(v) >= 2 for v in values):
            why = "not a layer of Flax that the rule knows"
            if isinstance(module, tuple(self.kinds)):
                why = "a subclass"
            if hasattr(module, "gate") and hasattr(module, "rule"):
                why = "has a gate of its own"
            self.others[path] = (type(module).__name__, why)

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
        self, kinds: Kinds, choices: Choices, rule: Rule, axis_name: AxisName | None
    ) -> None:
        super().__init__(kinds, (choices, id(rule), axis_name))
        self.choices, self.how = choices, {"rule": rule, "axis_name": axis_name}
        self.handover = Handover()

    def normalizer(self, path: str, x: Any, run: Callable[[Any], Any]) -> Any:
        """Observe its output if a layer waits for it."""
        return self.handover.normalized(x, run(x), lambda gate, layer: means(gate, path, layer))

    def returned(self, path: str, out: Any) -> Any:
        """Observe it if a layer inside waits for it."""
        return self.handover.returned(out, lambda gate, layer: means(gate, path, layer))

    def layer(self, path: str, module: Any, prepared: Call | str, run: Callable[[], Any]) -> Any:
        """Flax's forward pass, the rule's backward pass."""
        gate = self.choices(path, module)
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
        waits = isinstance(gate, Deferred | Product)
        forward = self.kinds[type(module)].forward
        out = forward(
            module,
            prepared.inputs,
            *prepared.parameters,
            **prepared.kwargs,
            gate=DEFERRED if waits else gate,
            statistics=functools.partial(statistics_of, module),
            **self.how,
        )
        if not waits:
            return out
        z, handle = out
        if isinstance(gate, Deferred):
            wait = self.handover.applied if gate.applied else self.handover.deferred
            wait(path, z, handle, gate)
            return z
        return self.handover.product(path, z, handle, gate, lambda other: means(gate, other, path))


class Marking(Interceptor):
    """Marks layers and normalizations in the traced program, for `gate_search`."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__(kinds, self)
        self.layers: list[Layer] = []
        self.normalizers: list[str] = []
        self.modules: list[str] = []

    def normalizer(self, path: str, x: Any, run: Callable[[Any], Any]) -> Any:
        """Mark what goes in and what comes out."""
        number = len(self.normalizers)
        self.normalizers.append(path)
        return mark("out", number, run(mark("in", number, x)))

    def returned(self, path: str, out: Any) -> Any:
        """Mark it, if it is an array."""
        if not hasattr(out, "dtype"):
            return out
        self.modules.append(path)
        return mark("returned", len(self.modules) - 1, out)

    def layer(self, path: str, module: Any, prepared: Call | str, run: Callable[[], Any]) -> Any:
        """Mark the kernel and what comes out."""
        z = run()
        why = prepared if isinstance(prepared, str) else None
        number = len(self.layers)
        neurons, axes = 1, 0
        if not isinstance(prepared, str):
            kernel = mark("kernel", number, prepared.parameters[0])
            neurons, axes = prepared.neurons, jnp.ndim(kernel)
        self.layers.append(Layer(path, type(module).__name__, jnp.shape(z), neurons, axes, why))
        return mark("layer", number, z)
