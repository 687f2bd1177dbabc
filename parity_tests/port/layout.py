"""Where the numbers of an input, an output or an intermediate result are on the two sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity_tests.port.measure import distance

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """From PyTorch's array to Flax's, and back.

    Attributes:
        name: "same", "channels" ([N, C, *] is [N, *, C]), "time" (the first two axes swapped),
            "reshaped" (heads or batches joined), "channels, reshaped" (an image as tokens).
        to_flax: the array in Flax.
        to_torch: the array in PyTorch.
    """

    name: str
    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def alignments(torch: Shape, flax: Shape) -> list[Alignment]:
    """All that the shapes admit, the likeliest first: for rank 4 and more, channels."""
    found = []
    if torch == flax:
        found.append(Alignment("same", _same, _same))
    if len(torch) > 2 and (torch[0], *torch[2:], torch[1]) == flax:
        channels = Alignment("channels", channels_last, channels_first)
        found.insert(0 if len(torch) > 3 else len(found), channels)
    if len(torch) > 2 and (torch[1], torch[0], *torch[2:]) == flax:
        found.append(Alignment("time", _swapped, _swapped))
    if torch != flax and np.prod(torch) == np.prod(flax):
        if len(torch) > 3 and torch[1] == flax[-1]:
            # An image whose pixels are tokens on one side.
            image = (torch[0], *torch[2:], torch[1])
            found.append(
                Alignment(
                    "channels, reshaped",
                    lambda x: channels_last(x).reshape(flax),
                    lambda x: channels_first(x.reshape(image)),
                )
            )
        if (
            len(torch) > 3
            and len(flax) == len(torch)
            and ((torch[0], torch[2], torch[1], *torch[3:]) == flax)
        ):  # heads before positions
            found.append(
                Alignment("heads", lambda x: np.swapaxes(x, 1, 2), lambda x: np.swapaxes(x, 1, 2))
            )
        found.append(Alignment("reshaped", lambda x: x.reshape(flax), lambda x: x.reshape(torch)))
    return found


def choose(
    torch: np.ndarray, flax: np.ndarray, among: list[Alignment] | None = None
) -> Alignment | None:
    """The one that shapes admit; of several the one that agrees far better, or the first."""
    every = alignments(torch.shape, flax.shape) if among is None else among
    if len(every) < 2:
        return every[0] if every else None
    errors = [distance(flax, each.to_flax(torch)).error for each in every]
    best = int(np.argmin(errors))
    return every[best] if errors[best] < 0.1 * errors[0] else every[0]


def flattened_image(image: Shape) -> Alignment:
    """Of an image [*space, channels] that both sides have flattened, in their own order."""
    *space, channels = image

    def to_flax(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x.reshape(*x.shape[:-1], channels, *space), x.ndim - 1, -1).reshape(
            x.shape
        )

    def to_torch(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x.reshape(*x.shape[:-1], *space, channels), -1, x.ndim - 1).reshape(
            x.shape
        )

    return Alignment("flattened image", to_flax, to_torch)


def channels_last(x: np.ndarray) -> np.ndarray:
    """[N, C, *] to [N, *, C]."""
    return np.moveaxis(x, 1, -1)


def channels_first(x: np.ndarray) -> np.ndarray:
    """[N, *, C] to [N, C, *]."""
    return np.moveaxis(x, -1, 1)


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _swapped(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, 0, 1)


def convert_tree(tree: Any, function: Callable[[str, np.ndarray], Any], name: str = "") -> Any:
    """Every array in tuples, lists and dicts, by its name."""
    if isinstance(tree, np.ndarray):
        return function(name, tree)
    join = f"{name}." if name else ""
    if isinstance(tree, (tuple, list)):
        return type(tree)(convert_tree(v, function, f"{join}{n}") for n, v in enumerate(tree))
    if isinstance(tree, dict):
        return {k: convert_tree(v, function, f"{join}{k}") for k, v in tree.items()}
    return tree
