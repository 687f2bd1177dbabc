"""Activations: another one, another form of the same one, another slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.causes.values import arrivals, values_within
from parity_tests.port.measure import distance
from parity_tests.port.report import Finding

GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU (erf)": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "GELU (tanh)": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "GELU (sigmoid)": lambda x: x * torch.sigmoid(1.702 * x),
}
SLOPES = (0.01, 0.2, 0.1, 0.3, 0.05, 0.02, 0.25, 0.15, 0.5)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **GELUS,
    "ReLU": torch.relu,
    "SiLU": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "ELU": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "ReLU6": lambda x: torch.clamp(x, 0, 6),
    "hard swish": lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    "hard sigmoid": lambda x: torch.clamp(x + 3, 0, 6) / 6,
    "mish": lambda x: x * torch.tanh(torch.logaddexp(x, torch.zeros_like(x))),
    "SELU": lambda x: (
        1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * torch.expm1(x))
    ),
    "squared ReLU": lambda x: torch.relu(x) ** 2,
    "no activation": lambda x: x,
}
ACTIVATIONS |= {
    f"leaky ReLU ({slope})": lambda x, slope=slope: torch.where(x > 0, x, slope * x)
    for slope in SLOPES
}
#: What they are called as.
FUNCTIONS: dict[Any, str] = {
    F.relu: "ReLU",
    torch.relu: "ReLU",
    torch.relu_: "ReLU",
    Tensor.relu: "ReLU",
    F.silu: "SiLU",
    torch.tanh: "tanh",
    Tensor.tanh: "tanh",
    F.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    F.elu: "ELU",
    F.softplus: "softplus",
    F.relu6: "ReLU6",
    F.hardtanh: "ReLU6",
    F.hardswish: "hard swish",
    F.hardsigmoid: "hard sigmoid",
    F.mish: "mish",
    F.selu: "SELU",
    F.gelu: "GELU (erf)",
    F.leaky_relu: "leaky ReLU (0.01)",
}


def _called(function: Function) -> str:
    """The activation that a function of PyTorch is, as it is called."""
    if function.function is F.gelu and function.values.get("approximate") == "tanh":
        return "GELU (tanh)"
    if function.function is F.leaky_relu:
        return f"leaky ReLU ({function.values.get('negative_slope', 0.01):g})"
    return FUNCTIONS[function.function]


class _Exchanged(Cause):
    """One activation in place of another: the call is rewritten, or both are known by numbers.

    By numbers: an activation takes a value that is seen on both sides to what reaches the next
    layer in PyTorch, and another one takes it to what reaches it in Flax.
    """

    functions: tuple[Any, ...] = ()

    def pairs(self, mine: str) -> Iterable[str]:
        """Names of what Flax may have where PyTorch has this one."""
        raise NotImplementedError

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Another activation for each that the layer calls."""
        for mine, call in {_called(f): f for f in case.calls(*self.functions)}.items():
            for other in self.pairs(mine):
                if other != mine:

                    def change(function: Function, mine: str = mine, other: str = other) -> Any:
                        if _called(function) != mine:
                            return function.again()
                        return ACTIVATIONS[other](function.args[0])

                    text = f"PyTorch computes {mine}, Flax {other}"
                    yield Hypothesis(text, only((call.function,), change))

    def find(self, case: Case) -> Iterator[Finding]:
        """By rewriting; where PyTorch calls no such function, by numbers."""
        found = list(super().find(case))
        if any(finding.confirmed for finding in found):
            yield from found
            return
        for theirs, ours in islice(arrivals(case), 1):  # in the first, for it spoils the others
            for value in values_within(case, theirs.size):
                mine, other = (_name(value, each, case.same) for each in (theirs, ours))
                if mine and other and mine != other and other in set(self.pairs(mine)):
                    text = f"PyTorch computes {mine}, Flax {other}"
                    yield Finding(self.name, True, text, self.mend, case.flax_path, case.torch_path)
                    return
        yield from found


def _name(value: np.ndarray, target: np.ndarray, same: float) -> str | None:
    """Of the activation that takes one array to the other: some entries first, then all."""
    x, y = (torch.tensor(a.astype(np.float64).ravel()) for a in (value, target))
    for name, function in ACTIVATIONS.items():
        if torch.allclose(function(x[:8]), y[:8], rtol=1e-5, atol=1e-5):
            if distance(function(x).numpy(), y.numpy()).error < same:
                return name
    return None


class GeluVariant(_Exchanged):
    """GELU by tanh (Flax's and JAX's default) or by erf (PyTorch's)."""

    name = "GELU variant"
    mend = "nn.gelu(x, approximate=False) in Flax is F.gelu(x) in PyTorch"
    functions = (F.gelu,)

    def pairs(self, mine: str) -> Iterable[str]:
        """The other forms."""
        return GELUS if mine in GELUS else ()


class LeakySlope(_Exchanged):
    """The slope of leaky ReLU below zero."""

    name = "negative slope"
    mend = "give both the same negative_slope (0.01 by default in both)"
    functions = (F.leaky_relu,)

    def pairs(self, mine: str) -> Iterable[str]:
        """The slopes that are in use."""
        return [n for n in ACTIVATIONS if n.startswith("leaky")] if "leaky" in mine else ()


class Activation(_Exchanged):
    """Another activation, or none."""

    name = "activation"
    mend = "use the same activation"
    functions = tuple(FUNCTIONS)

    def pairs(self, mine: str) -> Iterable[str]:
        """All."""
        return ACTIVATIONS
