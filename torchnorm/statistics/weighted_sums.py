"""Sums over the samples of a batch, each with a weight s. Pure, for any linear operation.

Zero padding counts: what a tap sees of it are samples of value 0.
"""

from typing import Any, NamedTuple

import torch

from torchnorm.operations.linear import LinearOperation
from torchnorm.statistics.batch import Batch, Samples

#: How many of them a difference of two sums may have lost.
ROUNDINGS = 16


class Sums(NamedTuple):
    """Sums over samples about a center; those of two shards add up to those of both.

    All broadcast against the weight.

    Attributes:
        mass: sum of s.
        square: sum of s^2.
        first: sum of s (x - center), or None where no mean is taken.
        second: sum of s (x - center)^2, or None where no variance is taken.
        padding: what of the mass is zero padding, which the two above leave out; None if they do
            not.
        center: what goes with that, broadcasting against the weight.
        rows: of a neuron's sums the layer's own over the same samples, where those are not all of
            the layer's; None if they are.
    """

    mass: Any
    square: Any
    first: Any
    second: Any
    padding: Any = None
    center: Any = None
    rows: Any = None

    def with_padding(self) -> "Sums":
        """The same sums over all samples, padding (x = 0) among them: additive whatever the center.

        What adds up has lost digits where most of what a tap sees is padding.
        """
        if self.padding is None:
            return self
        shift = self.center * self.padding
        first, second = self.first - shift, self.second
        second = None if second is None else torch.addcmul(second, self.center, shift)
        rows = None if self.rows is None else self.rows.with_padding()
        return Sums(self.mass, self.square, first, second, rows=rows)


def sums_about(
    batch: Batch, center: torch.Tensor, s: torch.Tensor | None, *, spread: bool = False
) -> tuple[Sums, Sums | None]:
    """(The layer's sums, with s = 1; those of its neurons), as far as the rule needs them.

    Args:
        batch: of all processes that share it.
        center: about what the sums are taken [C], so that large means do not cancel; 0 where
            nothing is centered.
        s: the sample weight, z's shape, None for 1.
        spread: whether the layer's `second` is wanted where nothing is scaled, too.
    """
    operation, rule, centered = batch.operation, batch.rule, batch.centered
    scaled, neuron_scaled = rule.scale != "none", rule.scale == "neuron"
    every = rows = batch.every.x - operation.over_samples(center) if centered else batch.every.x
    if rule.statistics_rows is not None:
        rows = batch.rows.x - operation.over_samples(center) if centered else batch.rows.x
    layer = layer_sums(batch, batch.every, every, second=scaled or spread)
    neuron = of_rows = ()
    if s is not None and (centered or neuron_scaled):
        neuron = weighted_sums(batch, rows, s, second=neuron_scaled)
        if rule.statistics_rows is not None:
            of_rows = layer_sums(batch, batch.rows, rows, second=neuron_scaled)
    total, outputs = iter(batch.total((*layer, *neuron, *of_rows))), batch.weight.shape[0]
    layer, neuron, of_rows = ([next(total) for _ in each] for each in (layer, neuron, of_rows))
    layer, of_rows = (
        [v if v is None else operation.per_output(v, outputs) for v in each]
        for each in (layer, of_rows)
    )
    # Not before the sums of all processes are taken: it is none.
    shift = operation.per_tap(center, batch.weight)
    layer = Sums(*layer)._replace(center=shift)
    of_rows = Sums(*of_rows)._replace(center=shift) if of_rows else None
    return layer, Sums(*neuron)._replace(center=shift, rows=of_rows) if neuron else None


def weighted_sums(batch: Batch, x: torch.Tensor, s: torch.Tensor, *, second: bool) -> Sums:
    """The sums under the sample weight s; of x on the batch's rows, less the center."""
    operation, weight, counted = batch.operation, batch.weight, batch.rows.counted
    square, s = counted(s * s), counted(s)
    image = operation.one_image(s)
    sums = Sums(
        mass=operation.per_neuron(operation.bias_grad(image), weight),
        square=operation.per_neuron(operation.bias_grad(square), weight),
        first=operation.kernel_grad(x, weight, s) if batch.centered else None,
        second=operation.kernel_grad(x * x, weight, s) if second else None,
    )
    return _beside_padding(operation, sums, x, weight, image)


def layer_sums(batch: Batch, samples: Samples, x: torch.Tensor, *, second: bool) -> Sums:
    """The sums with s = 1, from which the layer's own moments come; of the samples' x, less center.

    One output per group is enough, and, where all samples count, one image that is the sum of all.
    """
    operation, few = batch.operation, batch.weight[: batch.operation.groups]
    shape = list(samples.g_z.shape)
    shape[operation.channel_axis(samples.g_z)] = operation.groups  # of an empty z too
    image, images = lambda x: x, None
    if operation.spatial_axes and samples.counts is None:
        image, images, shape[0] = operation.one_image, shape[0], 1
    one = samples.counted(samples.g_z.new_ones(shape, dtype=x.dtype))
    s = one if images is None else one * images
    mass = operation.per_neuron(operation.bias_grad(s), few)
    sums = Sums(
        mass=mass,
        square=mass,
        first=operation.kernel_grad(image(x), few, one) if batch.centered else None,
        second=operation.kernel_grad(image(x * x), few, one) if second else None,
    )
    return _beside_padding(operation, sums, x, few, s)


def _beside_padding(
    operation: LinearOperation, sums: Sums, x: torch.Tensor, weight: torch.Tensor, s: torch.Tensor
) -> Sums:
    """The sums with the mass that they leave out."""
    if sums.first is None or not operation.padded:
        return sums
    padding = sums.mass - real_mass(operation, x, weight, s)
    # Of a tap that sees none, a rounding of the mass; more, and it would look like samples far off.
    lost = ROUNDINGS * torch.finfo(padding.dtype).eps * sums.mass
    return sums._replace(padding=padding.masked_fill(padding.abs() <= abs(lost), 0))


def real_mass(
    operation: LinearOperation, x: torch.Tensor, weight: torch.Tensor, s: torch.Tensor
) -> torch.Tensor:
    """Sum of s over the samples that each tap really sees; one input channel tells."""
    if not operation.padded:
        return operation.per_neuron(operation.bias_grad(s), weight)
    # What a tap sees is the same in every image: one of them tells, with s summed over all.
    ones = x.new_ones((1, operation.groups, *x.shape[2:]))
    return operation.kernel_grad(ones, weight[:, :1], operation.one_image(s))
