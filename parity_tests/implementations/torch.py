"""torchnorm's functions and modules, and an optimizer's step in the coordinates."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch

import torchnorm
import torchnorm.functional
from parity_tests.cases import Case
from parity_tests.implementations import in_torch, weights
from parity_tests.implementations.base import Gradients, Implementation, Statistics
from parity_tests.oracle import Convolution, Dense


class TorchFunctional(Implementation):
    """`torchnorm.functional.neuronwise_linear`, `neuronwise_conv2d` and so on."""

    name = "torch functional"
    package: Any = torchnorm.functional

    def supports(self, case: Case) -> bool:
        """What PyTorch has."""
        return in_torch.supports(case)

    def options(self, case: Case) -> dict[str, Any]:
        """Gate and rule, as the package's own dataclass."""
        gate = torchnorm.DEFERRED if case.deferred else in_torch.gate(case.gate)
        return {"gate": gate, "rule": torchnorm.Rule(**asdict(case.knobs))}

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass, with the leaves that will carry the gradients."""
        z = in_torch.functional(case, x, weight, bias, self.package, self.options(case))
        return z, weight, bias

    def gradients(self, case: Case) -> Gradients:
        """Forward pass and `backward`, channels first in between."""
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
        g_weight, g_bias = self.learned(weight, bias)
        g_bias = None if g_bias is None else to_numpy(g_bias)
        return Gradients(to_numpy(z), to_numpy(x.grad), back(to_numpy(g_weight)), g_bias)

    def learned(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        """The gradients at the parameters."""
        return weight.grad, None if bias is None else bias.grad

    def moments(self, case: Case) -> Statistics:
        """`torchnorm.neuron_moments`."""
        x, s = to_tensor(case.rows), to_tensor(case.weight)
        inputs, outputs = case.kernel.shape
        found = map(to_numpy, torchnorm.neuron_moments(x, s, self.options(case)["rule"]))
        return Statistics(*(weights.to_flax(a, inputs=inputs, outputs=outputs) for a in found))


class TorchModule(TorchFunctional):
    """`torchnorm.Linear`, `torchnorm.Conv2d` and so on."""

    name = "torch module"
    package: Any = torchnorm

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass of a module into which the parameters are loaded, strictly."""
        layer, before = in_torch.module(case, self.package, self.options(case))
        named = {"weight": weight, "bias": bias}
        layer.load_state_dict({name: value for name, value in named.items() if value is not None})
        return layer(x if before is None else before(x)), layer.weight, layer.bias


class TorchOptim(TorchModule):
    """Modules that record their statistics, and `in_neuron_coordinates` around plain SGD."""

    name = "torch, optim"
    plain = True

    def supports(self, case: Case) -> bool:
        """As `TorchModule`; the optimizer has no other form of the gradient."""
        return super().supports(case) and case.knobs.gradient == "preconditioned"

    def options(self, case: Case) -> dict[str, Any]:
        """With the modules' own default for the gradient."""
        knobs: dict[str, Any] = asdict(case.knobs) | {"gradient": None}
        return super().options(case) | {"rule": torchnorm.Rule(**knobs)}

    def forward(self, case: Case, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """The forward pass of a module whose optimizer steps when the gradient has arrived."""
        layer, before = in_torch.module(case, self.package, self.options(case))
        named = {"weight": weight, "bias": bias}
        layer.load_state_dict({name: value for name, value in named.items() if value is not None})
        self.optimizer = torchnorm.optim.in_neuron_coordinates(
            torch.optim.SGD(layer.parameters(), 1.0), layer
        )
        images = x if before is None else before(x)
        if case.family == "large_mean":  # about the mean of the data, as from the second step on
            in_torch.gather(layer, case, images.detach())
        return layer(images), layer.weight, layer.bias

    def learned(self, weight: Any, bias: Any) -> tuple[Any, Any]:
        """Minus the step from 0 that SGD with a rate of 1 makes."""
        parameters = [weight] if bias is None else [weight, bias]
        for parameter in parameters:
            parameter.data.zero_()
        self.optimizer.step()
        return -weight, None if bias is None else -bias


def to_tensor(array: np.ndarray) -> Any:
    """A tensor of the same dtype; bfloat16 takes the way over float32, which loses nothing."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(array)


def to_numpy(tensor: Any) -> np.ndarray:
    """An array of the same dtype; bfloat16 takes the way over float32, which loses nothing."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


IMPLEMENTATIONS = (TorchFunctional, TorchModule, TorchOptim)
