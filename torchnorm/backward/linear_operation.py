"""THE autograd.Function: `linear_operation`, which every layer goes through, and `tell_gate`."""

import contextlib
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from torchnorm import checks
from torchnorm.activations import DEFERRED, Gate, gate_slope, resolve_gate
from torchnorm.compat import is_autocast_available
from torchnorm.coordinates import pull_back, standardized
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.moments import centered_gradient, input_moments
from torchnorm.statistics.step_scale import divisor
from torchnorm.statistics.weighting import needs_slope


def linear_operation(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    gate: Gate,
    rule: Rule,
    process_group: Any,
    statistics: Any = None,
) -> Any:
    """`neuronwise_linear` for any operation that is linear in its kernel.

    `statistics` are those of the layer, or a function that returns them or None: of a layer that
    may have none.
    """
    checks.check_rule(rule)
    resolve_gate(gate)
    if bias is not None:
        checks.check_bias(bias.shape, (weight.shape[0],))
    form = rule.gradient or ("preconditioned" if statistics is None else "plain_with_statistics")
    if form in ("plain", "plain_with_statistics") or not torch.is_grad_enabled():
        z = operation.apply(x, weight, bias)
        if callable(statistics):
            statistics = statistics()
        if form == "plain_with_statistics" and statistics is not None and torch.is_grad_enabled():
            return _recorded(operation, gate, rule, statistics, x, weight, bias, z)
        return (z, _handle(z)) if gate is DEFERRED else z
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.compile: got a torch.func transform inside, where PyTorch drops every custom "
            "backward without a word (pytorch#193279), expected none; compile the function that "
            "calls .backward(), or leave torch.func uncompiled"
        )
    device = x.device.type
    context = contextlib.nullcontext()
    if is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Here and not by torch.amp.custom_fwd, which excludes the setup_context of torch.func.
        context = torch.autocast(device, enabled=False)
        if x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
    with context:
        # The knobs are arguments of their own, because they may be tensors that are batched.
        z, handle, _ = _Neuronwise.apply(
            x, weight, bias, *rule.knobs, operation, gate, rule, process_group
        )
    return (z, handle) if gate is DEFERRED else z


def _recorded(operation, gate, rule, statistics, x, weight, bias, z):
    """Z with its true gradient, while the gradient at the statistics is those of this batch."""
    how = {
        "gated": gate is DEFERRED or resolve_gate(gate) is not None,
        "centered": bias is not None,
    }
    shapes = tracked.shapes_of(operation, weight, rule, **how)
    if {name: tuple(value.shape) for name, value in statistics.items()} != shapes:
        checks.check_statistics(statistics, tracked.empty(operation, weight, rule, **how))
    with _without_autocast(x):
        z, handle, _ = _Record.apply(
            z,
            x.detach(),
            weight.detach(),
            *rule.knobs,
            rule.decay,
            operation,
            gate,
            rule,
            how["centered"],
            tuple(statistics),
            *statistics.values(),
        )
    return (z, handle) if gate is DEFERRED else z


def _without_autocast(x: torch.Tensor) -> Any:
    """The statistics have their own dtypes, in a backward pass that autocast is around too."""
    device = x.device.type
    if is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class _Record(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        z,
        x,
        weight,
        shrinkage,
        damping,
        epsilon,
        decay,
        operation,
        gate,
        rule,
        centered,
        *statistics,
    ):
        # Not a view, as in _Neuronwise.
        own = torch.ops.aten._unsafe_view(z, z.shape)
        if gate is DEFERRED:
            return own, _handle(z), None
        slope = None
        if needs_slope(rule.weighting):
            slope = gate_slope(gate, operation.first_rows(z, rule.statistics_rows))
        return own, None, slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, x, weight, *knobs, operation, _, rule, centered = inputs[:11]
        names, *statistics = inputs[11:]
        _, handle, slope = output
        if slope is not None:
            ctx.mark_non_differentiable(slope)
        center = tracked.center_of(dict(zip(names, statistics, strict=True)))
        batched = [knob if isinstance(knob, torch.Tensor) else None for knob in knobs]
        ctx.save_for_backward(x, weight, slope, center, *batched)
        ctx.knobs = [None if isinstance(knob, torch.Tensor) else knob for knob in knobs]
        ctx.operation, ctx.rule, ctx.centered, ctx.names = operation, rule, centered, names
        ctx.deferred = handle is not None

    @staticmethod
    def backward(ctx, g_z, g_handle, _):
        # No once_differentiable: g_z is handed on, so second derivatives are PyTorch's. In those a
        # layer may be passed again, which counts as another call.
        if not any(ctx.needs_input_grad[12:]):
            return g_z, *[None] * (len(ctx.needs_input_grad) - 1)
        x, weight, slope, center, *batched = ctx.saved_tensors
        if ctx.deferred and needs_slope(ctx.rule.weighting):
            slope = ctx.operation.first_rows(g_handle, ctx.rule.statistics_rows)
        knobs = [k if k is not None else b for k, b in zip(ctx.knobs, batched, strict=True)]
        names = ("shrinkage", "damping", "epsilon", "decay")
        rule = replace(ctx.rule, **dict(zip(names, knobs, strict=True)))
        g = ctx.operation.first_rows(g_z, rule.statistics_rows)
        how = {"centered": ctx.centered}
        with torch.no_grad(), _without_autocast(x):
            batch = tracked.batch_statistics(
                ctx.operation, x, weight, slope, g, rule, center, **how
            )
        return g_z, *[None] * 11, *(batch[name].to(center.dtype) for name in ctx.names)


