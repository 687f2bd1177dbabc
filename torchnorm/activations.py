"""Activation -> derivative, by name or by autodiff."""

import contextlib
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

with warnings.catch_warnings():
    # The first use of forward mode loads something that PyTorch itself has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))

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
        >>> import torch
        >>> from torchnorm import JointGate
        >>> from torchnorm.functional import neuronwise_linear
        >>> def swiglu(z):  # both halves in one layer
        ...     gate, up = z.chunk(2, dim=-1)
        ...     return torch.nn.functional.silu(gate) * up
        >>> x, weight = torch.ones(4, 3), torch.ones(8, 3)
        >>> swiglu(neuronwise_linear(x, weight, gate=JointGate(swiglu))).shape
        torch.Size([4, 4])
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


def identity(z: torch.Tensor) -> torch.Tensor:
    """No activation."""
    return z * 1


def gelu_tanh(z: torch.Tensor) -> torch.Tensor:
    """GELU by its tanh approximation."""
    return F.gelu(z, approximate="tanh")


def gelu_erf(z: torch.Tensor) -> torch.Tensor:
    """GELU itself."""
    return F.gelu(z, approximate="none")


def _sech2(z: torch.Tensor) -> torch.Tensor:
    """1 - tanh(z)^2 without cancellation."""
    return 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z)


def _exp_below(z: torch.Tensor) -> torch.Tensor:
    """The exponential of min(z, 0)."""
    return z.clamp_max(0).exp()


def _selu_slope(z: torch.Tensor) -> torch.Tensor:
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return scale * torch.where(z > 0, 1.0, alpha * _exp_below(z))


def _gelu_tanh_slope(z: torch.Tensor) -> torch.Tensor:
    u = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return torch.sigmoid(2 * u) + 0.5 * z * _sech2(u) * du


def _gelu_erf_slope(z: torch.Tensor) -> torch.Tensor:
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return 0.5 * torch.special.erfc(-z / math.sqrt(2)) + z * density


def _silu_slope(z: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))


def _mish_slope(z: torch.Tensor) -> torch.Tensor:
    softplus = torch.logaddexp(z, torch.zeros_like(z))
    return torch.tanh(softplus) + z * torch.sigmoid(z) * _sech2(softplus)


def _glu_slope(z: torch.Tensor) -> torch.Tensor:
    a, b = z.chunk(2, dim=-1)
    return torch.cat([torch.sigmoid(b), a * torch.sigmoid(b) * torch.sigmoid(-b)], dim=-1)


# Closed forms where the frameworks differ at a kink (here as in PyTorch), and where autodiff loses
# the tail (1 - tanh(z)^2 has no digit left at z = 10 in float32): the unit of the weights is free,
# so the moments of a neuron that is saturated everywhere hang on those digits. Masks are boolean,
# the cheapest thing to keep until the backward pass.
_SLOPES: dict[Callable, Callable[[torch.Tensor], torch.Tensor]] = {
    gelu_erf: _gelu_erf_slope,
    gelu_tanh: _gelu_tanh_slope,
    JointGate(F.glu): _glu_slope,
    F.hardsigmoid: lambda z: (z.abs() < 3).to(z.dtype) / 6,
    F.hardswish: lambda z: torch.where(z.abs() < 3, z / 3 + 0.5, (z >= 3).to(z.dtype)),
    F.hardtanh: lambda z: z.abs() < 1,
    F.leaky_relu: lambda z: torch.where(z > 0, torch.ones_like(z), 0.01),
    F.relu6: lambda z: (z > 0) & (z < 6),
    F.celu: _exp_below,
    F.elu: _exp_below,
    F.gelu: _gelu_erf_slope,
    F.logsigmoid: lambda z: torch.sigmoid(-z),
    F.mish: _mish_slope,
    F.relu: lambda z: z > 0,
    F.selu: _selu_slope,
    F.sigmoid: lambda z: torch.sigmoid(z) * torch.sigmoid(-z),
    F.silu: _silu_slope,
    F.softplus: torch.sigmoid,
    F.tanh: _sech2,
    torch.relu: lambda z: z > 0,
    torch.sigmoid: lambda z: torch.sigmoid(z) * torch.sigmoid(-z),
    torch.tanh: _sech2,
}

