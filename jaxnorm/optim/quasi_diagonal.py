"""Ollivier's quasi-diagonal metric as published, as an Optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnorm.optim.layers import Pair
from jaxnorm.optim.preconditioner import all_finite, averages, check_number, preconditioned
from jaxnorm.statistics.tracked import Statistics, unmasked


class ScaleByQuasiDiagonalState(NamedTuple):
    """The running metric, as moments, which do not cancel; trees like the params.

    Attributes:
        count: steps so far.
        mass: M00, at the biases.
        mean: M0 / M00, at the kernels.
        second: M2 - M0^2 / M00, at the kernels.
    """

    takes_statistics = True

    count: jax.Array
    mass: Any
    mean: Any
    second: Any


def scale_by_quasi_diagonal(
    gamma: float = 0.01, epsilon: float = 1e-12
) -> optax.GradientTransformationExtraArgs:
    """Ollivier's quasi-diagonal outer-product metric: the update of QDRiemaNNLinear.

    With ``m = g_z^2`` of every sample and neuron:

        M00 = sum_n m,  M0 = sum_n m x,  M2 = sum_n m x^2       averaged: share gamma of the new
        g_W <- (M00 g_W - M0 g_b) / clip(M2 M00 - M0^2, epsilon, 1e25)
        g_b <- (g_b - sum_i M0 g_W) / (M00 + epsilon)           with the new g_W

    Chain it with the optimizer:
    ``optax.chain(jaxnorm.scale_by_quasi_diagonal(), optax.sgd(0.01))``. The metric of the first
    step is that of its batch. Without a bias the metric is its diagonal,
    ``g_W <- g_W / (M2 + epsilon)``, the published diagonal form. The g_W of an input that never
    changes is 0, as it would be published without rounding, which epsilon would blow up.

    The step is as long as 1 / g_z: with a loss k times as large 1 / k of it, and with the mean over
    N samples in the place of their sum N times. Epsilon is absolute, so it should be far below
    ``M00 M2``, of the order of g_z to the fourth: prefer the sum over samples to the mean.

    What is not in the published code, which has dense layers only: convolutions (an input is a
    channel at a tap, a sample an image and a position) and any other layer.

    Args:
        gamma: the share of the new in the running metric, in (0, 1].
        epsilon: added, or least, where it is divided; > 0.

    Returns:
        A transformation whose update is called with the statistics of the *batch*, of layers with
        error weights: ``jaxnorm.linen.neuronwise(model, rule=jaxnorm.QUASI_DIAGONAL)``. All else as
        in `scale_by_bnp`. With the sample weights of another rule it is the same update in the
        metric of those. The state holds two arrays like each kernel and one like each bias.

    Raises:
        TypeError: for a gamma or epsilon that is no number.
        ValueError: for a gamma or epsilon out of range, and as `scale_by_bnp`, statistics without
            sample weights (of a rule with ``weighting="uniform"``, or no activation) among them.

    Transformations, dtypes: as `scale_by_bnp`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> x, y = jnp.arange(8.0).reshape(8, 1) + 5, jnp.cos(jnp.arange(8.0)).reshape(8, 1)
        >>> model = nn.Dense(1)
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> apply = jaxnorm.linen.neuronwise(model, rule=jaxnorm.QUASI_DIAGONAL)
        >>> stats = jaxnorm.linen.init_statistics(apply, {"params": params}, x)
        >>> tx = optax.chain(jaxnorm.scale_by_quasi_diagonal(), optax.sgd(0.3))
        >>> def loss(params, stats):
        ...     return jnp.sum((apply({"params": params, "neuron_stats": stats}, x) - y) ** 2)
        >>> @jax.jit
        ... def step(params, stats, state):
        ...     grads, batch = jax.grad(loss, argnums=(0, 1))(params, stats)
        ...     stats = jaxnorm.update_statistics(stats, batch)
        ...     updates, state = tx.update(grads, state, params, neuron_stats=batch)
        ...     return optax.apply_updates(params, updates), stats, state
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     params, stats, state = step(params, stats, state)
        >>> round(float(loss(params, stats)), 3)  # least squares
        4.123

    References:
        Ollivier, arXiv 1303.0818; Marceau-Caron, Ollivier, arXiv 1602.08007, and their module
        QDRiemaNNLinear in clementfarabet/lua---nnx.
    """
    check_number("gamma", gamma, "a number in (0, 1], the share of the new", lambda g: 0 < g <= 1)
    check_number("epsilon", epsilon, "a finite number > 0", lambda epsilon: epsilon > 0)

    def init(params):
        zeros = (averages(params, name, 0.0) for name in ("bias", "kernel", "kernel"))
        return ScaleByQuasiDiagonalState(jnp.zeros((), jnp.int32), *zeros)

    def update(updates, state, params=None, *, neuron_stats=None, **extra_args):
        del params, extra_args
        count, *metric = state

        def change(statistics: Statistics, gradient: Pair, metric: tuple[Pair, ...]):
            return _change(statistics, gradient, metric, jnp.where(count == 0, 1, gamma), epsilon)

        fields = ("mass", "second")
        updates, *metric = preconditioned(updates, tuple(metric), neuron_stats, fields, change)
        return updates, ScaleByQuasiDiagonalState(jnp.asarray(optax.safe_increment(count)), *metric)

    return optax.GradientTransformationExtraArgs(init, update)


def _change(
    statistics: Statistics, gradient: Pair, metric: tuple[Pair, ...], share: Any, epsilon: Any
):
    """The gradient of one layer in the metric with this share of the batch's, and the metric."""
    (_, mass), (mean, _), (second, _) = metric
    if gradient.bias is None:
        new = _about_zero(statistics)
        second = jnp.where(all_finite(new), (1 - share) * second + share * new, second)
        kernel = gradient.kernel / (second + epsilon)
        return Pair(kernel, None), (Pair(None, None), Pair(mean, None), Pair(second, None))
    mass, mean, second = _averaged((mass, mean, second), _of_batch(statistics), share)
    kernel, bias = gradient
    # M00 g_W - M0 g_b, over M2 M00 - M0^2.
    numerator = jnp.where(_constant(mass, mean, second), 0, mass * (kernel - mean * bias))
    kernel = numerator / jnp.clip(mass * second, epsilon, 1e25)
    moved = jnp.sum(mass * mean * kernel, axis=tuple(range(kernel.ndim - 1)), keepdims=True)
    bias = (bias - moved) / (mass + epsilon)
    return Pair(kernel, bias), (Pair(None, mass), Pair(mean, None), Pair(second, None))


