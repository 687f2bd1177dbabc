"""The inputs of the comparison: families that make mistakes visible.

Isotropic Gaussian inputs hide them (epsilon on the wrong side of the root: 5e-7). So features
differ in scale by orders of magnitude everywhere; families add features without variance, with a
mean a thousand times their spread, neurons that (almost) never fire, and extreme shapes. Cotangents
are random, always.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np

from parity_tests import oracle
from parity_tests.oracle import Array, Knobs
from parity_tests.tolerances import KINK_MARGIN, Relief

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


@dataclass(frozen=True, eq=False)
class Case:
    """One layer, one batch, one cotangent. Arrays are stored in the dtype of the case."""

    family: str
    x: np.ndarray = field(repr=False)
    kernel: np.ndarray = field(repr=False)
    bias: np.ndarray | None = field(repr=False)
    delta: np.ndarray = field(repr=False)
    gate: str | None
    knobs: Knobs

    @property
    def dtype(self) -> str:
        """Name of the dtype in which the layer is asked to compute."""
        return self.x.dtype.name

    @property
    def statistics_dtype(self) -> np.dtype[Any]:
        """The dtype of statistics: at least float32."""
        return np.promote_types(self.x.dtype, np.float32)

    @cached_property
    def expected(self) -> oracle.Layer:
        """What is right for these very numbers, in float64."""
        x, kernel, delta = (_double(a) for a in (self.x, self.kernel, self.delta))
        bias = None if self.bias is None else _double(self.bias)
        return oracle.dense(x, kernel, bias, delta, self.gate, self.knobs)

    @cached_property
    def rows(self) -> np.ndarray:
        """The inputs as one matrix [N,I]."""
        return self.x.reshape(-1, self.x.shape[-1])

    @cached_property
    def weight(self) -> np.ndarray:
        """The oracle's sample weights [N,O] in the dtype of the case, the largest of a neuron 1.

        Their unit is free; in another one a saturated neuron's would be too small for float32.
        """
        z, delta = (_double(a).reshape(-1, a.shape[-1]) for a in (self.expected.z, self.delta))
        weight = oracle.sample_weight(z, delta, self.gate, self.knobs.weighting)
        largest = np.abs(weight).max(0)
        return (weight / np.where(largest == 0, 1, largest)).astype(self.x.dtype)

    @cached_property
    def expected_moments(self) -> oracle.Moments:
        """Moments of the inputs under `weight`, centred as in a layer with a bias."""
        return oracle.moments(_double(self.rows), _double(self.weight), self.knobs)

    @cached_property
    def relief(self) -> Relief:
        """What the inputs excuse."""
        return Relief.of(self.x)


def _double(array: np.ndarray) -> Array:
    """The same numbers in float64."""
    return array.astype(np.float64)


def _inputs(rng: np.random.Generator, family: str, rows: int, inputs: int, orders: float) -> Array:
    """Features of very different scales, none of them centred, and what the family adds to them.

    Scales are e^(orders N(0,1)): in float64 one feature may dwarf all others (orders = 2); else
    it must not, because a slice that is but one number may cancel, and float32 has no digits for
    that (nor float16 room for the squares).
    """
    scale = np.exp(orders * rng.standard_normal(inputs))
    mean = rng.uniform(0.3, 2.0, inputs) * rng.choice([-1.0, 1.0], inputs)
    x = (rng.standard_normal((rows, inputs)) + mean) * scale
    if family == "constant":
        x[:, 0], x[:, 1] = 0.0, 3.7
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


def _cotangent(rng: np.random.Generator, x: Array, outputs: int) -> Array:
    """Random errors that, as in training, go with the inputs; sums of mere noise may cancel."""
    spread = x.std(0)
    unit = np.divide(x - x.mean(0), spread, out=np.zeros_like(x), where=spread > 0)
    signal = unit @ rng.standard_normal((x.shape[1], outputs)) / np.sqrt(x.shape[1])
    noise = rng.standard_normal((len(x), outputs))
    return (noise + signal) * np.exp(rng.standard_normal(outputs))


def _off_the_kinks(case: Case) -> bool:
    """Whether no pre-activation lies so close to a kink that rounding decides its side."""
    size = np.abs(_double(case.x)) @ np.abs(_double(case.kernel))
    if case.bias is not None:
        size = size + np.abs(_double(case.bias))
    margin = KINK_MARGIN.get(case.dtype, 0.0) * size
    z = case.expected.z
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
) -> Case:
    """Build a case.

    Args:
        family: one of `FAMILIES`.
        seed: of everything random.
        gate: the activation that follows, None for none.
        knobs: of the rule.
        dtype: in which the layer computes.
        shape: (N, I, O) where the family leaves the choice.
        spread: standard deviation of the pre-activations; the default keeps to where gates bend.
    """
    rows, inputs, outputs = shape or SHAPES.get(family, (48, 7, 6))
    for attempt in range(100):
        rng = np.random.default_rng([FAMILIES.index(family), seed, attempt])
        x = _inputs(rng, family, rows, inputs, 2.0 if dtype == "float64" else 1.0)
        kernel = rng.standard_normal((inputs, outputs))
        if family == "large_mean":  # a weight is small where values are large
            kernel /= np.abs(x).max(0)[:, None]
        kernel *= spread / np.std(x @ kernel, axis=0)
        bias = None if family == "no_bias" else _bias(rng, family, x @ kernel)
        delta = _cotangent(rng, x, outputs)
        if family == "masked":  # what a network sends back: nothing where the neuron does not fire
            delta *= x @ kernel + bias > 0
        if family == "axes":
            x, delta = x.reshape(2, rows // 6, 3, inputs), delta.reshape(2, rows // 6, 3, outputs)
        arrays = [None if a is None else a.astype(DTYPES[dtype]) for a in (x, kernel, bias, delta)]
        case = Case(family, *arrays, gate=gate, knobs=knobs or Knobs())  # type: ignore[misc]
        if _off_the_kinks(case):
            return case
    raise RuntimeError(f"no inputs off the kinks of {gate!r}")


def every_knob() -> Iterator[Knobs]:
    """Every allowed combination of the structural knobs, then the continuous ones at their ends."""
    weightings = ("gate", "gate_squared", "uniform", "error", "signed")
    scales, gradients = ("neuron", "layer", "none"), ("preconditioned", "covariant", "plain")
    for weighting, scale, gradient in product(weightings, scales, gradients):
        if (weighting, scale) != ("signed", "neuron"):
            yield Knobs(weighting=weighting, scale=scale, gradient=gradient)
    for gradient in gradients[:2]:
        yield Knobs(gradient=gradient, shrinkage=0.0)
        yield Knobs(gradient=gradient, damping=0.0)
        yield Knobs(gradient=gradient, shrinkage=0.0, damping=0.0, epsilon=0.0)
        yield Knobs(gradient=gradient, shrinkage=100.0, damping=1.0, epsilon=1e-2)
        yield Knobs(gradient=gradient, statistics_rows=16)
        yield Knobs(gradient=gradient, statistics_rows=1000)  # more than there are


def standard(*, quick: bool = False) -> Iterator[tuple[str, Case]]:
    """The cases of the matrix, each with the row it belongs to; `quick` keeps to one shape."""
    for family, dtype in product(FAMILIES, ("float64", "float32")):
        if dtype == "float32" and family in FEW:
            continue  # a sum of two numbers may cancel, and float32 has no digits to spare
        if quick and (family in SHAPES or (dtype == "float32" and family != "large_mean")):
            continue
        for seed in range(1 if quick else 3):
            yield f"{family} {dtype}", make(family, seed=seed, dtype=dtype)
    for gate in (None, *sorted(oracle.GATES)):
        if not quick or gate in (None, "leaky_relu", "silu", "gelu_erf"):
            for seed in range(1 if quick else 2):
                yield "every gate", make(seed=10 + seed, gate=gate)
                yield "every gate, far", make(seed=10 + seed, gate=gate, spread=20.0)
    for number, knobs in enumerate(every_knob()):
        yield "every knob", make(seed=20 + number, gate="silu", knobs=knobs)
        if knobs.weighting != "signed" and not (quick and number % 3):
            yield "every knob, no bias", make("no_bias", seed=20 + number, gate="silu", knobs=knobs)
