"""One interface over everything that claims to compute the rule. NumPy in, NumPy out.

Only public names of the two packages are used, in the way in which a user would. Frameworks are
imported when an implementation runs, so that one can be examined without the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from parity_tests import weights
from parity_tests.cases import Case


class Gradients(NamedTuple):
    """What a layer returns, forward and backward; kernels in the layout [I,O]."""

    z: np.ndarray
    g_x: np.ndarray
    g_kernel: np.ndarray
    g_bias: Any  # None without a bias


class Statistics(NamedTuple):
    """Mean and sigma of the inputs as each neuron sees them, in the layout [I,O]."""

    mean: np.ndarray
    sigma: np.ndarray


class Implementation(ABC):
    """Something that computes a neuron-wise dense layer."""

    name: str

    @abstractmethod
    def gradients(self, case: Case) -> Gradients:
        """Run the layer forward and backward on the cotangent of the case."""

    @abstractmethod
    def moments(self, case: Case) -> Statistics:
        """Mean and sigma [I,O] of the inputs of the case under its sample weights."""


class JaxFunctional(Implementation):
    """`jaxnorm.neuronwise_dense`."""

    name = "jax functional"

    def rule(self, case: Case) -> Any:
        """The knobs of the case as the package's own dataclass."""
        import jaxnorm

        return jaxnorm.Rule(**asdict(case.knobs))

    def parameters(self, case: Case) -> dict[str, Any]:
        """Parameters under the names that flax gives them."""
        import jax.numpy as jnp

        named = {"kernel": case.kernel, "bias": case.bias}
        return {name: jnp.asarray(value) for name, value in named.items() if value is not None}

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass."""
        import jaxnorm

        return jaxnorm.neuronwise_dense(
            x, parameters["kernel"], parameters.get("bias"), gate=case.gate, rule=self.rule(case)
        )

    def gradients(self, case: Case) -> Gradients:
        """Forward pass and vector-Jacobian product."""
        import jax
        import jax.numpy as jnp

        run = partial(self.apply, case)
        z, pull = jax.vjp(run, self.parameters(case), jnp.asarray(case.x))
        g, g_x = pull(jnp.asarray(case.delta))
        g_bias = np.asarray(g["bias"]) if "bias" in g else None
        return Gradients(np.asarray(z), np.asarray(g_x), np.asarray(g["kernel"]), g_bias)

    def moments(self, case: Case) -> Statistics:
        """`jaxnorm.neuron_moments`."""
        import jax.numpy as jnp

        import jaxnorm

        x, s = jnp.asarray(case.rows), jnp.asarray(case.weight)
        return Statistics(*map(np.asarray, jaxnorm.neuron_moments(x, s, self.rule(case))))


class LinenDense(JaxFunctional):
    """`jaxnorm.linen.Dense`."""

    name = "linen Dense"

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        import jaxnorm.linen

        layer = jaxnorm.linen.Dense(
            case.kernel.shape[1],
            gate=case.gate,
            rule=self.rule(case),
            use_bias=case.bias is not None,
            param_dtype=case.x.dtype,
        )
        return layer.apply({"params": parameters}, x)


class NnxLinear(JaxFunctional):
    """`jaxnorm.nnx.Linear`."""

    name = "nnx Linear"

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        from flax import nnx

        import jaxnorm.nnx

        layer = jaxnorm.nnx.Linear(
            *case.kernel.shape,
            gate=case.gate,
            rule=self.rule(case),
            use_bias=case.bias is not None,
            param_dtype=case.x.dtype,
            rngs=nnx.Rngs(0),
        )
        definition, state = nnx.split(layer)
        nnx.replace_by_pure_dict(state, parameters)
        return nnx.merge(definition, state)(x)


class TorchFunctional(Implementation):
    """`torchnorm.functional.neuronwise_linear`."""

    name = "torch functional"

    def rule(self, case: Case) -> Any:
        """The knobs of the case as the package's own dataclass."""
        import torchnorm

        return torchnorm.Rule(**asdict(case.knobs))

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass, with the leaves that will carry the gradients."""
        from torchnorm.functional import neuronwise_linear

        z = neuronwise_linear(x, weight, bias, gate=case.gate, rule=self.rule(case))
        return z, weight, bias

    def gradients(self, case: Case) -> Gradients:
        """Forward pass and `backward`."""
        inputs, outputs = case.kernel.shape
        x = to_tensor(case.x).requires_grad_()
        weight = weights.to_torch(case.kernel, inputs=inputs, outputs=outputs)
        weight = to_tensor(weight).requires_grad_()
        bias = None if case.bias is None else to_tensor(case.bias).requires_grad_()
        z, weight, bias = self.forward(case, x, weight, bias)
        z.backward(to_tensor(case.delta))
        g_kernel = weights.to_flax(to_numpy(weight.grad), inputs=inputs, outputs=outputs)
        g_bias = None if bias is None else to_numpy(bias.grad)
        return Gradients(to_numpy(z), to_numpy(x.grad), g_kernel, g_bias)

    def moments(self, case: Case) -> Statistics:
        """`torchnorm.neuron_moments`."""
        import torchnorm

        x, s = to_tensor(case.rows), to_tensor(case.weight)
        inputs, outputs = case.kernel.shape
        found = map(to_numpy, torchnorm.neuron_moments(x, s, self.rule(case)))
        return Statistics(*(weights.to_flax(a, inputs=inputs, outputs=outputs) for a in found))


class TorchModule(TorchFunctional):
    """`torchnorm.Linear`."""

    name = "torch Linear"

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass of a module into which the parameters are loaded, strictly."""
        import torchnorm

        (inputs, outputs), rule = case.kernel.shape, self.rule(case)
        layer = torchnorm.Linear(
            inputs, outputs, bias is not None, dtype=x.dtype, gate=case.gate, rule=rule
        )
        named = {"weight": weight, "bias": bias}
        layer.load_state_dict({name: value for name, value in named.items() if value is not None})
        return layer(x), layer.weight, layer.bias


def to_tensor(array: np.ndarray) -> Any:
    """A tensor of the same dtype; bfloat16 takes the way over float32, which loses nothing."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(array)


def to_numpy(tensor: Any) -> np.ndarray:
    """An array of the same dtype; bfloat16 takes the way over float32, which loses nothing."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


IMPLEMENTATIONS: dict[str, tuple[type[Implementation], ...]] = {
    "jax": (JaxFunctional, LinenDense, NnxLinear),
    "torch": (TorchFunctional, TorchModule),
}


def load(frameworks: tuple[str, ...] = ("jax", "torch")) -> list[Implementation]:
    """One instance of everything the named frameworks offer."""
    return [kind() for framework in frameworks for kind in IMPLEMENTATIONS[framework]]