def _constant(mass: jax.Array, mean: jax.Array, second: jax.Array) -> jax.Array:
    """Whether an input is the same in all samples; its M00 g_W - M0 g_b is 0, but for rounding."""
    return second <= mass * (_ROUNDINGS * jnp.finfo(mean.dtype).eps * mean) ** 2


#: How many of them a difference may have lost.
_ROUNDINGS = 16


def _of_batch(statistics: Statistics) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(M00, M0 / M00, M2 - M0^2 / M00)."""
    mass, first = statistics.mass, statistics.first
    offset = jnp.where(mass > 0, first / jnp.where(mass > 0, mass, 1), 0)
    mean = unmasked(statistics, statistics.origin + offset)
    second = statistics.second - offset * first
    # Less than its own rounding, as where the sums are about 0 still: an input that never changes.
    rounding = _ROUNDINGS * jnp.finfo(second.dtype).eps * statistics.second
    return mass, mean, jnp.where(second <= rounding, 0, second)


def _about_zero(statistics: Statistics) -> jax.Array:
    """M2."""
    second, origin = statistics.second, statistics.origin
    if origin is not None:
        second += 2 * origin * statistics.first + origin**2 * statistics.mass
    return second


def _averaged(old: Any, new: Any, share: Any) -> Any:
    """The moments of (1 - share) times the old sums and share times the new (Chan's merge)."""
    mass, mean, second = ((1 - share) * old[0], old[1], (1 - share) * old[2])
    other = share * new[0]
    total = mass + other
    part = other / jnp.where(total > 0, total, 1)
    step = new[1] - mean
    averaged = (total, mean + part * step, second + share * new[2] + mass * part * step**2)
    finite = all_finite(*averaged)
    return tuple(jnp.where(finite, a, b) for a, b in zip(averaged, old, strict=True))
