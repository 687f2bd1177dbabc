"""The operation of a product or a convolution that was found in a program, on flat axes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.operations.linear import LinearOperation
from jaxnorm.operations.rows import spaced
from jaxnorm.program.axes import Axes, Axis, Frozen, Label, count, every, fresh, order
from jaxnorm.program.lineage import Lineage, Part


class NoLayer(Exception):
    """Why a product with a parameter is no layer, in words."""


@dataclass(frozen=True, eq=False)
class FoundOperation(LinearOperation):
    """A `LinearOperation` that takes the arrays as the program has them.

    Attributes:
        flatten_x: to [samples..., C].
        flatten_z: to [samples..., O].
        flatten_kernel: from the parameter's own axes to [*inputs, O].
        rows: the axis of z along which `Rule.statistics_rows` counts, or None.
    """

    flatten_x: Callable[[jax.Array], jax.Array] = lambda x: x
    flatten_z: Callable[[jax.Array], jax.Array] = lambda z: z
    flatten_kernel: Callable[[jax.Array], jax.Array] = lambda kernel: kernel
    rows: int | None = None

    def flat(self, x: Any, kernel: Any, z: Any) -> tuple[Any, Any, Any]:
        """[samples..., C], [*inputs, O], [samples..., O]."""
        return (
            None if x is None else self.flatten_x(x),
            None if kernel is None else self.flatten_kernel(kernel),
            None if z is None else self.flatten_z(z),
        )

    def sample_shape(self, z: jax.Array) -> tuple[int, ...]:
        """The axes of the samples, as z has them one after the other."""
        return jax.eval_shape(self.flatten_z, z).shape[:-1]

    def spaced_rows_of_z(self, z: jax.Array, rows: int | None) -> jax.Array:
        """Along the axis of the program's z."""
        return z if self.rows is None else spaced(z, rows, self.rows)


def operation_of(eqn: Any, side: int, kernel: Lineage) -> tuple[FoundOperation, Axes, Axis]:
    """(operation, axes of z, labels of the neurons) of a product or convolution.

    Args:
        eqn: the equation.
        side: which of its operands is the kernel.
        kernel: the parameter that this operand is.

    Raises:
        NoLayer: for one that is none.
    """
    make = _product if eqn.primitive.name == "dot_general" else _convolution
    frozen = Frozen()
    part = kernel.part
    if part is not None:
        ((whole,), (label,)) = frozen(((part.whole,), (part.label,)))
        part = Part(whole, part.start, label)
    operation, z, neurons = make(eqn, side, frozen(kernel.axes), frozen(kernel.leaf), part)
    # What follows may split them further, but not those of the operation.
    copies = Frozen()
    return operation, copies(z), copies((neurons,))[0]


def _product(
    eqn: Any, side: int, kernel: Axes, leaf: Axes, part: Part | None
) -> tuple[FoundOperation, Axes, Axis]:
    numbers, precision = eqn.params["dimension_numbers"], eqn.params["precision"]
    x, z = _labeled(numbers, side, kernel, eqn.invars[1 - side].aval.shape)
    of_x, of_kernel, of_z = every(x), every(kernel), every(z)
    inputs = tuple(a for a in of_kernel if a in of_x and a not in of_z)
    groups = tuple(a for a in of_z if a in of_x and a in of_kernel)
    outputs = tuple(a for a in of_z if a not in of_x)
    rows = tuple(a for a in of_z if a not in of_kernel)
    neurons = groups + outputs
    if part is not None and neurons != (part.whole,):
        raise NoLayer("it is joined with other parameters, and not along its neurons")
    mine = neurons if part is None else (part.label,)
    of_mine = slice(None) if part is None else slice(part.start, part.start + part.label.size)
    leaf_order = _leaf_order(leaf, inputs, mine)

    def apply(x_flat: jax.Array, kernel_flat: jax.Array) -> jax.Array:
        lengths = dict(zip(rows, x_flat.shape[:-1], strict=True))
        if part is not None:
            lengths[part.whole] = kernel_flat.shape[-1]
        elif kernel_flat.shape[-1] != count(neurons):  # one output for each group
            lengths |= dict.fromkeys(outputs, 1)
        operands = [
            _restore(x_flat, rows + groups + inputs, x, lengths),
            _restore(kernel_flat, inputs + neurons, kernel, lengths),
        ]
        first, second = operands if side == 1 else operands[::-1]
        out = lax.dot_general(first, second, numbers, precision=precision)
        return _flatten(out, z, rows, neurons, lengths)

    operation = FoundOperation(
        apply,
        groups=count(groups),
        spatial_axes=max(len(rows) - 1, 0),
        kernel_axes=leaf_order,
        flatten_x=lambda a: _flatten(a, x, rows, groups + inputs, {}),
        flatten_z=lambda a: _flatten(a, z, rows, neurons, _lengths(a, z, rows))[..., of_mine],
        flatten_kernel=_kernel_flattener(leaf_order, (count(inputs), count(mine))),
        rows=next((n for n, axis in enumerate(z) if rows[:1] and rows[0] in axis), None),
    )
    return operation, z, neurons


