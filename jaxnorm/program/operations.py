"""The operation of a product or a convolution that was found in a program, on flat axes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.operations.linear import LinearOperation
from jaxnorm.program.axes import Axes, Axis, Frozen, Label, atoms, count, every, fresh, order, sizes


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

    def rows_of_z(self, z: jax.Array, rows: int | None) -> jax.Array:
        """Along the axis of the program's z."""
        if rows is None or self.rows is None or rows >= z.shape[self.rows]:
            return z
        return lax.slice_in_dim(z, 0, rows, axis=self.rows)


def operation_of(
    eqn: Any, side: int, kernel: Axes, leaf: Axes
) -> tuple[FoundOperation, Axes, Axis]:
    """(operation, axes of z, labels of the neurons) of a product or convolution.

    Args:
        eqn: the equation.
        side: which of its operands is the kernel.
        kernel: the axes of that operand.
        leaf: the axes of the parameter that it comes from, by the same labels.

    Raises:
        NoLayer: for one that is none.
    """
    make = _product if eqn.primitive.name == "dot_general" else _convolution
    frozen = Frozen()
    operation, z, neurons = make(eqn, side, frozen(kernel), frozen(leaf))
    # What follows may split them further, but not those of the operation.
    copies = Frozen()
    return operation, copies(z), copies((neurons,))[0]


def _product(eqn: Any, side: int, kernel: Axes, leaf: Axes) -> Any:
    params = eqn.params
    contracting, batch = params["dimension_numbers"]
    x_of, k_of = 1 - side, side
    shape = eqn.invars[x_of].aval.shape
    x: list[Any] = [None] * len(shape)
    for mine in (contracting, batch):
        for a, b in zip(mine[x_of], mine[k_of], strict=True):
            x[a] = kernel[b]
    samples = []
    for a, n in enumerate(shape):
        if x[a] is None:
            x[a] = (Label(n),) if n != 1 else ()
            samples.append(x[a])
    operands: list[Any] = [None, None]
    operands[x_of], operands[k_of] = tuple(x), kernel
    z = [operands[0][a] for a in batch[0]]
    for which in (0, 1):
        used = {*contracting[which], *batch[which]}
        z += [axis for a, axis in enumerate(operands[which]) if a not in used]
    z, x = tuple(z), tuple(x)
    in_x, in_z = set(every(x)), set(every(z))
    inputs = tuple(a for a in every(kernel) if a in in_x and a not in in_z)
    groups = tuple(a for a in every(z) if a in in_x and a in set(every(kernel)))
    outputs = tuple(a for a in every(z) if a not in in_x)
    rows = tuple(a for axis in samples for a in atoms(axis))
    rows = tuple(a for a in every(z) if a in rows)
    permutation = _leaf_order(leaf, inputs, groups + outputs)
    few = set(outputs)

    def apply(x_flat, kernel_flat):
        shape = x_flat.shape[:-1]
        lhs_rhs: list[Any] = [None, None]
        lhs_rhs[x_of] = _restore(
            x_flat, rows + groups + inputs, x, dict(zip(rows, shape, strict=True))
        )
        less = kernel_flat.shape[-1] != count(groups + outputs)
        small = dict.fromkeys(few, 1) if less else {}
        lhs_rhs[k_of] = _restore(kernel_flat, inputs + groups + outputs, kernel, small)
        out = lax.dot_general(*lhs_rhs, params["dimension_numbers"], precision=params["precision"])
        known = {**small, **dict(zip(rows, shape, strict=True))}
        return _flatten(out, z, rows, groups + outputs, known)

    operation = FoundOperation(
        apply,
        groups=count(groups),
        spatial_axes=max(len(rows) - 1, 0),
        kernel_axes=permutation,
        flatten_x=lambda a: _flatten(a, x, rows, groups + inputs),
        flatten_z=lambda a: _flatten(a, z, rows, groups + outputs),
        flatten_kernel=lambda a: jnp.transpose(a, permutation).reshape(
            count(inputs), count(groups + outputs)
        ),
        rows=next((n for n, axis in enumerate(z) if rows and rows[0] in atoms(axis)), None),
    )
    return operation, z, groups + outputs


def _convolution(eqn: Any, side: int, kernel: Axes, leaf: Axes) -> Any:
    params = eqn.params
    if side != 1:
        raise NoLayer("it is convolved with the input as the window")
    if params["batch_group_count"] != 1:
        raise NoLayer("its convolution has groups of the batch")
    numbers = params["dimension_numbers"]
    x_spec, k_spec, z_spec = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    rank = len(k_spec) - 2
    to_x, to_z = ((s[0], *s[2:], s[1]) for s in (x_spec, z_spec))
    window = tuple(a for n in k_spec[2:] for a in atoms(kernel[n]))
    outputs = atoms(kernel[k_spec[0]])
    inputs = atoms(kernel[k_spec[1]])
    shape = eqn.invars[1].aval.shape
    space = tuple(shape[n] for n in k_spec[2:])
    if sizes(window) != tuple(n for n in space if n != 1):
        raise NoLayer("its window is put together from parts")
    permutation = _leaf_order(leaf, window + inputs, outputs)

    def apply(x, k):
        out = lax.conv_general_dilated(
            x,
            k,
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=lax.ConvDimensionNumbers(
                (0, rank + 1, *range(1, rank + 1)),
                (rank + 1, rank, *range(rank)),
                (0, rank + 1, *range(1, rank + 1)),
            ),
            feature_group_count=params["feature_group_count"],
            precision=params["precision"],
        )
        return out

    padded = (
        any(n > 0 for pair in params["padding"] for n in pair)
        or max(params["lhs_dilation"], default=1) > 1
    )
    full = (*space, shape[k_spec[1]], shape[k_spec[0]])
    operation = FoundOperation(
        apply,
        groups=params["feature_group_count"],
        padded=padded,
        spatial_axes=rank,
        kernel_axes=permutation,
        flatten_x=lambda a: jnp.transpose(a, to_x),
        flatten_z=lambda a: jnp.transpose(a, to_z),
        flatten_kernel=lambda a: jnp.transpose(a, permutation).reshape(full),
        rows=z_spec[0],
    )
    z = list(fresh(eqn.outvars[0].aval.shape))
    z[z_spec[1]] = outputs
    return operation, tuple(z), outputs


def _leaf_order(leaf: Axes, inputs: Axis, neurons: Axis) -> tuple[int, ...]:
    """The order of the parameter's axes in which the inputs come before the neurons."""
    found = order(leaf, inputs + neurons)
    if found is None:
        raise NoLayer("inputs and neurons lie mixed on the axes of its parameter")
    return found


def _flatten(
    array: Any, axes: Axes, rows: Axis, rest: Axis, known: dict[Any, int] | None = None
) -> jax.Array:
    """[rows..., rest] of an array whose axes are these; `known` are lengths that are others."""
    known = known or {}
    labels = every(axes)
    array = array.reshape([known.get(a, a.size) for a in labels])
    array = jnp.transpose(array, [labels.index(a) for a in rows + rest])
    return array.reshape(*array.shape[: len(rows)], math.prod(array.shape[len(rows) :]))


def _restore(array: Any, labels: Axis, axes: Axes, known: dict[Any, int]) -> jax.Array:
    """Back to these axes from flat ones."""
    length = {a: known.get(a, a.size) for a in labels}
    array = array.reshape([length[a] for a in labels])
    array = jnp.transpose(array, [labels.index(a) for a in every(axes)])
    return array.reshape([math.prod(length[a] for a in atoms(axis)) for axis in axes])
