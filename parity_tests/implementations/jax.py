"""jaxnorm's functions and layers, and an Optax step in the coordinates."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from parity_tests.cases import Case
from parity_tests.implementations import in_jax
from parity_tests.implementations.base import Gradients, Implementation, Statistics
from parity_tests.oracle import TorchConvTranspose


class JaxFunctional(Implementation):
    """`jaxnorm.neuronwise_dense`, `neuronwise_conv` and so on."""

    name = "jax functional"

    def supports(self, case: Case) -> bool:
        """Everything."""
        return True

    def options(self, case: Case) -> dict[str, Any]:
        """Gate and rule, as the package's own dataclass."""
        gate = jaxnorm.DEFERRED if case.deferred else in_jax.gate(case.gate)
        return {"gate": gate, "rule": jaxnorm.Rule(**asdict(case.knobs))}

    def parameters(self, case: Case) -> dict[str, Any]:
        """Parameters under the names that flax gives them."""
        named = {"kernel": case.kernel, "bias": case.bias}
        return {name: jnp.asarray(value) for name, value in named.items() if value is not None}

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass."""
        return in_jax.functional(case, parameters, x, self.options(case))

    def gradients(self, case: Case) -> Gradients:
        """Forward pass and vector-Jacobian product."""

        def run(parameters: dict[str, Any], x: Any) -> Any:
            return in_jax.deferred(case, self.apply(case, parameters, x))

        x = jnp.asarray(case.x)
        return Gradients._make(in_jax.gradients(run, case, self.parameters(case), x))

    def moments(self, case: Case) -> Statistics:
        """`jaxnorm.neuron_moments`."""
        x, s, rule = jnp.asarray(case.rows), jnp.asarray(case.weight), self.options(case)["rule"]
        return Statistics(*map(np.asarray, jaxnorm.neuron_moments(x, s, rule)))


class Linen(JaxFunctional):
    """The layers of `jaxnorm.linen`."""

    name = "linen"
    package: Any = jaxnorm.linen

    def supports(self, case: Case) -> bool:
        """All but PyTorch's transposed convolution."""
        return not isinstance(case.op, TorchConvTranspose)

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        layer = in_jax.linen(case, self.package, self.options(case))
        return layer.apply({"params": parameters}, x)


class Nnx(Linen):
    """The layers of `jaxnorm.nnx`."""

    name = "nnx"
    package: Any = jaxnorm.nnx

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        layer = in_jax.nnx_layer(case, self.package, self.options(case))
        return in_jax.call_nnx(layer, parameters, x)


class LinenOptax(Linen):
    """Layers that record their statistics, and `in_neuron_coordinates` around plain SGD."""

    name = "linen, optax"
    quick = False
    plain = True

    def supports(self, case: Case) -> bool:
        """As `Linen`; the wrapper has no other form of the gradient."""
        return super().supports(case) and case.knobs.gradient == "preconditioned"

    def options(self, case: Case) -> dict[str, Any]:
        """With the layers' own default for the gradient."""
        knobs: dict[str, Any] = asdict(case.knobs) | {"gradient": None}
        return super().options(case) | {"rule": jaxnorm.Rule(**knobs)}

    def gradients(self, case: Case) -> Gradients:
        """Minus the step that SGD with a rate of 1 makes."""
        layer = in_jax.linen(case, self.package, self.options(case))
        found = in_jax.wrapped(layer, case, self.parameters(case), jnp.asarray(case.x))
        return Gradients._make(found)


IMPLEMENTATIONS = (JaxFunctional, Linen, Nnx, LinenOptax)
