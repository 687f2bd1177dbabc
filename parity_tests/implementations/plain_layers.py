"""The plain layers that ours stand in for, behind the same interface."""

from __future__ import annotations

from typing import Any

import flax.linen
import flax.nnx
import torch.nn.functional

from parity_tests.cases import Case
from parity_tests.implementations.base import Implementation
from parity_tests.implementations.jax import JaxFunctional, Linen, Nnx
from parity_tests.implementations.torch import TorchFunctional, TorchModule


class _Plain:
    """No gate, no rule."""

    def options(self, case: Case) -> dict[str, Any]:
        """None."""
        return {}


class FlaxLinen(_Plain, Linen):
    """`flax.linen`."""

    name = "flax.linen"
    package = flax.linen


class FlaxNnx(_Plain, Nnx):
    """`flax.nnx`."""

    name = "flax.nnx"
    package = flax.nnx


class TorchF(_Plain, TorchFunctional):
    """`torch.nn.functional`."""

    name = "torch.nn.functional"
    package = torch.nn.functional


class TorchNN(_Plain, TorchModule):
    """`torch.nn`."""

    name = "torch.nn"
    package = torch.nn


#: Ours, and the plain layer that must not notice the difference.
PLAIN: dict[Implementation, Implementation] = {
    JaxFunctional(): FlaxLinen(),
    Linen(): FlaxLinen(),
    Nnx(): FlaxNnx(),
    TorchFunctional(): TorchF(),
    TorchModule(): TorchNN(),
}
