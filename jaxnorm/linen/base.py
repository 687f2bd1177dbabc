"""What all linen layers share: the fields of the rule, and the way from inputs to output."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from jaxnorm import checks
from jaxnorm.activations import Gate
from jaxnorm.linen.neuron_stats import statistics_of
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


class Neuronwise(nn.Module):
    """The first base of every layer, before Flax's; not to be used by itself.

    What is special about a layer are two static methods. They take Flax's layer as well as ours, so
    that a model of Flax's layers can be run with the rule.
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @staticmethod
    def shapes(layer: Any, inputs: Any) -> tuple[Any, Any]:
        """(kernel's shape, bias's shape) that Flax expects for these inputs."""
        raise NotImplementedError

    @staticmethod
    def forward(layer: Any, inputs: Any, kernel: Any, bias: Any, **settings: Any) -> Any:
        """Flax's, with the rule behind it; settings: gate, rule, axis_name and statistics."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer: as Flax's, but with ``gate=DEFERRED`` it returns (z, handle)."""
        return self.apply_rule(inputs)

    @nn.nowrap
    def apply_rule(self: Any, inputs: jax.Array, **kwargs: Any) -> Any:
        """The forward pass on parameters that are created and checked as Flax's."""
        checks.check_floating(x=inputs)
        kernel_shape, bias_shape = self.shapes(self, inputs, **kwargs)
        kernel_init, bias_init = self.initializers(inputs)
        kernel = self.param("kernel", kernel_init, kernel_shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", bias_init, bias_shape, self.param_dtype)
        return self.forward(
            self,
            inputs,
            kernel,
            bias,
            gate=self.gate,
            rule=self.rule,
            axis_name=None if self.is_initializing() else self.axis_name,
            statistics=functools.partial(statistics_of, self),
            **kwargs,
        )

    @nn.nowrap
    def initializers(self: Any, inputs: jax.Array) -> tuple[Any, Any]:
        """(kernel's, bias's) initializer."""
        del inputs
        return self.kernel_init, self.bias_init


def product_of(layer: Any, name: str, default: Callable[..., jax.Array]) -> Any:
    """The product that was injected in Flax's way, which must be a function, or the default."""
    make = getattr(layer, f"{name}_cls")
    if make is None:
        return getattr(layer, name) or default
    product = make()
    if isinstance(product, nn.Module):
        raise TypeError(
            f"{name}_cls: got the module {type(product).__name__}, expected a class of plain "
            "functions; a product with state cannot run again on statistics"
        )
    return product