def _handle(z):
    """Zeros whose gradient is the slope that somebody tells (see `tell_gate`)."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    return torch.zeros((), dtype=dtype, device=z.device).expand(z.shape)


class _Neuronwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, shrinkage, damping, epsilon, operation, gate, rule, process_group):
        z = operation.apply(x, weight, bias)
        # Not a view any more: one made in here could not be modified in place afterwards.
        z = torch.ops.aten._unsafe_view(z, z.shape)
        if gate is DEFERRED:
            # No slope: it comes back as the gradient of a handle.
            return z, _handle(z), None
        slope = None
        if needs_slope(rule.weighting):
            # Taken now: an in-place activation will have overwritten z by the backward pass.
            slope = gate_slope(gate, operation.first_rows(z, rule.statistics_rows))
        return z, None, slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, shrinkage, damping, epsilon, operation, _, rule, process_group = inputs
        _, handle, slope = output
        if slope is not None:
            ctx.mark_non_differentiable(slope)
        knobs = (shrinkage, damping, epsilon)
        batched = [knob if isinstance(knob, torch.Tensor) else None for knob in knobs]
        ctx.save_for_backward(x, weight, slope, *batched)
        ctx.knobs = [None if isinstance(knob, torch.Tensor) else knob for knob in knobs]
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.operation, ctx.rule, ctx.process_group = operation, rule, process_group
        ctx.deferred = handle is not None

    @staticmethod
    @once_differentiable
    def backward(ctx, g_z, g_handle, _):
        x, weight, slope, *batched = ctx.saved_tensors
        if ctx.deferred and needs_slope(ctx.rule.weighting):
            slope = ctx.operation.first_rows(g_handle, ctx.rule.statistics_rows)
        knobs = [k if k is not None else b for k, b in zip(ctx.knobs, batched, strict=True)]
        g_x = g_weight = g_bias = None
        if ctx.needs_input_grad[0]:
            g_x = ctx.operation.input_grad(x, weight, g_z)
        _, weight_learns, bias_learns = ctx.needs_input_grad[:3]
        if weight_learns:
            # A frozen bias cannot absorb a mean: as without one.
            g_weight, g_bias = _parameter_gradients(
                ctx.operation,
                x,
                weight,
                g_z,
                slope,
                ctx.rule,
                knobs,
                centered=bias_learns,
                process_group=ctx.process_group,
            )
            g_weight = g_weight.to(weight.dtype)
        elif bias_learns:
            g_bias = ctx.operation.bias_grad(g_z.to(torch.promote_types(g_z.dtype, torch.float32)))
        g_bias = None if g_bias is None else g_bias.to(ctx.bias_dtype)
        return g_x, g_weight, g_bias, *[None] * 7


def _parameter_gradients(operation, x, weight, g_z, slope, rule, knobs, *, centered, process_group):
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centered."""
    rows = operation.first_rows(g_z, rule.statistics_rows)
    if process_group is None or dist.get_world_size(process_group) == 1:
        # Of several processes one may well have nothing: the others are not to wait for it.
        checks.check_samples(operation.samples(rows), centered)
    moments = input_moments(
        operation,
        x,
        weight,
        slope,
        rows,
        rule,
        knobs,
        centered=centered,
        process_group=process_group,
    )
    if centered:
        g_b = operation.bias_grad(g_z.to(moments.sigma.dtype))
        g_w = centered_gradient(operation, x, weight, g_z, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(x, weight, g_z)
    g_w = standardized(g_w, moments)
    g_w, g_b = (g_w, g_b) if rule.gradient == "standardized" else pull_back(g_w, g_b, moments)
    if rule.step_scale != "none":
        by = _divisor(operation, x, weight, rows, rule, knobs, process_group)
        g_w, g_b = g_w / by, None if g_b is None else g_b / by
    return g_w, g_b


def _divisor(operation, x, weight, rows, rule, knobs, process_group):
    """`step_scale.divisor` on the rows that the statistics use; its root for half of the way."""

    def total(values):
        if process_group is not None:
            values = values.clone()
            dist.all_reduce(values, group=process_group)
        return values

    x = operation.first_rows(x, rule.statistics_rows)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    _, damping, epsilon = knobs
    by = divisor(rule.step_scale, operation, x, weight, rows, damping, epsilon, total)
    return by.sqrt() if rule.gradient == "standardized" else by


class _TellGate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u, handle, slope):
        # Not a view, as in _Neuronwise.
        return torch.ops.aten._unsafe_view(u, u.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, handle, slope = inputs
        ctx.save_for_backward(slope)
        ctx.dtype = handle.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx, g_u):
        (slope,) = ctx.saved_tensors
        return g_u, slope.to(ctx.dtype), None


def tell_gate(
    u: torch.Tensor, handle: torch.Tensor, gate: Gate = None, *, slope: Any = None
) -> torch.Tensor:
    """Tell a layer with ``gate=DEFERRED`` what its activation finally sees.

    Forward (exact):      u itself
    Backward:             u's gradient is handed on; the layer that the handle came from takes
                          phi'(u), or `slope`, as the derivative of its activation

    For a layer whose output goes through a normalization or a sum before the activation, or into a
    product of two layers (gated units). A handle that is deferred twice has the sum of both slopes;
    one that is never deferred leaves its layer with its own, uniformly weighted moments.

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
    if not torch.is_grad_enabled():
        return u
    slope = gate_slope(gate, u.detach()) if slope is None else slope.detach()
    if slope is None:  # None: an activation of derivative 1
        slope = torch.ones_like(handle)
    checks.check_slope(slope.shape, handle.shape)
    return _TellGate.apply(u, handle, slope)
