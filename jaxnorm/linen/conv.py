"""`Conv` and `ConvTranspose` of linen, with the rule in their backward pass."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxnorm import checks
from jaxnorm.functional import neuronwise_conv, neuronwise_conv_transpose
from jaxnorm.linen.base import Neuronwise, product_of


class Conv(Neuronwise, nn.Conv):
    """`flax.linen.Conv` with the neuron-wise rule. As `Dense`, for [..., *space, C].

    Forward (exact):      z [..., *space', O] = conv(x, kernel) + bias, Flax's to the last bit
    Backward (modified):  a sample is an image and a position, and `statistics_rows` counts whole
                          images; see `jaxnorm.neuronwise_conv`

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Conv(16, (3, 3), strides=2, gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
        (2, 4, 4, 16)
    """

    @staticmethod
    def shapes(layer: Any, inputs: Any) -> tuple[Any, Any]:
        """[*window, C / groups, O] and [O]."""
        window = _window(layer)
        checks.check_space(jnp.shape(inputs), len(window))
        channels, groups = jnp.shape(inputs)[-1], layer.feature_group_count
        checks.check_groups(groups, channels, layer.features)
        return (*window, channels // groups, layer.features), (layer.features,)

    @staticmethod
    def forward(layer: Any, inputs: Any, kernel: Any, bias: Any, **settings: Any) -> Any:
        """Flax's convolution."""
        inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
        return neuronwise_conv(
            inputs,
            kernel,
            bias,
            strides=layer.strides,
            padding=layer.padding,
            input_dilation=layer.input_dilation,
            kernel_dilation=layer.kernel_dilation,
            feature_group_count=layer.feature_group_count,
            mask=layer.mask,
            conv_general_dilated=product_of(
                layer, "conv_general_dilated", lax.conv_general_dilated
            ),
            precision=layer.precision,
            **settings,
        )


class ConvTranspose(Neuronwise, nn.ConvTranspose):
    """`flax.linen.ConvTranspose` with the neuron-wise rule. As `Conv`, the other way round.

    Forward (exact):      z [..., *space', O] = conv_transpose(x, kernel) + bias, Flax's
    Backward (modified):  see `jaxnorm.neuronwise_conv_transpose`

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.ConvTranspose(16, (3, 3), strides=(2, 2), gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 3)))[0].shape
        (2, 8, 8, 16)
    """

    @staticmethod
    def shapes(layer: Any, inputs: Any) -> tuple[Any, Any]:
        """[*window, C, O], with `transpose_kernel` [*window, O, C], and [O]."""
        window = _window(layer)
        checks.check_space(jnp.shape(inputs), len(window))
        ends = (jnp.shape(inputs)[-1], layer.features)
        return (*window, *(reversed(ends) if layer.transpose_kernel else ends)), (layer.features,)

    @staticmethod
    def forward(layer: Any, inputs: Any, kernel: Any, bias: Any, **settings: Any) -> Any:
        """Flax's transposed convolution."""
        inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
        return neuronwise_conv_transpose(
            inputs,
            kernel,
            bias,
            strides=layer.strides,
            padding=layer.padding,
            kernel_dilation=layer.kernel_dilation,
            transpose_kernel=layer.transpose_kernel,
            mask=layer.mask,
            precision=layer.precision,
            preferred_element_type=layer.preferred_element_type,
            **settings,
        )


def _window(layer: Any) -> tuple[int, ...]:
    size = layer.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)
