"""A small residual network."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

import jaxnorm
from experiments.networks.convnet import patch_convolution, unit_patch_convolution
from experiments.networks.layers import linear


class ResNet(nn.Module):
    """A convolution, residual blocks of two, the mean over the image, a dense layer.

    As He et al. (2015): what is added goes through the activation. A block that has other channels
    than the one before halves the image, and adds a product with what it leaves out none of. All
    layers have the same names under every rule and normalizer; a rule is told what a layer's
    activation finally sees, behind the normalizer and the sum.

    Attributes:
        channels: of the blocks, the first of the first convolution too.
        outputs: width of the last layer.
        rule: of all linear layers; None for Flax's.
        normalizer: makes the layer behind each convolution from (train); None for none.
        activation: its name in `jax.nn`.
        image: (side, channels) of the inputs.
        after: whether the normalizer stands behind the activation.
        wrapper: see `linear`.
    """

    channels: tuple[int, ...]
    outputs: int
    rule: jaxnorm.Rule | None
    normalizer: Callable[..., nn.Module] | None = None
    activation: str = "relu"
    image: tuple[int, int] = (16, 3)
    after: bool = False
    wrapper: Callable[[nn.Module], nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map inputs [N, I] to outputs [N, O]; `train` is for BatchNorm."""
        side, colors = self.image
        x = x.reshape(-1, side, side, colors)
        x = self._activated(train, self._convolution(x, self.channels[0], stride=2))
        for width in self.channels:
            stride = 1 if width == x.shape[-1] else 2
            hidden = self._activated(train, self._convolution(x, width, stride))
            branch = self._convolution(hidden, width, stride=1)
            if stride == 1:
                x = self._activated(train, branch, plus=x)
            else:
                x = self._activated(train, branch, self._layer(width)(x[:, ::2, ::2]))
        return linear(self.rule, self.outputs, gate=None, wrapper=self.wrapper)(x.mean((1, 2)))

    def _layer(self, width: int, **options: Any) -> Any:
        """A layer whose activation is told later."""
        gate = jaxnorm.DEFERRED
        return linear(self.rule, width, gate=gate, wrapper=self.wrapper, **options)

    def _convolution(self, x: jax.Array, width: int, stride: int) -> Any:
        quick = patch_convolution if stride == 2 else unit_patch_convolution
        options = {"strides": stride, "conv_general_dilated": quick}
        return self._layer(width, window=(3, 3), **options)(x)

    def _activated(self, train: bool, *sums: Any, plus: Any = 0) -> jax.Array:
        """The sum of layers' outputs, each behind a normalizer, through the activation."""
        normalized = lambda z: z if self.normalizer is None else self.normalizer(train)(z)  # noqa: E731
        handles = [] if self.rule is None else [handle for _, handle in sums]
        outputs = sums if self.rule is None else [z for z, _ in sums]
        z = plus + sum(outputs if self.after else map(normalized, outputs))
        for handle in handles:
            z = jaxnorm.tell_gate(z, handle, gate=self.activation)
        z = getattr(jax.nn, self.activation)(z)
        return normalized(z) if self.after else z
