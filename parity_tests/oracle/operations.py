"""What each operation reads: any of them is a dense layer in groups, on explicit patches.

Written from the definitions of Flax and PyTorch, index by index; `rule.linear` does the rest. The
fields have the names of the framework's arguments, and shapes are the framework's, except that
channels come last in x and z everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.intp]
Shape = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


class View(NamedTuple):
    """Where the numbers of a dense layer in G groups lie in an operation's flat arrays.

    Attributes:
        x: [N,G,I], -1 where a sample of value 0 is read (padding).
        kernel: [I,G,O]; I counts taps first, then channels.
        z: [N,G,O].
        bias: [G,O].
        channels: x as a matrix whose columns are the channels, for measuring errors.
        taps: how many places of the window there are (1 for products).
        samples: how many samples one row (image) of the batch is, for `statistics_rows`.
        z_shape: the shape of z.
    """

    x: Index
    kernel: Index
    z: Index
    bias: Index
    channels: Index
    taps: int
    samples: int
    z_shape: Shape

    def patches(self, x: np.ndarray) -> np.ndarray:
        """What every sample of every group reads, [N,G,I]."""
        return np.append(x.ravel(), np.zeros(1, x.dtype))[self.x]

    def by_channel(self, kernel: np.ndarray) -> np.ndarray:
        """[G * channels, taps * O]: a row is all that a channel of x meets."""
        inputs, groups, outputs = self.kernel.shape
        shape = (self.taps, inputs // self.taps, groups, outputs)
        by_axis = kernel.ravel()[self.kernel].reshape(shape).transpose(2, 1, 0, 3)
        return by_axis.reshape(groups * shape[1], self.taps * outputs)

    def by_neuron(self, kernel: np.ndarray) -> np.ndarray:
        """[I, G * O]: a column is a neuron."""
        return kernel.ravel()[self.kernel].reshape(len(self.kernel), -1)


@dataclass(frozen=True)
class Dense:
    """z[..., o] = sum_i x[..., i] kernel[i, o]."""

    def view(self, x: Shape, kernel: Shape) -> View:
        """One group, one tap; every row is a sample."""
        samples, (inputs, outputs) = math.prod(x[:-1]), kernel
        rows = _lie(samples, inputs)
        return View(
            x=rows[:, None],
            kernel=_lie(inputs, 1, outputs),
            z=_lie(samples, 1, outputs),
            bias=_lie(1, outputs),
            channels=rows,
            taps=1,
            samples=1,
            z_shape=(*x[:-1], outputs),
        )


@dataclass(frozen=True)
class Convolution:
    """`flax.linen.Conv`: kernel [*window, C / groups, O], ints or one entry per spatial axis.

    `padding` is "SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL" or pairs, in the dilated input.
    """

    strides: Any = 1
    padding: str | Pads = "SAME"
    input_dilation: Any = 1
    kernel_dilation: Any = 1
    feature_group_count: int = 1

    def pads(self, space: Shape, window: Shape) -> Pads:
        """What is laid round the (dilated) input, low and high."""
        rank, pads = len(window), []
        if not isinstance(self.padding, str):
            return tuple(self.padding)
        for n, s, d in zip(
            self.dilated(space), _each(self.strides, rank), self.reach(window), strict=True
        ):
            same = max((math.ceil(n / s) - 1) * s + d - n, 0)
            around = (d - 1) // 2, d // 2
            pads.append(
                {
                    "SAME": (same // 2, same - same // 2),
                    "VALID": (0, 0),
                    "CIRCULAR": around,
                    "REFLECT": around,
                    "CAUSAL": (d - 1, 0),
                }[self.padding]
            )
        return tuple(pads)

    def reach(self, window: Shape) -> Shape:
        """The length of the dilated window."""
        dilations = _each(self.kernel_dilation, len(window))
        return tuple((k - 1) * d + 1 for k, d in zip(window, dilations, strict=True))

    def dilated(self, space: Shape) -> Shape:
        """The lengths of the dilated input."""
        dilations = _each(self.input_dilation, len(space))
        return tuple((n - 1) * d + 1 for n, d in zip(space, dilations, strict=True))

    def view(self, x: Shape, kernel: Shape) -> View:
        """Position p reads input p * stride + tap * dilation - low."""
        window, (channels, outputs) = kernel[:-2], kernel[-2:]
        rank, groups = len(window), self.feature_group_count
        space = x[-1 - rank : -1]
        reads = []
        for n, k, s, d, gap, length, reach, (low, high) in zip(
            space,
            window,
            _each(self.strides, rank),
            _each(self.kernel_dilation, rank),
            _each(self.input_dilation, rank),
            self.dilated(space),
            self.reach(window),
            self.pads(space, window),
            strict=True,
        ):
            positions = np.arange((length + low + high - reach) // s + 1)
            place = positions[:, None] * s + np.arange(k) * d - low
            reads.append(_inputs_at(place, n, gap, str(self.padding)))
        numbers = _lie(math.prod(window) * channels, groups, outputs // groups)
        return _view(x, reads, numbers)


@dataclass(frozen=True)
class ConvTranspose:
    """`flax.linen.ConvTranspose`: strides dilate the input; kernel [*window, C, O].

    With `transpose_kernel` it is [*window, O, C] and its window is flipped. `padding` is "SAME",
    "VALID", "CIRCULAR" or pairs.
    """

    strides: Any = 1
    padding: str | Pads = "SAME"
    kernel_dilation: Any = 1
    transpose_kernel: bool = False

    def view(self, x: Shape, kernel: Shape) -> View:
        """Position p reads dilated input p + tap * dilation - low."""
        window, rank = kernel[:-2], len(kernel) - 2
        reads, mode = [], str(self.padding)
        for axis, (n, k, s, d) in enumerate(
            zip(
                x[-1 - rank : -1],
                window,
                _each(self.strides, rank),
                _each(self.kernel_dilation, rank),
                strict=True,
            )
        ):
            reach = (k - 1) * d + 1
            valid = reach - 1, max(s, reach) - 1  # sees every input at every tap, as lax does
            named = {"SAME": self._same(reach, s), "VALID": valid, "CIRCULAR": valid}
            pads: Any = named if mode in named else self.padding
            low, high = pads[mode if mode in named else axis]
            out = (n - 1) * s + 1 + low + high - reach + 1
            if mode == "CIRCULAR":
                # Flax lays zeros round this result, to two periods, before it wraps it.
                zeros = -(out - n * s) % (2 * n * s)
                low, out = low + (zeros + (not self.transpose_kernel)) // 2, n * s
            reads.append(_inputs_at(np.arange(out)[:, None] + np.arange(k) * d - low, n, s, mode))
        numbers = _lie(*kernel)
        if self.transpose_kernel:
            numbers = np.flip(numbers, tuple(range(rank))).swapaxes(-1, -2)
        channels, outputs = numbers.shape[-2:]
        return _view(x, reads, numbers.reshape(math.prod(window) * channels, 1, outputs))

    @staticmethod
    def _same(reach: int, stride: int) -> tuple[int, int]:
        """As many positions as inputs times stride; the share in front is lax.conv_transpose's."""
        total = reach + stride - 2
        low = reach - 1 if stride > reach - 1 else math.ceil(total / 2)
        return low, total - low


