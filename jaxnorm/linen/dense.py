"""Flax linen layers: Flax's, with the rule in their backward pass."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxnorm import checks
from jaxnorm.activations import Gate
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.functional.functions import (
    neuronwise_conv,
    neuronwise_conv_transpose,
    neuronwise_einsum,
)
from jaxnorm.linen.intercept import Kind
from jaxnorm.linen.neuron_stats import statistics_of
from jaxnorm.operations.convolution import broadcast
from jaxnorm.operations.einsum import dense_general, parse
from jaxnorm.operations.linear import dense
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


class Dense(nn.Dense):
    """`flax.linen.Dense` with the neuron-wise rule; see `jaxnorm.neuronwise_dense`.

    Forward (exact):      z = x kernel + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer with its name, its parameters (``kernel`` [I, O], ``bias`` [O]),
    its initial values and every one of its arguments: checkpoints move both ways. `init` makes the
    Flax's variables and no more; the statistics are a collection of their own, ``neuron_stats``,
    that `init_statistics` makes. Without it the layer trains as Flax's.

    Attributes:
        gate: (required, keyword) the activation that follows the layer: a name of `jax.nn`, an
            elementwise callable, or None if none follows. It is not applied. With
            `jaxnorm.DEFERRED` the layer returns (z, handle), see `jaxnorm.tell_gate`.
        rule: (keyword) see `jaxnorm.Rule`.
        axis_name: (keyword) mapped axes over which the batch is spread, for
            ``gradient="preconditioned"`` or "standardized"; recorded statistics are summed where
            the gradients are. Not needed under `jax.jit`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense`; integer inputs are refused.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> class MLP(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         x = nn.relu(jaxnorm.linen.Dense(16, gate="relu")(x))
        ...         return jaxnorm.linen.Dense(3, gate=None)(x)
        >>> variables = MLP().init(jax.random.key(0), jnp.ones((2, 5)))
        >>> jax.tree.map(jnp.shape, variables["params"]["Dense_0"])
        {'bias': (16,), 'kernel': (5, 16)}
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to the last axis of inputs [..., I]; returns z [..., O]."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_dense_shapes(self, inputs))
        return _dense(self, inputs, *parameters, **_rule_of(self))


class DenseGeneral(nn.DenseGeneral):
    """`flax.linen.DenseGeneral` with the neuron-wise rule; see `jaxnorm.neuronwise_einsum`.

    Forward (exact):      z = x kernel + bias over any axes, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule,
                          with groups along `batch_dims`

    A subclass of Flax's layer: its name, arguments, parameters and initial values.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_einsum`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> heads = jaxnorm.linen.DenseGeneral((4, 16), gate=None)
        >>> variables = heads.init(jax.random.key(0), jnp.ones((2, 5, 8)))
        >>> heads.apply(variables, jnp.ones((2, 5, 8))).shape
        (2, 5, 4, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to the axes `axis` of inputs; returns z [batch..., samples..., O...]."""
        checks.check_floating("x", inputs)
        kernel_shape, bias_shape = _dense_general_shapes(self, inputs)
        split = len(kernel_shape) - len(_general_axes(self, inputs)[0])

        def kernel_init(key, shape, dtype):
            flat = (math.prod(shape[:split]), math.prod(shape[split:]))
            return _reshaped(self.kernel_init(key, flat, dtype), shape)

        def bias_init(key, shape, dtype):
            return _reshaped(self.bias_init(key, (math.prod(shape),), dtype), shape)

        parameters = _parameters(
            self, kernel_shape, bias_shape, kernel_init=kernel_init, bias_init=bias_init
        )
        return _dense_general(self, inputs, *parameters, **_rule_of(self))


class Einsum(nn.Einsum):
    """`flax.linen.Einsum` with the neuron-wise rule; see `jaxnorm.neuronwise_einsum`.

    Forward (exact):      z = einsum(x, kernel) + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer: its name, arguments, parameters and initial values.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_einsum`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Einsum((8, 4, 16), "btd,dhk->bthk", gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 8)))[0].shape
        (2, 5, 4, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array, einsum_str: str | None = None) -> Any:
        """Apply the layer; `einsum_str` here or in the constructor."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_einsum_shapes(self, inputs, einsum_str))
        return _einsum(self, inputs, *parameters, einsum_str=einsum_str, **_rule_of(self))


class Conv(nn.Conv):
    """`flax.linen.Conv` with the neuron-wise rule; see `jaxnorm.neuronwise_conv`.

    Forward (exact):      z = conv(x, kernel) + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule,
                          a sample being an image and a position

    A subclass of Flax's layer: its name, arguments, parameters and initial values.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`; `statistics_rows` counts whole images.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_conv`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Conv(16, (3, 3), strides=2, gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
        (2, 4, 4, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to inputs [..., *space, C]; returns z [..., *space', O]."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_conv_shapes(self, inputs))
        return _conv(self, inputs, *parameters, **_rule_of(self))


class ConvTranspose(nn.ConvTranspose):
    """`flax.linen.ConvTranspose` with the rule; see `jaxnorm.neuronwise_conv_transpose`.

    Forward (exact):      z = conv_transpose(x, kernel) + bias, Flax's to the last bit
    Backward (default):   Flax's, with the statistics recorded for `in_neuron_coordinates`
    Backward (modified):  with ``gradient="preconditioned"``: g_x true; g_W and g_b by the rule

    A subclass of Flax's layer: its name, arguments, parameters and initial values.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`; `statistics_rows` counts whole images.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_conv_transpose`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.ConvTranspose(16, (3, 3), strides=(2, 2), gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 3)))[0].shape
        (2, 8, 8, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to inputs [..., *space, C]; returns z [..., *space', O]."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_conv_transpose_shapes(self, inputs))
        return _conv_transpose(self, inputs, *parameters, **_rule_of(self))


def _dense(layer, inputs, kernel, bias, **how) -> Any:
    """The forward pass of a linen Dense on given parameters, ours or Flax's."""
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    operation = dense(_product(layer, "dot_general", lax.dot_general), precision=layer.precision)
    return linear_operation(operation, inputs, kernel, bias, **how)


def _dense_general(layer, inputs, kernel, bias, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    features, axis, batch_dims = _general_axes(layer, inputs)
    product = _product(layer, "dot_general", lax.dot_general)
    equation, op = dense_general(inputs.ndim, axis, batch_dims, len(features), product)
    return neuronwise_einsum(
        equation, inputs, kernel, bias, einsum_op=op, precision=layer.precision, **how
    )


def _einsum(layer, inputs, kernel, bias, einsum_str=None, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    return neuronwise_einsum(
        nn.merge_param("einsum_str", layer.einsum_str, einsum_str),
        inputs,
        kernel,
        bias,
        precision=layer.precision,
        preferred_element_type=layer.preferred_element_type,
        **how,
    )


def _conv(layer, inputs, kernel, bias, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    return neuronwise_conv(
        inputs,
        kernel,
        bias,
        strides=_per_axis(layer, "strides"),
        padding=layer.padding,
        input_dilation=_per_axis(layer, "input_dilation"),
        kernel_dilation=_per_axis(layer, "kernel_dilation"),
        feature_group_count=layer.feature_group_count,
        mask=layer.mask,
        conv_general_dilated=_product(layer, "conv_general_dilated", lax.conv_general_dilated),
        precision=layer.precision,
        **how,
    )


def _conv_transpose(layer, inputs, kernel, bias, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    return neuronwise_conv_transpose(
        inputs,
        kernel,
        bias,
        strides=_per_axis(layer, "strides"),
        padding=layer.padding,
        kernel_dilation=_per_axis(layer, "kernel_dilation"),
        transpose_kernel=layer.transpose_kernel,
        mask=layer.mask,
        precision=layer.precision,
        preferred_element_type=layer.preferred_element_type,
        **how,
    )


def _dense_shapes(layer, inputs) -> tuple[Any, Any]:
    """(kernel's shape, bias's shape) that Flax expects for these inputs."""
    features = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 1
    checks.check_inputs(jnp.shape(inputs), features)
    return (features, layer.features), (layer.features,)


def _dense_general_shapes(layer, inputs) -> tuple[Any, Any]:
    features, axis, batch_dims = _general_axes(layer, inputs)
    batch = tuple(inputs.shape[a] for a in batch_dims)
    return (*batch, *(inputs.shape[a] for a in axis), *features), (*batch, *features)


def _einsum_shapes(layer, inputs, einsum_str=None) -> tuple[Any, Any]:
    equation = nn.merge_param("einsum_str", layer.einsum_str, einsum_str)
    axes = parse(equation, jnp.shape(inputs), tuple(layer.shape))
    return layer.shape, [axes.size[a] for a in axes.z if a in axes.kernel]


def _conv_shapes(layer, inputs) -> tuple[Any, Any]:
    window = _window(layer)
    checks.check_space(jnp.shape(inputs), len(window))
    channels, groups = jnp.shape(inputs)[-1], layer.feature_group_count
    checks.check_groups(groups, channels, layer.features)
    return (*window, channels // groups, layer.features), (layer.features,)


def _conv_transpose_shapes(layer, inputs) -> tuple[Any, Any]:
    window = _window(layer)
    checks.check_space(jnp.shape(inputs), len(window))
    ends = (jnp.shape(inputs)[-1], layer.features)
    return (*window, *(reversed(ends) if layer.transpose_kernel else ends)), (layer.features,)


def _parameters(layer, kernel_shape, bias_shape, kernel_init=None, bias_init=None) -> Any:
    """(kernel, bias) as Flax creates and checks them."""
    kernel_init, bias_init = kernel_init or layer.kernel_init, bias_init or layer.bias_init
    kernel = layer.param("kernel", kernel_init, kernel_shape, layer.param_dtype)
    if not layer.use_bias:
        return kernel, None
    return kernel, layer.param("bias", bias_init, bias_shape, layer.param_dtype)


def _rule_of(layer) -> dict[str, Any]:
    axis_name = None if layer.is_initializing() else layer.axis_name
    statistics = functools.partial(statistics_of, layer)
    return {
        "gate": layer.gate,
        "rule": layer.rule,
        "axis_name": axis_name,
        "statistics": statistics,
    }


def _product(layer, name: str, default: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Flax's injectable product, which must be a function."""
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


def _general_axes(layer, inputs) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(features, axis, batch_dims) of a DenseGeneral, none negative, the axes in order."""

    def several(value):
        return (value,) if isinstance(value, int) else tuple(value)

    # Sorted, as Flax does: the kernel's axes follow those of the inputs.
    axis, batch_dims = (
        tuple(sorted(a % inputs.ndim for a in several(axes)))
        for axes in (layer.axis, layer.batch_dims)
    )
    if batch_dims and set(batch_dims) != set(range(max(batch_dims) + 1)):
        raise ValueError(
            f"batch_dims: got {batch_dims}, expected consecutive leading axes from 0 on"
        )
    return several(layer.features), axis, batch_dims


def _reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """Reshape an initial value, boxed or not."""
    if isinstance(array, nn.meta.AxisMetadata):
        return nn.meta.replace_boxed(array, jnp.reshape(array.unbox(), shape))
    return jnp.reshape(array, shape)


def _window(layer) -> tuple[int, ...]:
    size = layer.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _per_axis(layer, name: str) -> tuple[int, ...]:
    return broadcast(name, getattr(layer, name), len(_window(layer)))


#: How to run each layer of Flax on its own parameters.
KINDS = {
    nn.Dense: Kind(_dense_shapes, _dense),
    nn.DenseGeneral: Kind(_dense_general_shapes, _dense_general),
    nn.Einsum: Kind(_einsum_shapes, _einsum),
    nn.Conv: Kind(_conv_shapes, _conv),
    nn.ConvTranspose: Kind(_conv_transpose_shapes, _conv_transpose),
}
