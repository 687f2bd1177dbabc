"""What a normalizer is for the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

from parity_tests.oracle import Array

Arrays = dict[str, Array]
Knobs = Mapping[str, Any]
#: Draws arrays for so many channels: (rng, channels, knobs).
Draw = Callable[[np.random.Generator, int, Knobs], Arrays]

#: How the inputs of a case are drawn, see `case.draw`.
KINDS = ("plain", "large_mean", "constant_channel", "one_sample", "one_pixel", "matrix")


def affine(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    """A scale and a bias, unless the knobs say that there is none."""
    drawn: Arrays = {}
    if knobs.get("use_scale", True):
        drawn["scale"] = rng.uniform(0.5, 2.0, channels)
    if knobs.get("use_bias", True):
        drawn["bias"] = rng.normal(size=channels)
    return drawn


def running(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    """A running mean and variance."""
    return {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 2.0, channels)}


def nothing(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    """No arrays: a method without parameters, or without a state."""
    return {}


#: How PyTorch calls what Flax calls so.
TORCH_NAMES = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_arguments(knobs: Knobs) -> dict[str, Any]:
    """The arguments of a PyTorch module for the same layer."""
    arguments = dict(knobs)
    if "epsilon" in arguments:
        arguments["eps"] = arguments.pop("epsilon")
    if arguments.get("momentum") is not None:
        arguments["momentum"] = 1 - arguments["momentum"]
    if "use_scale" in arguments:
        arguments["affine"] = arguments.pop("use_scale")
        arguments.pop("use_bias", None)
    return arguments


def torch_layer(kind: Any, channels: int, arguments: dict[str, Any]) -> Any:
    """The module for so many channels."""
    return kind(channels, **arguments)


@dataclass(frozen=True)
class Family:
    """One method: `name` is that of its class in all three packages."""

    name: str
    #: In NumPy, see `parity_tests.oracle.normalizers`.
    forward: Callable[..., tuple[Array, Arrays]]
    params: Draw = affine
    state: Draw = running
    #: Combinations of knobs under Flax's names; the first is used with every kind of input. They
    #: are given to the oracle and to the layers, except `oracle_only`.
    variants: tuple[Knobs, ...] = ({},)
    kinds: tuple[str, ...] = KINDS
    channels: int = 4
    steps: int = 3
    #: Random numbers that the forward pass is given: (rng, x.shape, knobs) -> keyword arguments of
    #: the call, the same in all packages and in the oracle.
    noise: Callable[[np.random.Generator, tuple[int, ...], Knobs], Arrays] | None = None
    #: The gradients of the method if they are not those of its forward pass:
    #: (x, params, state, cotangent, **knobs) -> (gradients by name with "x", new state).
    backward: Callable[..., tuple[Arrays, Arrays]] | None = None
    #: The states that such a backward pass leaves; in JAX their gradients are what it adds to them.
    backward_stats: tuple[str, ...] = ()
    linen_arguments: Callable[[Knobs], dict[str, Any]] = dict
    torch_arguments: Callable[[Knobs], dict[str, Any]] = torch_arguments
    #: (class, channels, arguments) -> module.
    torch_layer: Callable[[Any, int, dict[str, Any]], Any] = torch_layer
    #: The axis of the channels in PyTorch.
    torch_channels: int = 1
    torch_names: Mapping[str, str] = field(default_factory=lambda: TORCH_NAMES)
    #: Name -> the shape or layout that PyTorch has, and back, where it is another.
    torch_layouts: Mapping[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = field(
        default_factory=dict
    )
    #: Whether the layers are told if they train; otherwise they do the same in evaluation.
    modes: bool = True


def families() -> list[Family]:
    """All of them: `FAMILIES` of every file in families/, by file name."""
    package = import_module("parity_tests.normalizers.families")
    names = sorted(each.name for each in iter_modules(package.__path__))
    modules = [import_module(f"{package.__name__}.{name}") for name in names]
    return [family for module in modules for family in module.FAMILIES]
