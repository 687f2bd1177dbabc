"""Activations, losses, optimizers, arrays; and what is the same, against expectation."""

from __future__ import annotations

from typing import Any

import flax.linen as fn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn
from torch.nn import functional as F

from parity_tests.differences.row import Row


def summed_axis(weights: Any) -> int:
    """The axis along which weights sum to 1."""
    return next(a for a in range(weights.ndim) if np.allclose(np.sum(np.asarray(weights), a), 1))


def stepped(transformation: Any, gradient: float, start: float = 1.0) -> float:
    """A parameter after one step of an optimizer of Optax."""
    params: Any = jnp.array(start)
    updates, _ = transformation.update(jnp.array(gradient), transformation.init(params), params)
    moved: Any = optax.apply_updates(params, updates)
    return float(moved)


def step_of(make: Any, gradient: float, start: float = 1.0, **knobs: Any) -> float:
    """A parameter after one step of an optimizer of PyTorch."""
    parameter = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    make([parameter], **knobs).step()
    return parameter.item()


def clipped(norm: float) -> float:
    """What clipping a gradient of norm 2 to norm 1 leaves out of 1, in PyTorch."""
    parameter = torch.zeros((), dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.tensor(norm, dtype=torch.float64)
    nn.utils.clip_grad_norm_([parameter], 1.0)
    return 1 - parameter.grad.item()


def clipped_by_optax(norm: float) -> float:
    """The same in Optax."""
    clip = optax.clip_by_global_norm(1.0)
    update: Any = clip.update(jnp.array(norm), clip.init(jnp.zeros(())))[0]
    return 1 - float(update)


WAVE = np.array([0.0, 0.0, 1.0, 0.0])

ROWS = [
    Row("GELU of 1", lambda: round(float(fn.gelu(jnp.array(1.0))), 5),
        lambda: round(float(F.gelu(torch.tensor(1.0).double())), 5),
        '`approximate=False`; `approximate="tanh"`'),
    Row("softplus of 20.5, less 20.5", lambda: fn.softplus(jnp.array(20.5)) - 20.5,
        lambda: F.softplus(torch.tensor(20.5).double()) - 20.5, "`threshold=`"),
    Row("softmax of [2, 3, 4], axis not given: which", lambda: summed_axis(
        fn.softmax(jnp.ones((2, 3, 4)) * 0.1)), lambda: summed_axis(
        F.softmax(torch.ones(2, 3, 4))), "`axis=`, `dim=`"),
    Row("variance of 0, 2", lambda: jnp.var(jnp.array([0.0, 2.0])),
        lambda: torch.var(torch.tensor([0.0, 2.0])), "`ddof=`, `correction=`"),
    Row("median of 1, 2", lambda: jnp.median(jnp.array([1.0, 2.0])),
        lambda: torch.median(torch.tensor([1.0, 2.0])), "`torch.quantile`"),
    Row("element 5 of 0, 1", lambda: jnp.arange(2.0)[jnp.array(5)],
        lambda: torch.arange(2.0)[torch.tensor(5)], ""),
    Row("bfloat16 matrix times float32 matrix",
        lambda: (jnp.ones((1, 1), jnp.bfloat16) @ jnp.ones((1, 1), jnp.float32)).dtype.name,
        lambda: torch.ones(1, 1).bfloat16() @ torch.ones(1, 1), "cast"),
    Row("0, 0, 1, 0 made half as long, linearly: first entry",
        lambda: jax.image.resize(jnp.asarray(WAVE), (2,), "linear")[0],
        lambda: F.interpolate(torch.tensor(WAVE)[None, None], size=2, mode="linear")[0, 0, 0],
        "`antialias=False`"),
    Row("squared error of 1", lambda: optax.l2_loss(jnp.array(1.0)),
        lambda: F.mse_loss(torch.tensor(1.0), torch.tensor(0.0)), "half of it in Optax"),
    Row("cross entropy of 3 samples: shape", lambda: tuple(
        optax.softmax_cross_entropy_with_integer_labels(
            jnp.ones((3, 2)), jnp.zeros(3, int)).shape),
        lambda: tuple(F.cross_entropy(torch.ones(3, 2), torch.zeros(3).long()).shape), "`.mean()`"),
    Row("AdamW: decay of a weight of 1 in a step of rate 1",
        lambda: 1 - stepped(optax.adamw(1.0), 0.0),
        lambda: 1 - step_of(torch.optim.AdamW, 0.0, lr=1.0),
        "`weight_decay`"),
    Row("Adagrad: first step for a gradient of 0.1, rate 1",
        lambda: 1 - stepped(optax.adagrad(1.0), 0.1),
        lambda: 1 - step_of(torch.optim.Adagrad, 0.1, lr=1.0),
        "`initial_accumulator_value`"),
    Row("RMSprop: first step for a gradient of 1, rate 1",
        lambda: 1 - stepped(optax.rmsprop(1.0), 1.0),
        lambda: 1 - step_of(torch.optim.RMSprop, 1.0, lr=1.0),
        "`decay=0.99`"),
    Row("RMSprop, decay 0.99, epsilon 0.01, gradient 0.1: first step",
        lambda: 1 - stepped(optax.rmsprop(1.0, decay=0.99, eps=0.01), 0.1),
        lambda: 1 - step_of(torch.optim.RMSprop, 0.1, lr=1.0, eps=0.01),
        "inside the root in Optax, `eps_in_sqrt`"),
    Row("a gradient of norm 2 clipped to 1: missing to 1", lambda: clipped_by_optax(2.0),
        lambda: clipped(2.0), "PyTorch adds 1e-6 to the norm"),
]  # fmt: skip


def normalized(eps: float) -> float:
    """The largest output of BatchNorm for 0, 2e-3 with this epsilon, in Flax."""
    layer = fn.BatchNorm(False, epsilon=eps, use_fast_variance=False)
    return float(layer.init_with_output(jax.random.key(0), jnp.array([[0.0], [2e-3]]))[0].max())


def normalized_by_torch(eps: float) -> float:
    """The same in PyTorch."""
    module = nn.BatchNorm1d(1, eps=eps, dtype=torch.float64)
    return float(module(torch.tensor([[0.0], [2e-3]]).double()).max())


def padded_mean() -> float:
    """The mean of a one and of a padded zero, in Flax."""
    padding: Any = ((1, 1),)
    return float(fn.avg_pool(jnp.ones((1, 2, 1)), (2,), (2,), padding)[0, 0, 0])


SAME = [
    Row("BatchNorm: epsilon, inside the root: largest output for 0, 0.002",
        lambda: normalized(1e-5), lambda: normalized_by_torch(1e-5)),
    Row("average pooling with padding: zeros count", padded_mean,
        lambda: F.avg_pool1d(torch.ones(1, 1, 2), 2, 2, 1)[0, 0, 0]),
    Row("attention: logits of the query 1, 1, 1, 1 with itself are",
        lambda: -float(jnp.log(1 / fn.dot_product_attention_weights(
            jnp.ones((1, 1, 4)), jnp.stack([jnp.ones((1, 4)), jnp.zeros((1, 4))]).reshape(
                2, 1, 4))[0, 0, 0] - 1)),
        lambda: float(torch.logit(F.scaled_dot_product_attention(
            torch.ones(1, 4).double(), torch.stack([torch.ones(4), torch.zeros(4)]).double(),
            torch.tensor([[1.0], [0.0]]).double())[0, 0]))),
    Row("leaky ReLU of -1", lambda: fn.leaky_relu(jnp.array(-1.0)),
        lambda: F.leaky_relu(torch.tensor(-1.0).double())),
    Row("slope of ReLU at 0", lambda: jax.grad(fn.relu)(0.0), lambda: torch.autograd.grad(
        F.relu(x := torch.zeros((), requires_grad=True)), x)[0]),
    Row("Adam: first step for a gradient of 1e-8, rate 1",
        lambda: 1 - stepped(optax.adam(1.0), 1e-8),
        lambda: 1 - step_of(torch.optim.Adam, 1e-8, lr=1.0)),
    Row("Huber loss of 3", lambda: optax.huber_loss(jnp.array(3.0)),
        lambda: F.huber_loss(torch.tensor(3.0), torch.tensor(0.0))),
]  # fmt: skip
