"""One layer, a few batches with cotangents, and what is right for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from parity_tests.normalizers.family import Arrays, Family, Knobs
from parity_tests.oracle import Array
from parity_tests.oracle.complex_step import vjp

#: Shape of the inputs but for the channels, which come last.
SHAPES: dict[str, tuple[int, ...]] = {
    "one_sample": (1, 3, 2),
    "one_pixel": (5, 1, 1),
    "matrix": (7,),
}
SHAPE = (4, 3, 2)

#: Where the inputs lie with `large_mean`.
LARGE = 1e4


class Result(NamedTuple):
    """What one call makes: output, gradients by name ("x" and the parameters), new state."""

    y: np.ndarray
    gradients: dict[str, np.ndarray]
    state: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """A few training steps of a layer with constant parameters, then one call in evaluation."""

    family: Family
    kind: str = "plain"
    knobs: Knobs = field(default_factory=dict)
    dtype: str = "float64"
    seed: int = 0

    @property
    def words(self) -> str:
        """The case in words."""
        return " ".join([self.kind, self.dtype, *(f"{k}={v}" for k, v in self.knobs.items())])

    @cached_property
    def _drawn(self) -> tuple[list[Arrays], list[Array], Arrays, Arrays]:
        rng, family = np.random.default_rng(self.seed), self.family
        shape = (*SHAPES.get(self.kind, SHAPE), family.channels)
        calls, deltas = [], []
        for _ in range(family.steps + 1):
            x = rng.normal(size=shape) * np.geomspace(0.3, 3.0, shape[-1])
            x += rng.normal(size=shape[-1])
            if self.kind == "large_mean":
                x += LARGE
            if self.kind == "constant_channel":
                x[..., 0] = 0.5
            drawn = {} if family.noise is None else family.noise(rng, shape, self.knobs)
            calls.append({"x": self._rounded(x), **{k: self._rounded(v) for k, v in drawn.items()}})
            deltas.append(self._rounded(rng.normal(size=shape)))
        # Parameters and states are float32 at least, in both frameworks.
        params = family.params(rng, shape[-1], self.knobs)
        state = family.state(rng, shape[-1], self.knobs)
        if self.kind == "large_mean" and "mean" in state:
            state["mean"] = state["mean"] + LARGE
        wide = np.float64 if self.dtype == "float64" else np.float32
        params, state = (
            {k: v.astype(wide).astype(v.dtype) if v.dtype.kind == "f" else v for k, v in a.items()}
            for a in (params, state)
        )
        return calls, deltas, params, state

    def _rounded(self, array: Array) -> Array:
        """The numbers that the dtype of the case can hold, in float64."""
        return array.astype(_dtype(self.dtype)).astype(np.float64)

    @property
    def calls(self) -> list[Arrays]:
        """Of every call "x" and what else it is given; the last is that in evaluation."""
        return self._drawn[0]

    @property
    def deltas(self) -> list[Array]:
        """The cotangent of every call."""
        return self._drawn[1]

    @property
    def params(self) -> Arrays:
        """The parameters under Flax's names."""
        return self._drawn[2]

    @property
    def state(self) -> Arrays:
        """The state before the first call under Flax's names."""
        return self._drawn[3]

    def cast(self, array: Array) -> np.ndarray:
        """In the dtype in which the layer is called."""
        return array.astype(_dtype(self.dtype))

    def wide(self, array: Array) -> np.ndarray:
        """In the dtype of parameters and states."""
        if array.dtype.kind != "f":
            return array
        return array.astype(np.float64 if self.dtype == "float64" else np.float32)

    def modes(self) -> Iterator[bool]:
        """Of every call, whether it trains."""
        for _ in range(self.family.steps):
            yield True
        yield False

    @cached_property
    def expected(self) -> list[Result]:
        """What is right for these very numbers, in float64."""
        results, state = [], self.state
        for call, delta, train in zip(self.calls, self.deltas, self.modes(), strict=True):
            result = self._expected(call, delta, state, train=train)
            results.append(result)
            state = result.state
        return results

    def _expected(
        self, call: Arrays, delta: Array, state: Mapping[str, Any], *, train: bool
    ) -> Result:
        family, knobs = self.family, dict(self.knobs)
        others = {k: v for k, v in call.items() if k != "x"}
        if family.modes:
            knobs["train"] = train

        def forward(arrays: Mapping[str, Array]) -> tuple[Array, Arrays]:
            params = {name: arrays[name] for name in self.params}
            return family.forward(arrays["x"], params, state, **others, **knobs)

        arrays = {"x": call["x"], **self.params}
        y, new = forward(arrays)
        if family.backward is not None and train:
            gradients, more = family.backward(call["x"], self.params, state, delta, **knobs)
            return Result(y, gradients, {**new, **more})
        return Result(y, vjp(lambda a: forward(a)[0], arrays, delta), new)


def _dtype(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def cases(family: Family, *, quick: bool = False) -> Iterator[Case]:
    """Every kind of input with the first variant, every variant with plain inputs."""
    first = family.variants[0]
    for kind in family.kinds:
        yield Case(family, kind, first)
    for seed, knobs in enumerate(family.variants[1:], 1):
        yield Case(family, "plain", knobs, seed=seed)
    if not quick:
        for kind in family.kinds:
            yield Case(family, kind, first, "float32")
        yield Case(family, "plain", first, "bfloat16")
