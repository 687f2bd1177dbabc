"""The rule in any operation that is linear in its kernel: `neuronwise_op`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import checks
from jaxnorm.activations import Gate
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.operations.linear import LinearOperation
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


def neuronwise_op(
    op: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    groups: int = 1,
    padded: bool = True,
    spatial_axes: int = 0,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    statistics: Any = None,
    neuron_mask: Any = None,
) -> Any:
    """Any operation that is linear in its kernel. As `neuronwise_dense`, for a function of yours.

    Forward (exact):      z = op(x, kernel) + bias
    Backward (modified):  as `neuronwise_dense`; all sums are kernel gradients of `op`

    Each entry of the kernel must meet at most one entry of x per sample, with coefficient 1, as in
    any product or convolution; op must work for any number of outputs (and, where padded, of
    channels) that `groups` divides, and for some rows of x as for all.

    Args:
        op: (x, kernel) -> z, linear in the kernel.
        x: [..., C], channels last; all other axes are samples.
        kernel: [..., C / groups, O]; all other axes are taps.
        bias: [O] or None.
        groups: into how many groups channels and outputs fall.
        padded: whether an entry of the kernel may meet no x at all in some samples, which then
            count as x = 0. False saves a small product.
        spatial_axes: how many axes of x between batch and channels are positions: only whole
            positions are left out by `statistics_rows`.
        gate: as in `neuronwise_dense`, like the next three.
        rule: what the gradient is standardized by.
        axis_name: over which the batch is spread.
        statistics: the layer's tracked ones.
        neuron_mask: as in `neuronwise_dense`.

    Returns:
        z [..., O]; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_dense`, and for an op that is not linear in the kernel
            or has not O outputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import neuronwise_op
        >>> def causal(x, kernel):  # z[t] = x[t] k[0] + x[t - 1] k[1]
        ...     back = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        ...     return x @ kernel[0] + back @ kernel[1]
        >>> x, kernel = jnp.ones((4, 6, 3)), jnp.ones((2, 3, 5))
        >>> neuronwise_op(causal, x, kernel, jnp.zeros(5), spatial_axes=1, gate="relu").shape
        (4, 6, 5)
    """
    x, kernel, bias = one_dtype(x, kernel, bias)
    checks.check_linear(op, x, kernel)
    operation = LinearOperation(op, groups, padded, spatial_axes)
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


def one_dtype(x: Any, kernel: Any, bias: Any) -> Any:
    """The arrays in their common dtype."""
    arrays = tuple(a if a is None else jnp.asarray(a) for a in (x, kernel, bias))
    checks.check_floating(**dict(zip(("x", "kernel", "bias"), arrays, strict=True)))
    dtype = jnp.result_type(*jax.tree.leaves(arrays))
    return jax.tree.map(lambda array: array.astype(dtype), arrays)
