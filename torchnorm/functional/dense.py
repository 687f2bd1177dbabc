"""The rule in a dense layer: `neuronwise_linear`, whose text holds for all the functions."""

from typing import Any

import torch

from torchnorm import checks
from torchnorm.activations import Gate
from torchnorm.backward.linear_operation import linear_operation
from torchnorm.operations.linear import Dense
from torchnorm.rule import Rule


def neuronwise_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
    neuron_mask: Any = None,
) -> Any:
    """A dense layer whose weight gradient is taken in standardized coordinates, per neuron.

    Forward (exact):      z[..., o] = sum_i x[..., i] weight[o, i] + bias[o]
    Backward (modified):  g_x = g_z W                                    (the true one)
                          g_W <- (g_W - mean g_b) / sigma^2              (not the VJP)
                          g_b <- g_b - sum_i mean[:, i] g_W[:, i]        (with the new g_W)

    where g_z is the gradient of the loss at z, and mean and sigma [O, I] are the moments of each
    neuron's inputs over the samples on which it is active, weighted by the activation's derivative
    phi'(z) (see `Rule`, which also selects the other members of the family). Without a bias nothing
    can absorb a mean: then mean = 0 and sigma^2 is the second moment about zero. That is
    ``gradient="preconditioned"``, the default of this function unless it is given `statistics`;
    nothing is remembered between calls.

    Args:
        x: [..., I], float16, bfloat16, float32 or float64; all leading axes are samples (N).
        weight: [O, I].
        bias: [O] or None.
        gate: the activation that follows; its derivative gates the neuron: it says on which
            samples, or how much, the neuron learns. A name of `torch.nn` (``"relu"``), an
            elementwise callable, or None if none follows: then the moments are the layer's own. It
            is not applied, and has no default, because a guess would silently be another method. A
            `JointGate` reads several neurons at once; with `DEFERRED` the activation is told later.
        rule: what the gradient is standardized by, and how; see `Rule`. With
            ``gradient="plain"`` this is the plain layer, gradient and all, bit for bit.
        process_group: processes over which the batch is spread (`torch.distributed`), as of
            SyncBatchNorm; the statistics are then those of the whole batch. None (default): those
            of this process, as in DDP's BatchNorm.
        statistics: the layer's tracked ones (`torchnorm.statistics.tracked.Statistics`), whose
            gradient is the statistics of this batch; the other gradients are then the plain ones,
            for `torchnorm.optim.in_neuron_coordinates`.
        neuron_mask: which samples the statistics count, booleans or weights >= 0 with the axes of
            the samples or the first of them, or None for all of them, or what
            `torchnorm.neuron_mask` says, where it is in effect. For padding, which the loss does
            not count: the gradient is the sum that it was.

    Returns:
        z [..., O], the dtype of `torch.nn.functional.linear`, under autocast too; with
        ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError: for an x, weight or bias that is not floating-point, a gate or rule of another
            type.
        ValueError: for shapes that do not fit, an unknown gate or the statistics of another layer
            or rule; and, where the gradient is adapted, for an empty batch or a single sample (its
            own mean: the weights would never learn).

    Numerics: statistics and the adapted gradient in at least float32, about a shift, so large means
    do not cancel (in float32 sigma^2 does lose digits for a neuron whose active samples lie
    hundreds of their standard deviations from the layer's mean). g_x, g_W, g_b have the dtype of x,
    weight, bias; with ``step_size="standardized"`` g_W scales with 1 / x, so mind the range of
    float16. A neuron that is never active has the layer's moments; one whose moments are not finite
    (NaN or Inf in the batch, or |x| beyond about 1e18 in float32) has the plain gradient.

    Cost: at most two kernel-gradient products more, over `statistics_rows`; none in the forward
    pass, which keeps phi'(z) of these rows (a mask for ReLU, at least float32 otherwise).

    Transformations: autograd, torch.compile(fullgraph=True) with .backward(), autocast,
    torch.func.grad, checkpointing. Under torch.func.vmap each mapped example has its own
    statistics, over its own leading axes. Gradients summed over micro-batches are those of
    micro-batch statistics. With a frozen weight (requires_grad False) the bias has its plain
    gradient; a frozen bias cannot absorb a mean and counts as none. Forward mode (jvp, jacfwd)
    raises PyTorch's error; use ``gradient="plain"`` there. Second derivatives (create_graph) raise
    PyTorch's error too. torch.compile traces the backward pass too, so a compiled single
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
        >>> gradient(Rule(shrinkage=0.0, damping=0.0))  # 9 - 11 * 1: one input
        -2.0

    References:
        The thesis topic "Can We Improve BatchNorm? Neuron-wise Input Normalization for Neural
        Networks" (TU Munich); Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110 (uniform
        weights); Ollivier, arXiv 1303.0818 (error weights).
    """
    checks.check_floating(x=x, weight=weight, bias=bias)
    checks.check_matrix("weight", weight.shape, "[O, I]")
    checks.check_inputs(x.shape, weight.shape[1])
    return linear_operation(
        Dense(),
        x,
        weight,
        bias,
        gate=gate,
        rule=rule,
        process_group=process_group,
        statistics=statistics,
        neuron_mask=neuron_mask,
    )
