"""Parameters and gradients of many layers, into the coordinates and back: with few operators.

As `one_by_one`, of layers whose parameters are 0 in the coordinates. On a GPU each operator is a
launch, and on a CPU the time of small layers is that of launching them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from torchnorm.compiling import uncompiled, uncompiled_alone
from torchnorm.coordinates import PLAIN, Coordinates, foreach, gradients_into, pull_back_
from torchnorm.optim.decay import Decays
from torchnorm.optim.layer_coordinates import LayerCoordinates, may_stand
from torchnorm.optim.layers import Pair, as_parameter, back, layout
from torchnorm.optim.one_by_one import Saved, is_zero
from torchnorm.optim.standing import (
    Standing,
    of_gradients,
    of_steps,
    with_all_varying,
    with_standing,
)
from torchnorm.statistics.tracked import Statistics

#: So many entries at a time: what is computed in between is no larger.
_ENTRIES = 2**22


def fits(layer: LayerCoordinates, decay: Decays) -> bool:
    """Whether a layer can be among those that are taken together."""
    dtype, weight = layer.statistics.scalars.dtype, layer.parameters.weight
    if decay.beside is None or layer.usable is not None or not weight.numel():
        return False
    for parameter, grad in zip(layer.parameters, layer.grads, strict=True):
        if parameter is not None and not (_is_plain(parameter, dtype) and _is_plain(grad, dtype)):
            return False
    flat = layout(layer.layer.module)(weight)
    return flat is weight or flat._base is weight  # so that it can be changed in place


def _is_plain(value: torch.Tensor, dtype: torch.dtype) -> bool:
    return type(value) in PLAIN and value.dtype == dtype and value.layout == torch.strided


def chunks(pairs: Iterable[tuple[LayerCoordinates, Decays]]) -> Iterator[list[Any]]:
    """The layers that are taken at a time, each with its decay: of one device."""
    chunk: list[Any] = []
    device = None
    entries = 0
    for layer, decay in pairs:
        weight = layer.parameters.weight
        size = weight.numel()
        if chunk and (entries + size > _ENTRIES or weight.device != device):
            yield chunk
            chunk, entries = [], 0
        device = weight.device
        chunk.append((layer, decay))
        entries += size
    if chunk:
        yield chunk


@uncompiled_alone
def enter(layers: list[LayerCoordinates], decays: list[Decays]) -> list[Saved]:
    """Put the parameters, which are 0, and the gradients into the coordinates."""
    del decays  # which do not need the parameters
    return _entered(layers, *_into(*_lists(layers, gradients=True), _about_zero(layers)))


def _into(
    weights: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    at: list[Coordinates],
    zero: list[torch.Tensor | Statistics | None],
) -> tuple[list[torch.Tensor], list[Standing | None]]:
    standing = of_gradients(weights, biases, zero)
    at = with_all_varying(with_standing(at, standing), standing)
    return gradients_into(weights, biases, at), standing


@uncompiled
def _about_zero(layers: list[LayerCoordinates]) -> list[torch.Tensor | Statistics | None]:
    return [layer.scale_about_zero() if layer.unseen else None for layer in layers]


@uncompiled
def _entered(
    layers: list[LayerCoordinates],
    changed: list[torch.Tensor],
    standing: list[Standing | None],
) -> list[Saved]:
    parameters = _present(layer.parameters for layer in layers)
    biases = [grad for grad in (layer.grads.bias for layer in layers) if grad is not None]
    # An optimizer may write in the gradient of a bias, which is the bias's own.
    copied = [*parameters, *biases]
    copies = list(map(torch.empty_like, copied))
    foreach._foreach_copy_(copies, copied)
    values, bias_grads = iter(copies[: len(parameters)]), iter(copies[len(parameters) :])
    saved = []
    for layer, grad, stands in zip(layers, changed, standing, strict=True):
        weight, bias = layer.parameters
        before = Pair(next(values), None if bias is None else next(values))
        inner = as_parameter(back(layer.layer.module)(grad), weight)
        inner_grads = Pair(inner, None if bias is None else next(bias_grads))
        saved.append(Saved(before, layer.grads, Pair(None, None), inner_grads, stands))
    foreach._foreach_zero_(parameters)
    for layer, before in zip(layers, saved, strict=True):
        for parameter, grad in zip(layer.parameters, before.inner_grads, strict=True):
            if parameter is not None:
                # The gradient itself stays as it is, for whoever looks at it after the step.
                parameter.grad = grad
    return saved


@uncompiled_alone
def leave(
    layers: list[LayerCoordinates], saved: list[Saved], decays: list[Decays], skipped: Any
) -> None:
    """Take the steps that were made out of the coordinates."""
    _back_(*_lists(layers, gradients=False), [before.standing for before in saved])
    _left(layers, saved, decays, skipped)


def _back_(
    weights: list[torch.Tensor],
    biases: list[torch.Tensor | None],
    at: list[Coordinates],
    standing: list[Standing | None],
) -> None:
    standing = of_steps(weights, biases, standing)
    fixed = [None if each is None else each.fixed for each in standing]
    pull_back_(weights, biases, with_standing(at, standing), fixed)


@uncompiled
def _left(
    layers: list[LayerCoordinates], saved: list[Saved], decays: list[Decays], skipped: Any
) -> None:
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
    foreach._foreach_add_(parameters, _present(before.values for before in saved))


@uncompiled
def _lists(
    layers: list[LayerCoordinates], *, gradients: bool
) -> tuple[list[torch.Tensor], list[torch.Tensor | None], list[Coordinates]]:
    """Weights [O, I, ...], biases [O, 1, ...] and coordinates: of gradients, or of steps."""
    weights, biases, at = [], [], []
    some = [] if gradients else [layer for layer in layers if layer.some_stand]
    steps = [layer.parameters.weight for layer in some]
    stills = [[layer.grads.bias for layer in some], [layer.parameters.bias for layer in some]]
    _, fixed = may_stand(some, steps, stills)
    for layer in layers:
        weight, bias = layer.grads if gradients else layer.parameters
        if layer.some_stand and not gradients and fixed:
            # Of a neuron without a gradient now memory may move the weight, but not such a bias.
            layer = layer.with_fixed(weight, layer.grads.bias, bias)
        weights.append(layout(layer.layer.module)(weight))
        shape = (-1, *[1] * (weights[-1].ndim - 1))
        biases.append(None if bias is None else bias.view(shape))
        at.append(layer.at)
    return weights, biases, at


def _present(pairs: Iterable[Pair]) -> list[torch.Tensor]:
    return [value for pair in pairs for value in pair if value is not None]
