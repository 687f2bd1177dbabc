"""A residual network: linen beside PyTorch; BatchNorm, stride 2, projections."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

JAX_ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu, "tanh": jnp.tanh}
TORCH_ACTIVATIONS = {"relu": torch.relu, "silu": F.silu, "tanh": torch.tanh}


class FlaxBlock(fnn.Module):
    """Two convolutions and what they are added to."""

    features: int
    stride: int
    kernel: int
    norm: str
    eps: float
    momentum: float
    activation: str

    def normalize(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        """The normalization of this network under a name."""
        if self.norm != "group":
            layer = fnn.BatchNorm(
                use_running_average=not train,
                momentum=1 - self.momentum,
                epsilon=self.eps,
                name=name,
            )
        else:
            layer = fnn.GroupNorm(num_groups=2, epsilon=self.eps, name=name)
        return layer(x)

    @fnn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[N, H, W, C] to the same with other H, W, C."""
        act, around = JAX_ACTIVATIONS[self.activation], self.kernel // 2
        conv = partial(fnn.Conv, self.features, (self.kernel,) * 2, padding=[(around, around)] * 2)
        y = conv(strides=self.stride, use_bias=False, name="conv1")(x)
        y = act(self.normalize(y, "norm1", train=train))
        y = conv(use_bias=False, name="conv2")(y)
        y = self.normalize(y, "norm2", train=train)
        if x.shape != y.shape:
            x = fnn.Conv(
                self.features, (1, 1), strides=self.stride, use_bias=False, name="projection"
            )(x)
            x = self.normalize(x, "norm_projection", train=train)
        return act(x + y)


class FlaxResNet(fnn.Module):
    """Images [N, H, W, C] to logits."""

    widths: Sequence[int]
    depth: int
    classes: int
    stride: int
    kernel: int
    norm: str
    eps: float
    momentum: float
    activation: str

    @fnn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The logits [N, classes]."""
        act, around = JAX_ACTIVATIONS[self.activation], self.kernel // 2
        x = fnn.Conv(
            self.widths[0], (self.kernel,) * 2, padding=[(around, around)] * 2, name="stem"
        )(x)
        x = act(x)
        for stage, width in enumerate(self.widths):
            for block in range(self.depth):
                x = FlaxBlock(
                    width,
                    self.stride if stage and not block else 1,
                    self.kernel,
                    self.norm,
                    self.eps,
                    self.momentum,
                    self.activation,
                    name=f"stage{stage}_block{block}",
                )(x, train)
        x = jnp.mean(x, axis=(1, 2))
        return fnn.Dense(self.classes, name="head")(x)


class BiasedBatchNorm2d(nn.BatchNorm2d):
    """torch's, with the running variance that Flax keeps: over N, not N - 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The moving statistics are updated in training, and read in evaluation."""
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            for moving, new in ((self.running_mean, mean), (self.running_var, variance)):
                assert moving is not None
                assert self.momentum is not None
                moving.lerp_(new, self.momentum)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class TorchBlock(nn.Module):
    """As `FlaxBlock`."""

    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        kernel: int,
        norm: str,
        eps: float,
        momentum: float,
        activation: str,
    ) -> None:
        super().__init__()

        def normalization() -> nn.Module:
            if norm == "batch":
                return nn.BatchNorm2d(features, eps=eps, momentum=momentum)
            if norm == "biased batch":
                return BiasedBatchNorm2d(features, eps=eps, momentum=momentum)
            return nn.GroupNorm(2, features, eps=eps)

        around = kernel // 2
        self.conv1 = nn.Conv2d(inputs, features, kernel, stride, around, bias=False)
        self.norm1 = normalization()
        self.conv2 = nn.Conv2d(features, features, kernel, 1, around, bias=False)
        self.norm2 = normalization()
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, features, 1, stride, bias=False), normalization())
            if inputs != features or stride != 1
            else nn.Identity()
        )
        self.activation = TORCH_ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to the same with other C, H, W."""
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.activation(self.shortcut(x) + y)


class TorchResNet(nn.Module):
    """Images [N, C, H, W] to logits."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        depth: int,
        classes: int,
        stride: int,
        kernel: int,
        norm: str,
        eps: float,
        momentum: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], kernel, 1, kernel // 2)
        self.activation = TORCH_ACTIVATIONS[activation]
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(depth):
                step = stride if stage and not block else 1
                blocks.append(
                    TorchBlock(before, width, step, kernel, norm, eps, momentum, activation)
                )
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits [N, classes]."""
        x = self.blocks(self.activation(self.stem(x)))
        return self.fc(x.mean((2, 3)))


CONFIGURATION = {
    "channels": 3,
    "size": 8,
    "batch": 3,
    "widths": (4, 6),
    "depth": 1,
    "classes": 5,
    "stride": 2,
    "kernel": 3,
    "norm": "batch",
    "eps": 1e-5,
    "momentum": 0.1,
    "activation": "relu",
}


def flax_model(*, channels: int, size: int, batch: int, **knobs: Any) -> FlaxResNet:
    """The network in linen."""
    return FlaxResNet(**knobs)


def torch_model(*, size: int, batch: int, **knobs: Any) -> TorchResNet:
    """The same in PyTorch."""
    return TorchResNet(**knobs)


def inputs(seed: int, *, channels: int, size: int, batch: int, **_: Any) -> np.ndarray:
    """Images [N, C, H, W]."""
    rng = np.random.default_rng(seed)
    return 0.5 + rng.normal(size=(batch, channels, size, size))


def random_configuration(rng: np.random.Generator) -> dict[str, Any]:
    """Other knobs, as small."""
    return {
        "channels": int(rng.integers(1, 4)),
        "size": int(rng.choice([6, 7, 8])),
        "batch": int(rng.integers(2, 4)),
        "widths": tuple(2 * int(w) for w in rng.integers(1, 4, size=2)),
        "depth": int(rng.integers(1, 3)),
        "classes": int(rng.integers(2, 6)),
        "stride": int(rng.integers(1, 4)),
        "kernel": int(rng.choice([1, 3, 5])),
        "norm": str(rng.choice(["batch", "biased batch", "group"])),
        "eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "momentum": float(rng.choice([0.01, 0.1, 0.3])),
        "activation": str(rng.choice(sorted(JAX_ACTIVATIONS))),
    }
