"""What all nnx layers share: the arguments of the rule, and the way from inputs to output."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxnorm import checks
from jaxnorm.activations import DEFERRED, Gate, resolve_gate
from jaxnorm.nnx.neuron_stats import statistics_of
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


class ToldElsewhere:
    """Base of the gate of a converted layer that something else in the model tells it."""

    def handed_over(self, out: Any) -> Any:
        """The z of (z, handle), the handle on the way to where the activation is."""
        raise NotImplementedError


class Neuronwise(nnx.Module):
    """The first base of every layer, before Flax's; not to be used by itself."""

    def forward(self, inputs: Any, kernel: Any, bias: Any, product: Any, **settings: Any) -> Any:
        """Flax's forward pass with the rule behind it.

        Args:
            inputs: in the layer's dtype, as kernel and bias.
            kernel: of the layer.
            bias: of the layer, or None.
            product: keywords of the product itself.
            **settings: gate, rule, axis_name and statistics.
        """
        raise NotImplementedError

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> Any:
        """Apply the layer: as Flax's, but with ``gate=DEFERRED`` it returns (z, handle)."""
        return self.apply_rule(inputs, out_sharding=out_sharding)

    def apply_rule(self: Any, inputs: jax.Array, *args: Any, **product: Any) -> Any:
        """The forward pass on the layer's own parameters."""
        checks.check_floating(x=inputs)
        bias = None if self.bias is None else self.bias[...]
        arrays = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        if self.preferred_element_type is not None:  # only what was asked for, as Flax does
            product["preferred_element_type"] = self.preferred_element_type
        gate = self.gate
        elsewhere = isinstance(gate, ToldElsewhere)
        out = self.forward(
            *arrays,
            {"precision": self.precision, **product},
            *args,
            gate=DEFERRED if elsewhere else gate,
            rule=self.rule,
            axis_name=self.axis_name,
            statistics=functools.partial(statistics_of, self),
        )
        return gate.handed_over(out) if elsewhere else out


def with_rule(init: Callable[..., None]) -> Callable[..., None]:
    """Flax's constructor with the three arguments of the rule, in its signature too."""

    def __init__(
        self, *args, gate: Gate, rule: Rule = Rule(), axis_name: AxisName | None = None, **kwargs
    ):
        resolve_gate(gate)
        checks.check_rule(rule)
        init(self, *args, **kwargs)
        self.gate, self.rule, self.axis_name = gate, rule, axis_name

    theirs, ours = inspect.signature(init), inspect.signature(__init__).parameters.values()
    parameters = [*theirs.parameters.values(), *(p for p in ours if p.kind is p.KEYWORD_ONLY)]
    functools.update_wrapper(__init__, init)
    __init__.__signature__ = theirs.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__
