"""Batch normalization in NumPy: forward, evaluation, and all gradients, exactly.

This file needs NumPy and nothing else; copy it. Channels may be any axis of inputs of any rank,
N is the number of values per channel, m the momentum, the weight of the old statistics:

    mean  = 1/N sum x               var = 1/N sum (x - mean)^2
    x_hat = (x - mean) / s          s = sqrt(var + epsilon)
    y     = scale x_hat + bias
    running' = m running + (1 - m) batch, of mean and var; of var N / (N - 1) times for "torch"

and for a cotangent delta = dL/dy, with sums over the N values of a channel

    g_bias  = sum delta             g_scale = sum delta x_hat
    g_x     = scale / (N s) (N delta - sum delta - x_hat sum delta x_hat)

since mean and var depend on every x: the last two terms take out what moves all x together, and
what scales them. In evaluation mean and var are the running ones, constants, and

    g_x     = scale delta / s

Ioffe and Szegedy, arXiv 1502.03167, algorithms 1 and 2 and the chain rule of section 3, summed up.

    python -m parity_tests.oracle.batch_norm

prints how far the input gradient lies from central differences, and how far one lies in which the
two sums are divided by something else than N; see `with_other_divisors`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

#: convention -> (momentum, epsilon, whether N / (N - 1) of the variance is stored).
CONVENTIONS = {"flax": (0.99, 1e-5, False), "torch": (0.9, 1e-5, True)}


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    convention: str = "flax",
    momentum: float | str | None = "convention",
    epsilon: float | None = None,
    axis: int = -1,
    use_scale: bool = True,
    use_bias: bool = True,
) -> tuple[Array, dict[str, Array]]:
    """(y, new state). Computes for complex `x` and `params`, too, for derivatives by their means.

    Args:
        x: of any rank.
        params: "scale" and "bias", one entry per channel, as far as they are used.
        state: "mean" and "var", and "count" with ``momentum=None``.
        train: whether to normalize by the batch.
        convention: "flax" or "torch".
        momentum: weight of the old statistics; None: the average over all batches.
        epsilon: what is added to the variance; None: the convention's.
        axis: of the channels.
        use_scale: whether there is a scale.
        use_bias: whether there is a bias.
    """
    default, eps, unbiased = CONVENTIONS[convention]
    eps = eps if epsilon is None else epsilon
    summed = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    new = dict(state)
    if train:
        mean = x.mean(summed)
        var = ((x - _spread(mean, x, axis)) ** 2).mean(summed)
        count = x.size // x.shape[axis]
        stored = var.real * (count / max(count - 1, 1) if unbiased else 1.0)
        old: Any = default if momentum == "convention" else momentum
        if old is None:
            batches = state["count"]
            old, new["count"] = batches / (batches + 1), batches + 1
        new["mean"] = old * state["mean"] + (1 - old) * mean.real
        new["var"] = old * state["var"] + (1 - old) * stored
    else:
        mean, var = state["mean"], state["var"]
    y = (x - _spread(mean, x, axis)) / np.sqrt(_spread(var, x, axis) + eps)
    if use_scale:
        y = y * _spread(params["scale"], x, axis)
    if use_bias:
        y = y + _spread(params["bias"], x, axis)
    return y, new


def _spread(values: Array, x: Array, axis: int) -> Array:
    """One value per channel, in a shape that broadcasts to that of x."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return np.asarray(values).reshape(shape)


class Gradients(NamedTuple):
    """Of a loss in the inputs and the parameters; None for those that are not there."""

    x: Array
    scale: Array | None
    bias: Array | None


