"""Flax nnx layers: Flax's, with the rule in their backward pass."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxnorm import checks
from jaxnorm.activations import Gate, resolve_gate
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.functional.functions import (
    neuronwise_conv,
    neuronwise_conv_transpose,
    neuronwise_einsum,
)
from jaxnorm.nnx.neuron_stats import statistics_of
from jaxnorm.nnx.wiring import gate_of, handed_over
from jaxnorm.operations.convolution import broadcast
from jaxnorm.operations.einsum import dense_general
from jaxnorm.operations.linear import dense
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with the neuron-wise rule; see `jaxnorm.neuronwise_dense`.

    Forward (exact):      z = x kernel + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer with its parameters (``kernel`` [I, O], ``bias`` [O]), its
    initial values and every one of its arguments. It has no other state, unless `init_statistics`
    gives it statistics; without them it trains as Flax's.

    Args:
        in_features: I.
        out_features: O.
        gate: (required) the activation that follows the layer: a name of `jax.nn`, an elementwise
            callable, or None if none follows. It is not applied. With `jaxnorm.DEFERRED` the layer
            returns (z, handle), see `jaxnorm.tell_gate`.
        rule: see `jaxnorm.Rule`.
        axis_name: mapped axes over which the batch is spread, for ``gradient="preconditioned"`` or
            "standardized"; recorded statistics are summed where the gradients are. Not needed under
            `jax.jit`.
        rngs: as Flax's.
        **kwargs: every other argument of `flax.nnx.Linear`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Linear(5, 16, gate="relu", rngs=nnx.Rngs(0))
        >>> jax.nn.relu(layer(jnp.ones((2, 5)))).shape
        (2, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gate: Gate,
        rule: Rule = Rule(),
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
        **kwargs,
    ) -> None:
        _check(gate, rule)
        super().__init__(in_features, out_features, rngs=rngs, **kwargs)
        self.gate, self.rule, self.axis_name = gate, rule, axis_name

    def __call__(self, inputs: jax.Array, out_sharding=None) -> Any:
        """Apply the layer to the last axis of inputs [..., I]; returns z [..., O]."""
        checks.check_floating("x", inputs)
        checks.check_inputs(jnp.shape(inputs), self.in_features)
        inputs, kernel, bias = _promoted(self, inputs)
        kwargs = _kwargs(self, out_sharding)
        out = linear_operation(
            dense(self.dot_general, precision=self.precision, **kwargs),
            inputs,
            kernel,
            bias,
            **_rule_of(self),
        )
        return handed_over(self, out)


class LinearGeneral(nnx.LinearGeneral):
    """`flax.nnx.LinearGeneral` with the neuron-wise rule; see `jaxnorm.neuronwise_einsum`.

    Forward (exact):      z = x kernel + bias over any axes, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer: its arguments, parameters and initial values.

    Args:
        in_features: the input axes.
        out_features: the output axes.
        gate: (required) as in `Linear`.
        rule: see `jaxnorm.Rule`.
        axis_name: as in `Linear`.
        rngs: as Flax's.
        **kwargs: every other argument of `flax.nnx.LinearGeneral`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_einsum`; integer inputs are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> heads = jaxnorm.nnx.LinearGeneral(8, (4, 16), gate=None, rngs=nnx.Rngs(0))
        >>> heads(jnp.ones((2, 5, 8))).shape
        (2, 5, 4, 16)
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        *,
        gate: Gate,
        rule: Rule = Rule(),
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
        **kwargs,
    ) -> None:
        _check(gate, rule)
        super().__init__(in_features, out_features, rngs=rngs, **kwargs)
        self.gate, self.rule, self.axis_name = gate, rule, axis_name

    def __call__(self, inputs: jax.Array, out_sharding=None) -> Any:
        """Apply the layer to the axes `axis`; returns z [batch..., samples..., O...]."""
        checks.check_floating("x", inputs)
        inputs, kernel, bias = _promoted(self, inputs)
        axes: Any = (self.axis, tuple(self.batch_axis))
        # Sorted, as Flax does: the kernel's axes follow those of the inputs.
        axis, batch = (tuple(sorted(a % inputs.ndim for a in own)) for own in axes)
        product = self.dot_general or lax.dot_general
        if self.dot_general_cls is not None:
            product = self.dot_general_cls()
        equation, op = dense_general(inputs.ndim, axis, batch, len(self.out_features), product)
        kwargs = _kwargs(self, out_sharding)
        out = neuronwise_einsum(
            equation,
            inputs,
            kernel,
            bias,
            einsum_op=op,
            precision=self.precision,
            **kwargs,
            **_rule_of(self),
        )
        return handed_over(self, out)


class Einsum(nnx.Einsum):
    """`flax.nnx.Einsum` with the neuron-wise rule; see `jaxnorm.neuronwise_einsum`.

    Forward (exact):      z = einsum(x, kernel) + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer: its arguments, parameters and initial values.

    Args:
        einsum_str: the equation.
        kernel_shape: of the kernel.
        bias_shape: the axes that z shares with the kernel, in z's order; None: no bias.
        gate: (required) as in `Linear`.
        rule: see `jaxnorm.Rule`.
        axis_name: as in `Linear`.
        rngs: as Flax's.
        **kwargs: every other argument of `flax.nnx.Einsum`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_einsum`; integer inputs are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Einsum(
        ...     "btd,dhk->bthk", (8, 4, 16), (4, 16), gate="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 5, 8))).shape
        (2, 5, 4, 16)
    """

    def __init__(
        self,
        einsum_str: str,
        kernel_shape: Sequence[int],
        bias_shape: Sequence[int] | None = None,
        *,
        gate: Gate,
        rule: Rule = Rule(),
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
        **kwargs,
    ) -> None:
        _check(gate, rule)
        super().__init__(einsum_str, kernel_shape, bias_shape, rngs=rngs, **kwargs)
        self.gate, self.rule, self.axis_name = gate, rule, axis_name

    def __call__(self, inputs: jax.Array, einsum_str: str | None = None, out_sharding=None) -> Any:
        """Apply the layer; an equation given here takes precedence."""
        checks.check_floating("x", inputs)
        inputs, kernel, bias = _promoted(self, inputs)
        kwargs = _kwargs(self, out_sharding)
        out = neuronwise_einsum(
            einsum_str or self.einsum_str,
            inputs,
            kernel,
            bias,
            einsum_op=self.einsum_op,
            precision=self.precision,
            **kwargs,
            **_rule_of(self),
        )
        return handed_over(self, out)


class Conv(nnx.Conv):
    """`flax.nnx.Conv` with the neuron-wise rule; see `jaxnorm.neuronwise_conv`.

    Forward (exact):      z = conv(x, kernel) + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer: its arguments, parameters and initial values.

    Args:
        in_features: C.
        out_features: O.
        kernel_size: the window.
        strides: as Flax's.
        gate: (required) as in `Linear`.
        rule: see `jaxnorm.Rule`.
        axis_name: as in `Linear`.
        rngs: as Flax's.
        **kwargs: every other argument of `flax.nnx.Conv`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_conv`; integer inputs are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Conv(3, 16, (3, 3), strides=2, gate="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 8, 8, 3))).shape
        (2, 4, 4, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        gate: Gate,
        rule: Rule = Rule(),
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
        **kwargs,
    ) -> None:
        _check(gate, rule)
        super().__init__(in_features, out_features, kernel_size, strides, rngs=rngs, **kwargs)
        self.gate, self.rule, self.axis_name = gate, rule, axis_name

    def __call__(self, inputs: jax.Array, out_sharding=None) -> Any:
        """Apply the layer to inputs [..., *space, C]; returns z [..., *space', O]."""
        checks.check_floating("x", inputs)
        inputs, kernel, bias = _promoted(self, inputs)
        rank = len(self.kernel_size)
        kwargs = _kwargs(self, out_sharding)
        out = neuronwise_conv(
            inputs,
            kernel,
            bias,
            strides=broadcast("strides", self.strides, rank),
            padding=self.padding,
            input_dilation=broadcast("input_dilation", self.input_dilation, rank),
            kernel_dilation=broadcast("kernel_dilation", self.kernel_dilation, rank),
            feature_group_count=self.feature_group_count,
            mask=self.mask,
            conv_general_dilated=self.conv_general_dilated,
            precision=self.precision,
            **kwargs,
            **_rule_of(self),
        )
        return handed_over(self, out)


class ConvTranspose(nnx.ConvTranspose):
    """`flax.nnx.ConvTranspose` with the neuron-wise rule; see `jaxnorm.neuronwise_conv_transpose`.

    Forward (exact):      z = conv_transpose(x, kernel) + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer: its arguments, parameters and initial values.

    Args:
        in_features: C.
        out_features: O.
        kernel_size: the window.
        strides: as Flax's.
        gate: (required) as in `Linear`.
        rule: see `jaxnorm.Rule`.
        axis_name: as in `Linear`.
        rngs: as Flax's.
        **kwargs: every other argument of `flax.nnx.ConvTranspose`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_conv_transpose`; integer inputs are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.ConvTranspose(
        ...     3, 16, (3, 3), strides=2, gate="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 4, 4, 3))).shape
        (2, 8, 8, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        *,
        gate: Gate,
        rule: Rule = Rule(),
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
        **kwargs,
    ) -> None:
        _check(gate, rule)
        super().__init__(in_features, out_features, kernel_size, strides, rngs=rngs, **kwargs)
        self.gate, self.rule, self.axis_name = gate, rule, axis_name

    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to inputs [..., *space, C]; returns z [..., *space', O]."""
        checks.check_floating("x", inputs)
        inputs, kernel, bias = _promoted(self, inputs)
        out = neuronwise_conv_transpose(
            inputs,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            transpose_kernel=self.transpose_kernel,
            mask=self.mask,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            **_rule_of(self),
        )
        return handed_over(self, out)


def _check(gate, rule) -> None:
    resolve_gate(gate)
    checks.check_rule(rule)


def _promoted(layer, inputs) -> Any:
    """(inputs, kernel, bias) in the layer's dtype."""
    bias = None if layer.bias is None else layer.bias[...]
    return layer.promote_dtype((inputs, layer.kernel[...], bias), dtype=layer.dtype)


def _kwargs(layer, out_sharding) -> dict[str, Any]:
    """What Flax hands to its product, and only what was asked for, as Flax does."""
    kwargs = {"out_sharding": out_sharding}
    if layer.preferred_element_type is not None:
        kwargs["preferred_element_type"] = layer.preferred_element_type
    return kwargs


def _rule_of(layer) -> dict[str, Any]:
    statistics = functools.partial(statistics_of, layer)
    return {
        "gate": gate_of(layer),
        "rule": layer.rule,
        "axis_name": layer.axis_name,
        "statistics": statistics,
    }
