"""The rule as functions: THE autograd.Function, for any operation that is linear in its kernel."""

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from torchnorm import checks
from torchnorm.coordinates import covariant, pull_back
from torchnorm.gates import Gate, gate_slope, resolve_gate
from torchnorm.operations import Dense, LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import centred_gradient, input_moments
from torchnorm.weighting import needs_slope


def neuronwise_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
) -> torch.Tensor:
    """A dense layer whose weight gradient is taken in standardised coordinates, per neuron.

    Forward (exact):      z[..., o] = sum_i x[..., i] weight[o, i] + bias[o]
    Backward (modified):  g_x = g_z W                                    (the true one)
                          g_W <- (g_W - mean g_b) / sigma^2              (not the VJP)
                          g_b <- g_b - sum_i mean[:, i] g_W[:, i]        (with the new g_W)

    where mean and sigma [O, I] are the moments of each neuron's inputs over the samples on which it
    is active, weighted by the activation's derivative (see `Rule`, which also selects the other
    members of the family). Without a bias nothing can absorb a mean: then mean = 0 and sigma^2 is
    the second moment about zero. Nothing is remembered between calls.

    Args:
        x: [..., I], float16, bfloat16, float32 or float64; all leading axes are samples (N).
        weight: [O, I].
        bias: [O] or None.
        gate: the activation that follows: a name of `torch.nn`, an elementwise callable, or None if
            none follows. It is differentiated, not applied, and has no default, because a guess
            would silently be another method. With None the moments are the layer's own.
        rule: which moments and which form of the gradient. With ``gradient="plain"`` this is the
            plain layer, gradient and all, bit for bit.
        process_group: processes over which the batch is spread (`torch.distributed`); the
            statistics are then those of the whole batch. None: those of this process, as in DDP's
            BatchNorm.

    Returns:
        z [..., O], the dtype of `torch.nn.functional.linear`, under autocast too.

    Raises:
        TypeError: for an x, weight or bias that is not floating-point, a gate or rule of another
            type.
        ValueError: for shapes that do not fit or an unknown gate; and, where the gradient is taken,
            for an empty batch or a single sample (its own mean: the weights would never learn).

    Numerics: statistics and the adapted gradient in at least float32, about a shift, so large
    means do not cancel (in float32 sigma^2 does lose digits for a neuron whose active samples lie
    hundreds of their standard deviations from the layer's mean). g_x, g_W, g_b have the dtype of
    x, weight, bias; g_W scales with 1 / x^2, so mind the range of float16. A neuron that is never
    active has the layer's moments; one whose moments are not finite (NaN or Inf in the batch, or
    |x| beyond about 1e18 in float32) has the plain gradient.

    Cost: at most two kernel-gradient products more, over `statistics_rows`; none in the forward
    pass, which keeps phi'(z) of these rows (a mask for ReLU, at least float32 otherwise).

    Transformations: autograd, torch.compile(fullgraph=True) with .backward(), autocast,
    torch.func.grad, checkpointing. Under torch.func.vmap each mapped example has its own
    statistics, over its own leading axes. Gradients summed over micro-batches are those of
    micro-batch statistics. Forward mode (jvp, jacfwd) raises PyTorch's error; use
    ``gradient="plain"`` there. Second derivatives (create_graph)
    raise PyTorch's error too. torch.compile traces the backward pass too, so a compiled single
    row raises in the forward pass unless under torch.no_grad; torch.compile of a torch.func
    transform, which would drop every custom backward (pytorch#193279), runs uncompiled, or raises
    with fullgraph=True: compile the function that calls .backward() instead.

    Example:
        >>> import torch
        >>> from torchnorm import Rule
        >>> from torchnorm.functional import neuronwise_linear
        >>> x = torch.tensor([[10.0], [12.0], [11.0], [-5.0]])
        >>> def gradient(rule):
        ...     weight = torch.ones(1, 1, requires_grad=True)
        ...     bias = torch.zeros(1, requires_grad=True)
        ...     z = neuronwise_linear(x, weight, bias, gate="relu", rule=rule)
        ...     (z.relu() * torch.tensor([[1.0], [-1.0], [1.0], [1.0]])).sum().backward()
        ...     return round(weight.grad.item(), 4)
        >>> gradient(Rule(gradient="plain"))
        9.0
        >>> gradient(Rule(shrinkage=0.0, damping=0.0))  # (9 - 11 * 1) / (2 / 3)
        -3.0

    References:
        The thesis topic "Can We Improve BatchNorm? Neuron-wise Input Normalization for Neural
        Networks" (TU Munich); Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110 (uniform
        weights); Ollivier, arXiv 1303.0818 (error weights).
    """
    checks.check_floating("x", x)
    checks.check_floating("weight", weight)
    checks.check_matrix("weight", weight.shape, "[O, I]")
    checks.check_inputs(x.shape, weight.shape[1])
    if bias is not None:
        checks.check_floating("bias", bias)
    return linear_operation(
        Dense(), x, weight, bias, gate=gate, rule=rule, process_group=process_group
    )


