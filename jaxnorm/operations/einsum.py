"""Products with any number of batch, input and output axes, as a dense layer in groups."""

import functools
import math
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.operations.linear import LinearOperation
from jaxnorm.operations.rows import spaced


@dataclass(frozen=True)
class Einsum:
    """``z = product(x, kernel)`` by its axis labels, seen as a dense layer in groups.

    A label of x and kernel only is an input, one of kernel and z only an output, one of x and z
    only a sample axis, one of all three a group: each group has its own inputs and neurons.

    Attributes:
        x: the labels of x.
        kernel: the labels of the kernel.
        z: the labels of z.
        size: the length of every label.
    """

    x: tuple[str, ...]
    kernel: tuple[str, ...]
    z: tuple[str, ...]
    size: dict[str, int]

    @property
    def groups(self) -> tuple[str, ...]:
        """Labels of x, kernel and z."""
        return tuple(a for a in self.z if a in self.x and a in self.kernel)

    @property
    def samples(self) -> tuple[str, ...]:
        """Labels of x and z."""
        return tuple(a for a in self.z if a not in self.kernel)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Labels of x and kernel."""
        return tuple(a for a in self.kernel if a not in self.z)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Labels of kernel and z."""
        return tuple(a for a in self.z if a not in self.x)

    @property
    def bias(self) -> tuple[str, ...]:
        """Labels of kernel and z, in z's order: those of a bias."""
        return tuple(a for a in self.z if a in self.kernel)

    def count(self, labels: tuple[str, ...]) -> int:
        """How many entries these axes have."""
        return math.prod(self.size[a] for a in labels)

    def flatten_x(self, x: jax.Array) -> jax.Array:
        """[samples..., groups * inputs], the channels of a group together."""
        x = _transpose(x, self.x, self.samples + self.groups + self.inputs)
        return x.reshape(*x.shape[: len(self.samples)], self.count(self.groups + self.inputs))

    def flatten_kernel(self, kernel: jax.Array) -> jax.Array:
        """[inputs, groups * outputs]."""
        kernel = _transpose(kernel, self.kernel, self.inputs + self.groups + self.outputs)
        return kernel.reshape(self.count(self.inputs), self.count(self.groups + self.outputs))

    def flatten_z(self, z: jax.Array) -> jax.Array:
        """[samples..., groups * outputs]."""
        neurons = self.groups + self.outputs
        if self.leading_samples:
            keep = z.ndim - len(neurons)
            z = _transpose(z, self.z[len(self.samples) :], neurons, keep=keep)
        else:
            keep = len(self.samples)
            z = _transpose(z, self.z, self.samples + neurons)
        return z.reshape(*z.shape[:keep], math.prod(z.shape[keep:]))

    def restore_kernel(self, kernel: jax.Array) -> jax.Array:
        """The axes of the kernel from [inputs, groups * outputs], or from one output per group."""
        order = self.inputs + self.groups + self.outputs
        few = kernel.shape[-1] != self.count(self.groups + self.outputs)
        shape = (1 if few and a in self.outputs else self.size[a] for a in order)
        return _transpose(kernel.reshape(*shape), order, self.kernel)

    def restore_bias(self, bias: jax.Array) -> jax.Array:
        """The axes of the bias from [groups * outputs]."""
        order = self.groups + self.outputs
        return _transpose(bias.reshape(*(self.size[a] for a in order)), order, self.bias)

    def operation(self, product: Callable[..., jax.Array], placed: bool) -> LinearOperation:
        """`product`, Flax's own, as a dense operation in groups."""
        leading = self.leading_samples
        order = tuple(a for a in self.x if a not in self.samples)

        def apply(x, kernel):
            keep = x.ndim - 1
            x = x.reshape(*x.shape[:-1], *(self.size[a] for a in self.groups + self.inputs))
            if leading:
                x = _transpose(x, self.groups + self.inputs, order, keep=keep)
            else:
                x = _transpose(x, self.samples + self.groups + self.inputs, self.x)
            return self.flatten_z(product(x, self.restore_kernel(kernel)))

        spatial_axes = 0 if leading else max(len(self.samples) - 1, 0)
        groups = self.count(self.groups)
        return _EinsumOperation(
            apply,
            groups,
            spatial_axes=spatial_axes,
            placed=placed,
            kernel_axes=_order(self.kernel, self.inputs + self.groups + self.outputs),
            bias_axes=_order(self.bias, self.groups + self.outputs),
            axes=self,
            product=product,
        )

    @property
    def equation(self) -> str:
        """The equation for `operation`, with any number of samples if those come first."""
        spare = iter(set(string.ascii_letters) - set(self.size))
        letter = {a: a if len(a) == 1 else next(spare) for a in self.size}
        if self.leading_samples:
            letter |= dict.fromkeys(self.samples, "")
        x, kernel, z = ("".join(letter[a] for a in term) for term in (self.x, self.kernel, self.z))
        dots = "..." if self.leading_samples else ""
        return f"{dots}{x},{kernel}->{dots}{z}"

    @property
    def leading_samples(self) -> bool:
        """Whether the samples come first, so that the product takes any number of them."""
        n = len(self.samples)
        return self.x[:n] == self.samples and self.z[:n] == self.samples


