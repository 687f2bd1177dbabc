"""A layer's parameters and gradients, into the coordinates and back: of any layer, by itself."""

from typing import Any, NamedTuple

import torch

from torchnorm.compiling import uncompiled
from torchnorm.coordinates import gradient_into, parameters_into, pull_back
from torchnorm.optim.decay import Decays
from torchnorm.optim.layer_coordinates import LayerCoordinates, beside
from torchnorm.optim.layers import Pair


class Saved(NamedTuple):
    """A layer's parameters and gradients, before and in the coordinates.

    With what is known of its biases, where they were not looked at (see `standing`).
    """

    values: Pair
    grads: Pair
    inner_values: Pair
    inner_grads: Pair
    standing: Any = None


@uncompiled
def enter(layers: list[LayerCoordinates], decays: list[Decays]) -> list[Saved]:
    """Put the parameters and gradients into the coordinates."""
    return list(map(_enter, layers, decays))


def _enter(layer: LayerCoordinates, decay: Decays) -> Saved:
    values = Pair(*(None if p is None else p.clone() for p in layer.parameters))
    inner_grads = layer.changed(gradient_into, layer.grads)
    if layer.usable is not None:
        usable = beside(layer.usable, values.weight)
        inner_grads = layer.changed(
            lambda *pair: tuple(None if g is None else torch.where(usable, g, 0) for g in pair[:2]),
            inner_grads,
        )
    inner_values = Pair(None, None)
    if inner_grads.bias is not None:
        # It is that of the bias itself, in which an optimizer may write.
        inner_grads = inner_grads._replace(bias=inner_grads.bias.clone())
    if decay.beside is None:
        inner_values = layer.changed(parameters_into, values)
        if values.bias is not None:
            if not is_zero(decay.bias):
                # The weight's decay moves the mean response, and so b~; b is to decay as asked.
                extra = decay.bias * (inner_values.bias - values.bias)
                inner_grads = inner_grads._replace(bias=inner_grads.bias + extra)
            if decay.plain_bias:
                inner_values = inner_values._replace(bias=values.bias)
    pairs = zip(layer.parameters, inner_values, inner_grads, strict=True)
    for parameter, value, grad in pairs:
        if parameter is not None:
            # Where the step does not depend on them, nothing has to be subtracted from it.
            parameter.zero_() if value is None else parameter.copy_(value)
            # The gradient itself stays as it is, for whoever looks at it after the step.
            parameter.grad = grad
    return Saved(values, layer.grads, inner_values, inner_grads)


@uncompiled
def restore(layers: list[LayerCoordinates], saved: list[Saved]) -> None:
    """Put parameters and gradients back as they were."""
    for layer, before in zip(layers, saved, strict=True):
        each = zip(layer.parameters, before.values, before.grads, strict=True)
        for parameter, value, grad in each:
            if parameter is not None:
                parameter.copy_(value)
                parameter.grad = grad


def is_zero(value: Any) -> bool:
    """Whether a number is, as far as that is known without waiting for a device."""
    return not isinstance(value, torch.Tensor) and value == 0


def inner_weight(layer: LayerCoordinates, saved: Saved) -> tuple[torch.Tensor, ...]:
    """(parameter, value before, gradient) of the weight, in the coordinates."""
    return layer.parameters.weight, saved.inner_values.weight, saved.inner_grads.weight


@uncompiled
def leave(
    layers: list[LayerCoordinates], saved: list[Saved], decays: list[Decays], skipped: Any
) -> None:
    """Take the steps that were made out of the coordinates."""
    for layer, before, decay in zip(layers, saved, decays, strict=True):
        _leave(layer, before, decay, skipped)


def _leave(layer: LayerCoordinates, saved: Saved, decay: Decays, skipped: Any) -> None:
    weight: Any
    bias: Any
    weight, bias = (
        p if before is None or p is None else p - before
        for p, before in zip(layer.parameters, saved.inner_values, strict=True)
    )
    shares = Pair(decay.weight, 0) if decay.beside is None else decay.beside
    if skipped is not None:
        shares = Pair(*(s if is_zero(s) else torch.where(skipped > 0, 0, s) for s in shares))
    if decay.beside is None and not is_zero(shares.weight):
        # Nothing makes up for what has decayed.
        weight = weight + shares.weight * saved.inner_values.weight
    if layer.some_stand:
        # Of a neuron without a gradient now memory may move the weight, but not such a bias.
        layer = layer.with_fixed(weight, layer.grads.bias, bias)
    steps = layer.changed(pull_back, Pair(weight, bias))
    pairs = zip(layer.parameters, saved.values, saved.grads, steps, shares, strict=True)
    for parameter, value, grad, step, share in pairs:
        if parameter is not None:
            if not is_zero(share):
                step = step - share * value
            parameter.copy_(value.add_(step))
            parameter.grad = grad
