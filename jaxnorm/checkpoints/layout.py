"""Where each entry of an array goes from Flax to PyTorch, and back.

What has a kernel's shape goes from one layout to the other:

    kernel of                      Flax                 PyTorch
    dense                          [I, O]               [O, I]
    dense, several axes (heads)    [*I, *O]             [O, I], flat
    convolution                    [*window, I / g, O]  [O, I / g, *window]
    transposed convolution         [*window, I, O]      [I, O, *window], the window reversed
      with transpose_kernel        [*window, O, I]      [I, O, *window]
    statistics of all of these     [*window, I, O]      [O, I, *window], reversed as the kernel

Weight normalization has a kernel (`DIRECTION`) and one number for each entry of an axis (`LENGTH`).
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnorm.statistics.tracked import ABOUT_ZERO, PACKED, SUMS

Shape = tuple[int, ...]

#: Fields of a layer's statistics that have the axes of its kernel.
AS_KERNEL = ("origin", "at_mean", *SUMS, *PACKED.values(), *ABOUT_ZERO)


#: What weight normalization multiplies, and by what, under names of ours.
DIRECTION, LENGTH = "weight_v", "weight_g"

#: Leaves that are kernels.
KERNELS = ("kernel", DIRECTION)


class Entry(NamedTuple):
    """One entry in both frameworks: reshaped, reversed, transposed, reshaped."""

    name: str  # in PyTorch
    flax: Shape
    split: Shape  # the shape in which axes are reversed and transposed
    reverse: tuple[int, ...]  # these axes
    order: tuple[int, ...]  # of the axes in PyTorch
    torch: Shape

    def to_torch(self, value: Any) -> np.ndarray:
        """A new array."""
        value = np.asarray(value)
        # `torch.from_numpy` takes none of what PyTorch loads into bfloat16 as well from float32.
        value = value.astype(np.float32) if value.dtype == jnp.bfloat16 else value
        value = np.flip(value.reshape(self.split), self.reverse)
        return np.array(value.transpose(self.order).reshape(self.torch), order="C")

    def to_flax(self, value: Any) -> np.ndarray:
        """A new array."""
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which NumPy does not have
            value = np.asarray(value.float()).astype(jnp.bfloat16)
        value = np.asarray(value).reshape([self.split[a] for a in self.order])
        value = np.flip(value.transpose(np.argsort(self.order)), self.reverse)
        return np.array(value.reshape(self.flax), order="C")


def lay_out(
    name: str, leaf: str, flax: Shape, torch: Shape, transposed: bool, image: Shape | None
) -> Entry:
    """How an entry of these shapes is converted; its `torch` need not be the one that is given."""
    as_kernel = leaf in KERNELS or leaf in AS_KERNEL
    split = _matrix(flax, torch) if leaf in KERNELS else flax
    axes = tuple(range(len(split)))
    if image and (as_kernel or leaf == "center") and split[:1] == (math.prod(image),):
        *space, channels = range(len(image))
        outputs = axes[1:] and (len(image),)
        ends = (*outputs, channels)
        torch = (*split[1:], *split[:1])
        return Entry(name, flax, (*image, *split[1:]), (), (*ends, *space), torch)
    if as_kernel and len(split) > 1:
        *window, inputs, outputs = axes
        ends = (inputs, outputs) if transposed and leaf in KERNELS else (outputs, inputs)
        order = (*ends, *window)
        torch = tuple(split[a] for a in order)
        return Entry(name, flax, split, tuple(window) if transposed else (), order, torch)
    if leaf == LENGTH:
        torch = torch if math.prod(torch) == math.prod(flax) else flax
    else:
        torch = (math.prod(flax),) if leaf in ("bias", "negative_slope") else flax
    return Entry(name, flax, flax, (), axes, torch)


def _matrix(kernel: Shape, weight: Shape) -> Shape:
    """The shape [I, O] of a kernel over several axes that is a matrix in PyTorch."""
    if len(weight) == 2:
        for n in range(len(kernel)):
            ends = (math.prod(kernel[:n]), math.prod(kernel[n:]))
            if ends == weight[::-1]:
                return ends
    return kernel