@dataclass(frozen=True)
class TorchConvTranspose:
    """`torch.nn.functional.conv_transpose2d` and its likes: kernel [C, O / groups, *window]."""

    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    dilation: Any = 1

    def view(self, x: Shape, kernel: Shape) -> View:
        """Input q goes to position q * stride + tap * dilation - padding."""
        channels, outputs, *window = kernel
        rank, reads = len(window), []
        fields = (self.stride, self.padding, self.output_padding, self.dilation)
        for n, k, s, p, extra, d in zip(
            x[-1 - rank : -1], window, *(_each(field, rank) for field in fields), strict=True
        ):
            out = (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
            place = np.arange(out)[:, None] + p - np.arange(k) * d
            reads.append(_inputs_at(place, n, s, "zeros"))
        numbers = _lie(self.groups, channels // self.groups, outputs, math.prod(window))
        numbers = numbers.transpose(3, 1, 0, 2).reshape(-1, self.groups, outputs)
        return _view(x, reads, numbers)


@dataclass(frozen=True)
class Einsum:
    """z = einsum(equation, x, kernel), the equation without "..."; `flax.linen.Einsum`.

    With `general`, (axes of the inputs, axes of the groups) of x: `flax.linen.DenseGeneral`.
    """

    equation: str
    general: tuple[Shape, Shape] | None = None

    def view(self, x: Shape, kernel: Shape) -> View:
        """A label of all three is a group; of two, an input, an output or a sample."""
        operands, labels_z = self.equation.split("->")
        labels_x, labels_k = operands.split(",")
        size = dict(zip(labels_x + labels_k, x + kernel, strict=True))
        samples = "".join(a for a in labels_z if a not in labels_k)
        groups = "".join(a for a in labels_z if a in labels_x and a in labels_k)
        inputs = "".join(a for a in labels_k if a not in labels_z)
        outputs = "".join(a for a in labels_z if a not in labels_x)

        def lie(labels: str, *order: str) -> Index:
            numbers = _lie(*(size[a] for a in labels))
            numbers = numbers.transpose([labels.index(a) for a in "".join(order)])
            return numbers.reshape([math.prod(size[a] for a in part) for part in order])

        biased = "".join(a for a in labels_z if a in labels_k)
        at = lie(labels_x, samples, groups, inputs)
        leading = labels_x.startswith(samples) and labels_z.startswith(samples)
        return View(
            x=at,
            kernel=lie(labels_k, inputs, groups, outputs),
            z=lie(labels_z, samples, groups, outputs),
            bias=lie(biased, groups, outputs),
            channels=at.reshape(len(at), -1),
            taps=1,
            samples=1 if leading else math.prod(size[a] for a in samples[1:]),
            z_shape=tuple(size[a] for a in labels_z),
        )


Operation = Dense | Convolution | ConvTranspose | TorchConvTranspose | Einsum


def _lie(*shape: int) -> Index:
    """Where the entries of an array of this shape lie in the flat one."""
    return np.arange(math.prod(shape)).reshape(shape)


def _each(value: Any, rank: int) -> Shape:
    """One entry per spatial axis."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _inputs_at(place: Index, extent: int, gap: int, mode: str) -> Index:
    """Which of `extent` inputs, `gap` apart, lies at each place; -1: none, a zero."""
    if mode == "CIRCULAR":
        place = place % (extent * gap)
    if mode == "REFLECT":
        place = place % (2 * extent - 2)
        place = np.minimum(place, 2 * extent - 2 - place)
    inside = (place >= 0) & (place < extent * gap) & (place % gap == 0)
    return np.where(inside, place // gap, -1)


def _view(x: Shape, reads: list[Index], kernel: Index) -> View:
    """From what each spatial axis reads, [positions, window], and the kernel's numbers [I,G,O]."""
    inputs, groups, outputs = kernel.shape
    *batch, channels = x[: len(x) - 1 - len(reads)] + x[-1:]
    images, space = math.prod(batch), x[-1 - len(reads) : -1]
    pixel = np.zeros((1, 1), np.intp)
    for read, extent in zip(reads, space, strict=True):
        outer, inner = pixel[:, None, :, None], read[None, :, None, :]
        pixel = np.where((outer < 0) | (inner < 0), -1, outer * extent + inner)
        pixel = pixel.reshape(pixel.shape[0] * pixel.shape[1], -1)
    positions, taps = pixel.shape
    per_group = channels // groups
    image = np.arange(images)[:, None, None, None, None] * math.prod(space)
    channel = _lie(groups, per_group)[None, None, :, None, :]
    at = (image + pixel[None, :, None, :, None]) * channels + channel
    at = np.where(pixel[None, :, None, :, None] < 0, -1, at)
    samples = images * positions
    assert inputs == taps * per_group
    return View(
        x=at.reshape(samples, groups, inputs),
        kernel=kernel,
        z=_lie(samples, groups, outputs),
        bias=_lie(groups, outputs),
        channels=_lie(images * math.prod(space), channels),
        taps=taps,
        samples=positions,
        z_shape=(*batch, *(len(read) for read in reads), groups * outputs),
    )
