"""`Conv` and `ConvTranspose` of nnx, with the rule in their backward pass."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.functional import neuronwise_conv, neuronwise_conv_transpose
from jaxnorm.nnx.base import Neuronwise, with_rule


class Conv(Neuronwise, nnx.Conv):
    """`flax.nnx.Conv` with the neuron-wise rule. As `Linear`, for [..., *space, C].

    Forward (exact):      z [..., *space', O] = conv(x, kernel) + bias, Flax's to the last bit
    Backward (modified):  a sample is an image and a position, and `statistics_rows` counts whole
                          images; see `jaxnorm.neuronwise_conv`

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Conv(3, 16, (3, 3), strides=2, gate="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 8, 8, 3))).shape
        (2, 4, 4, 16)
    """

    __init__ = with_rule(nnx.Conv.__init__)

    def forward(self, inputs: Any, kernel: Any, bias: Any, product: Any, **settings: Any) -> Any:
        """Flax's convolution."""
        return neuronwise_conv(
            inputs,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            mask=self.mask,
            conv_general_dilated=self.conv_general_dilated,
            **product,
            **settings,
        )


class ConvTranspose(Neuronwise, nnx.ConvTranspose):
    """`flax.nnx.ConvTranspose` with the neuron-wise rule. As `Conv`, the other way round.

    Forward (exact):      z [..., *space', O] = conv_transpose(x, kernel) + bias, Flax's
    Backward (modified):  see `jaxnorm.neuronwise_conv_transpose`

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.ConvTranspose(
        ...     3, 16, (3, 3), strides=2, gate="relu", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 4, 4, 3))).shape
        (2, 8, 8, 16)
    """

    __init__ = with_rule(nnx.ConvTranspose.__init__)

    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to inputs [..., *space, C]; returns z [..., *space', O]."""
        return self.apply_rule(inputs)

    def forward(self, inputs: Any, kernel: Any, bias: Any, product: Any, **settings: Any) -> Any:
        """Flax's transposed convolution."""
        return neuronwise_conv_transpose(
            inputs,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            transpose_kernel=self.transpose_kernel,
            mask=self.mask,
            **product,
            **settings,
        )
