"""What is said about a network, and how to say what the gate of each of its layers really sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.tasks import Task

Phi = Callable[[torch.Tensor], torch.Tensor]
Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]  # module -> (its first input, its output)
Expectation = Callable[[Seen, str], torch.Tensor]  # -> phi'(u), in the layout of the layer's output


def slope(phi: Phi, u: torch.Tensor) -> torch.Tensor:
    """The derivative of an elementwise function."""
    u = u.detach().clone().requires_grad_()
    (result,) = torch.autograd.grad(phi(u).sum(), u)
    return result


def sibling(name: str, other: str, up: int = 1) -> str:
    """The name with its last parts, `up` of them, replaced."""
    return ".".join([*name.split(".")[:-up], other])


def itself(phi: Phi) -> Expectation:
    """The activation sees the layer's output itself."""
    return lambda seen, name: slope(phi, seen[name][1])


def given(phi: Phi, other: str, up: int = 1) -> Expectation:
    """The activation sees what another module is given, a `sibling`."""
    return lambda seen, name: slope(phi, seen[sibling(name, other, up)][0])


def returned(phi: Phi, other: str, up: int = 1) -> Expectation:
    """The activation sees what another module returns, a `sibling`."""
    return lambda seen, name: slope(phi, seen[sibling(name, other, up)][1])


def there(phi: Phi, module: str) -> Expectation:
    """The activation sees what this module returns."""
    return lambda seen, name: slope(phi, seen[module][1])


def linear_pieces(other: str, up: int = 1) -> Expectation:
    """The activation is another module whose slope is its output by its input: PReLU, say."""

    def expected(seen: Seen, name: str) -> torch.Tensor:
        u, activated = seen[sibling(name, other, up)]
        return activated / u

    return expected


def several(seen: Seen, name: str) -> torch.Tensor:
    """Several activations, or one and the plain value, see the output: there is no right slope."""
    raise NotImplementedError(name)


def times(phi: Phi, other: str, other_phi: Phi) -> Expectation:
    """phi(z) other_phi(z of the other layer), its name's last part replaced."""

    def expected(seen: Seen, name: str) -> torch.Tensor:
        return slope(phi, seen[name][1]) * other_phi(seen[sibling(name, other)][1])

    return expected


def glu(phi: Phi, activated: int = 0) -> Expectation:
    """One half is activated, the first (0) or the second (1), and the other multiplied."""

    def expected(seen: Seen, name: str) -> torch.Tensor:
        halves = seen[name][1].chunk(2, -1)
        a, b = halves[activated], halves[1 - activated]
        slopes = [slope(phi, a) * b, phi(a)]
        return torch.cat(slopes[:: 1 - 2 * activated], -1)

    return expected


def identity(u: torch.Tensor) -> torch.Tensor:
    """No activation."""
    return u * 1


def quick_gelu(u: torch.Tensor) -> torch.Tensor:
    """CLIP's."""
    return u * torch.sigmoid(1.702 * u)


def gelu_tanh(u: torch.Tensor) -> torch.Tensor:
    """GPT-2's."""
    return F.gelu(u, approximate="tanh")


@dataclass(frozen=True)
class Model:
    """One network.

    Attributes:
        name: of the architecture.
        build: () -> the module.
        inputs: () -> its keyword arguments, or a tuple of positional ones.
        seen: {pattern of layers: what their gate sees}, first match; the others see no activation.
        needs: the modules that it is made of, besides torch.
        task: what it is trained on; None: it is not.
        rate: the larger of the two rates of AdamW.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    seen: dict[str, Expectation]
    needs: tuple[str, ...] = ()
    task: Task | None = None
    rate: float = 1e-2


def normal(*shape: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    """One positional argument: random numbers with a mean."""
    return lambda: (torch.randn(shape, dtype=torch.float64) + 0.5,)
