"""The plain layers that ours stand in for, behind the same interface."""

from __future__ import annotations

from typing import Any

from parity_tests.cases import Case
from parity_tests.implementations import (
    Implementation,
    JaxFunctional,
    Linen,
    Nnx,
    TorchFunctional,
    TorchModule,
)


class FlaxLinen(Linen):
    """`flax.linen`."""

    name = "flax.linen"

    def package(self) -> Any:
        """The framework."""
        from flax import linen

        return linen

    def how(self, case: Case) -> dict[str, Any]:
        """No rule."""
        return {}


class FlaxNnx(Nnx):
    """`flax.nnx`."""

    name = "flax.nnx"

    def package(self) -> Any:
        """The framework."""
        from flax import nnx

        return nnx

    def how(self, case: Case) -> dict[str, Any]:
        """No rule."""
        return {}


class TorchF(TorchFunctional):
    """`torch.nn.functional`."""

    name = "torch.nn.functional"

    def package(self) -> Any:
        """The framework."""
        from torch.nn import functional

        return functional

    def how(self, case: Case) -> dict[str, Any]:
        """No rule."""
        return {}


class TorchNN(TorchModule):
    """`torch.nn`."""

    name = "torch.nn"

    def package(self) -> Any:
        """The framework."""
        from torch import nn

        return nn

    def how(self, case: Case) -> dict[str, Any]:
        """No rule."""
        return {}


#: Ours, and the plain layer that must not notice the difference.
PLAIN: dict[Implementation, Implementation] = {
    JaxFunctional(): FlaxLinen(),
    Linen(): FlaxLinen(),
    Nnx(): FlaxNnx(),
    TorchFunctional(): TorchF(),
    TorchModule(): TorchNN(),
}
