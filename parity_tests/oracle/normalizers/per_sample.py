"""GroupNorm, LayerNorm, InstanceNorm and RMSNorm: statistics of each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle.activations import Array

#: convention -> what is added to a variance.
EPSILON = {"flax": 1e-6, "torch": 1e-5}
#: convention -> (weight of the old statistics, whether N / (N - 1) of the variance is stored).
RUNNING = {"flax": (0.99, False), "torch": (0.9, True)}


def group_norm(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    num_groups: int,
    convention: str,
    epsilon: float | None = None,
    use_scale: bool = True,
    use_bias: bool = True,
) -> tuple[Array, dict[str, Array]]:
    """Over all of space and the channels of a group."""
    groups = x.reshape(len(x), -1, num_groups, x.shape[-1] // num_groups)
    centered = groups - groups.mean((1, 3), keepdims=True)
    var = (centered**2).mean((1, 3), keepdims=True)
    y = (centered / np.sqrt(var + (epsilon or EPSILON[convention]))).reshape(x.shape)
    return _affine(y, params), dict(state)


def layer_norm(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    convention: str,
    epsilon: float | None = None,
    use_scale: bool = True,
    use_bias: bool = True,
) -> tuple[Array, dict[str, Array]]:
    """Over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    var = (centered**2).mean(-1, keepdims=True)
    y = centered / np.sqrt(var + (epsilon or EPSILON[convention]))
    return _affine(y, params), dict(state)


def rms_norm(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    convention: str,
    epsilon: float | None = None,
    use_scale: bool = True,
) -> tuple[Array, dict[str, Array]]:
    """Over the last axis, about 0."""
    default = {"flax": 1e-6, "torch": float(np.finfo(np.float64).eps)}[convention]
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + (epsilon or default))
    return _affine(y, params), dict(state)


def instance_norm(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    convention: str,
    epsilon: float | None = None,
    momentum: float | None = None,
    track_running_stats: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
) -> tuple[Array, dict[str, Array]]:
    """Over space; in evaluation, if statistics are tracked, with those."""
    new: dict[str, Any] = dict(state)
    space, count = tuple(range(1, x.ndim - 1)), np.prod(x.shape[1:-1])
    mean = x.mean(space, keepdims=True)
    var = ((x - mean) ** 2).mean(space, keepdims=True)
    if track_running_stats and train:
        old, unbiased = RUNNING[convention]
        old = old if momentum is None else momentum
        batch = {
            "mean": mean.real.mean((0, *space)),
            "var": var.real.mean((0, *space)) * (count / (count - 1) if unbiased else 1.0),
        }
        new = {name: old * state[name] + (1 - old) * batch[name] for name in batch}
    elif track_running_stats:
        mean, var = state["mean"], state["var"]
    y = (x - mean) / np.sqrt(var + (epsilon or EPSILON[convention]))
    return _affine(y, params), new


def _affine(y: Array, params: Mapping[str, Array]) -> Array:
    y = y * params["scale"] if "scale" in params else y
    return y + params["bias"] if "bias" in params else y
