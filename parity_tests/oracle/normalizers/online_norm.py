"""Online Normalization, one sample after the other, with its own backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle import Array


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    **knobs: Any,
) -> tuple[Array, dict[str, Any]]:
    """Output and new state; that of the backward pass stays."""
    y, _, new = _normalized(x, state, train=train, **knobs)
    return _after(y, params, **knobs), new


def backward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    cotangent: Array,
    *,
    train: bool,
    backward_momentum: float = 0.99,
    **knobs: Any,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Gradients of x and the parameters, and the new state of the backward pass."""
    y, roots, _ = _normalized(x, state, train=train, **knobs)
    g, gradients = _before(y, params, cotangent, **knobs)
    u, v = state["gradient"].copy(), state["projection"].copy()
    g_x = np.empty_like(x)
    axes = tuple(range(x.ndim - 2))
    for t in range(len(x)):
        g_t = g[t] - (1 - backward_momentum) * v * y[t]
        v = v + (g_t * y[t]).mean(axes)
        g_x[t] = g_t / roots[t] - (1 - backward_momentum) * u
        u = u + g_x[t].mean(axes)
    return {"x": g_x, **gradients}, {"gradient": u, "projection": v}


def _normalized(
    x: Array,
    state: Mapping[str, Array],
    *,
    train: bool,
    momentum: float = 0.999,
    epsilon: float = 1e-5,
    **_: Any,
) -> tuple[Array, list[Array], dict[str, Any]]:
    """What is before scale and bias, what each sample was divided by, and the new state."""
    m, v = state["mean"], state["var"]
    if not train:
        return (x - m) / np.sqrt(v + epsilon), [], dict(state)
    y, roots = np.empty_like(x), []
    axes = tuple(range(x.ndim - 2))
    for t in range(len(x)):
        roots.append(np.sqrt(v + epsilon))
        y[t] = (x[t] - m) / roots[t]
        mean = x[t].mean(axes)
        var = ((x[t] - mean) ** 2).mean(axes)
        a = momentum
        v = a * v + (1 - a) * var + a * (1 - a) * (mean - m) ** 2
        m = m + (1 - a) * (mean - m)
    return y, roots, {**state, "mean": m, "var": v}


def _after(
    y: Array,
    params: Mapping[str, Array],
    *,
    guard: str | None = "activation_clamping",
    clamp: float = 5.0,
    epsilon: float = 1e-5,
    **_: Any,
) -> Array:
    """Scale, bias and guard."""
    y = y * params.get("scale", 1.0) + params.get("bias", 0.0)
    if guard == "activation_clamping":
        return np.where(y.real >= clamp, clamp, np.where(y.real <= -clamp, -clamp, y))
    if guard == "layer_scaling":
        return y / np.sqrt((y**2).mean(tuple(range(1, y.ndim)), keepdims=True) + epsilon)
    return y


def _before(
    y: Array,
    params: Mapping[str, Array],
    g: Array,
    *,
    guard: str | None = "activation_clamping",
    clamp: float = 5.0,
    epsilon: float = 1e-5,
    **_: Any,
) -> tuple[Array, dict[str, Array]]:
    """The gradients of what `_after` is given."""
    z = y * params.get("scale", 1.0) + params.get("bias", 0.0)
    if guard == "activation_clamping":
        g = np.where(np.abs(z) < clamp, g, 0)
    elif guard == "layer_scaling":
        axes = tuple(range(1, y.ndim))
        root = np.sqrt((z**2).mean(axes, keepdims=True) + epsilon)
        out = z / root
        g = (g - out * (g * out).mean(axes, keepdims=True)) / root
    sums = tuple(range(y.ndim - 1))
    found = {"scale": (g * y).sum(sums), "bias": g.sum(sums)}
    return g * params.get("scale", 1.0), {name: found[name] for name in params}
