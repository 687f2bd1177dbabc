"""Sums over samples -> each neuron's input mean and scale. Pure, for any linear operation.

Letters: ``m`` the mass (sum of the weights s), ``c`` the shift (a layer-wide mean that every sum is
taken about, so that large means do not cancel), ``u`` the layer's own, uniformly weighted moments.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from torchnorm import checks
from torchnorm.operations.linear import Dense, LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics.weighting import sample_weight


class Sums(NamedTuple):
    """Sums over samples about a shift c; those of two shards add up to those of both.

    Attributes:
        mass: sum of s, [O].
        square: sum of s^2, [O].
        real: sum of s over the samples that a tap really sees, not padding; broadcasts to a kernel.
        first: sum of s (x - c) over the same, or None where no mean is taken.
        second: sum of s (x - c)^2 over the same, or None where no variance is taken.
    """

    mass: torch.Tensor
    square: torch.Tensor
    real: torch.Tensor
    first: Any
    second: Any


class Moments(NamedTuple):
    """Each neuron's input moments; everything broadcasts against the kernel.

    Attributes:
        shift: c per channel of x, [C].
        mean: where the inputs are centered.
        offset: mean - c, kept apart because the difference of two large numbers has lost it.
        sigma: what they are divided by.
    """

    shift: torch.Tensor
    mean: torch.Tensor
    offset: torch.Tensor
    sigma: torch.Tensor


def weighted_sums(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    s: torch.Tensor,
    *,
    first: bool,
    second: bool,
) -> Sums:
    """Sums of x (shifted already) under the sample weight s; weight gives the shape."""
    return Sums(
        mass=operation.per_neuron(operation.bias_grad(s), weight),
        square=operation.per_neuron(operation.bias_grad(s * s), weight),
        real=real_mass(operation, x, weight, s),
        first=operation.kernel_grad(x, weight, s) if first else None,
        second=operation.kernel_grad(x * x, weight, s) if second else None,
    )


def real_mass(
    operation: LinearOperation, x: torch.Tensor, weight: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """Sum of s over the samples that each tap really sees; one input channel tells."""
    if not operation.padded:
        return operation.per_neuron(operation.bias_grad(s), weight)
    # What a tap sees is the same in every image: one of them tells, with s summed over all.
    few = x.narrow(operation.channel_axis(x), 0, operation.groups)
    ones = torch.ones_like(operation.one_image(few))
    return operation.kernel_grad(ones, weight[:, :1], operation.one_image(s))


def layer_sums(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    z: torch.Tensor,
    *,
    first: bool,
    second: bool,
) -> Sums:
    """The sums with s = 1, from which the layer's own moments come; z gives the shape.

    One output per group is enough, and one image that is the sum of all.
    """
    few = weight[: operation.groups]
    shape = list(z.shape)
    shape[operation.channel_axis(z)] = operation.groups  # of an empty z too
    one = z.new_ones(shape)
    mass = operation.per_neuron(operation.bias_grad(one), few)
    real = real_mass(operation, x, few, one)
    one = torch.ones_like(operation.one_image(one))
    return Sums(
        mass=mass,
        square=mass,
        real=real,
        first=operation.kernel_grad(operation.one_image(x), few, one) if first else None,
        second=operation.kernel_grad(operation.one_image(x * x), few, one) if second else None,
    )


def raw_moments(
    shift: torch.Tensor, layer: Sums, neuron: Sums | None, shrinkage: Any
) -> tuple[torch.Tensor, Any]:
    """(mean - c, variance) of each neuron, shrunk towards the layer's.

    About zero where the sums hold no `first`; the variance is None where they hold no `second`.

    Args:
        shift: c, broadcasting against the weight.
        layer: sums with s = 1.
        neuron: sums with the neurons' own weights; None if those are 1 as well.
        shrinkage: see `Rule`.
    """
    count = layer.mass
    if layer.first is None:
        return torch.zeros_like(shift), _second_about_zero(layer, neuron, shrinkage)

    layer_offset = (layer.first - shift * (count - layer.real)) / count
    layer_mean = shift + layer_offset
    variance = _second_about_layer_mean(layer, layer_offset, layer_mean)
    if variance is not None:
        variance = torch.clamp_min(variance / count, 0)
    if neuron is None:
        return layer_offset, variance

    per_mass, rest = _shrink(neuron, shrinkage)
    first = neuron.first - layer_offset * neuron.real - layer_mean * (neuron.mass - neuron.real)
    step = per_mass * first
    second = _second_about_layer_mean(neuron, layer_offset, layer_mean)
    if second is not None and variance is not None:
        variance = torch.clamp_min(per_mass * second + rest * variance - step * step, 0)
    return layer_offset + step, variance


def _second_about_zero(layer: Sums, neuron: Sums | None, shrinkage: Any) -> Any:
    """The second moment about zero, for layers without a bias; None where none is taken."""
    if neuron is None or neuron.second is None:
        return None if layer.second is None else layer.second / layer.mass
    per_mass, rest = _shrink(neuron, shrinkage)
    return per_mass * neuron.second + rest * (layer.second / layer.mass)


def _second_about_layer_mean(
    sums: Sums, layer_offset: torch.Tensor, layer_mean: torch.Tensor
) -> Any:
    """Sum of s (x - layer_mean)^2, padding counted as x = 0."""
    if sums.second is None:
        return None
    moved = sums.second - 2 * layer_offset * sums.first + layer_offset**2 * sums.real
    return moved + layer_mean**2 * (sums.mass - sums.real)


def _shrink(neuron: Sums, shrinkage: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """((1 - lambda) / m, lambda), lambda = kappa / (n_eff + kappa), n_eff = m^2 / sum s^2."""
    denominator = neuron.mass**2 + shrinkage * neuron.square
    per_mass = neuron.mass / torch.where(denominator > 0, denominator, 1)
    return per_mass, 1 - per_mass * neuron.mass


def damped_sigma(variance: torch.Tensor, damping: Any, epsilon: Any) -> torch.Tensor:
    """The root of v + damping * mean(v) + epsilon, the mean over all that feeds one neuron."""
    axes = tuple(range(1, variance.ndim))
    square = variance + damping * variance.mean(axes, keepdim=True) + epsilon
    return torch.where(square == 0, 1, square.sqrt())


def input_moments(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    slope: torch.Tensor | None,
    g_z: torch.Tensor,
    rule: Rule,
    knobs: tuple[Any, Any, Any],
    *,
    centered: bool = True,
    process_group: Any = None,
) -> Moments:
    """The input moments of every neuron that uses `operation` on this batch.

    Args:
        operation: the layer's linear operation.
        x: inputs, channels where PyTorch has them.
        weight: gives shapes only.
        slope: phi'(z) on the rows that the statistics use (see `gate_slope`), or None.
        g_z: gradient at z on these rows.
        rule: see `Rule`; only its structure is used, and not `gradient`.
        knobs: shrinkage, damping, epsilon.
        centered: False where there is no bias to absorb a mean: second moments about zero.
        process_group: processes over which the batch is spread: the sums are shared over them.
    """

    def total(tensors: tuple) -> tuple:
        return tensors if process_group is None else _all_reduced(tensors, process_group)

    def maximum(values):
        axes = operation.sample_axes(values)
        if operation.samples(values) == 0:  # this process has no share of the batch
            values = values.new_zeros([1 if k in axes else n for k, n in enumerate(values.shape)])
        top = values.amax(axes, keepdim=True) if axes else values.clone()
        if process_group is not None:
            dist.all_reduce(top, dist.ReduceOp.MAX, process_group)
        return top

    dtype = torch.promote_types(x.dtype, torch.float32)
    outputs = weight.shape[0]
    x = operation.first_rows(x, rule.statistics_rows).to(dtype)
    g_z = g_z.to(dtype)
    if centered:
        count = x.new_tensor(float(operation.samples(x)))
        channel_sum, count = total((operation.bias_grad(x), count))
        channel_shift = channel_sum / count
        x = x - operation.over_samples(channel_shift)
    else:
        channel_shift = x.new_zeros(x.shape[operation.channel_axis(x)])
    shift = operation.per_tap(channel_shift, weight)

    shrinkage, damping, epsilon = knobs
    scaled, own_scale = rule.scale != "none", rule.scale == "neuron"
    layer = layer_sums(operation, x, weight, g_z, first=centered, second=scaled)
    s = sample_weight(rule.weighting, slope, g_z, maximum)
    neuron = None
    if s is not None and (centered or own_scale):
        neuron = weighted_sums(operation, x, weight, s, first=centered, second=own_scale)
    sums = total((*layer, *(neuron or ())))
    layer = Sums._make(v if v is None else operation.per_output(v, outputs) for v in sums[:5])
    neuron = None if neuron is None else Sums._make(sums[5:])
    offset, variance = raw_moments(shift, layer, neuron, shrinkage)
    if variance is None:
        sigma = torch.ones_like(offset)
    else:
        sigma = damped_sigma(variance, damping, epsilon)
    return finite_or_plain(Moments(channel_shift, shift + offset, offset, sigma))


def _all_reduced(tensors: tuple, process_group: Any) -> tuple:
    """The sums over the process group of tensors (or Nones), in one collective."""
    present = [tensor for tensor in tensors if tensor is not None]
    flat = torch.cat([tensor.reshape(-1) for tensor in present])
    dist.all_reduce(flat, group=process_group)
    pieces = iter(flat.split([tensor.numel() for tensor in present]))
    return tuple(t if t is None else next(pieces).reshape(t.shape) for t in tensors)


def finite_or_plain(moments: Moments) -> Moments:
    """Give a neuron whose moments are not finite mean 0 and sigma 1: the plain gradient.

    So a NaN in the batch, or an overflow, spreads no further than it would in the plain layer.
    """
    axes = tuple(range(1, moments.offset.ndim))
    finite = torch.isfinite(moments.mean) & torch.isfinite(moments.sigma)
    finite = finite.flatten(1).all(1).reshape(-1, *[1 for _ in axes])
    return moments._replace(
        mean=torch.where(finite, moments.mean, 0),
        offset=torch.where(finite, moments.offset, moments.offset - moments.mean),
        sigma=torch.where(finite, moments.sigma, 1),
    )


def centered_gradient(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    g_z: torch.Tensor,
    g_b: torch.Tensor,
    moments: Moments,
) -> torch.Tensor:
    """The sum of g_z (x - mean), as a product of x - c, because g_W - mean g_b cancels."""
    dtype = g_b.dtype
    shifted = (x.to(dtype) - operation.over_samples(moments.shift)).to(x.dtype)
    product = operation.kernel_grad(shifted, weight, g_z).to(dtype)
    g_b = operation.per_neuron(g_b, weight)
    if not operation.padded:
        return product - moments.offset * g_b
    # Padding is x = 0, not x = c: a tap that sees it has less real mass than the bias.
    real = real_mass(operation, shifted, weight, g_z).to(dtype)
    return product + (moments.mean - moments.offset) * real - moments.mean * g_b


def neuron_moments(
    x: torch.Tensor, sample_weight: torch.Tensor, rule: Rule = Rule()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the inputs of each neuron of a dense layer under given sample weights.

        mean[o,i] = sum_n s x / sum_n s,   sigma[o,i]^2 = var + damping mean_i(var) + epsilon

    both shrunk towards the layer's own moments where few samples carry weight (see `Rule`).

    Args:
        x: inputs [..., I], floating.
        sample_weight: s [..., O], real, one weight per sample and neuron; their unit does not
            matter. NaN and Inf count as 0, a negative one as its magnitude (with
            ``weighting="signed"`` as it is).
        rule: `scale`, `shrinkage`, `damping`, `epsilon` and `statistics_rows` are used. With
            ``scale="none"`` sigma is 1.

    Returns:
        (mean, sigma), each [O, I], in at least float32.

    Raises:
        TypeError: for an x that is not floating-point.
        ValueError: for shapes that do not fit, or fewer than two samples.

    Transformations: autograd, torch.compile, torch.func.vmap (then: of each example's own batch).

    Example:
        >>> import torch
        >>> from torchnorm import Rule, neuron_moments
        >>> x = torch.tensor([[1.0], [3.0], [5.0]])
        >>> s = torch.tensor([[1.0], [1.0], [0.0]])  # the neuron is not active on the last sample
        >>> mean, sigma = neuron_moments(x, s, Rule(shrinkage=0.0, damping=0.0))
        >>> mean.item(), sigma.item()
        (2.0, 1.0)
    """
    checks.check_floating(x=x)
    checks.check_rule(rule)
    checks.check_sample_weight(sample_weight.shape, x.shape)
    operation = Dense()
    dtype = torch.promote_types(x.dtype, torch.float32)
    slope = operation.first_rows(sample_weight, rule.statistics_rows).to(dtype)
    checks.check_samples(operation.samples(slope), centered=True)
    weight = x.new_zeros((sample_weight.shape[-1], x.shape[-1]), dtype=dtype)
    weighting = "signed" if rule.weighting == "signed" else "gate"
    rule = dataclasses.replace(rule, weighting=weighting)
    moments = input_moments(operation, x, weight, slope, slope, rule, rule.knobs)
    return moments.mean.expand_as(weight), moments.sigma.expand_as(weight)