def _labeled(numbers: Any, side: int, kernel: Axes, shape: tuple[int, ...]) -> tuple[Axes, Axes]:
    """The axes of x and of z, by the labels of the kernel where they are its."""
    contracting, batch = numbers
    x: dict[int, Axis] = dict(enumerate(fresh(shape)))
    for mine in (contracting, batch):
        x |= {a: kernel[b] for a, b in zip(mine[1 - side], mine[side], strict=True)}
    operands = [tuple(x[a] for a in range(len(shape))), kernel]
    operands = operands if side == 1 else operands[::-1]
    z = [operands[0][a] for a in batch[0]]
    for number, axes in enumerate(operands):
        used = {*contracting[number], *batch[number]}
        z += [axis for a, axis in enumerate(axes) if a not in used]
    return operands[1 - side], tuple(z)


def _convolution(
    eqn: Any, side: int, kernel: Axes, leaf: Axes, part: Part | None
) -> tuple[FoundOperation, Axes, Axis]:
    params, shape = eqn.params, eqn.invars[1].aval.shape
    if side != 1:
        raise NoLayer("it is convolved with the input as the window")
    if part is not None:
        raise NoLayer("it is joined with other parameters")
    if params["batch_group_count"] != 1:
        raise NoLayer("its convolution has groups of the batch")
    x_spec, (outputs, inputs, *window), z_spec = params["dimension_numbers"]
    if any(len(kernel[a]) != (shape[a] != 1) for a in window):
        raise NoLayer("its window is put together from parts")
    neurons = kernel[outputs]
    taps = tuple(label for a in (*window, inputs) for label in kernel[a])
    leaf_order = _leaf_order(leaf, taps, neurons)
    rank = len(window)
    space = range(1, rank + 1)
    last = (0, rank + 1, *space)
    numbers = lax.ConvDimensionNumbers(last, (rank + 1, rank, *range(rank)), last)
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    names = (*names, "feature_group_count", "precision")
    settings = {name: params[name] for name in names}

    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **settings)

    to_x, to_z = ((spec[0], *spec[2:], spec[1]) for spec in (x_spec, z_spec))
    dilated = max(params["lhs_dilation"], default=1) > 1
    operation = FoundOperation(
        apply,
        groups=params["feature_group_count"],
        padded=dilated or any(n > 0 for pair in params["padding"] for n in pair),
        spatial_axes=rank,
        kernel_axes=leaf_order,
        flatten_x=lambda a: jnp.transpose(a, to_x),
        flatten_z=lambda a: jnp.transpose(a, to_z),
        flatten_kernel=_kernel_flattener(
            leaf_order, tuple(shape[a] for a in (*window, inputs, outputs))
        ),
        rows=z_spec[0],
    )
    z = list(fresh(eqn.outvars[0].aval.shape))
    z[z_spec[1]] = neurons
    return operation, tuple(z), neurons


def _kernel_flattener(
    leaf_order: tuple[int, ...], shape: tuple[int, ...]
) -> Callable[[jax.Array], jax.Array]:
    return lambda kernel: jnp.transpose(kernel, leaf_order).reshape(shape)


def _leaf_order(leaf: Axes, inputs: Axis, neurons: Axis) -> tuple[int, ...]:
    """The order of the parameter's axes in which the inputs come before the neurons."""
    found = order(leaf, inputs + neurons)
    if found is None:
        raise NoLayer("inputs and neurons lie mixed on the axes of its parameter")
    return found


def _lengths(array: jax.Array, axes: Axes, rows: Axis) -> dict[Label, int]:
    """How many samples an array has; it may hold some of them only."""
    return {axis[0]: array.shape[n] for n, axis in enumerate(axes) if axis[:1] and axis[0] in rows}


def _flatten(
    array: jax.Array, axes: Axes, rows: Axis, rest: Axis, lengths: dict[Label, int]
) -> jax.Array:
    """[rows..., rest] of an array with these axes; `lengths` are those that are other ones."""
    labels = every(axes)
    array = array.reshape([lengths.get(a, a.size) for a in labels])
    array = jnp.transpose(array, [labels.index(a) for a in rows + rest])
    return array.reshape(*array.shape[: len(rows)], math.prod(array.shape[len(rows) :]))


def _restore(array: jax.Array, labels: Axis, axes: Axes, lengths: dict[Label, int]) -> jax.Array:
    """An array with these axes, from one with its labels in flat order."""
    length = {a: lengths.get(a, a.size) for a in labels}
    array = array.reshape([length[a] for a in labels])
    array = jnp.transpose(array, [labels.index(a) for a in every(axes)])
    return array.reshape([math.prod(length[a] for a in axis) for axis in axes])
