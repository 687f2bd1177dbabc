"""Operations that are linear in their kernel, and their kernel gradient on any pair of arrays."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.operations.canonical import canonically
from jaxnorm.operations.rows import spaced, spaced_among


@dataclass(frozen=True, eq=False)
class LinearOperation:
    """``z = apply(x, kernel)``, linear in the kernel; channels last in x and z.

    Each entry of the kernel must meet at most one entry of x per sample, with coefficient 1, as in
    any product or convolution: then the kernel gradient of x^2 is the sum of squares.

    The statistics need nothing else of an operation: a weighted sum over the samples *is* its
    kernel gradient, with the sample weight in place of the gradient at z.

    Attributes:
        apply: (x [..., C], kernel [..., C / groups, O]) -> z [..., O]; must work for any number of
            outputs that `groups` divides.
        groups: into how many groups the channels and outputs fall.
        padded: whether apply pads x with zeros, which then count as samples of value 0.
        spatial_axes: how many axes of x between the batch and the channels are positions.
        mask: 0 where an entry of the kernel is switched off for good, or None.
        placed: whether apply says how z is to be sharded (and so takes an `out_sharding`).
        branched: whether kernel gradients are computed in a branch (see `canonically`).
        direct: whether it is JAX's own product, in which each channel of x meets its own row of the
            kernel, [C, O]; such operations are equal where they are the same.
        kernel_axes: the order of Flax's kernel axes here, or None if it is the same. An axis
            that is only split or joined (several inputs, several outputs) keeps its place.
        bias_axes: the same of the bias.
    """

    apply: Callable[..., jax.Array]
    groups: int = 1
    padded: bool = False
    spatial_axes: int = 0
    mask: Any = None
    placed: bool = False
    branched: bool = False
    direct: bool = False
    kernel_axes: tuple[int, ...] | None = None
    bias_axes: tuple[int, ...] | None = None

    def forward(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Flax's forward pass on Flax's axes, to the last bit."""
        z = self.apply(x, kernel)
        return z if bias is None else z + jnp.reshape(bias, (1,) * (z.ndim - 1) + (-1,))

    def bias_shape(self, kernel: jax.Array) -> tuple[int, ...]:
        """What shape a bias must have."""
        return kernel.shape[-1:]

    def sample_shape(self, z: jax.Array) -> tuple[int, ...]:
        """The axes of the samples of z, which is on Flax's axes."""
        return z.shape[:-1]

    def spaced_rows_of_z(self, z: jax.Array, rows: int | None) -> jax.Array:
        """`spaced_rows` of z on Flax's axes."""
        return self.spaced_rows(z, rows)

    def flat(self, x: Any, kernel: Any, z: Any) -> tuple[Any, Any, Any]:
        """(x, kernel, z) from Flax's axes to those of this class; any may be None."""
        return x, kernel, z

    def restored(self, kernel: Any, bias: Any) -> tuple[Any, Any]:
        """(kernel, bias [1, ..., O]) back on Flax's axes; the bias may be None."""
        return kernel, None if bias is None else bias.reshape(-1)

    def unplaced(self) -> "LinearOperation":
        """The same, but how z is sharded is left to the compiler."""
        if not self.placed:
            return self
        return replace(self, apply=functools.partial(self.apply, out_sharding=None), placed=False)

    def sample_axes(self, x: jax.Array) -> tuple[int, ...]:
        """All axes but the channels of x, or the outputs of z."""
        return tuple(range(x.ndim - 1))

    def samples(self, z: jax.Array) -> int:
        """How many samples z holds (for a convolution: positions)."""
        return math.prod(z.shape[:-1])

    def kernel_grad(self, x: jax.Array, kernel: jax.Array, g_z: jax.Array) -> jax.Array:
        """The kernel gradient for inputs x and gradient g_z at z; only kernel's type matters."""

        def gradient(x: jax.Array, g_z: jax.Array) -> jax.Array:
            # Through jax.vjp of the operation itself: right for every layout, precision, sharding.
            z, pull = jax.vjp(lambda k: self.apply(x, k), kernel.astype(x.dtype))
            return pull(g_z.astype(z.dtype))[0]

        return canonically(gradient, x, g_z) if self.branched else gradient(x, g_z)

    def bias_grad(self, g_z: jax.Array) -> jax.Array:
        """The sum over samples [O]."""
        return jnp.sum(g_z, axis=self.sample_axes(g_z))

    def narrow(self, array: jax.Array, axis: int, length: int) -> jax.Array:
        """Ones of the same type with another length along one axis, which may be empty.

        A sum of which nothing but the type is used (and nothing computed, under jit): in
        `jax.shard_map` the type says over which axes an array varies.
        """
        one = jnp.ones_like(jnp.sum(array, axis=axis, keepdims=True))
        return jnp.repeat(one, length, axis=axis)

    def spaced_rows(
        self, x: jax.Array, rows: int | None, counts: jax.Array | None = None
    ) -> jax.Array:
        """At least so many rows (samples; whole images of a convolution), all over the batch.

        Cut once more, they stay as they are.

        Args:
            x: any array with the axes of the samples and one more; several axes of the batch count
                as one.
            rows: how many; None for all.
            counts: how often each sample counts [..., 1], then exactly so many of those that do;
                None if all do.
        """
        axis = x.ndim - 1 - self.spatial_axes
        batch = math.prod(x.shape[:axis])
        if rows is None or rows >= batch:
            return x
        x = x.reshape(batch, *x.shape[axis:])
        if counts is None:
            return spaced(x, rows, 0)
        counted = jnp.max(counts.reshape(batch, -1), axis=1) > 0
        return x[spaced_among(counted, rows)]

    def one_image(self, x: jax.Array) -> jax.Array:
        """The sum over the batch, as one image; x itself where nothing is known of positions."""
        batch = range(x.ndim - 1 - self.spatial_axes) if self.spatial_axes else ()
        return jnp.sum(x, axis=tuple(batch), keepdims=True) if batch else x

    def over_samples(self, values: jax.Array, x: jax.Array) -> jax.Array:
        """Per-channel values [C] with the axes of x."""
        return values.reshape(*[1] * (x.ndim - 1), -1)

    def per_neuron(self, values: jax.Array, kernel: jax.Array) -> jax.Array:
        """Per-neuron values [O] with the axes of the kernel."""
        return values.reshape(*[1] * (kernel.ndim - 1), -1)

    def per_output(self, values: jax.Array, outputs: int) -> jax.Array:
        """Repeat per-group values [..., groups] so that they broadcast against [..., outputs]."""
        return values if self.groups == 1 else jnp.repeat(values, outputs // self.groups, axis=-1)

    def per_tap(self, channels: jax.Array, kernel: jax.Array) -> jax.Array:
        """Per-channel values [C] with the axes of the kernel."""
        taps = [1] * (kernel.ndim - 2)
        channels = channels.reshape(self.groups, channels.size // self.groups).T
        return self.per_output(channels.reshape(*taps, *channels.shape), kernel.shape[-1])


def dense(dot_general: Callable[..., jax.Array] = lax.dot_general, **kwargs) -> LinearOperation:
    """``z[..., o] = sum_i x[..., i] kernel[i, o]`` by Flax's product; kwargs go to it."""
    if dot_general is lax.dot_general:
        return _dense(**kwargs)

    def apply(x, kernel, **other):
        return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **(kwargs | other))

    return LinearOperation(apply, placed=is_placed(kwargs))


@functools.cache
def _dense(**kwargs) -> LinearOperation:
    """One and the same for all layers, so that what is traced for one is known for others."""

    def apply(x, kernel, **other):
        return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **(kwargs | other))

    return LinearOperation(apply, placed=is_placed(kwargs), direct=True)


def is_placed(kwargs: dict[str, Any]) -> bool:
    """Whether a product is told how its result is to be sharded."""
    return kwargs.get("out_sharding") is not None
