"""Activation -> derivative -> sample weight."""

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from torchnorm.rule import Weighting

with warnings.catch_warnings():
    # The first use of forward mode loads something that PyTorch itself has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))

Gate: TypeAlias = str | Callable[[Any], Any] | None

_NAMES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_erf": lambda z: F.gelu(z, approximate="none"),
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "identity": lambda z: z * 1,
    "leaky_relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "rrelu": F.rrelu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "swish": F.silu,
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
}


def _key(name: str) -> str:
    return name.replace("_", "").lower()


_GATES = {_key(name): gate for name, gate in _NAMES.items()}


def resolve_gate(gate: Gate) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The activation function that a gate names.

    Args:
        gate: None (no activation follows), the name of an activation of `torch.nn` (underscores and
            capitals do not matter, so `jax.nn`'s spelling works too; `gelu_tanh` and `gelu_erf`
            name one of the two forms, `gelu` is the host's default), or an elementwise callable
            that forward-mode differentiation can go through.

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


def gate_slope(gate: Gate, z: torch.Tensor) -> torch.Tensor | None:
    """phi'(z), elementwise, in at least float32; None where it is 1 everywhere.

    ReLU's is a boolean mask: the cheapest thing to keep until the backward pass.
    """
    phi = resolve_gate(gate)
    if phi is None:
        return None
    if phi is F.relu:
        return z > 0
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    # Forward mode, which saves nothing: checkpointing forbids torch.func.vjp here.
    a, slope = torch.func.jvp(phi, (z,), (torch.ones_like(z),))
    if a.shape != z.shape:
        raise ValueError(
            f"gate: got a callable that maps shape {tuple(z.shape)} to {tuple(a.shape)}, "
            "expected an elementwise one, which keeps the shape"
        )
    return slope


def needs_slope(weighting: Weighting) -> bool:
    """Whether the sample weight depends on the activation's derivative."""
    return weighting in ("gate", "gate_squared", "signed")


def sample_weight(
    weighting: Weighting,
    slope: torch.Tensor | None,
    g_z: torch.Tensor,
    maximum: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor | None:
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
    if base.dtype == torch.bool:
        return base.to(g_z.dtype)
    base = base.to(g_z.dtype)
    base = torch.where(torch.isfinite(base), base, 0)
    top = maximum(base.abs())
    base = base / torch.where(top > 0, top, 1)
    if weighting == "signed":
        return base
    return base.abs() if weighting == "gate" else base * base
