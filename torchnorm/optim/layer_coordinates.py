"""The coordinates of one layer's parameters in a step."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from torchnorm.coordinates import Coordinates, at_hand, known_to_be_all
from torchnorm.optim.decay import stands_still
from torchnorm.optim.layer_statistics import Layer
from torchnorm.optim.layers import Pair, changed, layout
from torchnorm.statistics.merging import chosen
from torchnorm.statistics.parts import coordinates as coordinates_in
from torchnorm.statistics.parts import usable as usable_in
from torchnorm.statistics.tracked import Statistics


class LayerCoordinates(NamedTuple):
    """What changes the coordinates of one layer's parameters.

    Attributes:
        layer: with its statistics so far.
        parameters: its weight, and its bias or None where that may not move.
        grads: their plain gradients, which say what learns.
        statistics: of the layer.
        usable: whether there are any; where not, the layer has no gradient and plain coordinates.
            None where they are known to be.
        ready: the coordinates; None where they are made when they are asked for, of packed
            statistics (`Rule.statistics_dtype`), so that not those of all layers are there at once.
        whole: the coordinates of all neurons alike, and those about zero where they were needed.
        fixed: which neurons [O, 1, ...] have second moments about zero; None: all alike.
        some_stand: whether a bias may have a gradient of exactly 0.
    """

    layer: Layer
    parameters: Pair
    grads: Pair
    statistics: Statistics
    usable: torch.Tensor | None
    ready: Coordinates | None
    whole: tuple[Coordinates, Coordinates] | None = None
    fixed: torch.Tensor | None = None
    some_stand: bool = False

    @property
    def at(self) -> Coordinates:
        """The coordinates."""
        if self.ready is not None:
            return self.ready
        return _at(self.layer, self.statistics, self.usable, self.grads.bias is None)

    def with_fixed(self, weight: torch.Tensor, *biases: torch.Tensor) -> "LayerCoordinates":
        """With second moments about zero for neurons, too, whose bias does not learn.

        That is, whose weight has an entry that is not 0, and whose biases are all 0.

        Args:
            weight: the weight's gradient, or its step.
            *biases: the bias's gradient, its step.
        """
        stands = functools.reduce(torch.logical_and, [bias == 0 for bias in biases])
        if known_to_be_all(~stands):
            return self
        flat = layout(self.layer.module)(weight)
        fixed = _moves(flat) & stands.reshape(-1, *[1] * (flat.ndim - 1))
        some = self._replace(some_stand=True)
        if known_to_be_all(~fixed):
            return some
        if hasattr(fixed, "full_tensor"):
            fixed = fixed.full_tensor()  # type: ignore[attr-defined]
        fixed = fixed if self.fixed is None else fixed | self.fixed
        whole = self.whole or (self.at, _at(self.layer, self.statistics, self.usable, True))
        return some._replace(ready=chosen(fixed, *reversed(whole)), whole=whole, fixed=fixed)

    @property
    def unseen(self) -> bool:
        """Whether it has a bias of which nothing is known without waiting for a device."""
        return self.grads.bias is not None and not at_hand(self.grads.bias)

    def scale_about_zero(self) -> torch.Tensor | Statistics:
        """That of all neurons; or the statistics that it is made of."""
        statistics = self.statistics
        own = statistics.mass is not None and statistics.second is not None
        if self.layer.stats.settles and own and not self.layer.parts:
            return statistics
        return _at(self.layer, statistics, self.usable, True).scale

    def changed(self, change: Any, pair: Pair) -> Pair:
        """A change of coordinates, of what lies at the parameters."""
        weight = pair.weight
        mean, scale, varies = self.at
        dtype = torch.promote_types(scale.dtype, weight.dtype)
        varies = None if varies is None else beside(varies, weight)
        at = Coordinates(beside(mean, weight), beside(scale, weight), varies)
        return changed(pair, self.layer.module, dtype, lambda flat: Pair(*change(*flat, at)))


def beside(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """As a tensor that may meet the parameter: under FSDP2 replicated over its mesh."""
    if not hasattr(parameter, "device_mesh") or hasattr(value, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def coordinates_of(
    layer: Layer, statistics: Statistics, groups: dict[int, dict[str, Any]]
) -> LayerCoordinates:
    """The coordinates; the plain ones where the statistics are of no use.

    What single neurons have of their own is not seen yet (see `with_fixed_biases`).
    """
    parameters = Pair(layer.weight, layer.bias if _learns(layer, groups) else None)
    grads = Pair(*(None if p is None else p.grad for p in parameters))
    usable = None
    if not layer.stats.usable and not known_to_be_all(statistics.calls > 0):
        usable = usable_in(statistics, _neurons_of(layer)) if layer.parts else statistics.calls > 0
    ready = None
    if not statistics.is_packed:
        ready = _at(layer, statistics, usable, grads.bias is None)
    return LayerCoordinates(layer, parameters, grads, statistics, usable, ready)


def with_fixed_biases(layers: list[LayerCoordinates], later: list[bool]) -> list[LayerCoordinates]:
    """The layers with second moments about zero for neurons whose bias has no gradient.

    Not those of which that is found later.
    """
    now = [
        layer.grads.bias is not None and not is_later
        for layer, is_later in zip(layers, later, strict=True)
    ]
    looked = [layer for layer, is_now in zip(layers, now, strict=True) if is_now]
    weights, biases = ([layer.grads[at] for layer in looked] for at in (0, 1))
    stand, fixed = may_stand(looked, weights, [biases])
    if not stand:
        return layers

    def of(layer: LayerCoordinates) -> LayerCoordinates:
        return layer.with_fixed(*layer.grads) if fixed else layer._replace(some_stand=True)

    return [of(layer) if is_now else layer for layer, is_now in zip(layers, now, strict=True)]


def may_stand(
    layers: Sequence[LayerCoordinates],
    weights: Sequence[torch.Tensor],
    biases: Sequence[Sequence[torch.Tensor]],
) -> tuple[bool, bool]:
    """(Whether a bias may stand still, whether it may where the weight does not).

    As far as it is known without waiting for a device; one look for all layers.

    Args:
        layers: with a bias.
        weights: their weights' gradients, or steps.
        biases: the biases' gradients; then their steps.
    """
    if not layers:
        return False, False
    if not all(at_hand(value) for values in (weights, *biases) for value in values):
        return True, True
    still = [torch.cat([value.flatten() for value in values]) == 0 for values in biases]
    stands = functools.reduce(torch.logical_and, still)
    if not bool(stands.any()):
        return False, False
    parts = stands.split([value.numel() for value in biases[0]])
    some = torch.stack([part.any() for part in parts]).tolist()
    each = [
        part & _moves(layout(layer.layer.module)(weight)).flatten()
        for layer, weight, part, stand in zip(layers, weights, parts, some, strict=True)
        if stand
    ]
    return True, bool(torch.cat(each).any())


def _at(layer: Layer, statistics: Statistics, usable: Any, about_zero: bool) -> Coordinates:
    """The coordinates, of neurons whose bias may move or not; plain where nothing is usable."""
    stats = layer.stats
    known = {} if stats.taken else stats.coordinates
    at = known.get(about_zero)
    if at is None:
        neurons, fixed = _neurons_of(layer) if layer.parts else 0, True if about_zero else None
        at = coordinates_in(statistics, layer.parts, neurons, fixed, settles=stats.settles)
        # Not where that would be another array as large as the weight.
        if layer.parts == 0 and (statistics.second is at.scale or statistics.mass is None):
            known[about_zero] = at
    if usable is None:
        return at
    mean, scale = torch.where(usable, at.mean, 0), torch.where(usable, at.scale, 1)
    return at._replace(mean=mean, scale=scale)


def _neurons_of(layer: Layer) -> int:
    return len(layout(layer.module)(layer.weight.detach()))


def _moves(weight: torch.Tensor) -> torch.Tensor:
    """Of which neurons an entry of the weight is not 0, [O, 1, ...]."""
    axes = tuple(range(1, weight.ndim))
    if not weight.numel():
        return (weight != 0).any(axes, keepdim=True)
    # (Much faster than a comparison of all entries; NaN is not 0 either.)
    return weight.abs().amax(axes, keepdim=True) != 0


def _learns(layer: Layer, groups: dict[int, dict[str, Any]]) -> bool:
    """Whether the layer's bias does, as far as it is no matter of single neurons."""
    bias, group = layer.bias, groups.get(id(layer.bias))
    if bias is None or bias.grad is None or group is None:
        return False
    return not stands_still(group) or stands_still(groups[id(layer.weight)])
