"""Activations with their derivatives, in NumPy: what a gate is held against."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Elementwise = Callable[[Array], Array]
#: The name of an activation, None for none, or its derivative at every z.
Gate = str | Array | None


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -z))


def _sech2(z: Array) -> Array:
    """1 - tanh(z)^2 without cancellation."""
    return 4.0 * _sigmoid(2.0 * z) * _sigmoid(-2.0 * z)


def _softplus(z: Array) -> Array:
    """log(1 + exp(z)) without overflow."""
    return np.logaddexp(0.0, z)


def _where(z: Array, above: Array | float, below: Array | float) -> Array:
    """One value right of the kink at 0, another on it and left of it."""
    return np.where(z > 0, above, below)


def _inside(z: Array, low: float, high: float) -> Array:
    """1 on the open interval, 0 elsewhere."""
    return ((low < z) & (z < high)).astype(np.float64)


def _normal_cdf(z: Array) -> Array:
    """Probability that a standard normal variable is below z."""
    return 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-z / math.sqrt(2.0))


def _normal_pdf(z: Array) -> Array:
    """Density of a standard normal variable at z."""
    return np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)


def _elu(z: Array, alpha: float = 1.0) -> Array:
    """The exponential linear unit."""
    return _where(z, z, alpha * np.expm1(np.minimum(z, 0.0)))


def _elu_slope(z: Array, alpha: float = 1.0) -> Array:
    """Derivative of the exponential linear unit."""
    return _where(z, 1.0, alpha * np.exp(np.minimum(z, 0.0)))


def _gelu_tanh_slope(z: Array) -> Array:
    """Derivative of z * sigmoid(2u), u = sqrt(2/pi) (z + 0.044715 z^3)."""
    u = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return _sigmoid(2 * u) + 0.5 * z * _sech2(u) * du


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

#: Activations, each with its derivative.
GATES: dict[str, tuple[Elementwise, Elementwise]] = {
    "identity": (lambda z: z, np.ones_like),
    "relu": (lambda z: np.maximum(z, 0), lambda z: _where(z, 1.0, 0.0)),
    "leaky_relu": (lambda z: _where(z, z, 0.01 * z), lambda z: _where(z, 1.0, 0.01)),
    "elu": (_elu, _elu_slope),
    "celu": (_elu, _elu_slope),
    "selu": (
        lambda z: _SELU_SCALE * _elu(z, _SELU_ALPHA),
        lambda z: _SELU_SCALE * _elu_slope(z, _SELU_ALPHA),
    ),
    "silu": (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    "mish": (
        lambda z: z * np.tanh(_softplus(z)),
        lambda z: np.tanh(_softplus(z)) + z * _sigmoid(z) * _sech2(_softplus(z)),
    ),
    "tanh": (np.tanh, _sech2),
    "hard_tanh": (lambda z: np.clip(z, -1, 1), lambda z: _inside(z, -1, 1)),
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "hard_sigmoid": (lambda z: np.clip(z + 3, 0, 6) / 6, lambda z: _inside(z, -3, 3) / 6),
    "hard_swish": (
        lambda z: z * np.clip(z + 3, 0, 6) / 6,
        lambda z: np.where(z >= 3, 1.0, _inside(z, -3, 3) * (2 * z + 3) / 6),
    ),
    "relu6": (lambda z: np.clip(z, 0, 6), lambda z: _inside(z, 0, 6)),
    "softplus": (_softplus, _sigmoid),
    "soft_sign": (lambda z: z / (1 + np.abs(z)), lambda z: (1 + np.abs(z)) ** -2.0),
    "log_sigmoid": (lambda z: -_softplus(-z), lambda z: _sigmoid(-z)),
    "gelu_tanh": (
        lambda z: z * _sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)),
        _gelu_tanh_slope,
    ),
    "gelu_erf": (lambda z: z * _normal_cdf(z), lambda z: _normal_cdf(z) + z * _normal_pdf(z)),
}


def _halves(z: Array) -> tuple[Array, Array]:
    """The two halves of the neurons."""
    return z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :]


def _glu_slope(z: Array) -> Array:
    """Of a sigmoid(b): what each of the two changes, by the product rule."""
    a, b = _halves(z)
    return np.hstack([_sigmoid(b), a * GATES["sigmoid"][1](b)])


def _swiglu_slope(z: Array) -> Array:
    """Of silu(a) b."""
    a, b = _halves(z)
    return np.hstack([GATES["silu"][1](a) * b, GATES["silu"][0](a)])


#: Activations that read several neurons at once, z[N,O]: d(sum of all their results) / dz.
JOINT: dict[str, Elementwise] = {"glu": _glu_slope, "swiglu": _swiglu_slope}


def slope(gate: Gate, z: Array) -> Array:
    """phi'(z) for z[N,O]."""
    if gate is None:
        return np.ones_like(z)
    if isinstance(gate, np.ndarray):
        return gate
    return JOINT[gate](z) if gate in JOINT else GATES[gate][1](z)