@dataclass
class BatchNorm:
    """Batch normalization with parameters, running statistics and gradients.

    >>> import numpy as np
    >>> layer = BatchNorm(2)
    >>> y = layer.forward(np.array([[0.0, 2.0], [2.0, 6.0]]))
    >>> layer.backward(np.array([[1.0, 0.0], [0.0, 1.0]])).bias
    array([1., 1.])
    """

    channels: int
    axis: int = -1
    convention: str = "flax"
    momentum: float | str | None = "convention"
    epsilon: float | None = None
    use_scale: bool = True
    use_bias: bool = True
    params: dict[str, Array] = field(default_factory=dict)
    state: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ones, zeros = np.ones(self.channels), np.zeros(self.channels)
        first = {"scale": ones} if self.use_scale else {}
        self.params = {**first, **({"bias": zeros} if self.use_bias else {}), **self.params}
        count = {"count": np.zeros((), np.int32)} if self.momentum is None else {}
        self.state = {"mean": zeros.copy(), "var": ones.copy(), **count, **self.state}
        self._last: tuple[Array, bool, Array, Array] | None = None

    def forward(self, x: Array, *, train: bool = True) -> Array:
        """Normalize x and remember it; update the running statistics in training."""
        x = np.asarray(x, float)
        if x.ndim < 2 or x.shape[self.axis] != self.channels:
            raise ValueError(
                f"x: got shape {x.shape}, expected at least two axes, and {self.channels} channels "
                f"along axis {self.axis}"
            )
        if train and x.size < 2 * self.channels:
            raise ValueError(f"x: got shape {x.shape}, expected more than one value per channel")
        knobs = {"convention": self.convention, "axis": self.axis, "epsilon": self.epsilon}
        plain, state = forward(
            x, {}, self.state, train=train, momentum=self.momentum,
            use_scale=False, use_bias=False, **knobs,
        )  # fmt: skip
        eps = CONVENTIONS[self.convention][1] if self.epsilon is None else self.epsilon
        var = x.var(self._summed(x)) if train else self.state["var"]
        self._last = plain, train, np.sqrt(var + eps), x
        self.state = state
        y = plain
        if self.use_scale:
            y = y * _spread(self.params["scale"], x, self.axis)
        return y + _spread(self.params["bias"], x, self.axis) if self.use_bias else y

    def backward(self, delta: Array) -> Gradients:
        """The gradients of a loss with dL/dy = delta at the inputs of the last `forward`."""
        if self._last is None:
            raise ValueError("backward: got no inputs, expected a call of forward before")
        x_hat, train, s, x = self._last
        summed, count = self._summed(x), x.size // self.channels
        g_bias, g_scale = delta.sum(summed), (delta * x_hat).sum(summed)
        scale = self.params["scale"] if self.use_scale else np.ones(self.channels)
        g_x = delta
        if train:
            sums = _spread(g_bias, x, self.axis) + x_hat * _spread(g_scale, x, self.axis)
            g_x = delta - sums / count
        g_x = _spread(scale / s, x, self.axis) * g_x
        return Gradients(
            g_x, g_scale if self.use_scale else None, g_bias if self.use_bias else None
        )

    def _summed(self, x: Array) -> tuple[int, ...]:
        return tuple(a for a in range(x.ndim) if a != self.axis % x.ndim)


# What happens with other divisors.


def with_other_divisors(x: Array, delta: Array, scale: Array, epsilon: float = 1e-8) -> Array:
    """The input gradient as NumPyNet computes it (layers/batchnorm_layer.py, February 2024).

    There the statistics are those over the batch alone, for each position [w, h, c], so N is the
    batch b. Its forward pass and its gradients of scale and bias are right. Of the input gradient
    ``delta / s + g_var 2 (x - mean) / N + g_mean / N`` (delta times scale), which its documentation
    prints, it divides by w h c in place of N, and has g_mean as a mean over the batch in place of
    the sum. Its test takes a constant delta and compares with a layer that evaluates, for which
    both terms are 0.
    """
    divisor = x[0].size
    mean, s = x.mean(0), np.sqrt(x.var(0) + epsilon)
    delta = delta * scale
    g_var = (delta * (x - mean)).sum(0) * -0.5 / s**3
    g_mean = -(delta / s).mean(0)
    return delta / s + g_var * 2 * (x - mean) / divisor + g_mean / divisor


def central_differences(f: Any, x: Array, step: float = 1e-5) -> Array:
    """The gradient of a function of one array, to about ten digits."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = x.copy()
        moved[index] += step
        above = f(moved)
        moved[index] -= 2 * step
        gradient[index] = (above - f(moved)) / (2 * step)
    return gradient


#: [b, w, h, c]. In the last b = w h c, so that only the second of the two divisors matters.
SHAPES = ((8, 3, 2, 3), (5, 1, 1, 1), (3, 4, 4, 2), (16, 2, 2, 1), (4, 1, 2, 2))


def compared(seed: int = 0) -> Iterator[tuple[tuple[int, ...], float, float]]:
    """Shape of x, error of `BatchNorm`, error of `with_other_divisors`: max|g - d| / max|d|."""
    rng = np.random.default_rng(seed)
    for shape in SHAPES:
        x, delta = rng.normal(size=shape), rng.normal(size=shape)
        scale = rng.uniform(0.5, 2.0, shape[1:])
        flat = x.reshape(len(x), -1)

        def layer(scale: Array = scale) -> BatchNorm:
            params = {"scale": scale.ravel()}
            return BatchNorm(scale.size, epsilon=1e-8, use_bias=False, params=params)

        def loss(flat: Array, delta: Array = delta, layer: Any = layer) -> float:
            return float((layer().forward(flat) * delta.reshape(flat.shape)).sum())

        right = central_differences(loss, flat).reshape(shape)
        one = layer()
        one.forward(flat)
        ours = one.backward(delta.reshape(flat.shape)).x.reshape(shape)
        theirs = with_other_divisors(x, delta, scale)
        unit = np.abs(right).max()
        yield shape, np.abs(ours - right).max() / unit, np.abs(theirs - right).max() / unit


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        "python -m parity_tests.oracle.batch_norm",
        description="The input gradient against central differences.",
    ).parse_args()
    print("| inputs [b, w, h, c] | `BatchNorm` here | with other divisors (NumPyNet) |")
    print("| :-- | --: | --: |")
    for shape, ours, theirs in compared():
        print(f"| {list(shape)} | {ours:.1e} | {theirs:.2f} |")


if __name__ == "__main__":
    main()
