"""One interface over everything that claims to compute the rule. NumPy in, NumPy out.

Only public names of the two packages are used, in the way in which a user would (`in_jax`,
`in_torch`). Frameworks are imported when an implementation runs, so that one can be examined
without the other.
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
from parity_tests.patches import Convolution, Dense, TorchConvTranspose
from parity_tests.tolerances import CANCELLATION


class Gradients(NamedTuple):
    """What a layer returns, forward and backward; kernels in the layout of the case."""

    z: np.ndarray
    g_x: np.ndarray
    g_kernel: np.ndarray
    g_bias: Any  # None without a bias


class Statistics(NamedTuple):
    """Mean and sigma of the inputs as each neuron sees them, in the layout [I,O]."""

    mean: np.ndarray
    sigma: np.ndarray


class Implementation(ABC):
    """Something that computes a neuron-wise layer."""

    name: str
    #: By how much its gates are wider in the families that are `CANCELLING`.
    slack = 1.0

    @abstractmethod
    def supports(self, case: Case) -> bool:
        """Whether it has the operation of the case at all."""

    @abstractmethod
    def gradients(self, case: Case) -> Gradients:
        """Run the layer forward and backward on the cotangent of the case."""

    @abstractmethod
    def moments(self, case: Case) -> Statistics:
        """Mean and sigma [I,O] of the inputs of a dense case under its sample weights."""


class JaxFunctional(Implementation):
    """`jaxnorm.neuronwise_dense`, `neuronwise_conv` and so on."""

    name = "jax functional"

    def supports(self, case: Case) -> bool:
        """Everything."""
        return True

    def how(self, case: Case) -> dict[str, Any]:
        """Gate and rule, as the package's own dataclass."""
        import jaxnorm
        from parity_tests import in_jax

        gate = jaxnorm.DEFERRED if case.deferred else in_jax.gate(case.gate)
        return {"gate": gate, "rule": jaxnorm.Rule(**asdict(case.knobs))}

    def parameters(self, case: Case) -> dict[str, Any]:
        """Parameters under the names that flax gives them."""
        import jax.numpy as jnp

        named = {"kernel": case.kernel, "bias": case.bias}
        return {name: jnp.asarray(value) for name, value in named.items() if value is not None}

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass."""
        from parity_tests import in_jax

        return in_jax.functional(case, parameters, x, self.how(case))

    def gradients(self, case: Case) -> Gradients:
        """Forward pass and vector-Jacobian product."""
        import jax.numpy as jnp

        from parity_tests import in_jax

        def run(parameters: dict[str, Any], x: Any) -> Any:
            return in_jax.deferred(case, self.apply(case, parameters, x))

        x = jnp.asarray(case.x)
        return Gradients._make(in_jax.gradients(run, case, self.parameters(case), x))

    def moments(self, case: Case) -> Statistics:
        """`jaxnorm.neuron_moments`."""
        import jax.numpy as jnp

        import jaxnorm

        x, s, rule = jnp.asarray(case.rows), jnp.asarray(case.weight), self.how(case)["rule"]
        return Statistics(*map(np.asarray, jaxnorm.neuron_moments(x, s, rule)))


class Linen(JaxFunctional):
    """The layers of `jaxnorm.linen`."""

    name = "linen"

    def supports(self, case: Case) -> bool:
        """All but PyTorch's transposed convolution."""
        return not isinstance(case.op, TorchConvTranspose)

    def package(self) -> Any:
        """Where the layers come from."""
        import jaxnorm.linen

        return jaxnorm.linen

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        from parity_tests import in_jax

        layer = in_jax.linen(case, self.package(), self.how(case))
        return layer.apply({"params": parameters}, x)


class Nnx(Linen):
    """The layers of `jaxnorm.nnx`."""

    name = "nnx"

    def package(self) -> Any:
        """Where the layers come from."""
        import jaxnorm.nnx

        return jaxnorm.nnx

    def apply(self, case: Case, parameters: dict[str, Any], x: Any) -> Any:
        """The forward pass on given parameters."""
        from parity_tests import in_jax

        layer = in_jax.nnx_layer(case, self.package(), self.how(case))
        return in_jax.call_nnx(layer, parameters, x)


class LinenRecorded(Linen):
    """Layers that record their statistics, and `in_neuron_coordinates` around plain SGD."""

    name = "linen, optax"
    slack = CANCELLATION

    def supports(self, case: Case) -> bool:
        """As `Linen`; the wrapper has no other form of the gradient."""
        return super().supports(case) and case.knobs.gradient == "preconditioned"

    def how(self, case: Case) -> dict[str, Any]:
        """With the layers' own default for the gradient."""
        import jaxnorm

        knobs: dict[str, Any] = asdict(case.knobs) | {"gradient": None}
        return super().how(case) | {"rule": jaxnorm.Rule(**knobs)}

    def gradients(self, case: Case) -> Gradients:
        """Minus the step that SGD with a rate of 1 makes."""
        import jax.numpy as jnp

        from parity_tests import in_jax

        layer = in_jax.linen(case, self.package(), self.how(case))
        found = in_jax.wrapped(layer, case, self.parameters(case), jnp.asarray(case.x))
        return Gradients._make(found)


