"""About what the sums of a batch are taken, so that large means do not cost them digits. Pure."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.statistics.batch import Batch

#: (samples, deviations): a mean beyond so many of them costs a sum about 0 its digits, so the first
#: batch is summed about its own means, if it has so many samples. (Few may lie close by chance, and
#: sums of several parts about their own means tell nothing of all: so rather late than early.)
_FAR = ((8, 16.0), (4, 256.0))
#: The same in double precision.
_FAR_DOUBLE = ((8, 64.0), (4, 4096.0))
#: The same where sums are packed (see `Rule.statistics_dtype`), and have few digits to lose.
_FAR_PACKED = ((8, 2.0), (4, 32.0))


def center_of(
    batch: Batch, mean: jax.Array, before: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(About what to sum, where that is the batch's own mean), each [C].

    Args:
        batch: of this call.
        mean: of its inputs [C].
        before: the center of the batches before [C]; None or 0: there were none.
    """
    if before is None:
        return 0 * mean, 0 * mean
    center = before.astype(mean.dtype)

    def tracked() -> tuple[jax.Array, jax.Array]:
        return center, 0 * mean

    def first() -> tuple[jax.Array, jax.Array]:
        count = batch.x_samples
        (many, near), (few, distant) = _limits(batch, mean)
        beyond = jnp.where(count >= many, near, distant)
        x = batch.every.x - batch.operation.over_samples(mean, batch.every.x)
        # (About the mean as it should be: the rounding of a sum is no variance of a constant.)
        rounding = batch.counted_sum(x) / jnp.maximum(count, 1)
        variance = batch.counted_sum(x**2) / jnp.maximum(count, 1) - rounding**2
        # What is constant in this part need not be in the others, and loses nothing about 0.
        varies = variance > (4 * jnp.finfo(mean.dtype).eps * mean) ** 2
        far = (count >= few) & (mean**2 > beyond**2 * variance) & varies
        return jnp.where(far, mean, 0), far.astype(mean.dtype)

    return lax.cond(jnp.any(center != 0), tracked, first)


def _limits(batch: Batch, mean: jax.Array) -> tuple[tuple[int, float], tuple[int, float]]:
    if batch.rule.statistics_dtype is not None:
        return _FAR_PACKED
    return _FAR_DOUBLE if mean.dtype == jnp.float64 else _FAR
