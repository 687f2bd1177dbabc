"""The network of the studies, with a convolution that is quick under `jax.vmap`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxnorm
from experiments.networks.layers import activated, linear

SIDE = 28
"""Of the images that convolutions take."""


class ConvNet(nn.Module):
    """Convolutions (3x3, stride 2), dense layers and activations; all linear layers under one rule.

    Layers have the same names under every rule and normalizer, so that linen draws the same initial
    weights for all of them from one key.

    Attributes:
        channels: of the convolutions.
        widths: of the hidden dense layers.
        outputs: width of the last layer, which nothing follows.
        rule: of all layers; None for Flax's.
        normalizer: makes the layer between a hidden layer and its activation from (train).
        activation: its name in `jax.nn`.
        image: (side, channels) of the images that convolutions take.
        halved: whether they take means of 2x2 pixels: a quarter of the work.
        after: whether the normalizer stands behind the activation.
        wrapper: see `linear`.
    """

    channels: tuple[int, ...]
    widths: tuple[int, ...]
    outputs: int
    rule: jaxnorm.Rule | None
    normalizer: Callable[..., nn.Module] | None = None
    activation: str = "relu"
    image: tuple[int, int] = (SIDE, 1)
    halved: bool = True
    after: bool = False
    wrapper: Callable[[nn.Module], nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map inputs [N, I] to outputs [N, O]; `train` is for BatchNorm."""

        def after(z: jax.Array) -> jax.Array:
            return activated(z, self.activation, self.normalizer, train, after=self.after)

        def layer(width: int, gate: str | None, **options: Any) -> Any:
            return linear(self.rule, width, gate=gate, wrapper=self.wrapper, **options)

        if self.channels:
            side, channels = self.image
            x = x.reshape(-1, side, side, channels)
            if self.halved:
                x = x.reshape(-1, side // 2, 2, side // 2, 2, channels).mean((2, 4))
        quick = {"strides": 2, "conv_general_dilated": patch_convolution}
        for width in self.channels:
            x = after(layer(width, self.activation, window=(3, 3), **quick)(x))
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = after(layer(width, self.activation)(x))
        return layer(self.outputs, None)(x)


def patch_convolution(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated` for 3x3 kernels with stride 2 and zero padding "SAME".

    As one product with all patches: under `jax.vmap` over kernels XLA's own convolution is many
    times slower on a CPU.
    """
    del args, kwargs  # the stride and padding that `ConvNet` asks for
    # "SAME": a row of zeros after the last one, and before the first one if the side is odd.
    before = tuple(side % 2 for side in x.shape[1:3])
    return _patches(x, kernel, before, stride=2)


def unit_patch_convolution(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """The same with stride 1."""
    del args, kwargs
    return _patches(x, kernel, (1, 1), stride=1)


def _patches(x: jax.Array, kernel: jax.Array, before: tuple[int, ...], stride: int) -> jax.Array:
    """With so many rows and columns of zeros before the first ones, and one after the last."""
    height, width, _, _ = kernel.shape
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), *((zeros, 1) for zeros in before), (0, 0)))
    taps = [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