class TorchFunctional(Implementation):
    """`torchnorm.functional.neuronwise_linear`, `neuronwise_conv2d` and so on."""

    name = "torch functional"

    def supports(self, case: Case) -> bool:
        """What PyTorch has."""
        from parity_tests import in_torch

        return in_torch.supports(case)

    def package(self) -> Any:
        """Where the functions or modules come from."""
        import torchnorm.functional

        return torchnorm.functional

    def how(self, case: Case) -> dict[str, Any]:
        """Gate and rule, as the package's own dataclass."""
        import torchnorm
        from parity_tests import in_torch

        gate = torchnorm.DEFERRED if case.deferred else in_torch.gate(case.gate)
        return {"gate": gate, "rule": torchnorm.Rule(**asdict(case.knobs))}

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass, with the leaves that will carry the gradients."""
        from parity_tests import in_torch

        z = in_torch.functional(case, x, weight, bias, self.package(), self.how(case))
        return z, weight, bias

    def gradients(self, case: Case) -> Gradients:
        """Forward pass and `backward`, channels first in between."""
        from parity_tests import in_torch

        there = back = np.asarray
        if isinstance(case.op, Dense | Convolution):
            inputs, outputs = case.kernel.shape[-2:]
            there = partial(weights.to_torch, inputs=inputs, outputs=outputs)
            back = partial(weights.to_flax, inputs=inputs, outputs=outputs)
        x = to_tensor(case.x).requires_grad_()
        weight = to_tensor(there(case.kernel)).requires_grad_()
        bias = None if case.bias is None else to_tensor(case.bias).requires_grad_()
        images = in_torch.channels_first(x, case)
        z, weight, bias = self.forward(case, images, weight, bias)
        z = in_torch.deferred(case, z)
        z = in_torch.channels_last(z, case)
        z.backward(to_tensor(case.delta))
        g_weight, g_bias = self.learnt(weight, bias)
        g_bias = None if g_bias is None else to_numpy(g_bias)
        return Gradients(to_numpy(z), to_numpy(x.grad), back(to_numpy(g_weight)), g_bias)

    def learnt(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        """The gradients at the parameters."""
        return weight.grad, None if bias is None else bias.grad

    def moments(self, case: Case) -> Statistics:
        """`torchnorm.neuron_moments`."""
        import torchnorm

        x, s = to_tensor(case.rows), to_tensor(case.weight)
        inputs, outputs = case.kernel.shape
        found = map(to_numpy, torchnorm.neuron_moments(x, s, self.how(case)["rule"]))
        return Statistics(*(weights.to_flax(a, inputs=inputs, outputs=outputs) for a in found))


class TorchModule(TorchFunctional):
    """`torchnorm.Linear`, `torchnorm.Conv2d` and so on."""

    name = "torch module"

    def package(self) -> Any:
        """Where the modules come from."""
        import torchnorm

        return torchnorm

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass of a module into which the parameters are loaded, strictly."""
        from parity_tests import in_torch

        layer, before = in_torch.module(case, self.package(), self.how(case))
        named = {"weight": weight, "bias": bias}
        layer.load_state_dict({name: value for name, value in named.items() if value is not None})
        return layer(x if before is None else before(x)), layer.weight, layer.bias


class TorchRecorded(TorchModule):
    """Modules that record their statistics, and `in_neuron_coordinates` around plain SGD."""

    name = "torch, optim"
    slack = CANCELLATION

    def supports(self, case: Case) -> bool:
        """As `TorchModule`; the optimizer has no other form of the gradient."""
        return super().supports(case) and case.knobs.gradient == "preconditioned"

    def how(self, case: Case) -> dict[str, Any]:
        """With the modules' own default for the gradient."""
        import torchnorm

        knobs: dict[str, Any] = asdict(case.knobs) | {"gradient": None}
        return super().how(case) | {"rule": torchnorm.Rule(**knobs)}

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass of a module whose optimizer steps when the gradient has arrived."""
        import torch

        import torchnorm
        from parity_tests import in_torch

        layer, before = in_torch.module(case, self.package(), self.how(case))
        named = {"weight": weight, "bias": bias}
        layer.load_state_dict({name: value for name, value in named.items() if value is not None})
        self.optimizer = torchnorm.optim.in_neuron_coordinates(
            torch.optim.SGD(layer.parameters(), 1.0), layer
        )
        images = x if before is None else before(x)
        if case.family == "large_mean":  # about the mean of the data, as from the second step on
            in_torch.gather(layer, case, images.detach())
        return layer(images), layer.weight, layer.bias

    def learnt(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        """Minus the step from 0 that SGD with a rate of 1 makes."""
        parameters = [weight] if bias is None else [weight, bias]
        for parameter in parameters:
            parameter.data.zero_()
        self.optimizer.step()
        return -weight, None if bias is None else -bias


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
    "jax": (JaxFunctional, Linen, Nnx, LinenRecorded),
    "torch": (TorchFunctional, TorchModule, TorchRecorded),
}


def load(frameworks: tuple[str, ...] = ("jax", "torch")) -> list[Implementation]:
    """One instance of everything the named frameworks offer."""
    return [kind() for framework in frameworks for kind in IMPLEMENTATIONS[framework]]


def quick() -> list[Implementation]:
    """All but Optax, for whose steps JAX compiles everything anew; those have their own tests."""
    return [each for each in load() if not isinstance(each, LinenRecorded)]
