"""The plain layers that ours stand in for, behind the same interface."""

from __future__ import annotations

from typing import Any

from parity_tests.cases import Case
from parity_tests.implementations import (
    Implementation,
    JaxFunctional,
    LinenDense,
    NnxLinear,
    TorchFunctional,
    TorchModule,
)


class FlaxDense(JaxFunctional):
    """`flax.linen.Dense`."""

    name = "flax.linen.Dense"

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        from flax import linen

        features, bias = case.kernel.shape[1], case.bias is not None
        layer = linen.Dense(features, use_bias=bias, param_dtype=case.x.dtype)
        return layer.apply({"params": parameters}, x)


class FlaxLinear(JaxFunctional):
    """`flax.nnx.Linear`."""

    name = "flax.nnx.Linear"

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        from flax import nnx

        shape, bias = case.kernel.shape, case.bias is not None
        layer = nnx.Linear(*shape, use_bias=bias, param_dtype=case.x.dtype, rngs=nnx.Rngs(0))
        definition, state = nnx.split(layer)
        nnx.replace_by_pure_dict(state, parameters)
        return nnx.merge(definition, state)(x)


class TorchLinear(TorchFunctional):
    """`torch.nn.functional.linear`, which `torch.nn.Linear` calls."""

    name = "torch.nn.functional.linear"

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass, with the leaves that will carry the gradients."""
        from torch.nn.functional import linear

        return linear(x, weight, bias), weight, bias


#: Ours, and the plain layer that must not notice the difference.
HOSTS: dict[Implementation, Implementation] = {
    JaxFunctional(): FlaxDense(),
    LinenDense(): FlaxDense(),
    NnxLinear(): FlaxLinear(),
    TorchFunctional(): TorchLinear(),
    TorchModule(): TorchLinear(),
}
