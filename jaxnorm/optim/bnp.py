"""Batch Normalization Preconditioning as published, as an Optax transformation."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm.optim.layers import Pair
from jaxnorm.optim.preconditioner import all_finite, averages, check_number, preconditioned
from jaxnorm.statistics.tracked import Statistics, unmasked


class ScaleByBnpState(NamedTuple):
    """The running mean and variance of what each entry of a kernel reads; trees like the params."""

    takes_statistics = True

    mean: Any
    variance: Any


def scale_by_bnp(
    rho: float = 0.99, eps1: float = 1e-2, eps2: float = 1e-4, *, per_channel: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Batch Normalization Preconditioning (BNP): algorithm 2 of Lange, Helfrich & Ye.

        mu <- rho mu + (1 - rho) mu_B          mu_B, var_B: of the layer's inputs in this batch
        var <- rho var + (1 - rho) var_B       (biased); mu starts as 0, var as 1
        s^2 = var + eps1 max_i(var) + eps2     q^2 = max(I / N, 1): I inputs, N samples
        g_W <- (g_W - mu g_b) / (q^2 s^2)
        g_b <- g_b / q^2 - sum_i mu g_W        with the new g_W

    Chain it with the optimizer; for SGD with momentum, as published:
    ``optax.chain(jaxnorm.scale_by_bnp(), optax.sgd(0.1, momentum=0.9))``. Not with Adam and its
    like, which undo the scale but not the shift: for them `in_neuron_coordinates`, rule `BNP`.

    The structure (a preconditioner of the layer's own moments, with bias, dense and convolutional)
    and the change of the gradient are those of the paper. From memory, so to be checked against the
    paper before they are quoted: the defaults of rho, eps1, eps2, the starting values, the form of
    s^2 and of q^2, and for convolutions all but the fact that patches are the samples.

    Convolutions: an input is a channel at a tap of the window, a sample an image and a position,
    zero padding samples of value 0; I and N count them so in q^2.

    Args:
        rho: the share of the old in the running mean and variance, in [0, 1).
        eps1: relative to the largest variance of what feeds the neuron, >= 0.
        eps2: absolute, unit of x^2, >= 0.
        per_channel: for convolutions one mean and variance for all taps of a channel: those of all
            that the taps read.

    Returns:
        A transformation whose update is called with the statistics of the *batch*, for which a
        layer, or ``jaxnorm.linen.neuronwise(model, rule=jaxnorm.BNP)``, differentiates the loss:
        ``update(grads, state, params, neuron_stats=...)``. Any rule that scales will do; its knobs
        are not used. Those that `update_statistics` returns are right too, unless the rule has a
        `decay`; hand them to the next step, so that large means do not cancel. Parameters of other
        layers are left unchanged. Without a bias nothing can absorb a mean: mu is 0, var the second
        moment.

        The state holds two arrays like each kernel.

    Raises:
        TypeError: for a rho, eps1 or eps2 that is no number.
        ValueError: for a rho, eps1 or eps2 out of range; where the update is called, for missing
            statistics, those of another model, of no batch or averaged (under `jax.jit` a layer
            with these is not stepped).

    Transformations: jit, vmap, scan; sharded. Dtypes: computed and kept in at least float32.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> x, y = jnp.arange(8.0).reshape(8, 1) + 5, jnp.arange(8.0).reshape(8, 1)
        >>> model = nn.Dense(1)
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> apply = jaxnorm.linen.neuronwise(model, rule=jaxnorm.BNP)
        >>> stats = jaxnorm.linen.init_statistics(apply, {"params": params}, x)
        >>> tx = optax.chain(jaxnorm.scale_by_bnp(rho=0.9), optax.sgd(0.2))
        >>> def loss(params, stats):
        ...     return jnp.mean((apply({"params": params, "neuron_stats": stats}, x) - y) ** 2)
        >>> @jax.jit
        ... def step(params, stats, state):
        ...     grads, batch = jax.grad(loss, argnums=(0, 1))(params, stats)
        ...     stats = jaxnorm.update_statistics(stats, batch)
        ...     updates, state = tx.update(grads, state, params, neuron_stats=batch)
        ...     return optax.apply_updates(params, updates), stats, state
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     params, stats, state = step(params, stats, state)
        >>> bool(loss(params, stats) < 1e-6)  # SGD at its best rate, 0.0125: 1.2
        True

    References:
        Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110.
    """
    check_number("rho", rho, "a number in [0, 1), the share of the old", lambda rho: 0 <= rho < 1)
    for name, value in (("eps1", eps1), ("eps2", eps2)):
        check_number(name, value, "a finite number >= 0", lambda value: value >= 0)

    def init(params):
        return ScaleByBnpState(averages(params, "kernel", 0.0), averages(params, "kernel", 1.0))

    def change(statistics: Statistics, gradient: Pair, state: tuple[Pair, ...]):
        (mean, _), (variance, _) = state
        moments = _of_batch(statistics, gradient.bias is not None, per_channel)
        finite = all_finite(*moments)
        mean, variance = (
            jnp.where(finite, rho * old + (1 - rho) * new, old)
            for old, new in zip((mean, variance), moments, strict=True)
        )
        inputs = tuple(range(variance.ndim - 1))
        square = variance + eps1 * jnp.max(variance, axis=inputs, keepdims=True) + eps2
        fan_in = math.prod(variance.shape[:-1])
        q_square = jnp.maximum(fan_in / statistics.samples, 1)
        kernel, bias = gradient
        if bias is not None:
            kernel = kernel - mean * bias
        kernel = kernel / (q_square * square)
        if bias is not None:
            bias = bias / q_square - jnp.sum(mean * kernel, axis=inputs, keepdims=True)
        return Pair(kernel, bias), (Pair(mean, None), Pair(variance, None))

    def update(updates, state, params=None, *, neuron_stats=None, **extra_args):
        del params, extra_args
        fields = ("layer_second",)
        updates, *new = preconditioned(updates, tuple(state), neuron_stats, fields, change)
        return updates, ScaleByBnpState(*new)

    return optax.GradientTransformationExtraArgs(init, update)


def _of_batch(
    statistics: Statistics, centered: bool, per_channel: bool
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of the layer's inputs; 0 and the second moment unless centered."""
    variance = statistics.layer_second / statistics.samples
    mean = jnp.zeros_like(variance)
    if statistics.origin is not None:
        offset = statistics.layer_first / statistics.samples
        mean, variance = statistics.origin + offset, jnp.maximum(variance - offset**2, 0)
    if not centered:
        mean, variance = jnp.zeros_like(mean), variance + mean**2
    if per_channel:
        taps = tuple(range(mean.ndim - 2))
        channel = jnp.mean(mean, axis=taps, keepdims=True)
        variance = jnp.mean(variance + (mean - channel) ** 2, axis=taps, keepdims=True)
        mean = channel
    return unmasked(statistics, mean), variance