@dataclass(frozen=True, eq=False)
class _EinsumOperation(LinearOperation):
    """The forward pass as Flax has it; flat only where the statistics are taken.

    On a mesh with Explicit axes not every array that Flax takes can be made flat.
    """

    axes: Any = None
    product: Any = None

    def forward(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Flax's forward pass."""
        z = self.product(x, kernel)
        if bias is None:
            return z
        shape = (
            n if a in self.axes.kernel else 1 for n, a in zip(z.shape, self.axes.z, strict=True)
        )
        return z + jnp.reshape(bias, tuple(shape))

    def bias_shape(self, kernel: jax.Array) -> tuple[int, ...]:
        """The axes that z shares with the kernel."""
        return tuple(self.axes.size[a] for a in self.axes.bias)

    def sample_shape(self, z: jax.Array) -> tuple[int, ...]:
        """The labels that z does not share with the kernel."""
        axes = self.axes
        return tuple(n for n, a in zip(z.shape, axes.z, strict=True) if a not in axes.kernel)

    def spaced_rows_of_z(self, z: jax.Array, rows: int | None) -> jax.Array:
        """`spaced_rows` of z on Flax's axes."""
        axes = self.axes
        samples = len(axes.samples)
        if rows is None or samples == 0:
            return z
        if axes.leading_samples:
            samples = z.ndim - len(axes.bias)  # one, where z was cut before
            batch = math.prod(z.shape[:samples])
            return z if rows >= batch else spaced(z.reshape(batch, *z.shape[samples:]), rows, 0)
        return spaced(z, rows, axes.z.index(axes.samples[0]))

    def flat(self, x: Any, kernel: Any, z: Any) -> tuple[Any, Any, Any]:
        """[samples..., C], [I, O], [samples..., O]."""
        axes = self.axes
        return (
            None if x is None else axes.flatten_x(x),
            None if kernel is None else axes.flatten_kernel(kernel),
            None if z is None else axes.flatten_z(z),
        )

    def restored(self, kernel: Any, bias: Any) -> tuple[Any, Any]:
        """Back on Flax's axes."""
        return (
            self.axes.restore_kernel(kernel),
            None if bias is None else self.axes.restore_bias(bias),
        )

    def unplaced(self) -> LinearOperation:
        """The same, but how z is sharded is left to the compiler."""
        if not self.placed:
            return self
        return self.axes.operation(functools.partial(self.product, out_sharding=None), placed=False)


def parse(equation: str, x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> Einsum:
    """The labels of an equation like ``"...td,dhk->...thk"`` for arrays of these shapes."""
    equation = equation.replace(" ", "")
    if equation.count("->") != 1 or equation.count(",") != 1:
        raise ValueError(
            f"equation: got {equation!r}, expected two operands and a result, 'x,kernel->z', "
            "for example '...i,io->...o'"
        )
    operands, z = equation.split("->")
    x, kernel = operands.split(",")
    if "..." in kernel:
        raise ValueError(
            f"equation: got {equation!r}, expected no '...' in the kernel; name its axes"
        )
    extra = len(x_shape) - len(x.replace("...", "")) if "..." in x else 0
    labels = (_labels(x, extra), _labels(kernel, extra), _labels(z, extra))
    for name, term, shape in (("x", labels[0], x_shape), ("kernel", labels[1], kernel_shape)):
        if len(term) != len(shape) or extra < 0:
            raise ValueError(
                f"{name}: got shape {tuple(shape)}, expected one axis for each label of "
                f"{equation.split('->')[0].split(',')[name == 'kernel']!r} in {equation!r}"
            )
    size: dict[str, int] = {}
    for term, shape in ((labels[0], x_shape), (labels[1], kernel_shape)):
        for label, length in zip(term, shape, strict=True):
            if size.setdefault(label, length) != length:
                raise ValueError(
                    f"kernel: got length {length} for {label!r} of {equation!r}, expected "
                    f"{size[label]} as in x"
                )
    result = Einsum(*labels, size)
    every = [label for term in labels for label in term]
    if any(len(set(term)) != len(term) for term in labels) or any(
        every.count(label) < 2 for label in every
    ):
        raise ValueError(
            f"equation: got {equation!r}, expected every label in two or three of x, kernel and z, "
            "once in each; sum over x or repeat z outside of the layer"
        )
    return result


def _labels(term: str, extra: int) -> tuple[str, ...]:
    """The labels of one term, "..." spelled out."""
    before, _, after = term.partition("...")
    dots = tuple(f"...{i}" for i in range(extra)) if "..." in term else ()
    return tuple(before) + dots + tuple(after)


def _order(labels: tuple[str, ...], order: tuple[str, ...]) -> tuple[int, ...] | None:
    """Where the labels in another order come from; None where it is the same."""
    return None if labels == order else tuple(labels.index(a) for a in order)


def _transpose(
    array: Any, labels: tuple[str, ...], order: tuple[str, ...], keep: int = 0
) -> jax.Array:
    """The labeled axes in another order, behind `keep` axes that stay."""
    if labels == order:
        return array
    axes = [*range(keep), *(keep + labels.index(a) for a in order)]
    return jnp.transpose(array, axes)


def dense_general(
    ndim: int,
    axis: tuple[int, ...],
    batch_dims: tuple[int, ...],
    features: int,
    dot_general: Callable[..., jax.Array],
) -> tuple[str, Callable[..., jax.Array]]:
    """`flax.linen.DenseGeneral` on x of ndim axes: its equation, and its product as an einsum_op.

    The kernel has the axes batch_dims, axis, and as many features.
    """
    x = string.ascii_lowercase[:ndim]
    batch, inputs = ("".join(x[a] for a in axes) for axes in (batch_dims, axis))
    outputs = string.ascii_uppercase[:features]
    samples = "".join(a for a in x if a not in batch + inputs)
    kernel_batch = tuple(range(len(batch)))
    kernel_inputs = tuple(range(len(batch), len(batch + inputs)))

    def einsum_op(equation, x, kernel, **kwargs):
        del equation
        # Any number of samples may have come before.
        moved = tuple(a + x.ndim - ndim for a in axis)
        numbers = ((moved, kernel_inputs), (batch_dims, kernel_batch))
        return dot_general(x, kernel, numbers, **kwargs)

    return f"{x},{batch}{inputs}{outputs}->{batch}{samples}{outputs}", einsum_op
