"""A convolutional network of the old kind: nnx beside PyTorch; pooling with borders, a flatten."""

from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

#: Around the image where it is pooled; Flax's annotation has the named paddings alone.
BORDER: Any = ((1, 1), (1, 1))


class FlaxConvNet(nnx.Module):
    """Images [N, H, W, C] to log-probabilities."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        widths: tuple[int, int],
        hidden: int,
        classes: int,
        slope: float,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        first, second = widths
        self.slope = slope
        self.conv1 = nnx.Conv(channels, first, (3, 3), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), strides=2, padding=1, rngs=rngs)
        side = ((size + 1) // 2 + 1) // 2
        self.dense1 = nnx.Linear(side * side * second, hidden, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.dense2 = nnx.Linear(hidden, hidden, rngs=rngs)
        self.dense3 = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logarithms [N, classes] of the probabilities."""
        x = jax.nn.leaky_relu(self.conv1(x), self.slope)
        x = nnx.avg_pool(x, (3, 3), strides=(2, 2), padding=BORDER)
        x = jax.nn.leaky_relu(self.conv2(x), self.slope)
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.leaky_relu(self.dense1(x), self.slope)
        x = jax.nn.elu(self.dense2(self.dropout(x)))
        return jax.nn.log_softmax(self.dense3(x), axis=-1)


class TorchConvNet(nn.Module):
    """Images [N, C, H, W] to log-probabilities."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        widths: tuple[int, int],
        hidden: int,
        classes: int,
        slope: float,
        dropout: float,
    ) -> None:
        super().__init__()
        first, second = widths
        self.slope = slope
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        side = ((size + 1) // 2 + 1) // 2
        self.dense1 = nn.Linear(side * side * second, hidden)
        self.dropout = nn.Dropout(dropout)
        self.dense2 = nn.Linear(hidden, hidden)
        self.dense3 = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logarithms [N, classes] of the probabilities."""
        x = self.pool(F.leaky_relu(self.conv1(x), self.slope))
        x = F.leaky_relu(self.conv2(x), self.slope)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = F.leaky_relu(self.dense1(x), self.slope)
        x = F.elu(self.dense2(self.dropout(x)))
        return F.log_softmax(self.dense3(x), dim=-1)


CONFIGURATION = {
    "channels": 3,
    "size": 7,
    "batch": 2,
    "widths": (4, 4),
    "hidden": 6,
    "classes": 4,
    "slope": 0.01,
    "dropout": 0.2,
}


def flax_model(*, batch: int, **knobs: Any) -> FlaxConvNet:
    """The network in nnx."""
    return FlaxConvNet(**knobs, rngs=nnx.Rngs(0, dropout=1))


def torch_model(*, batch: int, **knobs: Any) -> TorchConvNet:
    """The same in PyTorch."""
    return TorchConvNet(**knobs)


def inputs(seed: int, *, channels: int, size: int, batch: int, **_: Any) -> np.ndarray:
    """Images [N, C, H, W]."""
    return np.random.default_rng(seed).normal(size=(batch, channels, size, size))


def random_configuration(rng: np.random.Generator) -> dict[str, Any]:
    """Other knobs, as small."""
    return {
        "channels": int(rng.integers(1, 4)),
        "size": int(rng.choice([5, 7, 9])),
        "batch": int(rng.integers(1, 4)),
        "widths": tuple(int(w) for w in rng.integers(2, 6, size=2)),
        "hidden": int(rng.integers(2, 7)),
        "classes": int(rng.integers(2, 6)),
        "slope": float(rng.choice([0.01, 0.1, 0.2])),
        "dropout": float(rng.choice([0.0, 0.2])),
    }
