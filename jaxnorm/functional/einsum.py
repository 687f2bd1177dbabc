"""The rule in any product of x and a kernel: `neuronwise_einsum`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.activations import Gate
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.functional.operation import one_dtype
from jaxnorm.operations.einsum import parse
from jaxnorm.operations.linear import is_placed
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


def neuronwise_einsum(
    equation: str,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    statistics: Any = None,
    neuron_mask: Any = None,
    einsum_op: Callable[..., jax.Array] = jnp.einsum,
    **kwargs: Any,
) -> Any:
    """Any product of x and a kernel. As `neuronwise_dense`, for any axes.

    Forward (exact):      z = einsum(equation, x, kernel) + bias
    Backward (modified):  as `neuronwise_dense`, where the labels that x and z share are the
                          samples, those that x and the kernel share are the inputs, those that the
                          kernel and z share tell the neurons apart, and a label of all three
                          separates groups that each have their own inputs and neurons

    So the projections of attention, `flax.linen.DenseGeneral` and `flax.linen.Einsum` are dense
    layers.

    Args:
        equation: as for `jax.numpy.einsum`, two operands and a result: ``"...td,dhk->...thk"``. A
            label that occurs in one of the three only is refused, ``...`` in the kernel too.
        x: any shape, floating.
        kernel: any shape.
        bias: the axes that z shares with the kernel, in z's order, or None.
        gate: as in `neuronwise_dense`, like the next three.
        rule: `statistics_rows` counts along all sample axes where they come first in x and z,
            otherwise along the first of them.
        axis_name: over which the batch is spread.
        statistics: the layer's tracked ones.
        neuron_mask: as in `neuronwise_dense`.
        einsum_op: what computes it, (equation, x, kernel, **kwargs) -> z, as in `flax.nnx.Einsum`.
        **kwargs: for `einsum_op`: precision, preferred_element_type, out_sharding.

    Returns:
        z; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_dense`, and for an equation that does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import neuronwise_einsum
        >>> x, kernel, bias = jnp.ones((2, 5, 8)), jnp.ones((8, 4, 3)), jnp.zeros((4, 3))
        >>> neuronwise_einsum("btd,dhk->bthk", x, kernel, bias, gate=None).shape
        (2, 5, 4, 3)
    """
    x, kernel, bias = one_dtype(x, kernel, bias)
    axes = parse(equation, x.shape, kernel.shape)

    def product(x, kernel, **other):
        return einsum_op(axes.equation, x, kernel, **(kwargs | other))

    operation = axes.operation(product, is_placed(kwargs))
    return linear_operation(
        operation,
        x,
        kernel,
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
        statistics=statistics,
        neuron_mask=neuron_mask,
    )
