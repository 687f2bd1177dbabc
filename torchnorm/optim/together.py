"""Parameters and gradients of many layers, into the coordinates and back: with few operators.

As `one_by_one`, of layers whose parameters are 0 in the coordinates. On a GPU each operator is a
launch, and on a CPU the time of small layers is that of launching them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from torchnorm.coordinates import gradients_into, pull_back_
from torchnorm.optim.decay import Decays
from torchnorm.optim.layer_coordinates import LayerCoordinates
from torchnorm.optim.layers import Pair, as_parameter, back, layout
from torchnorm.optim.one_by_one import Saved, is_zero

#: So many entries at a time: what is computed in between is no larger.
_ENTRIES = 2**22


def fits(layer: LayerCoordinates, decay: Decays) -> bool:
    """Whether a layer can be among those that are taken together."""
    dtype, weight = layer.at.scale.dtype, layer.parameters.weight
    if decay.beside is None or layer.usable is not None:
        return False
    for parameter, grad in zip(layer.parameters, layer.grads, strict=True):
        if parameter is not None and not (_is_plain(parameter, dtype) and _is_plain(grad, dtype)):
            return False
    flat = layout(layer.layer.module)(weight)
    return flat is weight or flat._base is weight  # so that it can be changed in place


def _is_plain(value: torch.Tensor, dtype: torch.dtype) -> bool:
    plain = type(value) in (torch.Tensor, torch.nn.Parameter)
    return plain and value.dtype == dtype and value.layout == torch.strided


def chunks(pairs: Iterable[tuple[LayerCoordinates, Decays]]) -> Iterator[list[Any]]:
    """The layers that are taken at a time, each with its decay."""
    chunk: list[Any] = []
    entries = 0
    for layer, decay in pairs:
        size = layer.parameters.weight.numel()
        if chunk and entries + size > _ENTRIES:
            yield chunk
            chunk, entries = [], 0
        chunk.append((layer, decay))
        entries += size
    if chunk:
        yield chunk


def enter(layers: list[LayerCoordinates], decays: list[Decays]) -> list[Saved]:
    """Put the parameters, which are 0, and the gradients into the coordinates."""
    del decays  # which do not need the parameters
    parameters = _present(layer.parameters for layer in layers)
    biases = [grad for grad in (layer.grads.bias for layer in layers) if grad is not None]
    # An optimizer may write in the gradient of a bias, which is the bias's own.
    copied = [*parameters, *biases]
    copies = list(map(torch.empty_like, copied))
    torch._foreach_copy_(copies, copied)
    values, bias_grads = iter(copies[: len(parameters)]), iter(copies[len(parameters) :])
    flat = [_flat(layer, layer.grads) for layer in layers]
    changed = gradients_into(*zip(*flat, strict=True), [layer.at for layer in layers])
    saved = []
    for layer, grad in zip(layers, changed, strict=True):
        weight, bias = layer.parameters
        before = Pair(next(values), None if bias is None else next(values))
        inner = as_parameter(back(layer.layer.module)(grad), weight)
        inner_grads = Pair(inner, None if bias is None else next(bias_grads))
        saved.append(Saved(before, layer.grads, Pair(None, None), inner_grads))
    torch._foreach_zero_(parameters)
    for layer, before in zip(layers, saved, strict=True):
        for parameter, grad in zip(layer.parameters, before.inner_grads, strict=True):
            if parameter is not None:
                # The gradient itself stays as it is, for whoever looks at it after the step.
                parameter.grad = grad
    return saved


def leave(
    layers: list[LayerCoordinates], saved: list[Saved], decays: list[Decays], skipped: Any
) -> None:
    """Take the steps that were made out of the coordinates."""
    for place, layer in enumerate(layers):
        if layer.some_stand:
            weight, bias = layer.parameters
            # Of a neuron without a gradient now memory may move the weight, but not such a bias.
            layers[place] = layer.with_fixed(weight, layer.grads.bias, bias)
    flat = [_flat(layer, layer.parameters) for layer in layers]
    weights, biases = zip(*flat, strict=True)
    pull_back_(weights, biases, [layer.at for layer in layers])
    for layer, before, decay in zip(layers, saved, decays, strict=True):
        assert decay.beside is not None
        each = zip(layer.parameters, before.values, before.grads, decay.beside, strict=True)
        for parameter, value, grad, share in each:
            if parameter is not None:
                parameter.grad = grad
                if not is_zero(share):
                    share = share if skipped is None else torch.where(skipped > 0, 0, share)
                    parameter.sub_(share * value)
    parameters = _present(layer.parameters for layer in layers)
    torch._foreach_add_(parameters, _present(before.values for before in saved))


def _present(pairs: Iterable[Pair]) -> list[torch.Tensor]:
    return [value for pair in pairs for value in pair if value is not None]


def _flat(layer: LayerCoordinates, pair: Pair) -> Pair:
    """What lies at weight and bias as [O, I, ...] and [O, 1, ...], without a copy."""
    weight = layout(layer.layer.module)(pair.weight)
    bias = pair.bias
    return Pair(weight, None if bias is None else bias.view(-1, *[1] * (weight.ndim - 1)))
