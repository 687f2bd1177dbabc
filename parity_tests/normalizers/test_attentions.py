"""Attentive and Instance Enhancement norm against the same put together of PyTorch's layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import jaxnorm.normalizers as of_jax
import torchnorm.normalizers as of_torch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2, 3, 5)) * np.geomspace(0.5, 2, 5) + RNG.normal(size=5)


class _Published(nn.Module):
    """Attentive Normalization of BatchNorm2d, Conv2d and pooling."""

    def __init__(self, channels: int, mixtures: int, **to: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False, **to)
        self.conv = nn.Conv2d(channels, mixtures, 1, bias=False, **to)
        self.attention = nn.BatchNorm2d(mixtures, **to)
        self.scales = nn.Parameter(torch.randn(mixtures, channels, **to))
        self.biases = nn.Parameter(torch.randn(mixtures, channels, **to))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        pooled = pooled * (x.var((2, 3), keepdim=True) + 1e-3).rsqrt()
        weights = (F.relu6(self.attention(self.conv(pooled)) + 3) / 6).flatten(1)
        scale, bias = weights @ self.scales, weights @ self.biases
        return self.norm(x) * scale[..., None, None] + bias[..., None, None]


@pytest.mark.parametrize("package", ["jax", "torch"])
def test_attentive_norm_as_published(package: str) -> None:
    torch.manual_seed(0)
    published = _Published(5, 3, dtype=torch.float64)
    nn.init.normal_(published.attention.weight)
    x = torch.tensor(X).movedim(-1, 1)
    expected = published(x).detach().movedim(1, -1)
    running = published.norm, published.attention
    expected_state = [getattr(n, f"running_{k}").numpy() for n in running for k in ("mean", "var")]
    given = (
        published.scales,
        published.biases,
        published.conv.weight.flatten(1),
        published.attention.weight,
        published.attention.bias,
    )
    knobs: dict[str, Any] = {"unbiased": True, "convention": "torch"}
    if package == "torch":
        state = of_torch.initial_attentive_state(5, 3, dtype=torch.float64)
        params = of_torch.AttentiveParams(*given)
        y, new = of_torch.attentive_norm(x, state, params, training=True, **knobs)
        y, new = y.detach().movedim(1, -1), [each.detach() for each in new]
    else:
        scales, biases, projection, *attention = (jnp.asarray(g.detach().numpy()) for g in given)
        params = of_jax.AttentiveParams(scales, biases, projection.T, *attention)
        state = of_jax.initial_attentive_state(5, 3)
        y, new = of_jax.attentive_norm(jnp.asarray(X), state, params, train=True, **knobs)
    np.testing.assert_allclose(np.asarray(y), expected, rtol=0, atol=1e-12)
    for found, right in zip(new, expected_state, strict=True):
        np.testing.assert_allclose(np.asarray(found), right, rtol=1e-12)


@pytest.mark.parametrize("package", ["jax", "torch"])
def test_instance_enhancement_as_published(package: str) -> None:
    scale, bias, attention_scale, attention_bias = RNG.normal(size=(4, 5))
    x = torch.tensor(X).movedim(-1, 1)
    mean, var = torch.zeros(5).double(), torch.ones(5).double()
    normal = F.batch_norm(x, mean, var, training=True).movedim(1, -1).numpy()
    pooled = X.mean((1, 2), keepdims=True)
    attention = torch.sigmoid(torch.tensor(pooled * attention_scale + attention_bias)).numpy()
    arrays = scale, bias, attention_scale, attention_bias
    if package == "torch":
        state = of_torch.initial_batch_stats(5, dtype=torch.float64)
        y, new = of_torch.instance_enhancement_batch_norm(
            x, state, *map(torch.tensor, arrays), training=True, convention="torch"
        )
        y = y.movedim(1, -1)
    else:
        y, new = of_jax.instance_enhancement_batch_norm(
            jnp.asarray(X),
            of_jax.initial_batch_stats(5),
            *map(jnp.asarray, arrays),
            train=True,
            convention="torch",
        )
    np.testing.assert_allclose(np.asarray(y), normal * scale * attention + bias, atol=1e-12)
    np.testing.assert_allclose(np.asarray(new.mean), mean, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(new.var), var, rtol=1e-12)


def test_the_hard_sigmoid_of_pytorch_has_a_slope_in_float32() -> None:
    """Why Attentive Normalization has one of its own there. JAX's slope is a sixth."""
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    F.hardsigmoid(x).backward()
    assert x.grad is not None
    assert 1e-9 < abs(x.grad.item() - 1 / 6) < 1e-8
    assert abs(jax.grad(jax.nn.hard_sigmoid)(jnp.zeros(())) - 1 / 6) < 1e-16