def linear_operation(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    gate: Gate,
    rule: Rule,
    process_group: Any,
) -> torch.Tensor:
    """`neuronwise_linear` for any operation that is linear in its kernel."""
    checks.check_rule(rule)
    resolve_gate(gate)
    if bias is not None:
        checks.check_bias(bias.shape, weight.shape[0])
    if rule.gradient == "plain" or not torch.is_grad_enabled():
        return operation.apply(x, weight, bias)
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "torch.compile: got a torch.func transform inside, where PyTorch drops every custom "
            "backward without a word (pytorch#193279), expected none; compile the function that "
            "calls .backward(), or leave torch.func uncompiled"
        )
    device = x.device.type
    context = contextlib.nullcontext()
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Here and not by torch.amp.custom_fwd, which excludes the setup_context of torch.func.
        context = torch.autocast(device, enabled=False)
        if x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
    with context:
        # The knobs are arguments of their own, because they may be tensors that are batched.
        z, _ = _Neuronwise.apply(x, weight, bias, *rule.knobs, operation, gate, rule, process_group)
    return z


class _Neuronwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, shrinkage, damping, epsilon, operation, gate, rule, process_group):
        z = operation.apply(x, weight, bias)
        # Not a view any more: one made in here could not be modified in place afterwards.
        z = torch.ops.aten._unsafe_view(z, z.shape)
        slope = None
        if needs_slope(rule.weighting):
            # Taken now: an in-place activation will have overwritten z by the backward pass.
            slope = gate_slope(gate, operation.first_rows(z, rule.statistics_rows))
        return z, slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, shrinkage, damping, epsilon, operation, _, rule, process_group = inputs
        _, slope = output
        if slope is not None:
            ctx.mark_non_differentiable(slope)
        knobs = (shrinkage, damping, epsilon)
        batched = [knob if isinstance(knob, torch.Tensor) else None for knob in knobs]
        ctx.save_for_backward(x, weight, slope, *batched)
        ctx.knobs = [None if isinstance(knob, torch.Tensor) else knob for knob in knobs]
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.operation, ctx.rule, ctx.process_group = operation, rule, process_group

    @staticmethod
    @once_differentiable
    def backward(ctx, g_z, _):
        x, weight, slope, *batched = ctx.saved_tensors
        knobs = [k if k is not None else b for k, b in zip(ctx.knobs, batched, strict=True)]
        g_x = g_weight = g_bias = None
        if ctx.needs_input_grad[0]:
            g_x = ctx.operation.input_grad(x, weight, g_z)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            centred = ctx.bias_dtype is not None
            g_weight, g_bias = _parameter_gradients(
                ctx.operation,
                x,
                weight,
                g_z,
                slope,
                ctx.rule,
                knobs,
                centred=centred,
                process_group=ctx.process_group,
            )
            g_weight = g_weight.to(weight.dtype)
            g_bias = None if g_bias is None else g_bias.to(ctx.bias_dtype)
        return g_x, g_weight, g_bias, *[None] * 7


def _parameter_gradients(operation, x, weight, g_z, slope, rule, knobs, *, centred, process_group):
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centred."""
    rows = operation.first_rows(g_z, rule.statistics_rows)
    others = 0 if process_group is None else dist.get_world_size(process_group) - 1
    checks.check_samples(operation.samples(rows) + others, centred)
    moments = input_moments(
        operation,
        x,
        weight,
        slope,
        rows,
        rule,
        knobs,
        centred=centred,
        process_group=process_group,
    )
    if centred:
        g_b = operation.bias_grad(g_z.to(moments.sigma.dtype))
        g_w = centred_gradient(operation, x, weight, g_z, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(x, weight, g_z)
    g_w = covariant(g_w, moments)
    return (g_w, g_b) if rule.gradient == "covariant" else pull_back(g_w, g_b, moments)
