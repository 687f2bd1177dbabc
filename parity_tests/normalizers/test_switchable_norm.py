"""Switchable Normalization against the frameworks' own norms, and the published way to sum up."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import jaxnorm.normalizers as of_jax
import torchnorm.normalizers as of_torch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2, 3, 5)) * np.geomspace(0.5, 2, 5) + RNG.normal(size=5)
WEIGHTS = RNG.normal(size=(2, 3))
EPS = 1e-3


@functools.partial(jax.jit, static_argnames=("statistics", "unbiased"))
def _program(x: Any, weights: Any, **knobs: Any) -> Any:
    state = of_jax.BatchStats(jnp.zeros(5), jnp.ones(5))
    y, new = of_jax.switchable_norm(x, state, *weights, train=True, epsilon=EPS, **knobs)
    return y, new.var


def _jax(x: Any, weights: Any, **knobs: Any) -> Any:
    return [np.asarray(each) for each in _program(x, weights, **knobs)]


def _torch(x: Any, weights: Any, **knobs: Any) -> Any:
    state = of_torch.BatchStats(torch.zeros(5).double(), torch.ones(5).double())
    y, new = of_torch.switchable_norm(
        torch.tensor(x).movedim(-1, 1),
        state,
        *torch.tensor(weights),
        training=True,
        eps=EPS,
        **knobs,
    )
    return y.movedim(1, -1).numpy(), new.var.numpy()


def _published(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the variance of the batch, summed up as in the published code."""
    flat = x.flatten(2)
    mean_in, var_in = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
    second = var_in + mean_in**2
    means, variances = [mean_in], [var_in]
    for dim in (1, 0):
        mean = mean_in.mean(dim, keepdim=True)
        means.append(mean)
        variances.append(second.mean(dim, keepdim=True) - mean**2)
    of_means, of_vars = torch.tensor(WEIGHTS).softmax(-1)
    mean = sum(w * each for w, each in zip(of_means, means, strict=True))
    var = sum(w * each for w, each in zip(of_vars, variances, strict=True))
    return ((flat - mean) / (var + EPS).sqrt()).reshape(x.shape), variances[-1].flatten()


@pytest.mark.parametrize("run", [_jax, _torch])
@pytest.mark.parametrize("name", ["instance", "layer", "batch"])
def test_one_norm_alone_is_that_of_the_framework(run: Any, name: str) -> None:
    x = torch.tensor(X).movedim(-1, 1)
    expected = {
        "instance": F.instance_norm(x, eps=EPS),
        "layer": F.layer_norm(x, x.shape[1:], eps=EPS),
        "batch": F.batch_norm(x, None, None, training=True, eps=EPS),
    }[name]
    found, _ = run(X, np.zeros((2, 1)), statistics=(name,))
    np.testing.assert_allclose(found, expected.movedim(1, -1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("run", [_jax, _torch])
def test_unbiased_is_what_the_published_code_computes(run: Any) -> None:
    y, var = _published(torch.tensor(X).movedim(-1, 1))
    found, running = run(X, WEIGHTS, unbiased=True)
    np.testing.assert_allclose(found, y.movedim(1, -1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(running, 0.9 + 0.1 * var.numpy(), rtol=1e-13)
    assert np.abs(run(X, WEIGHTS)[0] - found).max() > 1e-2


@pytest.mark.parametrize("run", [_jax, _torch])
def test_unbiased_without_space_is_the_unbiased_variance(run: Any) -> None:
    x = X[:, 0, 0]
    two = {"statistics": ("layer", "batch"), "unbiased": True}
    for axis in (1, 0):
        weights = np.where(np.arange(2) == 1 - axis, 0.0, -1e3) * np.ones((2, 1))
        centered = x - x.mean(axis, keepdims=True)
        expected = centered / np.sqrt(x.var(axis, keepdims=True, ddof=1) + EPS)
        np.testing.assert_allclose(run(x, weights, **two)[0], expected, rtol=0, atol=1e-13)
