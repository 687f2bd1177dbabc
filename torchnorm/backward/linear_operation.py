"""THE autograd.Function: `linear_operation`, which every layer goes through."""

import contextlib
from dataclasses import replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from torchnorm import checks, masks
from torchnorm.activations import DEFERRED, Gate, gate_slope, resolve_gate
from torchnorm.backward.adapted import parameter_gradients
from torchnorm.backward.deferred import handle_of
from torchnorm.backward.recorded import batch_statistics
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.batch import Batch, make_batch
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
    neuron_mask: Any = None,
) -> Any:
    """`neuronwise_linear` for any operation that is linear in its kernel.

    z is always PyTorch's, and so is its gradient. What changes is what the parameters get, or what
    the statistics get beside it: an identity around z sees both its inputs and its gradient.

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
        return record(
            operation,
            z,
            x,
            weight,
            bias,
            gate=gate,
            rule=rule,
            process_group=process_group,
            statistics=statistics,
            neuron_mask=neuron_mask,
        )
    _check_compiled()
    x, weight, bias = _autocast(x, weight, bias)
    with _without_autocast(x):
        z = operation.apply_detached(x, weight, bias)
        mask = _mask(neuron_mask, operation, z, x)
        arguments = (*rule.knobs, rule.decay, mask, operation, gate, rule, process_group)
        z, handle, *_ = _Adapted.apply(z, x.detach(), weight, bias, *arguments)
    return (z, handle) if gate is DEFERRED else z


def record(
    operation: LinearOperation,
    z: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    gate: Gate,
    rule: Rule,
    process_group: Any,
    statistics: Any = None,
    neuron_mask: Any = None,
) -> Any:
    """z, whoever has computed it of x; its gradient leaves the layer's statistics.

    Of weight and bias only shapes and dtypes matter.
    """
    before: Any = None
    # Asked for only where they are needed: a layer may forget then what it has gathered.
    if rule.gradient != "plain" and torch.is_grad_enabled():
        before = statistics() if callable(statistics) else statistics
    if before is None:
        return (z, handle_of(z)) if gate is DEFERRED else z
    gated, centered = gate is DEFERRED or resolve_gate(gate) is not None, bias is not None
    shapes = tracked.shapes_of(operation, weight, rule, gated=gated, centered=centered)
    checks.check_statistics(before, shapes)
    _check_compiled()
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    function: Any = _Recorded if torch.compiler.is_compiling() else _RecordedForward
    mask = _mask(neuron_mask, operation, z, x)
    with _without_autocast(x):
        # The knobs are arguments of their own, because they may be tensors that are batched.
        arguments = (*rule.knobs, rule.decay, mask, operation, gate, rule, process_group, *before)
        z, handle, *_ = function.apply(z, x.detach(), weight, bias, *arguments)
    return (z, handle) if gate is DEFERRED else z


def _mask(given: Any, operation: LinearOperation, z: torch.Tensor, x: torch.Tensor) -> Any:
    """How often each sample of z counts, or None: as often as any other."""
    mask = masks.current_mask() if given is None else given
    return None if mask is None else masks.fitted(mask, operation.sample_shape(z), x)


def _check_compiled() -> None:
    """Raise where the backward pass would be dropped."""
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.compile: got a torch.func transform inside, where PyTorch drops every "
            "custom backward without a word (pytorch#193279), expected none; compile the "
            "function that calls .backward(), or leave torch.func uncompiled"
        )


def _autocast(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """In the dtype that autocast would have them in.

    Not by torch.amp.custom_fwd, which excludes the setup_context of torch.func.
    """
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if not autocast or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _without_autocast(x: torch.Tensor) -> Any:
    """What is computed in here has its dtypes, in a backward pass that autocast is around too."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class _Identity(torch.autograd.Function):
    """(z, handle, slope, token); of parameters or statistics the gradient is another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs):  # (PyTorch looks at each call what the arguments are called)
        z, *_, mask, operation, gate, rule, _ = inputs[:_ARRAYS]
        statistics = inputs[_ARRAYS:]
        # Not a view any more: one made in here could not be modified in place afterwards.
        same = torch.ops.aten._unsafe_view(z, z.shape)
        token = z.new_ones(()) if statistics else None
        if gate is DEFERRED:
            # No slope: it comes back as the gradient of a handle.
            return same, handle_of(z), None, token
        slope = None
        if needs_slope(rule.weighting):
            # Taken now: an in-place activation will have overwritten z by the backward pass.
            # With a mask it is not known yet of which rows.
            rows = rule.statistics_rows if mask is None else None
            slope = gate_slope(gate, operation.spaced_rows(z, rows))
        return same, None, slope, token

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, x, weight, bias, *knobs, mask, operation, _, rule, process_group = inputs[:_ARRAYS]
        _, handle, slope, token = output
        if slope is not None:
            ctx.mark_non_differentiable(slope)
        statistics = inputs[_ARRAYS:]
        center = tracked.Statistics(*statistics).mean if statistics else None
        batched = [knob if isinstance(knob, torch.Tensor) else None for knob in knobs]
        ctx.save_for_backward(x, weight, slope, center, mask, token, *batched)
        ctx.bias_dtype = None if bias is None else bias.dtype
        # Recorded statistics are shared by the optimizer, once for all layers.
        ctx.process_group = None if statistics else process_group
        ctx.operation, ctx.rule = operation, rule
        ctx.deferred = handle is not None


_KNOBS = ("shrinkage", "damping", "epsilon", "decay")
#: How many arguments come before the statistics.
_ARRAYS = 13


def _batch(ctx: Any, g_z: torch.Tensor, g_handle: Any, *, centered: bool) -> tuple[Batch, Any]:
    """The batch, and about what the statistics take its sums."""
    x, weight, slope, center, mask, _, *batched = ctx.saved_tensors
    if ctx.deferred and needs_slope(ctx.rule.weighting):
        slope = g_handle
    tensors = {k: v for k, v in zip(_KNOBS, batched, strict=True) if v is not None}
    rule = replace(ctx.rule, **tensors) if tensors else ctx.rule
    place = {"centered": centered, "process_group": ctx.process_group, "mask": mask}
    return make_batch(ctx.operation, x, weight, g_z, slope, rule, **place), center


class _Adapted(_Identity):
    """The gradients at the weight and the bias by the rule."""

    @staticmethod
    @once_differentiable
    def backward(ctx, g_z, g_handle, *_):
        _, _, weight_learns, bias_learns, *rest = ctx.needs_input_grad
        g_weight = g_bias = None
        if weight_learns:
            # A frozen bias cannot absorb a mean: as without one.
            batch, _ = _batch(ctx, g_z, g_handle, centered=bias_learns)
            g_weight, g_bias = parameter_gradients(batch)
            g_weight = g_weight.to(batch.weight.dtype)
        elif bias_learns:
            g_bias = ctx.operation.bias_grad(g_z.to(torch.promote_types(g_z.dtype, torch.float32)))
        g_bias = None if g_bias is None else g_bias.to(ctx.bias_dtype)
        return g_z, None, g_weight, g_bias, *[None] * len(rest)


class _Recorded(_Identity):
    """The gradient at the statistics is those of this batch."""

    @staticmethod
    def backward(ctx, g_z, g_handle, *_):
        # No once_differentiable: g_z is handed on, so second derivatives are PyTorch's.
        g_x = g_z
        if g_x is None:
            g_z = torch.zeros(ctx.shape, dtype=ctx.dtype, device=ctx.saved_tensors[0].device)
        elif torch.is_grad_enabled():
            # The gradient of a derivative comes back to the token, and with it to this call: that
            # of a linear layer's z is 0 in a loss of nothing but derivatives.
            g_x = g_z * ctx.saved_tensors[5].to(g_z.dtype)
        if g_handle is None and ctx.deferred:
            g_handle = torch.zeros_like(g_z, dtype=torch.promote_types(ctx.dtype, torch.float32))
        needed = ctx.needs_input_grad[_ARRAYS:]
        if not any(needed):
            return g_x, *[None] * (_ARRAYS - 1 + len(needed))
        with torch.no_grad(), _without_autocast(g_z):
            batch, center = _batch(ctx, g_z, g_handle, centered=ctx.bias_dtype is not None)
            found = zip(batch_statistics(batch, center), needed, strict=True)
        return g_x, *[None] * (_ARRAYS - 1), *(new if need else None for new, need in found)


class _RecordedForward(_Recorded):
    """With forward mode, which torch.compile does not trace."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Recorded.setup_context(ctx, inputs, output)
        # Where nothing flows back to z, nothing flows on: not zeros.
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.dtype = output[0].shape, output[0].dtype

    @staticmethod
    def jvp(ctx, t_z, *_):
        # PyTorch's: all that depends on the parameters is z.
        dtype = torch.promote_types(t_z.dtype, torch.float32)
        handle = t_z.new_zeros((), dtype=dtype).expand(t_z.shape) if ctx.deferred else None
        return t_z.clone(), handle, None, t_z.new_zeros(())