_NAMES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": gelu_erf,
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "glu": JointGate(F.glu),
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "identity": identity,
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


def resolve_gate(gate: Gate) -> Any:
    """The activation function that a gate names.

    Args:
        gate: None (no activation follows), the name of an activation of `torch.nn` (underscores and
            capitals do not matter, so `jax.nn`'s spelling works too; `gelu_tanh` and `gelu_erf`
            name one of the two forms, `gelu` is PyTorch's default), an elementwise callable that
            forward-mode differentiation can go through, a `JointGate` for one that is not
            elementwise, or `DEFERRED`.

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


def closed_form(phi: Callable) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The derivative of an activation that is known in closed form, or None."""
    try:
        return _SLOPES.get(phi)
    except TypeError:  # a callable without a hash
        return None


def without_hooks(phi: Callable) -> Callable:
    """The function itself where it is a module of the network, whose hooks are not to run again."""
    if isinstance(phi, JointGate):
        return without_hooks(phi.phi)
    return phi.forward if isinstance(phi, nn.Module) else phi


def gate_slope(gate: Gate, z: torch.Tensor) -> torch.Tensor | None:
    """The derivative of the activation at z, elementwise; None where it is 1 everywhere.

    In at least float32, or a boolean mask.
    """
    phi = resolve_gate(gate)
    if phi is None:
        return None
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    slope = closed_form(phi)
    if slope is not None:
        return slope(z)
    function = without_hooks(phi)
    if isinstance(phi, JointGate):
        if torch.compiler.is_compiling():  # which can trace this one only
            return torch.func.grad(lambda z: function(z).sum())(z)
        with torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            return torch.autograd.grad(function(z * 1).sum(), z)[0]
    # Forward mode, which saves nothing: checkpointing forbids torch.func.vjp here. On a copy,
    # because z is the layer's output and phi may work in place.
    a, slope = torch.func.jvp(function, (z.clone(),), (torch.ones_like(z),))[:2]
    _check_elementwise(phi, z, a)
    return slope


_elementwise: weakref.WeakSet = weakref.WeakSet()


def _check_elementwise(phi: Callable, z: torch.Tensor, a: torch.Tensor) -> None:
    """Raise a ValueError if phi changes the shape, or mixes the entries of a small example."""
    if a.shape != z.shape:
        raise ValueError(
            f"gate: got a callable that maps shape {tuple(z.shape)} to {tuple(a.shape)}, "
            "expected an elementwise one, which keeps the shape; for gated units and pooling use "
            "JointGate(callable)"
        )
    shape = (min(z.shape[0], 2), *z.shape[1:]) if z.ndim > 1 else z.shape
    size = math.prod(shape)
    if torch.compiler.is_compiling() or size < 2 or size > 2**20 or phi in _elementwise:
        return
    function = without_hooks(phi)
    # Not torch.manual_seed, which would seed every device and not only what is forked here.
    generators = [torch.default_generator]
    devices = [z.device.index] if z.device.type == "cuda" else []
    generators += [torch.cuda.default_generators[index] for index in devices]

    def seeded() -> Callable:
        for generator in generators:
            generator.manual_seed(0)
        return function

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            example = torch.linspace(-2, 2, size, dtype=z.dtype, device=z.device)
            changed = example.clone()
            changed[size // 2] = 1.5
            before = seeded()(example.reshape(shape)).reshape(-1)
            after = seeded()(changed.reshape(shape)).reshape(-1)
    except Exception:
        return  # it needs the whole batch: only its shape is known
    differs = (before != after) & (before == before)
    differs[size // 2] = False
    if differs.any():
        raise ValueError(
            "gate: got a callable that mixes entries (one changed, others followed), expected an "
            "elementwise one; for gated units and pooling use JointGate(callable)"
        )
    with contextlib.suppress(TypeError):  # not every callable can be referred to weakly
        _elementwise.add(phi)
