"""The cases of the matrix: every family, gate, knob and operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from parity_tests import oracle
from parity_tests.cases.draw import FAMILIES, FEW, SHAPES
from parity_tests.cases.geometries import LAYERS
from parity_tests.oracle import Knobs

#: What is run with every family, knob and dtype, and what stands for its kind in the quick matrix.
REPRESENTATIVE = {
    "conv": ("same, stride 2, even window", "groups, dilation", "valid, strides"),
    "transposed": ("same, stride 2", "torch, groups, dilation"),
    "einsum": ("heads", "groups first, all mixed"),
}
QUICK = {
    "conv": ("same", "groups, dilation", "dilated input, no pads", "mask"),
    "transposed": ("torch, groups, dilation", "transposed kernel", "circular"),
    "einsum": ("heads", "groups first, all mixed"),
}
#: Rows with what `make` needs for them.
Recipes = Iterator[tuple[str, dict[str, Any]]]

#: Families that mean something for any operation.
ANYWHERE = ("scales", "constant", "large_mean", "dead", "no_bias", "masked")


def recipes(*, quick: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """All cases as arguments of `make`, each with the row it belongs to.

    Args:
        quick: keep to a few shapes of each kind.
    """
    return [
        *_dense(quick=quick),
        *_gates(quick=quick),
        *(recipe for kind in LAYERS for recipe in _operations(kind, quick=quick)),
    ]


def every_knob() -> Iterator[Knobs]:
    """Every allowed combination of the structural knobs, then the continuous ones at their ends."""
    weightings = ("gate", "gate_squared", "uniform", "error", "signed")
    scales, gradients = ("neuron", "layer", "none"), ("preconditioned", "standardized", "plain")
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
        for scale in scales:
            yield Knobs(gradient=gradient, scale=scale, step_size="standardized")


def _dense(*, quick: bool) -> Recipes:
    for family in FAMILIES:
        for dtype in ("float64", "float32"):
            if dtype == "float32" and family in FEW:
                continue  # a sum of two numbers may cancel, and float32 has no digits to spare
            if quick and (family in SHAPES or (dtype == "float32" and family != "large_mean")):
                continue
            for seed in range(1 if quick else 3):
                yield f"{family} {dtype}", {"family": family, "seed": seed, "dtype": dtype}
    for gate in (None, *sorted(oracle.GATES)):
        if not quick or gate in (None, "leaky_relu", "silu", "gelu_erf"):
            for seed in range(1 if quick else 2):
                yield "every gate", {"seed": 10 + seed, "gate": gate}
                yield "every gate, far", {"seed": 10 + seed, "gate": gate, "spread": 20.0}
    for number, knobs in enumerate(every_knob()):
        recipe = {"seed": 20 + number, "gate": "silu", "knobs": knobs}
        yield f"every knob{', step size' * (knobs.step_size == 'standardized')}", recipe
        if knobs.weighting != "signed" and not (quick and number % 3):
            yield "every knob, no bias", {"family": "no_bias", **recipe}


def _gates(*, quick: bool) -> Recipes:
    """Gates that are told later, and gates that read several neurons at once."""
    layers = (None, *(LAYERS[kind][names[1]] for kind, names in REPRESENTATIVE.items()))
    for gate in ("relu", "silu"):
        for layer in layers[: 2 if quick else None]:
            recipe = {"gate": gate, "layer": layer, "deferred": True}
            yield "deferred", recipe
            yield "deferred", {**recipe, "knobs": Knobs(statistics_rows=3)}
    for gate in oracle.JOINT:
        for seed in range(1 if quick else 4):
            yield "joint gate", {"gate": gate, "seed": seed}
            yield "joint gate", {"gate": gate, "seed": seed, "deferred": True}


def _operations(kind: str, *, quick: bool) -> Recipes:
    """Every geometry once; a few of them with everything."""
    for name, layer in LAYERS[kind].items():
        if not quick or name in QUICK[kind]:
            yield f"{kind}: {name}", {"seed": 1, "gate": "silu", "layer": layer}
    for number, name in enumerate(QUICK[kind][:1] if quick else REPRESENTATIVE[kind]):
        layer = LAYERS[kind][name]
        for family in ANYWHERE:
            for dtype in ("float64", "float32"):
                if not quick or (number, dtype, family) == (0, "float64", "no_bias"):
                    # So many z of a large mean in float32 are never all off a kink.
                    gate = None if (family, dtype) == ("large_mean", "float32") else "relu"
                    recipe = {"family": family, "gate": gate, "dtype": dtype, "layer": layer}
                    yield f"{kind}, {family} {dtype}", recipe
        for at, knobs in enumerate(every_knob()):
            if knobs.statistics_rows == 16:  # a few images, some samples of a product
                knobs = replace(knobs, statistics_rows=3)
            if not quick or (number == 0 and (at % 9 == 0 or knobs.statistics_rows == 3)):
                recipe = {"seed": 20 + at, "gate": "silu", "knobs": knobs, "layer": layer}
                yield f"{kind}, every knob", recipe
