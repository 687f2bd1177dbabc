"""What `bnp` and `quasi_diagonal` share: what is averaged for each layer, and the optimizer's step.

Both change the gradients of a layer by moments of which they keep the averages themselves. The
layers need not be ours.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from torchnorm.optim.batches import Gatherer, Inputs
from torchnorm.optim.hooks import before_step, handles
from torchnorm.optim.layers import (
    Pair,
    changed,
    has,
    layers_of,
    layout,
    learned,
    parameters,
    warn_left_out,
)
from torchnorm.optim.refusals import check_optimizer
from torchnorm.rule import Rule

#: {entry: tensor}, what is averaged for one layer.
Averages = dict[str, torch.Tensor]


Change = Callable[[Inputs, Pair, Averages | None], tuple[Pair, Averages]]


def check_number(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    """Raise an error unless `value` is a number that fits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name}: got {value}, expected {expected}")


class Preconditioner:
    """Changes the gradients of a model's layers before each step of an optimizer.

    Args:
        name: of the entry in the optimizer's state_dict.
        optimizer: of any parameters of the model.
        model: its dense and convolutional layers are taken.
        weighting: the sample weight, as in `Rule`.
        change: (what a layer's neurons read, its gradients, its averages, None before the first
            step) -> the new gradients and averages.
    """

    def __init__(
        self, name: str, optimizer: Any, model: Any, weighting: Any, change: Change
    ) -> None:
        check_optimizer(optimizer, name)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "optimizer: got LBFGS, expected one that needs gradients only; its line search "
                "expects those of the loss"
            )
        if name in handles(optimizer):
            raise ValueError(f"optimizer: got one with {name} already, expected another")
        self.name, self.change = name, change
        self.layers, ids = layers_of(optimizer, model), learned(optimizer)
        self.parameters = {name: parameters(layer) for name, layer in self.layers.items()}
        self.averages: dict[str, Averages | None] = dict.fromkeys(self.layers)
        self.centered = {
            name: bias is not None and bias.requires_grad and id(bias) in ids
            for name, (_, bias) in self.parameters.items()
        }
        self.gatherer = Gatherer(self.layers, self.centered, Rule(weighting=weighting))
        before_step(optimizer, name, self.adapt)
        handles(optimizer)[name] += [
            optimizer.register_state_dict_post_hook(self.save),
            optimizer.register_load_state_dict_pre_hook(self.load),
            *self.gatherer.handles.values(),
        ]

    def adapt(self, optimizer: Any) -> None:
        """Replace the gradients."""
        del optimizer
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"{self.name}: got {dist.get_world_size()} processes, expected one: each would "
                "average the moments of its own share; use in_neuron_coordinates, which shares them"
            )
        self._leave_changed()
        inputs = self.gatherer.take()
        found = {
            name: self._adapted(name, layer, inputs.get(name))
            for name, layer in self.layers.items()
            if layer.weight.grad is not None
        }
        for name, (gradient, averages) in found.items():
            layer = self.layers[name]
            self.averages[name] = averages
            layer.weight.grad = gradient.weight
            if gradient.bias is not None:
                layer.bias.grad = gradient.bias

    def _leave_changed(self) -> None:
        """Stop those whose parameters have become others."""
        changed = [n for n, each in self.layers.items() if not has(each, self.parameters[n])]
        for name in changed:
            self.gatherer.stop(name)
            del self.layers[name], self.averages[name], self.parameters[name]
        warn_left_out(changed, "or bias is computed now, or another parameter")

    def _adapted(self, name: str, layer: Any, inputs: Inputs | None) -> tuple[Pair, Averages]:
        if inputs is None:
            raise ValueError(
                f"{self.name}: got no inputs of {name!r} since the last step, expected those of a "
                "backward pass; call step() once after loss.backward(), and the layer itself, not "
                "a function with its weight"
            )
        weight, bias = layer.weight.grad, None
        if self.centered[name]:
            bias = layer.bias.grad
            if bias is None:
                raise ValueError(
                    f"{self.name}: got no gradient at the bias of {name!r}, expected one, as when "
                    f"{self.name} was called; freeze biases before"
                )
        averages: Averages = {}

        def change(gradient: Pair) -> Pair:
            gradient, new = self.change(inputs, gradient, self.averages[name])
            averages.update(new)
            return gradient

        return changed(Pair(weight, bias), layer, inputs.second.dtype, change), averages

    def save(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """{layer: {entry: tensor}} in the optimizer's state_dict."""
        del optimizer
        state = {
            name: {entry: value.clone() for entry, value in (averages or {}).items()}
            for name, averages in self.averages.items()
        }
        return state_dict | {self.name: state}

    def load(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Strictly."""
        del optimizer
        if self.name not in state_dict:
            raise ValueError(
                f"state_dict: got one without {self.name!r}, expected that of an optimizer with "
                f"torchnorm.optim.{self.name}"
            )
        state = state_dict[self.name]
        shapes = {
            name: tuple(layout(layer)(layer.weight).shape) for name, layer in self.layers.items()
        }
        if state.keys() != shapes.keys() or not all(
            _fits(value, shapes[name]) for name, each in state.items() for value in each.values()
        ):
            raise ValueError(
                f"state_dict: got {self.name} of {sorted(state)}, expected that of "
                f"{sorted(shapes)} with the same shapes; it is of another model"
            )
        for name, averages in state.items():
            device = self.layers[name].weight.device
            moved = {entry: value.to(device, copy=True) for entry, value in averages.items()}
            self.averages[name] = moved or None
        self.gatherer.take()
        return {name: value for name, value in state_dict.items() if name != self.name}


def _fits(value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return value.ndim == len(shape) and all(
        n in (1, m) for n, m in zip(value.shape, shape, strict=True)
    )


def all_finite(*tensors: torch.Tensor) -> torch.Tensor:
    """Whether a batch may enter an average."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
