"""The inputs of the comparison: families that make mistakes visible.

Isotropic Gaussian inputs hide them (epsilon on the wrong side of the root: 5e-7). So features
differ in scale by orders of magnitude everywhere; families add features without variance, with a
mean a thousand times their spread, neurons that (almost) never fire, and extreme shapes. Cotangents
are random, always.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from parity_tests import oracle
from parity_tests.cases.case import Case, Layer, double
from parity_tests.oracle import Array, Dense, Knobs, Shape, View
from parity_tests.tolerances import KINK_MARGIN

DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}

#: Where the derivative of a gate jumps.
KINKS: dict[str | None, tuple[float, ...]] = {
    "relu": (0.0,),
    "leaky_relu": (0.0,),
    "selu": (0.0,),
    "relu6": (0.0, 6.0),
    "hard_tanh": (-1.0, 1.0),
    "hard_sigmoid": (-3.0, 3.0),
    "hard_swish": (-3.0, 3.0),
}

FAMILIES = (
    "scales",
    "constant",
    "large_mean",
    "dead",
    "nearly_dead",
    "pairs",
    "tiny",
    "wide",
    "tall",
    "axes",
    "no_bias",
    "masked",
)

#: Families that are a shape (N, I, O), and those of them in which a slice has but few numbers.
SHAPES = {"pairs": (2, 7, 6), "tiny": (3, 1, 1), "wide": (24, 96, 40), "tall": (512, 16, 12)}
FEW = ("pairs", "tiny")


def _inputs(rng: np.random.Generator, family: str, shape: Shape, orders: float) -> Array:
    """Features of very different scales, none of them centered, and what the family adds to them.

    Scales are e^(orders N(0,1)): in float64 one feature may dwarf all others (orders = 2); else
    it must not, because a slice that is but one number may cancel, and float32 has no digits for
    that (nor float16 room for the squares).
    """
    rows, inputs = shape
    scale = np.exp(orders * rng.standard_normal(inputs))
    mean = rng.uniform(0.3, 2.0, inputs) * rng.choice([-1.0, 1.0], inputs)
    x = (rng.standard_normal((rows, inputs)) + mean) * scale
    if family == "constant":
        x[:, 0], x[:, -1] = 0.0, 3.7  # in different groups, where there are any
    if family == "large_mean":
        x[:, 0] += 1e3 * scale[0]
        x[:, 1] -= 1e2 * scale[1]
    return x


def _bias(rng: np.random.Generator, family: str, z: Array) -> Array:
    """Biases for which each neuron fires on some samples only, unless the family says otherwise."""
    rows, outputs = z.shape
    few, many = (1, rows) if rows < 8 else (rows // 4, 3 * rows // 4)
    active = rng.integers(few, many, outputs)
    if family == "nearly_dead":
        active[:3] = [1, 2, 3][:outputs]
    descending = -np.sort(-z, axis=0)
    columns = np.arange(outputs)
    bias = -0.5 * (descending[active - 1, columns] + descending[active, columns])
    if family in ("dead", "masked"):
        bias[0] = -descending[0, 0] - np.ptp(z[:, 0])  # never fires
        bias[-1] = -descending[-1, -1] + np.ptp(z[:, -1])  # always fires
    return bias


def _cotangent(rng: np.random.Generator, view: View, x: Array, kernel: Shape) -> Array:
    """Random errors that, as in training, go with the inputs; sums of mere noise may cancel."""
    rows = x.ravel()[view.channels]
    spread = rows.std(0)
    unit = np.zeros_like(x)
    unit.flat[view.channels] = np.divide(
        rows - rows.mean(0), spread, out=np.zeros_like(rows), where=spread > 0
    )
    signal = _neurons(view, unit, rng.standard_normal(kernel)) / np.sqrt(len(view.kernel))
    noise = rng.standard_normal(signal.shape)
    return (noise + signal) * np.exp(rng.standard_normal(signal.shape[1]))


def _neurons(view: View, x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """The pre-activations, one column per neuron of any group."""
    z = oracle.forward(view, x, kernel, bias)
    return z.reshape(len(z), -1)


def _off_the_kinks(case: Case) -> bool:
    """Whether no pre-activation lies so close to a kink that rounding decides its side."""
    x, kernel = (np.abs(double(a)) for a in (case.x, case.kernel))
    bias = None if case.bias is None else np.abs(double(case.bias))
    margin = KINK_MARGIN.get(case.dtype, 0.0) * oracle.forward(case.view, x, kernel, bias)
    z = case.expected.z.ravel()[case.view.z]
    return all((np.abs(z - kink) >= margin).all() for kink in KINKS.get(case.gate, ()))


def make(
    family: str = "scales",
    *,
    seed: int = 0,
    gate: str | None = "relu",
    knobs: Knobs | None = None,
    dtype: str = "float64",
    shape: tuple[int, int, int] | None = None,
    spread: float = 2.0,
    layer: Layer | None = None,
    deferred: bool = False,
) -> Case:
    """Build a case.

    Args:
        family: one of `FAMILIES`.
        seed: of everything random.
        gate: the activation that follows, None for none.
        knobs: of the rule.
        dtype: in which the layer computes.
        shape: (N, I, O) of a dense layer where the family leaves the choice.
        spread: standard deviation of the pre-activations; the default keeps to where gates bend.
        layer: another operation than a dense one.
        deferred: tell the gate by `tell_gate`.
    """
    rows, inputs, outputs = shape or SHAPES.get(family, (48, 7, 6))
    if layer is None:
        x_shape = (2, rows // 6, 3, inputs) if family == "axes" else (rows, inputs)
        layer = Layer(Dense(), x_shape, (inputs, outputs))
    view = layer.op.view(layer.x, layer.kernel)
    for attempt in range(100):
        rng = np.random.default_rng([FAMILIES.index(family), seed, attempt])
        x = np.zeros(layer.x)
        orders = 2.0 if dtype == "float64" else 1.0
        x.flat[view.channels] = _inputs(rng, family, view.channels.shape, orders)
        kernel = rng.standard_normal(layer.kernel)
        if family == "large_mean":  # a weight is small where values are large
            kernel.flat[view.kernel] /= np.abs(view.patches(x)).max(0).T[:, :, None]
        size = np.std(_neurons(view, x, kernel), axis=0)
        kernel.flat[view.kernel] *= spread / size.reshape(view.bias.shape)
        bias = None
        if family != "no_bias":
            bias = np.zeros([view.z_shape[a] for a in layer.bias])
            bias.flat[view.bias] = _bias(rng, family, _neurons(view, x, kernel)).reshape(
                view.bias.shape
            )
        errors = _cotangent(rng, view, x, layer.kernel)
        if family == "masked":  # what a network sends back: nothing where the neuron does not fire
            errors *= _neurons(view, x, kernel, bias) > 0
        delta = np.zeros(view.z_shape)
        delta.flat[view.z] = errors.reshape(view.z.shape)
        arrays = [None if a is None else a.astype(DTYPES[dtype]) for a in (x, kernel, bias, delta)]
        rest = (gate, knobs or Knobs(), layer.op, layer.mask, deferred)
        case = Case(family, *arrays, *rest)  # type: ignore[misc]
        if _off_the_kinks(case):
            return case
    raise RuntimeError(f"no inputs off the kinks of {gate!r}")
