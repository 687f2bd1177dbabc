"""Online Normalization: running statistics in the forward pass, a control process in the backward.

Both go through the samples of a batch one after the other. All that is sequential in them are
recurrences of one number per channel, `_recurrence`; what is done to whole samples is done to the
batch at once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.backward.sharding import varying_alike
from jaxnorm.normalizers.channels import (
    along,
    check_channels,
    check_choice,
    check_knob,
    computed,
    scaled,
    space_moments,
)

#: What comes after scale and bias, against outputs that the running statistics do not fit.
GUARDS = ("activation_clamping", "layer_scaling", None)


class OnlineState(NamedTuple):
    """The running statistics of the forward pass.

    Attributes:
        mean: [C], m of the equations.
        var: [C], v.
    """

    mean: jax.Array
    var: jax.Array


class OnlineControl(NamedTuple):
    """The state of the control process in the backward pass, in units of the loss.

    Attributes:
        gradient: [C], U of the equations: what is still to be taken off the mean of the gradients.
        projection: [C], V: and off their product with the outputs.
    """

    gradient: jax.Array
    projection: jax.Array


def initial_online_state(channels: int) -> OnlineState:
    """Mean 0, variance 1."""
    return OnlineState(jnp.zeros(channels), jnp.ones(channels))


def initial_online_control(channels: int) -> OnlineControl:
    """Zeros."""
    return OnlineControl(jnp.zeros(channels), jnp.zeros(channels))


def online_norm(
    x: jax.Array,
    state: OnlineState,
    control: OnlineControl,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    train: bool,
    momentum: float = 0.999,
    backward_momentum: float = 0.99,
    epsilon: float = 1e-5,
    guard: str | None = "activation_clamping",
    clamp: float = 5.0,
) -> tuple[jax.Array, OnlineState]:
    """The function of `jaxnorm.linen.normalizers.OnlineNorm`, which says what all of it means.

    The gradient with respect to `control` is what the backward pass adds to it.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.normalizers import (
        ...     initial_online_control, initial_online_state, online_norm
        ... )
        >>> x, state, control = jnp.eye(2), initial_online_state(2), initial_online_control(2)
        >>> def loss(x, control):
        ...     y, new = online_norm(x, state, control, train=True, guard=None)
        ...     return jnp.sum(y), new
        >>> grads, new = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, control)
        >>> control = jax.tree.map(jnp.add, control, grads[1])
        >>> print((100 * grads[0]).round(), new.mean.round(4), control.gradient.round())
        [[100. 100.]
         [ 99.  99.]] [0.001 0.001] [2. 2.]
    """
    check_channels(x, state.mean.shape[0])
    check_knob("momentum", momentum, 0, 1)
    check_knob("backward_momentum", backward_momentum, 0, 1)
    check_knob("epsilon", epsilon, 0)
    check_knob("clamp", clamp, 0)
    check_choice("guard", guard, GUARDS)
    x = computed(x)
    if train:
        x, state, control = varying_alike((x, state, control))
        center, root, state = _statistics(lax.stop_gradient(x), state, momentum, epsilon)
        y: Any = _controlled(x, center, root, control, backward_momentum)
    else:
        y = (x - along(state.mean, x)) * lax.rsqrt(along(state.var, x) + epsilon)
    y = scaled(y, scale, bias)
    if guard == "activation_clamping":
        limit = jnp.asarray(clamp, y.dtype)
        return lax.clamp(-limit, y, limit), state
    if guard == "layer_scaling":
        axes = tuple(range(1, x.ndim))
        return y * lax.rsqrt(jnp.mean(jnp.square(y), axes, keepdims=True) + epsilon), state
    return y, state


def _statistics(
    x: jax.Array, state: OnlineState, decay: float, epsilon: float
) -> tuple[jax.Array, jax.Array, OnlineState]:
    """What each sample is centered and divided by, [N, 1..., C], and the state after the batch."""
    mean, var, _ = space_moments(x)
    shape = mean.shape
    mean, var = mean.reshape(shape[0], -1), var.reshape(shape[0], -1)
    center, last_mean = _recurrence(state.mean, decay, (1 - decay) * mean)
    terms = (1 - decay) * (var + decay * jnp.square(mean - center))
    before, last_var = _recurrence(state.var, decay, terms)
    root = jnp.sqrt(before + epsilon)
    new = OnlineState(last_mean.astype(state.mean.dtype), last_var.astype(state.var.dtype))
    return center.reshape(shape), root.reshape(shape), lax.stop_gradient(new)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _controlled(x: Any, center: Any, root: Any, control: OnlineControl, decay: float) -> Any:
    """(x - center) / root, with the control process for a gradient."""
    return (x - center) / root


def _forward(x: Any, center: Any, root: Any, control: OnlineControl, decay: float) -> Any:
    y = (x - center) / root
    return y, (y, root, control)


def _backward(decay: float, kept: Any, g: jax.Array) -> tuple[Any, None, None, OnlineControl]:
    y, root, control = kept
    axes = tuple(range(1, y.ndim - 1))
    shape = root.shape

    def over_space(values):
        return jnp.mean(values, axes).reshape(shape[0], -1)

    rate = 1 - decay
    # The mean over space of g' y, with g' = g - rate V y, is linear in V; and so on.
    factors = 1 - rate * over_space(jnp.square(y))
    projection, last_projection = _recurrence(control.projection, factors, over_space(g * y))
    terms = (over_space(g) - rate * projection * over_space(y)) / root.reshape(shape[0], -1)
    gradient, last_gradient = _recurrence(control.gradient, decay, terms)
    g_x = (g - rate * projection.reshape(shape) * y) / root - rate * gradient.reshape(shape)
    added = OnlineControl(last_gradient - control.gradient, last_projection - control.projection)
    return g_x, None, None, jax.tree.map(lambda a, old: a.astype(old.dtype), added, control)


_controlled.defvjp(_forward, _backward)


def _recurrence(first: jax.Array, factors: Any, terms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """s[t + 1] = factors[t] s[t] + terms[t], from s[0] = first: all before the last, and the last.

    One after the other, not as an associative scan: a product of the factors may overflow where
    no s does.
    """
    factors = jnp.broadcast_to(factors, terms.shape)

    def step(now, at):
        factor, term = at
        return factor * now + term, now

    last, before = lax.scan(step, first.astype(terms.dtype), (factors, terms))
    return before, last
