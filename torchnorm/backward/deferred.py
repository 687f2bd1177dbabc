"""Gates that are told later: the handle of a layer, and `tell_gate`."""

from typing import Any

import torch

from torchnorm import checks
from torchnorm.activations import Gate, gate_slope


def handle_of(z: torch.Tensor) -> torch.Tensor:
    """Zeros whose gradient is the slope that somebody tells (see `tell_gate`)."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    # Of z, so that `torch.func.vmap` gives every example a handle of its own.
    return z.new_zeros((), dtype=dtype).expand(z.shape)


class _TellGate(torch.autograd.Function):
    """(u, token); the gradient at the handle is the slope, whatever the loss is of."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u, handle, slope):
        # Not a view, as in `linear_operation`.
        return torch.ops.aten._unsafe_view(u, u.shape), u.new_ones(())

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, handle, slope = inputs
        ctx.save_for_backward(slope, output[1])
        ctx.dtype = handle.dtype

    @staticmethod
    def backward(ctx, g_u, _):
        slope, token = ctx.saved_tensors
        if g_u is not None and torch.is_grad_enabled():
            # The gradient of a derivative comes back to the token, and so to this call.
            g_u = g_u * token
        return g_u, slope.to(ctx.dtype), None


class _TellGateForward(_TellGate):
    """With forward mode, which torch.compile does not trace."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _TellGate.setup_context(ctx, inputs, output)
        # Where nothing flows back to u, nothing flows on: not zeros.
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx, t_u, *_):
        return t_u.clone(), t_u.new_zeros(())


def tell_gate(
    u: torch.Tensor, handle: torch.Tensor, gate: Gate = None, *, slope: Any = None
) -> torch.Tensor:
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

    Transformations: as `neuronwise_linear`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import relu, silu
        >>> from torchnorm import DEFERRED
        >>> from torchnorm.functional import neuronwise_linear, tell_gate
        >>> def block(x, weight, bias):
        ...     z, handle = neuronwise_linear(x, weight, bias, gate=DEFERRED)
        ...     u = (z - z.mean(0)) / z.std(0)
        ...     return relu(tell_gate(u, handle, "relu"))
        >>> def swiglu(x, weight, gate_weight):
        ...     (a, a_handle), (b, b_handle) = (
        ...         neuronwise_linear(x, w, gate=DEFERRED) for w in (weight, gate_weight))
        ...     a = tell_gate(a, a_handle, slope=silu(b))  # d(a silu(b)) / da
        ...     b = tell_gate(b, b_handle, slope=a * b.sigmoid() * (1 + b * (-b).sigmoid()))
        ...     return a * silu(b)
        >>> block(torch.eye(4), torch.ones(3, 4), torch.zeros(3)).shape
        torch.Size([4, 3])

    References:
        None: the sample weight of the thesis topic, taken where the activation is.
    """
    checks.check_told(gate, slope)
    if not torch.is_grad_enabled() or not _reaches(handle):
        return u
    slope = gate_slope(gate, u.detach()) if slope is None else slope.detach()
    if slope is None:  # None: an activation of derivative 1
        slope = torch.ones_like(handle)
    checks.check_slope(slope.shape, handle.shape)
    function: Any = _TellGate if torch.compiler.is_compiling() else _TellGateForward
    return function.apply(u, handle, slope)[0]


def _reaches(handle: torch.Tensor) -> bool:
    """Whether a layer is there to be told: in a step without statistics none is."""
    return handle.requires_grad or torch._C._are_functorch_transforms_active()
