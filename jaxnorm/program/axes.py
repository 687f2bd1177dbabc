"""Where the axes of an array come from: labels, followed through reshapes and transpositions."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Label:
    """An axis, or a part of one that a reshape has split. New ones are equal to themselves only.

    Args:
        size: its length.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: tuple[Label, ...] | None = None

    def split(self, left: int) -> tuple["Label", "Label"]:
        """Into a first part of so many entries and the rest, wherever it is used."""
        self.parts = parts = (Label(left), Label(self.size // left))
        return parts


#: The labels of one axis, outermost first; none for an axis of length 1 that was put in.
Axis = tuple[Label, ...]
Axes = tuple[Axis, ...]


def fresh(shape: Sequence[int]) -> Axes:
    """A label for every axis that has more than one entry."""
    return tuple((Label(n),) if n != 1 else () for n in shape)


def atoms(axis: Iterable[Label]) -> Axis:
    """The labels of an axis that are not split any further."""
    found: list[Label] = []
    for label in axis:
        found += [label] if label.parts is None else atoms(label.parts)
    return tuple(found)


def every(axes: Axes) -> Axis:
    """The labels of all axes."""
    return tuple(label for axis in axes for label in atoms(axis))


def align(a: Axis, b: Axis) -> bool:
    """Split labels until both axes have as many, of the same sizes; whether that is possible."""
    at = 0
    while True:
        left, right = atoms(a), atoms(b)
        if at == len(left) or at == len(right):
            return len(left) == len(right)
        one, other = left[at], right[at]
        if one.size != other.size:
            large, small = (one, other) if one.size > other.size else (other, one)
            if large.size % small.size:
                return False
            large.split(small.size)
        at += 1


def transposed(axes: Axes, permutation: Sequence[int]) -> Axes:
    """The axes in another order."""
    return tuple(axes[int(a)] for a in permutation)


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes after a reshape, None where a part of an axis would have to be cut unevenly."""
    rest = list(every(axes))
    result: list[Axis] = []
    for size in shape:
        axis: list[Label] = []
        while math.prod(label.size for label in axis) != size:
            if not rest:
                return None
            missing = size // math.prod(label.size for label in axis)
            label = rest.pop(0)
            if label.size > missing:
                if label.size % missing:
                    return None
                first, second = label.split(missing)
                rest.insert(0, second)
                label = first
            axis.append(label)
            if size % math.prod(label.size for label in axis):
                return None
        result.append(tuple(axis))
    return None if rest else tuple(result)


def broadcast(axes: Axes, shape: Sequence[int], dimensions: Sequence[int]) -> Axes:
    """The axes after ``broadcast_in_dim``; what is repeated has labels of its own."""
    result = list(fresh(shape))
    for axis, dimension in zip(axes, dimensions, strict=True):
        if math.prod(label.size for label in axis) == shape[int(dimension)]:
            result[int(dimension)] = axis
    return tuple(result)


def moved(step: Any, axes: Axes) -> Axes | None:
    """The axes of the result of a step that only moves entries; None for any other."""
    params, shape = step.eqn.params, step.outputs[0].aval.shape
    if step.name == "transpose":
        return transposed(axes, params["permutation"])
    if step.name in ("reshape", "squeeze", "expand_dims"):
        if step.name == "reshape" and params["dimensions"] is not None:  # in another order
            axes = transposed(axes, params["dimensions"])
        return reshaped(axes, shape)
    if step.name == "broadcast_in_dim":
        return broadcast(axes, shape, params["broadcast_dimensions"])
    return axes if step.name in SAME_PLACE else None


#: Every entry stays where it is.
SAME_PLACE = {
    *("convert_element_type", "copy", "copy_p", "name", "optimization_barrier", "pcast", "pvary"),
    *("reduce_precision", "sharding_constraint", "stop_gradient"),
}


def order(axes: Axes, wanted: Axis) -> tuple[int, ...] | None:
    """The permutation of whole axes that puts the labels into this order, None if none does."""
    left, permutation = list(wanted), []
    remaining = {a: atoms(axis) for a, axis in enumerate(axes)}
    while left:
        fits = (a for a, axis in remaining.items() if axis and tuple(left[: len(axis)]) == axis)
        found = next(fits, None)
        if found is None:
            return None
        left = left[len(remaining.pop(found)) :]
        permutation.append(found)
    if any(remaining.values()):
        return None
    return (*(a for a, axis in sorted(remaining.items()) if not axis), *permutation)


def sizes(labels: Iterable[Label]) -> tuple[int, ...]:
    """Their lengths."""
    return tuple(label.size for label in labels)


class Frozen:
    """The same axes with labels of their own, that no later reshape splits."""

    def __init__(self) -> None:
        self._copies: dict[Label, Label] = {}

    def __call__(self, axes: Axes) -> Axes:
        """A copy; the same label has the same copy."""
        return tuple(
            tuple(self._copies.setdefault(label, Label(label.size)) for label in atoms(axis))
            for axis in axes
        )


def count(labels: Iterable[Label]) -> int:
    """How many entries they have together."""
    return int(np.prod(sizes(labels), dtype=np.int64))
