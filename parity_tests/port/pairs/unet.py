"""A U-Net: linen beside PyTorch; skip connections, transposed convolutions, GroupNorm, pooling."""

from collections.abc import Sequence
from typing import Any

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class FlaxLevel(fnn.Module):
    """Two convolutions, each normalized in groups and passed through SiLU."""

    features: int
    groups: int
    kernel: int
    eps: float

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] to [N, H, W, features]."""
        for number in (1, 2):
            x = fnn.Conv(self.features, (self.kernel,) * 2, name=f"conv{number}")(x)
            x = fnn.GroupNorm(self.groups, epsilon=self.eps, name=f"norm{number}")(x)
            x = jax.nn.silu(x)
        return x


class FlaxUNet(fnn.Module):
    """Images [N, H, W, C] to images of as many channels."""

    channels: int
    widths: Sequence[int]
    groups: int
    kernel: int
    eps: float

    @fnn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] to the same."""
        skips = []
        for level, width in enumerate(self.widths[:-1]):
            x = FlaxLevel(width, self.groups, self.kernel, self.eps, name=f"down_{level}")(x)
            skips.append(x)
            x = fnn.avg_pool(x, (2, 2), strides=(2, 2))
        x = FlaxLevel(self.widths[-1], self.groups, self.kernel, self.eps, name="middle")(x)
        for level in reversed(range(len(self.widths) - 1)):
            width = self.widths[level]
            x = fnn.ConvTranspose(width, (2, 2), strides=(2, 2), name=f"up_{level}")(x)
            x = jnp.concatenate([skips[level], x], axis=-1)
            x = FlaxLevel(width, self.groups, self.kernel, self.eps, name=f"join_{level}")(x)
        return fnn.Conv(self.channels, (1, 1), name="out")(x)


class TorchLevel(nn.Sequential):
    """As `FlaxLevel`."""

    def __init__(self, inputs: int, features: int, groups: int, kernel: int, eps: float) -> None:
        super().__init__(
            nn.Conv2d(inputs, features, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, features, eps=eps),
            nn.SiLU(),
            nn.Conv2d(features, features, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, features, eps=eps),
            nn.SiLU(),
        )


class TorchUNet(nn.Module):
    """Images [N, C, H, W] to images of as many channels."""

    def __init__(
        self, *, channels: int, widths: Sequence[int], groups: int, kernel: int, eps: float
    ) -> None:
        super().__init__()
        *outer, middle = widths
        before = [channels, *outer]
        self.down = nn.ModuleList(
            TorchLevel(a, b, groups, kernel, eps) for a, b in zip(before, outer, strict=False)
        )
        self.middle = TorchLevel(before[-1], middle, groups, kernel, eps)
        below = [*outer[1:], middle]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, 2) for a, b in zip(below, outer, strict=True)
        )
        self.join = nn.ModuleList(TorchLevel(2 * b, b, groups, kernel, eps) for b in outer)
        self.out = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to the same."""
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for up, join, skip in reversed(list(zip(self.up, self.join, skips, strict=True))):
            x = join(torch.cat([skip, up(x)], dim=1))
        return self.out(x)


CONFIGURATION = {
    "channels": 2,
    "size": 8,
    "batch": 2,
    "widths": (4, 6, 8),
    "groups": 2,
    "kernel": 3,
    "eps": 1e-5,
}


def flax_model(*, size: int, batch: int, **knobs: Any) -> FlaxUNet:
    """The network in linen."""
    return FlaxUNet(**knobs)


def torch_model(*, size: int, batch: int, **knobs: Any) -> TorchUNet:
    """The same in PyTorch."""
    return TorchUNet(**knobs)


def inputs(seed: int, *, channels: int, size: int, batch: int, **_: Any) -> np.ndarray:
    """Images [N, C, H, W]."""
    return np.random.default_rng(seed).normal(size=(batch, channels, size, size))


def random_configuration(rng: np.random.Generator) -> dict[str, Any]:
    """Other knobs, as small."""
    levels, groups = int(rng.integers(2, 4)), int(rng.choice([1, 2]))
    return {
        "channels": int(rng.integers(1, 4)),
        "size": 4 * int(rng.integers(1, 3)),
        "batch": int(rng.integers(1, 3)),
        "widths": tuple(groups * int(w) for w in rng.integers(2, 5, size=levels)),
        "groups": groups,
        "kernel": int(rng.choice([1, 3])),
        "eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
    }
