"""Biases that stand still, of many layers at once, where nothing can be looked at. Pure.

As `LayerCoordinates.with_fixed`, which looks first, but with few operators: on a GPU each is a
launch. What there is one of for each neuron is taken together for all layers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchnorm.coordinates import Coordinates
from torchnorm.statistics.merging import scale_about_zero
from torchnorm.statistics.tracked import Statistics


class Standing(NamedTuple):
    """Which neurons of a layer have a bias that does not learn.

    Attributes:
        stands: whether the gradient of the bias is exactly 0, [O, 1, ...].
        fixed: whether second moments are about zero, likewise: the weight learns besides.
        zero: 1 / sigma about zero; or the statistics that it is made of.
    """

    stands: torch.Tensor
    fixed: torch.Tensor
    zero: torch.Tensor | Statistics


def of_gradients(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    zero: Sequence[torch.Tensor | Statistics | None],
) -> list[Standing | None]:
    """Those whose bias has a gradient of 0 and whose weight has not; None where `zero` is.

    Args:
        weights: gradients [O, I, ...], of at least one entry.
        biases: theirs [O, 1, ...].
        zero: see `Standing`.
    """
    places = [place for place, each in enumerate(zero) if each is not None]
    if not places:
        return [None] * len(zero)

    def flags(bias: torch.Tensor, moves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return bias == 0, (bias == 0) & moves

    found = iter(_of_all(flags, places, biases, weights))
    # Compiled, it costs less to make the scale again than to keep it until the step is made.
    keeps = not torch.compiler.is_compiling()
    return [
        None if each is None else Standing(*next(found), _scale(each) if keeps else each)
        for each in zero
    ]


def of_steps(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    standing: Sequence[Standing | None],
) -> list[Standing | None]:
    """Those, too, of which memory moves the weight but not the bias."""
    places = [place for place, each in enumerate(standing) if each is not None]
    if not places:
        return list(standing)
    before = [each for each in standing if each is not None]
    stands = torch.cat([each.stands.flatten() for each in before])
    fixed = torch.cat([each.fixed.flatten() for each in before])

    def flags(bias: torch.Tensor, moves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return stands, ((bias == 0) & stands & moves) | fixed

    found = iter(_of_all(flags, places, biases, weights))
    return [None if each is None else Standing(*next(found), each.zero) for each in standing]


def _of_all(
    flags: Callable[..., Any],
    places: list[int],
    biases: Sequence[Any],
    weights: Sequence[torch.Tensor],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`flags` of all biases and of whether the weights' rows move, layer by layer."""
    shapes = [biases[place].shape for place in places]
    bias = torch.cat([biases[place].flatten() for place in places])
    axes = [tuple(range(1, weights[place].ndim)) for place in places]
    # (NaN is not 0 either.)
    rows = [
        torch.linalg.vector_norm(weights[place], torch.inf, axis)
        for place, axis in zip(places, axes, strict=True)
    ]
    each = [
        value.split([shape[0] for shape in shapes]) for value in flags(bias, torch.cat(rows) != 0)
    ]
    return [
        (one.view(shape), other.view(shape))
        for one, other, shape in zip(*each, shapes, strict=True)
    ]


def with_standing(
    at: Sequence[Coordinates], standing: Sequence[Standing | None]
) -> list[Coordinates]:
    """The coordinates with the scales about zero.

    The means are those before: such a bias has no gradient; of its step see `pull_back_`. Nor is
    there for a step what varies.
    """
    return [
        here
        if each is None
        else here._replace(scale=torch.where(each.fixed, _scale(each.zero), here.scale))
        for here, each in zip(at, standing, strict=True)
    ]


def with_all_varying(
    at: Sequence[Coordinates], standing: Sequence[Standing | None]
) -> list[Coordinates]:
    """The coordinates; about zero everything varies."""
    return [
        here
        if each is None or here.varies is None
        else here._replace(varies=torch.maximum(here.varies.to(here.scale.dtype), each.fixed))
        for here, each in zip(at, standing, strict=True)
    ]


def _scale(zero: torch.Tensor | Statistics) -> torch.Tensor:
    return zero if isinstance(zero, torch.Tensor) else scale_about_zero(zero)
