"""Sums over the samples of a batch, each with a weight s. Pure, for any linear operation.

Zero padding counts: what a tap sees of it are samples of value 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.operations.linear import LinearOperation
from jaxnorm.statistics.batch import Batch, Samples

#: How many of them a difference of two sums may have lost.
ROUNDINGS = 16


class Sums(NamedTuple):
    """Sums over samples about a center; those of two shards add up to those of both.

    All broadcast against the kernel.

    Attributes:
        mass: sum of s.
        square: sum of s^2.
        first: sum of s (x - center), or None where no mean is taken.
        second: sum of s (x - center)^2, or None where no variance is taken.
        padding: what of the mass is zero padding, which the two above leave out; None if they do
            not.
        center: what goes with that, broadcasting against the kernel.
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
        second = None if self.second is None else self.second + self.center**2 * self.padding
        first = self.first - self.center * self.padding
        rows = None if self.rows is None else self.rows.with_padding()
        return Sums(self.mass, self.square, first, second, rows=rows)


def sums_about(
    batch: Batch, center: jax.Array, s: jax.Array | None, *, spread: bool = False
) -> tuple[Sums, Sums | None]:
    """(The layer's sums, with s = 1; those of its neurons), as far as the rule needs them.

    Args:
        batch: of all devices that share it.
        center: about what the sums are taken [C], so that large means do not cancel; 0 where
            nothing is centered.
        s: the sample weight [..., O], None for 1.
        spread: whether the layer's `second` is wanted where nothing is scaled, too.
    """
    operation, rule, centered = batch.operation, batch.rule, batch.centered
    scaled, neuron_scaled = rule.scale != "none", rule.scale == "neuron"
    every, rows = (
        each.x - operation.over_samples(center, each.x) if centered else each.x
        for each in (batch.every, batch.rows)
    )
    layer = layer_sums(batch, batch.every, every, second=scaled or spread)
    neuron = of_rows = None
    if s is not None and (centered or neuron_scaled):
        neuron = weighted_sums(batch, rows, s, second=neuron_scaled)
        if rule.statistics_rows is not None:
            of_rows = layer_sums(batch, batch.rows, rows, second=neuron_scaled)
    layer, neuron, of_rows = batch.total((layer, neuron, of_rows))
    outputs = batch.kernel.shape[-1]
    layer, of_rows = jax.tree.map(
        lambda sums: operation.per_output(sums, outputs), (layer, of_rows)
    )
    # Not before the sums of all devices are taken: it is none.
    shift = operation.per_tap(center, batch.kernel)
    layer, neuron, of_rows = (
        None if each is None else each._replace(center=shift) for each in (layer, neuron, of_rows)
    )
    assert layer is not None
    return layer, None if neuron is None else neuron._replace(rows=of_rows)


def weighted_sums(batch: Batch, x: jax.Array, s: jax.Array, *, second: bool) -> Sums:
    """The sums under the sample weight s [..., O]; of x on the batch's rows, less the center."""
    operation, kernel, counted = batch.operation, batch.kernel, batch.rows.counted
    square, s = counted(s * s), counted(s)
    sums = Sums(
        mass=operation.per_neuron(operation.bias_grad(s), kernel),
        square=operation.per_neuron(operation.bias_grad(square), kernel),
        first=operation.kernel_grad(x, kernel, s) if batch.centered else None,
        second=operation.kernel_grad(x * x, kernel, s) if second else None,
    )
    return _beside_padding(operation, sums, x, kernel, s)


def layer_sums(batch: Batch, samples: Samples, x: jax.Array, *, second: bool) -> Sums:
    """The sums with s = 1, from which the layer's own moments come; of the samples' x, less center.

    One output per group is enough, and, where all samples count, one image that is the sum of all.
    """
    operation = batch.operation
    one, few = (operation.narrow(a, -1, operation.groups) for a in (samples.g_z, batch.kernel))
    one = one.astype(x.dtype)
    s = samples.counted(one)
    mass = operation.per_neuron(operation.bias_grad(s), few)
    image = operation.one_image if samples.counts is None else lambda x: x
    every = s if samples.counts is not None else jnp.ones_like(image(one))

    def total(x: jax.Array) -> jax.Array:
        if operation.direct:  # a reduction is no product with ones
            return operation.per_tap(operation.bias_grad(samples.counted(x)), few)
        return operation.kernel_grad(image(x), few, every)

    sums = Sums(
        mass=mass,
        square=mass,
        first=total(x) if batch.centered else None,
        second=total(x * x) if second else None,
    )
    return _beside_padding(operation, sums, x, few, s)


def _beside_padding(
    operation: LinearOperation, sums: Sums, x: jax.Array, kernel: jax.Array, s: jax.Array
) -> Sums:
    """The sums with the mass that they leave out."""
    if sums.first is None or not operation.padded:
        return sums
    padding = sums.mass - real_mass(operation, x, kernel, s)
    # Of a tap that sees none, a rounding of the mass; more, and it would look like samples far off.
    lost = ROUNDINGS * jnp.finfo(padding.dtype).eps * sums.mass
    return sums._replace(padding=jnp.where(abs(padding) <= abs(lost), 0, padding))


def real_mass(
    operation: LinearOperation, x: jax.Array, kernel: jax.Array, s: jax.Array
) -> jax.Array:
    """Sum of s over the samples that each tap really sees; one input channel tells."""
    if not operation.padded:
        return operation.per_neuron(operation.bias_grad(s), kernel)
    # What a tap sees is the same in every image: one of them tells, with s summed over all.
    ones = jnp.ones_like(operation.one_image(operation.narrow(x, -1, operation.groups)))
    return operation.kernel_grad(ones, operation.narrow(kernel, -2, 1), operation.one_image(s))
