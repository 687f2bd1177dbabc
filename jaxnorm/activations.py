"""Activation -> derivative, by name or by autodiff."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.precision import at_least_float32

Gate: TypeAlias = Any  # str | Callable[[Array], Array] | None | DEFERRED


class _DeferredType:
    """The type of `DEFERRED`."""

    def __repr__(self) -> str:
        return "DEFERRED"

    def __reduce__(self) -> str:
        return "DEFERRED"  # there is one only, in copies and pickles too


DEFERRED = _DeferredType()
"""A gate that is not known at the layer: it returns (z, handle), and `tell_gate` tells it later."""


class JointGate:
    """A gate that reads several pre-activations at once: gated units, maxout, pooling.

    Forward:   a = phi(z), of any shape
    Weight:    |d sum(phi(z)) / dz|, the sum over everything that a pre-activation reaches

    Without it, a gate that is not elementwise is refused, because for most functions that sum says
    nothing (that of a softmax is constant).

    Args:
        phi: the function, on the whole z.

    Raises:
        TypeError: for a phi that is not callable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import JointGate, neuronwise_dense
        >>> def swiglu(z):  # both halves in one layer
        ...     gate, up = jnp.split(z, 2, axis=-1)
        ...     return jax.nn.silu(gate) * up
        >>> x, kernel = jnp.ones((4, 3)), jnp.ones((3, 8))
        >>> swiglu(neuronwise_dense(x, kernel, gate=JointGate(swiglu))).shape
        (4, 4)
    """

    def __init__(self, phi: Callable[[Any], Any]) -> None:
        if not callable(phi):
            raise TypeError(f"phi: got {phi!r}, expected a callable")
        self.phi = phi

    def __call__(self, z: Any) -> Any:
        """Apply the activation."""
        return self.phi(z)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, JointGate) and self.phi == other.phi

    def __hash__(self) -> int:
        return hash((JointGate, self.phi))

    def __repr__(self) -> str:
        return f"JointGate({getattr(self.phi, '__name__', self.phi)!s})"


def identity(z: jax.Array) -> jax.Array:
    """No activation."""
    return z


def gelu_tanh(z: jax.Array) -> jax.Array:
    """GELU by its tanh approximation."""
    return jax.nn.gelu(z, approximate=True)


def gelu_erf(z: jax.Array) -> jax.Array:
    """GELU itself."""
    return jax.nn.gelu(z, approximate=False)


def _sech2(z: jax.Array) -> jax.Array:
    """1 - tanh(z)^2 without cancellation."""
    return 4 * jax.nn.sigmoid(2 * z) * jax.nn.sigmoid(-2 * z)


def _exp_below(z: jax.Array) -> jax.Array:
    """The exponential of min(z, 0)."""
    return jnp.exp(jnp.minimum(z, 0))


def _selu_slope(z: jax.Array) -> jax.Array:
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return scale * jnp.where(z > 0, 1.0, alpha * _exp_below(z))


def _gelu_tanh_slope(z: jax.Array) -> jax.Array:
    u = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return jax.nn.sigmoid(2 * u) + 0.5 * z * _sech2(u) * du


def _gelu_erf_slope(z: jax.Array) -> jax.Array:
    density = jnp.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return 0.5 * jax.lax.erfc(-z / math.sqrt(2)) + z * density


def _silu_slope(z: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z))


def _mish_slope(z: jax.Array) -> jax.Array:
    softplus = jnp.logaddexp(z, 0.0)
    return jnp.tanh(softplus) + z * jax.nn.sigmoid(z) * _sech2(softplus)


def _hard_silu_slope(z: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(z) < 3, z / 3 + 0.5, (z >= 3).astype(z.dtype))


def _glu_slope(z: jax.Array) -> jax.Array:
    a, b = jnp.split(z, 2, axis=-1)
    slopes = [jax.nn.sigmoid(b), a * jax.nn.sigmoid(b) * jax.nn.sigmoid(-b)]
    return jnp.concatenate(slopes, axis=-1)


# Closed forms where the frameworks differ at a kink (here as in PyTorch), and where autodiff loses
# the tail (1 - tanh(z)^2 has no digit left at z = 10 in float32): the unit of the weights is free,
# so the moments of a neuron that is saturated everywhere hang on those digits. Masks are boolean,
# the cheapest thing to keep until the backward pass.
_SLOPES: dict[Callable, Callable[[jax.Array], jax.Array]] = {
    gelu_erf: _gelu_erf_slope,
    gelu_tanh: _gelu_tanh_slope,
    JointGate(jax.nn.glu): _glu_slope,
    jax.nn.hard_sigmoid: lambda z: (jnp.abs(z) < 3).astype(z.dtype) / 6,
    jax.nn.hard_silu: _hard_silu_slope,
    jax.nn.hard_swish: _hard_silu_slope,
    jax.nn.hard_tanh: lambda z: jnp.abs(z) < 1,
    jax.nn.leaky_relu: lambda z: jnp.where(z > 0, 1.0, 0.01),
    jax.nn.relu6: lambda z: (z > 0) & (z < 6),
    jax.nn.celu: _exp_below,
    jax.nn.elu: _exp_below,
    jax.nn.gelu: _gelu_tanh_slope,
    jax.nn.log_sigmoid: lambda z: jax.nn.sigmoid(-z),
    jax.nn.mish: _mish_slope,
    jax.nn.relu: lambda z: z > 0,
    jax.nn.selu: _selu_slope,
    jax.nn.sigmoid: lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z),
    jax.nn.silu: _silu_slope,
    jax.nn.softplus: jax.nn.sigmoid,
    jax.nn.swish: _silu_slope,
    jax.nn.tanh: _sech2,
}

_NAMES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "celu": jax.nn.celu,
    "elu": jax.nn.elu,
    "gelu": gelu_tanh,
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "glu": JointGate(jax.nn.glu),
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_swish": jax.nn.hard_swish,
    "hard_tanh": jax.nn.hard_tanh,
    "identity": identity,
    "leaky_relu": jax.nn.leaky_relu,
    "log_sigmoid": jax.nn.log_sigmoid,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "soft_sign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
    "sparse_plus": jax.nn.sparse_plus,
    "sparse_sigmoid": jax.nn.sparse_sigmoid,
    "squareplus": jax.nn.squareplus,
    "swish": jax.nn.swish,
    "tanh": jax.nn.tanh,
}


def _key(name: str) -> str:
    return name.replace("_", "").lower()


_GATES = {_key(name): gate for name, gate in _NAMES.items()}


def resolve_gate(gate: Gate) -> Any:
    """The activation function that a gate names.

    Args:
        gate: None (no activation follows), the name of an activation of `jax.nn` (underscores and
            capitals do not matter, so `torch.nn`'s spelling works too; `gelu_tanh` and `gelu_erf`
            name one of the two forms, `gelu` is Flax's default), an elementwise callable, a
            `JointGate` for one that is not, or `DEFERRED`.

    Raises:
        ValueError: for a name that is not known.
        TypeError: for anything else.
    """
    if gate is None or gate is DEFERRED:
        return gate
    if callable(gate) and not isinstance(gate, type):
        return gate
    if not isinstance(gate, str):
        raise TypeError(
            f"gate: got {gate!r}, expected None, the name of an activation or an elementwise "
            "callable"
        )
    if _key(gate) not in _GATES:
        raise ValueError(
            f"gate: got {gate!r}, expected None, an elementwise callable or one of "
            f"{', '.join(sorted(_NAMES))}"
        )
    return _GATES[_key(gate)]


def closed_form(phi: Callable) -> Callable[[jax.Array], jax.Array] | None:
    """The derivative of an activation that is known in closed form, or None."""
    try:
        return _SLOPES.get(phi)
    except TypeError:  # a callable without a hash
        return None


def gate_slope(gate: Gate, z: jax.Array) -> jax.Array | None:
    """The derivative of the activation at z, elementwise; None where it is 1 everywhere.

    In at least float32, or a boolean mask.
    """
    phi = resolve_gate(gate)
    if phi is None:
        return None
    z = z.astype(at_least_float32(z.dtype))
    slope = closed_form(phi)
    if slope is not None:
        return slope(z)
    a, pull = jax.vjp(phi, z)
    if not isinstance(phi, JointGate):
        _check_elementwise(phi, z, a)
    return pull(jnp.ones_like(a))[0]


def _check_elementwise(phi: Callable, z: jax.Array, a: jax.Array) -> None:
    """Raise a ValueError if phi changes the shape, or mixes the entries of a small example."""
    if a.shape != z.shape:
        raise ValueError(
            f"gate: got a callable that maps shape {z.shape} to {a.shape}, "
            "expected an elementwise one, which keeps the shape; for gated units and pooling use "
            "JointGate(callable)"
        )
    shape = (min(z.shape[0], 2), *z.shape[1:]) if z.ndim > 1 else z.shape
    size = math.prod(shape)
    if size < 2 or size > 2**20:
        return
    try:
        with jax.ensure_compile_time_eval():
            example = jnp.linspace(-2, 2, size, dtype=z.dtype).reshape(shape)
            before = np.asarray(phi(example)).ravel()
            after = np.asarray(phi(example.ravel().at[size // 2].set(1.5).reshape(shape))).ravel()
    except Exception:
        return  # it closes over traced values or needs the whole batch: only its shape is known
    mixed = np.delete(before != after, size // 2) & np.delete(before == before, size // 2)
    if mixed.any():
        raise ValueError(
            "gate: got a callable that mixes entries (one changed, others followed), expected an "
            "elementwise one; for gated units and pooling use JointGate(callable)"
        )
