"""Activation -> derivative -> sample weight."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxnorm.rule import Weighting

Gate: TypeAlias = str | Callable[[Any], Any] | None

_NAMES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "celu": jax.nn.celu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "gelu_erf": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_swish": jax.nn.hard_swish,
    "hard_tanh": jax.nn.hard_tanh,
    "identity": lambda z: z,
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


def resolve_gate(gate: Gate) -> Callable[[jax.Array], jax.Array] | None:
    """The activation function that a gate names.

    Args:
        gate: None (no activation follows), the name of an activation of `jax.nn` (underscores and
            capitals do not matter, so `torch.nn`'s spelling works too; `gelu_tanh` and `gelu_erf`
            name one of the two forms, `gelu` is the host's default), or an elementwise callable.

    Raises:
        ValueError: for a name that is not known.
        TypeError: for anything else.
    """
    if gate is None or (callable(gate) and not isinstance(gate, type)):
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


def gate_slope(gate: Gate, z: jax.Array) -> jax.Array | None:
    """phi'(z), elementwise, in at least float32; None where it is 1 everywhere.

    ReLU's is a boolean mask: the cheapest thing to keep until the backward pass.
    """
    phi = resolve_gate(gate)
    if phi is None:
        return None
    if phi is jax.nn.relu:
        return z > 0
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    a, pull = jax.vjp(phi, z)
    if a.shape != z.shape:
        raise ValueError(
            f"gate: got a callable that maps shape {z.shape} to {a.shape}, "
            "expected an elementwise one, which keeps the shape"
        )
    return pull(jnp.ones_like(a))[0]


def needs_slope(weighting: Weighting) -> bool:
    """Whether the sample weight depends on the activation's derivative."""
    return weighting in ("gate", "gate_squared", "signed")


def sample_weight(
    weighting: Weighting,
    slope: jax.Array | None,
    g_z: jax.Array,
    maximum: Callable[[jax.Array], jax.Array],
) -> jax.Array | None:
    """The sample weight s[n,o], scaled to a largest value of 1 per neuron; None if s = 1.

    The statistics do not change when s is scaled by a constant, and with this one s^2 neither
    underflows (a saturated sigmoid, a vanishing gradient) nor overflows. A weight that is NaN or
    infinite counts as 0.

    Args:
        weighting: see `Rule`.
        slope: phi'(z) (see `gate_slope`), None for 1.
        g_z: gradient at z, in at least float32.
        maximum: the largest value of each neuron, over all devices that share the batch; keeps the
            axes.
    """
    base = g_z if weighting == "error" else slope
    if weighting == "uniform" or base is None:
        return None
    if base.dtype == bool:
        return base.astype(g_z.dtype)
    base = base.astype(g_z.dtype)
    base = jnp.where(jnp.isfinite(base), base, 0)
    top = maximum(jnp.abs(base))
    base = base / jnp.where(top > 0, top, 1)
    if weighting == "signed":
        return base
    return jnp.abs(base) if weighting == "gate" else base * base
