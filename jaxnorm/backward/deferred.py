"""Gates that are told later: the handle of a layer, and `tell_gate`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.activations import Gate, gate_slope
from jaxnorm.backward.beside import handed_on
from jaxnorm.precision import at_least_float32


def handle_of(z: jax.Array) -> jax.Array:
    """Zeros whose gradient is the slope that somebody tells (see `tell_gate`)."""
    # Of z, so that `jax.vmap` gives every example a handle of its own, and does not sum the slopes.
    return jnp.where(jnp.isnan(z), 0, 0).astype(at_least_float32(z.dtype))


def _slope(u, handle, slope):
    del u
    return slope.astype(handle.dtype)


def _told(slope, g_u, position):
    """The gradient of the handle."""
    del g_u, position
    return slope


def tell_gate(
    u: jax.Array, handle: jax.Array, gate: Gate = None, *, slope: Any = None
) -> jax.Array:
    """Tell a layer with ``gate=DEFERRED`` what its activation finally sees.

    Forward (exact):      u itself
    Backward:             u's gradient is handed on; the layer that the handle came from takes
                          phi'(u), or `slope`, as the derivative of its activation

    For a layer whose output goes through a normalization or a sum before the activation, or into a
    product of two layers (gated units). A handle that is told twice has the sum of both slopes; one
    that is never told leaves its layer with its own, uniformly weighted moments.

    Args:
        u: what the activation is applied to: the result must be used in its place.
        handle: the second output of the layer, z's shape.
        gate: the activation, as everywhere; None with `slope`.
        slope: the derivative itself, z's shape, any real or boolean dtype. No gradient flows to it.

    Returns:
        u.

    Raises:
        ValueError: if the slope has not the handle's shape, or both or neither of gate and slope
            are given.

    Transformations: jit, grad, vmap, scan, remat, shard_map; both calls in the same body.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import DEFERRED, neuronwise_dense, tell_gate
        >>> def block(x, kernel, bias):
        ...     z, handle = neuronwise_dense(x, kernel, bias, gate=DEFERRED)
        ...     u = (z - z.mean(0, keepdims=True)) / z.std(0, keepdims=True)
        ...     return jax.nn.relu(tell_gate(u, handle, "relu"))
        >>> def swiglu(x, kernel, gate_kernel):
        ...     (a, a_handle), (b, b_handle) = (
        ...         neuronwise_dense(x, k, gate=DEFERRED) for k in (kernel, gate_kernel))
        ...     a = tell_gate(a, a_handle, slope=jax.nn.silu(b))  # d(a silu(b)) / da
        ...     b = tell_gate(b, b_handle, slope=a * jax.grad(lambda b: jax.nn.silu(b).sum())(b))
        ...     return a * jax.nn.silu(b)
        >>> block(jnp.eye(4), jnp.ones((4, 3)), jnp.zeros(3)).shape
        (4, 3)

    References:
        None: the sample weight of the thesis topic, taken where the activation is.
    """
    checks.check_told(gate, slope)
    if slope is None:
        slope = gate_slope(gate, lax.stop_gradient(u))
    checks.check_slope(jnp.shape(slope), jnp.shape(handle))
    return handed_on(_slope, _told, u, handle, lax.stop_gradient(jnp.asarray(slope)))
