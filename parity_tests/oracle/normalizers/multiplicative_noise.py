"""Multiplicative noise, of given noise, and the dense layer with noise in its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle.activations import Array


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    noise: Array,
    **knobs: Any,
) -> tuple[Array, dict[str, Array]]:
    """See `jaxnorm.linen.normalizers.MultiplicativeNoise`."""
    return x * noise, {}


def drop_connect(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    noise: Array,
    rate: float = 0.5,
    threshold: bool = False,
    **knobs: Any,
) -> tuple[Array, dict[str, Array]]:
    """See `jaxnorm.linen.normalizers.DropConnect`."""
    kernel, bias, v = params["kernel"], params.get("bias", 0), rate / (1 - rate)
    shift = params["scale"] * math.sqrt(2 * v) - 1 if "scale" in params else 0
    z = x @ (kernel * (noise + shift)) + bias
    if not threshold:
        return z, {}
    mean = (x @ kernel) * (1 + shift) + bias
    square = (x * x) @ (kernel * kernel)
    expected = _erf(mean / np.sqrt(2 * v * square))
    return np.where(z.real >= 0, 1.0, -1.0) + (expected - expected.real), {}


def _erf(z: Array) -> Array:
    """Of the real part, and of the imaginary one to first order, which the complex step needs."""
    real = np.vectorize(math.erf)(z.real)
    return real + 1j * z.imag * 2 / math.sqrt(math.pi) * np.exp(-(z.real**2))
